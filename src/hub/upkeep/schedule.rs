//! When each open stream is asked about again. Pure: time is passed in.

use std::cmp::Reverse;
use std::collections::binary_heap::BinaryHeap;

use crate::log::Millis;
use crate::macros::give_memory_back;
use crate::sync::Mutex;
use crate::types::ConnectionId;

#[derive(Debug, Default)]
pub(in crate::hub) struct Rechecks {
    pub(super) schedule: Mutex<Schedule>,
}

#[derive(Debug, Default)]
pub(super) struct Schedule {
    pub(super) due: BinaryHeap<Reverse<Check>>,
    /// Those that the task is asking about.
    pub(super) asking: Vec<Check>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::hub) struct Check {
    pub(super) at: Millis,
    pub(super) connection: ConnectionId,
    pub(super) failures: u8,
}

impl Check {
    /// The first check of a connection.
    pub(in crate::hub) fn first(connection: ConnectionId) -> Self {
        Self { at: 0, connection, failures: 0 }
    }
}

impl Rechecks {
    /// Sets the time of the next check: an interval from the start of the last one, up to a tenth less, so
    /// that those who came together are not asked about together. Returns whether it is the first that is due.
    pub(in crate::hub) fn add(&self, check: Check, last: Millis, interval: Millis) -> bool {
        let at = last + interval - fastrand::u64(0..=interval / 10);
        let mut schedule = self.schedule.lock();
        let is_first = schedule.due.peek().is_none_or(|Reverse(first)| at < first.at);
        schedule.due.push(Reverse(Check { at, ..check }));
        is_first
    }

    /// Takes the next check that is due, with what `find` returns for its connection. Checks of connections that `find`
    /// does not know are dropped.
    pub(super) fn next<T>(&self, now: Millis, find: impl Fn(ConnectionId) -> Option<T>) -> Option<(Check, T)> {
        let mut schedule = self.schedule.lock();
        while schedule.due.peek().is_some_and(|Reverse(check)| check.at <= now) {
            let Reverse(check) = schedule.due.pop()?;
            if let Some(found) = find(check.connection) {
                schedule.asking.push(check);
                return Some((check, found));
            }
        }
        give_memory_back!(schedule.due);
        None
    }
}

impl Schedule {
    pub(super) fn is_empty(&self) -> bool {
        self.due.is_empty() && self.asking.is_empty()
    }
}
