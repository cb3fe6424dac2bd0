//! The handle by which publishers wake a connection, with the connection's cursor.
//!
//! 1. Between two calls of `listen`, `woken_at` changes from [`NOT_WOKEN`] to a time at most once.
//!    The publisher that makes this change takes the waker and calls it.
//! 2. The connection registers its waker, then resets `woken_at` to [`NOT_WOKEN`], then reads. A
//!    publisher makes its record visible, then sets `woken_at`. So either the read sees the record,
//!    or the publisher finds the waker.
//! 3. A connection that has read everything may sleep without another read, if it registers its
//!    waker again and then finds `woken_at` still at [`NOT_WOKEN`].

use std::task::Waker;

use super::listener::Listener;
use super::reader::Reader;
use super::time::Millis;
use crate::macros::opaque_debug;
use crate::sync::{AtomicU64, Mutex, Ordering, WakerCell};
use crate::types::ConnectionId;

const NOT_WOKEN: Millis = Millis::MAX;

pub(crate) struct CursorHandle {
    pub(super) id: ConnectionId,
    woken_at: AtomicU64,
    waker: WakerCell,
    pub(super) reader: Mutex<Reader>,
}

impl AsRef<CursorHandle> for CursorHandle {
    fn as_ref(&self) -> &CursorHandle {
        self
    }
}

/// A connection contains its handle, so that the two are one allocation.
impl<T: AsRef<CursorHandle> + Send + Sync> Listener for T {
    fn id(&self) -> ConnectionId {
        self.as_ref().id
    }

    fn notify(&self, now: Millis) -> Option<Waker> {
        self.as_ref().notify(now)
    }
}

// Omits the reader, because its channels refer back to the handle.
opaque_debug!(|handle: CursorHandle| { woken_since: handle.woken_since() });

impl CursorHandle {
    pub(crate) fn new(id: ConnectionId) -> Self {
        Self { id, woken_at: AtomicU64::new(NOT_WOKEN), waker: WakerCell::new(), reader: Mutex::new(Reader::default()) }
    }

    pub(crate) fn id(&self) -> &ConnectionId {
        &self.id
    }

    /// Registers the waker, and resets `woken_at`. The connection must read before it sleeps.
    pub(crate) fn listen(&self, waker: &Waker) {
        self.waker.register(waker);
        self.woken_at.swap(NOT_WOKEN, Ordering::AcqRel);
    }

    /// Returns whether a connection that had read everything may sleep without another read,
    /// because it was not woken since that read. If so, `waker` is registered, even if a publisher
    /// has just taken the previous waker.
    pub(crate) fn may_sleep(&self, waker: &Waker) -> bool {
        if self.was_woken() {
            return false;
        }
        self.waker.register(waker);
        !self.was_woken()
    }

    fn was_woken(&self) -> bool {
        self.woken_at.load(Ordering::Acquire) != NOT_WOKEN
    }

    /// Marks the connection as woken. Returns the waker to call, or `None` if the connection was
    /// already woken and has not read since.
    #[must_use]
    pub(crate) fn notify(&self, now: Millis) -> Option<Waker> {
        // `fetch_min` always writes, also if the connection was already woken. So the swap in
        // `listen` either comes later and sees the record, or this write comes later and marks the
        // connection again. A compare-exchange that fails writes nothing, and would lose a wake-up.
        let before = self.woken_at.fetch_min(now, Ordering::AcqRel);
        (before == NOT_WOKEN).then(|| self.waker.take()).flatten()
    }

    /// Returns the time at which the connection was woken, or `None` if it was not woken after the
    /// last call of `listen`.
    pub(crate) fn woken_since(&self) -> Option<Millis> {
        Some(self.woken_at.load(Ordering::Acquire)).filter(|&at| at != NOT_WOKEN)
    }
}
