//! The newest number of every channel, dense, so that a connection on a thousand topics looks at words and not at
//! locks.
//!
//! 1. The table grows and shrinks only under the sequencer's lock, and words are written only there; so no write is
//!    lost to a table that is being replaced.
//! 2. A word is written before the horizon that covers it. A reader that has seen the horizon sees the word.

use crate::sync::{AtomicU64, Ordering, RwLock};

#[derive(Debug, Default)]
pub(super) struct Heads(RwLock<Vec<AtomicU64>>);

impl Heads {
    /// Makes `number` a valid word.
    pub(super) fn cover(&self, number: usize) {
        let mut words = self.0.write();
        while words.len() <= number {
            words.push(AtomicU64::new(0));
        }
    }

    /// Gives back the words from `len` on.
    pub(super) fn truncate(&self, len: usize) {
        let mut words = self.0.write();
        words.truncate(len);
        words.shrink_to(len * 2);
    }

    pub(super) fn set(&self, number: usize, sequence: u64) {
        self.0.read()[number].store(sequence, Ordering::Release);
    }

    /// The word may be further already.
    pub(super) fn raise(&self, number: usize, sequence: u64) {
        self.0.read()[number].fetch_max(sequence, Ordering::AcqRel);
    }

    /// Looks at many words under one lock.
    pub(super) fn with<R>(&self, look: impl FnOnce(&dyn Fn(usize) -> u64) -> R) -> R {
        let words = self.0.read();
        look(&|number| words[number].load(Ordering::Acquire))
    }
}
