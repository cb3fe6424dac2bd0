//! What the application tells connections to do: to end, to join, to leave.
//!
//! A command is a value with the position at which it was given. Each instance that it reaches carries it out in one
//! place: `stream/commands.rs`. With the log of this process that is this one, at once.

use std::future::{Future, IntoFuture};
use std::pin::Pin;

use super::{Hub, Receipt, Target};
use crate::types::{Action, Audience, Command, CommandError, Cursor, Disconnect, InvalidName, Topic};

impl Target<'_> {
    /// Ends the connections of the target: `hub.bye` with the reason `disconnected`, and whether to come back.
    /// No connection in the target is no error.
    ///
    /// What is published before but was not written yet is not written any more; who comes back with a cursor gets it
    /// then, if it may still read it. Requests that are being decided at this moment are told to come back
    /// and are decided anew, so that no stream opens by what was true before: delete the session first,
    /// then disconnect. Tickets for a user or topic of the target are void.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let hub = tower_sse::Hub::builder().build()?;
    /// use std::time::Duration;
    /// use tower_sse::Disconnect;
    ///
    /// hub.user("ada").disconnect(Disconnect::block_for(Duration::from_secs(3600)).note("signed out everywhere")).await?;
    /// # Ok(()) }
    /// ```
    ///
    /// Cancel safety: it is done on this instance when it is first polled; with several, a dropped future
    /// may not have told the others.
    ///
    /// # Errors
    /// When a name of the target is not allowed, there are too many of them, the note is too long, or
    /// other instances could not be told.
    pub async fn disconnect(self, disconnect: Disconnect) -> Result<Receipt, CommandError> {
        disconnect.check()?;
        self.command(Action::Disconnect(disconnect)).await
    }

    /// Makes the connections of the target join a topic, as if their subscription had it: [`Join`] is awaited, with
    /// [`since`](Join::since) or without. The caller decides that they may read it.
    ///
    /// For a [`connection`](Hub::connection) it ends with the connection: a client that comes back has the
    /// topics of its subscription. For a [`user`](Hub::user) it holds for all connections, those to come too,
    /// until [`leave`](Self::leave) or until the user has been offline for
    /// [`HubBuilder::presence_grace`](crate::HubBuilder::presence_grace). For a topic or everyone it is about the
    /// connections that are there now.
    ///
    /// A connection never has more topics than [`HubBuilder::max_topics`](crate::HubBuilder::max_topics).
    /// One that is opened later gets the topics of its subscription first, then those that its user was
    /// made to join, in the order of the calls, as many as there is room for.
    ///
    /// Each page hears of it by a `hub.live` with the topics in force, which comes after what is replayed.
    pub fn join<T: TryInto<Topic, Error: Into<InvalidName>>>(self, topic: T) -> Join {
        let hub = self.source.clone();
        let audience = self.checked();
        Join { hub, audience, topic: topic.try_into().map_err(Into::into), since: Cursor::Absent }
    }

    /// The reverse of [`join`](Self::join), also for topics of the subscription: nothing more of the topic
    /// is written to the connections of the target, not even what waits.
    ///
    /// For a user the topic is none of the user's any more. A connection that comes back has the topics of its
    /// subscription again, so change what the access hook says too.
    ///
    /// Cancel safety: it is done on this instance when it is first polled; with several, a dropped future
    /// may not have told the others.
    ///
    /// # Errors
    /// When a name is not allowed, there are too many targets, or other instances could not be told.
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

/// A topic to be joined: [`Target::join`]. Await it.
///
/// It yields a [`Receipt`].
///
/// Cancel safety: on one instance it never waits; nothing happens if it is never polled.
///
/// # Errors
/// When a name is not allowed, there are too many targets, or a connection or user would have more topics than
/// [`HubBuilder::max_topics`](crate::HubBuilder::max_topics): others of the target may have joined then.
#[derive(Debug)]
#[must_use = "nothing is joined until it is awaited"]
pub struct Join {
    hub: Hub,
    audience: Result<Audience, CommandError>,
    topic: Result<Topic, InvalidName>,
    since: Cursor,
}

impl Join {
    /// Also what was published to the topic after this position, as far as it is kept; what is not comes
    /// as a `hub.gap`. What of it the connection has read by another topic already does not come again.
    /// Without it, the topic begins now, with its current values where
    /// [`Retention::latest_per_key`](crate::Retention::latest_per_key) holds.
    ///
    /// For a page that joined a topic, lost its connection and has a new one: the last id that it saw.
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
