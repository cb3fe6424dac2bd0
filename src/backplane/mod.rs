//! The interface to a log that several instances share, and the adapters that implement it.
//!
//! A broker stores the log. Every hub appends records to the log and reads records from the log. An
//! adapter implements [`Backplane`] for one kind of broker: `Redis`, `Nats` and `Postgres` (features
//! `redis`, `nats` and `postgres`) for production. [`Memory`] needs no broker. It is for tests and for several hubs in
//! one process. An adapter stores records as bytes. It has no access to the hub's connections.
//!
//! # Guarantees of an adapter
//!
//! - **Order.** The log numbers its records 1, 2, 3 and so on, without holes. All writers and
//!   readers see the same order. The records of one [`append`](Backplane::append) keep their order.
//! - **Durability.** A record whose append returned `Ok` is in the log until a limit of the log
//!   removes it. This guarantee is only as strong as the broker's persistence.
//! - **Detection of loss.** A log has an *epoch*, a random number. Every call of
//!   [`append`](Backplane::append) and [`state`](Backplane::state) passes the highest position that
//!   the caller has seen, if any. If the log is in the same epoch and ends below this position, the
//!   log has lost records, for example because the broker was restored from a backup. Then the log
//!   begins a new epoch before it appends the records. So a position, which is an epoch and a
//!   number, identifies one record.
//!
//!   `Nats` has one exception: if the log loses records while the adapter's connection stays open,
//!   the next append may add its records before it begins the new epoch. Until the new epoch
//!   begins, a reader can mistake these records for records of the old epoch. The returned
//!   positions are in the new epoch.
//!
//!   In a cluster of NATS servers, no read proves a loss. So `Nats` first appends a record without
//!   an audience if the log seems to end below the position, and only the number of this record
//!   decides. So the log may have some more records than the hubs have appended.
//!
//!   If a log has lost records and has since grown past the seen position, its end does not reveal
//!   the loss. So the hub compares records that it has read with the records that the log has now.
//!   An adapter may also compare the newest record that it appended. `Redis` compares this record
//!   in every `append` and `state` that passes a position. `Nats` compares it only in a cluster,
//!   and only if the log seems to end below the position.
//! - **Trimming at the old end only.** Records that are no longer retained are below
//!   [`LogState::first`]. A response of [`range`](Backplane::range) may be out of date, so a record
//!   that is missing in the response is not necessarily lost.
//! - **Current values** are stored apart from the records, so that the records of a busy topic
//!   cannot displace them.
//! - **Journals**, which store runs, are stored apart from the records too: [`Journals`].
//! - **Errors** state whether the request may have had an effect: [`BackplaneError::is_unknown`].
//! - **Time limits.** Every call returns within the adapter's own time limits. A
//!   [`tail`](Backplane::tail) ends with an error when its connection breaks.
//! - **Independence.** A stream that is not polled does not delay other calls.
//! - **Concurrency.** All methods may be called from any thread at the same time. A request may
//!   continue at the broker after its future was dropped.

mod journal;
#[cfg(any(feature = "nats", feature = "postgres", feature = "redis"))]
mod limits;
mod memory;
mod memory_control;
#[cfg(feature = "test-kit")]
mod memory_history;
mod memory_journals;
#[cfg(feature = "nats")]
mod nats;
#[cfg(any(feature = "nats", feature = "postgres", feature = "redis"))]
mod per_runtime;
#[cfg(feature = "postgres")]
mod postgres;
mod range;
#[cfg(feature = "redis")]
mod redis;
#[cfg(any(feature = "nats", feature = "postgres", feature = "redis"))]
mod secret_key;

use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures::StreamExt;
use futures::future::{BoxFuture, Either, select};
use futures::stream::BoxStream;
use tokio::time::{Instant, sleep_until};

pub use journal::{Begun, JournalAppend, JournalId, JournalPage, Journals};
#[cfg(any(feature = "nats", feature = "postgres", feature = "redis"))]
pub use limits::LogLimits;
pub use memory::Memory;
#[cfg(feature = "nats")]
pub use nats::Nats;
#[cfg(feature = "postgres")]
pub use postgres::{Migration, Postgres};
pub use range::{Range, ReadLimit};
#[cfg(feature = "redis")]
pub use redis::Redis;

