//! The presence of connections between instances: what other instances have reported, and what this
//! instance has to report. Pure: the time is passed in.
//!
//! 1. An instance is known while its lease lasts. When the lease ends, its connections are removed
//!    with it ([`table`]).
//! 2. After a missing presence update, updates of that instance are ignored until it has sent its
//!    complete list ([`table`]).
//! 3. Changes of this instance are gathered and numbered, and presence events are kept until the
//!    broker has them ([`outbox`]).
//! 4. No instance rebuilds its state from old messages. So the format of messages has to match only
//!    between instances that run at the same time ([`message`]).

pub(super) mod message;
pub(super) mod outbox;
pub(super) mod table;
