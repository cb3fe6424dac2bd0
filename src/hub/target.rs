//! Targets: the audience of an event or a command, with the hub or the publisher that it belongs
//! to.
//!
//! All addresses of a target have the same scope, or the target is of all scopes ([`Target::and`]).

use super::Hub;
use crate::types::{Address, Audience, ConnectionId, InvalidName, NameProblem, ScopeName, Scoped, Topic, UserId};

/// Defines the methods that return a target, for a handle of a source.
macro_rules! targets {
    ($handle:ty, $source:ty $(, $generic:ident)?) => {
        #[allow(private_bounds, reason = "only hubs and publishers have scopes")]
        impl$(<$generic: Source>)? $handle {
            /// Returns a target of every connection that has this topic, on any instance.
            /// [`Target`] has an example.
            pub fn topic<T: TryInto<Topic, Error: Into<InvalidName>>>(&self, topic: T) -> Target<'_, $source> {
                Target { source: self.source(), audience: aim(self, topic, Address::Topic) }
            }

            /// Returns a target of every connection of this user, on any instance. [`Target`] has
            /// an example.
            pub fn user<U: TryInto<UserId, Error: Into<InvalidName>>>(&self, user: U) -> Target<'_, $source> {
                Target { source: self.source(), audience: aim(self, user, Address::User) }
            }

            /// Returns a target of one connection. Neither an event to a connection that has ended
            /// nor an event to a connection of another [scope](crate::Scope) reaches a client.
            /// [`Target::except`] and [`Target::join`] have examples.
            pub fn connection<C>(&self, connection: C) -> Target<'_, $source>
            where
                C: TryInto<ConnectionId, Error: Into<InvalidName>>,
            {
                let address = |scope: &ScopeName| {
                    Ok(Address::Connection(connection.try_into().map_err(Into::into)?, scope.clone()).into())
                };
                Target { source: self.source(), audience: self.scope_name().and_then(address) }
            }

            /// Returns a target of all connections of all instances, except those of other
            /// [scopes](crate::Scope). [`Target::except`] has an example.
            pub fn everyone(&self) -> Target<'_, $source> {
                let audience = self.scope_name().map(|scope| Address::Everyone(scope.clone()).into());
                Target { source: self.source(), audience }
            }
        }
    };
}

targets!(Hub, Hub);

pub(super) use targets;

/// The audience of an event or a command: one topic, user or connection, everyone, or several of
/// them.
///
/// [`Hub::topic`], [`Hub::user`], [`Hub::connection`] and [`Hub::everyone`] return a target. A
/// target of a hub [publishes](Self::publish), returns the [presence](Self::presence), and commands
/// connections to [join](Self::join), [leave](Self::leave) or [disconnect](Self::disconnect). A
/// target of a [`Publisher`](crate::Publisher) only publishes.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use tower_sse::{Event, Hub};
///
/// let hub = Hub::builder().build()?;
/// hub.topic("news").publish(Event::new("headline", "Bridge closed")).await?;
/// hub.user(42).and(hub.topic("audit")).publish(Event::unnamed("signed in")).await?;
/// # Ok(()) }
/// ```
///
/// These methods of a hub and of a publisher return targets without a [scope](crate::Scope). The
/// same methods of a scope return targets of that scope.
///
/// A target may contain an invalid name. Publishing to it and commands to it return an error, and
/// it has no connections.
#[doc(alias = "Recipients")]
#[derive(Debug)]
#[must_use = "a target does nothing by itself"]
pub struct Target<'a, S = Hub> {
    pub(super) source: &'a S,
    pub(super) audience: Result<Audience, InvalidName>,
}

/// The source of a target: a hub or a publisher.
pub(super) trait Source {
    /// Returns whether both are handles to the same hub or publisher.
    fn is(&self, other: &Self) -> bool;

    /// Returns whether the root scope has no connections, so that its targets are invalid.
    fn requires_scope(&self) -> bool;
}

