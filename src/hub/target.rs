//! Whom something is for: a hub's [`Target`], and what it shares with a publisher's `Recipients`.

use std::sync::Arc;

use super::Hub;
use crate::types::{Address, Audience, ConnectionId, InvalidName, NameProblem, Topic, UserId};

/// The methods that begin an audience, of a type that publishes.
macro_rules! addressing {
    ($target:ident { $source:ident }) => {
        /// Everybody who subscribes to this topic, at whichever instance.
        pub fn topic<T: TryInto<Topic, Error: Into<InvalidName>>>(&self, topic: T) -> $target<'_> {
            $target { $source: self, audience: aim(topic, Address::Topic) }
        }

        /// Every page and tab that this user has open.
        pub fn user<U: TryInto<UserId, Error: Into<InvalidName>>>(&self, user: U) -> $target<'_> {
            $target { $source: self, audience: aim(user, Address::User) }
        }

        /// One open stream. Nothing is kept for it once it has ended.
        pub fn connection<C: TryInto<ConnectionId, Error: Into<InvalidName>>>(&self, connection: C) -> $target<'_> {
            $target { $source: self, audience: aim(connection, Address::Connection) }
        }

        /// Every connection of every instance.
        pub fn everyone(&self) -> $target<'_> {
            $target { $source: self, audience: Ok(Address::Everyone.into()) }
        }
    };
}

/// The methods that change an audience.
macro_rules! widening {
    ($target:ident { $source:ident }) => {
        /// Widens the target by another one; a connection that listens to both gets one copy. At most
        /// 128 targets in all unless [`HubBuilder::max_targets`](crate::HubBuilder::max_targets) says
        /// otherwise.
        pub fn and(mut self, other: $target<'_>) -> Self {
            let other = check_own(&self.$source.inner, &other.$source.inner).and(other.audience);
            self.audience = unite(self.audience, other);
            self
        }

        /// Leaves one connection out: the one that caused the event and knows of it already. A reconnect
        /// is a new connection.
        pub fn except<C: TryInto<ConnectionId, Error: Into<InvalidName>>>(mut self, connection: C) -> Self {
            self.audience = exclude(self.audience, connection);
            self
        }
    };
}

pub(super) use {addressing, widening};

/// Whom something is for: an event to [`publish`](Self::publish), the question who is there
/// ([`presence`](Self::presence), [`count`](Self::count), [`is_online`](Self::is_online)), or a command
/// ([`disconnect`](Self::disconnect), [`join`](Self::join), [`leave`](Self::leave)). Made by
/// [`Hub::topic`], [`Hub::user`], [`Hub::connection`] and [`Hub::everyone`].
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use tower_sse::{Event, Hub};
///
/// let hub = Hub::builder().build()?;
/// hub.topic("news").publish(Event::new("headline", "It rains.")).await?;
/// hub.user(42).and(hub.topic("audit")).publish(Event::unnamed("signed in")).await?;
/// # Ok(()) }
/// ```
///
/// A bad name waits in the target and is returned by its last call.
#[derive(Clone, Debug)]
#[must_use = "a target does nothing by itself"]
pub struct Target<'a> {
    pub(super) hub: &'a Hub,
    pub(super) audience: Result<Audience, InvalidName>,
}

impl Hub {
    addressing!(Target { hub });
}

impl Target<'_> {
    widening!(Target { hub });
}

/// Targets of another hub, or of another publisher, are refused.
pub(super) fn check_own<T>(one: &Arc<T>, other: &Arc<T>) -> Result<(), InvalidName> {
    if Arc::ptr_eq(one, other) {
        return Ok(());
    }
    Err(InvalidName::new("target", NameProblem::Foreign))
}

/// An audience of one, if it has a good name.
pub(super) fn aim<V>(
    name: impl TryInto<V, Error: Into<InvalidName>>,
    address: impl FnOnce(V) -> Address,
) -> Result<Audience, InvalidName> {
    name.try_into().map(|name| address(name).into()).map_err(Into::into)
}

/// The first bad name of both counts.
pub(super) fn unite(
    audience: Result<Audience, InvalidName>,
    other: Result<Audience, InvalidName>,
) -> Result<Audience, InvalidName> {
    let mut audience = audience?;
    audience.unite(other?);
    Ok(audience)
}

/// Leaves a connection out, unless there is a bad name.
pub(super) fn exclude<C: TryInto<ConnectionId, Error: Into<InvalidName>>>(
    audience: Result<Audience, InvalidName>,
    connection: C,
) -> Result<Audience, InvalidName> {
    let mut audience = audience?;
    audience.exclude(connection.try_into().map_err(Into::into)?);
    Ok(audience)
}
