//! The copy of a connection's state that an application receives.

use std::sync::Arc;
use std::time::Duration;

use http::Extensions;

use super::handle::ConnectionHandle;
use crate::log::Millis;
use crate::macros::opaque_debug;
use crate::sync::Ordering;
use crate::types::{ConnectionId, ScopeName, Topic, UserId};

/// The state of a connection at one moment.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let hub = tower_sse::Hub::builder().build()?;
/// use tower_sse::Subscription;
///
/// let ada = Subscription::for_user("ada").topic("news").data("Ada Lovelace").extension(7_u64);
/// let page = hub.subscribe(ada, None)?;
/// let connection = hub.connections().remove(0);
/// assert_eq!(connection.topics, ["news".try_into()?]);
/// assert_eq!(connection.data_json(), Some(r#""Ada Lovelace""#));
/// assert_eq!(connection.extensions().get::<u64>(), Some(&7));
/// # drop(page);
/// # Ok(()) }
/// ```
#[derive(Clone)]
#[non_exhaustive]
pub struct ConnectionInfo {
    /// The id of the connection. The client receives the id in `hub.hello`.
    pub id: ConnectionId,
    /// The user, or `None` for an anonymous connection.
    pub user: Option<UserId>,
    /// The topics in force.
    pub topics: Vec<Topic>,
    /// The time since the connection was opened.
    pub open_for: Duration,
    /// Whether the client opened the stream with an event id. False if the subscription ignores the
    /// id ([`without_history`](crate::Subscription::without_history)).
    pub resumed: bool,
    /// The number of events that were delivered to the connection, current values and repeated
    /// events included.
    pub delivered: u64,
    scope: ScopeName,
    data: Option<Arc<str>>,
    extensions: Extensions,
}

impl ConnectionInfo {
    /// Copies the state of a connection.
    pub(in crate::hub) fn of(handle: &ConnectionHandle, topics: Vec<Topic>, now: Millis) -> Self {
        Self {
            id: handle.id(),
            scope: handle.scope().clone(),
            user: handle.user().cloned(),
            topics,
            open_for: Duration::from_millis(now.saturating_sub(handle.opened_at)),
            resumed: handle.resumed,
            delivered: handle.delivered.load(Ordering::Relaxed),
            data: handle.data().cloned(),
            extensions: handle.extensions(),
        }
    }

    /// Returns the name of the [scope](crate::Scope) of the connection, or `None` if the connection
    /// has no scope.
    #[must_use]
    pub fn scope(&self) -> Option<&str> {
        self.scope.as_str()
    }

    /// Returns the value that [`Subscription::data`](crate::Subscription::data) attached, as JSON.
    #[must_use]
    pub fn data_json(&self) -> Option<&str> {
        self.data.as_deref()
    }

    /// Returns the values that [`Subscription::extension`](crate::Subscription::extension)
    /// attached.
    #[must_use]
    pub fn extensions(&self) -> &Extensions {
        &self.extensions
    }
}

// The debug output omits the data and the extensions, because they may hold secrets.
opaque_debug!(|info: ConnectionInfo| {
    id: info.id,
    scope: info.scope,
    user: info.user,
    topics: info.topics,
    open_for: info.open_for,
    resumed: info.resumed,
    delivered: info.delivered,
});
