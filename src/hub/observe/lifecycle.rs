//! What becomes of connections, for those who want to know: logs, metrics, "last seen".
//!
//! A slow consumer hears that it missed something. Nobody waits for it.

use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};

use futures::Stream;
use futures::future::poll_fn;
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

use crate::hub::connection::info::ConnectionInfo;
use crate::macros::opaque_debug;
use crate::types::{EndReason, GapReason, Topic};

/// What became of a connection: [`Hub::lifecycle`](crate::Hub::lifecycle).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum LifecycleEvent {
    /// A new page has opened a stream.
    Connected(Arc<ConnectionInfo>),
    /// A client has come back with an id.
    Resumed {
        /// Which.
        connection: Arc<ConnectionInfo>,
        /// Why it could not go on from where it was, if so.
        gap: Option<GapReason>,
    },
    /// An open stream was read so slowly that records were dropped.
    Lagged {
        /// Which.
        connection: Arc<ConnectionInfo>,
        /// Of which topics; may be empty when it is about the user or everyone.
        topics: Vec<Topic>,
    },
    /// A stream has ended. How long it was open and what it was handed are in the connection.
    Disconnected {
        /// Which, as it was at its end.
        connection: Arc<ConnectionInfo>,
        /// Why; each reason says whether the client should come back.
        reason: EndReason,
    },
    /// So many events were dropped, since this consumer was too slow for them.
    Missed(u64),
}

/// How many events wait for a slow consumer: those of a reload of a thousand pages.
const CAPACITY: usize = 1_024;

/// Starts when it is first asked for: the buffer costs memory.
#[derive(Debug, Default)]
pub(in crate::hub) struct Lifecycles {
    sender: OnceLock<broadcast::Sender<LifecycleEvent>>,
}

impl Lifecycles {
    pub(in crate::hub) fn listen(&self) -> Lifecycle {
        let sender = self.sender.get_or_init(|| broadcast::Sender::new(CAPACITY));
        let mut receiver = sender.subscribe();
        let events = async_stream::stream! {
            loop {
                match receiver.recv().await {
                    Ok(event) => yield event,
                    Err(RecvError::Lagged(missed)) => yield LifecycleEvent::Missed(missed),
                    Err(RecvError::Closed) => break,
                }
            }
        };
        Lifecycle(Box::pin(events))
    }

    /// Tells those who listen, if any do; only then the event is made.
    pub(in crate::hub) fn tell(&self, event: impl FnOnce() -> LifecycleEvent) {
        if let Some(sender) = self.sender.get().filter(|sender| sender.receiver_count() > 0) {
            // Nobody may be left meanwhile.
            let _ = sender.send(event());
        }
    }
}

/// What becomes of connections: [`Hub::lifecycle`](crate::Hub::lifecycle). It ends with the hub.
pub struct Lifecycle(Pin<Box<dyn Stream<Item = LifecycleEvent> + Send>>);

impl Lifecycle {
    /// The next event; `None` when the last handle of the hub, and every stream, is gone. It is also a
    /// `futures` `Stream`.
    ///
    /// Cancel safety: an event is taken or it is not; none is lost.
    pub async fn next(&mut self) -> Option<LifecycleEvent> {
        poll_fn(|cx| self.0.as_mut().poll_next(cx)).await
    }
}

impl Stream for Lifecycle {
    type Item = LifecycleEvent;
    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<LifecycleEvent>> {
        self.0.as_mut().poll_next(cx)
    }
}

opaque_debug!(|_lifecycle: Lifecycle| {});
