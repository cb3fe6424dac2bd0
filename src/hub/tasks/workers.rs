//! Workers: one task on each runtime that polls streams.
//!
//! A worker wakes streams whose alarm is due, wakes the listeners that publishers have left in a
//! queue, and starts background tasks of the hub that do not run. Streams have no timers, because
//! timers would increase the memory of idle streams.
//!
//! 1. A runtime gets a worker when a stream is opened on it, is first polled on it, or sets an
//!    alarm on it. The worker lives until its runtime drops it, or until no stream is open and no
//!    alarm or listener waits.
//! 2. All workers serve the same queue of listeners and the same [task slots](super::slot). So a
//!    runtime that is not driven, that is blocked or that has ended delays only the streams that
//!    are polled on it.
//! 3. When a runtime drops its worker, the streams with pending alarms are woken. Streams that
//!    another runtime still polls then set their alarms again.

use std::collections::btree_map::BTreeMap;
use std::collections::hash_map::{Entry, HashMap};
use std::sync::{Arc, Weak};

use tokio::runtime::{Handle, Id};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

use super::slot::{Beats, clock, is_old};
use crate::log::Millis;
use crate::sync::{AtomicBool, AtomicU64, Mutex, Ordering};

/// The resolution of alarms, in milliseconds. Alarms of the same tick ring together at its end.
const TICK: Millis = 8;
/// The maximum number of alarms that a worker handles before it yields to other tasks.
const BATCH: usize = 256;
/// The time without progress after which publishers wake listeners themselves, in milliseconds,
/// because the runtimes of all workers may be blocked.
const HELP_AFTER: u64 = 20;

/// The state that workers serve: a hub with its log, its streams and its background tasks.
pub(in crate::hub) trait Host: Send + Sync + 'static {
    type Stream: Alarm;

    fn workers(&self) -> &Workers<Self::Stream>;
    /// Starts the background tasks that have work and do not run.
    fn ensure_tasks(self: &Arc<Self>);
    fn now(&self) -> Millis;
    fn instant(&self, at: Millis) -> Instant;
    fn has_streams(&self) -> bool;
    /// Returns whether listeners wait to be woken.
    fn has_deferred(&self) -> bool;
    /// Wakes some of the listeners that wait to be woken. Returns whether more listeners wait.
    fn wake_deferred(&self) -> bool;
}

/// A stream that a worker wakes at a time that the stream sets.
pub(in crate::hub) trait Alarm: Send + Sync + 'static {
    fn set_alarm(&self, at: Millis);
    /// Clears the alarm of the stream and wakes the stream, if an alarm is set and `is_of` returns
    /// `true` for its time.
    fn ring(&self, is_of: impl Fn(Millis) -> bool, now: Millis);
}

/// The workers of a hub.
pub(in crate::hub) struct Workers<S> {
    table: Mutex<HashMap<Id, Worker<S>>>,
    /// Whether listeners wait to be woken and the workers have been notified.
    waking: AtomicBool,
    /// The time at which a worker last began to wake such listeners, or at which workers were last
    /// notified of them.
    woke_at: AtomicU64,
}

/// The state of the worker of one runtime.
struct Worker<S> {
    runtime: Handle,
    /// The time of the worker's last round.
    beat: u64,
    /// Streams by the tick at which their alarm is due.
    by_tick: BTreeMap<u64, Vec<Weak<S>>>,
    roused: Arc<Notify>,
}

impl<S> Default for Workers<S> {
    fn default() -> Self {
        Self { table: Mutex::default(), waking: AtomicBool::new(false), woke_at: AtomicU64::new(0) }
    }
}

impl<S> Worker<S> {
    fn new(runtime: Handle) -> Self {
        Self { runtime, beat: clock(), by_tick: BTreeMap::new(), roused: Arc::default() }
    }
}

/// Makes sure that the current runtime has a worker. Does nothing outside of a runtime.
pub(in crate::hub) fn ensure<H: Host>(host: &Arc<H>) {
    with_worker(host, |_| {});
}