/// The result of a request to a broker.
pub(crate) type Answer<T> = Result<T, BackplaneError>;

/// A log that several instances share. The [module](self) lists its guarantees.
///
/// The trait is sealed, because its methods may still change. Other crates can call the methods.
/// They cannot implement the trait without a hidden trait, which is not covered by semantic
/// versioning.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use tower_sse::backplane::{Backplane, Memory, NewRecord, Range, ReadLimit};
///
/// let log = Memory::new();
/// let results = log.append(vec![NewRecord::new("Bridge closed".into())], None).await;
/// for result in results {
///     assert_eq!(result?.sequence, 1);
/// }
/// if let Range::Records(records) = log.range(0, ReadLimit::records(100)).await? {
///     assert_eq!(records[0].payload, "Bridge closed");
/// }
/// # Ok(()) }
/// ```
pub trait Backplane: Journals {
    /// Appends records, in one round trip if the broker supports it.
    ///
    /// Returns one result for each record, in order. If one record fails, later records may have
    /// been appended.
    ///
    /// `seen` is the highest position that the caller has seen, or `None` if the caller has seen no
    /// position. If the log is in the same epoch and ends below `seen`, the log begins a new epoch
    /// before it appends the records. The [module](self) describes this detection of loss, and the
    /// exception for `Nats`.
    fn append(
        &self,
        records: Vec<NewRecord>,
        seen: Option<Seen>,
    ) -> BoxFuture<'_, Vec<Result<LogPosition, BackplaneError>>>;

    /// Returns the epoch, the first number and the last number of the log. [`LogState`] has an
    /// example.
    ///
    /// As in [`append`](Self::append), the log first begins a new epoch if the log is in the epoch
    /// of `seen` and ends below `seen`.
    fn state(&self, seen: Option<Seen>) -> BoxFuture<'_, Result<LogState, BackplaneError>>;

    /// Returns the records with numbers above `after`, in order, starting with the oldest.
    ///
    /// Returns at most as many records and bytes as `limit` has, and at least one record if there
    /// is one, even if this record exceeds the bytes. An adapter may return fewer records for any
    /// reason.
    ///
    /// The response may be out of date: a replica that is behind omits records that the log has. So
    /// an empty response, or a response that begins above `after + 1`, does not prove a loss. Only
    /// [`LogState::first`] proves a loss: records below this number are no longer retained. The hub
    /// tries to read missing records again. If they are still missing after
    /// [`publish_timeout`](crate::HubBuilder::publish_timeout), the hub reports them as lost, so
    /// that one deleted record does not stop an instance.
    ///
    /// An adapter that knows that the response would be out of date returns [`Range::NotYet`]. Then
    /// the hub does not report records as lost.
    fn range(&self, after: u64, limit: ReadLimit) -> BoxFuture<'_, Result<Range, BackplaneError>>;

    /// Streams the records with numbers above `after`: first the stored records, then new records
    /// as they are appended.
    ///
    /// No batch is empty. If records above `after` are no longer retained, the stream begins at a
    /// later record or ends with an error. The stream ends only with an error, for example when its
    /// connection breaks.
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

    /// Returns the current values, in any order. [`CurrentValue`] has an example.
    ///
    /// A value that changes during the call may be missing. The record of such a change is in the
    /// log, above the [`last`](LogState::last) of a [`state`](Self::state) that was read before the
    /// call.
    fn values(&self) -> BoxFuture<'_, Result<Vec<CurrentValue>, BackplaneError>>;

    /// Sends a control message to all instances, including the sender. [`ControlMessage`] has an
    /// example.
    ///
    /// Messages are small, and adapters retain them only for a short time. Messages of one
    /// [`ControlStream`] never displace messages of the other.
    #[doc(alias = "tell")]
    fn broadcast(&self, stream: ControlStream, message: Bytes) -> BoxFuture<'_, Result<(), BackplaneError>>;

