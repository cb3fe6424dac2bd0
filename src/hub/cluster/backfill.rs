//! Reads blocks of the shared log, for clients that need records that are no longer in the memory
//! of this instance.
//!
//! 1. One task reads one block after the other, so that many reconnecting clients cause at most one
//!    read at a time. The task runs while a connection waits, in a [task
//!    slot](crate::hub::tasks::slot). Between two blocks, the connections that have waited for the
//!    first block can read it and request their next block. Otherwise the task would read the
//!    blocks of all clients first, and drop blocks before the clients have read them.
//! 2. A block is kept only if the log is still in the same epoch after the read. If the log has the
//!    first record of the block and the response does not contain it, the task reads again. The
//!    task stops reading again when the record has been missing for the publish timeout. A response
//!    of a server that is known to be behind does not count.

use std::sync::{Arc, Weak};

use futures::FutureExt;

use super::apply::{Age, not_yet};
use super::blocks::{self, Waiting};
use super::shared_log::SharedLog;
use crate::backplane::{Answer, BackplaneError, in_time};
use crate::hub::tasks::back_off::BackOff;
use crate::hub::tasks::background::Job;
use crate::hub::{Hub, Inner};

impl Hub {
    /// Reads the block that begins after `start`, and keeps it.
    async fn read_block(&self, shared: &SharedLog, start: u64) -> Answer<()> {
        let (epoch, base) = (self.log().epoch(), self.log().base());
        let changed = || BackplaneError::unavailable("the log has begun a new epoch");
        let after = start.checked_sub(base).ok_or_else(changed)?;
        // `known` is taken before the read, so that a record that is appended during the read does
        // not count as lost.
        let known = self.log().last();
        let limit = self.settings().publish_timeout;
        let read = async {
            let records = shared.backplane.range(after, blocks::LIMIT).await?.into_records().ok_or_else(not_yet)?;
            Ok((records, shared.backplane.state(shared.seen(self.log().epoch())).await?))
        };
        let (records, state) = in_time(limit, read).await?;
        if state.epoch != epoch.0 {
            return Err(changed());
        }
        self.log().note_first(epoch, state.first);
        let expected = state.first.max(after + 1);
        let is_late = records.iter().find(|stored| stored.sequence > after).is_none_or(|next| next.sequence > expected);
        if !is_late {
            shared.history.found(expected);
        } else if expected <= state.last && shared.history.missing_for(expected) < limit {
            return Err(BackplaneError::unknown(format!("the log has record {expected} but does not return it")));
        }
        let records = records.into_iter().map(|stored| {
            let read = self.read(&stored, Age::Backfilled);
            if read.is_err() {
                self.note_unreadable(shared, stored.sequence, self.now());
            }
            (stored.sequence, read)
        });
        let block = self.log().block(epoch, after, known, records, self.now()).ok_or_else(changed)?;
        shared.blocks.lock().keep(block);
        Ok(())
    }
}

pub(in crate::hub) static JOB: Job<Inner> =
    Job { run: |hub, _| read(hub).boxed(), has_work: is_wanted, has_more: is_wanted };

fn is_wanted(inner: &Arc<Inner>) -> bool {
    inner.shared_log.as_ref().is_some_and(|shared| shared.blocks.lock().is_wanted())
}

/// Reads blocks until no connection waits for a block.
async fn read(inner: Weak<Inner>) {
    let mut back_off = BackOff::new();
    let mut start = 0;
    loop {
        let Some(hub) = inner.upgrade().map(|inner| Hub { inner }) else { return };
        let Some(shared) = &hub.inner.shared_log else { return };
        // Wake connections that wait for a block of an ended epoch. Their next read reports the
        // gap.
        let outdated = shared.blocks.lock().take_waiting_below(hub.log().base());
        wake(&hub.inner, outdated);
        let Some(next) = shared.blocks.lock().next_wanted(start) else { return };
        start = next;
        if let Err(error) = hub.read_block(shared, start).await {
            tracing::debug!(name: "sse.log.backfill_failed", %error, "older records of the shared log cannot be read");
            drop(hub);
            back_off.wait().await;
        } else {
            back_off = BackOff::new();
            let waiting = shared.blocks.lock().take_waiting(start);
            wake(&hub.inner, waiting);
            drop(hub);
            // Gives the streams that were woken time to read this block. If the runtime polls this
            // task first, it may read a block twice, and nothing else goes wrong.
            tokio::task::yield_now().await;
        }
    }
}

fn wake(inner: &Inner, waiting: Waiting) {
    let now = inner.now();
    waiting.into_values().filter_map(|handle| handle.upgrade()).for_each(|handle| handle.wake(now));
}
