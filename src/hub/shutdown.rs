//! Leaving: every stream ends by itself, spread out in time for those who come back, and the process is free to go.
//! And health: whether an instance is to get requests ([`Hub::is_ready`]).

use std::sync::{Arc, Weak};

use tokio::time::{Duration, timeout};

use super::{Hub, Inner};
use crate::hub::connection::handle::{ConnectionHandle, Ending};
use crate::sync::Ordering;
use crate::types::EndReason;

/// How many streams are told before others get their turn.
const BATCH: usize = 256;
/// How long a socket that was cut may take to be dropped.
const AFTER_CUT: Duration = Duration::from_secs(1);
/// How long a socket may stay open without a move after its streams have ended: an HTTP/2 server waits for an answer of
/// the peer, which may be frozen.
const LINGER: Duration = Duration::from_secs(2);
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
    /// The number of streams that ended with `hub.bye`.
    pub ended: usize,
    /// The number of streams and sockets that were cut, because they no longer took anything.
    pub cut: usize,
}

impl Hub {
    /// Whether this instance should get requests, for a readiness probe such as `/readyz`. It is
    /// false from the first moment of a [drain](Self::drain), and while the hub cannot follow a
    /// shared log. A liveness probe needs no hub.
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

    /// Ends every stream, so that the process can exit soon although streams were open.
    ///
    /// From the first moment of the drain the hub is not ready, and new requests get a retryable
    /// refusal. Every open stream gets `hub.bye` with a random `retry` of its own over `window`
    /// (between 0.1 s and 1 h), and ends. So the clients reconnect spread out in time, to another
    /// instance or to the next process. The method then waits until all streams have ended, at most
    /// for [`HubBuilder::drain_limit`](crate::HubBuilder::drain_limit). After that it cuts the
    /// streams that no longer take anything, where the hub's listener carries them.
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
    /// Publishing fails when the hub is closed. Without a backplane the hub closes just before the
    /// last streams are told to end, because no stream reads later events and the log ends with the
    /// process. With a backplane it closes after the wait.
    ///
    /// The hub cuts sockets that carried a stream, and that do not close within another 2 s without
    /// any progress.
    ///
    /// Streams in this process ([`Hub::subscribe`]) end too, when they are polled next. The drain
    /// does not wait for them.
    ///
    /// Await it inside the future of `with_graceful_shutdown`. After `serve` has returned is too
    /// late, because `serve` does not return while streams are open.
    ///
    /// Cancel safety: streams that were told to end will end, and the hub stays not ready. It may
    /// be called again.
    ///
    /// # Panics
    /// When polled outside of a tokio runtime with time enabled.
    pub async fn drain(&self, window: Duration) -> Drained {
        self.inner.draining.store(true, Ordering::Release);
        let handles = self.registry().all();
        let moves = self.transports().leave();
        tracing::info!(streams = handles.len(), "draining");
        let mut batches = handles.chunks(BATCH);
        let last = batches.next_back().unwrap_or_default();
        for batch in batches {
            batch.iter().for_each(|handle| self.tell(handle, window));
            tokio::task::yield_now().await;
        }
        if self.inner.shared_log.is_none() {
            // No stream reads what comes later, and the log ends with the process. Before the last streams are told,
            // so that no publish succeeds after every client has read `hub.bye`.
            self.inner.closed.store(true, Ordering::Release);
        }
        last.iter().for_each(|handle| self.tell(handle, window));
        let limit = self.settings().drain_limit;
        let all_gone = async {
            self.registry().emptied().await;
            self.transports().flushed().await;
        };
        let mut drained = Drained { ended: handles.len(), cut: 0 };
        if timeout(limit, all_gone).await.is_err() {
            let left: Vec<_> = self.registry().all().into_iter().filter(|handle| handle.to_network).collect();
            drained.ended = handles.len().saturating_sub(left.len());
            drained.cut = left.len();
            for transport in left.iter().filter_map(|handle| handle.transport()) {
                transport.cut();
            }
            // Of others the stream is over, but its last bytes were not taken.
            drained.cut += self.transports().cut_stuck();
            if left.iter().any(|handle| !handle.is_carrier_known()) {
                // HTTP/2 under a router that hides the socket: those that have not moved since are the stuck ones.
                self.transports().cut_unmoved(&moves);
            }
            // Where there is no listener of ours nothing can be cut; such a stream ends when it is next polled.
            let _ = timeout(AFTER_CUT, self.registry().emptied()).await;
            left.iter().for_each(|handle| self.inner.give_up(handle));
            tracing::warn!(cut = drained.cut, "streams that took nothing any more were cut");
        }
        self.inner.closed.store(true, Ordering::Release);
        if let Some(shared) = &self.inner.shared_log {
            self.tell_bye(shared).await;
        }
        let any_hidden = handles.iter().any(|handle| handle.to_network && !handle.is_carrier_known());
        tokio::spawn(cut_lingering(Arc::downgrade(&self.inner), any_hidden));
        tracing::info!(ended = drained.ended, cut = drained.cut, "drained");
        drained
    }

    fn tell(&self, handle: &ConnectionHandle, window: Duration) {
        let retry = self.jittered_retry(window, 0.0..=1.0);
        // What was published so far is still delivered: the next process may have another log.
        let after = self.log().last();
        handle.end(Ending { retry: Some(retry), after, ..Ending::now(EndReason::Draining) });
        handle.wake(self.now());
    }
}

/// In rounds, since the server's own farewell to a frozen peer is a move too. Where sockets of streams are hidden among
/// others, the others get the time that streams had.
async fn cut_lingering(hub: Weak<Inner>, any_hidden: bool) {
    for _ in 0..ROUNDS {
        let Some(hub) = hub.upgrade().filter(|hub| !hub.transports.is_empty()) else { return };
        let moves = hub.transports.leave();
        tokio::time::sleep(if any_hidden { hub.settings.drain_limit.max(LINGER) } else { LINGER }).await;
        hub.transports.cut_lingering(&moves, any_hidden);
    }
}