    /// Streams the control messages of all instances, of both control streams. [`ControlMessage`]
    /// has an example.
    ///
    /// Messages of one [`ControlStream`] arrive in the order in which they were sent. A message of
    /// one control stream may overtake messages of the other.
    ///
    /// If `after` is the [`mark`](ControlMessage::mark) of a message, the stream begins after this
    /// message, so that an instance that was disconnected for a moment misses no message. If
    /// messages after the mark are no longer retained, the stream begins with the oldest retained
    /// message. Adapters retain about the newest 10,000 messages of each control stream, and may
    /// remove messages that are older than one minute.
    ///
    /// If `after` is `None`, the stream begins with the first message that is sent after the stream
    /// has connected. A stream of `Redis` or `Nats` connects when it is first polled. A stream of
    /// `Memory` is connected at once.
    ///
    /// The stream ends only with an error.
    #[doc(alias = "hear")]
    fn listen(&self, after: Option<Box<str>>) -> BoxStream<'static, Result<ControlMessage, BackplaneError>>;

    /// Stores a small value that [`take`](Self::take) returns once. The value expires after `time`.
    /// It replaces a stored value of the same key.
    ///
    /// The key is a secret, for example the text of a ticket. An adapter for a broker stores a hash
    /// of the key, not the key. `Nats` stores a value for at most one hour.
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

    /// Removes a stored value and returns it. [`put_once`](Self::put_once) has an example.
    ///
    /// Returns `None` if the key has no value, or if the value was taken or has expired. If several
    /// callers, on any instances, take the same value at once, at most one of them receives the
    /// value.
    #[doc(alias = "withdraw")]
    fn take(&self, key: &str) -> BoxFuture<'_, Result<Option<Bytes>, BackplaneError>>;

    /// Stores a value that any number of callers can read with [`get_shared`](Self::get_shared)
    /// until `time` has passed. It replaces a stored value of the same key.
    ///
    /// A value has at most [`MAX_SHARED_BYTES`], so a caller splits a larger one. The key is any
    /// text. An adapter stores the value for at least `time` and at most five minutes, and may
    /// remove it later than after `time`. It may also lose the value, for example because the
    /// broker restarts. An instance stores the list of its connections in this way.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use std::time::Duration;
    /// use tower_sse::backplane::{Backplane, Memory};
    ///
    /// let log = Memory::new();
    /// log.put_shared("connections of A", "ada, bea".into(), Duration::from_secs(60)).await?;
    /// for _ in 0..2 {
    ///     assert_eq!(log.get_shared("connections of A").await?, Some("ada, bea".into()));
    /// }
    /// # Ok(()) }
    /// ```
    fn put_shared(&self, key: &str, payload: Bytes, time: Duration) -> BoxFuture<'_, Result<(), BackplaneError>>;

    /// Returns the newest stored value of a key, or `None` if the key has no value or the adapter
    /// has removed it. [`put_shared`](Self::put_shared) has an example.
    fn get_shared(&self, key: &str) -> BoxFuture<'_, Result<Option<Bytes>, BackplaneError>>;

    /// Returns a short description of the log, for log lines. The text contains no secret.
    fn describe(&self) -> String;

    /// Returns the limits of the log as text. Instances compare these texts, and log a warning if
    /// the texts differ. The default implementation returns an empty text.
    #[doc(alias = "limits")]
    fn describe_limits(&self) -> String {
        String::new()
    }
}

/// Prevents other crates from implementing [`Backplane`]. The module is public but hidden, because
/// the integration tests of this crate implement [`Backplane`].
#[doc(hidden)]
pub mod sealed {
    /// The supertrait of [`Journals`](super::Journals) and [`Backplane`](super::Backplane). Only
    /// this crate and its tests implement it.
    pub trait Sealed {}
}

