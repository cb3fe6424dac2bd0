//! Applies the records of the shared log to the log of this instance, in the order of the shared
//! log.
//!
//! 1. Before a record is applied, missing records before it are read. A missing record counts as
//!    lost if the shared log no longer retains it, or if it is still missing after the publish
//!    timeout. The answer [`Range::NotYet`] does not count: the hub reads again.
//! 2. A record must follow the rules of the publish API. The hub skips an invalid record, and
//!    reports a gap to its audience. If the audience cannot be decoded, the hub reports the gap to
//!    all streams.
//! 3. The hub does not decode a record whose audience has had no listener on this instance within
//!    the grace period, and stores only the place of the record. A stream that needs the record
//!    later reads it from the shared log, in a block ([`backfill`](super::backfill)). So rule 2
//!    applies to such a record when a stream reads it. An invalid record counts at each read.
//! 4. When a new epoch begins, or when missing records count as lost, the hub also reads all
//!    current values again.

#[cfg(any(test, feature = "metrics"))]
use std::time::Duration;
use std::time::SystemTime;

use super::peek::{Peeked, peek};
use super::presence_records;
use super::record::{self, Decoded, Parsed};
use super::shared_log::{SharedLog, check_sequence};
use crate::backplane::{Answer, BackplaneError, CurrentValue, LogState, Range, ReadLimit, Stored, in_time};
use crate::hub::Hub;
use crate::hub::tasks::back_off::BackOff;
use crate::hub::tasks::workers::wake_rest;
use crate::log::{Effect, Entry, Millis, Undecoded};
use crate::sync::Ordering;
use crate::types::{Address, Audience, Epoch};

/// The limit of one read of the log.
const BATCH: ReadLimit = ReadLimit::records(1024).bytes(1 << 20);
/// The number of attempts to read a missing record before the instance reconnects.
const ATTEMPTS: u32 = 3;

/// The time from which the age of a record counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Age {
    /// The age counts from the time at which this instance reads the record. The publisher's clock
    /// does not matter.
    New,
    /// As [`New`](Self::New), for a record that this instance reads again.
    Backfilled,
    /// The age counts from the time at which the log stored the record, by the clock of the broker.
    /// If the adapter does not know this time, the age counts from the time of publishing, if the
    /// record contains it. That may be much earlier: a record that was prepared in a transaction is
    /// stored when the transaction is committed. Used while this instance starts, and for current
    /// values.
    AsStored,
}

/// The content of the log after a number.
#[derive(Debug)]
pub(super) enum Next {
    /// Records in order. The first record has the next number.
    Records(Vec<Stored>),
    /// The records up to this number, inclusive, are lost.
    Lost(u64),
}

impl Hub {
    /// Returns whether the log, in the same epoch, has other records than the applied records at
    /// the same numbers. Then the log was rolled back, and publishers that had not seen the lost
    /// records have appended since.
    pub(super) async fn was_rolled_back(&self, shared: &SharedLog, state: LogState) -> Answer<bool> {
        if state.epoch != self.log().epoch().0 {
            return Ok(false);
        }
        let (spans, newest) = {
            let known = shared.history.known.lock();
            (known.to_compare(state), known.newest.clone())
        };
        for (first, count) in spans {
            let limit = self.settings().publish_timeout;
            let found = in_time(limit, shared.backplane.range(first - 1, ReadLimit::records(count))).await?;
            let found = found.into_records().ok_or_else(not_yet)?;
            let known = shared.history.known.lock();
            if found.iter().any(|stored| known.differs(stored)) {
                return Ok(true);
            }
        }
        shared.history.known.lock().compared(newest);
        Ok(false)
    }

