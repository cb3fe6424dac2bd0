//! How many connections there may be, and how fast they may come.

use std::time::Duration;

use crate::log::Millis;

/// What happens when a limit on connections is reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum OverLimit {
    /// The new one is refused softly: `hub.refused` with the reason `limit` and a random `retry`. Browsers come back.
    #[default]
    Refuse,
    /// The new one is let in and the oldest ends, with the reason `limit`. It comes back after ten to twenty times
    /// [`HubBuilder::retry`](crate::HubBuilder::retry) and takes another one's place, so those who are too many take
    /// turns, and each is told what it missed meanwhile.
    CloseOldest,
}

/// How much later than usual one comes back that had to make room, as a multiple of the usual.
pub(super) const AFTER_DISPLACEMENT: u32 = 10;

/// After how long everybody may try again, in seconds, however many wait.
const LONGEST_WAIT: f64 = 30.0;

#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Limits {
    pub(crate) total: Option<(usize, OverLimit)>,
    pub(crate) per_user: Option<(usize, OverLimit)>,
    pub(crate) per_second: Option<u32>,
}

/// A token bucket, one second deep. Time passed in.
#[derive(Debug, Default)]
pub(super) struct Rate {
    tokens: f64,
    /// About how many were turned away and have not had their turn yet.
    waiting: f64,
    at: Option<Millis>,
}

impl Rate {
    /// Takes a place; else says after how long there will be one for this caller, since others wait before it.
    pub(super) fn take(&mut self, per_second: u32, now: Millis) -> Result<(), Duration> {
        let rate = f64::from(per_second);
        let come = match self.at.replace(now) {
            Some(at) => now.saturating_sub(at) as f64 / 1000.0 * rate,
            None => rate,
        };
        self.tokens = (self.tokens + come).min(rate);
        self.waiting = (self.waiting - come).max(0.0);
        if self.tokens >= 1.0 {
            self.tokens -= 1.0;
            return Ok(());
        }
        // One client that comes again and again must not keep everybody else away.
        self.waiting = (self.waiting + 1.0).min(rate * LONGEST_WAIT);
        Err(Duration::from_secs_f64(self.waiting / rate))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_lets_as_many_through_as_it_should_and_the_others_wait_in_line() {
        let mut rate = Rate::default();
        let passed = (0..30).filter(|_| rate.take(10, 0).is_ok()).count();
        assert_eq!(passed, 10);
        // Twenty wait already, which takes two seconds.
        assert_eq!(rate.take(10, 0).unwrap_err().as_millis(), 2100);
        assert!(rate.take(10, 100).is_ok());
        assert!(rate.take(10, 100).is_err());
        let passed = (0..100).filter(|_| rate.take(10, 60_000).is_ok()).count();
        assert_eq!(passed, 10, "what was not used in time is gone");
        assert!((0..100_000).all(|_| rate.take(10, 60_000).is_err()));
        assert_eq!(rate.take(10, 60_000).unwrap_err().as_secs(), 30);
    }
}
