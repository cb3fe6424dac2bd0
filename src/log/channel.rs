//! A channel: the records of one address, and the connections that listen to it.
//!
//! Listeners are added and removed only under the sequencer's lock. So the sequencer's count of the
//! listeners of a record is exact.

use std::cmp::Reverse;
use std::collections::binary_heap::BinaryHeap;
use std::sync::Arc;

use super::latest::Latest;
use super::listener::Listener;
use super::store::Store;
use crate::macros::opaque_debug;
use crate::sync::{AtomicBool, AtomicU64, AtomicUsize, Mutex, Ordering};
use crate::types::{Address, ConnectionId};

#[derive(Debug)]
pub(crate) struct Channel {
    pub(super) address: Address,
    /// The index of the channel's word in the table of latest numbers. Reused after the channel is
    /// removed.
    pub(super) number: u32,
    /// A copy of that word, for readers of a few channels.
    latest: AtomicU64,
    /// A number that no other channel ever gets.
    pub(super) unique: u64,
    pub(super) policy: usize,
    pub(super) store: Mutex<Store>,
    listeners: Mutex<Listeners>,
    /// The number of `listeners`. Changes only under the sequencer's lock, so that the `receivers`
    /// of an appended record are exact.
    listening: AtomicUsize,
    /// The number of slots, including free ones, that [`visit`](Self::visit) covers.
    slots: AtomicUsize,
    /// The records up to and including this number are incomplete, also in the shared log. Zero if
    /// no stream has found a loss there.
    lost_through: AtomicU64,
    /// Whether the channel is [dormant](super::dormancy). Changes only under the sequencer's lock.
    dormant: AtomicBool,
    /// Whether the channel is in the queue of deferred wakes.
    pub(super) marked: AtomicBool,
}

/// The listeners of a channel, in slots that do not move. Otherwise a visit in several steps could
/// skip a listener. The lowest free slot is used first and free slots at the end are removed, so
/// that few listeners occupy few slots.
#[derive(Default)]
struct Listeners {
    slots: Vec<Option<Arc<dyn Listener>>>,
    free: BinaryHeap<Reverse<u32>>,
}

opaque_debug!(|listeners: Listeners| { slots: listeners.slots.len() });

impl Channel {
    pub(super) fn new(address: Address, number: u32, unique: u64, policy: usize, trimmed_through: u64) -> Self {
        let store = Store::new(trimmed_through, address.name_len());
        Self {
            address,
            number,
            latest: AtomicU64::new(trimmed_through),
            unique,
            policy,
            store: Mutex::new(store),
            listeners: Mutex::default(),
            listening: AtomicUsize::new(0),
            slots: AtomicUsize::new(0),
            lost_through: AtomicU64::new(0),
            dormant: AtomicBool::new(false),
            marked: AtomicBool::new(false),
        }
    }

    /// Returns the channel's latest number. A reader that has loaded `visible_through` sees every
    /// latest number that was written before it.
    pub(super) fn latest(&self) -> u64 {
        self.latest.load(Ordering::Acquire)
    }

    /// Raises the channel's latest number, unless it is already higher. Called under the
    /// sequencer's lock.
    pub(super) fn raise_latest(&self, table: &Latest, sequence: u64) {
        self.latest.fetch_max(sequence, Ordering::AcqRel);
        table.raise(self.number as usize, sequence);
    }

    /// Notes that a stream has found a loss in the shared log, up to and including this number.
    pub(super) fn note_lost(&self, through: u64) {
        self.lost_through.fetch_max(through, Ordering::AcqRel);
    }

    /// Returns the number of [`note_lost`](Self::note_lost), or zero.
    pub(super) fn lost_through(&self) -> u64 {
        self.lost_through.load(Ordering::Acquire)
    }

    /// Returns whether the channel has only the outlines of records. Called under the sequencer's
    /// lock.
    pub(super) fn is_dormant(&self) -> bool {
        self.dormant.load(Ordering::Acquire)
    }

    pub(super) fn set_dormant(&self, is_dormant: bool) {
        self.dormant.store(is_dormant, Ordering::Release);
    }

    pub(super) fn listening(&self) -> usize {
        self.listening.load(Ordering::Acquire)
    }

