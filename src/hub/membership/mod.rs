//! Which connections are in which topics. All changes of that are made here.
//!
//! 1. Log and roster change together, under the roster's lock. So a snapshot of the members and its
//!    position belong together ([`changes`]).
//! 2. The roster's lock is taken before the locks of the log and of the registry, never after. No
//!    connection is woken under it ([`changes`]).
//! 3. A connection is in an audience once, also in a union ([`audience`]).
//! 4. A member that is back within the grace was never gone, so no event reports it ([`roster`]).

pub(super) mod audience;
pub(super) mod changes;
pub(super) mod roster;
