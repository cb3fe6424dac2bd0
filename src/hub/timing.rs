//! When an open stream has something to do by itself. Pure: time is passed in.

use tokio::time::Duration;

use super::Settings;
use crate::log::{Millis, millis};

/// How long before its time a subscription ends at most.
const MOST_EARLY: Millis = 60_000;

#[derive(Debug)]
pub(super) struct Heartbeat {
    every: Millis,
    written_at: Millis,
    /// When an id was last written, and after how long it is too old to come back with.
    id_at: Millis,
    refresh: Millis,
}

impl Heartbeat {
    pub(super) fn new(settings: &Settings, now: Millis) -> Self {
        let every = millis(settings.heartbeat);
        Self {
            every: every - fastrand::u64(0..=every / 10),
            written_at: now,
            id_at: now,
            // A cursor that is older than the grace may meet a floor that is not its own; stay well below.
            refresh: millis(settings.channel_grace) / 4,
        }
    }

    pub(super) fn wrote(&mut self, with_id: bool, now: Millis) {
        self.written_at = now;
        if with_id {
            self.id_at = now;
        }
    }

    pub(super) fn due(&self) -> Millis {
        self.written_at + self.every
    }

    pub(super) fn needs_id(&self, now: Millis) -> bool {
        now >= self.id_at + self.refresh
    }
}

/// How long a subscription lasts.
#[derive(Debug)]
pub(super) struct Expiry {
    /// What it was made from, to notice that it has been changed.
    given: Millis,
    notice_at: Millis,
    notified: bool,
    end_at: Millis,
}

impl Expiry {
    pub(super) fn new(given: Millis, settings: &Settings, now: Millis) -> Self {
        let remaining = given.saturating_sub(now);
        // A little early, so that those who came together do not come back together.
        let end_at = given - fastrand::u64(0..=(remaining / 10).min(MOST_EARLY));
        let notice = millis(settings.expiry_notice).min(remaining / 2);
        Self { given, notice_at: end_at.saturating_sub(notice).max(now), notified: false, end_at }
    }

    pub(super) fn is_of(&self, given: Millis) -> bool {
        self.given == given
    }

    pub(super) fn is_over(&self, now: Millis) -> bool {
        now >= self.end_at
    }

    /// How much time is left, once, when it is time to say so.
    pub(super) fn take_notice(&mut self, now: Millis) -> Option<Duration> {
        if self.notified || now < self.notice_at {
            return None;
        }
        self.notified = true;
        Some(Duration::from_millis(self.end_at.saturating_sub(now)))
    }

    pub(super) fn due(&self) -> Millis {
        if self.notified { self.end_at } else { self.notice_at }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Hub;

    #[test]
    fn the_notice_comes_once_and_before_the_end_and_the_end_before_its_time() {
        let hub = Hub::builder().expiry_notice(Duration::from_secs(30)).build().unwrap();
        for given in [1, 2, 10, 1_000, 100_000, 100_000_000] {
            let mut expiry = Expiry::new(given, hub.settings(), 0);
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
