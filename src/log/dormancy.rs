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
//! The dormant channels can be found by the bytes of a name ([`Single`]), because most records of a
//! busy log are for dormant channels, and creating an [`Address`] for each would be expensive.
//!
//! These channels are never dormant: the channels with current values, the channel of everyone, and
//! the channels of connections.

#![allow(clippy::mutable_key_type, reason = "a channel is hashed by its address, which does not change")]

use std::borrow::Borrow;
use std::collections::btree_set::BTreeSet;
use std::collections::hash_map::HashMap;
use std::collections::hash_set::HashSet;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use super::channel::Channel;
use super::time::Millis;
use crate::macros::shrink_if_sparse;
use crate::types::{Address, ScopeName};

/// The only address of a record, as it is written in the record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Single<'a> {
    Topic(&'a str),
    User(&'a str),
}

impl<'a> Single<'a> {
    /// Returns the name of an address that a record can have as its only address, or `None` for an
    /// address that is more than the name of a topic or user, for example because it has a scope.
    fn of(address: &'a Address) -> Option<Self> {
        if !address.scope().is_some_and(ScopeName::is_root) {
            return None;
        }
        match address {
            Address::Topic(topic) => Some(Self::Topic(topic.as_str())),
            Address::User(user) => Some(Self::User(user.as_str())),
            Address::Everyone(_) | Address::EveryScope | Address::Connection(..) => None,
        }
    }

    fn name(self) -> &'a str {
        match self {
            Self::Topic(name) | Self::User(name) => name,
        }
    }
}

/// A dormant channel in a table by its name.
#[derive(Debug)]
struct Named(Arc<Channel>);

impl Borrow<str> for Named {
    fn borrow(&self) -> &str {
        Single::of(&self.0.address).map_or("", Single::name)
    }
}

impl Hash for Named {
    fn hash<H: Hasher>(&self, state: &mut H) {
        Borrow::<str>::borrow(self).hash(state);
    }
}

impl PartialEq for Named {
    fn eq(&self, other: &Self) -> bool {
        Borrow::<str>::borrow(self) == Borrow::<str>::borrow(other)
    }
}

impl Eq for Named {}

/// The dormant channels, and the channels that have no listeners and are not dormant yet.
#[derive(Debug)]
pub(super) struct Dormancy {
    grace: Millis,
    /// The time at which the last listener of each channel left, by the unique number of the
    /// channel.
    left: HashMap<u64, Millis>,
    /// The same channels in the order of these times, each with its unique number and its number.
    queue: BTreeSet<(Millis, u64, u32)>,
    /// The dormant channels of topics.
    topics: HashSet<Named>,
    /// The dormant channels of users.
    users: HashSet<Named>,
}

impl Dormancy {
    pub(super) fn new(grace: Millis) -> Self {
        Self { grace, left: HashMap::new(), queue: BTreeSet::new(), topics: HashSet::new(), users: HashSet::new() }
    }

    /// Returns the dormant channel of a name.
    pub(super) fn find(&self, single: Single<'_>) -> Option<&Arc<Channel>> {
        let (Single::Topic(name) | Single::User(name)) = single;
        let table = if let Single::Topic(_) = single { &self.topics } else { &self.users };
        table.get(name).map(|named| &named.0)
    }

    /// Makes a channel dormant.
    pub(super) fn add(&mut self, channel: &Arc<Channel>) {
        channel.set_dormant(true);
        if let Some((table, _)) = self.table(channel) {
            table.insert(Named(Arc::clone(channel)));
        }
    }

    /// Wakes a channel, or notes that it was removed.
    pub(super) fn remove(&mut self, channel: &Channel) {
        if let Some(since) = self.left.remove(&channel.unique) {
            self.queue.remove(&(since, channel.unique, channel.number));
        }
        if channel.is_dormant() {
            channel.set_dormant(false);
            if let Some((table, name)) = self.table(channel) {
                table.remove(name);
            }
        }
    }

    /// Returns the table for a channel, and the name of the channel in it.
    fn table<'a>(&mut self, channel: &'a Channel) -> Option<(&mut HashSet<Named>, &'a str)> {
        let single = Single::of(&channel.address)?;
        let table = if let Single::Topic(_) = single { &mut self.topics } else { &mut self.users };
        Some((table, single.name()))
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

    /// Shrinks the tables after many channels became dormant.
    pub(super) fn shrink(&mut self) {
        shrink_if_sparse!(self.left);
        shrink_if_sparse!(self.topics);
        shrink_if_sparse!(self.users);
    }
}
