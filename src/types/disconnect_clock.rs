//! Before or after: a count of the disconnections of this process, finer than any clock.
//!
//! A request notes the moment at which it came, a ticket that at which it was made; a disconnection makes a new one.
//! Whatever was decided at an earlier moment may rest on what the disconnection has ended. A request does not know its
//! hub when it comes, so the count is one for the process.

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

    /// Later than everything before.
    pub(crate) fn new() -> Self {
        Self(DISCONNECTIONS.fetch_add(1, Ordering::SeqCst) + 1)
    }
}
