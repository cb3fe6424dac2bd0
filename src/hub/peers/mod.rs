//! What other instances have reported about themselves. Pure: time is passed in.
//!
//! 1. An instance is known while its lease lasts, and its connections go with it ([`table`]).
//! 2. After a number that is missing, no report of an instance counts until it has reported all again
//!    ([`table`]).
//! 3. What this instance reports is gathered, numbered, and kept until the broker has it ([`outbox`]).
//! 4. Messages bind only the instances that run now. Nothing is rebuilt from old ones ([`message`]).

pub(super) mod message;
pub(super) mod outbox;
pub(super) mod table;
