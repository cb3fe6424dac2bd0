//! A connection as a channel sees it. A channel knows nothing of cursors, so that it stands below them.

use std::task::Waker;

use super::time::Millis;
use crate::types::ConnectionId;

pub(crate) trait Listener: Send + Sync {
    fn id(&self) -> ConnectionId;

    /// Marks it as woken. Returns the waker to call when no lock is held, unless it was woken
    /// already and has not looked since.
    #[must_use]
    fn notify(&self, now: Millis) -> Option<Waker>;
}
