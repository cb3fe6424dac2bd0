//! A slot in which one background task of the hub runs at a time, on a runtime that is alive.
//!
//! A runtime that is blocked, or that no thread drives, keeps its tasks and does not poll them.
//! Drop guards of these tasks do not run. So the only sign of a stopped task is that the runtime no
//! longer polls it.
//!
//! 1. Each poll of the task is a beat, and a timer wakes the task every [`BEAT`]. A beat that is
//!    older than [`OLD`] means that the runtime does not run its tasks.
//! 2. [`TaskSlot::ensure`] starts the task if none runs, and replaces a task whose beat is old. It
//!    never replaces a task on the caller's own runtime, because the call shows that this runtime
//!    is alive.
//! 3. A poll holds the slot's lock, and first checks the task's number. So a replaced task does no
//!    more work, and its next poll ends it. The code between two awaits of a task needs no other
//!    protection against the task's successor. Because of the lock, a task whose poll blocks its
//!    thread is not replaced before the poll returns.
//! 4. Work is stored under a lock before `ensure` is called. A task that ends by itself vacates the
//!    slot. Then `check` looks for work once more under the same lock, because an `ensure` during
//!    the last poll saw a running task. Without the lock, `ensure` could still see the running task
//!    while `check` does not see the work yet.

use std::pin::Pin;
use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::runtime::{Handle, Id};
use tokio::sync::Notify;
use tokio::time::{Instant, Sleep, sleep};

use crate::sync::{AtomicU64, Mutex, MutexGuard, Ordering};

/// The time between two beats of a task on a live runtime, unless tokio's clock is simulated.
const BEAT: Duration = Duration::from_millis(200);
/// The maximum time between two beats on a simulated clock.
const LONGEST_BEAT: Duration = Duration::from_secs(3600);
/// A beat [is old](is_old) if its age is above this time.
const OLD: Duration = Duration::from_millis(500);

/// The value of a beat when no task runs.
const VACANT: u64 = u64::MAX;

/// Returns the milliseconds since the first call. It does not use tokio's clock, because the
/// progress of a paused clock does not show that a runtime is alive.
pub(in crate::hub) fn clock() -> u64 {
    static START: LazyLock<std::time::Instant> = LazyLock::new(std::time::Instant::now);
    u64::try_from(START.elapsed().as_millis()).unwrap_or(u64::MAX - 1)
}

/// Returns whether a beat is so old that the runtime does not run its tasks.
pub(in crate::hub) fn is_old(beat: u64) -> bool {
    is_old_at(beat, clock())
}

fn is_old_at(beat: u64, now: u64) -> bool {
    now.saturating_sub(beat) > OLD.as_millis() as u64
}

/// The schedule of the beats on a runtime.
///
/// A test may pause tokio's clock and let it run through weeks. With five beats per simulated
/// second such a test would take hours, so beats become rarer while that clock is faster than the
/// real one.
#[derive(Debug)]
pub(in crate::hub) struct Beats {
    every: Duration,
    last: Instant,
    /// The time of the last beat by [`clock`].
    last_real: u64,
}

impl Beats {
    pub(in crate::hub) fn new() -> Self {
        Self { every: BEAT, last: Instant::now(), last_real: clock() }
    }

    /// Returns the time of the next beat. The caller calls it when a beat is due.
    pub(in crate::hub) fn next(&mut self) -> Instant {
        let (now, now_real) = (Instant::now(), clock());
        let real = Duration::from_millis(now_real.saturating_sub(self.last_real));
        let is_simulated = now.saturating_duration_since(self.last) > real * 2 + BEAT / 4;
        self.every = if is_simulated { (self.every * 2).min(LONGEST_BEAT) } else { BEAT };
        (self.last, self.last_real) = (now, now_real);
        now + self.every
    }
}

/// A slot for one background task.
#[derive(Debug)]
pub(in crate::hub) struct TaskSlot {
    /// The number of the newest task. The lock is held while a task is polled.
    number: Mutex<u64>,
    /// The number of the newest task, to be read without the lock.
    newest: AtomicU64,
    /// The time of the task's last poll, or [`VACANT`].
    beat: AtomicU64,
    seat: Mutex<Seat>,
}

/// The runtime and the notification of the newest task.
#[derive(Debug, Default)]
struct Seat {
    /// The runtime of the task.
    runtime: Option<Id>,
    /// Wakes the task early. Each task has a separate notification, so that a replaced task cannot
    /// consume a wake-up of its successor.
    roused: Arc<Notify>,
}

impl Default for TaskSlot {
    fn default() -> Self {
        Self {
            number: Mutex::default(),
            newest: AtomicU64::new(0),
            beat: AtomicU64::new(VACANT),
            seat: Mutex::default(),
        }
    }
}

