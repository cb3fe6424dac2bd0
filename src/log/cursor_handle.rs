//! The meeting point of a connection and those who publish to it.
//!
//! 1. `woken_at` goes from "not woken" to a time exactly once for each sleep; who makes that step wakes.
//! 2. The connection registers its waker, then takes the time back to "not woken", then reads. A publisher makes its
//!    record visible, then marks. Either the read sees the record or the mark finds the waker.
//! 3. Who has read everything may sleep without another read if it registers its waker again and then finds no mark.

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

/// A connection has its handle as a part of itself, so that the two are one piece of memory.
impl<T: AsRef<CursorHandle> + Send + Sync> Listener for T {
    fn id(&self) -> ConnectionId {
        self.as_ref().id
    }

    fn notify(&self, now: Millis) -> Option<Waker> {
        self.as_ref().notify(now)
    }
}

// Without what it reads: its channels hold it in turn.
opaque_debug!(|handle: CursorHandle| { woken_since: handle.woken_since() });

impl CursorHandle {
    pub(crate) fn new(id: ConnectionId) -> Self {
        Self { id, woken_at: AtomicU64::new(NOT_WOKEN), waker: WakerCell::new(), reader: Mutex::new(Reader::default()) }
    }

    pub(crate) fn id(&self) -> &ConnectionId {
        &self.id
    }

    /// Registers for being woken and forgets that it was. A read must follow before it sleeps.
    pub(crate) fn listen(&self, waker: &Waker) {
        self.waker.register(waker);
        self.woken_at.swap(NOT_WOKEN, Ordering::AcqRel);
    }

    /// Whether it may sleep without a look, since it was not woken after the last one: for who has
    /// read everything then. If so, it is registered for being woken, also if a publisher has only
    /// now taken the waker of before.
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

    /// Marks it as woken. Returns the waker to call, unless it was woken already and has not looked since.
    #[must_use]
    pub(crate) fn notify(&self, now: Millis) -> Option<Waker> {
        // Always a write, also when it was woken before: the connection's own write must come after this one to forget
        // it, and then sees the record. A compare-exchange that fails writes nothing, and loses a wake-up.
        let before = self.woken_at.fetch_min(now, Ordering::AcqRel);
        (before == NOT_WOKEN).then(|| self.waker.take()).flatten()
    }

    /// Since when it has been woken without looking, if it has.
    pub(crate) fn woken_since(&self) -> Option<Millis> {
        Some(self.woken_at.load(Ordering::Acquire)).filter(|&at| at != NOT_WOKEN)
    }
}
