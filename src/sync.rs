//! The primitives of the concurrent core, exchanged for loom's in its model tests.
//!
//! Locks here ignore poison: what they guard is consistent between any two statements that can panic, and a panic in
//! an application's callback must not take the hub with it.

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

    /// The lock, or `None` while another thread holds it.
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

/// A place for one waker that may be set and taken at the same time.
#[cfg(not(tower_sse_loom))]
pub(crate) use futures::task::AtomicWaker as WakerCell;

#[cfg(tower_sse_loom)]
#[derive(Debug)]
pub(crate) struct WakerCell(loom::future::AtomicWaker);

/// The methods have the names that they have in `futures`.
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
