//! What the application tells connections to do: to end, to join, to leave.
//!
//! A command is a value with the position at which it was given, and is carried out in one place, by every instance that
//! it reaches. With the log of this process that is this one, at once.

use std::future::{Future, IntoFuture};
use std::pin::Pin;
use std::sync::Arc;

use super::{Hub, Target};
use crate::hub::connection::handle::{Ending, Link};
use crate::hub::connection::registry::UserTopic;
use crate::hub::tickets::store::LONGEST as LONGEST_TICKET;
use crate::log::{Since, millis};
use crate::sync::Ordering;
use crate::types::audience::{Address, Audience};
use crate::types::command::{Action, Command};
use crate::types::disconnect::{Kick, Returns};
use crate::types::disconnect_clock::Moment;
use crate::types::error::{CommandError, InvalidName};
use crate::types::name::{Topic, UserId};
use crate::types::position::{Cursor, Position};
use crate::types::reason::EndReason;

impl Target<'_> {
    /// Ends the connections of the target: `hub.bye` with the reason `kicked`, and whether to come back. Returns how many
    /// of this instance are told; none is no error.
    ///
    /// What is published before but was not written yet is not written any more; who comes back with a cursor gets it
    /// then, if it may still read it. Requests that are being decided at this moment are told to come back
    /// and are decided anew, so that no stream opens by what was true before: delete the session first, then disconnect.
    /// Tickets for a user or topic of the target are void.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let hub = tower_sse::Hub::builder().build()?;
    /// use std::time::Duration;
    /// use tower_sse::Kick;
    ///
    /// hub.user("ada").disconnect(Kick::never(Duration::from_secs(3600)).note("signed out everywhere")).await?;
    /// # Ok(()) }
    /// ```
    ///
    /// Cancel safety: it is done on this instance when it is first polled; with several, a dropped future may not have told the
    /// others.
    ///
    /// # Errors
    /// When a name of the target is not allowed, there are too many of them, the note is too long, or other instances could
    /// not be told.
    pub async fn disconnect(self, kick: Kick) -> Result<usize, CommandError> {
        kick.check()?;
        self.command(Action::Disconnect(kick)).await
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
    /// A connection never has more topics than [`HubBuilder::max_topics`](crate::HubBuilder::max_topics). One that is opened
    /// later gets the topics of its subscription first, then those that its user was made to join, in the order of the calls,
    /// as many as there is room for.
    ///
    /// Each page hears of it by a `hub.live` with the topics in force, which comes after what is replayed.
    pub fn join<T>(self, topic: T) -> Join
    where
        T: TryInto<Topic>,
        T::Error: Into<InvalidName>,
    {
        let hub = self.hub.clone();
        let audience = self.checked();
        Join { hub, audience, topic: topic.try_into().map_err(Into::into), since: Cursor::Absent }
    }

    /// The reverse of [`join`](Self::join), also for topics of the subscription: nothing more of the topic is written to
    /// the connections of the target, not even what waits. Returns how many of this instance had it.
    ///
    /// For a user the topic is none of the user's any more. A connection that comes back has the topics of its
    /// subscription again, so change what the access hook says too.
    ///
    /// Cancel safety: it is done on this instance when it is first polled; with several, a dropped future may not have told the
    /// others.
    ///
    /// # Errors
    /// When a name is not allowed, there are too many targets, or other instances could not be told.
    pub async fn leave<T>(self, topic: T) -> Result<usize, CommandError>
    where
        T: TryInto<Topic>,
        T::Error: Into<InvalidName>,
    {
        let topic = topic.try_into().map_err(Into::into)?;
        self.command(Action::Leave(topic)).await
    }

    async fn command(self, action: Action) -> Result<usize, CommandError> {
        let hub = self.hub;
        hub.give(self.checked()?, action).await
    }

    fn checked(self) -> Result<Audience, CommandError> {
        let audience = self.audience?;
        let limit = self.hub.settings().max_targets;
        if audience.addresses().len().max(audience.excluded().len()) > limit {
            return Err(CommandError::too_many_targets(limit));
        }
        Ok(audience)
    }
}

/// A topic to be joined: [`Target::join`]. Await it.
///
/// It yields how many connections of this instance have the topic now that did not have it before.
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
    /// Also what was published to the topic after this position, as far as it is kept; what is not comes as a `hub.gap`.
    /// What of it the connection has read by another topic already does not come again. Without it, the topic begins
    /// now, with its current values where [`Retention::latest_per_key`](crate::Retention::latest_per_key) holds.
    ///
    /// For a page that joined a topic, lost its connection and has a new one: the last id that it saw.
    pub fn since(mut self, position: impl Into<Cursor>) -> Self {
        self.since = position.into();
        self
    }

    async fn carry_out(self) -> Result<usize, CommandError> {
        self.hub.give(self.audience?, Action::Join(self.topic?, self.since)).await
    }
}

impl IntoFuture for Join {
    type Output = Result<usize, CommandError>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.carry_out())
    }
}

