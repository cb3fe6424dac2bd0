//! Work that nobody waits for: waking many listeners, dropping what is past its age, noticing who has stalled.
//!
//! There is no task that lives as long as the hub, since it would die with the runtime that it happens to be on. Each
//! of the two kinds of work has a flag that says "somebody is at it"; whoever has something to do and finds it down
//! spawns a task, which takes it down when nothing is left or when its runtime drops it.

use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

use super::link::{Ending, Link};
use super::{Inner, LifecycleEvent, recheck, remote};
use crate::log::{Millis, Swept, millis};
use crate::name::Topic;
use crate::reason::EndReason;
use crate::sync::{AtomicBool, AtomicU64, Mutex, Ordering};

/// How often age and stalls are looked at, at most.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// After how long a waking task that does not get on is helped by publishers: its runtime may be blocked.
const HELP_AFTER: Millis = 20;

#[derive(Debug, Default)]
pub(super) struct Chores {
    waking: AtomicBool,
    /// When the waking task got on last.
    woke_at: AtomicU64,
    keeping: AtomicBool,
    /// Something is due before what the keeping task waits for.
    roused: Arc<Notify>,
    /// Where streams live: the runtime on which the last one was opened. A publisher's own may not be driven.
    runtime: Mutex<Option<Handle>>,
}

impl Chores {
    /// Tells the keeping task that something may be due before it would look.
    pub(super) fn rouse(&self) {
        self.roused.notify_one();
    }
}

/// A stream is being opened here.
pub(super) fn remember_runtime(inner: &Inner) {
    if let Ok(current) = Handle::try_current() {
        *inner.chores.runtime.lock() = Some(current);
    }
}

/// A stream is well here. Its work may have been on a runtime that is gone, with nobody to notice.
pub(super) fn revive(inner: &Arc<Inner>) {
    if !inner.chores.keeping.load(Ordering::Acquire) {
        remember_runtime(inner);
        ensure(inner);
    }
    remote::ensure(inner);
    if recheck::is_idle(inner) {
        remember_runtime(inner);
        recheck::ensure(inner);
    }
}

pub(super) fn runtime(inner: &Inner) -> Option<Handle> {
    inner.chores.runtime.lock().clone().or_else(|| Handle::try_current().ok())
}

/// Whether whoever polls can wait for a broker. What does not is refused instead: tokio's clock would panic.
pub(super) fn can_wait() -> bool {
    Handle::try_current().is_ok()
}

/// After an append: wakes those whom the log left to be woken, if there are any.
pub(super) fn wake_rest(inner: &Arc<Inner>) {
    if inner.log.has_deferred() {
        wake(inner);
    }
}

/// Wakes the listeners that the log left to be woken: in a task, in batches, with yields; without a runtime, here.
fn wake(inner: &Arc<Inner>) {
    let now = inner.now();
    if inner.chores.waking.swap(true, Ordering::AcqRel) {
        if now > inner.chores.woke_at.load(Ordering::Acquire).saturating_add(HELP_AFTER) {
            inner.log.wake_deferred(now);
        }
        return;
    }
    inner.chores.woke_at.store(now, Ordering::Release);
    let waking = Waking(Arc::clone(inner));
    let Some(runtime) = runtime(inner) else {
        // Dropping it does the work.
        return;
    };
    runtime.spawn(async move {
        let inner = &waking.0;
        // Who publishes much at once may be about to publish more, and each listener then reads it at one go.
        tokio::task::yield_now().await;
        loop {
            let now = inner.now();
            inner.chores.woke_at.store(now, Ordering::Release);
            if !inner.log.wake_deferred(now) {
                break;
            }
            tokio::task::yield_now().await;
        }
    });
}

/// Holds the flag. A task that is dropped by its runtime before it was done does the rest at once: those who listen may
/// live on another runtime.
struct Waking(Arc<Inner>);

impl Drop for Waking {
    fn drop(&mut self) {
        loop {
            while self.0.log.wake_deferred(self.0.now()) {}
            self.0.chores.waking.store(false, Ordering::Release);
            // Whoever marked a channel before the flag went down has relied on us.
            if !self.0.log.has_deferred() || self.0.chores.waking.swap(true, Ordering::AcqRel) {
                return;
            }
        }
    }
}

