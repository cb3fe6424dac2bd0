//! The topics of connections. All changes of topics are made in this folder.
//!
//! 1. The log and the roster change together, under the lock of the roster. So a snapshot of the
//!    members matches its position in the log ([`changes`]).
//! 2. The lock of the roster is taken before the locks of the log and of the registry, and never
//!    after them. No connection is woken under it ([`changes`]).
//! 3. A connection is in an audience once, also if several addresses of a union contain it
//!    ([`audience`]).
//! 4. A member that returns within the grace period has not left, so no event reports it
//!    ([`roster`]).

pub(super) mod audience;
pub(super) mod changes;
pub(super) mod roster;
