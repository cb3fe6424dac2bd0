//! The limits of a log at a broker: what the adapters keep there, and how long they wait for it.

use std::fmt;
use std::time::Duration;

#[derive(Clone, Copy)]
pub(super) struct LogLimits {
    pub(super) max_records: usize,
    pub(super) max_bytes: u64,
    pub(super) max_age: Duration,
    pub(super) max_values: usize,
    /// How long connecting, and an answer, may take. Not a limit of the log.
    pub(super) timeout: Duration,
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
