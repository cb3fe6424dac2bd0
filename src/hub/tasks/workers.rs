//! A worker on each runtime that polls streams. It wakes streams when something of their own is due, wakes the many
//! listeners that a publisher left to be woken, and starts the hub's background tasks where none runs.
//!
//! A timer in every stream would take more memory than all else that an idle one needs.
//!
//! 1. A runtime gets a worker when a stream is opened on it, is first polled on it, or sets an alarm on it. The worker
//!    lives until its runtime drops it, or until no stream is open.
//! 2. Every worker looks after the same queue of listeners and the same [task slots](super::slot). So a runtime that
//!    is not driven, that is blocked or that is gone delays only the streams that are polled on it.
//! 3. What a worker has not rung for when its runtime drops it is woken, and set again by the streams that are still
//!    polled elsewhere.

use std::collections::btree_map::BTreeMap;
use std::collections::hash_map::{Entry, HashMap};
use std::sync::{Arc, Weak};

use tokio::runtime::{Handle, Id};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

use super::slot::{Beats, clock, is_old};
use crate::log::Millis;
use crate::sync::{AtomicBool, AtomicU64, Mutex, Ordering};

/// What is due within this many milliseconds is rung for together, at the end of them.
const TICK: Millis = 8;
/// How many streams are woken before others get their turn.
const BATCH: usize = 256;
/// After how long without progress publishers help to wake listeners, in milliseconds: every worker's runtime may be
/// blocked.
const HELP_AFTER: u64 = 20;

/// What workers look after: a hub with its log, its streams and its background tasks.
pub(in crate::hub) trait Host: Send + Sync + 'static {
    type Stream: Alarm;

    fn workers(&self) -> &Workers<Self::Stream>;
    /// Starts the background tasks that have work and do not run.
    fn ensure_tasks(self: &Arc<Self>);
    fn now(&self) -> Millis;
    fn instant(&self, at: Millis) -> Instant;
    fn has_streams(&self) -> bool;
    /// Whether listeners wait to be woken.
    fn has_deferred(&self) -> bool;
    /// Wakes some of them. Returns whether there are more.
    fn wake_deferred(&self) -> bool;
}

/// A stream that a worker wakes when something of its own is due.
pub(in crate::hub) trait Alarm: Send + Sync + 'static {
    fn set_alarm(&self, at: Millis);
    /// Wakes the stream, unless its alarm was set to another time since.
    fn ring(&self, is_of: impl Fn(Millis) -> bool, now: Millis);
}

pub(in crate::hub) struct Workers<S> {
    table: Mutex<HashMap<Id, Worker<S>>>,
    /// Listeners wait to be woken, and the workers know it.
    waking: AtomicBool,
    /// When a worker woke some of them last, or was told to.
    woke_at: AtomicU64,
}

struct Worker<S> {
    runtime: Handle,
    /// When it had its last turn.
    beat: u64,
    /// Streams by the tick at which they are due.
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

/// Makes sure that the current runtime has a worker.
pub(in crate::hub) fn ensure<H: Host>(host: &Arc<H>) {
    with_worker(host, |_| {});
}

/// Wakes a stream when this time has come, and not when another was set before. Not, if there is no
/// runtime here that could.
pub(in crate::hub) fn set_alarm<H: Host>(host: &Arc<H>, stream: &Arc<H::Stream>, due: Millis) {
    with_worker(host, |worker| {
        // Before it can ring.
        stream.set_alarm(due);
        let tick = due.div_ceil(TICK);
        let is_first = worker.by_tick.first_key_value().is_none_or(|(first, _)| tick < *first);
        worker.by_tick.entry(tick).or_default().push(Arc::downgrade(stream));
        if is_first {
            worker.roused.notify_one();
        }
    });
}

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
    // Not under the lock: a runtime that is shutting down drops the task at once.
    drop(table);
    if is_new {
        runtime.spawn(work(Seat { host: Arc::downgrade(host), runtime: id, has_left: false }));
    }
}

/// Where a background task is to run: on the current runtime if streams are polled there, else on one where they are,
/// since a publisher's own may not be driven. `None` if there is no runtime, or none that runs its tasks.
pub(in crate::hub) fn home<H: Host>(host: &H) -> Option<Handle> {
    let current = Handle::try_current().ok();
    let table = host.workers().table.lock();
    if current.as_ref().is_some_and(|current| table.contains_key(&current.id())) {
        return current;
    }
    let newest = table.values().max_by_key(|worker| worker.beat);
    newest.filter(|worker| !is_old(worker.beat)).map(|worker| worker.runtime.clone()).or(current)
}

/// After an append: has those woken whom the log left to be woken, if there are any.
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

/// Wakes some of those who wait to be woken. Returns whether there are more.
fn wake_some<H: Host>(host: &H) -> bool {
    let workers = host.workers();
    if host.wake_deferred() {
        // While this batch was out of the queue, another worker may have found it empty and taken the flag down.
        workers.waking.store(true, Ordering::Release);
        return true;
    }
    workers.waking.store(false, Ordering::Release);
    // A publisher that marked a channel before the flag went down has relied on this.
    host.has_deferred() && !workers.waking.swap(true, Ordering::AcqRel)
}

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
            // A mark that its publisher could not announce, because no worker was there.
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
                // A stream that is opened from here on gets another.
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
                // A publisher may be about to publish more, and each listener then reads it at one go.
                tokio::task::yield_now().await;
            }
        }
    }
}

impl<S> Workers<S> {
    /// Wakes every worker. Returns whether there is one.
    fn rouse(&self) -> bool {
        let table = self.table.lock();
        table.values().for_each(|worker| worker.roused.notify_one());
        !table.is_empty()
    }

    /// The streams that are due on a runtime, some of them if there are many.
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

/// The place of a worker in the table.
struct Seat<H: Host> {
    host: Weak<H>,
    runtime: Id,
    has_left: bool,
}

impl<H: Host> Drop for Seat<H> {
    fn drop(&mut self) {
        if let Some(host) = self.host.upgrade()
            && !self.has_left
        {
            let worker = host.workers().table.lock().remove(&self.runtime);
            // On a runtime without time no worker can live. A stream that is woken would start the next one, and so on.
            if std::thread::panicking() {
                return;
            }
            let now = host.now();
            let left = worker.into_iter().flat_map(|worker| worker.by_tick.into_values().flatten());
            left.filter_map(|stream| stream.upgrade()).for_each(|stream| stream.ring(|_| true, now));
            // The others were told too, but it may have been the last.
            if host.workers().table.lock().is_empty() {
                while host.has_deferred() && wake_some(&*host) {}
            }
        }
    }
}