/// Sets the alarm of a stream, in place of an earlier alarm. Does nothing outside of a runtime.
pub(in crate::hub) fn set_alarm<H: Host>(host: &Arc<H>, stream: &Arc<H::Stream>, due: Millis) {
    with_worker(host, |worker| {
        // The lock is held, so the alarm cannot ring before it is set.
        stream.set_alarm(due);
        let tick = due.div_ceil(TICK);
        let is_first = worker.by_tick.first_key_value().is_none_or(|(first, _)| tick < *first);
        worker.by_tick.entry(tick).or_default().push(Arc::downgrade(stream));
        if is_first {
            worker.roused.notify_one();
        }
    });
}

/// Passes the state of the current runtime's worker to `change`. Starts the worker if the runtime
/// has none.
fn with_worker<H: Host>(host: &Arc<H>, change: impl FnOnce(&mut Worker<H::Stream>)) {
    let Ok(runtime) = Handle::try_current() else { return };
    let id = runtime.id();
    let mut table = host.workers().table.lock();
    let is_new = match table.entry(id) {
        Entry::Occupied(entry) => {
            change(entry.into_mut());
            false
        }
        Entry::Vacant(entry) => {
            change(entry.insert(Worker::new(runtime.clone())));
            true
        }
    };
    // Unlock before the spawn: a runtime that is shutting down drops the task in that call, and the
    // drop takes the lock.
    drop(table);
    if is_new {
        runtime.spawn(work(Seat { host: Arc::downgrade(host), runtime: id, has_left: false }));
    }
}

/// Returns the runtime for a background task: the current runtime if it has a worker, or else the
/// runtime of the most recently active worker. If no worker is alive, returns the current runtime,
/// although nothing may drive it after this call. Returns `None` if the caller is outside of a
/// runtime and no worker is alive.
pub(in crate::hub) fn home<H: Host>(host: &H) -> Option<Handle> {
    let current = Handle::try_current().ok();
    let table = host.workers().table.lock();
    if current.as_ref().is_some_and(|current| table.contains_key(&current.id())) {
        return current;
    }
    let newest = table.values().max_by_key(|worker| worker.beat);
    newest.filter(|worker| !is_old(worker.beat)).map(|worker| worker.runtime.clone()).or(current)
}

/// Notifies the workers if listeners wait to be woken, for example after an append. If there is no
/// worker, or if no worker makes progress, wakes listeners in this call.
pub(in crate::hub) fn wake_rest<H: Host>(host: &H) {
    if !host.has_deferred() {
        return;
    }
    let workers = host.workers();
    if workers.waking.swap(true, Ordering::AcqRel) {
        let is_late = clock() > workers.woke_at.load(Ordering::Acquire).saturating_add(HELP_AFTER);
        if is_late && wake_some(host) {
            workers.rouse();
        }
        return;
    }
    workers.woke_at.store(clock(), Ordering::Release);
    if !workers.rouse() {
        while wake_some(host) {}
    }
}

/// Wakes some of the waiting listeners. Returns `true` if more listeners may wait. The caller, or a
/// worker that the caller notifies, then has to continue.
fn wake_some<H: Host>(host: &H) -> bool {
    let workers = host.workers();
    if host.wake_deferred() {
        // While this batch was out of the queue, another worker may have found the queue empty and
        // cleared the flag.
        workers.waking.store(true, Ordering::Release);
        return true;
    }
    workers.waking.store(false, Ordering::Release);
    // A publisher that queued a channel before the flag was cleared has notified no worker, so
    // check again.
    host.has_deferred() && !workers.waking.swap(true, Ordering::AcqRel)
}

