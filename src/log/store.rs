//! What one channel keeps: a ring of records, the current value of each key, and the floor below which it cannot speak.

use std::collections::btree_map::BTreeMap;
use std::collections::hash_map::HashMap;
use std::collections::vec_deque::VecDeque;
use std::sync::Arc;

use smallvec::SmallVec;

use super::entry::Effect;
use super::time::Millis;
use crate::sync::Mutex;
use crate::types::ConnectionId;
use crate::types::retention::{Bounds, Kind, Retention};
use crate::wire::Frame;

// Measured with 200,000 topics, and with 200,000 events of one topic. Each includes a share of the tables that grow by
// doubling, and what the allocator adds.
/// The bytes that a record takes beside its frame.
pub(super) const RECORD_OVERHEAD: usize = 200;
/// The bytes that a current value takes beside its record and its key.
const VALUE_OVERHEAD: usize = 90;
/// The bytes that a channel takes beside its name, with its entries in the sequencer's tables and heaps.
const CHANNEL_OVERHEAD: usize = 440;
/// The bytes that a channel takes in addition while it has current values.
const VALUES_OVERHEAD: usize = 330;

/// One record, shared by all channels of its audience.
#[derive(Debug)]
pub(crate) struct Record {
    pub(crate) sequence: u64,
    pub(crate) frame: Frame,
    pub(super) at: Millis,
    pub(super) effect: Effect,
    /// Who does not get it.
    pub(super) except: Box<[ConnectionId]>,
    /// The channels of a union, each by its unique number. Empty if it has one channel only.
    pub(super) union: Box<[u64]>,
}

/// Records that were dropped under a lock, to be freed after it.
pub(super) type Dropped = SmallVec<[Arc<Record>; 4]>;

impl Record {
    pub(super) fn cost(&self) -> usize {
        self.frame.len() + RECORD_OVERHEAD
    }
}

#[derive(Debug)]
pub(super) struct Store {
    /// The newest record that was dropped without a newer one in its place.
    floor: u64,
    ring: Ring,
    /// Only where the newest of each key is kept, and only while there is one.
    keyed: Option<Box<Keyed>>,
    /// The length of the channel's name.
    name: u32,
    /// Whether the sequencer's heaps have an entry for the two parts.
    pub(super) queued: PerPart<bool>,
    /// Since when it is empty and without listeners, while the sequencer's queue of idle channels has an entry for it.
    pub(super) idle_since: Option<Millis>,
}

#[derive(Debug, Default)]
struct Ring {
    records: VecDeque<Arc<Record>>,
    bytes: usize,
}

#[derive(Debug, Default)]
struct Keyed {
    by_key: HashMap<Arc<str>, u64>,
    by_sequence: BTreeMap<u64, Arc<Record>>,
    bytes: usize,
}

/// The two parts of a store, each with bounds of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Ring,
    Keyed,
}

