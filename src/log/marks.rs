//! What is left of forgotten channels: a hash of the address and the floor, so that a channel that
//! comes back knows what it has dropped, and the others do not have to answer for it.
//!
//! There are at most [`MOST`]. Beyond that the lowest floors merge into one that holds for every
//! new channel: a client whose cursor is below it may get a gap although nothing was dropped.

use std::cmp::Reverse;
use std::collections::binary_heap::BinaryHeap;
use std::collections::hash_map::{HashMap, RandomState};
use std::hash::BuildHasher;

use crate::types::Address;

/// They take some 6 MB.
const MOST: usize = if cfg!(test) { 64 } else { 114_688 };

#[derive(Debug, Default)]
pub(super) struct Marks {
    /// Keyed, so that no client can choose names that collide.
    hasher: RandomState,
    floors: HashMap<u64, u64>,
    /// Floors and hashes, lowest first. Those that differ from `floors` are outdated.
    lowest: BinaryHeap<Reverse<(u64, u64)>>,
}

impl Marks {
    /// A channel is forgotten. Returns the floor that new channels start at, as far as marks had to merge into it.
    pub(super) fn leave(&mut self, address: &Address, floor: u64) -> u64 {
        let hash = self.hasher.hash_one(address);
        let known = self.floors.entry(hash).or_default();
        *known = floor.max(*known);
        self.lowest.push(Reverse((*known, hash)));
        let mut merged = 0;
        while self.floors.len() > MOST
            && let Some(Reverse((floor, hash))) = self.lowest.pop()
        {
            if self.floors.get(&hash) == Some(&floor) {
                self.floors.remove(&hash);
                merged = floor;
            }
        }
        if self.lowest.len() > self.floors.len() / 2 * 3 + 64 {
            self.lowest = self.floors.iter().map(|(hash, floor)| Reverse((*floor, *hash))).collect();
        }
        merged
    }

    /// A channel is there again. Returns its floor, 0 if it has left no mark.
    pub(super) fn take(&mut self, address: &Address) -> u64 {
        if self.floors.is_empty() { 0 } else { self.floors.remove(&self.hasher.hash_one(address)).unwrap_or(0) }
    }

    /// All channels start above every mark.
    pub(super) fn clear(&mut self) {
        (self.floors, self.lowest) = (HashMap::new(), BinaryHeap::new());
    }
}

#[cfg(all(test, not(tower_sse_loom)))]
mod tests {
    use super::*;
    use crate::types::Topic;

    #[test]
    fn a_mark_is_found_or_merged() {
        let mut marks = Marks::default();
        let address = |n: u64| Address::Topic(Topic::from(n));
        let mut merged = 0;
        for n in 1..=1_000 {
            merged = marks.leave(&address(n), n).max(merged);
            assert!(marks.floors.len() <= MOST && marks.lowest.len() <= 2 * MOST + 64);
        }
        assert_eq!(merged, 1_000 - MOST as u64);
        assert_eq!((marks.take(&address(merged)), marks.take(&address(1_000))), (0, 1_000));
        assert_eq!(marks.take(&address(1_000)), 0);
    }
}