    pub(super) fn slots(&self) -> usize {
        self.slots.load(Ordering::Acquire)
    }

    pub(super) fn add_listener(&self, listener: Arc<dyn Listener>) -> u32 {
        let mut listeners = self.listeners.lock();
        let slot = listeners.insert(listener);
        self.slots.store(listeners.slots.len(), Ordering::Release);
        self.listening.fetch_add(1, Ordering::AcqRel);
        slot
    }

    pub(super) fn remove_listener(&self, slot: u32) {
        let mut listeners = self.listeners.lock();
        if listeners.remove(slot) {
            self.slots.store(listeners.slots.len(), Ordering::Release);
            self.listening.fetch_sub(1, Ordering::AcqRel);
        }
    }

    /// Returns the connections that listen now.
    pub(super) fn listeners(&self) -> Vec<ConnectionId> {
        self.listeners.lock().slots.iter().flatten().map(|listener| listener.id()).collect()
    }

    /// Calls `each` for the listeners in up to `max` slots, starting at the slot `from`. Returns
    /// the slot to continue from, or `None` after the last slot.
    pub(super) fn visit(&self, from: usize, max: usize, mut each: impl FnMut(&dyn Listener)) -> Option<usize> {
        let listeners = self.listeners.lock();
        let end = listeners.slots.len();
        let stop = end.min(from + max);
        listeners.slots.get(from..stop)?.iter().flatten().for_each(|listener| each(&**listener));
        (stop < end).then_some(stop)
    }
}

impl Listeners {
    fn insert(&mut self, listener: Arc<dyn Listener>) -> u32 {
        while let Some(Reverse(slot)) = self.free.pop() {
            // Slots at the end are removed while their numbers are still in `free`.
            if let Some(place) = self.slots.get_mut(slot as usize) {
                *place = Some(listener);
                return slot;
            }
        }
        if self.slots.len() == self.slots.capacity() {
            // Most channels have one listener, and spare capacity of thousands of channels adds up.
            self.slots.reserve_exact(self.slots.len() / 8 + 1);
        }
        self.slots.push(Some(listener));
        (self.slots.len() - 1) as u32
    }

    fn remove(&mut self, slot: u32) -> bool {
        if self.slots.get_mut(slot as usize).and_then(Option::take).is_none() {
            return false;
        }
        self.free.push(Reverse(slot));
        while self.slots.last().is_some_and(Option::is_none) {
            self.slots.pop();
        }
        if self.slots.is_empty() {
            *self = Self::default();
        } else if self.slots.len() < self.slots.capacity() / 4 {
            let end = self.slots.len();
            self.slots.shrink_to(end * 2);
            self.free.retain(|Reverse(slot)| (*slot as usize) < end);
            self.free.shrink_to(end);
        }
        true
    }
}

#[cfg(all(test, not(tower_sse_loom)))]
mod tests {
    use super::*;
    use crate::log::CursorHandle;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn listeners_are_all_visited_and_occupy_few_slots(steps in proptest::collection::vec(any::<u8>(), 0..300)) {
            let channel = Channel::new(Address::Everyone(crate::types::ScopeName::ROOT), 0, 0, 0, 0);
            let mut added: Vec<(u32, Arc<CursorHandle>)> = Vec::new();
            for step in steps {
                if step < 140 || added.is_empty() {
                    let subscriber = Arc::new(CursorHandle::new(ConnectionId::from_bits(0)));
                    added.push((channel.add_listener(Arc::clone(&subscriber) as _), subscriber));
                } else {
                    let (slot, _) = added.swap_remove(step as usize % added.len());
                    channel.remove_listener(slot);
                    channel.remove_listener(slot);
                }
                prop_assert_eq!(channel.listening(), added.len());
                let (mut visited, mut from) = (0, Some(0));
                while let Some(slot) = from {
                    from = channel.visit(slot, 7, |_| visited += 1);
                }
                prop_assert_eq!(visited, added.len());
                let highest = added.iter().map(|(slot, _)| *slot as usize + 1).max().unwrap_or(0);
                prop_assert_eq!(channel.slots(), highest);
            }
        }
    }
}
