//! The life of an open stream, from its request to its last frame.
//!
//! 1. The hub checks limits, bans and the cursor before it opens a stream. It checks the bans once
//!    more after the connection has entered the registry and its channels ([`admission`]).
//! 2. A command is recorded before connections are looked up. So it finds each connection that is
//!    being opened, or that connection finds the record ([`commands`]).
//! 3. A stream registers its waker before it reads. Otherwise it could sleep although a record is
//!    due ([`driver`]).
//! 4. A drained stream, or one that has reached its maximum age, ends after the records that were
//!    published before ([`driver`]).
//! 5. Heartbeats and expiry are computed from a time that the caller passes, without a clock
//!    ([`timers`]).
//! 6. Only one file turns the steps of a stream into bytes, for bodies and for the hub's own writer
//!    ([`encode`]).
//! 7. A connection leaves the registry, its channels and the counters once ([`close`]).

pub(super) mod admission;
pub(super) mod close;
pub(super) mod commands;
pub(super) mod driver;
pub(super) mod encode;
pub(super) mod timers;
