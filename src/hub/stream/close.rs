//! The removal of a connection from the registry and its channels, and the report of its end.
//!
//! A connection leaves the registry once ([`ConnectionHandle::leave_registry`]). The caller that
//! makes this step also calls [`Inner::finish_removal`], unless it refuses the connection during
//! the admission. So the end of a connection is counted and reported once, although its stream, a
//! command and the housekeeping may end it at the same time.

use std::sync::Arc;
#[cfg(feature = "metrics")]
use std::time::Duration;

use crate::hub::Inner;
use crate::hub::connection::handle::ConnectionHandle;
use crate::hub::connection::info::ConnectionInfo;
use crate::hub::observe::lifecycle::LifecycleEvent;
use crate::types::{EndReason, Topic};

impl Inner {
    /// Removes a connection from the registry and its channels, and counts and reports its end.
    /// Only the first call has an effect.
    pub(in crate::hub) fn forget(self: &Arc<Self>, handle: &ConnectionHandle, reason: EndReason) {
        let was_due = handle.user().is_some().then(|| self.registry.next_due());
        if self.registry.remove(handle, self.now()) {
            if was_due == Some(None) {
                self.tasks.sweep.rouse();
            }
            self.finish_removal(handle, reason);
        }
    }

    /// Removes a connection that has left the registry from its channels, and counts and reports
    /// its end.
    pub(in crate::hub) fn finish_removal(self: &Arc<Self>, handle: &ConnectionHandle, reason: EndReason) {
        let topics = self.close_channels(handle);
        self.counters.ended(handle.id(), reason, self.now());
        #[cfg(feature = "metrics")]
        self.counters.metrics.ended(reason, Duration::from_millis(self.now().saturating_sub(handle.opened_at)));
        if handle.may_report_end(reason) {
            self.report_end(handle, topics, reason);
        }
    }

    /// Reports the end of a connection to the consumers of the lifecycle.
    pub(in crate::hub) fn report_end(&self, handle: &ConnectionHandle, topics: Vec<Topic>, reason: EndReason) {
        self.lifecycles.send(|| LifecycleEvent::Disconnected {
            connection: Arc::new(ConnectionInfo::of(handle, topics, self.now())),
            reason,
        });
    }
}
