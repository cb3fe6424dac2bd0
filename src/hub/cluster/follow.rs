//! The task that follows the log that several instances share, and reports when it cannot.
//!
//! 1. Only one task follows, and only it [applies](super::apply) records, in the order of the log. It
//!    lives while the hub does, in a [task slot](crate::hub::tasks::slot): another replaces it if its
//!    runtime is gone or does not run it.
//! 2. Before it follows, it compares where the log is with what this instance has: another epoch,
//!    records that are gone.
//! 3. While nothing comes it asks every interval whether really nothing is there, so a mute connection is noticed.

use std::sync::Weak;

use futures::FutureExt;
use futures::stream::BoxStream;
use tokio::time::{Duration, Instant};

use super::apply::{Age, Next};
use super::shared_log::{MOST, SharedLog, believable};
use crate::backplane::{Answer, BackplaneError, LogPosition, Stored, in_time, next_until};
use crate::hub::tasks::back_off::BackOff;
use crate::hub::tasks::background::Job;
use crate::hub::{Hub, Inner};
use crate::sync::Ordering;
use crate::types::Epoch;

/// After how many probes that found something which did not come a connection counts as mute.
const MUTE: u32 = 2;
/// A server may be busy for a moment.
const SHORTEST_LOOK: Duration = Duration::from_secs(1);

pub(in crate::hub) static JOB: Job<Inner> =
    Job { run: |hub, _| follow(hub).boxed(), has_work: |_| true, has_more: |_| true };

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
        // It got on.
        if shared.last() != last {
            back_off = BackOff::new();
        }
        drop(hub);
        back_off.wait().await;
    }
}

/// Applies what comes, until the connection breaks or the log is not what it was. `Ok` if it is to be compared anew.
async fn listen(inner: &Weak<Inner>, mut tail: BoxStream<'static, Answer<Vec<Stored>>>, probe: Duration) -> Answer<()> {
    let mut next_probe = Instant::now() + probe;
    let (mut mute, mut uncompared) = (0, 0);
    loop {
        // The probe comes first, so that a log that is never silent is compared too.
        let came = next_until(next_probe, &mut tail).await?;
        let Some(hub) = inner.upgrade().map(|inner| Hub { inner }) else { return Ok(()) };
        let Some(shared) = &hub.inner.shared_log else { return Ok(()) };
        match came {
            Some(batch) => {
                mute = 0;
                hub.apply(shared, batch, Age::New).await?;
            }
            None => {
                next_probe = Instant::now() + probe;
                // So that what goes wrong in silence is noticed within two intervals.
                let state = shared.look(hub.log().epoch(), probe.max(SHORTEST_LOOK)).await?;
                if state.epoch != hub.log().epoch().0 {
                    return Ok(());
                }
                match hub.is_another(shared, state).await {
                    Ok(false) => uncompared = 0,
                    Ok(true) => return Ok(()),
                    // Reading may be slow for a moment, while much is read.
                    Err(error) => {
                        uncompared += 1;
                        if uncompared >= MUTE {
                            return Err(error);
                        }
                    }
                }
                // Something is there that has not come since the last look.
                mute = if state.last > shared.last() { mute + 1 } else { 0 };
                if mute >= MUTE {
                    return Err(BackplaneError::unknown("the connection is mute"));
                }
            }
        }
    }
}

impl Hub {
    /// Compares the log with what this instance has, and loads what is needed to follow.
    async fn catch_up(&self, shared: &SharedLog) -> Answer<()> {
        let mut state = shared.look(self.log().epoch(), self.settings().publish_timeout).await?;
        if self.is_another(shared, state).await? {
            // Younger than what this has seen, although it has grown since: it takes a new epoch.
            let seen = LogPosition { epoch: state.epoch, sequence: MOST };
            state = in_time(self.settings().publish_timeout, shared.backplane.state(Some(seen))).await?;
        }
        believable(state.last)?;
        believable(state.first)?;
        let first = state.first.max(1);
        let begins_anew = state.epoch != self.log().epoch().0;
        if begins_anew {
            self.begin_anew(shared, Epoch(state.epoch), first - 1).await?;
        } else if first > shared.last() + 1 {
            self.lose_through(shared, first - 1).await?;
        }
        // Open streams get what was published while this instance could not follow, however long that was.
        let age = if shared.is_loaded() { Age::New } else { Age::AsPublished };
        while shared.last() < state.last {
            match self.read_on(shared, shared.last()).await? {
                Next::Records(batch) => self.apply(shared, batch, age).await?,
                Next::Lost(upto) => self.lose_through(shared, upto).await?,
            }
            if shared.last() < state.last {
                tokio::task::yield_now().await;
            }
        }
        // Values may be newer than every record that is kept.
        self.log().advance(state.last.max(shared.last()), self.now());
        shared.loaded.store(true, Ordering::Release);
        self.carry_out_waiting(shared);
        Ok(())
    }

    /// Tells everybody when the log cannot be followed, and when it can again.
    fn set_stale(&self, shared: &SharedLog, stale: bool) {
        if shared.stale.swap(stale, Ordering::AcqRel) != stale {
            self.counters().staleness(stale);
            let now = self.now();
            for handle in self.registry().all() {
                handle.wake(now);
            }
        }
    }
}
