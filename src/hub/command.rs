//! What the application tells connections to do: to end, to join, to leave.
//!
//! A command is a value with the position at which it was given. Each instance that it reaches carries it out in one
//! place: `stream/commands.rs`. With the log of this process that is this one, at once.

use std::future::{Future, IntoFuture};
use std::pin::Pin;

use super::{Hub, Receipt, Target};
use crate::types::{Action, Audience, Command, CommandError, Cursor, Disconnect, InvalidName, Topic};

impl Target<'_> {
    /// Ends the connections of the target with `hub.bye`. Its reason is `disconnected`, and it says
    /// whether the client should reconnect. A target without connections is no error.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let hub = tower_sse::Hub::builder().build()?;
    /// use std::time::Duration;
    /// use tower_sse::Disconnect;
    ///
    /// let ban = Disconnect::block_for(Duration::from_secs(3600));
    /// hub.user("ada").disconnect(ban.note("signed out everywhere")).await?;
    /// # Ok(()) }
    /// ```
    ///
    /// Events that were published before the disconnect and are still unwritten are dropped from
    /// the stream. A client that reconnects with a cursor receives them then, if it may still read
    /// them.
    ///
    /// A request that is being decided at this moment gets no stream by a decision from before the
    /// disconnect. It receives a retryable refusal, and the access hook decides the next request
    /// anew. If the client is banned, it receives `204`. So delete the session first, then
    /// disconnect. Tickets for a user or a topic of the target become void.
    ///
    /// Cancel safety: this instance carries the command out when the future is first polled. With
    /// several instances, a dropped future may not have broadcast the command to the others.
    ///
    /// # Errors
    /// When a name of the target is invalid, the target has too many addresses, the note is too
    /// long, or the command could not be broadcast to the other instances.
    pub async fn disconnect(self, disconnect: Disconnect) -> Result<Receipt, CommandError> {
        disconnect.check()?;
        self.command(Action::Disconnect(disconnect)).await
    }

    /// Makes the connections of the target join a topic, as if their subscriptions contained it.
    /// The returned [`Join`] is awaited, with [`since`](Join::since) or without. The caller is
    /// responsible for the read permission.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let hub = tower_sse::Hub::builder().build()?;
    /// use tower_sse::{Event, SubscriberItem, Subscription};
    ///
    /// let mut page = hub.subscribe(Subscription::for_user("ada"), None)?;
    /// hub.connection(page.connection()).join("documents/7").await?;
    /// hub.topic("documents/7").publish(Event::new("document.saved", "7")).await?;
    /// assert!(matches!(page.next().await, Some(SubscriberItem::Event(event)) if event.data == "7"));
    /// # Ok(()) }
    /// ```
    ///
    /// - For a [`connection`](Hub::connection) the membership ends with the connection. A client
    ///   that reconnects has the topics of its subscription.
    /// - For a [`user`](Hub::user) the membership holds for all current and future connections. It
    ///   ends with [`leave`](Self::leave), or when the user has been offline for
    ///   [`HubBuilder::presence_grace`](crate::HubBuilder::presence_grace).
    /// - For a topic or everyone the command applies to the connections that are open now.
    ///
    /// A connection never has more topics than
    /// [`HubBuilder::max_topics`](crate::HubBuilder::max_topics). A connection that opens later
    /// gets the topics of its subscription first. The topics that its user was made to join follow
    /// in the order of the calls, as many as there is room for.
    ///
    /// Each page receives a `hub.live` with the topics in force, after the replayed events.
    pub fn join<T: TryInto<Topic, Error: Into<InvalidName>>>(self, topic: T) -> Join {
        let hub = self.source.clone();
        let audience = self.checked();
        Join { hub, audience, topic: topic.try_into().map_err(Into::into), since: Cursor::Absent }
    }

    /// Makes the connections of the target leave a topic, including a topic of their subscriptions.
    /// Nothing more of the topic is written to these connections, not even events that wait to be
    /// written.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let hub = tower_sse::Hub::builder().build()?;
    /// use tower_sse::Subscription;
    ///
    /// let page = hub.subscribe(Subscription::for_user("ada").topic("documents/7"), None)?;
    /// let receipt = hub.user("ada").leave("documents/7").await?;
    /// assert_eq!(receipt.connections, 1);
    /// assert_eq!(hub.topic("documents/7").count(), 0);
    /// # drop(page);
    /// # Ok(()) }
    /// ```
    ///
    /// For a user, this also ends the effect of an earlier [`join`](Self::join) on future
    /// connections. A client that reconnects has the topics of its subscription again, so change
    /// the answer of the access hook too.
    ///
    /// Cancel safety: this instance carries the command out when the future is first polled. With
    /// several instances, a dropped future may not have broadcast the command to the others.
    ///
    /// # Errors
    /// When a name is invalid, the target has too many addresses, or the command could not be
    /// broadcast to the other instances.
    pub async fn leave<T: TryInto<Topic, Error: Into<InvalidName>>>(self, topic: T) -> Result<Receipt, CommandError> {
        let topic = topic.try_into().map_err(Into::into)?;
        self.command(Action::Leave(topic)).await
    }

    async fn command(self, action: Action) -> Result<Receipt, CommandError> {
        let hub = self.source;
        hub.give(self.checked()?, action).await
    }

    fn checked(self) -> Result<Audience, CommandError> {
        let audience = self.audience?;
        if audience.is_too_large() { Err(CommandError::TOO_MANY_TARGETS) } else { Ok(audience) }
    }
}