    /// Reads the records after `last`. The log must have a record above `last`.
    pub(super) async fn read_after(&self, shared: &SharedLog, last: u64) -> Answer<Next> {
        let next = last + 1;
        let mut back_off = BackOff::new();
        let mut is_not_yet = false;
        for attempt in 0..ATTEMPTS {
            let answer = shared.backplane.range(last, BATCH).await?;
            is_not_yet = answer == Range::NotYet;
            let mut batch = answer.into_records().unwrap_or_default();
            batch.retain(|stored| stored.sequence > last);
            if batch.first().is_some_and(|stored| stored.sequence == next) {
                shared.history.found(next);
                return Ok(Next::Records(batch));
            }
            let state = shared.query_state(self.log().epoch(), self.settings().publish_timeout).await?;
            if state.epoch != self.log().epoch().0 {
                return Err(BackplaneError::unavailable("the log has begun a new epoch"));
            }
            check_sequence(state.first)?;
            if state.first > next {
                shared.history.found(next);
                return Ok(Next::Lost(state.first - 1));
            }
            let upto = batch.first().map_or(state.last, |stored| stored.sequence - 1);
            check_sequence(upto)?;
            if !is_not_yet && upto >= next && shared.history.missing_for(next) >= self.settings().publish_timeout {
                tracing::warn!(name: "sse.log.records_lost",
                    first = next,
                    last = upto,
                    "records of the shared log cannot be read and are reported as lost"
                );
                shared.history.found(next);
                return Ok(Next::Lost(upto));
            }
            if attempt + 1 < ATTEMPTS {
                back_off.wait().await;
            }
        }
        if is_not_yet {
            return Err(not_yet());
        }
        Err(BackplaneError::unknown(format!("the log has record {next} but does not return it")))
    }

    /// Switches to a new epoch, in which the log no longer retains the records up to
    /// `trimmed_through`, inclusive. Reads the current values.
    pub(super) async fn start_epoch(&self, shared: &SharedLog, epoch: Epoch, trimmed_through: u64) -> Answer<()> {
        let values = self.current_values(shared).await?;
        // Set before the epoch changes. Otherwise a publish between the two steps would pass the
        // number of the old epoch with the new epoch as the seen position. The log might end below
        // that position, and would then begin another epoch.
        shared.last.store(trimmed_through, Ordering::Release);
        // The remembered records belong to the old epoch.
        shared.history.clear();
        // Count before the epoch changes, so that a stream that reads the new epoch also reads the
        // new count.
        shared.epochs.fetch_add(1, Ordering::AcqRel);
        self.log().begin_epoch(epoch, trimmed_through, values, self.now());
        wake_rest(&*self.inner);
        Ok(())
    }

    /// Marks the next records up to `upto`, inclusive, as lost. Replaces the current values,
    /// because a lost record may have changed them.
    pub(super) async fn lose_through(&self, shared: &SharedLog, upto: u64) -> Answer<()> {
        let values = self.current_values(shared).await?;
        self.log().mark_all_lost(upto, values, self.now());
        shared.last.store(upto, Ordering::Release);
        wake_rest(&*self.inner);
        Ok(())
    }

    /// Reads the current values, in the order of their records.
    async fn current_values(&self, shared: &SharedLog) -> Answer<Vec<(u64, Entry)>> {
        let current = shared.backplane.values().await?;
        let mut values: Vec<_> = current.iter().filter_map(|current| self.read_value(current)).collect();
        values.sort_by_key(|(sequence, _)| *sequence);
        Ok(values)
    }

    /// Returns the entry of a current value with its number. The entry is only for the address to
    /// which the id of the value belongs, because other addresses of the record may have a newer
    /// value. Returns `None` if the value is invalid.
    fn read_value(&self, current: &CurrentValue) -> Option<(u64, Entry)> {
        let Entry { audience, effect, draft, published } = self.read(&current.record, Age::AsStored).ok()?;
        let Effect::Sets(key) = &effect else { return None };
        let address = audience.addresses().iter().find(|address| record::value_id(address, key) == *current.id)?;
        let mut narrowed = Audience::from(address.clone());
        audience.excluded().iter().for_each(|id| narrowed.exclude(*id));
        check_sequence(current.record.sequence).ok()?;
        Some((current.record.sequence, Entry { audience: narrowed, effect, draft, published }))
    }

