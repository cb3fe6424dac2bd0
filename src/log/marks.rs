//! Marks of removed channels: a hash of the address, and the channel's `trimmed_through`. When the
//! channel is created again, it starts at the `trimmed_through` of its mark. New channels of other
//! addresses are not affected.
//!
//! At most [`MAX_MARKS`] marks are kept. Beyond this limit, the lowest marks merge into one number,
//! and every new channel starts at least at this number. A client of such a channel whose cursor is
//! below this number may receive a gap although nothing was dropped.

use std::cmp::Reverse;
use std::collections::binary_heap::BinaryHeap;
use std::collections::hash_map::{HashMap, RandomState};
use std::hash::BuildHasher;

use crate::types::Address;

/// The maximum number of marks. This number of marks takes about 6 MB.
const MAX_MARKS: usize = if cfg!(test) { 64 } else { 114_688 };

#[derive(Debug, Default)]
pub(super) struct Marks {
    /// Randomly keyed, so that no client can choose names that collide.
    hasher: RandomState,
    by_hash: HashMap<u64, u64>,
    /// Pairs of `trimmed_through` and hash, lowest first. A pair that differs from `by_hash` is
    /// outdated.
    lowest: BinaryHeap<Reverse<(u64, u64)>>,
}

impl Marks {
    /// Leaves a mark for a channel that is being removed. Returns the highest `trimmed_through` of
    /// the marks that were merged to make room, or 0. New channels must start at least at this
    /// number.
    pub(super) fn leave(&mut self, address: &Address, trimmed_through: u64) -> u64 {
        let hash = self.hasher.hash_one(address);
        let known = self.by_hash.entry(hash).or_default();
        *known = trimmed_through.max(*known);
        self.lowest.push(Reverse((*known, hash)));
        let mut merged = 0;
        while self.by_hash.len() > MAX_MARKS
            && let Some(Reverse((trimmed_through, hash))) = self.lowest.pop()
        {
            if self.by_hash.get(&hash) == Some(&trimmed_through) {
                self.by_hash.remove(&hash);
                merged = trimmed_through;
            }
        }
        if self.lowest.len() > self.by_hash.len() / 2 * 3 + 64 {
            self.lowest =
                self.by_hash.iter().map(|(hash, trimmed_through)| Reverse((*trimmed_through, *hash))).collect();
        }
        merged
    }

    /// Removes the mark of a channel that is being created again. Returns its `trimmed_through`, or
    /// 0 if the address has no mark.
    pub(super) fn take(&mut self, address: &Address) -> u64 {
        if self.by_hash.is_empty() { 0 } else { self.by_hash.remove(&self.hasher.hash_one(address)).unwrap_or(0) }
    }

    /// Removes all marks. The caller has raised the number at which new channels start to at least
    /// the highest mark.
    pub(super) fn clear(&mut self) {
        (self.by_hash, self.lowest) = (HashMap::new(), BinaryHeap::new());
    }
}

#[cfg(all(test, not(tower_sse_loom)))]
mod tests {
    use super::*;
    use crate::types::Topic;

    #[test]
    fn a_mark_is_returned_once_or_merged() {
        let mut marks = Marks::default();
        let address = |n: u64| Address::Topic(Topic::from(n));
        let mut merged = 0;
        for n in 1..=1_000 {
            merged = marks.leave(&address(n), n).max(merged);
            assert!(marks.by_hash.len() <= MAX_MARKS && marks.lowest.len() <= 2 * MAX_MARKS + 64);
        }
        assert_eq!(merged, 1_000 - MAX_MARKS as u64);
        assert_eq!((marks.take(&address(merged)), marks.take(&address(1_000))), (0, 1_000));
        assert_eq!(marks.take(&address(1_000)), 0);
    }
}
