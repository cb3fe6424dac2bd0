//! What the hub keeps of each open connection, and of clients that were disconnected.
//!
//! 1. A connection is in the registry for its limits, its user and its id, or for none of them
//!    ([`registry`]).
//! 2. How a connection is to end is said once, and the first reason stands unless a later one is
//!    stricter ([`handle`]).
//! 3. A disconnect notes a ban before it looks connections up ([`bans`]), and a connection looks for bans
//!    after it is in the registry ([`admission`](super::stream::admission)). So one of the two finds the
//!    other.
//! 4. A stream has stalled if it has something to do and no byte has moved on its socket for the write deadline
//!    ([`socket`]).
//! 5. An application sees a copy of what is known, never the connection itself ([`info`]).

pub(super) mod bans;
pub(super) mod handle;
pub(super) mod info;
pub(super) mod registry;
pub(super) mod socket;
