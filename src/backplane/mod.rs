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

/// A log that several instances share. The [module](self) describes its guarantees.
///
/// The trait is sealed: its methods may still change, so it cannot be implemented outside of this
/// crate.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use tower_sse::backplane::{Backplane, Memory, NewRecord};
///
/// let log = Memory::new();
/// let results = log.append(vec![NewRecord::new("Bridge closed".into())], None).await;
/// for result in results {
///     assert_eq!(result?.sequence, 1);
/// }
/// let records = log.range(0, 100).await?;
/// assert_eq!(records[0].payload, "Bridge closed");
/// # Ok(()) }
/// ```
pub trait Backplane: sealed::Sealed + Send + Sync + 'static {
    /// Appends records, in one round trip if the broker can.
    ///
    /// Returns one result for each record, in order. If one record fails, later records may have
    /// been appended.
    fn append(
        &self,
        records: Vec<NewRecord>,
        seen: Option<Seen>,
    ) -> BoxFuture<'_, Vec<Result<LogPosition, BackplaneError>>>;

    /// Returns the state of the log. The call also makes the log notice that it is younger than the
    /// position that was seen. [`LogState`] has an example.
    fn state(&self, seen: Option<Seen>) -> BoxFuture<'_, Result<LogState, BackplaneError>>;

    /// Returns the oldest records after a number in order, at most `limit`, and fewer for any
    /// reason, such as their size.
    ///
    /// The response may be late: a replica that is behind leaves out records that the log has. So
    /// an empty response, or one that begins above the next number, does not prove a loss. Only
    /// [`LogState::first`] does: records below it are no longer retained. The hub reads missing
    /// records again, and reports them as lost after
    /// [`publish_timeout`](crate::HubBuilder::publish_timeout), so that one deleted record does not
    /// stop an instance.
    fn range(&self, after: u64, limit: usize) -> BoxFuture<'_, Result<Vec<Stored>, BackplaneError>>;

    /// Streams the records after a number as they are appended, in batches that are never empty.
    /// The stream ends with an error.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use futures::StreamExt;
    /// use tower_sse::backplane::{Backplane, Memory, NewRecord};
    ///
    /// let log = Memory::new();
    /// let mut batches = log.tail(0);
    /// log.append(vec![NewRecord::new("Bridge closed".into())], None).await;
    /// let Some(batch) = batches.next().await else { panic!("the stream ended") };
    /// assert_eq!(batch?[0].payload, "Bridge closed");
    /// # Ok(()) }
    /// ```
    fn tail(&self, after: u64) -> BoxStream<'static, Result<Vec<Stored>, BackplaneError>>;

    /// Returns the current values, in no order. A value that changes during the call may be
    /// missing. Such a change is in the log, after the [`state`](Self::state) that was read before
    /// the call. [`CurrentValue`] has an example.
    fn values(&self) -> BoxFuture<'_, Result<Vec<CurrentValue>, BackplaneError>>;

    /// Sends a control message to all instances, including this one. The message is small, and is
    /// not needed later. [`ControlMessage`] has an example.
    #[doc(alias = "tell")]
    fn broadcast(&self, message: Bytes) -> BoxFuture<'_, Result<(), BackplaneError>>;

    /// Streams the control messages of all instances. [`ControlMessage`] has an example.
    ///
    /// The stream begins after the message with this mark, as far as messages are retained: some
    /// thousand messages or a minute. Without a mark it begins with the next message. So an
    /// instance that was cut off for a moment misses no message. The stream ends with an error.
    #[doc(alias = "hear")]
    fn listen(&self, after: Option<Box<str>>) -> BoxStream<'static, Result<ControlMessage, BackplaneError>>;

    /// Stores a small value for a time, for the first caller that takes it. An earlier value of the
    /// key is overwritten.
    ///
    /// The key is a secret, for example of a ticket. An adapter for a broker stores a hash of it.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use std::time::Duration;
    /// use tower_sse::backplane::{Backplane, Memory};
    ///
    /// let log = Memory::new();
    /// log.put_once("ticket-7", "ada".into(), Duration::from_secs(30)).await?;
    /// assert_eq!(log.take("ticket-7").await?, Some("ada".into()));
    /// assert_eq!(log.take("ticket-7").await?, None);
    /// # Ok(()) }
    /// ```
    #[doc(alias = "deposit")]
    fn put_once(&self, key: &str, payload: Bytes, time: Duration) -> BoxFuture<'_, Result<(), BackplaneError>>;

    /// Takes a stored value away. If several callers take it at once, on any instances, one of them
    /// gets it. [`put_once`](Self::put_once) has an example.
    #[doc(alias = "withdraw")]
    fn take(&self, key: &str) -> BoxFuture<'_, Result<Option<Bytes>, BackplaneError>>;

    /// Returns a description of the log, for logs. It never contains a secret.
    fn describe(&self) -> String;

    /// Returns the limits of the log as text. Instances whose limits differ log a warning. Defaults
    /// to an empty text.
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
///
/// ```
/// use tower_sse::backplane::{NewRecord, Value};
///
/// let mut record = NewRecord::new("21.5".into());
/// record.values = vec![Value::new("boiler", false)]; // the current temperature of the boiler
/// record.idempotency_key = Some("measurement-7".into());
/// ```
#[doc(alias = "Outgoing")]
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct NewRecord {
    /// The bytes of the record.
    pub payload: Bytes,
    /// The current values that the record sets or removes.
    pub values: Vec<Value>,
    /// The key that prevents a second append. If a record with this key was appended within the
    /// last ten minutes and in this epoch, the log does not append this record, and returns the
    /// position of the earlier one.
    pub idempotency_key: Option<Box<str>>,
}

