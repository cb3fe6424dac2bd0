//! Commands of the application to connections: end, join a topic, leave a topic.
//!
//! A command is a value with the position at which it was issued. This instance carries it out at
//! once, and broadcasts it to the other instances. On every instance, `stream/commands.rs` carries
//! commands out.

use std::future::{Future, IntoFuture};
use std::pin::Pin;

use super::{Hub, Receipt, Target};
use crate::types::{
    Action, Audience, Command, CommandError, Cursor, Disconnect, InvalidName, NameProblem, Scoped, Topic,
};

impl Target<'_> {
    /// Ends the connections of the target with `hub.bye` and the reason `disconnected`.
    /// `disconnect` sets whether and when their clients may reconnect. A target without connections
    /// is not an error.
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
    /// The stream drops events that were published before the disconnect and are not written yet. A
    /// client that reconnects with its cursor receives these events, if they are still retained and
    /// its new subscription includes them.
    ///
    /// Delete the session first, then disconnect. If the access hook is deciding about a request
    /// for a user or a topic of the target at the moment of the disconnect, its decision opens no
    /// stream. The request receives a retryable refusal, and the hook decides the next request
    /// anew. A banned client receives `204` instead. Tickets for a user or a topic of the target
    /// become void.
    ///
    /// Cancel safety: this instance carries the command out when the future is first polled. If the
    /// future is dropped before it completes, other instances might not receive the command.
    ///
    /// # Errors
    /// When a name of the target is invalid, the target has too many addresses, or the note is too
    /// long. Also when the command could not be broadcast to the other instances
    /// ([`CommandError::is_unavailable`]), although this instance has carried it out.
    pub async fn disconnect(self, disconnect: Disconnect) -> Result<Receipt, CommandError> {
        disconnect.check()?;
        self.command(Action::Disconnect(disconnect)).await
    }

    /// Makes the connections of the target join a topic, as if their subscriptions contained it.
    /// The hub does nothing until the returned [`Join`] is awaited. Call [`Join::since`] before
    /// that to replay earlier events. The hub does not call the access hook, so the caller checks
    /// the read permission.
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
    /// - For a [`connection`](Hub::connection), the membership ends with the connection. A client
    ///   that reconnects has the topics of its subscription.
    /// - For a [`user`](Hub::user), the membership holds for all current and future connections. It
    ///   ends with [`leave`](Self::leave), or when the user has had no connection for
    ///   [`HubBuilder::presence_grace`](crate::HubBuilder::presence_grace). With several instances,
    ///   each instance counts only its own connections of the user.
    /// - For a topic or everyone, the command applies to the connections that are open now.
    ///
    /// A connection never has more topics than
    /// [`HubBuilder::max_topics`](crate::HubBuilder::max_topics). A later connection of the user
    /// first gets the topics of its subscription. Then it gets the topics that the user was made to
    /// join, in the order of the calls, up to that limit.
    ///
    /// Each connection that gets the topic receives a `hub.live` with its topics, after the
    /// replayed events.
    pub fn join<T: TryInto<Topic, Error: Into<InvalidName>>>(self, topic: T) -> Join {
        let hub = self.source.clone();
        let topic = self.own_topic(topic);
        Join { hub, audience: self.checked(), topic, since: Cursor::Absent }
    }

    /// Makes the connections of the target leave a topic, also a topic of their subscriptions. The
    /// streams of these connections read no more events of the topic, not even events that were
    /// published before the call. Events that the hub has already encoded may still arrive.
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
    /// the subscription that the access hook returns too.
    ///
    /// Cancel safety: this instance carries the command out when the future is first polled. If the
    /// future is dropped before it completes, other instances might not receive the command.
    ///
    /// # Errors
    /// When a name is invalid, or the target has too many addresses. Also when the command could
    /// not be broadcast to the other instances ([`CommandError::is_unavailable`]), although this
    /// instance has carried it out.
    pub async fn leave<T: TryInto<Topic, Error: Into<InvalidName>>>(self, topic: T) -> Result<Receipt, CommandError> {
        let topic = self.own_topic(topic)?;
        self.command(Action::Leave(topic)).await
    }

    /// Returns a topic in the scope of this target, so that no command makes a connection join a
    /// topic of another scope. A target of all scopes has no topics.
    fn own_topic(&self, topic: impl TryInto<Topic, Error: Into<InvalidName>>) -> Result<Topic, InvalidName> {
        let topic = topic.try_into().map_err(Into::into)?;
        match self.audience.as_ref().map(Audience::scope) {
            Ok(Some(scope)) => topic.placed_in(scope),
            Ok(None) => Err(InvalidName::new("target", NameProblem::AllScopes)),
            Err(invalid) => Err(invalid.clone()),
        }
    }

    async fn command(self, action: Action) -> Result<Receipt, CommandError> {
        let hub = self.source;
        hub.issue(self.checked()?, action).await
    }

    /// Returns the audience, if its names are valid and it has no more addresses than allowed.
    fn checked(self) -> Result<Audience, CommandError> {
        let audience = self.audience?;
        if audience.is_too_large() { Err(CommandError::TOO_MANY_TARGETS) } else { Ok(audience) }
    }
}

/// A pending [`Target::join`]. Awaiting it carries the join out and returns a [`Receipt`].
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
/// Cancel safety: this instance carries the command out when the future is first polled, and never
/// before. If the future is dropped before it completes, other instances might not receive the
/// command.
///
/// # Errors
/// - A name is invalid, or the target has too many addresses.
/// - A connection or user would have more topics than
///   [`HubBuilder::max_topics`](crate::HubBuilder::max_topics)
///   ([`CommandError::is_over_limit`]). Other connections of the target may have joined.
/// - The command could not be broadcast to the other instances
///   ([`CommandError::is_unavailable`]), although this instance has carried it out.
#[derive(Debug)]
#[must_use = "a join does nothing until it is awaited"]
pub struct Join {
    hub: Hub,
    audience: Result<Audience, CommandError>,
    topic: Result<Topic, InvalidName>,
    since: Cursor,
}

impl Join {
    /// Replays the retained events of the topic after this position. If an event is no longer
    /// retained, a `hub.gap` reports the loss. The replay omits events that the connection has
    /// already received through another topic. Without `since`, the topic begins now, with its
    /// current values where [`Retention::latest_per_key`](crate::Retention::latest_per_key)
    /// applies.
    ///
    /// Use this method for a page that had joined a topic and has reconnected. Pass the last event
    /// id that the page received.
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
        self.hub.issue(self.audience?, Action::Join(self.topic?, self.since)).await
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
    /// Carries a command out on this instance, then broadcasts it to the others.
    pub(super) async fn issue(&self, audience: Audience, action: Action) -> Result<Receipt, CommandError> {
        let position = self.position();
        let command = Command { audience, action, issued_at: position };
        let outcome = self.carry_out(&command);
        if let Some(shared) = &self.inner.shared_log {
            if !crate::hub::tasks::back_off::can_wait() {
                return Err(CommandError::NO_RUNTIME);
            }
            let sent = self.broadcast_command(shared, command).await;
            // An error of this instance comes first, because an error of the broker means that this
            // instance has carried out the command.
            let connections = outcome?;
            sent.map_err(CommandError::broker)?;
            return Ok(Receipt { position, connections, key_ignored: false });
        }
        outcome.map(|connections| Receipt { position, connections, key_ignored: false })
    }
}