impl TaskSlot {
    /// Returns whether a live task runs in this slot. A task on the caller's own runtime counts as
    /// live.
    pub(in crate::hub) fn is_attended(&self) -> bool {
        self.is_attended_at(clock())
    }

    fn is_attended_at(&self, now: u64) -> bool {
        let beat = self.beat.load(Ordering::Acquire);
        if beat == VACANT {
            return false;
        }
        let is_here = || Handle::try_current().is_ok_and(|current| self.seat.lock().runtime == Some(current.id()));
        !is_old_at(beat, now) || is_here()
    }

    /// Wakes the task before its next timer, because work may be due earlier.
    pub(in crate::hub) fn rouse(&self) {
        self.seat.lock().roused.notify_one();
    }

    /// Starts the task on `runtime` unless the slot is [attended](Self::is_attended). `check` runs
    /// after the task has ended by itself, and starts it again if there is work.
    pub(in crate::hub) fn ensure(
        self: &Arc<Self>,
        runtime: &Handle,
        task: impl FnOnce(Arc<Notify>) -> BoxFuture<'static, ()>,
        check: impl FnOnce() + Send + 'static,
    ) {
        let roused = Arc::<Notify>::default();
        let seat = Seat { runtime: Some(runtime.id()), roused: Arc::clone(&roused) };
        let Some(number) = self.claim(seat, clock()) else { return };
        let slot = Arc::clone(self);
        let future = Some(task(roused));
        // Spawn without a lock: a runtime that is shutting down drops the task in this call, and
        // the drop takes the lock.
        runtime.spawn(Task { slot, number, future, tick: None, check: Some(Box::new(check)) });
    }

    /// Claims the slot for a new task, and returns the task's number. Returns `None` if a live task
    /// runs, or if another caller claims the slot.
    fn claim(&self, seat: Seat, now: u64) -> Option<u64> {
        if self.is_attended_at(now) {
            return None;
        }
        // If the lock is held, the task is being polled, or another caller is replacing it.
        let mut number = self.number.try_lock()?;
        // Another caller may have claimed the slot before this one got the lock.
        if self.is_attended_at(now) {
            return None;
        }
        *number += 1;
        self.newest.store(*number, Ordering::Release);
        *self.seat.lock() = seat;
        self.beat.store(now, Ordering::Release);
        Some(*number)
    }

    /// Begins a poll of a task, or returns `None` if the task was replaced.
    fn turn(&self, number: u64, now: u64) -> Option<MutexGuard<'_, u64>> {
        // Checked without the lock first: the successor may be in a long poll, for which the thread
        // of the replaced task should not wait.
        if self.newest.load(Ordering::Acquire) != number {
            return None;
        }
        let turn = self.number.lock();
        if *turn != number {
            return None;
        }
        self.beat.store(now, Ordering::Release);
        Some(turn)
    }

    /// Sets the beat at the end of a poll, so that a long poll does not make the beat old.
    fn has_polled(&self, _: &MutexGuard<'_, u64>, now: u64) {
        self.beat.store(now, Ordering::Release);
    }

    /// Vacates the slot, after the task has ended by itself or its runtime has dropped it.
    fn vacate(&self, turn: MutexGuard<'_, u64>) {
        self.beat.store(VACANT, Ordering::Release);
        drop(turn);
    }
}

/// The future that runs in the slot.
struct Task {
    slot: Arc<TaskSlot>,
    number: u64,
    /// The future of the job. `None` after it has ended.
    future: Option<BoxFuture<'static, ()>>,
    tick: Option<(Pin<Box<Sleep>>, Beats)>,
    check: Option<Box<dyn FnOnce() + Send>>,
}

impl Future for Task {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        let slot = Arc::clone(&this.slot);
        let Some(turn) = slot.turn(this.number, clock()) else { return Poll::Ready(()) };
        let Some(future) = this.future.as_mut() else { return Poll::Ready(()) };
        let (tick, beats) = this.tick.get_or_insert_with(|| (Box::pin(sleep(BEAT)), Beats::new()));
        while tick.as_mut().poll(cx).is_ready() {
            tick.as_mut().reset(beats.next());
        }
        let polled = future.as_mut().poll(cx);
        slot.has_polled(&turn, clock());
        if polled.is_pending() {
            return Poll::Pending;
        }
        this.future = None;
        slot.vacate(turn);
        if let Some(check) = this.check.take() {
            check();
        }
        Poll::Ready(())
    }
}

impl Drop for Task {
    /// Vacates the slot when the runtime drops an unfinished task.
    fn drop(&mut self) {
        // The future is taken out first and dropped last. Its drop may use this slot, whose lock is
        // then free.
        let unfinished = self.future.take();
        if unfinished.is_some()
            && let Some(turn) = self.slot.turn(self.number, VACANT)
        {
            self.slot.vacate(turn);
        }
    }
}

