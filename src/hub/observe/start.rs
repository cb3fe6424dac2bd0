//! The one line that a hub logs when its first request or socket arrives.

use crate::sync::{AtomicBool, Mutex, Ordering};

/// The mounts of a hub, and whether the start was logged.
#[derive(Debug, Default)]
pub(in crate::hub) struct Start {
    mounts: Mutex<Vec<Box<str>>>,
    is_logged: AtomicBool,
}

impl Start {
    pub(in crate::hub) fn note_mount(&self, path: &str) {
        self.mounts.lock().push(path.into());
    }

    /// Logs the line once. `log` returns the location of the log.
    pub(in crate::hub) fn log(&self, log: impl FnOnce() -> String, instance: Option<&str>) {
        if self.is_logged.load(Ordering::Relaxed) || self.is_logged.swap(true, Ordering::AcqRel) {
            return;
        }
        let mounts = self.mounts.lock();
        tracing::info!(log = log(), instance, layers = ?*mounts, "the hub has started");
    }
}
