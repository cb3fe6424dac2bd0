//! The storage of one channel: a ring of records, the current value of each key, and
//! `trimmed_through`.
//!
//! On a shared log, the oldest records of a ring may be [`Outline`]s: only the shared log has these
//! records. An outline counts against the bounds of the channel like its record, with an estimate
//! of the record's size. Apart from that estimate, `trimmed_through` does not depend on whether a
//! channel has the records themselves.
//!
//! `trimmed_through` is the number of the newest record that the channel has dropped without a
//! replacement. It never decreases. A reader whose cursor is below it has missed a record and must
//! report a gap.

use std::collections::btree_map::BTreeMap;
use std::collections::hash_map::HashMap;
use std::collections::vec_deque::VecDeque;
use std::num::NonZeroU64;
use std::sync::Arc;

use smallvec::SmallVec;

use super::entry::Effect;
use super::time::Millis;
use crate::sync::Mutex;
use crate::types::ConnectionId;
use crate::types::retention::{Bounds, Kind, Retention};
use crate::wire::Frame;

// The following sizes were measured with 200,000 topics, and with 200,000 events of one topic. Each
// size includes a share of the tables that grow by doubling, and the overhead of the allocator.
/// The number of bytes that a record takes in addition to its frame.
pub(super) const RECORD_OVERHEAD: usize = 200;
/// The number of bytes that a current value takes in addition to its record and its key.
const VALUE_OVERHEAD: usize = 90;
/// The number of bytes that a channel takes in addition to its name, including its entries in the
/// sequencer's tables and heaps.
const CHANNEL_OVERHEAD: usize = 440;
/// The number of additional bytes that a channel takes while it has current values.
const VALUES_OVERHEAD: usize = 330;
/// The number of bytes that an outline takes.
const OUTLINE_BYTES: usize = 32;
/// The number of additional bytes that a channel takes while it has outlines.
const OUTLINES_OVERHEAD: usize = 64;

/// One record, shared by all channels of its audience.
#[derive(Debug)]
pub(crate) struct Record {
    pub(crate) sequence: u64,
    pub(crate) frame: Frame,
    pub(super) at: Millis,
    pub(super) effect: Effect,
    /// The connections that do not receive the record.
    pub(super) except: Box<[ConnectionId]>,
    /// The unique numbers of the channels of the audience. Empty if the audience has at most one
    /// channel, or if the record belongs to a block.
    pub(super) union: Box<[u64]>,
}

/// Records that were dropped under a lock, to be freed after the lock is released.
pub(super) type Dropped = SmallVec<[Arc<Record>; 4]>;

impl Record {
    pub(super) fn cost(&self) -> usize {
        self.frame.len() + RECORD_OVERHEAD
    }
}

#[derive(Debug)]
pub(super) struct Store {
    /// The number of the newest record that was dropped without a replacement.
    trimmed_through: u64,
    ring: Ring,
    /// The current values. `None` while the channel has none.
    keyed: Option<Box<Keyed>>,
    /// The length of the channel's name in bytes.
    name: u32,
    /// Whether the sequencer's heaps have an entry for the ring, and for the current values.
    pub(super) queued: PerPart<bool>,
    /// The time since which the channel is empty and has no listeners. `Some` while the sequencer's
    /// queue of idle channels has an entry for the channel. `NonZero`, so that an idle topic takes
    /// eight bytes less.
    pub(super) idle_since: Option<NonZeroU64>,
}

#[derive(Debug, Default)]
struct Ring {
    records: VecDeque<Arc<Record>>,
    /// The bytes of `records`.
    bytes: usize,
    /// The outlines of the records before `records`. `None` while the ring has none.
    outlines: Option<Box<Outlines>>,
}

/// The place of a record in a ring, without the record. Only the shared log has the record.
#[derive(Clone, Copy, Debug)]
pub(super) struct Outline {
    pub(super) sequence: u64,
    pub(super) at: Millis,
    /// The approximate bytes of the record, which count against the bounds of the channel.
    pub(super) cost: u32,
}

#[derive(Debug, Default)]
struct Outlines {
    entries: VecDeque<Outline>,
    /// The sum of the costs of `entries`.
    cost: usize,
}

#[derive(Debug, Default)]
struct Keyed {
    by_key: HashMap<Arc<str>, u64>,
    by_sequence: BTreeMap<u64, Arc<Record>>,
    bytes: usize,
}

