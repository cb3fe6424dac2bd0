//! The latest number of every channel in one dense table, so that a connection with a thousand
//! topics compares a thousand words, and locks only the channels with a number above its cursor.
//!
//! 1. The table grows and shrinks, and its words are written, only under the sequencer's lock. So
//!    no write is lost to a table that is being replaced.
//! 2. A word is written before the `visible_through` that covers it. A reader that has loaded
//!    `visible_through` sees the word.

use crate::sync::{AtomicU64, Ordering, RwLock};

#[derive(Debug, Default)]
pub(super) struct Latest(RwLock<Vec<AtomicU64>>);

impl Latest {
    /// Grows the table so that it has a word for the channel `number`.
    pub(super) fn cover(&self, number: usize) {
        let mut words = self.0.write();
        while words.len() <= number {
            words.push(AtomicU64::new(0));
        }
    }

    /// Shrinks the table to its first `len` words.
    pub(super) fn truncate(&self, len: usize) {
        let mut words = self.0.write();
        words.truncate(len);
        words.shrink_to(len * 2);
    }

    pub(super) fn set(&self, number: usize, sequence: u64) {
        self.0.read()[number].store(sequence, Ordering::Release);
    }

    /// Raises the word of the channel `number`, unless it is already higher.
    pub(super) fn raise(&self, number: usize, sequence: u64) {
        self.0.read()[number].fetch_max(sequence, Ordering::AcqRel);
    }

    /// Calls `look` with a function that loads the word of a channel. The table is locked once for
    /// the whole call.
    pub(super) fn with<R>(&self, look: impl FnOnce(&dyn Fn(usize) -> u64) -> R) -> R {
        let words = self.0.read();
        look(&|number| words[number].load(Ordering::Acquire))
    }
}
