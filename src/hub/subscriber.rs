//! The same read, for code in this process.

use std::pin::Pin;
use std::task::{Context, Poll};

use futures::Stream;
use futures::future::poll_fn;

#[cfg(doc)]
use super::HubBuilder;
use super::stream::driver::Step;
use super::{Hub, Request};
use crate::log::Batch;
use crate::macros::opaque_debug;
use crate::types::refusal::Kind;
use crate::types::{
    Address, ConnectionId, Cursor, DisconnectClock, EndReason, GapReason, Position, RefusalReason, Subscription,
    SubscriptionError, Topic,
};

/// What an in-process stream yields: [`Hub::subscribe`].
#[doc(alias = "StreamItem")]
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SubscriberItem {
    /// An event.
    Event(ReceivedEvent),
    /// Records are not to be had: fetch the state anew. On these topics, if it is about topics.
    Gap {
        /// Why.
        reason: GapReason,
        /// Which of the subscription's topics; may be empty when it is about the user or everyone.
        topics: Vec<Topic>,
    },
    /// Caught up to here: everything before has been yielded.
    Live(Position),
    /// The log that instances share cannot be followed now. [`Live`](Self::Live) says when it can again,
    /// and nothing is missed that the broker has kept.
    Stale,
    /// The hub ended the stream. The last item.
    End(EndReason),
}

/// An event as a subscriber reads it.
#[doc(alias = "Received")]
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ReceivedEvent {
    /// Its place in the log.
    pub position: Position,
    /// The topic by which it came here; none if it was sent to the user, the connection or everyone.
    pub topic: Option<Topic>,
    /// Its name; empty if it has none.
    pub name: String,
    /// Its data, with every line break as LF: what a browser would have read.
    pub data: String,
}

impl Hub {
    /// Subscribes in this process, without HTTP: for tests, and for bridges to WebSocket or gRPC. What is yielded is
    /// what a browser with this subscription would get; `cursor` is a [`Position`] to go on from, or `None`.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use tower_sse::{Event, Hub, SubscriberItem, Subscription};
    ///
    /// let hub = Hub::builder().build()?;
    /// let mut page = hub.subscribe(Subscription::for_user("ada"), None)?;
    /// hub.user("ada").publish(Event::new("document.deleted", "7")).await?;
    /// assert!(matches!(page.next().await, Some(SubscriberItem::Event(event)) if event.data == "7"));
    /// # Ok(()) }
    /// ```
    ///
    /// [`SubscriberItem::Live`] comes when everything before has been yielded, also what was published before
    /// the first item was taken. With [`Retention::latest_per_key`](crate::Retention::latest_per_key) a
    /// late reader skips what is outdated, as a slow page would.
    ///
    /// It is subscribed when this returns, not when the stream is first polled. It needs a tokio runtime when polled if
    /// the subscription expires, or [connections](HubBuilder::max_connection_age) do. Dropping it ends the
    /// subscription.
    ///
    /// # Errors
    /// When the subscription's names or size are not allowed, a limit on connections is reached, the user
    /// was told to stay away, the hub has not read its shared log yet because the broker is not there
    /// ([`SubscriptionError::is_unavailable`]), or the hub is being drained.
    #[doc(alias = "stream")]
    #[expect(clippy::needless_pass_by_value, reason = "it is used for one stream")]
    pub fn subscribe(
        &self,
        subscription: Subscription,
        cursor: impl Into<Cursor>,
    ) -> Result<Subscriber, SubscriptionError> {
        let request = Request { to_network: false, asked_at: DisconnectClock::now(), authority: None };
        let opened = self.take_turn().and_then(|()| self.open(&subscription, cursor.into(), request));
        let connection = opened.map_err(|refusal| match refusal.0 {
            Kind::Invalid(invalid) => invalid,
            Kind::RetryLater { reason: RefusalReason::Limit, .. } => SubscriptionError::LIMIT,
            Kind::RetryLater { reason: RefusalReason::Busy, .. } => SubscriptionError::NO_RANDOM_BYTES,
            Kind::RetryLater { reason: RefusalReason::Disconnected, .. } | Kind::Gone => SubscriptionError::BANNED,
            Kind::RetryLater { reason: RefusalReason::Starting, .. } => SubscriptionError::UNAVAILABLE,
            _ => SubscriptionError::CLOSED,
        })?;
        let hub = self.clone();
        let id = connection.id();
        let items = async_stream::stream! {
            let mut connection = connection;
            let mut batch = Batch { wants_addresses: true, ..Batch::default() };
            while let Some(step) = poll_fn(|cx| connection.poll_step(cx, &mut batch)).await {
                match step {
                    Step::Gap { reason, topics } => yield SubscriberItem::Gap { reason, topics },
                    Step::Live(position, _) => yield SubscriberItem::Live(position),
                    Step::Bye(ending) => yield SubscriberItem::End(ending.reason),
                    Step::Stale => yield SubscriberItem::Stale,
                    Step::Hello { .. } | Step::Records | Step::Heartbeat | Step::Expiring(_) | Step::Abort => {}
                }
                for picked in batch.records.drain(..) {
                    let (name, data) = picked.record.frame.decode();
                    let position = hub.log().at(picked.record.sequence);
                    let topic = match picked.address() {
                        Some(Address::Topic(topic)) => Some(topic.clone()),
                        _ => None,
                    };
                    yield SubscriberItem::Event(ReceivedEvent { position, topic, name, data });
                }
            }
        };
        Ok(Subscriber { connection: id, items: Box::pin(items) })
    }
}

/// A subscription in this process: [`Hub::subscribe`]. It ends when the hub ends it, or when it is dropped.
#[doc(alias = "HubStream")]
pub struct Subscriber {
    connection: ConnectionId,
    items: Pin<Box<dyn Stream<Item = SubscriberItem> + Send>>,
}

impl Subscriber {
    /// The next item; `None` when the hub has ended the stream. It is also a `futures` `Stream`.
    ///
    /// Cancel safety: an item is taken or it is not; none is lost.
    pub async fn next(&mut self) -> Option<SubscriberItem> {
        poll_fn(|cx| self.items.as_mut().poll_next(cx)).await
    }

    /// Its connection, for [`Hub::connection`] and [`Target::except`](crate::Target::except).
    #[must_use]
    pub fn connection(&self) -> ConnectionId {
        self.connection
    }
}

impl Stream for Subscriber {
    type Item = SubscriberItem;
    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<SubscriberItem>> {
        self.items.as_mut().poll_next(cx)
    }
}

opaque_debug!(|stream: Subscriber| { connection: stream.connection });
