//! The limits of a log at a broker, and the time limit of an adapter.

use std::fmt;
use std::time::Duration;

/// The limits of the records and current values that a broker retains, for `Redis::limits`,
/// `Nats::limits` and `Postgres::limits`.
///
/// Above a limit, the broker removes the oldest records or values first. Set the same limits on all
/// instances and publishers of a namespace: Redis and Postgres apply the limits of the adapter that
/// appends, and NATS applies the limits of the adapter that connected last.
///
/// ```
/// # #[cfg(feature = "redis")] fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use std::time::Duration;
/// use tower_sse::backplane::{LogLimits, Redis};
///
/// let day = Duration::from_secs(86_400);
/// let log = Redis::new("redis://127.0.0.1:6379", "shop")?.limits(LogLimits::new().max_age(day));
/// # let _ = log; Ok(()) }
/// # #[cfg(not(feature = "redis"))] fn main() {}
/// ```
#[derive(Clone, Copy, Debug)]
#[must_use = "limits have no effect until an adapter uses them"]
pub struct LogLimits {
    pub(super) max_records: usize,
    pub(super) max_bytes: u64,
    pub(super) max_age: Duration,
    pub(super) max_values: usize,
    /// The time limit for connecting, and for each answer. This is a setting of the adapter, not a
    /// limit of the log.
    pub(super) timeout: Duration,
}

impl LogLimits {
    /// Creates the default limits.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the maximum number of retained records. Defaults to 100,000. A value of 0 counts as 1.
    /// Redis may retain somewhat more records, and Postgres up to a sixteenth more.
    pub fn max_records(mut self, records: usize) -> Self {
        self.max_records = records.max(1);
        self
    }

    /// Sets the maximum size of the retained records in bytes, without current values. Defaults to
    /// 256 MiB. A value of 0 counts as 1.
    ///
    /// Redis always retains the newest record. It needs about 100 bytes of memory for each record
    /// in addition to this size.
    ///
    /// Postgres always retains the newest record, and up to a sixteenth more than this size. It
    /// needs about 110 bytes of disk for each record in addition, and as much space again for
    /// deleted rows until vacuum has run.
    ///
    /// NATS also counts the subject, the headers and about 30 bytes of each record. The NATS server
    /// reserves this size of its storage. If the server has not enough storage for a new log, every
    /// call fails with an error that names the reason. The NATS server rejects a record that is
    /// larger than this limit.
    pub fn max_bytes(mut self, bytes: u64) -> Self {
        self.max_bytes = bytes.max(1);
        self
    }

    /// Sets the maximum age of a retained record. Defaults to one hour. Redis and Postgres remove
    /// old records only when a record is appended. On NATS, an age below 100 ms counts as 100 ms.
    pub fn max_age(mut self, age: Duration) -> Self {
        self.max_age = age;
        self
    }

    /// Sets the maximum number of current values. Defaults to 100,000. A value of 0 counts as 1.
    /// The broker removes the oldest values first.
    ///
    /// On NATS, a removed value also counts. An event with a key that goes to several topics counts
    /// separately, once for each key and combination of topics.
    pub fn max_values(mut self, values: usize) -> Self {
        self.max_values = values.max(1);
        self
    }
}

impl Default for LogLimits {
    fn default() -> Self {
        Self {
            max_records: 100_000,
            max_bytes: 256 << 20,
            max_age: Duration::from_secs(3600),
            max_values: 100_000,
            timeout: Duration::from_secs(2),
        }
    }
}

/// Writes the text that instances compare. The text omits the timeout, which may differ between
/// instances.
impl fmt::Display for LogLimits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { max_records, max_bytes, max_age, max_values, .. } = self;
        write!(f, "{max_records} records, {max_bytes} bytes, {max_age:?}, {max_values} values")
    }
}
