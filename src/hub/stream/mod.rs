//! The life of one open stream, from its request to its last frame.
//!
//! 1. Limits, bans and the cursor are judged before a stream is opened, and bans once more when it can
//!    be found ([`admission`]).
//! 2. A stream registers its waker before it reads, so that it does not sleep on a record that it could
//!    read ([`driver`]).
//! 3. The end of a stream comes after the records that it has to follow ([`driver`]).
//! 4. What a stream has to do by itself is decided without a clock: time is passed in ([`timers`]).
//! 5. One function turns a step into bytes, for all writers ([`encode`]).
//! 6. A stream is handed to the hub's own writer only after exactly its first frame has gone out
//!    ([`offer`]).

pub(super) mod admission;
pub(super) mod driver;
pub(crate) mod encode;
pub(super) mod offer;
pub(super) mod timers;
