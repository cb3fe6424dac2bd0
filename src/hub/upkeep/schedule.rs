//! The schedule of rechecks: the time of the next re-authorization of each stream that is
//! rechecked. This code does no I/O, and callers pass the time.

use std::cmp::Reverse;
use std::collections::binary_heap::BinaryHeap;

use crate::log::Millis;
use crate::macros::shrink_if_sparse;
use crate::sync::Mutex;
use crate::types::ConnectionId;

/// The rechecks of all streams, under one lock.
#[derive(Debug, Default)]
pub(in crate::hub) struct Rechecks {
    /// The checks. A caller adds a check before it starts or wakes the task, and the task takes the
    /// checks that are due.
    pub(super) schedule: Mutex<Schedule>,
}

/// Scheduled and running checks.
#[derive(Debug, Default)]
pub(super) struct Schedule {
    /// The scheduled checks, the earliest first.
    pub(super) due: BinaryHeap<Reverse<Check>>,
    /// The checks for which the access hook is running. A task that replaces a blocked task repeats
    /// these checks.
    pub(super) running: Vec<Check>,
}

/// A scheduled recheck of one connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::hub) struct Check {
    pub(super) at: Millis,
    pub(super) connection: ConnectionId,
    /// The number of successive checks that have failed.
    pub(super) failures: u8,
}

impl Check {
    /// Creates the first check of a connection. [`Rechecks::add`] sets its time.
    pub(in crate::hub) fn first(connection: ConnectionId) -> Self {
        Self { at: 0, connection, failures: 0 }
    }
}

impl Rechecks {
    /// Schedules a check one interval after `last`, the start of the last check or of the stream.
    /// Subtracts a random time of up to a tenth of the interval, so that streams that opened
    /// together are not rechecked together. Returns whether the check is due before all other
    /// scheduled checks.
    pub(in crate::hub) fn add(&self, check: Check, last: Millis, interval: Millis) -> bool {
        let at = last + interval - fastrand::u64(0..=interval / 10);
        let mut schedule = self.schedule.lock();
        let is_first = schedule.due.peek().is_none_or(|Reverse(first)| at < first.at);
        schedule.due.push(Reverse(Check { at, ..check }));
        is_first
    }

    /// Takes the next check that is due, and returns it with the result of `find` for its
    /// connection. Drops due checks for which `find` returns `None`.
    pub(super) fn next<T>(&self, now: Millis, find: impl Fn(ConnectionId) -> Option<T>) -> Option<(Check, T)> {
        let mut schedule = self.schedule.lock();
        while schedule.due.peek().is_some_and(|Reverse(check)| check.at <= now) {
            let Reverse(check) = schedule.due.pop()?;
            if let Some(found) = find(check.connection) {
                schedule.running.push(check);
                return Some((check, found));
            }
        }
        shrink_if_sparse!(schedule.due);
        None
    }
}

#[cfg(feature = "test-kit")]
impl Rechecks {
    /// Returns the number of scheduled and running checks.
    pub(in crate::hub) fn len(&self) -> usize {
        let schedule = self.schedule.lock();
        schedule.due.len() + schedule.running.len()
    }
}

impl Schedule {
    pub(super) fn is_empty(&self) -> bool {
        self.due.is_empty() && self.running.is_empty()
    }
}
