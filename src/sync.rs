//! The locks and atomics of the concurrent core. In the model tests they are the types of loom.
//!
//! The locks ignore poison, so that a panic in a callback of the application does not disable the
//! hub. This is safe because the guarded data is consistent wherever a statement can panic.

#[cfg(not(tower_sse_loom))]
use std::sync as imp;

#[cfg(tower_sse_loom)]
use loom::sync as imp;

pub(crate) use imp::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};

pub(crate) use imp::MutexGuard;
use imp::{RwLockReadGuard, RwLockWriteGuard};
use std::sync::{PoisonError, TryLockError};

#[derive(Debug, Default)]
pub(crate) struct Mutex<T>(imp::Mutex<T>);

impl<T> Mutex<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(imp::Mutex::new(value))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Locks, or returns `None` if the lock is held.
    pub(crate) fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        match self.0.try_lock() {
            Ok(guard) => Some(guard),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }
}

#[derive(Debug, Default)]
pub(crate) struct RwLock<T>(imp::RwLock<T>);

impl<T> RwLock<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(imp::RwLock::new(value))
    }

    pub(crate) fn read(&self) -> RwLockReadGuard<'_, T> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn write(&self) -> RwLockWriteGuard<'_, T> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A cell for one waker. Threads may register and take the waker concurrently.
#[cfg(not(tower_sse_loom))]
pub(crate) use futures::task::AtomicWaker as WakerCell;

#[cfg(tower_sse_loom)]
#[derive(Debug)]
pub(crate) struct WakerCell(loom::future::AtomicWaker);

/// Gives loom's cell the method names of `futures::task::AtomicWaker`.
#[cfg(tower_sse_loom)]
impl WakerCell {
    pub(crate) fn new() -> Self {
        Self(loom::future::AtomicWaker::new())
    }

    pub(crate) fn register(&self, waker: &std::task::Waker) {
        self.0.register_by_ref(waker);
    }

    pub(crate) fn take(&self) -> Option<std::task::Waker> {
        self.0.take_waker()
    }
}