#[cfg(all(test, not(tower_sse_loom)))]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[tokio::test]
    async fn task_is_not_replaced_after_a_long_poll() {
        let slot = Arc::<TaskSlot>::default();
        let (polled, was_polled) = tokio::sync::oneshot::channel();
        let task = |_| {
            let long = async move {
                // Blocks the thread, as a long poll does. A beat has the time of the system,
                // which a test cannot pause.
                std::thread::sleep(OLD + Duration::from_millis(100));
                let _ = polled.send(());
                std::future::pending::<()>().await;
            };
            long.boxed()
        };
        slot.ensure(&Handle::current(), task, || {});
        was_polled.await.unwrap();
        // Outside of the task's runtime, only the beat shows that the task is alive.
        let is_attended = std::thread::spawn(move || slot.is_attended());
        assert!(is_attended.join().unwrap());
    }
}

/// Models that loom runs in the orders that the atomics and locks allow, with at most three
/// preemptions.
#[cfg(all(test, tower_sse_loom))]
mod interleavings {
    use loom::thread;

    use super::*;
    use crate::sync::AtomicBool;

    const LATER: u64 = OLD.as_millis() as u64 + 1;

    fn model(check: impl Fn() + Send + Sync + 'static) {
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = Some(3);
        builder.check(check);
    }

    /// Polls a task from one time to another, and checks that no other task is polled meanwhile.
    /// Returns false if the task was replaced.
    fn poll(slot: &TaskSlot, is_running: &AtomicBool, number: u64, begins: u64, ends: u64) -> bool {
        let Some(turn) = slot.turn(number, begins) else { return false };
        assert!(!is_running.swap(true, Ordering::AcqRel), "two tasks are polled at once");
        is_running.store(false, Ordering::Release);
        slot.has_polled(&turn, ends);
        drop(turn);
        true
    }

    #[test]
    fn replaced_task_is_never_polled_again() {
        model(|| {
            let (slot, is_running) = (Arc::<TaskSlot>::default(), Arc::new(AtomicBool::new(false)));
            let first = slot.claim(Seat::default(), 0).unwrap();
            let old = thread::spawn({
                let (slot, is_running) = (Arc::clone(&slot), Arc::clone(&is_running));
                move || {
                    poll(&slot, &is_running, first, LATER, LATER);
                    poll(&slot, &is_running, first, LATER, LATER);
                }
            });
            // The beat of the first task is old now, unless it was polled meanwhile.
            if let Some(second) = slot.claim(Seat::default(), LATER) {
                assert!(poll(&slot, &is_running, second, LATER, LATER));
                assert!(!poll(&slot, &is_running, first, LATER, LATER));
            }
            old.join().unwrap();
        });
    }

    /// A poll begins when the beat is fresh, and ends when the beat of its start is old. A caller
    /// at that later time replaces the task before the poll, or not at all.
    #[test]
    fn task_is_not_replaced_during_or_after_a_long_poll() {
        model(|| {
            let (slot, is_running) = (Arc::<TaskSlot>::default(), Arc::new(AtomicBool::new(false)));
            let first = slot.claim(Seat::default(), 0).unwrap();
            let polling = thread::spawn({
                let (slot, is_running) = (Arc::clone(&slot), Arc::clone(&is_running));
                move || poll(&slot, &is_running, first, 0, LATER)
            });
            let is_replaced = slot.claim(Seat::default(), LATER).is_some();
            let is_polled = polling.join().unwrap();
            assert!(is_polled != is_replaced, "polled: {is_polled}, replaced: {is_replaced}");
        });
    }

    #[test]
    fn concurrent_callers_start_one_task() {
        model(|| {
            let slot = Arc::<TaskSlot>::default();
            let other = thread::spawn({
                let slot = Arc::clone(&slot);
                move || slot.claim(Seat::default(), 0)
            });
            let mine = slot.claim(Seat::default(), 0);
            let theirs = other.join().unwrap();
            assert!(mine.is_some() != theirs.is_some());
        });
    }

    /// A caller stores work and ensures a task, while the task in the slot ends without work.
    #[test]
    fn work_gets_a_task_when_it_is_stored_while_a_task_ends() {
        model(|| {
            let (slot, work) = (Arc::<TaskSlot>::default(), Arc::new(Mutex::new(false)));
            let first = slot.claim(Seat::default(), 0).unwrap();
            let ending = thread::spawn({
                let (slot, work) = (Arc::clone(&slot), Arc::clone(&work));
                move || {
                    let turn = slot.turn(first, 0).unwrap();
                    if *work.lock() {
                        return true;
                    }
                    slot.vacate(turn);
                    // The check after the end of the task.
                    *work.lock() && slot.claim(Seat::default(), 0).is_some()
                }
            });
            *work.lock() = true;
            let is_started_here = slot.claim(Seat::default(), 0).is_some();
            let is_seen_there = ending.join().unwrap();
            assert!(is_started_here || is_seen_there, "no task sees the work");
        });
    }
}
