//! A logical clock: the count of the disconnects and topic removals of this process.
//!
//! A request stores the count when it arrives, and a ticket when it is issued. A disconnect
//! increments the count, and so does a command that removes a topic from a connection. So an
//! authorization with a lower count may be outdated, and must be repeated. A wall clock could not
//! order two events within one tick. The count is global to the process, because a request has no
//! hub yet when it arrives.

use std::sync::atomic::{AtomicU64, Ordering};

static DISCONNECTIONS: AtomicU64 = AtomicU64::new(0);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct DisconnectClock(u64);

impl DisconnectClock {
    pub(crate) fn now() -> Self {
        Self(DISCONNECTIONS.load(Ordering::SeqCst))
    }

    pub(crate) fn from_count(count: u64) -> Self {
        Self(count)
    }

    pub(crate) fn count(self) -> u64 {
        self.0
    }

    /// Increments the count, and returns a time that is later than all earlier ones.
    pub(crate) fn new() -> Self {
        Self(DISCONNECTIONS.fetch_add(1, Ordering::SeqCst) + 1)
    }
}