/// Implements [`Backplane`] for smart pointers to a log.
macro_rules! pointers {
    ($($pointer:ident),*) => {$(
        impl<B: Backplane + ?Sized> sealed::Sealed for $pointer<B> {}

        impl<B: Backplane + ?Sized> Journals for $pointer<B> {
            fn begin_journal(&self, key: &str, first: Bytes) -> BoxFuture<'_, Answer<Begun>> {
                (**self).begin_journal(key, first)
            }

            fn append_journal(
                &self,
                key: &str,
                id: JournalId,
                after: u64,
                entry: Bytes,
                close: Option<Duration>,
            ) -> BoxFuture<'_, Answer<JournalAppend>> {
                (**self).append_journal(key, id, after, entry, close)
            }

            fn read_journal(
                &self,
                key: &str,
                id: Option<JournalId>,
                after: u64,
                max_bytes: usize,
            ) -> BoxFuture<'_, Answer<Option<JournalPage>>> {
                (**self).read_journal(key, id, after, max_bytes)
            }
        }

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

            fn range(&self, after: u64, limit: ReadLimit) -> BoxFuture<'_, Result<Range, BackplaneError>> {
                (**self).range(after, limit)
            }

            fn tail(&self, after: u64) -> BoxStream<'static, Result<Vec<Stored>, BackplaneError>> {
                (**self).tail(after)
            }

            fn values(&self) -> BoxFuture<'_, Result<Vec<CurrentValue>, BackplaneError>> {
                (**self).values()
            }

            fn broadcast(&self, stream: ControlStream, message: Bytes) -> BoxFuture<'_, Result<(), BackplaneError>> {
                (**self).broadcast(stream, message)
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

            fn put_shared(
                &self,
                key: &str,
                payload: Bytes,
                time: Duration,
            ) -> BoxFuture<'_, Result<(), BackplaneError>> {
                (**self).put_shared(key, payload, time)
            }

            fn get_shared(&self, key: &str) -> BoxFuture<'_, Result<Option<Bytes>, BackplaneError>> {
                (**self).get_shared(key)
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

/// A record to append.
///
/// ```
/// use tower_sse::backplane::{NewRecord, Value};
///
/// let mut record = NewRecord::new("21.5".into());
/// record.values = vec![Value::new("boiler", false)]; // the current temperature of the boiler
/// record.idempotency_key = Some("measurement-7".into());
/// ```
///
/// # Storing a prepared record
///
/// [`Target::prepare`](crate::Target::prepare) returns a record, which an application can store in
/// a table until it publishes the record. Store all three fields. The payload of a prepared record
/// is UTF-8 text without the character U+0000, and so are the other texts. Either all values of a
/// prepared record are set, or all are removed. So these columns are enough: `payload text`,
/// `value_ids text[]` or a text with a JSON array, `removes boolean`, and `idempotency_key text`,
/// which may be null.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use tower_sse::backplane::{Memory, NewRecord, Value};
/// use tower_sse::{Event, Publisher};
///
/// struct Row { payload: String, value_ids: Vec<String>, removes: bool, idempotency_key: Option<String> }
///
/// fn to_row(record: NewRecord) -> Result<Row, std::string::FromUtf8Error> {
///     Ok(Row {
///         payload: String::from_utf8(record.payload.into())?,
///         removes: record.values.first().is_some_and(|value| value.removes),
///         value_ids: record.values.into_iter().map(|value| value.id.into()).collect(),
///         idempotency_key: record.idempotency_key.map(Into::into),
///     })
/// }
///
/// fn to_record(row: Row) -> NewRecord {
///     let mut record = NewRecord::new(row.payload.into());
///     record.values = row.value_ids.into_iter().map(|id| Value::new(id, row.removes)).collect();
///     record.idempotency_key = row.idempotency_key.map(Into::into);
///     record
/// }
///
/// let publisher = Publisher::new(Memory::new())?;
/// let event = Event::new("temperature", "21.5").key("boiler").idempotency_key("measurement-7");
/// let row = to_row(publisher.topic("sensors").prepare(event)?)?;
/// for receipt in publisher.publish_prepared(vec![to_record(row)]).await {
///     receipt?;
/// }
/// # Ok(()) }
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
    /// position of the earlier record. `Nats` remembers a key for a shorter time if the log's
    /// maximum age is below ten minutes.
    pub idempotency_key: Option<Box<str>>,
}

