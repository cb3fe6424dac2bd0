//! The topics of connections. All changes of the topics of a connection go through this folder.
//!
//! 1. For topics with presence events, the log and the roster change together, under the lock of
//!    the roster. So a snapshot of the members matches its position in the log ([`changes`]).
//! 2. The lock of the roster is taken before the locks of the log and of the registry, and never
//!    after them. No connection is woken under the lock of the roster ([`changes`]).
//! 3. A connection counts once in an audience, also if several addresses of a union contain the
//!    connection ([`audience`]).
//! 4. A member that returns within the grace period has not left, so the hub publishes neither
//!    `hub.left` nor `hub.joined` ([`roster`]).

pub(super) mod audience;
pub(super) mod changes;
pub(super) mod roster;