/// A part of a store. Each part has its own bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Ring,
    Keyed,
}

/// One value for each part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct PerPart<T> {
    pub(super) ring: T,
    pub(super) keyed: T,
}

impl<T> PerPart<T> {
    pub(super) fn of(&mut self, part: Part) -> &mut T {
        match part {
            Part::Ring => &mut self.ring,
            Part::Keyed => &mut self.keyed,
        }
    }
}

impl PerPart<usize> {
    /// Changes a store, and updates `self`, the sum of the bytes of all stores.
    pub(super) fn change<R>(&mut self, store: &Mutex<Store>, change: impl FnOnce(&mut Store) -> R) -> R {
        let mut store = store.lock();
        let before = store.bytes();
        let result = change(&mut store);
        let after = store.bytes();
        self.ring = self.ring + after.ring - before.ring;
        self.keyed = self.keyed + after.keyed - before.keyed;
        result
    }
}

impl Store {
    /// Creates an empty store for a channel whose name has `name` bytes.
    pub(super) fn new(trimmed_through: u64, name: usize) -> Self {
        let name = u32::try_from(name).unwrap_or(u32::MAX);
        Self { trimmed_through, ring: Ring::default(), keyed: None, name, queued: PerPart::default(), idle_since: None }
    }

    pub(super) fn trimmed_through(&self) -> u64 {
        self.trimmed_through
    }

    /// Raises `trimmed_through` to this number, unless it is already higher.
    pub(super) fn raise_trimmed_through(&mut self, number: u64) {
        self.trimmed_through = self.trimmed_through.max(number);
    }

    /// Removes all records and values, and keeps `trimmed_through`. Returns the removed contents,
    /// to be freed after the sequencer's lock is released.
    #[must_use]
    pub(super) fn clear(&mut self) -> Self {
        let empty = Self { idle_since: self.idle_since, ..Self::new(self.trimmed_through, self.name as usize) };
        std::mem::replace(self, empty)
    }

    /// Removes the current values. Returns them, to be freed after the sequencer's lock is
    /// released.
    #[must_use]
    pub(super) fn clear_values(&mut self) -> Self {
        self.queued.keyed = false;
        Self { keyed: self.keyed.take(), ..Self::new(0, 0) }
    }

    pub(super) fn has_values(&self) -> bool {
        self.keyed.is_some()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.ring.is_empty() && self.keyed.is_none()
    }

    /// Returns the memory of the store in bytes. The channel itself counts while it has records or
    /// values, or is queued as idle. An empty channel with listeners does not count, because its
    /// memory is part of the memory of their connections.
    pub(super) fn bytes(&self) -> PerPart<usize> {
        let keyed = self.keyed.as_ref().map_or(0, |keyed| keyed.bytes + VALUES_OVERHEAD);
        let mut bytes = PerPart { ring: self.ring.memory(), keyed };
        let channel = CHANNEL_OVERHEAD + self.name as usize;
        if !self.ring.is_empty() || self.idle_since.is_some() {
            bytes.ring += channel;
        } else if self.keyed.is_some() {
            bytes.keyed += channel;
        }
        bytes
    }

    /// Stores a record that is newer than all records in the ring, and drops the records that no
    /// longer fit.
    pub(super) fn apply(&mut self, record: Arc<Record>, retention: &Retention, dropped: &mut Dropped) {
        match &record.effect {
            Effect::Sets(key) if retention.kind == Kind::LatestPerKey => {
                let key = Arc::clone(key);
                self.keyed.get_or_insert_default().set(key, record);
                self.fit(Part::Keyed, &retention.keyed, dropped);
                return;
            }
            // The record of a removal goes into the ring, so that readers that have received the
            // value also receive its removal.
            Effect::Removes(key) => {
                if let Some(keyed) = &mut self.keyed {
                    keyed.remove_older(key, record.sequence);
                }
            }
            Effect::Sets(_) | Effect::Nothing => {}
        }
        self.ring.push(record);
        self.fit(Part::Ring, &retention.ring, dropped);
        self.tidy();
    }

    /// Stores the outline of a record that is newer than all others, and drops the oldest ones
    /// that no longer fit. The ring must have no records.
    pub(super) fn outline(&mut self, outline: Outline, retention: &Retention, dropped: &mut Dropped) {
        self.ring.outlines.get_or_insert_default().push(outline);
        self.fit(Part::Ring, &retention.ring, dropped);
    }

