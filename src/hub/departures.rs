//! The grace period after a user has left, or a member has left a topic. The caller passes the
//! time.
//!
//! 1. A departure is over when the grace period has passed ([`Departures::is_over`]). A key that
//!    returns before that has not left.
//! 2. The queue keeps each departure until it is over, even if its key has returned. So the owner
//!    of the queue stores the time of the last departure of each key, and ignores a departure with
//!    another time.
//! 3. The cost of a sweep grows with the number of departures, not with the number of keys that are
//!    present.

use std::collections::vec_deque::VecDeque;

use crate::log::Millis;
use crate::macros::shrink_if_sparse;

/// A queue of keys that have left, for example of users.
#[derive(Debug)]
pub(in crate::hub) struct Departures<K> {
    /// The departures with their times, oldest first.
    queue: VecDeque<(Millis, K)>,
    pub(in crate::hub) grace: Millis,
}

/// Creates a queue without a grace period.
impl<K> Default for Departures<K> {
    fn default() -> Self {
        Self::new(0)
    }
}

impl<K> Departures<K> {
    pub(in crate::hub) fn new(grace: Millis) -> Self {
        Self { queue: VecDeque::new(), grace }
    }

    /// Returns whether the grace period of a key that left at `since` has passed at `now`.
    pub(in crate::hub) fn is_over(&self, since: Millis, now: Millis) -> bool {
        since.saturating_add(self.grace) <= now
    }

    pub(in crate::hub) fn push(&mut self, since: Millis, key: K) {
        self.queue.push_back((since, key));
    }

    /// Returns the time at which the oldest departure is over, or `None` if the queue is empty.
    pub(in crate::hub) fn next_due(&self) -> Option<Millis> {
        self.queue.front().map(|(since, _)| since.saturating_add(self.grace))
    }

    /// Returns the allocated memory in bytes.
    #[cfg(any(test, feature = "test-kit"))]
    pub(in crate::hub) fn allocated(&self) -> usize {
        self.queue.capacity() * size_of::<(Millis, K)>()
    }

    /// Removes the oldest departure if it is over. Returns its time and its key.
    pub(in crate::hub) fn pop_due(&mut self, now: Millis) -> Option<(Millis, K)> {
        self.queue.front().filter(|(since, _)| self.is_over(*since, now))?;
        shrink_if_sparse!(self.queue);
        self.queue.pop_front()
    }
}
