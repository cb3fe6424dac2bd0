//! Streams in this process: they read the log as a browser's stream does, without HTTP.

use std::error::Error;
use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures::Stream;
use futures::future::poll_fn;
use serde::de::DeserializeOwned;

#[cfg(doc)]
use super::HubBuilder;
use super::stream::driver::Step;
use super::{Hub, Request};
use crate::log::Batch;
use crate::macros::opaque_debug;
use crate::types::refusal::Kind;
use crate::types::{
    Address, ConnectionId, Cursor, DisconnectClock, EndReason, GapReason, Message, Position, Refusal, RefusalReason,
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
    /// Events were lost, for example because they are no longer retained. Fetch the state again.
    Gap {
        /// The reason of the gap.
        reason: GapReason,
        /// The topics whose events were lost. It may be empty if events to the user, to the
        /// connection or to everyone were lost.
        topics: Vec<Topic>,
    },
    /// The stream has caught up: it has yielded every event of its subscription up to this
    /// position. The stream also yields `Live` after its topics have changed, and after
    /// [`Stale`](Self::Stale).
    Live(Position),
    /// The hub cannot follow the shared log. [`Live`](Self::Live) follows when the hub can follow
    /// the log again.
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
    /// The topic through which the stream received the event. `None` if the event was sent to the
    /// user, the connection or everyone.
    pub topic: Option<Topic>,
    /// The name of the event, or an empty text if the event has none.
    pub name: String,
    /// The data of the event, with every line break as LF, as a browser would read it.
    pub data: String,
}

impl ReceivedEvent {
    /// Returns the event as a value of a [`Message`] type, or `None` if the event has another name.
    ///
    /// # Errors
    ///
    /// Returns an error if the event has the name of the type, but its data is not of the type.
    pub fn message<M: Message + DeserializeOwned>(&self) -> Result<Option<M>, serde_json::Error> {
        M::from_event(&self.name, &self.data)
    }
}

/// The error of [`Subscriber::next_event`]: events were lost, or the stream has ended.
///
/// ```
/// use tower_sse::{NextEventError, Subscriber};
///
/// async fn show_news(mut news: Subscriber) {
///     loop {
///         match news.next_event().await {
///             Ok(event) => println!("{}", event.data),
///             Err(NextEventError::Gap { .. }) => println!("load the news again"),
///             Err(error) => return println!("{error}"),
///         }
///     }
/// }
/// # let _ = show_news;
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum NextEventError {
    /// Events were lost, for example because they are no longer retained. Fetch the state again.
    /// The stream continues: the next call returns the next event.
    Gap {
        /// The reason of the gap.
        reason: GapReason,
        /// The topics whose events were lost. It may be empty if events to the user, to the
        /// connection or to everyone were lost.
        topics: Vec<Topic>,
    },
    /// The hub ended the stream for this reason. Every further call returns this error again.
    End(EndReason),
}

impl fmt::Display for NextEventError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gap { reason, topics } => {
                write!(f, "events were lost ({reason})")?;
                for (n, topic) in topics.iter().enumerate() {
                    write!(f, "{}{topic}", if n == 0 { ": " } else { ", " })?;
                }
                Ok(())
            }
            Self::End(reason) => write!(f, "the hub ended the stream: {reason}"),
        }
    }
}

impl Error for NextEventError {}