impl NewRecord {
    /// Creates a record without current values and without an idempotency key.
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
    /// The id of the current value: any text.
    pub id: Box<str>,
    /// Whether the record removes the value.
    pub removes: bool,
}

impl Value {
    /// Creates the effect of a record on the current value of `id`. The record becomes the current
    /// value or, if `removes` is true, removes it.
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
#[allow(clippy::exhaustive_structs, reason = "a position has no other parts")]
pub struct LogPosition {
    /// The epoch of the log.
    pub epoch: u64,
    /// The number of the record in the log. The first record has the number 1.
    pub sequence: u64,
}

/// The highest position that a caller has seen.
pub type Seen = LogPosition;

/// The state of a log: its epoch, its first number and its last number.
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
    /// The number of the oldest retained record, or `last + 1` if the log retains no record.
    pub first: u64,
    /// The number of the newest record, even if the log no longer retains this record. 0 if no
    /// record was appended.
    pub last: u64,
}

/// A record that was read from the log.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use tower_sse::backplane::{Backplane, Memory, NewRecord, Range, ReadLimit, Stored};
///
/// let log = Memory::new();
/// log.append(vec![NewRecord::new("Bridge closed".into())], None).await;
/// let Range::Records(records) = log.range(0, ReadLimit::records(1)).await? else { return Ok(()) };
/// let stored: &Stored = &records[0];
/// assert_eq!((stored.sequence, &stored.payload[..]), (1, &b"Bridge closed"[..]));
/// assert!(stored.at.is_some());
/// # Ok(()) }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stored {
    /// The number of the record in the log.
    pub sequence: u64,
    /// The bytes of the record.
    pub payload: Bytes,
    /// The time at which the log stored the record, by the clock of the broker, or `None` if the
    /// adapter does not know this time. While an instance starts, the age of a record counts from
    /// this time. Without it, the age counts from the time that the publisher has written into the
    /// record, which may be much earlier.
    pub at: Option<SystemTime>,
}

impl Stored {
    /// Creates a record without a time.
    ///
    /// ```
    /// use std::time::SystemTime;
    /// use tower_sse::backplane::Stored;
    ///
    /// let stored = Stored::new(7, "Bridge closed".into()).at(SystemTime::UNIX_EPOCH);
    /// assert_eq!(stored.at, Some(SystemTime::UNIX_EPOCH));
    /// ```
    #[must_use]
    pub const fn new(sequence: u64, payload: Bytes) -> Self {
        Self { sequence, payload, at: None }
    }

    /// Sets the time at which the log stored the record, by the clock of the broker.
    #[must_use]
    pub fn at(self, at: impl Into<Option<SystemTime>>) -> Self {
        Self { at: at.into(), ..self }
    }
}

/// A current value: its id and the newest record that set it.
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
    /// The [`Value::id`] that the record set. One record may be the current value of several ids.
    pub id: Box<str>,
    /// The record that set the value.
    pub record: Stored,
}

/// The maximum size of a value of [`Backplane::put_shared`] in bytes: 768 KiB. Every broker accepts
/// a message of this size by default.
pub const MAX_SHARED_BYTES: usize = 768 * 1024;

/// The control stream to which [`Backplane::broadcast`] sends a message. The broker limits each
/// stream separately, so that many presence messages displace no command.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use futures::StreamExt;
/// use tower_sse::backplane::{Backplane, ControlStream, Memory};
///
/// let log = Memory::new();
/// let mut messages = log.listen(None);
/// log.broadcast(ControlStream::Commands, "disconnect ada".into()).await?;
/// for n in 0..20_000 {
///     log.broadcast(ControlStream::Presence, format!("connection {n}").into()).await?;
/// }
/// let Some(received) = messages.next().await else { panic!("the stream ended") };
/// assert_eq!(received?.message, "disconnect ada");
/// # Ok(()) }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ControlStream {
    /// Commands for connections, for example disconnects, and requests to stop a run.
    Commands,
    /// Reports of an instance about itself: its connections, its lease and its runs.
    Presence,
}

