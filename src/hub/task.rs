//! A background task of the hub: one runs at a time, on a runtime that is alive.
//!
//! A runtime that nobody drives, or that is blocked, drops nothing. So a task on it does not say that it has stopped:
//! it only stops being polled.
//!
//! 1. Each poll of the task is a beat, and a timer polls it every [`BEAT`]. A beat that is older than [`OLD`] means
//!    that the runtime does not run its tasks.
//! 2. [`TaskSlot::ensure`] starts the task if none runs, and replaces one whose beat is old. It never replaces a task
//!    on the caller's own runtime: the call itself shows that this one is alive.
//! 3. A poll holds the slot's lock and checks the task's number first. So a task that was replaced does nothing more:
//!    its next poll ends it. What a task does between two awaits needs no other protection against its successor.
//! 4. Work is stored before `ensure` is called. A task that ends by itself leaves the slot and then checks for work
//!    once more, because an `ensure` during its last poll saw a running task.

use std::pin::Pin;
use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::runtime::{Handle, Id};
use tokio::sync::Notify;
use tokio::time::{Instant, Sleep, sleep};

use crate::sync::{AtomicU64, Mutex, Ordering};

/// How often a task on a live runtime is polled at least.
pub(super) const BEAT: Duration = Duration::from_millis(200);
/// See [`is_old`].
const OLD: Duration = Duration::from_millis(500);

/// In place of a beat: no task runs.
const VACANT: u64 = u64::MAX;

/// Milliseconds since the first call. Not tokio's clock: a paused clock says nothing of a runtime's life.
pub(super) fn clock() -> u64 {
    static START: LazyLock<std::time::Instant> = LazyLock::new(std::time::Instant::now);
    u64::try_from(START.elapsed().as_millis()).unwrap_or(u64::MAX - 1)
}

/// Whether a beat is so old that the runtime does not run its tasks.
pub(super) fn is_old(beat: u64) -> bool {
    clock().saturating_sub(beat) > OLD.as_millis() as u64
}

#[derive(Debug)]
pub(super) struct TaskSlot {
    /// The number of the newest task. Held while a task is polled.
    number: Mutex<u64>,
    /// When the task was polled last, or [`VACANT`].
    beat: AtomicU64,
    seat: Mutex<Seat>,
}

#[derive(Debug, Default)]
struct Seat {
    /// The runtime of the task.
    runtime: Option<Id>,
    /// Wakes the task before its own time. Each task has its own: one that was replaced must not take a wake-up.
    roused: Arc<Notify>,
}

impl Default for TaskSlot {
    fn default() -> Self {
        Self { number: Mutex::default(), beat: AtomicU64::new(VACANT), seat: Mutex::default() }
    }
}

impl TaskSlot {
    /// Whether a task runs here that gets its turns.
    pub(super) fn is_attended(&self) -> bool {
        let beat = self.beat.load(Ordering::Acquire);
        if beat == VACANT {
            return false;
        }
        let is_here = || Handle::try_current().is_ok_and(|current| self.seat.lock().runtime == Some(current.id()));
        !is_old(beat) || is_here()
    }

    /// Wakes the task, because something may be due before it would look.
    pub(super) fn rouse(&self) {
        self.seat.lock().roused.notify_one();
    }

    /// Starts the task on `runtime` unless it is [attended](Self::is_attended). `check` runs after the task has ended
    /// by itself, and starts it again if there is work.
    pub(super) fn ensure<F>(
        self: &Arc<Self>,
        runtime: &Handle,
        task: impl FnOnce(Arc<Notify>) -> F,
        check: impl FnOnce() + Send + 'static,
    ) where
        F: Future<Output = ()> + Send + 'static,
    {
        if self.is_attended() {
            return;
        }
        // It is being polled at this moment, or replaced by another caller.
        let Some(mut number) = self.number.try_lock() else { return };
        // Another caller may have been faster.
        if self.is_attended() {
            return;
        }
        *number += 1;
        let roused = Arc::<Notify>::default();
        *self.seat.lock() = Seat { runtime: Some(runtime.id()), roused: Arc::clone(&roused) };
        self.beat.store(clock(), Ordering::Release);
        let task = Task {
            slot: Arc::clone(self),
            number: *number,
            future: Some(Box::pin(task(roused))),
            tick: None,
            check: Some(Box::new(check)),
        };
        // Not under the lock: a runtime that is shutting down drops the task at once.
        drop(number);
        runtime.spawn(task);
    }
}

/// The future that runs in the slot.
struct Task {
    slot: Arc<TaskSlot>,
    number: u64,
    /// Dropped when it has ended or was replaced.
    future: Option<BoxFuture<'static, ()>>,
    tick: Option<Pin<Box<Sleep>>>,
    check: Option<Box<dyn FnOnce() + Send>>,
}

impl Future for Task {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        let slot = Arc::clone(&this.slot);
        let number = slot.number.lock();
        let Some(future) = this.future.as_mut().filter(|_| *number == this.number) else { return Poll::Ready(()) };
        slot.beat.store(clock(), Ordering::Release);
        let tick = this.tick.get_or_insert_with(|| Box::pin(sleep(BEAT)));
        while tick.as_mut().poll(cx).is_ready() {
            tick.as_mut().reset(Instant::now() + BEAT);
        }
        if future.as_mut().poll(cx).is_pending() {
            return Poll::Pending;
        }
        this.future = None;
        slot.beat.store(VACANT, Ordering::Release);
        drop(number);
        if let Some(check) = this.check.take() {
            check();
        }
        Poll::Ready(())
    }
}

impl Drop for Task {
    /// Its runtime is gone.
    fn drop(&mut self) {
        // What it holds may come back here when it is dropped.
        let unfinished = self.future.take();
        let number = self.slot.number.lock();
        if unfinished.is_some() && *number == self.number {
            self.slot.beat.store(VACANT, Ordering::Release);
        }
        drop(number);
    }
}
