//! Introspection: the open connections, their lifecycle events, and statistics.

use std::sync::Arc;

use super::Hub;
#[cfg(feature = "test-kit")]
use super::cluster::shared_log::SharedLog;
use super::connection::handle::ConnectionHandle;
use super::connection::info::ConnectionInfo;
use super::observe::lifecycle::Lifecycle;
use super::observe::stats::Stats;

impl Hub {
    /// Returns the open connections of this instance, of every [scope](crate::Scope), in no
    /// particular order. The list may or may not include connections that open or end during the
    /// call. [`Scope::connections`](crate::Scope::connections) returns those of one scope.
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

    /// Returns a stream of the lifecycle events of this instance's connections, of every
    /// [scope](crate::Scope), from now on. The start of a connection comes before its end. Each
    /// event about a connection has its user, its topics, its age, the number of its events and the
    /// application's data.
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

    /// Returns the counts and sizes of this instance, for all [scopes](crate::Scope) together.
    /// [`Scope::stats`](crate::Scope::stats) returns those of one scope. The call reads a few words
    /// of every open connection, and holds no lock longer than it takes to copy the list of
    /// connections.
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
        self.inner.stats()
    }

    /// Returns the number of connections of other instances, and the memory that they take on this
    /// instance in bytes, without their data. For the simulation of this crate: the call takes a
    /// time that grows with the number of connections.
    #[cfg(feature = "test-kit")]
    #[doc(hidden)]
    #[must_use]
    pub fn memory_of_peers(&self) -> (usize, usize) {
        self.inner.shared_log.as_ref().map_or((0, 0), SharedLog::memory_of_peers)
    }

    /// Brings the metrics up to date, for example before the handler of `/metrics` renders them.
    /// This method needs the feature `metrics`. `docs/metrics.md` lists the metrics.
    ///
    /// The hub also brings the metrics up to date itself, so that an exporter that pushes needs no
    /// call:
    ///
    /// - at least every 5 s while a stream is open or an event is retained
    /// - after the last event has expired, after a refusal, and when the hub is dropped
    /// - with a [shared log](crate::HubBuilder::backplane), at least every third of
    ///   [`peer_timeout`](crate::HubBuilder::peer_timeout), and when the hub becomes stale or has
    ///   recovered
    ///
    /// A call costs as much as [`stats`](Self::stats).
    ///
    /// Metrics go to the recorder that was installed when the hub was built. Install the recorder
    /// first. The metrics of several hubs in a process are their sum.
    ///
    /// ```
    /// use tower_sse::Hub;
    ///
    /// // In production, `PrometheusBuilder::new().install_recorder()` comes first.
    /// let hub = Hub::builder().build()?;
    /// hub.record_metrics();
    /// # Ok::<(), tower_sse::BuildError>(())
    /// ```
    #[cfg(feature = "metrics")]
    #[cfg_attr(docsrs, doc(cfg(feature = "metrics")))]
    pub fn record_metrics(&self) {
        self.inner.record_stats();
    }
}
