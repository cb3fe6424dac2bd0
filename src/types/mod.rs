//! Checked values: a value that was accepted once is valid everywhere.
//!
//! This folder imports no other. It has no I/O and no state, except the count of disconnections
//! ([`disconnect_clock`]).
//!
//! 1. A name is checked when it is created: its length, and that it has no control characters
//!    ([`name`]).
//! 2. Text from a client is untrusted. It is parsed once, before any other use ([`position`],
//!    [`last_event_id`]).
//! 3. Each reason has one spelling for the wire, the statistics and the logs ([`reason`]).
//! 4. Errors are opaque. Their predicates tell callers how to react ([`error`]).
//! 5. A name, an address and a subscription have one scope each, as a separate field
//!    ([`scope_name`], [`name`], [`audience`]).
//! 6. Decisions and disconnections are ordered by a count, not by a clock ([`disconnect_clock`]).

pub(crate) mod address_ref;
pub(crate) mod as_text;
pub(crate) mod audience;
pub(crate) mod audience_json;
pub(crate) mod command;
pub(crate) mod disconnect;
pub(crate) mod disconnect_clock;
pub(crate) mod error;
pub(crate) mod event;
pub(crate) mod last_event_id;
pub(crate) mod message;
pub(crate) mod name;
pub(crate) mod name_rules;
pub(crate) mod position;
pub(crate) mod reason;
pub(crate) mod recheck;
pub(crate) mod refusal;
pub(crate) mod retention;
pub(crate) mod run;
pub(crate) mod run_error;
pub(crate) mod scope_name;
pub(crate) mod subscription;
pub(crate) mod subscription_error;
pub(crate) mod topic_filter;
pub(crate) mod typed_topic;

pub(crate) use address_ref::{AddressRef, AsAddress};
pub(crate) use audience::{Address, Audience, each_once};
pub(crate) use audience_json::{Cow, To};
pub(crate) use command::{Action, Change, Command};
pub(crate) use disconnect::{Disconnect, Reconnect};
pub(crate) use disconnect_clock::DisconnectClock;
pub(crate) use error::{BuildError, CommandError, InvalidName, NameProblem, PublishError};
pub(crate) use event::Event;
pub(crate) use last_event_id::{BannedUntil, Cursor};
pub(crate) use message::Message;
pub(crate) use name::{ConnectionId, Scoped, ScopedText, Topic, UserId};
pub(crate) use position::{Epoch, Position};
pub(crate) use reason::{EndReason, GapReason, RefusalReason};
pub(crate) use recheck::{Authority, Recheck};
pub(crate) use refusal::Refusal;
pub(crate) use retention::{LagPolicy, Retention};
pub(crate) use run::{RunEnd, RunSource, RunState};
pub(crate) use run_error::RunError;
pub(crate) use scope_name::ScopeName;
pub(crate) use subscription::{Expiry, History, Ids, Redeemed, Start, StreamEnd, Subscription};
pub(crate) use subscription_error::SubscriptionError;
pub(crate) use topic_filter::TopicFilter;
pub(crate) use typed_topic::{Carries, TypedTopic};
