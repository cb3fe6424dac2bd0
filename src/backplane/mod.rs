//! The port through which several instances share one log.
//!
//! A broker holds the log; a hub is a writer and a reader of it. An adapter knows its own client
//! and bytes, nothing of connections. [`Memory`] is for tests and for several hubs in one process,
//! `Redis` and `Nats` (features `redis` and `nats`) for production.
//!
//! # What an adapter promises
//!
//! - **Order.** It gives appended records the numbers 1, 2, 3 and so on, without holes, in one
//!   order for all writers and readers. Several records of one [`append`](Backplane::append) keep
//!   their order.
//! - **Durable as the broker is.** An append that returned `Ok` is in the log, as long as the broker has it.
//! - **Loss is visible.** A log has an *epoch*, a random number. Each append and each look carries
//!   what this instance has seen. If the log is younger than that (it came back empty, or from a
//!   backup) it takes a new epoch in the same step, before anything is appended. So a number never
//!   means two records. A log that has grown past that place again is recognised by its contents: a
//!   hub compares records that it has read. An adapter may also compare the newest record that it
//!   appended, as `Redis` does with each append and each look.
//! - **Trimmed at its head only.** Records that are no longer retained are below [`LogState::first`].
//!   A read may be late, so a record that is missing in the answer of [`range`](Backplane::range)
//!   is no proof of loss.
//! - **Current values** are kept apart from the log, so that no busy topic pushes them out.
//! - **Errors say whether something may have happened**: [`BackplaneError::is_unknown`].
//! - **No waiting without end.** Every call returns within the adapter's own time limits; a
//!   [`tail`](Backplane::tail) ends with an error when its connection breaks.
//!
//! - **A stream that is not polled delays no other call.**
//!
//! All calls may come from any thread at the same time. Dropping a future may leave its request under way.

#[cfg(any(feature = "nats", feature = "redis"))]
mod limits;
mod memory;
#[cfg(feature = "nats")]
mod nats;
#[cfg(any(feature = "nats", feature = "redis"))]
mod per_runtime;
#[cfg(feature = "redis")]
mod redis;
#[cfg(any(feature = "nats", feature = "redis"))]
mod secret_key;

use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::future::{BoxFuture, Either, select};
use futures::stream::BoxStream;
use tokio::time::{Instant, sleep_until};

#[cfg(any(feature = "nats", feature = "redis"))]
pub use limits::LogLimits;
pub use memory::Memory;
#[cfg(feature = "nats")]
pub use nats::Nats;
#[cfg(feature = "redis")]
pub use redis::Redis;

/// A result of an adapter and of its parts.
pub(crate) type Answer<T> = Result<T, BackplaneError>;

/// A log that several instances share. See the [module](self).
///
/// The trait is sealed: its methods may still change, so it cannot be implemented outside of this crate.
pub trait Backplane: sealed::Sealed + Send + Sync + 'static {
    /// Appends records, in one round trip if the broker can. One result for each, in order; if one
    /// fails, those after it may have been appended.
    fn append(
        &self,
        records: Vec<NewRecord>,
        seen: Option<Seen>,
    ) -> BoxFuture<'_, Vec<Result<LogPosition, BackplaneError>>>;

    /// Where the log is. Also makes it notice that it is younger than what was seen.
    fn state(&self, seen: Option<Seen>) -> BoxFuture<'_, Result<LogState, BackplaneError>>;

    /// Returns the oldest records after a number in order, at most `limit`, and fewer for any
    /// reason, such as their size.
    ///
    /// The answer may be late: a replica that is behind leaves out records that the log has. So an
    /// empty answer, or one that begins above the next number, does not prove a loss. Only
    /// [`LogState::first`] does: records below it are no longer retained. The hub reads missing
    /// records again, and reports them as lost after
    /// [`publish_timeout`](crate::HubBuilder::publish_timeout), so that one deleted record does not
    /// stop an instance.
    fn range(&self, after: u64, limit: usize) -> BoxFuture<'_, Result<Vec<Stored>, BackplaneError>>;

    /// Records after a number as they come, in batches that are never empty. Ends with an error.
    fn tail(&self, after: u64) -> BoxStream<'static, Result<Vec<Stored>, BackplaneError>>;

    /// The current values, in no order. What changes while they are read may be missing: it is in the log, after the
    /// [`state`](Self::state) that was looked at before.
    fn values(&self) -> BoxFuture<'_, Result<Vec<CurrentValue>, BackplaneError>>;

    /// Sends a control message to all instances, this one too. It is small, and not needed later.
    #[doc(alias = "tell")]
    fn broadcast(&self, message: Bytes) -> BoxFuture<'_, Result<(), BackplaneError>>;

    /// The control messages of all instances: after the one with this mark, as far as that is kept,
    /// some thousand messages or a minute; without a mark from now on. So an instance that was cut
    /// off for a moment misses nothing. Ends with an error.
    #[doc(alias = "hear")]
    fn listen(&self, after: Option<Box<str>>) -> BoxStream<'static, Result<ControlMessage, BackplaneError>>;

    /// Keeps something small for a while, for the first that asks for it. It overwrites what is there.
    ///
    /// The key is a secret, for example of a ticket: an adapter for a broker stores a hash of it.
    #[doc(alias = "deposit")]
    fn put_once(&self, key: &str, payload: Bytes, time: Duration) -> BoxFuture<'_, Result<(), BackplaneError>>;

    /// Takes it away: of several who ask at once, on whichever instance, one gets it.
    #[doc(alias = "withdraw")]
    fn take(&self, key: &str) -> BoxFuture<'_, Result<Option<Bytes>, BackplaneError>>;

    /// What it is, for logs: never with a secret.
    fn describe(&self) -> String;

    /// The limits of the log in any words. Instances whose limits differ log a warning. Defaults to an empty text.
    fn describe_limits(&self) -> String {
        String::new()
    }
}

