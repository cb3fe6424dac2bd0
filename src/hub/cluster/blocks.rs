//! Blocks of the shared log that were read from the broker, and the connections that wait for one.
//!
//! 1. Blocks begin at fixed places, so that clients from about the same time need the same one. A
//!    block is read once, and kept while there is room.
//! 2. A connection that needs a block waits for it by a weak reference, and is woken once when the block is here.

use std::collections::btree_map::BTreeMap;
use std::collections::hash_map::HashMap;
use std::sync::{Arc, Weak};

use crate::hub::connection::handle::ConnectionHandle;
use crate::log::Block;
use crate::types::ConnectionId;

/// How many records one block has at most.
const RECORDS: u64 = 512;
/// How many bytes of blocks are kept, beside the newest.
const ROOM: usize = 16 << 20;

#[derive(Debug)]
pub(super) struct Blocks {
    /// By the number after which they begin.
    kept: BTreeMap<u64, Kept>,
    bytes: usize,
    /// Goes up with every use.
    clock: u64,
    /// The connections that wait for what comes after a number.
    wanted: BTreeMap<u64, Waiting>,
    /// How many records are asked for at a time: fewer where they are large.
    pub(super) count: usize,
}

pub(super) type Waiting = HashMap<ConnectionId, Weak<ConnectionHandle>>;

impl Default for Blocks {
    fn default() -> Self {
        Self { kept: BTreeMap::new(), bytes: 0, clock: 0, wanted: BTreeMap::new(), count: RECORDS as usize }
    }
}

#[derive(Debug)]
struct Kept {
    block: Arc<Block>,
    used: u64,
}

impl Blocks {
    /// The block with what comes after a number, which is not below the base of the log. If it is not here yet, the
    /// connection waits for it.
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

    /// The next number after which records are wanted: the one above `before`, or else the lowest, so that none waits
    /// behind one that cannot be read.
    pub(super) fn next_wanted(&mut self, before: u64) -> Option<u64> {
        self.wanted.retain(|_, waiting| {
            waiting.retain(|_, handle| handle.upgrade().is_some_and(|handle| !handle.is_gone()));
            !waiting.is_empty()
        });
        let next = self.wanted.range(before + 1..).next().or_else(|| self.wanted.first_key_value());
        next.map(|(start, _)| *start)
    }

    /// Takes the connections out that wait for what comes after a number.
    pub(super) fn take_waiting(&mut self, start: u64) -> Waiting {
        self.wanted.remove(&start).unwrap_or_default()
    }

    /// The same for numbers of a life of the log that is over.
    pub(super) fn take_waiting_below(&mut self, base: u64) -> Waiting {
        let rest = self.wanted.split_off(&base);
        std::mem::replace(&mut self.wanted, rest).into_values().flatten().collect()
    }

    /// The block that has what comes after a number, in the life that begins at `base`.
    fn find(&mut self, base: u64, number: u64) -> Option<Arc<Block>> {
        let (_, kept) = self.kept.range_mut(..=number).next_back()?;
        if !kept.block.covers(base, number) {
            return None;
        }
        self.clock += 1;
        kept.used = self.clock;
        Some(Arc::clone(&kept.block))
    }

    /// Where the block begins that would have what comes after a number.
    fn start(&self, base: u64, number: u64) -> u64 {
        let start = base + (number - base) / RECORDS * RECORDS;
        let before = self.kept.range(..=number).next_back().filter(|(_, kept)| kept.block.base == base);
        before.map_or(start, |(_, kept)| start.max(kept.block.upto.min(number)))
    }

    /// Keeps a block. Those that follow have more records if this one is small, and fewer if it is large.
    pub(super) fn keep(&mut self, block: Block) {
        self.count = if block.is_large() { (self.count / 2).max(1) } else { (self.count * 2).min(RECORDS as usize) };
        self.clock += 1;
        self.bytes += block.bytes;
        let kept = Kept { block: Arc::new(block), used: self.clock };
        if let Some(before) = self.kept.insert(kept.block.after, kept) {
            self.bytes -= before.block.bytes;
        }
        while self.bytes > ROOM && self.kept.len() > 1 {
            // There are few.
            let Some((&oldest, _)) = self.kept.iter().min_by_key(|(_, kept)| kept.used) else { return };
            self.bytes -= self.kept.remove(&oldest).map_or(0, |kept| kept.block.bytes);
        }
    }
}
