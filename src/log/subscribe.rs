//! The start of a subscription, and the channels that a connection joins then and later.

use crate::types::{Address, GapReason, Start, Topic};

/// The point at which a new connection begins to read.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Begin {
    Fresh(Start),
    /// As [`Fresh`](Self::Fresh), without a gap for events that the start asks for and the log has
    /// dropped. The stream reports a gap for a refused cursor already, and a bare stream cannot
    /// report one.
    Unreported(Start),
    /// After this number. The number may be above `visible_through`, because the client may come
    /// from an instance that has read more of the shared log.
    After(u64),
}

/// An address that a connection is subscribed to from its start.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    pub(crate) address: Address,
    /// The connection must not read records up to and including this number, whatever its cursor
    /// is.
    pub(crate) after: u64,
}

impl From<Address> for Wanted {
    fn from(address: Address) -> Self {
        Self { address, after: 0 }
    }
}

/// A topic that a change of topics joins.
#[derive(Clone, Debug)]
pub(crate) struct Joining {
    pub(crate) topic: Topic,
    pub(crate) since: Since,
    /// The connection must not read records of the topic up to and including this number, whatever
    /// its cursor is.
    pub(crate) after: u64,
}

/// An address that an open connection joins, or that the connection's user joined before the
/// connection was opened.
#[derive(Clone, Debug)]
pub(crate) struct Joined {
    pub(crate) address: Address,
    pub(crate) since: Since,
    /// The number of the log at the time of the join, if the user joined before this connection was
    /// opened. The connection then joins as if it had been open at that time.
    pub(crate) at: Option<u64>,
}

/// The point from which a subscriber reads a channel that it joins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Since {
    /// From now on, with the current values first.
    Now,
    /// After this number, also records that the subscriber's cursor has passed.
    After(u64),
    /// From now on, with a gap: the requested position cannot be used.
    Refused(GapReason),
}

/// The error when a subscriber would exceed its maximum number of topics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TooManyTopics;

/// The result of a change of topics.
#[derive(Debug, Default)]
pub(crate) struct Changed {
    pub(crate) left: Vec<Topic>,
    pub(crate) joined: Vec<Topic>,
    /// Whether some topics were both left and joined.
    pub(crate) again: bool,
    /// The topics after the change.
    pub(crate) topics: Vec<Topic>,
}

impl Changed {
    pub(crate) fn is_any(&self) -> bool {
        self.again || !self.left.is_empty() || !self.joined.is_empty()
    }
}
