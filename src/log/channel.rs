//! One audience's view of the log, and who listens to it.

use std::cmp::Reverse;
use std::collections::binary_heap::BinaryHeap;
use std::sync::Arc;

use super::heads::Heads;
use super::listener::Listener;
use super::store::Store;
use crate::macros::opaque_debug;
use crate::sync::{AtomicBool, AtomicU64, AtomicUsize, Mutex, Ordering};
use crate::types::{Address, ConnectionId};

#[derive(Debug)]
pub(crate) struct Channel {
    pub(super) address: Address,
    /// Its word in the heads; given to another channel when this one is forgotten.
    pub(super) number: u32,
    /// The same word, for readers of a few channels.
    head: AtomicU64,
    /// Never given to another.
    pub(super) unique: u64,
    pub(super) policy: usize,
    pub(super) store: Mutex<Store>,
    listeners: Mutex<Listeners>,
    /// Of `listeners`; changes only under the sequencer's lock, which makes `receivers` exact.
    listening: AtomicUsize,
    /// How many slots there are to visit.
    slots: AtomicUsize,
    /// It waits in the queue of deferred wakes.
    pub(super) marked: AtomicBool,
}

/// Slots that do not move, so that who is there all the time is not passed over by a visit in several steps. The lowest
/// free one is taken first and free ones at the end are given back, so that few listeners lie in few slots.
#[derive(Default)]
struct Listeners {
    slots: Vec<Option<Arc<dyn Listener>>>,
    free: BinaryHeap<Reverse<u32>>,
}

opaque_debug!(|listeners: Listeners| { slots: listeners.slots.len() });

impl Channel {
    pub(super) fn new(address: Address, number: u32, unique: u64, policy: usize, floor: u64) -> Self {
        let store = Store::new(floor, address.name_len());
        Self {
            address,
            number,
            head: AtomicU64::new(floor),
            unique,
            policy,
            store: Mutex::new(store),
            listeners: Mutex::default(),
            listening: AtomicUsize::new(0),
            slots: AtomicUsize::new(0),
            marked: AtomicBool::new(false),
        }
    }

    /// Its newest number, if that was written before the horizon.
    pub(super) fn head(&self) -> u64 {
        self.head.load(Ordering::Acquire)
    }

    /// Under the sequencer's lock. It may be further already.
    pub(super) fn raise_head(&self, heads: &Heads, sequence: u64) {
        self.head.fetch_max(sequence, Ordering::AcqRel);
        heads.raise(self.number as usize, sequence);
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

    /// Who listens at this moment.
    pub(super) fn listeners(&self) -> Vec<ConnectionId> {
        self.listeners.lock().slots.iter().flatten().map(|listener| listener.id()).collect()
    }

    /// Hands the listeners of up to `max` slots, from slot `from` on, to `each`; returns the slot
    /// to go on from, or none at the end.
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
            // Those beyond the end were given back with it.
            if let Some(place) = self.slots.get_mut(slot as usize) {
                *place = Some(listener);
                return slot;
            }
        }
        if self.slots.len() == self.slots.capacity() {
            // Most have one, and the room that thousands are given beforehand adds up.
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
        fn who_listens_is_visited_and_few_lie_in_few_slots(steps in proptest::collection::vec(any::<u8>(), 0..300)) {
            let channel = Channel::new(Address::Everyone, 0, 0, 0, 0);
            let mut there: Vec<(u32, Arc<CursorHandle>)> = Vec::new();
            for step in steps {
                if step < 140 || there.is_empty() {
                    let subscriber = Arc::new(CursorHandle::new(ConnectionId::from_bits(0)));
                    there.push((channel.add_listener(Arc::clone(&subscriber) as _), subscriber));
                } else {
                    let (slot, _) = there.swap_remove(step as usize % there.len());
                    channel.remove_listener(slot);
                    channel.remove_listener(slot);
                }
                prop_assert_eq!(channel.listening(), there.len());
                let (mut visited, mut from) = (0, Some(0));
                while let Some(slot) = from {
                    from = channel.visit(slot, 7, |_| visited += 1);
                }
                prop_assert_eq!(visited, there.len());
                let highest = there.iter().map(|(slot, _)| *slot as usize + 1).max().unwrap_or(0);
                prop_assert_eq!(channel.slots(), highest);
            }
        }
    }
}
