//! The state of open connections, and the bans of disconnected clients.
//!
//! 1. A connection enters the registry with its id, its user and its place in the limits in one
//!    step, and leaves it in one step ([`registry`]).
//! 2. The first reason for which a connection ends stands, unless a later one keeps the client away
//!    for longer ([`handle`]).
//! 3. A disconnect records its ban before it looks connections up ([`bans`]). A new connection
//!    checks the bans after it has entered the registry ([`admission`](super::stream::admission)).
//!    So either the disconnect finds the connection, or the connection finds the ban.
//! 4. A stream has stalled if it has something to do and no byte has moved on its socket for the
//!    write deadline ([`socket`]).
//! 5. An application receives a copy of the state of a connection, and never the connection itself
//!    ([`info`]).

pub(super) mod bans;
pub(super) mod handle;
pub(super) mod info;
pub(super) mod registry;
pub(super) mod socket;
