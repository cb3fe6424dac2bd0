//! The interface through which a channel wakes a connection. The interface has no cursor, so that
//! channels do not depend on the reader.

use std::task::Waker;

use super::time::Millis;
use crate::types::ConnectionId;

pub(crate) trait Listener: Send + Sync {
    fn id(&self) -> ConnectionId;

    /// Marks the connection as woken. Returns the waker, to be called when no lock is held. Returns
    /// `None` if the connection was already woken and has not read since.
    #[must_use]
    fn notify(&self, now: Millis) -> Option<Waker>;
}
