//! Takes what the shared log has into the log of this instance, in its order.
//!
//! 1. Before a record is applied, those that are missing before it are read. Only what the log does not have any more
//!    counts as lost, and what is still missing after a while.
//! 2. A record is read by the rules of the publish API. One that no hub could have written is skipped, and its audience
//!    misses it, if that can be read.
//! 3. A new epoch, or a loss, also replaces the current values.

use super::presence_records;
use super::record::{self, Decoded};
use super::shared_log::{SharedLog, believable};
use crate::backplane::{Answer, BackplaneError, CurrentValue, LogState, Stored, in_time};
use crate::hub::Hub;
use crate::hub::tasks::back_off::BackOff;
use crate::hub::tasks::workers::wake_rest;
use crate::log::{Effect, Entry};
use crate::sync::Ordering;
use crate::types::{Audience, Epoch};

/// How many records are read at a time when an instance catches up.
const BATCH: usize = 1024;
/// How often a record that is missing is asked for before the connection is made anew.
const ATTEMPTS: u32 = 3;

/// From when on the age of a record counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Age {
    /// From now on: it has just come. The clocks of publishers do not matter.
    New,
    /// From when it was published: this instance starts.
    AsPublished,
}

/// What follows a number in the log.
#[derive(Debug)]
pub(super) enum Next {
    /// Records, of which the first has the next number.
    Records(Vec<Stored>),
    /// Records up to this number are lost.
    Lost(u64),
}

impl Hub {
    /// Whether the log has other records than those that were applied, under the same numbers: it was rolled back, and
    /// publishers that had not seen what is lost have appended to it since.
    pub(super) async fn is_another(&self, shared: &SharedLog, state: LogState) -> Answer<bool> {
        if state.epoch != self.log().epoch().0 {
            return Ok(false);
        }
        let (spans, newest) = {
            let known = shared.history.known.lock();
            (known.to_compare(state), known.newest)
        };
        for (first, count) in spans {
            let limit = self.settings().publish_timeout;
            let found = in_time(limit, shared.backplane.range(first - 1, count)).await?;
            let known = shared.history.known.lock();
            if found.iter().any(|stored| known.is_other(stored)) {
                return Ok(true);
            }
        }
        shared.history.known.lock().compared(newest);
        Ok(false)
    }

    /// Reads what follows a number that the log has passed.
    pub(super) async fn read_on(&self, shared: &SharedLog, last: u64) -> Answer<Next> {
        let next = last + 1;
        let mut back_off = BackOff::new();
        for attempt in 0..ATTEMPTS {
            let mut batch = shared.backplane.range(last, BATCH).await?;
            batch.retain(|stored| stored.sequence > last);
            if batch.first().is_some_and(|stored| stored.sequence == next) {
                shared.history.found(next);
                return Ok(Next::Records(batch));
            }
            let state = shared.look(self.log().epoch(), self.settings().publish_timeout).await?;
            if state.epoch != self.log().epoch().0 {
                return Err(BackplaneError::unavailable("the log has begun a new epoch"));
            }
            believable(state.first)?;
            if state.first > next {
                shared.history.found(next);
                return Ok(Next::Lost(state.first - 1));
            }
            let upto = batch.first().map_or(state.last, |stored| stored.sequence - 1);
            believable(upto)?;
            if upto >= next && shared.history.missing_for(next) >= self.settings().publish_timeout {
                tracing::warn!(first = next, last = upto, "records of the shared log cannot be read and count as lost");
                shared.history.found(next);
                return Ok(Next::Lost(upto));
            }
            if attempt + 1 < ATTEMPTS {
                back_off.wait().await;
            }
        }
        Err(BackplaneError::unknown(format!("the log has record {next}, but it cannot be read")))
    }

    /// The log has another epoch, of which nothing is kept up to a number but current values.
    pub(super) async fn begin_anew(&self, shared: &SharedLog, epoch: Epoch, gone: u64) -> Answer<()> {
        let values = self.current_values(shared).await?;
        // Before the epoch: a publish between the two must not claim to have seen more of the new epoch than there is.
        shared.last.store(gone, Ordering::Release);
        // What is known is of the life before.
        shared.history.clear();
        // Streams that read the new epoch have seen this before.
        shared.epochs.fetch_add(1, Ordering::AcqRel);
        self.log().begin_epoch(epoch, gone, values, self.now());
        wake_rest(&*self.inner);
        Ok(())
    }