/// Something for each part.
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
    /// Changes a store. `self` is the sum over all stores and follows the change.
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
    /// An empty one, for a channel whose name has so many bytes.
    pub(super) fn new(floor: u64, name: usize) -> Self {
        let name = u32::try_from(name).unwrap_or(u32::MAX);
        Self { floor, ring: Ring::default(), keyed: None, name, queued: PerPart::default(), idle_since: None }
    }

    pub(super) fn floor(&self) -> u64 {
        self.floor
    }

    /// Records up to here are missing.
    pub(super) fn raise_floor(&mut self, number: u64) {
        self.floor = self.floor.max(number);
    }

    /// Holds nothing any more. The floor stays. Returns what it held, to be freed after the lock.
    #[must_use]
    pub(super) fn clear(&mut self) -> Self {
        let empty = Self { idle_since: self.idle_since, ..Self::new(self.floor, self.name as usize) };
        std::mem::replace(self, empty)
    }

    /// The same for the current values only.
    #[must_use]
    pub(super) fn clear_values(&mut self) -> Self {
        self.queued.keyed = false;
        Self { keyed: self.keyed.take(), ..Self::new(0, 0) }
    }

    pub(super) fn has_values(&self) -> bool {
        self.keyed.is_some()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.ring.records.is_empty() && self.keyed.is_none()
    }

    /// The memory that is held. A channel counts while it holds records, and while it waits to be forgotten. An empty
    /// channel with listeners belongs to their connections.
    pub(super) fn bytes(&self) -> PerPart<usize> {
        let keyed = self.keyed.as_ref().map_or(0, |keyed| keyed.bytes + VALUES_OVERHEAD);
        let mut bytes = PerPart { ring: self.ring.bytes, keyed };
        let channel = CHANNEL_OVERHEAD + self.name as usize;
        if !self.ring.records.is_empty() || self.idle_since.is_some() {
            bytes.ring += channel;
        } else if self.keyed.is_some() {
            bytes.keyed += channel;
        }
        bytes
    }

    /// Takes in a record that is newer than all others here, and drops what no longer fits.
    pub(super) fn apply(&mut self, record: Arc<Record>, retention: &Retention, dropped: &mut Dropped) {
        match &record.effect {
            Effect::Sets(key) if retention.kind == Kind::LatestPerKey => {
                let key = Arc::clone(key);
                self.keyed.get_or_insert_default().set(key, record);
                self.fit(Part::Keyed, &retention.keyed, dropped);
                return;
            }
            // Who saw the value must hear of its end, so the news of it stays in the ring for a while.
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

    /// The number and time of the oldest record of one part.
    pub(super) fn oldest(&self, part: Part) -> Option<(u64, Millis)> {
        let record = match part {
            Part::Ring => self.ring.records.front()?,
            Part::Keyed => self.keyed.as_ref()?.by_sequence.first_key_value()?.1,
        };
        Some((record.sequence, record.at))
    }

    pub(super) fn drop_oldest(&mut self, part: Part, dropped: &mut Dropped) {
        let oldest = match part {
            Part::Ring => self.ring.pop(),
            Part::Keyed => self.keyed.as_mut().and_then(|keyed| keyed.pop()),
        };
        if let Some(record) = oldest {
            self.floor = self.floor.max(record.sequence);
            dropped.push(record);
        }
        self.tidy();
    }

    /// The records in the ring of `after < number <= upto`, oldest first.
    pub(super) fn ring_between(&self, after: u64, upto: u64) -> impl Iterator<Item = &Arc<Record>> + Clone {
        let records = &self.ring.records;
        let count = records.len();
        // Mostly it is the newest that is wanted, or none.
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

    /// The current values of `after < number <= upto`, oldest first.
    pub(super) fn values_between(&self, after: u64, upto: u64) -> impl Iterator<Item = &Arc<Record>> {
        let keyed = self.keyed.as_ref().filter(|_| after < upto);
        keyed.into_iter().flat_map(move |keyed| keyed.by_sequence.range(after + 1..=upto).map(|(_, record)| record))
    }

    /// The newest numbers in the ring of `after < number <= upto`, newest first.
    pub(super) fn newest(&self, count: usize, after: u64, upto: u64) -> impl Iterator<Item = u64> {
        let numbers = self.ring.records.iter().rev().map(|record| record.sequence);
        numbers.skip_while(move |number| *number > upto).take_while(move |number| *number > after).take(count)
    }

    /// The newest record of a part stays, however large: else a reader that is there could never see it.
    fn fit(&mut self, part: Part, bounds: &Bounds, dropped: &mut Dropped) {
        loop {
            let (count, bytes) = match part {
                Part::Ring => (self.ring.records.len(), self.ring.bytes),
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

impl Ring {
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
        // A value that was loaded before the records from before it are read again.
        if self.by_key.get(&key).is_some_and(|known| *known >= record.sequence) {
            return;
        }
        self.remove(&key);
        self.bytes += record.cost() + key.len() + VALUE_OVERHEAD;
        self.by_key.insert(key, record.sequence);
        self.by_sequence.insert(record.sequence, record);
    }

    /// Not a value that was loaded before the records from before it are read again.
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
