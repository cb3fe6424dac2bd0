//! Work that nobody waits for: waking many listeners, dropping what is past its age, noticing who has stalled.
//!
//! There is no task that lives as long as the hub, since it would die with the runtime that it happens to be on. Each
//! of the two kinds of work has a flag that says "somebody is at it"; whoever has something to do and finds it down
//! spawns a task, which takes it down when nothing is left or when its runtime drops it.

use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::runtime::Handle;

use super::Inner;
use super::registry::{Ending, Link};
use crate::log::{Swept, millis};
use crate::reason::EndReason;
use crate::sync::{AtomicBool, Ordering};

/// How often age and stalls are looked at, at most.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

#[derive(Debug, Default)]
pub(super) struct Chores {
    waking: AtomicBool,
    keeping: AtomicBool,
}

/// Wakes the listeners that the log left to be woken: in a task, in batches, with yields; without a runtime, here.
pub(super) fn wake(inner: &Arc<Inner>) {
    if inner.chores.waking.swap(true, Ordering::AcqRel) {
        return;
    }
    let waking = Waking(Arc::clone(inner));
    let Ok(runtime) = Handle::try_current() else {
        // Dropping it does the work.
        return;
    };
    runtime.spawn(async move {
        while waking.0.log.wake_deferred(waking.0.now()) {
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
    let Ok(runtime) = Handle::try_current() else { return };
    if !inner.chores.keeping.swap(true, Ordering::AcqRel) {
        let keeping = Keeping(Arc::downgrade(inner));
        let pause = (inner.settings.write_deadline / 4).min(LONGEST_PAUSE);
        runtime.spawn(keep(keeping, pause));
    }
}

async fn keep(keeping: Keeping, pause: Duration) {
    loop {
        let Some(inner) = keeping.0.upgrade() else { return };
        let swept = inner.keep_house();
        if swept == Swept::Nothing {
            drop(keeping);
            // Whoever came after the look and before the flag went down has relied on us.
            if inner.keep_house() != Swept::Nothing {
                ensure(&inner);
            }
            return;
        }
        drop(inner);
        match swept {
            Swept::More => tokio::task::yield_now().await,
            Swept::Later | Swept::Nothing => tokio::time::sleep(pause).await,
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
    fn keep_house(&self) -> Swept {
        let now = self.now();
        let swept = self.log.sweep(now);
        self.counters.evicted(self.log.usage().evicted, now);
        let links = self.registry.all();
        let deadline = millis(self.settings.write_deadline);
        for link in &links {
            if link.overdue_since().is_some_and(|since| now > since.saturating_add(deadline)) {
                self.give_up(link);
            }
        }
        if swept == Swept::Nothing && !links.is_empty() { Swept::Later } else { swept }
    }

    /// A stream that looks no more counts as gone at once. Should it ever look again, it ends.
    pub(super) fn give_up(&self, link: &Link) {
        link.end(Ending::now(EndReason::Stalled));
        self.forget(link, EndReason::Stalled);
    }

    /// Takes a connection out of everything, once.
    pub(super) fn forget(&self, link: &Link, reason: EndReason) {
        if self.registry.remove(link) {
            let now = self.now();
            self.log.close(&link.subscriber, now);
            self.counters.ended(link.id, reason, now);
        }
    }
}