impl NewRecord {
    /// Creates a record that sets no values.
    #[must_use]
    pub fn new(payload: Bytes) -> Self {
        Self { payload, values: Vec::new(), idempotency_key: None }
    }
}

/// The effect of a record on a current value.
///
/// ```
/// use tower_sse::backplane::Value;
///
/// let set = Value::new("boiler", false);
/// let removal = Value::new("boiler", true);
/// assert_eq!(set.id, removal.id);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Value {
    /// The id of the current value, any text.
    pub id: Box<str>,
    /// Whether the record removes the value.
    pub removes: bool,
}

impl Value {
    /// Makes the record the current value of this id, or removes the current value.
    pub fn new(id: impl Into<Box<str>>, removes: bool) -> Self {
        Self { id: id.into(), removes }
    }
}

/// The position of a record in a log.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use tower_sse::backplane::{Backplane, LogPosition, Memory, NewRecord};
///
/// let log = Memory::new();
/// let records = vec![NewRecord::new("first".into()), NewRecord::new("second".into())];
/// let positions: Result<Vec<LogPosition>, _> = log.append(records, None).await.into_iter().collect();
/// assert_eq!(positions?.last().map(|position| position.sequence), Some(2));
/// # Ok(()) }
/// ```
#[doc(alias = "Place")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_structs, reason = "these two are all that a place is")]
pub struct LogPosition {
    /// The epoch of the log.
    pub epoch: u64,
    /// The number of the record in the log, from 1 on.
    pub sequence: u64,
}

/// The highest position that an instance has seen.
pub type Seen = LogPosition;

/// The state of a log: its epoch and its ends.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use tower_sse::backplane::{Backplane, Memory};
///
/// let state = Memory::new().state(None).await?;
/// assert_eq!((state.first, state.last), (1, 0)); // the log is empty
/// # Ok(()) }
/// ```
#[doc(alias = "State")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_structs, reason = "adapters make them")]
pub struct LogState {
    /// The epoch of the log.
    pub epoch: u64,
    /// The number of the oldest retained record; one above `last` if there is none.
    pub first: u64,
    /// The number of the newest record ever appended; zero if there was none.
    pub last: u64,
}

/// A record as it was read.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use tower_sse::backplane::{Backplane, Memory, NewRecord, Stored};
///
/// let log = Memory::new();
/// log.append(vec![NewRecord::new("Bridge closed".into())], None).await;
/// assert_eq!(log.range(0, 1).await?, [Stored { sequence: 1, payload: "Bridge closed".into() }]);
/// # Ok(()) }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_structs, reason = "adapters make them")]
pub struct Stored {
    /// The number of the record in the log.
    pub sequence: u64,
    /// The bytes of the record.
    pub payload: Bytes,
}

/// A current value.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use tower_sse::backplane::{Backplane, CurrentValue, Memory, NewRecord, Value};
///
/// let log = Memory::new();
/// let mut record = NewRecord::new("21.5".into());
/// record.values.push(Value::new("boiler", false));
/// log.append(vec![record], None).await;
/// let values: Vec<CurrentValue> = log.values().await?;
/// assert_eq!((&*values[0].id, &*values[0].record.payload), ("boiler", &b"21.5"[..]));
/// # Ok(()) }
/// ```
#[doc(alias = "Current")]
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_structs, reason = "adapters make them")]
pub struct CurrentValue {
    /// The id: the [`Value::id`] that the record set. One record may be the value of several ids.
    pub id: Box<str>,
    /// The record that set the value.
    pub record: Stored,
}

/// A control message, as a listener receives it.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use futures::StreamExt;
/// use tower_sse::backplane::{Backplane, ControlMessage, Memory};
///
/// let log = Memory::new();
/// let mut messages = log.listen(None);
/// log.broadcast("goodbye".into()).await?;
/// let Some(received) = messages.next().await else { panic!("the stream ended") };
/// let ControlMessage { message, .. } = received?;
/// assert_eq!(message, "goodbye");
/// # Ok(()) }
/// ```
#[doc(alias = "Told")]
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_structs, reason = "adapters make them")]
pub struct ControlMessage {
    /// The place of the message among all control messages, in a format of the adapter.
    /// [`Backplane::listen`] continues after it.
    pub mark: Box<str>,
    /// The bytes of the message.
    pub message: Bytes,
}

/// The error of a request to a broker.
///
/// ```
/// use tower_sse::backplane::BackplaneError;
///
/// let error = BackplaneError::unknown("no answer in 2 s");
/// assert!(error.is_unknown()); // the broker may have carried the request out
/// assert!(BackplaneError::rejected("read-only").is_rejected());
/// assert!(!BackplaneError::unavailable("connection refused").is_unknown());
/// ```
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
    /// Creates the error of a broker that was not reached, so that the request had no effect. The
    /// text is for logs, and must not contain secrets.
    pub fn unavailable(text: impl Into<Box<str>>) -> Self {
        Self { kind: Kind::Unavailable, text: text.into() }
    }

    /// Creates the error of a request without an answer in time. The broker may have carried the
    /// request out.
    pub fn unknown(text: impl Into<Box<str>>) -> Self {
        Self { kind: Kind::Unknown, text: text.into() }
    }

    /// Creates the error of a request that the broker rejected: it is read-only, out of memory, or
    /// not the expected broker.
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

    /// Returns whether the broker may have carried the request out.
    #[must_use]
    pub fn is_unknown(&self) -> bool {
        self.kind == Kind::Unknown
    }

    /// Returns whether the broker rejected the request.
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