impl Hub {
    /// Here at once, and then by the others.
    pub(super) async fn give(&self, audience: Audience, action: Action) -> Result<usize, CommandError> {
        let command = Command { audience, action, issued_at: self.position() };
        let outcome = self.carry_out(&command);
        if let Some(remote) = &self.inner.remote {
            if !crate::hub::tasks::back_off::can_wait() {
                return Err(CommandError::NO_RUNTIME);
            }
            self.tell_command(remote, command).await.map_err(CommandError::broker)?;
        }
        outcome
    }

    /// Does what a command says to the connections of this instance.
    pub(super) fn carry_out(&self, command: &Command) -> Result<usize, CommandError> {
        match &command.action {
            Action::Disconnect(kick) => Ok(self.disconnect(&command.audience, kick)),
            Action::Join(topic, since) => self.join(&command.audience, topic, *since, command.issued_at),
            Action::Leave(topic) => Ok(self.leave(&command.audience, topic)),
            Action::Change(change) => self.change_all(&command.audience, change),
        }
    }

    fn disconnect(&self, audience: &Audience, kick: &Kick) -> usize {
        let now = self.now();
        let until = match kick.returns {
            // Where somebody is spared, the streams that are ended are barred by their ids alone.
            Returns::Never(within) if audience.excluded().is_empty() => now.saturating_add(millis(within)),
            Returns::Never(_) | Returns::Now | Returns::Later(_) => 0,
        };
        // Before the connections are looked up: one that is being opened either meets this or is found.
        // A handler may take longer than a hook.
        let requests = now.saturating_add(millis(self.settings().access_timeout) * 2 + 5_000);
        // Tickets of other instances may be as old as that.
        let tickets = self.inner.remote.as_ref().map_or(0, |_| now.saturating_add(millis(LONGEST_TICKET)));
        let remember = requests.max(self.inner.tickets.last_over_at()).max(tickets);
        let named = audience.addresses().iter().filter(|address| !matches!(address, Address::Connection(_)));
        self.inner.bars.kick(named, until, remember, now);
        let links = self.links(audience);
        for link in &links {
            let retry = match kick.returns {
                Returns::Later(after) => Some(self.jittered_retry(after, 1.0..=1.5)),
                // So that those who are disconnected together do not come back together.
                Returns::Now => Some(self.jittered_retry(self.settings().retry, 1.0..=2.0)),
                Returns::Never(_) => None,
            };
            let note = kick.note.clone();
            let ending = Ending { returns: kick.returns, retry, note, ..Ending::now(EndReason::Kicked) };
            self.end_now(link, ending);
        }
        links.len()
    }

    /// A connection has to go: it is out of everything at once, and its stream says goodbye when it is polled next.
    pub(super) fn end_now(&self, link: &Arc<Link>, ending: Ending) {
        let reason = link.end(ending).reason;
        self.inner.forget(link, reason);
        link.wake(self.now());
    }

    fn join(
        &self,
        audience: &Audience,
        topic: &Topic,
        since: Cursor,
        issued_at: Position,
    ) -> Result<usize, CommandError> {
        let too_many = |_| CommandError::too_many_topics(self.settings().max_topics);
        let since = self.since(since);
        for user in users(audience) {
            let at = self.log().number(issued_at).unwrap_or_else(|| self.log().last());
            let joined = UserTopic { topic: topic.clone(), since, at };
            let max_topics = self.settings().max_topics;
            self.registry().join_user(user, joined, max_topics, self.now()).map_err(too_many)?;
        }
        // A user who is not there is forgotten in time.
        crate::hub::upkeep::sweep::ensure(&self.inner);
        self.inner.chores.rouse();
        let mut joined = 0;
        for link in self.links(audience) {
            if self.inner.join_topic(&link, topic, since, self.settings().max_topics).map_err(too_many)? {
                joined += 1;
            }
        }
        Ok(joined)
    }

    /// What a page that says this wants of a topic that it joins.
    pub(super) fn since(&self, cursor: Cursor) -> Since {
        match self.judge(cursor) {
            Ok(None) => Since::Now,
            Ok(Some(sequence)) => Since::After(sequence),
            Err(reason) => Since::Refused(reason),
        }
    }

    fn leave(&self, audience: &Audience, topic: &Topic) -> usize {
        for user in users(audience) {
            self.registry().leave_user(user, topic);
        }
        self.links(audience).iter().filter(|link| self.take_topic(link, topic)).count()
    }

    /// Takes a topic away. A request of the page that was decided before may not bring it back.
    pub(super) fn take_topic(&self, link: &Arc<Link>, topic: &Topic) -> bool {
        link.taken_at.fetch_max(Moment::new().count(), Ordering::SeqCst);
        self.inner.leave_topic(link, topic)
    }
}

fn users(audience: &Audience) -> impl Iterator<Item = &UserId> {
    audience.addresses().iter().filter_map(|address| match address {
        Address::User(user) => Some(user),
        Address::Everyone | Address::Topic(_) | Address::Connection(_) => None,
    })
}
