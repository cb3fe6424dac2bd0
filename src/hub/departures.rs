//! The grace after a user or a member has left. Pure: time is passed in.
//!
//! 1. A departure is over when the grace has passed since then ([`Departures::is_over`]). A key that is
//!    back before that was never gone.
//! 2. The queue keeps each departure until it is over, even if its key is back. So its owner notes for
//!    each key when the key left last, and ignores a departure with another time.
//! 3. A sweep costs as much as has left, not as much as is there.

use std::collections::vec_deque::VecDeque;

use crate::log::Millis;
use crate::macros::give_memory_back;

#[derive(Debug)]
pub(in crate::hub) struct Departures<K> {
    /// Oldest first.
    queue: VecDeque<(Millis, K)>,
    pub(in crate::hub) grace: Millis,
}

/// Without a grace.
impl<K> Default for Departures<K> {
    fn default() -> Self {
        Self::new(0)
    }
}

impl<K> Departures<K> {
    pub(in crate::hub) fn new(grace: Millis) -> Self {
        Self { queue: VecDeque::new(), grace }
    }

    /// Whether a key that left at `since` has stayed away for the grace.
    pub(in crate::hub) fn is_over(&self, since: Millis, now: Millis) -> bool {
        since.saturating_add(self.grace) <= now
    }

    pub(in crate::hub) fn push(&mut self, since: Millis, key: K) {
        self.queue.push_back((since, key));
    }

    /// When the next departure is over.
    pub(in crate::hub) fn next_due(&self) -> Option<Millis> {
        self.queue.front().map(|(since, _)| since.saturating_add(self.grace))
    }

    /// Takes out the next departure that is over, with the time at which it began.
    pub(in crate::hub) fn pop_due(&mut self, now: Millis) -> Option<(Millis, K)> {
        self.queue.front().filter(|(since, _)| self.is_over(*since, now))?;
        give_memory_back!(self.queue);
        self.queue.pop_front()
    }
}