    /// Applies a batch of records. Before a record, applies the records that are missing before it.
    /// Ignores records that were already applied or marked as lost.
    pub(super) async fn apply(&self, shared: &SharedLog, batch: Vec<Stored>, age: Age) -> Answer<()> {
        let mut now = self.now();
        for stored in batch {
            let last = shared.last();
            if stored.sequence <= last {
                continue;
            }
            check_sequence(stored.sequence)?;
            if stored.sequence > last + 1 {
                self.apply_missing(shared, stored.sequence, age).await?;
                now = self.now();
            }
            self.apply_one(shared, &stored, age, now);
        }
        wake_rest(&*self.inner);
        self.inner.tasks.sweep.ensure(&self.inner);
        // Commands may have waited for these records.
        self.carry_out_queued(shared);
        Ok(())
    }

    /// Reads and applies the missing records below `before`, or marks them as lost.
    async fn apply_missing(&self, shared: &SharedLog, before: u64, age: Age) -> Answer<()> {
        loop {
            let last = shared.last();
            if last + 1 >= before {
                return Ok(());
            }
            match self.read_after(shared, last).await? {
                Next::Records(batch) => {
                    let missing = batch.iter().zip(last + 1..before).take_while(|(stored, n)| stored.sequence == *n);
                    let now = self.now();
                    missing.for_each(|(stored, _)| self.apply_one(shared, stored, age, now));
                }
                Next::Lost(upto) => self.lose_through(shared, upto.min(before - 1)).await?,
            }
        }
    }

    /// Applies the next record, or marks it as lost if it is invalid.
    fn apply_one(&self, shared: &SharedLog, stored: &Stored, age: Age, now: Millis) {
        if self.apply_outline_unparsed(stored, age, now) {
            shared.applied(stored);
            return;
        }
        let read = match record::parse(&stored.payload) {
            Ok(parsed) if self.apply_outline(&parsed, stored, age, now) => Ok(None),
            Ok(parsed) => self.decode(parsed, stored.at, age, now).map(Some),
            Err(audience) => Err(audience),
        };
        match read {
            Ok(None) => {}
            Ok(Some(entry)) => {
                self.attach_connections(&entry.audience);
                self.log().apply(stored.sequence, entry, now);
            }
            Err(audience) => {
                self.note_unreadable(shared, stored.sequence, now);
                self.log().mark_lost(stored.sequence, audience.as_deref(), now);
            }
        }
        shared.applied(stored);
    }

    /// As [`apply_outline`](Self::apply_outline), for a record whose audience can be read without parsing its JSON.
    fn apply_outline_unparsed(&self, stored: &Stored, age: Age, now: Millis) -> bool {
        let Some(Peeked { to, published_at, size }) = peek(&stored.payload) else { return false };
        let undecoded = undecoded(since(stored.at, Some(published_at), age, now), size);
        let is_applied = self.log().outline_for(stored.sequence, to, undecoded, now);
        if is_applied {
            self.note_delay(Some(published_at), age);
        }
        is_applied
    }

    /// Counts and logs an unreadable record.
    pub(super) fn note_unreadable(&self, shared: &SharedLog, sequence: u64, now: Millis) {
        shared.skipped.fetch_add(1, Ordering::Relaxed);
        self.counters().record_skipped(sequence, now);
    }

    /// Records the time that a new record took through the shared log.
    fn note_delay(&self, published_at: Option<u64>, age: Age) {
        #[cfg(feature = "metrics")]
        if age == Age::New
            && let Some(at) = published_at
        {
            let delay = record::unix_millis().saturating_sub(at);
            self.metrics().read_from_log(Duration::from_millis(delay));
        }
        #[cfg(not(feature = "metrics"))]
        let _ = (self, published_at, age);
    }

