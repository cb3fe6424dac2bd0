//! The life of an open stream, from its request to its last frame.
//!
//! 1. The hub checks limits, bans and the cursor before it opens a stream. It checks the bans once
//!    more after the connection has entered the registry and its channels ([`admission`]).
//! 2. A disconnect, or a join or a leave of a user, is recorded before connections are looked up.
//!    So the command finds each connection that is being opened, or that connection finds the
//!    record ([`commands`]).
//! 3. A stream registers its waker before it reads. Otherwise it could sleep although a record is
//!    due ([`driver`]).
//! 4. When a drain or the maximum age ends a stream, the stream first writes the records that were
//!    published before, unless it waits for the shared log ([`driver`]).
//! 5. Heartbeats and expiry are computed from a time that the caller passes, without a clock
//!    ([`timers`]).
//! 6. Only one file turns the steps of a stream into bytes, for bodies and for the hub's own writer
//!    ([`encode`]).
//! 7. A connection leaves the registry and its channels once, and its end is counted once
//!    ([`close`]).

pub(super) mod admission;
pub(super) mod close;
pub(super) mod commands;
pub(super) mod driver;
pub(super) mod encode;
pub(super) mod timers;