/// Keeps [`Backplane`] from being implemented elsewhere. The tests of this crate have logs of their own.
#[doc(hidden)]
pub mod sealed {
    /// Not for implementing.
    pub trait Sealed {}
}

/// A pointer to a log is a log.
macro_rules! pointers {
    ($($pointer:ident),*) => {$(
        impl<B: Backplane + ?Sized> sealed::Sealed for $pointer<B> {}

        impl<B: Backplane + ?Sized> Backplane for $pointer<B> {
            fn append(
                &self,
                records: Vec<NewRecord>,
                seen: Option<Seen>,
            ) -> BoxFuture<'_, Vec<Result<LogPosition, BackplaneError>>> {
                (**self).append(records, seen)
            }

            fn state(&self, seen: Option<Seen>) -> BoxFuture<'_, Result<LogState, BackplaneError>> {
                (**self).state(seen)
            }

            fn range(&self, after: u64, limit: usize) -> BoxFuture<'_, Result<Vec<Stored>, BackplaneError>> {
                (**self).range(after, limit)
            }

            fn tail(&self, after: u64) -> BoxStream<'static, Result<Vec<Stored>, BackplaneError>> {
                (**self).tail(after)
            }

            fn values(&self) -> BoxFuture<'_, Result<Vec<CurrentValue>, BackplaneError>> {
                (**self).values()
            }

            fn broadcast(&self, message: Bytes) -> BoxFuture<'_, Result<(), BackplaneError>> {
                (**self).broadcast(message)
            }

            fn listen(&self, after: Option<Box<str>>) -> BoxStream<'static, Result<ControlMessage, BackplaneError>> {
                (**self).listen(after)
            }

            fn put_once(&self, key: &str, payload: Bytes, time: Duration) -> BoxFuture<'_, Result<(), BackplaneError>> {
                (**self).put_once(key, payload, time)
            }

            fn take(&self, key: &str) -> BoxFuture<'_, Result<Option<Bytes>, BackplaneError>> {
                (**self).take(key)
            }

            fn describe(&self) -> String {
                (**self).describe()
            }

            fn describe_limits(&self) -> String {
                (**self).describe_limits()
            }
        }
    )*};
}

pointers!(Arc, Box);

/// A record to be appended.
#[doc(alias = "Outgoing")]
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct NewRecord {
    /// Its bytes.
    pub payload: Bytes,
    /// Which current values it sets or removes.
    pub values: Vec<Value>,
    /// If a record with this key was appended within the last ten minutes and in this epoch, this
    /// one is not, and that one's place is returned.
    pub idempotency_key: Option<Box<str>>,
}

impl NewRecord {
    /// A record that sets nothing.
    #[must_use]
    pub fn new(payload: Bytes) -> Self {
        Self { payload, values: Vec::new(), idempotency_key: None }
    }
}

/// What a record does to a current value.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Value {
    /// Whose it is, any text.
    pub id: Box<str>,
    /// It is there no more.
    pub removes: bool,
}

