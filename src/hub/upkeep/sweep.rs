//! The housekeeping: drops old records, forgets users, publishes `hub.left`, and ends stalled
//! streams.
//!
//! 1. The task runs in a [task slot](crate::hub::tasks::slot) while a record can expire, a grace
//!    period lasts, an ended run is kept, or a connection is open. It sleeps until the next grace
//!    period is over, at most until the next check for stalls.
//! 2. A stream has stalled if it has something to do and nothing has moved on its transport for the
//!    write deadline. Without a known transport, only the polls of its body count
//!    ([`Inner::give_up_stalled`]).
//! 3. A check for stalls that is late is skipped, because the task and the streams may have waited
//!    for the same blocked process.

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

/// The time after which a body that has something to do and is not polled no longer waits for a
/// flush, in milliseconds. The time is half the write deadline if that is shorter. Before this
/// time, the server may be about to flush.
const BUSY: Millis = 1_000;
/// The maximum time between two checks for stalls.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

pub(in crate::hub) static JOB: Job<Inner> = Job {
    run: |hub, roused| run(hub, roused).boxed(),
    // Every publisher calls `has_work`, and a look into the log would cost each of them time. So
    // the task itself checks for work, and ends if there is none.
    has_work: |_| true,
    has_more: |inner| inner.sweep() != Swept::Nothing,
};

async fn run(hub: Weak<Inner>, roused: Arc<Notify>) {
    let Some(pause) = hub.upgrade().map(|inner| (inner.settings.write_deadline / 4).min(LONGEST_PAUSE)) else { return };
    let mut next_check = Instant::now() + pause;
    loop {
        let Some(inner) = hub.upgrade() else { return };
        let now = Instant::now();
        if now >= next_check {
            // If this check is late, the process or its runtime was blocked, and all streams would
            // seem to have stalled.
            if now < next_check + pause {
                inner.give_up_stalled();
            }
            inner.tasks.recheck.ensure(&inner);
            #[cfg(feature = "metrics")]
            inner.record_stats();
            next_check = now + pause;
        }
        let swept = inner.sweep();
        let due = inner.departure_due().map_or(next_check, |due| next_check.min(inner.instant(due)));
        // The task does not run again before the next publish or stream.
        #[cfg(feature = "metrics")]
        if swept == Swept::Nothing {
            inner.record_stats();
        }
        drop(inner);
        match swept {
            Swept::Nothing => return,
            Swept::More => tokio::task::yield_now().await,
            Swept::Later => drop(timeout_at(due, roused.notified()).await),
        }
    }
}

impl Inner {
    /// Drops records past their age, and forgets users and members past their grace period. Does
    /// not return [`Swept::Nothing`] while a connection is open, because the task also checks for
    /// stalls.
    fn sweep(self: &Arc<Self>) -> Swept {
        let now = self.now();
        let mut more = self.registry.sweep(now);
        more |= self.sweep_roster();
        self.runs.sweep(now);
        let swept = self.log.sweep(now);
        self.counters.evicted(self.log.usage().evicted, now);
        let is_busy = self.registry.len() > 0 || self.departure_due().is_some();
        match swept {
            _ if more => Swept::More,
            Swept::Nothing if is_busy => Swept::Later,
            swept => swept,
        }
    }

    /// Returns the time at which the next sweep of users, members or runs is due.
    fn departure_due(&self) -> Option<Millis> {
        let departures = self.registry.next_due().into_iter().chain(self.presences.next_due());
        departures.chain(self.runs.next_due()).min()
    }

    /// Gives up the streams that have stalled.
    fn give_up_stalled(self: &Arc<Self>) {
        let now = self.now();
        let deadline = millis(self.settings.write_deadline);
        for handle in self.registry.all() {
            let Some(since) = handle.overdue_since().filter(|since| *since <= now) else { continue };
            let since = match handle.transport() {
                Some(transport) => {
                    // Do not release the body at once, because the server may be about to make the
                    // flush that the body waits for.
                    if now > since.saturating_add(BUSY.min(deadline / 2)) {
                        transport.release();
                    }
                    // Call `quiet_since` at every check, so that the deadline counts from the last
                    // move.
                    since.max(transport.quiet_since(now))
                }
                // The hub's own writer serves the stream, and the client has taken all bytes. So
                // the writer is late, not the client.
                None if handle.is_transport_known() => continue,
                None => since,
            };
            if now > since.saturating_add(deadline) {
                self.give_up(&handle);
            }
        }
    }

    /// Gives a stalled stream up: removes the stream from the registry at once, and cuts its
    /// socket. If the socket is unknown, the stream ends when it is polled next.
    pub(in crate::hub) fn give_up(self: &Arc<Self>, handle: &ConnectionHandle) {
        handle.end(Ending::now(EndReason::Stalled));
        self.forget(handle, EndReason::Stalled);
        if let Some(transport) = handle.transport() {
            transport.time_out();
            transport.cut();
        }
    }
}