/// Makes sure that somebody keeps house, if there is a runtime; without one, publishers do what they can.
pub(super) fn ensure(inner: &Arc<Inner>) {
    if inner.chores.keeping.load(Ordering::Acquire) {
        return;
    }
    let Some(runtime) = runtime(inner) else { return };
    if !inner.chores.keeping.swap(true, Ordering::AcqRel) {
        let keeping = Keeping(Arc::downgrade(inner));
        let pause = (inner.settings.write_deadline / 4).min(LONGEST_PAUSE);
        runtime.spawn(keep(keeping, pause));
    }
}

async fn keep(keeping: Keeping, pause: Duration) {
    let mut next_look = Instant::now() + pause;
    loop {
        let Some(inner) = keeping.0.upgrade() else { return };
        let now = Instant::now();
        if now >= next_look {
            // Who comes late itself, after the process or its runtime was held up, would find everybody late.
            if now < next_look + pause {
                inner.give_up_stalled();
            }
            recheck::ensure(&inner);
            next_look = now + pause;
        }
        let swept = inner.sweep();
        if swept == Swept::Nothing {
            drop(keeping);
            // Whoever came after the look and before the flag went down has relied on us.
            if inner.sweep() != Swept::Nothing {
                ensure(&inner);
            }
            return;
        }
        let due = inner.departure_due().map_or(next_look, |due| next_look.min(inner.instant(due)));
        let roused = Arc::clone(&inner.chores.roused);
        drop(inner);
        match swept {
            Swept::More => tokio::task::yield_now().await,
            Swept::Later | Swept::Nothing => {
                let _ = timeout_at(due, roused.notified()).await;
            }
        }
    }
}

struct Keeping(Weak<Inner>);

impl Drop for Keeping {
    fn drop(&mut self) {
        if let Some(inner) = self.0.upgrade() {
            inner.chores.keeping.store(false, Ordering::Release);
        }
    }
}

impl Inner {
    /// Drops what is past its age, and forgets who has stayed away. There is always more to do later while somebody is
    /// connected.
    fn sweep(self: &Arc<Self>) -> Swept {
        let now = self.now();
        let mut more = self.registry.sweep(now);
        more |= self.sweep_roster();
        let swept = self.log.sweep(now);
        self.counters.evicted(self.log.usage().evicted, now);
        let is_busy = self.registry.len() > 0 || self.departure_due().is_some();
        match swept {
            _ if more => Swept::More,
            Swept::Nothing if is_busy => Swept::Later,
            swept => swept,
        }
    }

    /// When somebody who left has stayed away for the grace.
    fn departure_due(&self) -> Option<Millis> {
        self.registry.next_due().into_iter().chain(self.presences.next_due()).min()
    }

    fn give_up_stalled(self: &Arc<Self>) {
        let now = self.now();
        let deadline = millis(self.settings.write_deadline);
        for link in self.registry.all() {
            if link.overdue_since().is_some_and(|since| now > since.saturating_add(deadline)) {
                self.give_up(&link);
            }
        }
    }

    /// A stream that looks no more counts as gone at once. Should it ever look again, it ends.
    pub(super) fn give_up(self: &Arc<Self>, link: &Link) {
        link.end(Ending::now(EndReason::Stalled));
        self.forget(link, EndReason::Stalled);
    }

    /// Takes a connection out of everything, once.
    pub(super) fn forget(self: &Arc<Self>, link: &Link, reason: EndReason) {
        let was_due = link.user().is_some().then(|| self.registry.next_due());
        if self.registry.remove(link, self.now()) {
            if was_due == Some(None) {
                self.chores.rouse();
            }
            self.bury(link, reason);
        }
    }

    /// What is left to do for a connection that is out of the registry.
    pub(super) fn bury(self: &Arc<Self>, link: &Link, reason: EndReason) {
        let topics = self.close_channels(link);
        self.counters.ended(link.id(), reason, self.now());
        if link.may_tell_end(reason) {
            self.tell_end(link, topics, reason);
        }
    }

    pub(super) fn tell_end(&self, link: &Link, topics: Vec<Topic>, reason: EndReason) {
        self.lifecycles.tell(|| LifecycleEvent::Disconnected { connection: Arc::new(self.info(link, topics)), reason });
    }
}
