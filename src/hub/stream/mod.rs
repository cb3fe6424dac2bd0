//! The life of one open stream, from its request to its last frame.
//!
//! 1. Limits, bans and the cursor are judged before a stream is opened, and bans once more when it can
//!    be found ([`admission`]).
//! 2. A command is noted before connections are looked up, so that it misses none that is being opened
//!    ([`commands`]).
//! 3. A stream registers its waker before it reads, so that it does not sleep on a record that it could
//!    read ([`driver`]).
//! 4. The end of a stream comes after the records that it has to follow ([`driver`]).
//! 5. What a stream has to do by itself is decided without a clock: time is passed in ([`timers`]).
//! 6. One file turns what a stream says into bytes, for bodies and for the hub's own writer ([`encode`]).
//! 7. A connection is taken out of everything once ([`close`]).

pub(super) mod admission;
pub(super) mod close;
pub(super) mod commands;
pub(super) mod driver;
pub(super) mod encode;
pub(super) mod timers;