    /// Records up to a number are lost, and current values may have changed in them.
    pub(super) async fn lose_through(&self, shared: &SharedLog, upto: u64) -> Answer<()> {
        let values = self.current_values(shared).await?;
        self.log().lose_all(upto, values, self.now());
        shared.last.store(upto, Ordering::Release);
        wake_rest(&*self.inner);
        Ok(())
    }

    async fn current_values(&self, shared: &SharedLog) -> Answer<Vec<(u64, Entry)>> {
        let current = shared.backplane.values().await?;
        let mut values: Vec<_> = current.iter().filter_map(|current| self.read_value(current)).collect();
        values.sort_by_key(|(sequence, _)| *sequence);
        Ok(values)
    }

    /// A current value with its place, for the address that it is of: others of its union may have another since.
    fn read_value(&self, current: &CurrentValue) -> Option<(u64, Entry)> {
        let Entry { audience, effect, draft, published } = self.read(&current.record.payload, Age::AsPublished).ok()?;
        let Effect::Sets(key) = &effect else { return None };
        let address = audience.addresses().iter().find(|address| record::value_id(address, key) == *current.id)?;
        let mut of = Audience::from(address.clone());
        audience.excluded().iter().for_each(|id| of.exclude(*id));
        believable(current.record.sequence).ok()?;
        Some((current.record.sequence, Entry { audience: of, effect, draft, published }))
    }

    /// Takes in what the log says, in its order.
    pub(super) async fn apply(&self, shared: &SharedLog, batch: Vec<Stored>, age: Age) -> Answer<()> {
        for stored in batch {
            let last = shared.last();
            if stored.sequence <= last {
                continue;
            }
            believable(stored.sequence)?;
            if stored.sequence > last + 1 {
                self.fill(shared, stored.sequence, age).await?;
            }
            self.apply_one(shared, &stored, age);
        }
        wake_rest(&*self.inner);
        self.inner.tasks.sweep.ensure(&self.inner);
        // Commands that were given when the log was further than this instance.
        self.carry_out_waiting(shared);
        Ok(())
    }

    /// Reads what lies before a record that came.
    async fn fill(&self, shared: &SharedLog, before: u64, age: Age) -> Answer<()> {
        loop {
            let last = shared.last();
            if last + 1 >= before {
                return Ok(());
            }
            match self.read_on(shared, last).await? {
                Next::Records(batch) => {
                    let together = batch.iter().zip(last + 1..before).take_while(|(stored, n)| stored.sequence == *n);
                    together.for_each(|(stored, _)| self.apply_one(shared, stored, age));
                }
                Next::Lost(upto) => self.lose_through(shared, upto.min(before - 1)).await?,
            }
        }
    }

    fn apply_one(&self, shared: &SharedLog, stored: &Stored, age: Age) {
        let now = self.now();
        match self.read(&stored.payload, age) {
            Ok(entry) => {
                self.attach_connections(&entry.audience);
                self.log().apply(stored.sequence, entry, now);
            }
            Err(audience) => {
                shared.skipped.fetch_add(1, Ordering::Relaxed);
                self.counters().record_skipped(stored.sequence, now);
                self.log().lose(stored.sequence, audience.as_deref(), now);
            }
        }
        shared.history.add(stored);
        shared.last.store(stored.sequence, Ordering::Release);
    }

    /// A record by the rules of the publish API; else for whom it was, if that can be read.
    pub(super) fn read(&self, payload: &[u8], age: Age) -> Result<Entry, Option<Box<Audience>>> {
        let Decoded { audience, event, published_at } = record::decode(payload)?;
        let entry = if presence_records::is_presence(&event) {
            presence_records::entry(audience, &event).map_err(Some)?
        } else {
            Entry::new(audience, &event, &self.settings().framing).map_err(|refused| Some(Box::new(refused.0)))?
        };
        let passed = |at: u64| self.now().saturating_sub(record::unix_millis().saturating_sub(at));
        Ok(Entry { published: published_at.filter(|_| age == Age::AsPublished).map(passed), ..entry })
    }
}
