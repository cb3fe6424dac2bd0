//! The heartbeat and the expiry of an open stream. The caller passes the time.

use std::num::NonZeroU32;

use tokio::time::Duration;

use crate::hub::Settings;
use crate::log::{Millis, millis};

/// The maximum time between `hub.expiring` and the end of the stream. It is enough for a request
/// that renews the session. The actual time is at most half of the time that remained when the
/// timer was created.
const NOTICE: Duration = Duration::from_secs(30);
/// The maximum time by which a stream ends before its subscription expires, in milliseconds.
const MOST_EARLY: Millis = 60_000;

/// The timer of the heartbeat.
#[derive(Debug)]
pub(in crate::hub) struct Heartbeat {
    /// The interval in milliseconds. It is `NonZero`, so that `Option<Heartbeat>` takes no more
    /// memory than `Heartbeat`.
    every: NonZeroU32,
    /// The time of the last write.
    written_at: Millis,
    /// The time at which an id was last written, in units of [`QUARTER`] milliseconds.
    id_at: u32,
}

impl Heartbeat {
    /// Creates a timer with this interval, shortened by up to a tenth at random.
    pub(in crate::hub) fn new(interval: Duration, now: Millis) -> Self {
        let every = millis(interval);
        let every = u32::try_from(every - fastrand::u64(0..=every / 10)).unwrap_or(u32::MAX);
        Self { every: NonZeroU32::new(every).unwrap_or(NonZeroU32::MIN), written_at: now, id_at: quarters(now) }
    }

    pub(in crate::hub) fn wrote(&mut self, with_id: bool, now: Millis) {
        self.written_at = now;
        if with_id {
            self.id_at = quarters(now);
        }
    }

    pub(in crate::hub) fn due(&self) -> Millis {
        self.written_at + Millis::from(self.every.get())
    }

    /// Returns whether the stream needs a fresh id: the last id was written at least a quarter of
    /// [`Settings::channel_grace`] ago.
    pub(in crate::hub) fn needs_id(&self, settings: &Settings, now: Millis) -> bool {
        // A cursor that is older than the grace period of channels may be below the
        // `trimmed_through` that the hub keeps for all forgotten channels, and cause a gap without
        // loss. A quarter leaves a margin.
        now >= Millis::from(self.id_at) * QUARTER + millis(settings.channel_grace()) / 4
    }
}

/// The unit of `id_at`: a quarter of a second, in milliseconds. In this unit, a time fits into 32
/// bits.
const QUARTER: Millis = 250;

fn quarters(time: Millis) -> u32 {
    u32::try_from(time / QUARTER).unwrap_or(u32::MAX)
}

/// The timer of the expiry of a subscription.
#[derive(Debug)]
pub(in crate::hub) struct Expiry {
    /// The time of expiry for which this timer was created. A recheck may give the subscription
    /// another time of expiry.
    given: Millis,
    notice_at: Millis,
    /// Whether `hub.expiring` was written.
    notified: bool,
    end_at: Millis,
}

impl Expiry {
    pub(in crate::hub) fn new(given: Millis, now: Millis) -> Self {
        let remaining = given.saturating_sub(now);
        // The stream ends up to a tenth of the remaining time early, at random, so that clients
        // that connected together do not reconnect together.
        let end_at = given - fastrand::u64(0..=(remaining / 10).min(MOST_EARLY));
        let notice = millis(NOTICE).min(remaining / 2);
        Self { given, notice_at: end_at.saturating_sub(notice).max(now), notified: false, end_at }
    }

    /// Returns whether this timer was created for this time of expiry.
    pub(in crate::hub) fn is_of(&self, given: Millis) -> bool {
        self.given == given
    }

    pub(in crate::hub) fn is_over(&self, now: Millis) -> bool {
        now >= self.end_at
    }

    /// Returns the time until the end if the notice is due. Returns `None` before that, and after
    /// the first notice.
    pub(in crate::hub) fn take_notice(&mut self, now: Millis) -> Option<Duration> {
        if self.notified || now < self.notice_at {
            return None;
        }
        self.notified = true;
        Some(Duration::from_millis(self.end_at.saturating_sub(now)))
    }

    pub(in crate::hub) fn due(&self) -> Millis {
        if self.notified { self.end_at } else { self.notice_at }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expiry_gives_notice_once_and_ends_at_most_a_minute_early() {
        for given in [1, 2, 10, 1_000, 100_000, 100_000_000] {
            let mut expiry = Expiry::new(given, 0);
            assert!(expiry.end_at <= given && expiry.end_at + MOST_EARLY >= given && expiry.end_at * 10 >= given * 9);
            assert!(expiry.notice_at <= expiry.end_at && !expiry.is_over(expiry.notice_at.saturating_sub(1)));
            assert_eq!(expiry.due(), expiry.notice_at);
            if expiry.notice_at > 0 {
                assert_eq!(expiry.take_notice(expiry.notice_at - 1), None);
            }
            let left = expiry.end_at - expiry.notice_at;
            assert_eq!(expiry.take_notice(expiry.notice_at), Some(Duration::from_millis(left)));
            assert_eq!(expiry.take_notice(expiry.notice_at), None);
            assert_eq!(expiry.due(), expiry.end_at);
        }
    }
}
