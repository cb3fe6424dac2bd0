//! The line that a hub logs once: when it first wraps a listener or a socket, or when its first
//! request arrives.

use crate::sync::{AtomicBool, Mutex, Ordering};

/// The paths of a hub's layers, and whether the start was logged.
#[derive(Debug, Default)]
pub(in crate::hub) struct Start {
    mounts: Mutex<Vec<Box<str>>>,
    is_logged: AtomicBool,
}

/// The maximum number of paths in the line. A program may create layers without end, for example
/// one for each connection.
const MAX_MOUNTS: usize = 64;

impl Start {
    /// Notes the path of a layer. Returns whether the path was added: it is new, and the list is
    /// not full.
    pub(in crate::hub) fn note_mount(&self, path: &str) -> bool {
        let mut mounts = self.mounts.lock();
        let is_new = mounts.len() < MAX_MOUNTS && mounts.iter().all(|noted| **noted != *path);
        if is_new {
            mounts.push(path.into());
        }
        is_new
    }

    /// Logs the line at the first call. `log` returns the location of the log.
    pub(in crate::hub) fn log(&self, log: impl FnOnce() -> String, instance: Option<&str>) {
        if self.is_logged.load(Ordering::Relaxed) || self.is_logged.swap(true, Ordering::AcqRel) {
            return;
        }
        let mounts = self.mounts.lock().clone();
        tracing::info!(name: "sse.hub.started", log = log(), instance, layers = ?mounts, "the hub has started");
    }
}
