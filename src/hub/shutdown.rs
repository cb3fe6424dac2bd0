//! Graceful shutdown ([`Hub::drain`]) and readiness ([`Hub::is_ready`]).
//!
//! A drain ends every stream, so that no stream keeps the process running. It spreads the
//! reconnects of the clients over a time window.

use std::sync::{Arc, Weak};

use tokio::time::{Duration, timeout};

use super::{Hub, Inner};
use crate::hub::connection::handle::{ConnectionHandle, Ending};
use crate::sync::Ordering;
use crate::types::EndReason;

/// The number of streams that a drain ends before it yields to other tasks.
const BATCH: usize = 256;
/// The maximum time for which the drain waits for streams to end after it has cut their sockets.
const AFTER_CUT: Duration = Duration::from_secs(1);
/// The minimum time without progress after which [`cut_lingering`] cuts a socket whose streams have
/// ended. An HTTP/2 server waits for an answer of the client, which may be frozen.
const LINGER: Duration = Duration::from_secs(2);
/// The maximum number of rounds of [`cut_lingering`].
const ROUNDS: usize = 5;

/// The result of [`Hub::drain`].
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let hub = tower_sse::Hub::builder().build()?;
/// let drained = hub.drain(std::time::Duration::from_secs(5)).await;
/// println!("{} streams ended, {} were cut", drained.ended, drained.cut);
/// # assert_eq!(drained, tower_sse::Drained::default());
/// # Ok(()) }
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Drained {
    /// The number of streams that were open at the start of the drain and did not have to be cut.
    pub ended: usize,
    /// The number of streams that had not ended within
    /// [`HubBuilder::drain_limit`](crate::HubBuilder::drain_limit), and of other sockets whose
    /// client had not taken the last bytes. The hub cut them.
    pub cut: usize,
}