    /// Replaces the oldest records in the ring by their outlines, at most `most` records. Returns
    /// the number of replaced records, and whether the ring now has no records.
    pub(super) fn outline_oldest(&mut self, most: usize, dropped: &mut Dropped) -> (usize, bool) {
        let mut count = 0;
        while count < most
            && let Some(record) = self.ring.pop()
        {
            let cost = u32::try_from(record.cost()).unwrap_or(u32::MAX);
            let outlines = self.ring.outlines.get_or_insert_default();
            outlines.push(Outline { sequence: record.sequence, at: record.at, cost });
            dropped.push(record);
            count += 1;
        }
        (count, self.ring.records.is_empty())
    }

    /// Drops the outlines of the records up to and including this number.
    pub(super) fn drop_outlines(&mut self, through: u64) {
        while self.first_outline(0).is_some_and(|first| first <= through) {
            let dropped = self.ring.pop_outline();
            self.raise_trimmed_through(dropped.unwrap_or(0));
        }
    }

    /// Returns the number of the first record after this number that only the shared log has.
    pub(super) fn first_outline(&self, after: u64) -> Option<u64> {
        let entries = &self.ring.outlines.as_ref()?.entries;
        let start = entries.partition_point(|outline| outline.sequence <= after);
        entries.get(start).map(|outline| outline.sequence)
    }

    /// Returns the number of the last record that only the shared log has, or zero.
    pub(super) fn outlined_through(&self) -> u64 {
        self.ring.outlines.as_ref().and_then(|outlines| outlines.entries.back()).map_or(0, |outline| outline.sequence)
    }

    /// Returns the number and the time of the oldest record of one part.
    pub(super) fn oldest(&self, part: Part) -> Option<(u64, Millis)> {
        let record = match part {
            Part::Ring => match &self.ring.outlines {
                Some(outlines) => return outlines.entries.front().map(|outline| (outline.sequence, outline.at)),
                None => self.ring.records.front()?,
            },
            Part::Keyed => self.keyed.as_ref()?.by_sequence.first_key_value()?.1,
        };
        Some((record.sequence, record.at))
    }

    pub(super) fn drop_oldest(&mut self, part: Part, dropped: &mut Dropped) {
        if part == Part::Ring
            && let Some(sequence) = self.ring.pop_outline()
        {
            self.trimmed_through = self.trimmed_through.max(sequence);
            return;
        }
        let oldest = match part {
            Part::Ring => self.ring.pop(),
            Part::Keyed => self.keyed.as_mut().and_then(|keyed| keyed.pop()),
        };
        if let Some(record) = oldest {
            self.trimmed_through = self.trimmed_through.max(record.sequence);
            dropped.push(record);
        }
        self.tidy();
    }

    /// Returns the records in the ring with `after < number <= upto`, oldest first.
    pub(super) fn ring_between(&self, after: u64, upto: u64) -> impl Iterator<Item = &Arc<Record>> + Clone {
        let records = &self.ring.records;
        let count = records.len();
        // Most reads want only the newest record, or none: these cases avoid the binary search.
        let is_newest = |back: usize| count < back || records[count - back].sequence <= after;
        let start = if is_newest(1) {
            count
        } else if is_newest(2) {
            count - 1
        } else {
            records.partition_point(|record| record.sequence <= after)
        };
        self.ring.records.range(start..).take_while(move |record| record.sequence <= upto)
    }

    /// Returns the current values with `after < number <= upto`, oldest first.
    pub(super) fn values_between(&self, after: u64, upto: u64) -> impl Iterator<Item = &Arc<Record>> {
        let keyed = self.keyed.as_ref().filter(|_| after < upto);
        keyed.into_iter().flat_map(move |keyed| keyed.by_sequence.range(after + 1..=upto).map(|(_, record)| record))
    }

    /// Returns the `count` newest numbers in the ring with `after < number <= upto`, newest first,
    /// including those of records that only the shared log has.
    pub(super) fn newest(&self, count: usize, after: u64, upto: u64) -> impl Iterator<Item = u64> {
        let outlines = self.ring.outlines.iter().flat_map(|outlines| outlines.entries.iter().rev());
        let records = self.ring.records.iter().rev().map(|record| record.sequence);
        let numbers = records.chain(outlines.map(|outline| outline.sequence));
        numbers.skip_while(move |number| *number > upto).take_while(move |number| *number > after).take(count)
    }

