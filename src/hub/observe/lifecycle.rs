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

/// A change of a connection's state, yielded by [`Hub::lifecycle`](crate::Hub::lifecycle).
///
/// ```
/// use tower_sse::LifecycleEvent;
///
/// fn log_change(event: &LifecycleEvent) {
///     match event {
///         LifecycleEvent::Connected(connection) => println!("{} connected", connection.id),
///         LifecycleEvent::Disconnected { connection, reason } => {
///             println!("{} disconnected after {:?}: {reason}", connection.id, connection.open_for);
///         }
///         event => println!("{event:?}"),
///     }
/// }
/// # log_change(&LifecycleEvent::Missed(3));
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum LifecycleEvent {
    /// A new page has opened a stream.
    Connected(Arc<ConnectionInfo>),
    /// A client has reconnected with an id.
    Resumed {
        /// The connection.
        connection: Arc<ConnectionInfo>,
        /// The reason why the client could not resume from its position, or `None` if it could.
        gap: Option<GapReason>,
    },
    /// An open stream was read so slowly that records were dropped.
    Lagged {
        /// The connection.
        connection: Arc<ConnectionInfo>,
        /// The topics of the dropped records. They may be empty when the records are about the user
        /// or everyone.
        topics: Vec<Topic>,
    },
    /// A stream has ended. Its connection says how long it was open and how many events were
    /// delivered.
    Disconnected {
        /// The connection, as it was at its end.
        connection: Arc<ConnectionInfo>,
        /// The reason of the end. Each reason says whether the client should reconnect.
        reason: EndReason,
    },
    /// The number of events that were dropped, because this consumer was too slow for them.
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

/// A stream of [lifecycle events](LifecycleEvent), returned by
/// [`Hub::lifecycle`](crate::Hub::lifecycle). It ends with the hub.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let hub = tower_sse::Hub::builder().build()?;
/// use tower_sse::{EndReason, LifecycleEvent, Subscription};
///
/// let mut lifecycle = hub.lifecycle();
/// drop(hub.subscribe(Subscription::for_user("ada"), None)?);
/// assert!(matches!(lifecycle.next().await, Some(LifecycleEvent::Connected(_))));
/// let Some(LifecycleEvent::Disconnected { reason, .. }) = lifecycle.next().await else { panic!() };
/// assert_eq!(reason, EndReason::Client);
/// # Ok(()) }
/// ```
pub struct Lifecycle(Pin<Box<dyn Stream<Item = LifecycleEvent> + Send>>);

impl Lifecycle {
    /// Returns the next event, or `None` when the last handle of the hub and every stream are gone.
    /// The lifecycle is also a `futures` `Stream`.
    ///
    /// Cancel safety: an event is either taken or not, and none is lost.
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
