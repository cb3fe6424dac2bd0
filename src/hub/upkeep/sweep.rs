//! Work that is due by time: dropping what is past its age, forgetting users, noticing streams that have stalled.
//!
//! The task lives while something is kept that will be due, in a [task slot](crate::hub::tasks::slot).

use std::sync::{Arc, Weak};
use std::time::Duration;

use futures::FutureExt;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

use crate::hub::Inner;
use crate::hub::connection::handle::{ConnectionHandle, Ending};
use crate::hub::tasks::background::Job;
use crate::log::{Millis, Swept, millis};
use crate::types::EndReason;

/// For how long a stream that was woken and not polled counts as busy, in milliseconds.
const BUSY: Millis = 1_000;
/// How often age and stalls are looked at, at most.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

pub(in crate::hub) static JOB: Job<Inner> = Job {
    run: |hub, roused| keep(hub, roused).boxed(),
    // The task looks, not a publisher.
    has_work: |_| true,
    has_more: |inner| inner.sweep() != Swept::Nothing,
};

async fn keep(hub: Weak<Inner>, roused: Arc<Notify>) {
    let Some(pause) = hub.upgrade().map(|inner| (inner.settings.write_deadline / 4).min(LONGEST_PAUSE)) else { return };
    let mut next_look = Instant::now() + pause;
    loop {
        let Some(inner) = hub.upgrade() else { return };
        let now = Instant::now();
        if now >= next_look {
            // A task that is late itself, because the process or its runtime was held up, would find all streams late.
            if now < next_look + pause {
                inner.give_up_stalled();
            }
            inner.tasks.recheck.ensure(&inner);
            next_look = now + pause;
        }
        let swept = inner.sweep();
        let due = inner.departure_due().map_or(next_look, |due| next_look.min(inner.instant(due)));
        drop(inner);
        match swept {
            Swept::Nothing => return,
            Swept::More => tokio::task::yield_now().await,
            Swept::Later => drop(timeout_at(due, roused.notified()).await),
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
        for handle in self.registry.all() {
            let Some(since) = handle.overdue_since().filter(|since| *since <= now) else { continue };
            let since = match handle.transport() {
                Some(transport) => {
                    // Not a body that waits for a flush which its server is about to make.
                    if now > since.saturating_add(BUSY.min(deadline / 2)) {
                        transport.release();
                    }
                    // Also while it moves, so that its time runs from the last move.
                    since.max(transport.quiet_since(now))
                }
                // The hub's own writer, whose peer has taken everything. It is the writer that is late.
                None if handle.is_carrier_known() => continue,
                None => since,
            };
            if now > since.saturating_add(deadline) {
                self.give_up(&handle);
            }
        }
    }

    /// A stream that looks no more counts as gone at once, and its socket is cut. Where the socket is unknown, the
    /// stream ends when it is polled next.
    pub(in crate::hub) fn give_up(self: &Arc<Self>, handle: &ConnectionHandle) {
        handle.end(Ending::now(EndReason::Stalled));
        self.forget(handle, EndReason::Stalled);
        if let Some(transport) = handle.transport() {
            transport.time_out();
            transport.cut();
        }
    }
}
