//! Pauses of tasks that use a broker.
//!
//! After a failure, a task pauses. The pause doubles with each failure, from [`FIRST`] to
//! [`LONGEST`]. Each pause is multiplied by a random factor from 0.5 to 1.5, so that instances that
//! lost the same broker do not all reconnect at once.

use tokio::runtime::Handle;
use tokio::time::{Duration, Instant, sleep};

const FIRST: Duration = Duration::from_millis(50);
const LONGEST: Duration = Duration::from_secs(2);

/// The pauses between attempts.
#[derive(Debug)]
pub(in crate::hub) struct BackOff {
    pause: Duration,
    /// The time at which the current attempt began.
    begun: Instant,
}

impl BackOff {
    pub(in crate::hub) fn new() -> Self {
        Self { pause: FIRST, begun: Instant::now() }
    }

    /// Pauses after a failed attempt. If the attempt lasted longer than [`LONGEST`], the pauses
    /// start again with [`FIRST`].
    pub(in crate::hub) async fn wait(&mut self) {
        if self.begun.elapsed() > LONGEST {
            self.pause = FIRST;
        }
        sleep(self.pause.mul_f64(0.5 + fastrand::f64())).await;
        *self = Self { pause: (self.pause * 2).min(LONGEST), begun: Instant::now() };
    }
}

/// Returns whether the caller runs in a tokio runtime and can wait for a broker. If not, the caller
/// must return an error, because tokio's timers would panic.
pub(in crate::hub) fn can_wait() -> bool {
    Handle::try_current().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn pause_of(back_off: &mut BackOff) -> Duration {
        let begun = Instant::now();
        back_off.wait().await;
        begun.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn pauses_double_up_to_the_longest() {
        let mut back_off = BackOff::new();
        for expected in [50, 100, 200, 400, 800, 1600, 2000, 2000] {
            let pause = pause_of(&mut back_off).await.as_millis();
            assert!((expected / 2..=expected * 3 / 2 + 1).contains(&pause), "{pause} ms around {expected} ms");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn pause_is_short_after_a_long_attempt() {
        let mut back_off = BackOff::new();
        for _ in 0..8 {
            back_off.wait().await;
        }
        sleep(LONGEST + Duration::from_millis(1)).await;
        assert!(pause_of(&mut back_off).await < FIRST * 2);
    }
}