/// A handle that returns targets of one scope.
pub(super) trait Handle {
    type Source: Source;

    fn source(&self) -> &Self::Source;

    /// Returns the scope of the targets, or an error if it is invalid.
    fn scope_name(&self) -> Result<&ScopeName, InvalidName>;
}

/// A hub and a publisher are handles of the root scope.
impl<S: Source> Handle for S {
    type Source = S;

    fn source(&self) -> &S {
        self
    }

    fn scope_name(&self) -> Result<&ScopeName, InvalidName> {
        if self.requires_scope() { Err(InvalidName::new("scope", NameProblem::Missing)) } else { Ok(ScopeName::root()) }
    }
}

#[expect(private_bounds, reason = "only hubs and publishers have targets")]
impl<S: Source> Target<'_, S> {
    /// Adds another target. A connection that belongs to both targets receives one copy. A
    /// connection that one of them [excludes](Self::except) is excluded from the union. A target
    /// has at most 128 addresses in all. A union with a target of another hub, or of another
    /// [scope](crate::Scope), is invalid: publishing to it returns an error.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let hub = tower_sse::Hub::builder().build()?;
    /// use tower_sse::{Event, Subscription};
    ///
    /// let page = hub.subscribe(Subscription::for_user("ada").topic("documents/7"), None)?;
    /// let target = hub.topic("documents/7").and(hub.user("ada"));
    /// assert_eq!(target.count(), 1); // the page belongs to both
    /// target.publish(Event::new("document.renamed", "Annual report")).await?;
    /// # drop(page);
    /// # Ok(()) }
    /// ```
    pub fn and(mut self, other: Target<'_, S>) -> Self {
        self.audience = match (self.audience, other.checked_for(self.source)) {
            (Ok(audience), Ok(other)) if audience.scope() != other.scope() => {
                Err(InvalidName::new("target", NameProblem::OtherScope))
            }
            (Ok(mut audience), Ok(other)) => {
                audience.unite(other);
                Ok(audience)
            }
            (Err(invalid), _) | (_, Err(invalid)) => Err(invalid),
        };
        self
    }

    /// Excludes one connection, for example the connection that caused the event and already has
    /// its result. A client that reconnects has a new connection id and is not excluded.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let hub = tower_sse::Hub::builder().build()?;
    /// use tower_sse::{Event, Subscription};
    ///
    /// let author = hub.subscribe(Subscription::for_user("ada"), None)?;
    /// let reader = hub.subscribe(Subscription::for_user("bob"), None)?;
    /// let others = hub.everyone().except(author.connection());
    /// assert_eq!(others.count(), 1);
    /// others.publish(Event::new("document.saved", "7")).await?;
    /// # drop(reader);
    /// # Ok(()) }
    /// ```
    pub fn except<C: TryInto<ConnectionId, Error: Into<InvalidName>>>(mut self, connection: C) -> Self {
        self.audience = self.audience.and_then(|mut audience| {
            audience.exclude(connection.try_into().map_err(Into::into)?);
            Ok(audience)
        });
        self
    }

    /// Returns the audience, or an error if the target belongs to another hub or publisher.
    pub(super) fn checked_for(self, source: &S) -> Result<Audience, InvalidName> {
        if self.source.is(source) { self.audience } else { Err(InvalidName::new("target", NameProblem::Foreign)) }
    }
}

impl<S> Clone for Target<'_, S> {
    fn clone(&self) -> Self {
        Self { source: self.source, audience: self.audience.clone() }
    }
}

/// Returns the audience of one address in the scope of a handle, or an error if its name is invalid
/// or of another scope.
pub(super) fn aim<V: Scoped>(
    handle: &impl Handle,
    name: impl TryInto<V, Error: Into<InvalidName>>,
    address: impl FnOnce(V) -> Address,
) -> Result<Audience, InvalidName> {
    let name = name.try_into().map_err(Into::into)?.placed_in(handle.scope_name()?)?;
    Ok(address(name).into())
}