/// A control message that [`Backplane::listen`] returns.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use futures::StreamExt;
/// use tower_sse::backplane::{Backplane, ControlMessage, ControlStream, Memory};
///
/// let log = Memory::new();
/// let mut messages = log.listen(None);
/// log.broadcast(ControlStream::Presence, "goodbye".into()).await?;
/// let Some(received) = messages.next().await else { panic!("the stream ended") };
/// let ControlMessage { message, .. } = received?;
/// assert_eq!(message, "goodbye");
/// # Ok(()) }
/// ```
#[doc(alias = "Told")]
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_structs, reason = "adapters make them")]
pub struct ControlMessage {
    /// The position of the message in the control streams, in the adapter's own format.
    /// [`Backplane::listen`] can continue after this position.
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
/// assert!(error.is_unknown()); // the broker may have processed the request
/// assert!(BackplaneError::rejected("out of memory").is_rejected());
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
    /// Creates the error of a request that had no effect, because the broker cannot be reached or
    /// cannot process requests now. The text is for logs, and must not contain secrets.
    pub fn unavailable(text: impl Into<Box<str>>) -> Self {
        Self { kind: Kind::Unavailable, text: text.into() }
    }

    /// Creates the error of a request that the broker did not confirm, for example because no
    /// answer arrived in time. The broker may have processed the request.
    pub fn unknown(text: impl Into<Box<str>>) -> Self {
        Self { kind: Kind::Unknown, text: text.into() }
    }

    /// Creates the error of a request that was rejected, for example because the broker is out of
    /// memory, denies permission, or is too old.
    pub fn rejected(text: impl Into<Box<str>>) -> Self {
        Self { kind: Kind::Rejected, text: text.into() }
    }

    /// Returns a copy of the error, for another record or another caller.
    pub(crate) fn duplicate(&self) -> Self {
        Self { kind: self.kind, text: self.text.clone() }
    }

    /// Turns an unknown error into an unavailable error, for a caller whose request was not sent
    /// yet.
    #[cfg(any(feature = "nats", feature = "postgres", feature = "redis"))]
    pub(crate) fn before_request(self) -> Self {
        if self.is_unknown() { Self::unavailable(self.text) } else { self }
    }

    /// Returns whether the broker may have processed the request.
    #[must_use]
    pub fn is_unknown(&self) -> bool {
        self.kind == Kind::Unknown
    }

    /// Returns whether the request was rejected.
    #[must_use]
    pub fn is_rejected(&self) -> bool {
        self.kind == Kind::Rejected
    }
}

impl fmt::Display for BackplaneError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            Kind::Unavailable => "broker unavailable",
            Kind::Unknown => "request not confirmed",
            Kind::Rejected => "request rejected",
        };
        write!(f, "{kind}: {}", self.text)
    }
}

impl Error for BackplaneError {}

/// Waits for the answer of a broker. Returns an [unknown](BackplaneError::is_unknown) error after
/// `limit`.
pub(crate) async fn in_time<T>(limit: Duration, answer: impl Future<Output = Answer<T>>) -> Answer<T> {
    let answer = tokio::time::timeout(limit, answer).await;
    answer.unwrap_or_else(|_| Err(BackplaneError::unknown("no answer in time")))
}

/// Returns the next item of a stream, or `None` when `time` is reached first.
///
/// The function checks the time first. Otherwise a stream that always has an item would keep the
/// caller from its periodic work.
pub(crate) async fn next_until<T>(time: Instant, stream: &mut BoxStream<'static, Answer<T>>) -> Answer<Option<T>> {
    match select(std::pin::pin!(sleep_until(time)), stream.next()).await {
        Either::Left(_) => Ok(None),
        Either::Right((Some(item), _)) => item.map(Some),
        Either::Right((None, _)) => Err(BackplaneError::unknown("the connection ended")),
    }
}