impl Hub {
    /// Opens a stream in this process, without HTTP: for tests, and for bridges to WebSocket or
    /// gRPC. The stream yields the events that a browser with this subscription would receive.
    /// `cursor` is the [`Position`] after which the stream resumes, or `None`.
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
    /// The stream yields [`SubscriberItem::Live`] after every event that was published before this
    /// call. Events that were published after this call may come before or after it. With
    /// [`Retention::latest_per_key`](crate::Retention::latest_per_key), a slow reader skips
    /// outdated values, as a slow browser does.
    ///
    /// The subscription exists when this method returns, before the stream is first polled.
    /// Dropping the stream ends the subscription. If the subscription expires, or if
    /// [`max_connection_age`](HubBuilder::max_connection_age) is set, poll the stream in a tokio
    /// runtime. Otherwise it may not be woken when its time is over.
    ///
    /// # Errors
    /// - The subscription is invalid: a name is invalid, there are too many topics, or the attached
    ///   data is too long or cannot be serialized.
    /// - A limit on connections or on requests per second is reached.
    /// - The user, a topic, everyone or the cursor is banned.
    /// - The hub is draining, or was drained.
    /// - The operating system returns no random bytes.
    /// - With a shared log: the hub has not read the log yet, for example because the broker is
    ///   unavailable ([`SubscriptionError::is_unavailable`]).
    #[doc(alias = "stream")]
    #[expect(clippy::needless_pass_by_value, reason = "a subscription is for one stream")]
    pub fn subscribe(
        &self,
        subscription: Subscription,
        cursor: impl Into<Cursor>,
    ) -> Result<Subscriber, SubscriptionError> {
        let cursor = cursor.into();
        let open = || {
            let request = Request {
                to_network: false,
                asked_at: DisconnectClock::now(),
                authority: None,
                from_event_source: false,
            };
            self.open(&subscription, cursor, request)
        };
        // A disconnect during the call makes the hub refuse the subscription as outdated. This is
        // no ban, so the hub decides once more.
        let opened = self.check_rate().and_then(|()| {
            open().or_else(|refusal| if refusal == Refusal::outdated() { open() } else { Err(refusal) })
        });
        let connection = opened.map_err(|refusal| match refusal.0 {
            Kind::Invalid(invalid) => invalid,
            Kind::RetryLater { reason: RefusalReason::Limit, .. } => SubscriptionError::LIMIT,
            Kind::NoRun | Kind::Unresumable => SubscriptionError::NO_RUN,
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
                    Step::Run { frames, end } => {
                        let after = connection.run_position();
                        let first = after.map_or(0, Position::sequence) - frames.len() as u64;
                        for (sequence, frame) in (first + 1..).zip(frames) {
                            let (name, data) = frame.decode();
                            let epoch = after.map_or(hub.log().epoch(), Position::epoch);
                            let position = Position::new(epoch, sequence);
                            yield SubscriberItem::Event(ReceivedEvent { position, topic: None, name, data });
                        }
                        if let Some(ending) = end {
                            yield SubscriberItem::End(ending.reason);
                        }
                    }
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
        Ok(Subscriber { connection: id, items: Box::pin(items), ended: None })
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
    /// The reason of the end, once the stream has yielded [`SubscriberItem::End`].
    ended: Option<EndReason>,
}

impl Subscriber {
    /// Returns the next item, or `None` after the stream has ended. [`Hub::subscribe`] has an
    /// example. The subscriber is also a `futures` `Stream`.
    ///
    /// Cancel safety: a dropped future loses no item.
    pub async fn next(&mut self) -> Option<SubscriberItem> {
        poll_fn(|cx| Pin::new(&mut *self).poll_next(cx)).await
    }

    /// Returns the next event. Skips [`SubscriberItem::Live`] and [`SubscriberItem::Stale`].
    ///
    /// ```
    /// # #[cfg(feature = "derive")] #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use serde::{Deserialize, Serialize};
    /// use tower_sse::{Hub, Message, Subscription};
    ///
    /// #[derive(Serialize, Deserialize, Message)]
    /// enum Order {
    ///     #[message(event = "order.paid")]
    ///     Paid { id: u64, cents: u32 },
    ///     #[message(event = "order.cancelled")]
    ///     Cancelled { id: u64 },
    /// }
    ///
    /// let hub = Hub::builder().build()?;
    /// let mut page = hub.subscribe(Subscription::for_user("ada"), None)?;
    /// hub.user("ada").send(&Order::Paid { id: 8, cents: 990 }).await?;
    ///
    /// let event = page.next_event().await?;
    /// match event.message()? {
    ///     Some(Order::Paid { id, cents }) => assert_eq!((id, cents), (8, 990)),
    ///     Some(Order::Cancelled { id }) => panic!("order {id} was cancelled"),
    ///     None => panic!("another event: {}", event.name),
    /// }
    /// # Ok(()) }
    /// # #[cfg(not(feature = "derive"))] fn main() {}
    /// ```
    ///
    /// The call waits without a time limit. A test gives it one, for example with
    /// `tokio::time::timeout`, or reads the stream with the `TestClient` of the feature `test-kit`.
    ///
    /// Cancel safety: a dropped future loses no event and no error.
    ///
    /// # Errors
    ///
    /// Returns an error if events were lost before the next event, or if the stream has ended. The
    /// stream continues after [`NextEventError::Gap`].
    pub async fn next_event(&mut self) -> Result<ReceivedEvent, NextEventError> {
        loop {
            match self.next().await {
                Some(SubscriberItem::Event(event)) => return Ok(event),
                Some(SubscriberItem::Gap { reason, topics }) => return Err(NextEventError::Gap { reason, topics }),
                Some(SubscriberItem::Live(_) | SubscriberItem::Stale) => {}
                Some(SubscriberItem::End(reason)) => return Err(NextEventError::End(reason)),
                // Every stream yields the reason before its end.
                None => return Err(NextEventError::End(self.ended.unwrap_or(EndReason::Client))),
            }
        }
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
        let item = ready!(self.items.as_mut().poll_next(cx));
        if let Some(SubscriberItem::End(reason)) = item {
            self.ended = Some(reason);
        }
        Poll::Ready(item)
    }
}

opaque_debug!(|stream: Subscriber| { connection: stream.connection });