/// Runs a worker until no stream is open and no alarm or listener waits.
async fn work<H: Host>(mut seat: Seat<H>) {
    let (mut beats, mut next_beat) = (Beats::new(), Instant::now());
    loop {
        let Some(host) = seat.host.upgrade() else { return };
        let is_waking = host.workers().waking.load(Ordering::Acquire);
        if is_waking {
            host.workers().woke_at.store(clock(), Ordering::Release);
            wake_some(&*host);
        }
        let now = host.now();
        let due = host.workers().take_due(seat.runtime, now);
        for (tick, stream) in due {
            if let Some(stream) = stream.upgrade() {
                stream.ring(|at| at.div_ceil(TICK) == tick, now);
            }
        }
        if Instant::now() >= next_beat {
            next_beat = beats.next();
            // A publisher may have queued listeners when there was no worker to notify.
            wake_rest(&*host);
            if host.has_streams() {
                host.ensure_tasks();
            }
        }
        let (next, roused) = {
            let mut table = host.workers().table.lock();
            let Entry::Occupied(mut entry) = table.entry(seat.runtime) else { return };
            let next = entry.get().by_tick.first_key_value().map(|(tick, _)| host.instant(tick * TICK));
            if next.is_none() && !host.has_streams() && !host.has_deferred() {
                // A stream that is opened after this removal starts another worker.
                seat.has_left = true;
                entry.remove();
                return;
            }
            entry.get_mut().beat = clock();
            (next.map_or(next_beat, |next| next.min(next_beat)), Arc::clone(&entry.get().roused))
        };
        let is_waking = host.workers().waking.load(Ordering::Acquire);
        drop(host);
        if is_waking || next <= Instant::now() {
            tokio::task::yield_now().await;
        } else {
            let is_roused = timeout_at(next, roused.notified()).await.is_ok();
            if is_roused {
                // Yield first, because a publisher may be about to publish more events. Each
                // listener then reads all of them in one poll.
                tokio::task::yield_now().await;
            }
        }
    }
}

impl<S> Workers<S> {
    /// Wakes every worker. Returns whether there is a worker.
    fn rouse(&self) -> bool {
        let table = self.table.lock();
        table.values().for_each(|worker| worker.roused.notify_one());
        !table.is_empty()
    }

    /// Removes and returns up to [`BATCH`] entries of a runtime that are due: streams, each with
    /// the tick of its alarm.
    fn take_due(&self, runtime: Id, now: Millis) -> Vec<(u64, Weak<S>)> {
        let mut table = self.table.lock();
        let Some(worker) = table.get_mut(&runtime) else { return Vec::new() };
        let mut due = Vec::new();
        while due.len() < BATCH
            && let Some(first) = worker.by_tick.first_entry()
            && *first.key() * TICK <= now
        {
            let (tick, mut streams) = first.remove_entry();
            let rest = streams.split_off(streams.len().min(BATCH - due.len()));
            due.extend(streams.into_iter().map(|stream| (tick, stream)));
            if !rest.is_empty() {
                worker.by_tick.insert(tick, rest);
            }
        }
        due
    }
}

/// The entry of a worker in the table. Its drop removes the entry.
struct Seat<H: Host> {
    host: Weak<H>,
    runtime: Id,
    /// Whether the worker has removed the entry itself.
    has_left: bool,
}

impl<H: Host> Drop for Seat<H> {
    fn drop(&mut self) {
        if let Some(host) = self.host.upgrade()
            && !self.has_left
        {
            let worker = host.workers().table.lock().remove(&self.runtime);
            // A worker panics on a runtime without a time driver. Do not wake its streams: each
            // would start another worker, which would panic too.
            if std::thread::panicking() {
                return;
            }
            let now = host.now();
            let pending = worker.into_iter().flat_map(|worker| worker.by_tick.into_values().flatten());
            pending.filter_map(|stream| stream.upgrade()).for_each(|stream| stream.ring(|_| true, now));
            // Each worker was notified of the waiting listeners. If this was the last worker, no
            // worker is left to wake them, so wake them here.
            if host.workers().table.lock().is_empty() {
                while host.has_deferred() && wake_some(&*host) {}
            }
        }
    }
}
