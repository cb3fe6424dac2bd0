//! One audience's view of the log, and who listens to it.

use std::sync::Arc;

use slab::Slab;

use super::store::Store;
use super::subscriber::Subscriber;
use crate::audience::Address;
use crate::sync::{AtomicBool, AtomicUsize, Mutex, Ordering};

#[derive(Debug)]
pub(crate) struct Channel {
    pub(super) address: Address,
    /// Its word in the heads; given to another channel when this one is forgotten.
    pub(super) number: u32,
    /// Never given to another.
    pub(super) unique: u64,
    pub(super) policy: usize,
    pub(super) store: Mutex<Store>,
    listeners: Mutex<Slab<Arc<Subscriber>>>,
    /// Of `listeners`; changes only under the sequencer's lock, which makes `receivers` exact.
    listening: AtomicUsize,
    /// It waits in the queue of deferred wakes.
    pub(super) marked: AtomicBool,
}

impl Channel {
    pub(super) fn new(address: Address, number: u32, unique: u64, policy: usize, floor: u64) -> Self {
        Self {
            address,
            number,
            unique,
            policy,
            store: Mutex::new(Store::new(floor)),
            listeners: Mutex::default(),
            listening: AtomicUsize::new(0),
            marked: AtomicBool::new(false),
        }
    }

    pub(super) fn listening(&self) -> usize {
        self.listening.load(Ordering::Acquire)
    }

    pub(super) fn add_listener(&self, subscriber: Arc<Subscriber>) -> u32 {
        self.listening.fetch_add(1, Ordering::AcqRel);
        self.listeners.lock().insert(subscriber) as u32
    }

    pub(super) fn remove_listener(&self, slot: u32) {
        let mut listeners = self.listeners.lock();
        if listeners.try_remove(slot as usize).is_some() {
            self.listening.fetch_sub(1, Ordering::AcqRel);
        }
        if listeners.is_empty() {
            *listeners = Slab::new();
        }
    }

    /// Hands up to `max` listeners, from slot `from` on, to `each`; returns the slot to go on from, or none at the end.
    /// Slots do not move, so a listener that was there all the time is not passed over.
    pub(super) fn visit(&self, from: usize, max: usize, mut each: impl FnMut(&Subscriber)) -> Option<usize> {
        let listeners = self.listeners.lock();
        let end = listeners.capacity();
        let stop = end.min(from + max);
        (from..stop).filter_map(|slot| listeners.get(slot)).for_each(|subscriber| each(subscriber));
        (stop < end).then_some(stop)
    }
}
