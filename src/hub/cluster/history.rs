//! Whether a shared log still is the one that was read, and which holes in it are real.
//!
//! 1. A log that was rolled back and has grown since has other records under the numbers that were
//!    lost. So each record that is applied is remembered by a hash until the next comparison, up to a
//!    bound, and compared with what the log has then. Records carry a random id, so equal events do
//!    not have equal records.
//! 2. A record that is missing in an answer may be late: a replica may be behind. It is lost if the
//!    log says that it begins above it, or if the record is still missing after a while.

use std::collections::btree_map::BTreeMap;
use std::collections::vec_deque::VecDeque;
use std::hash::{DefaultHasher, Hasher};

use tokio::time::{Duration, Instant};

use crate::backplane::{LogState, Stored};
use crate::sync::Mutex;

/// How many records are compared at most, beside the newest: more were read of a busy log than it is
/// worth to read again.
const COMPARED: usize = 64;
/// How many missing records are remembered.
const HOLES: usize = 64;

#[derive(Debug, Default)]
pub(super) struct History {
    pub(super) known: Mutex<Known>,
    /// Since when a record has been missing.
    holes: Mutex<BTreeMap<u64, Instant>>,
}

/// Records that were applied, by number and hash.
#[derive(Debug, Default)]
pub(super) struct Known {
    /// The newest record at the last comparison, and those that followed it.
    oldest: VecDeque<(u64, u64)>,
    pub(super) newest: Option<(u64, u64)>,
}

fn hash_of(payload: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(payload);
    hasher.finish()
}

impl History {
    /// A record was applied.
    pub(super) fn add(&self, stored: &Stored) {
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
    pub(super) fn clear(&self) {
        *self.known.lock() = Known::default();
        self.holes.lock().clear();
    }

    /// For how long this record has been missing.
    pub(super) fn missing_for(&self, number: u64) -> Duration {
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

    pub(super) fn found(&self, number: u64) {
        self.holes.lock().remove(&number);
    }
}

impl Known {
    /// The numbers to compare, in order, as far as the log has them: those that lie together, and the newest.
    pub(super) fn to_compare(&self, state: LogState) -> Vec<(u64, usize)> {
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

    /// Whether a record is not the one that was applied under its number.
    pub(super) fn is_other(&self, stored: &Stored) -> bool {
        let known = self.oldest.iter().chain(&self.newest).find(|(number, _)| *number == stored.sequence);
        known.is_some_and(|(_, hash)| *hash != hash_of(&stored.payload))
    }

    /// Up to here it was compared.
    pub(super) fn compared(&mut self, upto: Option<(u64, u64)>) {
        let Some((number, hash)) = upto else { return };
        self.oldest.retain(|(known, _)| *known >= number);
        if self.oldest.front().is_none_or(|(first, _)| *first != number) {
            self.oldest.push_front((number, hash));
        }
    }
}
