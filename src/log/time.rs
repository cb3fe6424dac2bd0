//! The time of the log: milliseconds that the caller passes in, so that the log reads no clock.

use std::time::Duration;

/// Milliseconds since a moment that the owner of the log chose.
pub(crate) type Millis = u64;

/// Converts a duration to whole milliseconds. Clamps very long durations, so that sums of a few of
/// them do not overflow.
pub(crate) fn millis(duration: Duration) -> Millis {
    u64::try_from(duration.as_millis()).unwrap_or(Millis::MAX).min(Millis::MAX / 8)
}
