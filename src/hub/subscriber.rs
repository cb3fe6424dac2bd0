//! Streams in this process: the same reads as a browser's stream, without HTTP.

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
    Address, ConnectionId, Cursor, DisconnectClock, EndReason, GapReason, Position, Refusal, RefusalReason,
    Subscription, SubscriptionError, Topic,
};

/// An item of an in-process stream, which [`Hub::subscribe`] returns.
///
/// ```
/// use tower_sse::SubscriberItem;
///
/// fn log_item(item: SubscriberItem) {
///     match item {
///         SubscriberItem::Event(event) => println!("{}: {}", event.name, event.data),
///         SubscriberItem::Gap { reason, topics } => println!("events lost ({reason}): {topics:?}"),
///         SubscriberItem::End(reason) => println!("the hub ended the stream: {reason}"),
///         item => println!("{item:?}"),
///     }
/// }
/// # log_item(SubscriberItem::Stale);
/// ```
#[doc(alias = "StreamItem")]
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SubscriberItem {
    /// An event.
    Event(ReceivedEvent),
    /// Events were lost, because they are no longer retained. Fetch the state again.
    Gap {
        /// The reason of the gap.
        reason: GapReason,
        /// The affected topics of the subscription. It may be empty if events to the user or to
        /// everyone were lost.
        topics: Vec<Topic>,
    },
    /// The stream has caught up: every event up to this position has been yielded.
    Live(Position),
    /// The hub cannot follow the shared log. [`Live`](Self::Live) comes when it can again. The
    /// stream then has every event that the broker has retained.
    Stale,
    /// The hub ended the stream. This is the last item.
    End(EndReason),
}

/// An event as a subscriber receives it.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let hub = tower_sse::Hub::builder().build()?;
/// use tower_sse::{Event, SubscriberItem, Subscription};
///
/// let mut page = hub.subscribe(Subscription::anonymous().topic("news"), None)?;
/// let receipt = hub.topic("news").publish(Event::new("headline", "Bridge closed")).await?;
/// let Some(SubscriberItem::Event(event)) = page.next().await else { panic!("no event") };
/// assert_eq!((&*event.name, &*event.data), ("headline", "Bridge closed"));
/// assert_eq!(event.position, receipt.position);
/// assert_eq!(event.topic, Some("news".try_into()?));
/// # Ok(()) }
/// ```
#[doc(alias = "Received")]
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ReceivedEvent {
    /// The position of the event in the log.
    pub position: Position,
    /// The topic through which the event arrived. `None` if it was sent to the user, the connection
    /// or everyone.
    pub topic: Option<Topic>,
    /// The name of the event, empty if it has none.
    pub name: String,
    /// The data of the event, with every line break as LF, as a browser would read it.
    pub data: String,
}

impl Hub {
    /// Subscribes in this process, without HTTP: for tests, and for bridges to WebSocket or gRPC.
    /// The stream yields the events that a browser with this subscription would receive. `cursor`
    /// is the [`Position`] to resume from, or `None`.
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
    /// [`SubscriberItem::Live`] comes when the stream has yielded every earlier event. That
    /// includes events that were published before the first item was taken. With
    /// [`Retention::latest_per_key`](crate::Retention::latest_per_key), a late reader skips
    /// outdated values, like a slow page.
    ///
    /// The subscription exists when this method returns, before the stream is first polled.
    /// Dropping the stream ends the subscription. If the subscription expires, or if
    /// [`max_connection_age`](HubBuilder::max_connection_age) is set, poll the stream in a tokio
    /// runtime.
    ///
    /// # Errors
    /// - The subscription is invalid, for example a name or the number of topics.
    /// - A limit on connections is reached.
    /// - The user or a topic is banned.
    /// - The hub is draining, or was drained.
    /// - The operating system returns no random bytes.
    /// - With a shared log: the hub has not read the log yet, because the broker is unavailable
    ///   ([`SubscriptionError::is_unavailable`]).
    #[doc(alias = "stream")]
    #[expect(clippy::needless_pass_by_value, reason = "a subscription is for one stream")]
    pub fn subscribe(
        &self,
        subscription: Subscription,
        cursor: impl Into<Cursor>,
    ) -> Result<Subscriber, SubscriptionError> {
        let cursor = cursor.into();
        let open = || {
            let request = Request { to_network: false, asked_at: DisconnectClock::now(), authority: None };
            self.open(&subscription, cursor, request)
        };
        // A disconnect that came in between refuses the subscription. It does not ban the client,
        // so the hub decides once more.
        let opened = self.check_rate().and_then(|()| {
            open().or_else(|refusal| if refusal == Refusal::outdated() { open() } else { Err(refusal) })
        });
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

/// A stream in this process, returned by [`Hub::subscribe`]. It ends when the hub ends it, or when
/// it is dropped.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let hub = tower_sse::Hub::builder().build()?;
/// use futures::StreamExt;
/// use tower_sse::{Event, SubscriberItem, Subscription};
///
/// let page = hub.subscribe(Subscription::anonymous().topic("news"), None)?;
/// hub.topic("news").publish(Event::new("headline", "Bridge closed")).await?;
/// let items: Vec<SubscriberItem> = page.take(2).collect().await; // it is a `futures` stream
/// assert!(matches!(items[..], [SubscriberItem::Event(_), SubscriberItem::Live(_)]));
/// # Ok(()) }
/// ```
#[doc(alias = "HubStream")]
pub struct Subscriber {
    connection: ConnectionId,
    items: Pin<Box<dyn Stream<Item = SubscriberItem> + Send>>,
}

impl Subscriber {
    /// Returns the next item, or `None` after the hub has ended the stream. [`Hub::subscribe`] has
    /// an example. The subscriber is also a `futures` `Stream`.
    ///
    /// Cancel safety: a dropped future loses no item.
    pub async fn next(&mut self) -> Option<SubscriberItem> {
        poll_fn(|cx| self.items.as_mut().poll_next(cx)).await
    }

    /// Returns the id of the connection, for [`Hub::connection`] and
    /// [`Target::except`](crate::Target::except).
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
