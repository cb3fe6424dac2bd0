//! Hashes of applied records, to detect a log that was rolled back, and the times since which
//! records are missing.
//!
//! 1. A log that was rolled back and has grown since has other records at the numbers of the lost
//!    ones. So the hub remembers the hash of each applied record until the next comparison, up to a
//!    limit, and compares the hashes with the records that the log has then. Hubs write a random id
//!    into each record, so their records of equal events differ.
//! 2. A record that is missing in a response may only be late, because a replica may be behind. It
//!    is lost if the log begins above it, or if it is still missing after the publish timeout. A
//!    response of a server that is known to be behind does not count.

use std::collections::btree_map::BTreeMap;
use std::collections::vec_deque::VecDeque;
use std::hash::{DefaultHasher, Hasher};

use bytes::Bytes;
use tokio::time::{Duration, Instant};

use crate::backplane::{LogState, Stored};
use crate::sync::Mutex;

/// The maximum number of records in one comparison, beside the newest record. This limits the cost
/// of reading the records of a busy log a second time.
const COMPARED: usize = 64;
/// The maximum number of missing records whose times are remembered.
const HOLES: usize = 64;

#[derive(Debug, Default)]
pub(super) struct History {
    pub(super) known: Mutex<Known>,
    /// The numbers of the missing records, each with the time of the first failed read.
    holes: Mutex<BTreeMap<u64, Instant>>,
}

/// Records that were applied, each with its number and hash.
#[derive(Debug, Default)]
pub(super) struct Known {
    /// The newest record at the last comparison and the records after it, at most [`COMPARED`] in
    /// total.
    oldest: VecDeque<(u64, u64)>,
    /// The newest applied record, with its bytes. They are hashed only for a comparison.
    pub(super) newest: Option<(u64, Bytes)>,
}

fn hash_of(payload: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(payload);
    hasher.finish()
}

impl History {
    /// Remembers a record that was applied.
    pub(super) fn add(&self, stored: &Stored) {
        let mut known = self.known.lock();
        if known.oldest.len() < COMPARED {
            known.oldest.push_back((stored.sequence, hash_of(&stored.payload)));
        }
        known.newest = Some((stored.sequence, stored.payload.clone()));
        drop(known);
        self.found(stored.sequence);
    }

    /// Forgets all records, because a new epoch of the log begins.
    pub(super) fn clear(&self) {
        *self.known.lock() = Known::default();
        self.holes.lock().clear();
    }

    /// Returns how long a record has been missing. The time starts with the first call for the
    /// record.
    pub(super) fn missing_for(&self, number: u64) -> Duration {
        let mut holes = self.holes.lock();
        let since = holes.entry(number).or_insert_with(Instant::now).elapsed();
        if holes.len() > HOLES {
            // Keep the entry of this record. Otherwise its time would start again with every call.
            let oldest = holes.iter().filter(|(other, _)| **other != number).min_by_key(|(_, since)| **since);
            if let Some(oldest) = oldest.map(|(other, _)| *other) {
                holes.remove(&oldest);
            }
        }
        since
    }

    /// Notes that a record is no longer missing.
    pub(super) fn found(&self, number: u64) {
        self.holes.lock().remove(&number);
    }
}

impl Known {
    /// Returns the spans of the log to read for a comparison, each as its first number and its
    /// maximum length. The first span has the oldest remembered records that the log still has. The
    /// second has the newest record, unless the first contains it.
    pub(super) fn to_compare(&self, state: LogState) -> Vec<(u64, usize)> {
        let has = |number: u64| (state.first..=state.last).contains(&number);
        let mut spans = Vec::new();
        if let Some((first, _)) = self.oldest.iter().find(|(number, _)| has(*number)) {
            spans.push((*first, self.oldest.len()));
        }
        if let Some((newest, _)) = &self.newest
            && has(*newest)
            && self.oldest.back().is_none_or(|(last, _)| last != newest)
        {
            spans.push((*newest, 1));
        }
        spans
    }

    /// Returns whether another record was applied at the number of this record.
    pub(super) fn differs(&self, stored: &Stored) -> bool {
        if let Some((_, payload)) = self.newest.as_ref().filter(|(number, _)| *number == stored.sequence) {
            return *payload != stored.payload;
        }
        let known = self.oldest.iter().find(|(number, _)| *number == stored.sequence);
        known.is_some_and(|(_, hash)| *hash != hash_of(&stored.payload))
    }

    /// Forgets the records before `upto`, because they were compared. Keeps `upto` itself for the
    /// next comparison.
    pub(super) fn compared(&mut self, upto: Option<(u64, Bytes)>) {
        let Some((number, payload)) = upto else { return };
        self.oldest.retain(|(known, _)| *known >= number);
        if self.oldest.front().is_none_or(|(first, _)| *first != number) {
            self.oldest.push_front((number, hash_of(&payload)));
        }
    }
}
