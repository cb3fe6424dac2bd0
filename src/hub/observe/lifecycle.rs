//! Lifecycle events of connections, for logs, metrics and the times at which users were last
//! online.
//!
//! The hub waits for no consumer. A slow consumer skips events, and receives their number.

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

/// A change in the life of a connection, yielded by [`Hub::lifecycle`](crate::Hub::lifecycle).
///
/// ```
/// use tower_sse::LifecycleEvent;
///
/// fn log_change(event: &LifecycleEvent) {
///     match event {
///         LifecycleEvent::Connected(connection) => println!("{:?} connected", connection.id),
///         LifecycleEvent::Disconnected { connection, reason } => {
///             println!("{:?} disconnected after {:?}: {reason}", connection.id, connection.open_for);
///         }
///         event => println!("{event:?}"),
///     }
/// }
/// # log_change(&LifecycleEvent::Missed(3));
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum LifecycleEvent {
    /// A client has opened a stream without an event id, or with a subscription that ignores the id
    /// ([`without_history`](crate::Subscription::without_history)).
    Connected(Arc<ConnectionInfo>),
    /// A client has reconnected with an event id.
    Resumed {
        /// The connection.
        connection: Arc<ConnectionInfo>,
        /// The reason why the hub could not use the event id. `None` if the stream resumes after
        /// the id. The stream may still report a gap for events that are no longer retained.
        gap: Option<GapReason>,
    },
    /// A client has read its open stream so slowly that it lost events.
    Lagged {
        /// The connection.
        connection: Arc<ConnectionInfo>,
        /// The topics of the lost events. The list may be empty if the events were sent to the user
        /// or to everyone.
        topics: Vec<Topic>,
    },
    /// A stream has ended. `connection` contains the time for which the stream was open and the
    /// number of delivered events.
    Disconnected {
        /// The connection, as it was at its end.
        connection: Arc<ConnectionInfo>,
        /// The reason of the end.
        reason: EndReason,
    },
    /// This consumer was too slow, and this number of events was dropped for it.
    Missed(u64),
}

/// The number of events that are buffered for a slow consumer. A client that reconnects causes two
/// events.
const CAPACITY: usize = 1_024;

/// The sender of lifecycle events. It is created for the first consumer, because its buffer takes
/// memory.
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

    /// Sends an event to the consumers. `event` is called only if there is a consumer.
    pub(in crate::hub) fn send(&self, event: impl FnOnce() -> LifecycleEvent) {
        if let Some(sender) = self.sender.get().filter(|sender| sender.receiver_count() > 0) {
            // Sending fails only if the last consumer was dropped meanwhile.
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
    /// Returns the next event, or `None` after the last handle of the hub and the last stream were
    /// dropped. The lifecycle is also a `futures` `Stream`.
    ///
    /// Cancel safety: a dropped future loses no event.
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
