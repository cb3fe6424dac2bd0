//! The exchange of connections between instances: the reports of other instances, and the reports
//! that this instance has to send. This code does no I/O, and callers pass the time.
//!
//! 1. An instance is known while its lease lasts. When the lease ends, the instance is removed
//!    together with its connections ([`table`]). These are in a compact table ([`connections`],
//!    which uses [`users`], [`topics`], [`scopes`], [`slots`] and [`short_text`]).
//! 2. After a missing presence update, further updates of that instance wait until its list was
//!    read ([`reports`]).
//! 3. After an instance has ended, one of the others publishes `hub.left` for its members
//!    ([`witnesses`]).
//! 4. Changes of this instance are gathered and numbered, and presence events are queued until the
//!    broker has appended them ([`outbox`]).
//! 5. Instances of different versions run at the same time during an upgrade. So a version skips
//!    what it cannot read in a message, and applies the rest ([`message`], [`codec`],
//!    [`encoding`]).

mod codec;
mod connections;
mod encoding;
#[cfg(any(test, feature = "test-kit"))]
mod memory;
pub(super) mod message;
pub(super) mod outbox;
mod reports;
mod scopes;
mod short_text;
mod slots;
pub(super) mod table;
mod topics;
mod users;
mod witnesses;
