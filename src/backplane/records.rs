//! The records of a log, their positions, and current values.

use std::time::SystemTime;

use bytes::Bytes;

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
#[non_exhaustive]
pub struct LogPosition {
    /// The epoch of the log.
    pub epoch: u64,
    /// The number of the record in the log. The first record has the number 1.
    pub sequence: u64,
}

impl LogPosition {
    /// Creates the position of the record with this number in this epoch.
    #[must_use]
    pub const fn new(epoch: u64, sequence: u64) -> Self {
        Self { epoch, sequence }
    }
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
#[non_exhaustive]
pub struct LogState {
    /// The epoch of the log.
    pub epoch: u64,
    /// The number of the oldest retained record, or `last + 1` if the log retains no record.
    pub first: u64,
    /// The number of the newest record, even if the log no longer retains this record. 0 if no
    /// record was appended.
    pub last: u64,
}

impl LogState {
    /// Creates the state of a log in this epoch, with the numbers of the oldest retained record and
    /// of the newest record.
    #[must_use]
    pub const fn new(epoch: u64, first: u64, last: u64) -> Self {
        Self { epoch, first, last }
    }
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
#[non_exhaustive]
pub struct CurrentValue {
    /// The [`Value::id`] that the record set. One record may be the current value of several ids.
    pub id: Box<str>,
    /// The record that set the value.
    pub record: Stored,
}

impl CurrentValue {
    /// Creates the current value of an id.
    pub fn new(id: impl Into<Box<str>>, record: Stored) -> Self {
        Self { id: id.into(), record }
    }
}
