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

/// What [`Hub::drain`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Drained {
    /// Streams that ended with `hub.bye`.
    pub ended: usize,
    /// Streams and sockets that took nothing any more and were cut.
    pub cut: usize,
}

impl Hub {
    /// Whether this instance should get requests, for a readiness probe such as `/readyz`. False from the first moment
    /// of a [drain](Self::drain), and while the hub cannot follow a shared log. A liveness probe needs no hub.
    #[doc(alias = "health")]
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.inner.ensure_shared_log();
        let is_attended = self.inner.tasks.of_shared_log.iter().all(|task| task.is_attended(&self.inner));
        let follows = self.inner.shared_log.as_ref().is_none_or(|shared| is_attended && shared.is_ready(self.now()));
        follows && !self.is_draining()
    }

    /// Ends every stream, so that the process can leave in a moment although streams were open.
    ///
    /// From its first moment the hub is not ready and answers new requests with the soft refusal. Every
    /// open stream gets `hub.bye` with a random `retry` of its own over `window` (between
    /// 0.1 s and 1 h), and ends: the clients come back
    /// spread out, to another instance or the next process. It then waits until all have ended, at most for
    /// [`HubBuilder::drain_limit`](crate::HubBuilder::drain_limit), and cuts those that take nothing any
    /// more, where the hub's listener carries them.
    ///
    /// Publishing fails when the hub is closed. Without a backplane that is just before the last streams are
    /// told to end, since no stream reads what comes later and the log ends with the process. With a backplane
    /// it is after the wait.
    ///
    /// Sockets that carried a stream and do not close within another 2 s, without a move, are cut then.
    ///
    /// Streams in this process ([`Hub::subscribe`]) end too, when they are polled next; it does not wait for them.
    ///
    /// Await it inside the future of `with_graceful_shutdown`: after `serve` has returned is too late,
    /// since `serve` does not return while streams are open.
    ///
    /// Cancel safety: streams that were told to end will; the hub stays not ready. It may be called again.
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