impl Hub {
    /// Returns whether this instance should receive requests, for a readiness probe such as
    /// `/readyz`. Returns false from the first moment of a [drain](Self::drain), and while the hub
    /// cannot follow a shared log. A liveness probe does not need this method.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let hub = tower_sse::Hub::builder().build()?;
    /// assert!(hub.is_ready());
    /// hub.drain(std::time::Duration::from_secs(5)).await;
    /// assert!(!hub.is_ready()); // answer the probe with 503
    /// # Ok(()) }
    /// ```
    #[doc(alias = "health")]
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.inner.ensure_shared_log();
        let is_attended = self.inner.tasks.of_shared_log.iter().all(|task| task.is_attended(&self.inner));
        let follows = self.inner.shared_log.as_ref().is_none_or(|shared| is_attended && shared.is_ready(self.now()));
        follows && !self.is_draining()
    }

    /// Ends every stream, so that the server can shut down although streams were open.
    ///
    /// 1. From the first moment of the drain, the hub is not [ready](Self::is_ready), and new
    ///    requests for a stream get a retryable refusal.
    /// 2. Every open stream delivers the events that were published before. Then it ends with
    ///    `hub.bye` and a random `retry` between zero and `window` (at least 0.1 s, at most 1 h).
    ///    So the clients spread their reconnects over the window, and reach another instance or the
    ///    next process.
    /// 3. The method waits until all streams have ended and their last bytes are sent, but at most
    ///    for [`HubBuilder::drain_limit`](crate::HubBuilder::drain_limit), 5 s by default.
    /// 4. It cuts the sockets of the streams that have not ended, if it knows the sockets from its
    ///    listener or from [`Hub::io`].
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let hub = tower_sse::Hub::builder().build()?;
    /// use std::time::Duration;
    /// use tower_sse::{EndReason, Event, SubscriberItem, Subscription};
    ///
    /// let mut page = hub.subscribe(Subscription::anonymous().topic("news"), None)?;
    /// hub.drain(Duration::from_secs(5)).await;
    /// assert_eq!(page.next().await, Some(SubscriberItem::End(EndReason::Draining)));
    /// let headline = Event::new("headline", "Bridge closed");
    /// assert!(hub.topic("news").publish(headline).await.unwrap_err().is_closed());
    /// # Ok(()) }
    /// ```
    ///
    /// Await `drain` inside the future of `with_graceful_shutdown`. A call after `serve` is too
    /// late, because `serve` does not return while streams are open.
    ///
    /// A drained hub is closed: publishing fails
    /// ([`PublishError::is_closed`](crate::PublishError::is_closed)). Without a backplane, the hub
    /// closes just before it ends the last streams, because no stream reads later events and the
    /// log ends with the process. With a backplane, the hub closes after the wait.
    ///
    /// A socket that carried a stream may stay open after the stream has ended. The hub cuts such a
    /// socket if it makes no progress for another 2 s.
    ///
    /// A stream in this process ([`Hub::subscribe`]) ends when it is polled next. The drain does
    /// not wait for such streams.
    ///
    /// Cancel safety: if the future is dropped, the streams that the drain has already reached
    /// still end, and the hub stays not ready. The method can be called again.
    ///
    /// # Panics
    /// Panics when polled outside of a tokio runtime, or in a runtime whose time driver is
    /// disabled.
    pub async fn drain(&self, window: Duration) -> Drained {
        self.inner.draining.store(true, Ordering::Release);
        if self.inner.shared_log.is_none() {
            // The runs end with this process. Their readers receive the last wills before the
            // streams end.
            self.end_own_runs().await;
        }
        let handles = self.registry().all();
        let moves = self.transports().leave();
        tracing::info!(name: "sse.hub.draining", streams = handles.len(), "the hub is draining");
        let mut batches = handles.chunks(BATCH);
        let last = batches.next_back().unwrap_or_default();
        for batch in batches {
            batch.iter().for_each(|handle| self.end_for_drain(handle, window));
            tokio::task::yield_now().await;
        }
        if self.inner.shared_log.is_none() {
            // No stream reads later events, and the log ends with the process. Close before the
            // last streams end, so that no publish succeeds after every client has received
            // `hub.bye`.
            self.inner.closed.store(true, Ordering::Release);
        }
        last.iter().for_each(|handle| self.end_for_drain(handle, window));
        let limit = self.settings().drain_limit;
        let all_ended = async {
            self.registry().emptied().await;
            self.transports().flushed().await;
        };
        let mut drained = Drained { ended: handles.len(), cut: 0 };
        if timeout(limit, all_ended).await.is_err() {
            let left: Vec<_> = self.registry().all().into_iter().filter(|handle| handle.to_network).collect();
            drained.ended = handles.len().saturating_sub(left.len());
            drained.cut = left.len();
            for transport in left.iter().filter_map(|handle| handle.transport()) {
                transport.cut();
            }
            // Also cut sockets whose streams have ended, but whose clients have not taken the last
            // bytes.
            drained.cut += self.transports().cut_stuck();
            if left.iter().any(|handle| !handle.is_transport_known()) {
                // The hub may not know the socket of an HTTP/2 stream below a router. So it cuts
                // every socket that may carry such a stream and has made no progress since the
                // start of the drain.
                self.transports().cut_unmoved(&moves);
            }
            // Without the hub's listener or `Hub::io`, no socket can be cut. Such a stream ends
            // when it is polled next.
            let _ = timeout(AFTER_CUT, self.registry().emptied()).await;
            left.iter().for_each(|handle| self.inner.give_up(handle));
            tracing::warn!(name: "sse.hub.drain_cut", cut = drained.cut, "the drain cut streams and sockets that did not end within drain_limit");
        }
        self.inner.closed.store(true, Ordering::Release);
        if let Some(shared) = &self.inner.shared_log {
            self.end_own_runs().await;
            self.broadcast_goodbye(shared).await;
        }
        let any_hidden = handles.iter().any(|handle| handle.to_network && !handle.is_transport_known());
        tokio::spawn(cut_lingering(Arc::downgrade(&self.inner), any_hidden));
        tracing::info!(name: "sse.hub.drained", ended = drained.ended, cut = drained.cut, "the hub was drained");
        drained
    }

    /// Lets a stream deliver the events that were published so far, and then ends it.
    fn end_for_drain(&self, handle: &ConnectionHandle, window: Duration) {
        let retry = self.jittered_retry(window, 0.0..=1.0);
        // Deliver these events first: the next process may have another log, where the client could
        // not resume from its position.
        // At least 1, so that a stream of a run also reads the rest of the run first.
        let after = self.log().last().max(1);
        handle.end(Ending { retry: Some(retry), after, ..Ending::now(EndReason::Draining) });
        handle.wake(self.now());
    }
}

/// Cuts sockets that carried streams and stay open without progress. It works in rounds, because
/// the server's own last write to a frozen client counts as progress too. If `any_hidden`, the hub
/// does not know the sockets of some streams. Then it cuts every socket that may have carried a
/// stream, and waits at least `drain_limit` in each round.
async fn cut_lingering(hub: Weak<Inner>, any_hidden: bool) {
    for _ in 0..ROUNDS {
        let Some(hub) = hub.upgrade().filter(|hub| !hub.transports.is_empty()) else { return };
        let moves = hub.transports.leave();
        tokio::time::sleep(if any_hidden { hub.settings.drain_limit.max(LINGER) } else { LINGER }).await;
        hub.transports.cut_lingering(&moves, any_hidden);
    }
}