/// A pending [`Target::join`]. Await it.
///
/// It yields a [`Receipt`].
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let hub = tower_sse::Hub::builder().build()?;
/// let join = hub.user("ada").join("documents/7"); // nothing has happened yet
/// let receipt = join.await?;
/// assert_eq!(receipt.connections, 0); // ada has no open connection
/// # Ok(()) }
/// ```
///
/// Cancel safety: on one instance it never waits. Nothing happens if it is never polled.
///
/// # Errors
/// When a name is invalid, the target has too many addresses, the command could not be broadcast to
/// the other instances, or a connection or user would have more topics than
/// [`HubBuilder::max_topics`](crate::HubBuilder::max_topics). In the last case other connections of
/// the target may have joined.
#[derive(Debug)]
#[must_use = "nothing is joined until it is awaited"]
pub struct Join {
    hub: Hub,
    audience: Result<Audience, CommandError>,
    topic: Result<Topic, InvalidName>,
    since: Cursor,
}

impl Join {
    /// Replays the events of the topic after this position, as far as they are retained. A
    /// `hub.gap` reports events that are no longer retained. Events that the connection has already
    /// read through another topic are not repeated. Without a position the topic begins now, with
    /// its current values where [`Retention::latest_per_key`](crate::Retention::latest_per_key)
    /// applies.
    ///
    /// Use it for a page that joined a topic, lost its connection and has a new one. The position
    /// is then the last event id that the page received.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let hub = tower_sse::Hub::builder().build()?;
    /// use tower_sse::{Event, SubscriberItem, Subscription};
    ///
    /// let last = hub.position();
    /// hub.topic("documents/7").publish(Event::new("document.saved", "7")).await?;
    /// let mut page = hub.subscribe(Subscription::for_user("ada"), None)?;
    /// hub.connection(page.connection()).join("documents/7").since(last).await?;
    /// assert!(matches!(page.next().await, Some(SubscriberItem::Event(event)) if event.data == "7"));
    /// # Ok(()) }
    /// ```
    pub fn since(mut self, position: impl Into<Cursor>) -> Self {
        self.since = position.into();
        self
    }

    async fn carry_out(self) -> Result<Receipt, CommandError> {
        self.hub.give(self.audience?, Action::Join(self.topic?, self.since)).await
    }
}

impl IntoFuture for Join {
    type Output = Result<Receipt, CommandError>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.carry_out())
    }
}

impl Hub {
    /// Here at once, and then by the others.
    pub(super) async fn give(&self, audience: Audience, action: Action) -> Result<Receipt, CommandError> {
        let position = self.position();
        let command = Command { audience, action, issued_at: position };
        let outcome = self.carry_out(&command);
        if let Some(shared) = &self.inner.shared_log {
            if !crate::hub::tasks::back_off::can_wait() {
                return Err(CommandError::NO_RUNTIME);
            }
            self.tell_command(shared, command).await.map_err(CommandError::broker)?;
        }
        outcome.map(|connections| Receipt { position, connections, key_ignored: false })
    }
}
