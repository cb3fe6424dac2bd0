//! Changes to the history of a [`Memory`], as an administrator or a failure makes them at a broker.
//! The test kit uses them.

use std::collections::btree_set::BTreeSet;

use super::memory::Memory;
use super::{JournalPage, ReadLimit, Stored};

impl Memory {
    /// Returns a separate log with a copy of all data.
    pub(crate) fn backup(&self) -> Self {
        let copy = Self::new();
        copy.restore(self);
        copy
    }

    /// Replaces all data with a copy of the data of another log. Open streams continue after the
    /// number that they have reached.
    pub(crate) fn restore(&self, backup: &Self) {
        let log = backup.shared.log.lock().clone();
        let journals = backup.shared.journals.lock().clone();
        *self.shared.log.lock() = log;
        *self.shared.journals.lock() = journals;
        self.wake_streams();
    }

    /// Removes the newest records, and the current values and the idempotency keys that they have
    /// set. The epoch stays.
    pub(crate) fn roll_back(&self, count: u64) {
        let mut log = self.shared.log.lock();
        let last = log.last.saturating_sub(count);
        log.last = last;
        log.records.retain(|record| record.sequence <= last);
        log.values.retain(|_, record| record.sequence <= last);
        log.by_key.retain(|_, position| position.sequence <= last);
        log.forget_old_keys();
        drop(log);
        self.wake_streams();
    }

    /// Removes the records up to this number. Current values stay.
    pub(crate) fn trim_through(&self, number: u64) {
        self.shared.log.lock().records.retain(|record| record.sequence > number);
    }

    /// Removes all records, and sets the number of the newest record. Current values stay.
    pub(crate) fn trim_to(&self, last: u64) {
        let mut log = self.shared.log.lock();
        log.records.clear();
        log.last = last;
    }

    /// Returns the current journal of a key with all entries.
    pub(crate) fn journal(&self, key: &str) -> Option<JournalPage> {
        self.shared.journals.lock().read(key, None, 0, usize::MAX)
    }

    /// Removes the newest entries of the current journal of a key.
    pub(crate) fn roll_back_journal(&self, key: &str, entries: usize) {
        self.shared.journals.lock().roll_back(key, entries);
    }

    /// Returns the number of the newest record.
    pub(crate) fn last(&self) -> u64 {
        self.shared.log.lock().last
    }

    /// Returns the records after `after`, up to `limit`, without these numbers.
    pub(crate) fn range_without(&self, hidden: &BTreeSet<u64>, after: u64, limit: ReadLimit) -> Vec<Stored> {
        let log = self.shared.log.lock();
        let start = log.records.partition_point(|record| record.sequence <= after);
        let visible = log.records.range(start..).filter(|record| !hidden.contains(&record.sequence));
        limit.take(visible.cloned())
    }

    fn wake_streams(&self) {
        self.shared.appended.send_replace(());
        self.shared.control.send_replace(());
    }
}
