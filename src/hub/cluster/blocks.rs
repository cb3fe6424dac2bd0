//! Blocks of the shared log that were read from the broker, and the connections that wait for
//! blocks.
//!
//! 1. Blocks begin at multiples of [`RECORDS`] in their epoch, or at the end of a shorter block. So
//!    clients that disconnected at about the same time need the same block. A block is kept while
//!    there is room, so that it is normally read only once.
//! 2. The hub holds a weak reference to each connection that waits for a block, and wakes the
//!    connection once when the block is available.

use std::collections::btree_map::BTreeMap;
use std::collections::hash_map::HashMap;
use std::sync::{Arc, Weak};

use crate::backplane::ReadLimit;
use crate::hub::connection::handle::ConnectionHandle;
use crate::log::Block;
use crate::types::ConnectionId;

/// The maximum number of records in a block.
const RECORDS: u64 = 512;
/// The limit of a read of a block.
pub(super) const LIMIT: ReadLimit = ReadLimit::records(RECORDS as usize).bytes(1 << 20);
/// The maximum total size of the kept blocks in bytes. The newest block is kept even if it is
/// larger.
const ROOM: usize = 16 << 20;

#[derive(Debug, Default)]
pub(super) struct Blocks {
    /// The kept blocks, by the number after which each begins.
    kept: BTreeMap<u64, Kept>,
    bytes: usize,
    /// A counter that increases with every use of a block.
    clock: u64,
    /// The connections that wait for a block, by the number after which it begins.
    wanted: BTreeMap<u64, Waiting>,
}

pub(super) type Waiting = HashMap<ConnectionId, Weak<ConnectionHandle>>;

#[derive(Debug)]
struct Kept {
    block: Arc<Block>,
    used: u64,
}

impl Blocks {
    /// Returns the kept block with the records directly after `number`, which must not be below
    /// `base`, the beginning of the epoch. If no such block is kept, registers the connection, so
    /// that the backfill task reads the block and then wakes the connection.
    pub(super) fn find_or_wait(
        &mut self,
        base: u64,
        number: u64,
        handle: &Arc<ConnectionHandle>,
    ) -> Option<Arc<Block>> {
        let found = self.find(base, number);
        if found.is_none() {
            let start = self.start(base, number);
            self.wanted.entry(start).or_default().insert(handle.id(), Arc::downgrade(handle));
        }
        found
    }

    pub(super) fn is_wanted(&self) -> bool {
        !self.wanted.is_empty()
    }

    /// Returns the number after which the next wanted block begins. This is the lowest such number
    /// above `before`, or the lowest of all if none is above. So a block that cannot be read does
    /// not delay the other blocks. Forgets connections that have ended, and returns `None` if no
    /// connection waits.
    pub(super) fn next_wanted(&mut self, before: u64) -> Option<u64> {
        self.wanted.retain(|_, waiting| {
            waiting.retain(|_, handle| handle.upgrade().is_some_and(|handle| !handle.is_gone()));
            !waiting.is_empty()
        });
        let next = self.wanted.range(before + 1..).next().or_else(|| self.wanted.first_key_value());
        next.map(|(start, _)| *start)
    }

    /// Removes and returns the connections that wait for the block that begins after `start`.
    pub(super) fn take_waiting(&mut self, start: u64) -> Waiting {
        self.wanted.remove(&start).unwrap_or_default()
    }

    /// Removes and returns the connections that wait for blocks of ended epochs. `base` is the
    /// number at which the current epoch begins.
    pub(super) fn take_waiting_below(&mut self, base: u64) -> Waiting {
        let rest = self.wanted.split_off(&base);
        std::mem::replace(&mut self.wanted, rest).into_values().flatten().collect()
    }

    /// Returns the kept block with the records directly after `number`, in the epoch that begins at
    /// `base`.
    fn find(&mut self, base: u64, number: u64) -> Option<Arc<Block>> {
        let (_, kept) = self.kept.range_mut(..=number).next_back()?;
        if !kept.block.covers(base, number) {
            return None;
        }
        self.clock += 1;
        kept.used = self.clock;
        Some(Arc::clone(&kept.block))
    }

    /// Returns the number after which a block with the records directly after `number` has to
    /// begin.
    fn start(&self, base: u64, number: u64) -> u64 {
        let start = base + (number - base) / RECORDS * RECORDS;
        let before = self.kept.range(..=number).next_back().filter(|(_, kept)| kept.block.base == base);
        before.map_or(start, |(_, kept)| start.max(kept.block.upto.min(number)))
    }

    /// Keeps a block, and drops the least recently used blocks while all blocks together exceed
    /// [`ROOM`].
    pub(super) fn keep(&mut self, block: Block) {
        self.clock += 1;
        self.bytes += block.bytes;
        let kept = Kept { block: Arc::new(block), used: self.clock };
        if let Some(replaced) = self.kept.insert(kept.block.after, kept) {
            self.bytes -= replaced.block.bytes;
        }
        while self.bytes > ROOM && self.kept.len() > 1 {
            // A linear search is enough for so few blocks.
            let Some((&oldest, _)) = self.kept.iter().min_by_key(|(_, kept)| kept.used) else { return };
            self.bytes -= self.kept.remove(&oldest).map_or(0, |kept| kept.block.bytes);
        }
    }
}
