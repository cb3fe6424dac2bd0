//! The limits of a log at a broker: what the adapters keep there, and how long they wait for it.

use std::fmt;
use std::time::Duration;

/// How much a broker keeps of a log, for `Redis::limits` and `Nats::limits`.
///
/// The oldest records go first when one of the limits is reached. All instances of a namespace should have the same
/// limits: Redis trims by the limits of each publisher, NATS by those of the instance that connected last.
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
#[must_use = "limits do nothing until an adapter has them"]
pub struct LogLimits {
    pub(super) max_records: usize,
    pub(super) max_bytes: u64,
    pub(super) max_age: Duration,
    pub(super) max_values: usize,
    /// How long connecting, and an answer, may take. A setting of the adapter and not a limit of the log.
    pub(super) timeout: Duration,
}

impl LogLimits {
    /// The defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets how many records the log keeps, on Redis about. At least 1. Defaults to 100,000.
    pub fn max_records(mut self, records: usize) -> Self {
        self.max_records = records.max(1);
        self
    }

    /// Sets how many bytes of records the log keeps. Current values are not part of them. Defaults to 256 MiB.
    ///
    /// Redis keeps the newest record in any case, and needs some 100 bytes more for each record. NATS counts what the
    /// server adds to each record: its subject, its headers and some 30 bytes. The NATS server reserves the bytes on its
    /// disk; if it has no room for them, every call is an error that says so, and a record that is larger is refused.
    pub fn max_bytes(mut self, bytes: u64) -> Self {
        self.max_bytes = bytes.max(1);
        self
    }

    /// Sets how long the log keeps a record. Redis looks at it when a record is appended; on NATS it is at least
    /// 100 ms. Defaults to an hour.
    pub fn max_age(mut self, age: Duration) -> Self {
        self.max_age = age;
        self
    }

    /// Sets how many current values are kept; the oldest go first. At least 1. Defaults to 100,000.
    ///
    /// On NATS a value that was removed counts too, and so does every set of topics to which one record was published
    /// as their value.
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

/// The text that instances compare: it leaves out the timeout, which may differ between instances.
impl fmt::Display for LogLimits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { max_records, max_bytes, max_age, max_values, .. } = self;
        write!(f, "{max_records} records, {max_bytes} bytes, {max_age:?}, {max_values} values")
    }
}
