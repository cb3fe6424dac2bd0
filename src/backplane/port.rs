//! The calls of a shared log.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::BoxStream;

use super::{
    Answer, BackplaneError, Begun, ControlMessage, ControlStream, CurrentValue, JournalAppend, JournalId, JournalPage,
    Journals, LogPosition, LogState, NewRecord, Range, ReadLimit, Seen, Stored,
};

/// A log that several instances share. The [module](super) lists its guarantees.
///
/// Other crates can implement the trait for further brokers. `docs/adapters.md` describes how, and
/// `test_kit::check_backplane` (feature `test-kit`) checks an adapter. Later versions add methods
/// only with a default implementation, and the types of the calls are extensible.
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
    /// before it appends the records. The [module](super) describes this detection of loss, and the
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
    /// [`ControlStream`] never displace messages of another.
    #[doc(alias = "tell")]
    fn broadcast(&self, stream: ControlStream, message: Bytes) -> BoxFuture<'_, Result<(), BackplaneError>>;

    /// Streams the control messages of all instances, of all control streams. [`ControlMessage`]
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
    /// has connected. A stream of `Memory` is connected at once. The streams of the other adapters
    /// connect when they are first polled.
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
    /// A value has at most [`MAX_SHARED_BYTES`](super::MAX_SHARED_BYTES), so a caller splits a larger one. The key is any
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

/// Implements [`Backplane`] for smart pointers to a log.
macro_rules! pointers {
    ($($pointer:ident),*) => {$(
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
