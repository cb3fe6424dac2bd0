//! The limits of a log at a broker, and the time limit of an adapter.

use std::fmt;
use std::time::Duration;

/// The limits of the records and current values that a broker retains, for `Redis::limits` and
/// `Nats::limits`.
///
/// When a limit is reached, the broker removes the oldest records first. Set the same limits on all
/// instances of a namespace: Redis applies the limits of the instance that appends, and NATS the
/// limits of the instance that connected last.
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
    /// The time limit for connecting, and for each answer. A setting of the adapter, not a limit of
    /// the log.
    pub(super) timeout: Duration,
}

impl LogLimits {
    /// Creates the default limits.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the maximum number of retained records. At least 1. Defaults to 100,000. On Redis the
    /// number is approximate.
    pub fn max_records(mut self, records: usize) -> Self {
        self.max_records = records.max(1);
        self
    }

    /// Sets the maximum size of the retained records in bytes, without current values. Defaults to
    /// 256 MiB.
    ///
    /// Redis always retains the newest record, and needs about 100 bytes more for each record.
    ///
    /// NATS also counts the subject, the headers and about 30 bytes of each record. The NATS server
    /// reserves the bytes on its disk. If the disk has no room for them, every call fails with an
    /// error that names the reason. The server rejects a record that is larger than this limit.
    pub fn max_bytes(mut self, bytes: u64) -> Self {
        self.max_bytes = bytes.max(1);
        self
    }

    /// Sets the maximum age of a retained record. Defaults to one hour. Redis removes old records
    /// when a record is appended. On NATS the age is at least 100 ms.
    pub fn max_age(mut self, age: Duration) -> Self {
        self.max_age = age;
        self
    }

    /// Sets the maximum number of current values. At least 1. Defaults to 100,000. The broker
    /// removes the oldest values first.
    ///
    /// On NATS a removed value counts too. An event that sets the value of several topics at once
    /// counts separately: once for each set of topics.
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

/// Writes the text that instances compare. It omits the timeout, which may differ between
/// instances.
impl fmt::Display for LogLimits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { max_records, max_bytes, max_age, max_values, .. } = self;
        write!(f, "{max_records} records, {max_bytes} bytes, {max_age:?}, {max_values} values")
    }
}
