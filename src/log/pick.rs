//! The merge of the records of several channels into one ordered batch, within the bounds of one
//! read.

use std::sync::Arc;

use smallvec::SmallVec;

use super::batch::{Batch, MAX_BYTES, MAX_RECORDS, Picked};
use super::channel::Channel;
use super::store::Record;
use crate::types::ConnectionId;

/// The records of one read, collected from several channels. Only the oldest are kept, each once.
pub(super) struct Pick {
    me: ConnectionId,
    wants_addresses: bool,
    picked: SmallVec<[Picked; 8]>,
    /// No record above this number can be among the oldest [`MAX_RECORDS`].
    cap: u64,
    /// Whether a record was left out.
    cut: bool,
}

impl Pick {
    pub(super) fn new(me: ConnectionId, wants_addresses: bool) -> Self {
        Self { me, wants_addresses, picked: SmallVec::new(), cap: u64::MAX, cut: false }
    }

    /// Offers the records of one channel, in the order of their numbers. Only the first
    /// [`MAX_RECORDS`] of them can be among the oldest.
    pub(super) fn offer<'a>(&mut self, channel: &Arc<Channel>, records: impl Iterator<Item = &'a Arc<Record>>) {
        let mut taken = 0;
        for record in records {
            if taken == MAX_RECORDS || record.sequence > self.cap {
                self.cut = true;
                break;
            }
            if !record.except.contains(&self.me) {
                taken += 1;
                let via = self.wants_addresses.then(|| Arc::clone(channel));
                self.picked.push(Picked { record: Arc::clone(record), via });
            }
        }
        if self.picked.len() >= 2 * MAX_RECORDS {
            self.settle();
        }
    }

    /// Sorts the records, removes duplicates, and keeps the oldest [`MAX_RECORDS`].
    fn settle(&mut self) {
        self.picked.sort_by_key(|picked| picked.record.sequence);
        self.picked.dedup_by_key(|picked| picked.record.sequence);
        if self.picked.len() > MAX_RECORDS {
            self.cut = true;
            self.picked.truncate(MAX_RECORDS);
        }
        if let [.., last] = &self.picked[..]
            && self.picked.len() == MAX_RECORDS
        {
            self.cap = last.record.sequence;
        }
    }

    /// Moves the records into the batch, within its bounds. Returns the number up to which the
    /// batch is complete: `upto`, or the number of the last record if a record was left out.
    pub(super) fn finish(mut self, upto: u64, batch: &mut Batch) -> u64 {
        self.settle();
        let mut bytes = 0;
        for picked in self.picked {
            bytes += picked.record.frame.len();
            if bytes > MAX_BYTES && !batch.records.is_empty() {
                self.cut = true;
                break;
            }
            batch.records.push(picked);
        }
        match batch.records.last() {
            Some(last) if self.cut => last.record.sequence,
            _ => upto,
        }
    }
}