    /// Applies a record without its event, if this instance has no listeners for the record.
    /// Returns whether the record was applied.
    fn apply_outline(&self, parsed: &Parsed<'_>, stored: &Stored, age: Age, now: Millis) -> bool {
        let is_here = |address: &Address| match address {
            Address::Connection(id, _) => self.registry().find(*id).is_some(),
            Address::Topic(_) | Address::User(_) | Address::Everyone(_) | Address::EveryScope => false,
        };
        self.note_delay(parsed.published_at, age);
        // A connection on this instance is added to the channel of its id before the record is
        // applied.
        if parsed.audience.addresses().iter().any(is_here) {
            return false;
        }
        let undecoded = undecoded(since(stored.at, parsed.published_at, age, now), parsed.size());
        self.log().outline(stored.sequence, &parsed.audience, undecoded, now)
    }

    /// Decodes a record, and validates it by the rules of the publish API. The error is the
    /// audience of an invalid record, or `None` if the audience cannot be decoded.
    pub(super) fn read(&self, stored: &Stored, age: Age) -> Result<Entry, Option<Box<Audience>>> {
        self.decode(record::parse(&stored.payload)?, stored.at, age, self.now())
    }

    /// Decodes and validates the event of a record. The error is the audience of an invalid record.
    fn decode(
        &self,
        parsed: Parsed<'_>,
        stored_at: Option<SystemTime>,
        age: Age,
        now: Millis,
    ) -> Result<Entry, Option<Box<Audience>>> {
        let Decoded { audience, event, published_at } = parsed.decode()?;
        let entry = if presence_records::is_presence(&event) {
            presence_records::entry(audience, &event).map_err(Some)?
        } else {
            Entry::new(audience, &event, &self.settings().framing).map_err(|rejected| Some(Box::new(rejected.0)))?
        };
        Ok(Entry { published: since(stored_at, published_at, age, now), ..entry })
    }
}

/// Returns the error of a read to which the server answers [`Range::NotYet`].
pub(super) fn not_yet() -> BackplaneError {
    BackplaneError::unavailable("the server cannot read the log now")
}

/// Returns the properties of a record that is not decoded.
fn undecoded(published: Option<Millis>, size: usize) -> Undecoded {
    Undecoded { published, bytes: u32::try_from(size).unwrap_or(u32::MAX) }
}

/// Returns the time on this hub's clock from which the age of a record counts, or `None` for now.
fn since(stored_at: Option<SystemTime>, published_at: Option<u64>, age: Age, now: Millis) -> Option<Millis> {
    if age != Age::AsStored {
        return None;
    }
    let at = stored_at.map(record::millis_of).or(published_at)?;
    Some(now.saturating_sub(record::unix_millis().saturating_sub(at)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn age_counts_from_the_time_of_storing_and_without_it_from_the_time_of_publishing() {
        const NOW: Millis = 10_000_000;
        let ago = |seconds: u64| record::unix_millis() - 1_000 * seconds;
        let stored = |seconds: u64| SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(ago(seconds)));
        let seconds = |since: Option<Millis>| since.map(|since| (NOW - since) / 1_000);
        assert_eq!(seconds(since(stored(10), Some(ago(3_600)), Age::AsStored, NOW)), Some(10));
        assert_eq!(seconds(since(stored(3_600), Some(ago(10)), Age::AsStored, NOW)), Some(3_600));
        assert_eq!(seconds(since(stored(10), None, Age::AsStored, NOW)), Some(10));
        assert_eq!(seconds(since(None, Some(ago(3_600)), Age::AsStored, NOW)), Some(3_600));
        assert_eq!(since(None, None, Age::AsStored, NOW), None);
        // By a clock that is ahead.
        let ahead = SystemTime::now() + Duration::from_secs(60);
        assert_eq!(since(Some(ahead), None, Age::AsStored, NOW), Some(NOW));
        for age in [Age::New, Age::Backfilled] {
            assert_eq!(since(stored(10), Some(ago(3_600)), age, NOW), None);
        }
    }
}
