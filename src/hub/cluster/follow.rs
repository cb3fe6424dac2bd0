//! The task that follows the shared log, and that marks the hub as stale while the task cannot
//! follow the log.
//!
//! 1. Only one task follows the log, and only this task [applies](super::apply) records, in the
//!    order of the log. It runs for the life of the hub, in a [task slot](crate::hub::tasks::slot):
//!    another task replaces it if its runtime has shut down or does not poll it.
//! 2. Before the task follows the log, it compares the log with the state of this instance: the log
//!    may be in another epoch, or may no longer retain the next records.
//! 3. At every probe interval the task reads the state of the log. So it detects a connection that
//!    delivers no records although the log has new ones.

use std::sync::Weak;

use futures::FutureExt;
use futures::stream::BoxStream;
use tokio::time::{Duration, Instant};

use super::apply::{Age, Next};
use super::shared_log::{MAX_SEQUENCE, SharedLog, check_sequence};
use crate::backplane::{Answer, BackplaneError, LogPosition, Stored, in_time, next_until};
use crate::hub::tasks::back_off::BackOff;
use crate::hub::tasks::background::Job;
use crate::hub::{Hub, Inner};
use crate::sync::Ordering;
use crate::types::Epoch;

/// The number of successive probes with the same failure after which the instance reconnects. Two
/// failures are counted separately: new records of the log have not arrived, or the applied records
/// cannot be compared with the log. If the state of the log cannot be read, the instance reconnects
/// at once.
const FAILED_PROBES: u32 = 2;
/// The minimum time limit of a probe, because a server may be busy for a moment.
const MIN_PROBE_TIMEOUT: Duration = Duration::from_secs(1);

pub(in crate::hub) static JOB: Job<Inner> =
    Job { run: |hub, _| follow(hub).boxed(), has_work: |_| true, has_more: |_| true };

/// Follows the log until the hub is dropped. Reconnects after an error, a new epoch or a rollback.
async fn follow(inner: Weak<Inner>) {
    let upgrade = || inner.upgrade().map(|inner| Hub { inner });
    let mut back_off = BackOff::new();
    loop {
        let Some(hub) = upgrade() else { return };
        let Some(shared) = &hub.inner.shared_log else { return };
        let last = shared.last();
        let outcome = match hub.catch_up(shared).await {
            Ok(()) => {
                hub.set_stale(shared, false);
                let tail = shared.backplane.tail(shared.last());
                let probe = hub.settings().probe_interval;
                drop(hub);
                listen(&inner, tail, probe).await
            }
            Err(error) => {
                drop(hub);
                Err(error)
            }
        };
        let Some(hub) = upgrade() else { return };
        let Some(shared) = &hub.inner.shared_log else { return };
        if let Err(error) = outcome {
            hub.counters().broker_failed(&shared.backplane.describe(), &error, hub.now());
            hub.set_stale(shared, true);
        }
        // The task has applied records, so the next pause is short again.
        if shared.last() != last {
            back_off = BackOff::new();
        }
        drop(hub);
        back_off.wait().await;
    }
}

/// Applies the records of a tail until an error occurs. Returns `Ok` if the log is in another epoch
/// or was rolled back, so that the caller compares the log with this instance. Also returns `Ok` if
/// the hub was dropped.
async fn listen(inner: &Weak<Inner>, mut tail: BoxStream<'static, Answer<Vec<Stored>>>, probe: Duration) -> Answer<()> {
    let mut next_probe = Instant::now() + probe;
    let (mut silent, mut uncompared) = (0, 0);
    loop {
        // A due probe comes first, so that a busy log is compared too.
        let received = next_until(next_probe, &mut tail).await?;
        let Some(hub) = inner.upgrade().map(|inner| Hub { inner }) else { return Ok(()) };
        let Some(shared) = &hub.inner.shared_log else { return Ok(()) };
        match received {
            Some(batch) => {
                silent = 0;
                hub.apply(shared, batch, Age::New).await?;
            }
            None => {
                next_probe = Instant::now() + probe;
                // The time limit is one interval, but at least `MIN_PROBE_TIMEOUT`. So a broker
                // that stops answering is detected within the interval and this limit.
                let state = shared.query_state(hub.log().epoch(), probe.max(MIN_PROBE_TIMEOUT)).await?;
                if state.epoch != hub.log().epoch().0 {
                    return Ok(());
                }
                hub.log().note_first(Epoch(state.epoch), state.first);
                match hub.was_rolled_back(shared, state).await {
                    Ok(false) => uncompared = 0,
                    Ok(true) => return Ok(()),
                    // A single error is tolerated: a read may be slow while other large reads run.
                    Err(error) => {
                        uncompared += 1;
                        if uncompared >= FAILED_PROBES {
                            return Err(error);
                        }
                    }
                }
                silent = if state.last > shared.last() { silent + 1 } else { 0 };
                if silent >= FAILED_PROBES {
                    return Err(BackplaneError::unknown("the log has new records, but none arrive"));
                }
            }
        }
    }
}

impl Hub {
    /// Compares the log with the state of this instance, and applies all records that the log has
    /// now.
    async fn catch_up(&self, shared: &SharedLog) -> Answer<()> {
        let mut state = shared.query_state(self.log().epoch(), self.settings().publish_timeout).await?;
        if self.was_rolled_back(shared, state).await? {
            // The log has grown past the position of this instance, so the log cannot detect the
            // loss from that position. A seen position above all others makes the log begin a new
            // epoch.
            let seen = LogPosition { epoch: state.epoch, sequence: MAX_SEQUENCE };
            state = in_time(self.settings().publish_timeout, shared.backplane.state(Some(seen))).await?;
        }
        check_sequence(state.last)?;
        check_sequence(state.first)?;
        let first = state.first.max(1);
        let is_new_epoch = state.epoch != self.log().epoch().0;
        if is_new_epoch {
            self.start_epoch(shared, Epoch(state.epoch), first - 1).await?;
        } else if first > shared.last() + 1 {
            self.lose_through(shared, first - 1).await?;
        }
        // While the hub starts, the age of a record counts from the time at which the log stored
        // it. Later it counts from now, so that open streams receive the records of an interruption
        // of any length.
        let age = if shared.is_loaded() { Age::New } else { Age::AsStored };
        while shared.last() < state.last {
            match self.read_after(shared, shared.last()).await? {
                Next::Records(batch) => self.apply(shared, batch, age).await?,
                Next::Lost(upto) => self.lose_through(shared, upto).await?,
            }
            if shared.last() < state.last {
                tokio::task::yield_now().await;
            }
        }
        // A current value may be newer than every retained record, so raise `visible_through` to
        // the end of the log.
        self.log().advance(state.last.max(shared.last()), self.now());
        shared.loaded.store(true, Ordering::Release);
        self.carry_out_queued(shared);
        Ok(())
    }

    /// Marks the hub as stale, or as following again. If this changes the state, wakes all streams,
    /// so that they report the change.
    fn set_stale(&self, shared: &SharedLog, stale: bool) {
        if shared.stale.swap(stale, Ordering::AcqRel) != stale {
            self.counters().staleness(stale);
            #[cfg(feature = "metrics")]
            self.inner.record_stats();
            let now = self.now();
            for handle in self.registry().all() {
                handle.wake(now);
            }
        }
    }
}