impl Value {
    /// The record is the current value of this id, or its end.
    pub fn new(id: impl Into<Box<str>>, removes: bool) -> Self {
        Self { id: id.into(), removes }
    }
}

/// Where a record is.
#[doc(alias = "Place")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_structs, reason = "these two are all that a place is")]
pub struct LogPosition {
    /// Of the log.
    pub epoch: u64,
    /// In it, from 1 on.
    pub sequence: u64,
}

/// The highest place that an instance has seen.
pub type Seen = LogPosition;

/// Where a log is.
#[doc(alias = "State")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_structs, reason = "adapters make them")]
pub struct LogState {
    /// Its epoch.
    pub epoch: u64,
    /// The oldest record that is kept; one above `last` if there is none.
    pub first: u64,
    /// The newest record ever appended; zero if there was none.
    pub last: u64,
}

/// A record as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_structs, reason = "adapters make them")]
pub struct Stored {
    /// Its number.
    pub sequence: u64,
    /// Its bytes.
    pub payload: Bytes,
}

/// A current value.
#[doc(alias = "Current")]
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_structs, reason = "adapters make them")]
pub struct CurrentValue {
    /// Whose it is: the [`Value::id`] that the record set. One record may be the value of several.
    pub id: Box<str>,
    /// The record that set it.
    pub record: Stored,
}

/// A control message, as a listener gets it.
#[doc(alias = "Told")]
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_structs, reason = "adapters make them")]
pub struct ControlMessage {
    /// Where it is among all control messages, in the adapter's own words: [`Backplane::listen`] goes on from there.
    pub mark: Box<str>,
    /// Its bytes.
    pub message: Bytes,
}

/// Why a broker did not do what it was asked.
#[derive(Debug)]
pub struct BackplaneError {
    kind: Kind,
    text: Box<str>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Unavailable,
    Unknown,
    Rejected,
}

impl BackplaneError {
    /// The broker was not reached; nothing happened. The text is for logs: no secrets.
    pub fn unavailable(text: impl Into<Box<str>>) -> Self {
        Self { kind: Kind::Unavailable, text: text.into() }
    }

    /// It was asked, and no answer came in time: it may have happened.
    pub fn unknown(text: impl Into<Box<str>>) -> Self {
        Self { kind: Kind::Unknown, text: text.into() }
    }

    /// It said no: it is read-only, out of memory, not what it should be.
    pub fn rejected(text: impl Into<Box<str>>) -> Self {
        Self { kind: Kind::Rejected, text: text.into() }
    }

    /// The same error, for another record of one call.
    #[cfg(any(feature = "nats", feature = "redis"))]
    pub(crate) fn again(&self) -> Self {
        Self { kind: self.kind, text: self.text.clone() }
    }

    /// The same error for a caller that has not asked for anything yet: nothing happened.
    #[cfg(any(feature = "nats", feature = "redis"))]
    pub(crate) fn before_request(self) -> Self {
        if self.is_unknown() { Self::unavailable(self.text) } else { self }
    }

    /// Whether it may have happened.
    #[must_use]
    pub fn is_unknown(&self) -> bool {
        self.kind == Kind::Unknown
    }

    /// Whether the broker said no.
    #[must_use]
    pub fn is_rejected(&self) -> bool {
        self.kind == Kind::Rejected
    }
}

impl fmt::Display for BackplaneError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.kind {
            Kind::Unavailable => "the broker is not there",
            Kind::Unknown => "no answer from the broker",
            Kind::Rejected => "the broker refuses",
        };
        write!(f, "{what}: {}", self.text)
    }
}

impl Error for BackplaneError {}

/// Waits for a broker's answer up to a limit. A broker that does not answer in this time has failed.
pub(crate) async fn in_time<T>(limit: Duration, answer: impl Future<Output = Answer<T>>) -> Answer<T> {
    let answer = tokio::time::timeout(limit, answer).await;
    answer.unwrap_or_else(|_| Err(BackplaneError::unknown("no answer in time")))
}

/// Waits for the next item of a stream, or returns `None` at a time. The time comes first, so that a stream
/// that is never silent does not keep its reader from other work.
pub(crate) async fn next_until<T>(time: Instant, stream: &mut BoxStream<'static, Answer<T>>) -> Answer<Option<T>> {
    match select(std::pin::pin!(sleep_until(time)), stream.next()).await {
        Either::Left(_) => Ok(None),
        Either::Right((Some(came), _)) => came.map(Some),
        Either::Right((None, _)) => Err(BackplaneError::unknown("the connection ended")),
    }
}
