//! An open connection as the application sees it.

use std::sync::Arc;
use std::time::Duration;

use http::Extensions;

use super::handle::ConnectionHandle;
use crate::log::Millis;
use crate::macros::opaque_debug;
use crate::sync::Ordering;
use crate::types::{ConnectionId, Topic, UserId};

/// An open connection, as it was at one moment.
#[derive(Clone)]
#[non_exhaustive]
pub struct ConnectionInfo {
    /// Its id: what its page knows from `hub.hello`.
    pub id: ConnectionId,
    /// The user, or `None` for an anonymous connection.
    pub user: Option<UserId>,
    /// The topics in force.
    pub topics: Vec<Topic>,
    /// For how long it has been open.
    pub open_for: Duration,
    /// Whether it came back with an id.
    pub resumed: bool,
    /// How many events it was handed, current values and repeated ones included.
    pub delivered: u64,
    data: Option<Arc<str>>,
    extensions: Extensions,
}

impl ConnectionInfo {
    pub(in crate::hub) fn of(handle: &ConnectionHandle, topics: Vec<Topic>, now: Millis) -> Self {
        Self {
            id: handle.id(),
            user: handle.user().cloned(),
            topics,
            open_for: Duration::from_millis(now.saturating_sub(handle.opened_at)),
            resumed: handle.resumed,
            delivered: handle.delivered.load(Ordering::Relaxed),
            data: handle.data().cloned(),
            extensions: handle.extensions(),
        }
    }

    /// What [`Subscription::data`](crate::Subscription::data) attached, as JSON.
    #[must_use]
    pub fn data_json(&self) -> Option<&str> {
        self.data.as_deref()
    }

    /// What [`Subscription::extension`](crate::Subscription::extension) attached.
    #[must_use]
    pub fn extensions(&self) -> &Extensions {
        &self.extensions
    }
}

// The data is left out, since it may hold secrets.
opaque_debug!(|info: ConnectionInfo| {
    id: info.id,
    user: info.user,
    topics: info.topics,
    open_for: info.open_for,
    resumed: info.resumed,
    delivered: info.delivered,
});
