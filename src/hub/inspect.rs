//! Introspection: the open connections, their lifecycle events, and statistics.

use std::sync::Arc;

use super::Hub;
use super::cluster::shared_log::SharedLog;
use super::connection::handle::ConnectionHandle;
use super::connection::info::ConnectionInfo;
use super::observe::lifecycle::Lifecycle;
use super::observe::stats::Stats;

impl Hub {
    /// Returns the open connections of this instance, in no particular order. The list may or may
    /// not include connections that open or end during the call.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let hub = tower_sse::Hub::builder().build()?;
    /// use tower_sse::Subscription;
    ///
    /// let page = hub.subscribe(Subscription::for_user("ada").topic("news"), None)?;
    /// let connections = hub.connections();
    /// assert_eq!(connections.len(), 1);
    /// assert_eq!(connections[0].id, page.connection());
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn connections(&self) -> Vec<ConnectionInfo> {
        let now = self.now();
        let of =
            |handle: &Arc<ConnectionHandle>| ConnectionInfo::of(handle, self.log().topics(&handle.subscriber), now);
        self.registry().all().iter().map(of).collect()
    }

    /// Returns a stream of the lifecycle events of this instance's connections, from now on. The
    /// start of a connection comes before its end. Each event about a connection has its user, its
    /// topics, its age, the number of its events and the application's data.
    ///
    /// The hub waits for no consumer, and buffers 1,024 events. A consumer that falls further
    /// behind receives one [`LifecycleEvent::Missed`](crate::LifecycleEvent::Missed) in place of
    /// the dropped events, and continues with the oldest event in the buffer. Each call returns a
    /// separate stream, so that several consumers receive all events.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use tower_sse::{Hub, LifecycleEvent, Subscription};
    ///
    /// let hub = Hub::builder().build()?;
    /// let mut lifecycle = hub.lifecycle();
    /// let page = hub.subscribe(Subscription::for_user("ada"), None)?;
    /// let Some(LifecycleEvent::Connected(connection)) = lifecycle.next().await else { panic!() };
    /// assert_eq!(connection.id, page.connection());
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn lifecycle(&self) -> Lifecycle {
        self.inner.lifecycles.listen()
    }

    /// Returns the counts and sizes of this instance. The call reads a few words of every open
    /// connection, and holds no lock longer than it takes to copy the list of connections.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let hub = tower_sse::Hub::builder().build()?;
    /// hub.topic("news").publish(tower_sse::Event::new("headline", "Bridge closed")).await?;
    /// let stats = hub.stats();
    /// assert_eq!((stats.published, stats.connections), (1, 0));
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn stats(&self) -> Stats {
        let now = self.now();
        let usage = self.log().usage();
        let totals = self.counters().totals();
        let handles = self.registry().all();
        let overdue = |since: u64| now > since.saturating_add(1_000);
        Stats {
            connections: handles.len(),
            channels: usage.channels,
            users: self.registry().users(),
            retained_bytes: usage.ring_bytes,
            keyed_bytes: usage.keyed_bytes,
            position: self.position(),
            connected: totals.connected,
            published: totals.published,
            delivered: totals.delivered,
            others: self.inner.shared_log.as_ref().map_or(0, SharedLog::instances),
            skipped: self.inner.shared_log.as_ref().map_or(0, SharedLog::skipped),
            evicted: usage.evicted,
            // An idle stream has nothing to read, however old its cursor is.
            lag: handles
                .iter()
                .filter(|handle| handle.needs_poll(now))
                .map(|handle| self.log().lag(&handle.subscriber))
                .max()
                .unwrap_or(0),
            stalled: handles.iter().filter(|handle| handle.overdue_since().is_some_and(overdue)).count(),
            gaps: totals.gaps,
            refused: totals.refused,
            ended: totals.ended,
        }
    }
}
