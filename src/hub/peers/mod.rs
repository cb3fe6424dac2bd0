//! The exchange of connections between instances: the reports of other instances, and the reports
//! that this instance has to send. This code does no I/O, and callers pass the time.
//!
//! 1. An instance is known while its lease lasts. When the lease ends, the instance is removed
//!    together with its connections ([`table`]).
//! 2. After a missing presence update, further updates of that instance are ignored until its
//!    complete list arrives ([`table`]).
//! 3. Changes of this instance are gathered and numbered, and presence events are queued until the
//!    broker has appended them ([`outbox`]).
//! 4. No instance rebuilds its state from old messages. So the format of messages has to match only
//!    between instances that run at the same time ([`message`]).

pub(super) mod message;
pub(super) mod outbox;
pub(super) mod table;
