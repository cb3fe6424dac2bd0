//! The channels that have had no listener for a grace period, on a log that several instances
//! share. Such a channel is *dormant*.
//!
//! 1. A dormant channel has no records, only their [outlines](super::store::Outline). A channel
//!    that is not dormant stores every record that is applied. So in every ring the outlines come
//!    before the records.
//! 2. A channel wakes when a listener is added, and becomes dormant when it has had no listener for
//!    the grace period. A channel that is created for a record, without a listener, is dormant.
//!    A channel with many records becomes dormant in several sweeps: until it has no records, it is
//!    not dormant.
//! 3. All of these changes, and the decision to store a record or its outline, happen under the
//!    sequencer's lock. So a record that is applied while a listener is added is stored, or its
//!    number is at most the `visible_through` that the listener starts with.
//!
//! These channels are never dormant: the channels with current values, the channel of everyone, and
//! the channels of connections.

use std::collections::btree_set::BTreeSet;
use std::collections::hash_map::HashMap;

use super::channel::Channel;
use super::time::Millis;
use crate::macros::shrink_if_sparse;

/// The channels that have no listeners and are not dormant yet.
#[derive(Debug)]
pub(super) struct Dormancy {
    grace: Millis,
    /// The time at which the last listener of each channel left, by the unique number of the
    /// channel.
    left: HashMap<u64, Millis>,
    /// The same channels in the order of these times, each with its unique number and its number.
    queue: BTreeSet<(Millis, u64, u32)>,
}

impl Dormancy {
    pub(super) fn new(grace: Millis) -> Self {
        Self { grace, left: HashMap::new(), queue: BTreeSet::new() }
    }

    /// Wakes a channel, or notes that it was removed.
    pub(super) fn remove(&mut self, channel: &Channel) {
        if let Some(since) = self.left.remove(&channel.unique) {
            self.queue.remove(&(since, channel.unique, channel.number));
        }
        channel.set_dormant(false);
    }

    /// Notes that the last listener of a channel left at this time.
    pub(super) fn note_left(&mut self, channel: &Channel, at: Millis) {
        if let Some(before) = self.left.insert(channel.unique, at) {
            self.queue.remove(&(before, channel.unique, channel.number));
        }
        self.queue.insert((at, channel.unique, channel.number));
    }

    /// Returns whether the last listener of a channel has left within the grace period.
    pub(super) fn is_within_grace(&self, channel: &Channel) -> bool {
        self.left.contains_key(&channel.unique)
    }

    /// Returns whether some channel has no listeners and is not dormant yet.
    pub(super) fn is_waiting(&self) -> bool {
        !self.left.is_empty()
    }

    /// Takes a channel whose grace period is over out of the queue. Returns the time at which its
    /// last listener left, its number and its unique number.
    pub(super) fn take_due(&mut self, now: Millis) -> Option<(Millis, u32, u64)> {
        let &(since, unique, number) = self.queue.first()?;
        if since.saturating_add(self.grace) > now {
            return None;
        }
        self.queue.pop_first();
        self.left.remove(&unique);
        Some((since, number, unique))
    }

    /// Returns the number of entries in the queue.
    #[cfg(all(test, not(tower_sse_loom)))]
    pub(super) fn queued(&self) -> usize {
        self.queue.len()
    }

    /// Shrinks the table after many channels became dormant.
    pub(super) fn shrink(&mut self) {
        shrink_if_sparse!(self.left);
    }
}
