//! The state of open connections, and the bans of disconnected clients.
//!
//! 1. A connection enters the registry with its id, its user and its place in the limits in one
//!    step, and leaves it in one step ([`registry`]).
//! 2. The first ending of a connection stands, unless a later ending is stricter: a delay is
//!    stricter than none, and a ban is the strictest ([`handle`]).
//! 3. A disconnect records its ban before it looks connections up ([`bans`]). A new connection
//!    checks the bans after it has entered the registry ([`admission`](super::stream::admission)).
//!    So either the disconnect finds the connection, or the connection finds the ban.
//! 4. A stream has stalled if it has something to do and no byte has moved on its socket for the
//!    write deadline. If the hub does not know the socket, only the polls of the stream count
//!    ([`socket`]).
//! 5. An application receives a copy of the state of a connection, and never the connection itself
//!    ([`info`]).

pub(super) mod bans;
pub(super) mod handle;
pub(super) mod info;
pub(super) mod registry;
pub(super) mod socket;
