//! Taking a connection out of everything that knows it: the registry, its channels, the lifecycle.
//!
//! A connection leaves the registry once ([`ConnectionHandle::leave_registry`]). The caller that makes
//! that step does the rest.

use std::sync::Arc;

use crate::hub::Inner;
use crate::hub::connection::handle::ConnectionHandle;
use crate::hub::connection::info::ConnectionInfo;
use crate::hub::observe::lifecycle::LifecycleEvent;
use crate::types::{EndReason, Topic};

impl Inner {
    /// Takes a connection out of everything, once.
    pub(in crate::hub) fn forget(self: &Arc<Self>, handle: &ConnectionHandle, reason: EndReason) {
        let was_due = handle.user().is_some().then(|| self.registry.next_due());
        if self.registry.remove(handle, self.now()) {
            if was_due == Some(None) {
                self.tasks.sweep.rouse();
            }
            self.bury(handle, reason);
        }
    }

    /// What is left to do for a connection that is out of the registry.
    pub(in crate::hub) fn bury(self: &Arc<Self>, handle: &ConnectionHandle, reason: EndReason) {
        let topics = self.close_channels(handle);
        self.counters.ended(handle.id(), reason, self.now());
        if handle.may_tell_end(reason) {
            self.tell_end(handle, topics, reason);
        }
    }

    pub(in crate::hub) fn tell_end(&self, handle: &ConnectionHandle, topics: Vec<Topic>, reason: EndReason) {
        self.lifecycles.tell(|| LifecycleEvent::Disconnected {
            connection: Arc::new(ConnectionInfo::of(handle, topics, self.now())),
            reason,
        });
    }
}
