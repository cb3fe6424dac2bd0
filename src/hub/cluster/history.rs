//! Whether a shared log still is the one that was read, and which holes in it are real.
//!
//! 1. A log that was rolled back and has grown since has other records under the numbers that were lost. So each record that
//!    is applied is remembered by a hash until the next comparison, up to a bound, and compared with what the log has then.
//!    Records carry a random id, so equal events do not have equal records.
//! 2. A record that is missing in an answer may be late: a replica may be behind. It is lost if the log says that it begins
//!    above it, or if the record is still missing after a while.

use std::collections::btree_map::BTreeMap;
use std::collections::vec_deque::VecDeque;
use std::hash::{DefaultHasher, Hasher};

use tokio::time::{Duration, Instant};

use super::shared_log::{SharedLog, believable};
use crate::backplane::{BackplaneError, State, Stored};
use crate::hub::Hub;
use crate::hub::tasks::back_off::{BackOff, in_time};
use crate::sync::Mutex;

/// How many records are read at a time when an instance catches up.
const BATCH: usize = 1024;
/// How many records are compared at most, beside the newest: more were read of a busy log than it is worth to read again.
const COMPARED: usize = 64;
/// How often a record that is missing is asked for before the connection is made anew.
const ATTEMPTS: u32 = 3;
/// How many missing records are remembered.
const HOLES: usize = 64;

#[derive(Debug, Default)]
pub(in crate::hub) struct History {
    known: Mutex<Known>,
    /// Since when a record has been missing.
    holes: Mutex<BTreeMap<u64, Instant>>,
}

/// Records that were applied, by number and hash.
#[derive(Debug, Default)]
struct Known {
    /// The newest record at the last comparison, and those that followed it.
    oldest: VecDeque<(u64, u64)>,
    newest: Option<(u64, u64)>,
}

/// What follows a number in the log.
#[derive(Debug)]
pub(in crate::hub) enum Next {
    /// Records, of which the first has the next number.
    Records(Vec<Stored>),
    /// Records up to this number are lost.
    Lost(u64),
}

fn hash_of(payload: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(payload);
    hasher.finish()
}

impl History {
    /// A record was applied.
    pub(in crate::hub) fn add(&self, stored: &Stored) {
        let record = (stored.sequence, hash_of(&stored.payload));
        let mut known = self.known.lock();
        if known.oldest.len() < COMPARED {
            known.oldest.push_back(record);
        }
        known.newest = Some(record);
        drop(known);
        self.found(stored.sequence);
    }

    /// The log has begun a new life, of which nothing is known.
    pub(in crate::hub) fn clear(&self) {
        *self.known.lock() = Known::default();
        self.holes.lock().clear();
    }

    /// For how long this record has been missing.
    pub(in crate::hub) fn missing_for(&self, number: u64) -> Duration {
        let mut holes = self.holes.lock();
        let since = holes.entry(number).or_insert_with(Instant::now).elapsed();
        if holes.len() > HOLES {
            // Not the one that was asked about: its time would begin anew at every question.
            let oldest = holes.iter().filter(|(other, _)| **other != number).min_by_key(|(_, since)| **since);
            if let Some(oldest) = oldest.map(|(other, _)| *other) {
                holes.remove(&oldest);
            }
        }
        since
    }

    pub(in crate::hub) fn found(&self, number: u64) {
        self.holes.lock().remove(&number);
    }
}

impl Known {
    /// The numbers to compare, in order, as far as the log has them: those that lie together, and the newest.
    fn to_compare(&self, state: State) -> Vec<(u64, usize)> {
        let has = |number: u64| (state.first..=state.last).contains(&number);
        let mut spans = Vec::new();
        if let Some((first, _)) = self.oldest.iter().find(|(number, _)| has(*number)) {
            spans.push((*first, self.oldest.len()));
        }
        if let Some((newest, _)) = self.newest
            && has(newest)
            && self.oldest.back().is_none_or(|(last, _)| *last != newest)
        {
            spans.push((newest, 1));
        }
        spans
    }

    fn is_other(&self, stored: &Stored) -> bool {
        let known = self.oldest.iter().chain(&self.newest).find(|(number, _)| *number == stored.sequence);
        known.is_some_and(|(_, hash)| *hash != hash_of(&stored.payload))
    }

    /// Up to here it was compared.
    fn compared(&mut self, upto: Option<(u64, u64)>) {
        let Some((number, hash)) = upto else { return };
        self.oldest.retain(|(known, _)| *known >= number);
        if self.oldest.front().is_none_or(|(first, _)| *first != number) {
            self.oldest.push_front((number, hash));
        }
    }
}

impl Hub {
    /// Whether the log has other records than those that were applied, under the same numbers: it was rolled back, and
    /// publishers that had not seen what is lost have appended to it since.
    pub(in crate::hub) async fn is_another(&self, shared: &SharedLog, state: State) -> Result<bool, BackplaneError> {
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
    pub(in crate::hub) async fn read_on(&self, shared: &SharedLog, last: u64) -> Result<Next, BackplaneError> {
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
}
