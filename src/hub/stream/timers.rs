//! When an open stream has something to do by itself. Pure: time is passed in.

use std::num::NonZeroU32;

use tokio::time::Duration;

use crate::hub::Settings;
use crate::log::{Millis, millis};

/// How long before the end of a subscription its page hears `hub.expiring`, at most half of the time that is left: enough
/// for a request that renews the session.
const NOTICE: Duration = Duration::from_secs(30);
/// How long before its time a subscription ends at most.
const MOST_EARLY: Millis = 60_000;

#[derive(Debug)]
pub(in crate::hub) struct Heartbeat {
    /// In milliseconds; so much smaller than the rest that an absent one takes no room.
    every: NonZeroU32,
    written_at: Millis,
    /// When an id was last written, in quarters of a second.
    id_at: u32,
}

impl Heartbeat {
    pub(in crate::hub) fn new(settings: &Settings, now: Millis) -> Self {
        let every = millis(settings.heartbeat);
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

    /// Whether the last id that was written is nearly too old to come back with.
    pub(in crate::hub) fn needs_id(&self, settings: &Settings, now: Millis) -> bool {
        // A cursor that is older than the grace may meet a floor that is not its own; stay well below.
        now >= Millis::from(self.id_at) * QUARTER + millis(settings.channel_grace()) / 4
    }
}

/// Of a second.
const QUARTER: Millis = 250;

fn quarters(time: Millis) -> u32 {
    u32::try_from(time / QUARTER).unwrap_or(u32::MAX)
}

/// How long a subscription lasts.
#[derive(Debug)]
pub(in crate::hub) struct Expiry {
    /// What it was made from, to notice that it has been changed.
    given: Millis,
    notice_at: Millis,
    notified: bool,
    end_at: Millis,
}

impl Expiry {
    pub(in crate::hub) fn new(given: Millis, now: Millis) -> Self {
        let remaining = given.saturating_sub(now);
        // A little early, so that those who came together do not come back together.
        let end_at = given - fastrand::u64(0..=(remaining / 10).min(MOST_EARLY));
        let notice = millis(NOTICE).min(remaining / 2);
        Self { given, notice_at: end_at.saturating_sub(notice).max(now), notified: false, end_at }
    }

    pub(in crate::hub) fn is_of(&self, given: Millis) -> bool {
        self.given == given
    }

    pub(in crate::hub) fn is_over(&self, now: Millis) -> bool {
        now >= self.end_at
    }

    /// How much time is left, once, when it is time to say so.
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
    fn the_notice_comes_once_and_before_the_end_and_the_end_before_its_time() {
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
