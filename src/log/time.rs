//! The time of the log: a number of milliseconds that the caller passes in, so that the log reads no clock.

use std::time::Duration;

/// Milliseconds since a moment that the owner of the log chose.
pub(crate) type Millis = u64;

/// Whole milliseconds; what is longer than anybody waits is cut to where sums of it do not overflow.
pub(crate) fn millis(duration: Duration) -> Millis {
    u64::try_from(duration.as_millis()).unwrap_or(Millis::MAX).min(Millis::MAX / 8)
}
