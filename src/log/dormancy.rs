//! The channels that have had no listener for a grace period, on a log that several instances
//! share. Such a channel is *dormant*.
//!
//! 1. A dormant channel has no records, only their [outlines](super::store::Outline). A channel
//!    that is not dormant stores every record that is applied. So in every ring the outlines come
//!    before the records.
//! 2. A channel wakes when a listener is added, and becomes dormant when it has had no listener for
//!    the grace period. A channel that is created for a record, without a listener, is dormant.
//! 3. All of these changes, and the decision to store a record or its outline, happen under the
//!    sequencer's lock. So a record that is applied while a listener is added is stored, or its
//!    number is at most the `visible_through` that the listener starts with.
//!
//! These channels are never dormant: the channels with current values, the channel of everyone, and
//! the channels of connections.

use std::collections::hash_map::HashMap;
use std::collections::vec_deque::VecDeque;

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
    /// The same channels in the order of these times, each with its number and its unique number.
    /// An entry whose time differs from that in `left` is outdated.
    queue: VecDeque<(Millis, u32, u64)>,
}

impl Dormancy {
    pub(super) fn new(grace: Millis) -> Self {
        Self { grace, left: HashMap::new(), queue: VecDeque::new() }
    }

    /// Notes that the last listener of a channel has left.
    pub(super) fn note_left(&mut self, channel: &Channel, now: Millis) {
        if self.left.insert(channel.unique, now) != Some(now) {
            self.queue.push_back((now, channel.number, channel.unique));
        }
    }

    /// Notes that a channel has a listener again, or that it was removed.
    pub(super) fn forget(&mut self, channel: &Channel) {
        self.left.remove(&channel.unique);
    }

    /// Returns whether the last listener of a channel has left within the grace period.
    pub(super) fn is_within_grace(&self, channel: &Channel) -> bool {
        self.left.contains_key(&channel.unique)
    }

    /// Returns whether some channel has no listeners and is not dormant yet.
    pub(super) fn is_waiting(&self) -> bool {
        !self.left.is_empty()
    }

    /// Takes a channel whose grace period is over out of the queue. Returns its number and its
    /// unique number.
    pub(super) fn take_due(&mut self, now: Millis) -> Option<(u32, u64)> {
        while let Some(&(since, number, unique)) = self.queue.front() {
            let is_outdated = self.left.get(&unique) != Some(&since);
            if !is_outdated && since.saturating_add(self.grace) > now {
                return None;
            }
            self.queue.pop_front();
            if !is_outdated {
                self.left.remove(&unique);
                return Some((number, unique));
            }
        }
        None
    }

    /// Shrinks the tables after many channels became dormant.
    pub(super) fn shrink(&mut self) {
        shrink_if_sparse!(self.left);
        shrink_if_sparse!(self.queue);
    }
}
