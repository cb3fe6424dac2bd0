//! The terms of a subscription: where a connection begins to read, and the channels that it joins then and later.

use crate::types::{Address, GapReason, Start, Topic};

/// Where a new connection begins to read.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Begin {
    Fresh(Start),
    /// As a fresh one, for a client whose cursor was refused: the gap that it gets for that covers
    /// what the start misses.
    Refused(Start),
    /// After this number. It may be above the horizon, for a client that comes from an instance that is a moment ahead.
    After(u64),
}

/// An address that a connection is subscribed to from its start.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    pub(crate) address: Address,
    /// It may not read what was published up to here, whatever its cursor says.
    pub(crate) after: u64,
}

impl From<Address> for Wanted {
    fn from(address: Address) -> Self {
        Self { address, after: 0 }
    }
}

/// A topic to be joined by a change.
#[derive(Clone, Debug)]
pub(crate) struct Joining {
    pub(crate) topic: Topic,
    pub(crate) since: Since,
    /// As of [`Wanted`].
    pub(crate) after: u64,
}

/// An address that a connection joins now, or was made to join before it was there.
#[derive(Clone, Debug)]
pub(crate) struct Joined {
    pub(crate) address: Address,
    pub(crate) since: Since,
    /// The log's position at the time of the join, if the user joined before this connection was
    /// opened. The connection then joins as if it had been open.
    pub(crate) at: Option<u64>,
}

/// From where on a subscriber joins a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Since {
    /// From now on, with the current values first.
    Now,
    /// After this number, also what the subscriber's cursor has passed.
    After(u64),
    /// From now on, since what was asked for is not to be had.
    Refused(GapReason),
}

/// It has as many topics as it may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TooManyTopics;

/// What a change of topics did.
#[derive(Debug, Default)]
pub(crate) struct Changed {
    pub(crate) left: Vec<Topic>,
    pub(crate) joined: Vec<Topic>,
    /// Some topics were both left and joined.
    pub(crate) again: bool,
    /// The topics in force afterwards.
    pub(crate) topics: Vec<Topic>,
}

impl Changed {
    pub(crate) fn is_any(&self) -> bool {
        self.again || !self.left.is_empty() || !self.joined.is_empty()
    }
}