    /// Drops the oldest records of a part until it is within its bounds. The newest record stays,
    /// however large it is. Otherwise no reader could ever receive it.
    fn fit(&mut self, part: Part, bounds: &Bounds, dropped: &mut Dropped) {
        loop {
            let (count, bytes) = match part {
                Part::Ring => self.ring.size(),
                Part::Keyed => self.keyed.as_ref().map_or((0, 0), |keyed| (keyed.by_sequence.len(), keyed.bytes)),
            };
            if count <= 1 || (count <= bounds.count && bytes <= bounds.bytes) {
                return;
            }
            self.drop_oldest(part, dropped);
        }
    }

    fn tidy(&mut self) {
        if self.keyed.as_ref().is_some_and(|keyed| keyed.by_sequence.is_empty()) {
            self.keyed = None;
        }
    }
}

impl Outlines {
    fn push(&mut self, outline: Outline) {
        self.cost += outline.cost as usize;
        if self.entries.len() == self.entries.capacity() {
            // Most topics have few outlines, and spare capacity of thousands of topics adds up.
            self.entries.reserve_exact(self.entries.len() / 4 + 2);
        }
        self.entries.push_back(outline);
    }
}

impl Ring {
    fn is_empty(&self) -> bool {
        self.records.is_empty() && self.outlines.is_none()
    }

    /// Returns the number and the bytes of the records, including those that only the shared log
    /// has.
    fn size(&self) -> (usize, usize) {
        let (count, cost) = self.outlines.as_ref().map_or((0, 0), |outlines| (outlines.entries.len(), outlines.cost));
        (self.records.len() + count, self.bytes + cost)
    }

    /// Returns the memory of the ring in bytes.
    fn memory(&self) -> usize {
        let outlines = self.outlines.as_ref();
        self.bytes + outlines.map_or(0, |outlines| OUTLINES_OVERHEAD + outlines.entries.len() * OUTLINE_BYTES)
    }

    /// Removes the oldest outline, and returns its number.
    fn pop_outline(&mut self) -> Option<u64> {
        let outlines = self.outlines.as_mut()?;
        let oldest = outlines.entries.pop_front()?;
        outlines.cost -= oldest.cost as usize;
        if outlines.entries.is_empty() {
            self.outlines = None;
        } else if outlines.entries.len() * 4 < outlines.entries.capacity() {
            outlines.entries.shrink_to(outlines.entries.len() * 2);
        }
        Some(oldest.sequence)
    }

    fn push(&mut self, record: Arc<Record>) {
        self.bytes += record.cost();
        self.records.push_back(record);
    }

    fn pop(&mut self) -> Option<Arc<Record>> {
        let record = self.records.pop_front()?;
        self.bytes -= record.cost();
        if self.records.is_empty() {
            self.records = VecDeque::new();
        } else if self.records.len() * 4 < self.records.capacity() {
            self.records.shrink_to(self.records.len() * 2);
        }
        Some(record)
    }
}

impl Keyed {
    fn set(&mut self, key: Arc<str>, record: Arc<Record>) {
        // The known value may be newer than this record: values are loaded from the shared log
        // before the records that precede them are applied.
        if self.by_key.get(&key).is_some_and(|known| *known >= record.sequence) {
            return;
        }
        self.remove(&key);
        self.bytes += record.cost() + key.len() + VALUE_OVERHEAD;
        self.by_key.insert(key, record.sequence);
        self.by_sequence.insert(record.sequence, record);
    }

    /// Removes the value of a key if it is older than `than`. A loaded value may be newer than the
    /// removal: see [`set`](Self::set).
    fn remove_older(&mut self, key: &str, than: u64) {
        if self.by_key.get(key).is_some_and(|known| *known < than) {
            self.remove(key);
        }
    }

    fn remove(&mut self, key: &str) {
        if let Some(old) = self.by_key.remove(key).and_then(|sequence| self.by_sequence.remove(&sequence)) {
            self.bytes -= old.cost() + key.len() + VALUE_OVERHEAD;
        }
    }

    fn pop(&mut self) -> Option<Arc<Record>> {
        let (_, record) = self.by_sequence.pop_first()?;
        if let Effect::Sets(key) = &record.effect {
            self.by_key.remove(key);
            self.bytes -= record.cost() + key.len() + VALUE_OVERHEAD;
        }
        Some(record)
    }
}
