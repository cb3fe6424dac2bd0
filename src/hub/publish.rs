//! Publishing: a target, an event, one step into the log.

use std::sync::Arc;

use smallvec::SmallVec;

use super::Hub;
use crate::audience::{Address, Audience};
use crate::error::{InvalidName, NameProblem, PublishError};
use crate::event::Event;
use crate::log::{Effect, Entry};
use crate::name::{ConnectionId, Topic, UserId};
use crate::position::Position;
use crate::wire::Draft;

/// Whom an event is for. Made by [`Hub::topic`], [`Hub::user`], [`Hub::connection`] and [`Hub::everyone`].
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use tower_sse::{Event, Hub};
///
/// let hub = Hub::builder().build()?;
/// hub.topic("news").publish(Event::text("headline", "It rains.")).await?;
/// hub.user(42).and(hub.topic("audit")).publish(Event::message("signed in")).await?;
/// # Ok(()) }
/// ```
///
/// A bad name waits in the target and is returned by its last call.
#[derive(Clone, Debug)]
#[must_use = "a target does nothing until something is published to it"]
pub struct Target<'a> {
    hub: &'a Hub,
    audience: Result<Audience, InvalidName>,
}

/// What became of an event: the log has it. That somebody saw it is not said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Published {
    /// Its place in the log, which is also the `id` that browsers get with it.
    pub position: Position,
    /// How many connections listen to the target, known without a walk: exact for one target, at most as many for a
    /// union (a connection that listens to two of its targets counts twice) and with [`Target::except`]. Zero is exact.
    pub receivers: usize,
}

impl Hub {
    /// Everybody who subscribes to this topic.
    pub fn topic<T>(&self, topic: T) -> Target<'_>
    where
        T: TryInto<Topic>,
        T::Error: Into<InvalidName>,
    {
        self.target(topic.try_into().map(Address::Topic).map_err(Into::into))
    }

    /// Every page and tab that this user has open.
    pub fn user<U>(&self, user: U) -> Target<'_>
    where
        U: TryInto<UserId>,
        U::Error: Into<InvalidName>,
    {
        self.target(user.try_into().map(Address::User).map_err(Into::into))
    }

    /// One open stream. Nothing is kept for it once it has ended.
    pub fn connection<C>(&self, connection: C) -> Target<'_>
    where
        C: TryInto<ConnectionId>,
        C::Error: Into<InvalidName>,
    {
        self.target(connection.try_into().map(Address::Connection).map_err(Into::into))
    }

    /// Every connection of this hub.
    pub fn everyone(&self) -> Target<'_> {
        self.target(Ok(Address::Everyone))
    }

    fn target(&self, address: Result<Address, InvalidName>) -> Target<'_> {
        Target { hub: self, audience: address.map(Audience::from) }
    }

    /// Publishes several events in one step, in this order, without others between them. One result for each: a bad one
    /// does not stop the others. Streams hardly get to read in between, so a batch that is larger than the retention of its
    /// audience costs them a `hub.gap`.
    ///
    /// Cancel safety: with the log of this process it never waits, so it is done when it is first polled.
    pub async fn publish_many<'a, I>(&self, events: I) -> Vec<Result<Published, PublishError>>
    where
        I: IntoIterator<Item = (Target<'a>, Event)>,
    {
        let mut entries = Vec::new();
        let errors: Vec<Option<PublishError>> = events
            .into_iter()
            .map(|(target, event)| {
                let own = self.check_own(target.hub).map_err(PublishError::from);
                own.and_then(|()| target.entry(&event)).map(|entry| entries.push(entry)).err()
            })
            .collect();
        let mut published = self.append(entries).into_iter();
        let outcome = |error: Option<PublishError>| match error {
            Some(error) => Err(error),
            None => published.next().ok_or(PublishError::CLOSED),
        };
        errors.into_iter().map(outcome).collect()
    }

    fn check_own(&self, other: &Self) -> Result<(), InvalidName> {
        if Arc::ptr_eq(&self.inner, &other.inner) {
            return Ok(());
        }
        Err(InvalidName::new("target", NameProblem::Foreign))
    }

    /// Nothing is appended after a drain.
    fn append(&self, entries: impl IntoIterator<Item = Entry> + AsRef<[Entry]>) -> SmallVec<[Published; 1]> {
        if self.is_closed() {
            return SmallVec::new();
        }
        for entry in entries.as_ref() {
            self.attach_connections(&entry.audience);
        }
        let appended = self.log().append(entries, self.now());
        self.published(appended.len());
        appended
            .into_iter()
            .map(|appended| Published { position: appended.position, receivers: appended.receivers })
            .collect()
    }
}

impl Target<'_> {
    /// Widens the target by another one; a connection that listens to both gets one copy. At most 128 targets in all
    /// unless [`HubBuilder::max_targets`](crate::HubBuilder::max_targets) says otherwise.
    pub fn and(mut self, other: Target<'_>) -> Self {
        self.audience = self.audience.and_then(|mut audience| {
            self.hub.check_own(other.hub)?;
            audience.unite(other.audience?);
            Ok(audience)
        });
        self
    }

    /// Leaves one connection out: the one that caused the event and knows of it already. A reconnect is a new
    /// connection.
    pub fn except<C>(mut self, connection: C) -> Self
    where
        C: TryInto<ConnectionId>,
        C::Error: Into<InvalidName>,
    {
        self.audience = self.audience.and_then(|mut audience| {
            audience.exclude(connection.try_into().map_err(Into::into)?);
            Ok(audience)
        });
        self
    }

    /// Publishes an event. `Ok` means that the log has it; it does not wait for any reader.
    ///
    /// Cancel safety: with the log of this process it never waits, so it is done when it is first polled.
    ///
    /// # Errors
    /// A name that is not allowed, a payload over the limit, a union over the limit, a hub that was drained. Nothing is
    /// appended then and no position is used.
    pub async fn publish(self, event: Event) -> Result<Published, PublishError> {
        self.publish_now(event)
    }

    /// The same for code that cannot await: a `Drop`, a callback, a thread without a runtime.
    ///
    /// # Errors
    /// As [`publish`](Self::publish).
    #[expect(clippy::needless_pass_by_value, reason = "the twin of `publish`, which takes the event over")]
    pub fn publish_now(self, event: Event) -> Result<Published, PublishError> {
        let hub = self.hub;
        let entry = self.entry(&event)?;
        hub.append([entry]).pop().ok_or(PublishError::CLOSED)
    }

    /// Whether [`publish`](Self::publish) would take this event: for a batch that is published whole or not at all.
    ///
    /// # Errors
    /// As [`publish`](Self::publish), but that the hub was drained.
    pub fn check(&self, event: &Event) -> Result<(), PublishError> {
        self.clone().entry(event).map(drop)
    }

    fn entry(self, event: &Event) -> Result<Entry, PublishError> {
        let audience = self.audience?;
        let limit = self.hub.settings().max_targets;
        if audience.addresses().len().max(audience.excluded().len()) > limit {
            return Err(PublishError::too_many_targets(limit));
        }
        let draft = Draft::encode(event, &self.hub.settings().framing)?;
        self.hub.counters().payload(draft.len());
        let effect = match event.keyed() {
            None => Effect::Nothing,
            Some(key) if event.removes() => Effect::Removes(Arc::from(key)),
            Some(key) => Effect::Sets(Arc::from(key)),
        };
        Ok(Entry { audience, effect, draft })
    }
}
