//! Scopes: the handle of one tenant, and the handle of all connections.
//!
//! A scope is a field of names, addresses and connections. This file only gives the handle, which
//! puts names into its scope. The tables of the hub keep scopes apart, because their keys contain
//! the scope.

use std::collections::hash_set::HashSet;
use std::fmt;
use std::time::Duration;

use super::connection::handle::ConnectionHandle;
use super::connection::info::ConnectionInfo;
use super::connection::registry::Handles;
use super::target::{Handle, Source, Target, aim, targets};
use super::{Hub, Publisher, Receipt, Run, Subscriber, Ticket};
use crate::sync::Ordering;
use crate::types::{
    Address, Audience, ConnectionId, Cursor, Event, InvalidName, NameProblem, PublishError, ScopeName, Subscription,
    SubscriptionError, Topic, UserId,
};

/// A handle to one scope of a hub or of a publisher, for example a tenant: [`Hub::scope`]. Cloning
/// is cheap.
///
/// Topics, users, everyone, presence, disconnects, bans, runs and limits of a scope are its own. A
/// topic of a scope is unrelated to a topic of the same name in another scope or without a scope.
/// `docs/guide/tenants.md` describes the guarantees.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use tower_sse::{Event, Hub, Subscription};
///
/// let hub = Hub::builder().build()?;
/// let (acme, globex) = (hub.scope("acme"), hub.scope("globex"));
/// let page = acme.subscribe(Subscription::for_user("ada").topic("orders"), None)?;
/// assert_eq!(acme.topic("orders").publish(Event::new("order.paid", "7")).await?.connections, 1);
/// assert_eq!(globex.topic("orders").publish(Event::new("order.paid", "8")).await?.connections, 0);
/// assert_eq!(hub.everyone().count(), 0); // everyone without a scope
/// assert_eq!(hub.all_scopes().everyone().count(), 1);
/// # drop(page);
/// # Ok(()) }
/// ```
///
/// A scope with an invalid name returns targets with an invalid name. Publishing to them returns an
/// error.
#[doc(alias = "tenant")]
#[derive(Clone)]
#[must_use = "a scope does nothing by itself"]
pub struct Scope<S = Hub> {
    source: S,
    name: Result<ScopeName, InvalidName>,
}

/// All connections of a hub or a publisher, of every [scope](Scope) and without a scope:
/// [`Hub::all_scopes`].
#[derive(Debug)]
#[must_use = "this handle does nothing by itself"]
pub struct AllScopes<'a, S = Hub>(&'a S);

/// The figures of one [scope](Scope) on this instance at one moment: [`Scope::stats`]. They
/// serialize with serde.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct ScopeStats {
    /// The number of open streams. Streams of [runs](crate::Subscription::run) are included, which
    /// the count of [`Scope::everyone`] does not include.
    pub connections: usize,
    /// The number of users with an open stream.
    pub users: usize,
    /// The number of topics that an open stream has.
    pub topics: usize,
    /// The number of events that were delivered to the open streams. Streams that have ended no
    /// longer count.
    pub delivered: u64,
}

macro_rules! scopes {
    ($source:ident) => {
        impl $source {
            /// Returns the handle of a [scope](Scope), for example of a tenant. A scope needs no
            /// set-up, and takes memory only while it has connections, users within their grace
            /// period or retained events.
            ///
            /// The name has 1 to 255 bytes of UTF-8 without control characters. No character has a
            /// special meaning.
            ///
            /// ```
            /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
            /// use tower_sse::{Event, Publisher, backplane::Memory};
            ///
            /// let publisher = Publisher::new(Memory::new())?;
            /// let (tenant, order) = (42, 7);
            /// publisher.scope(tenant).topic("orders").publish(Event::new("order.paid", order.to_string())).await?;
            /// # Ok(()) }
            /// ```
            #[doc(alias = "tenant")]
            pub fn scope(&self, name: impl fmt::Display) -> Scope<Self> {
                Scope { source: self.clone(), name: ScopeName::named(&name.to_string()) }
            }

            /// Returns the handle of all connections, of every [scope](Scope) and without a scope.
            /// It is the only way to reach several scopes with one call.
            ///
            /// ```
            /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
            /// use tower_sse::{Event, Hub};
            ///
            /// let hub = Hub::builder().build()?;
            /// hub.all_scopes().everyone().publish(Event::new("maintenance", "22:00")).await?;
            /// # Ok(()) }
            /// ```
            pub fn all_scopes(&self) -> AllScopes<'_, Self> {
                AllScopes(self)
            }
        }
    };
}

scopes!(Hub);
scopes!(Publisher);

impl<'a, S> AllScopes<'a, S> {
    /// Returns a target of all connections of all instances, of every scope and without a scope.
    ///
    /// Publishing and disconnecting work as for any target. [`Target::join`] and [`Target::leave`]
    /// return an error, because a topic belongs to one scope, and so does a union with a target of
    /// one scope. [`Target::presence`] returns the members of all scopes.
    pub fn everyone(&self) -> Target<'a, S> {
        let mut audience = Audience::from(Address::Everyone(ScopeName::ROOT));
        audience.insert(Address::EveryScope);
        Target { source: self.0, audience: Ok(audience) }
    }
}

impl<S: Source> Handle for Scope<S> {
    type Source = S;

    fn source(&self) -> &S {
        &self.source
    }

    fn scope_name(&self) -> Result<&ScopeName, InvalidName> {
        self.name.as_ref().map_err(Clone::clone)
    }
}

targets!(Scope<S>, S, S);

impl<S> Scope<S> {
    /// Returns the name of the scope.
    ///
    /// # Errors
    /// If the name is invalid. Each use of the scope then returns this error too.
    ///
    /// ```
    /// let hub = tower_sse::Hub::builder().build()?;
    /// assert_eq!(hub.scope(42).name()?, "42");
    /// assert!(hub.scope("").name().is_err());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn name(&self) -> Result<&str, InvalidName> {
        // A scope that an application names is never the root scope.
        self.name.as_ref().map(|name| name.as_str().unwrap_or_default()).map_err(Clone::clone)
    }

    /// Returns the target with an error if it is not of this scope.
    fn checked<'a>(&self, target: Target<'a, S>) -> Target<'a, S> {
        let audience = target.audience.and_then(|audience| match &self.name {
            Ok(name) if audience.scope() == Some(name) => Ok(audience),
            Ok(_) => Err(InvalidName::new("target", NameProblem::OtherScope)),
            Err(invalid) => Err(invalid.clone()),
        });
        Target { audience, ..target }
    }
}

impl Scope {
    /// Publishes several events of this scope, as [`Hub::publish_many`].
    ///
    /// Cancel safety: that of [`Hub::publish_many`].
    ///
    /// # Errors
    /// Those of [`Hub::publish_many`]. An event for a target of another scope, of no scope or of
    /// all scopes is invalid, and does not stop the others.
    ///
    /// # Panics
    /// Panics under the same conditions as [`Target::publish`].
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let hub = tower_sse::Hub::builder().build()?;
    /// use tower_sse::Event;
    ///
    /// let acme = hub.scope("acme");
    /// let paid = |target| (target, Event::new("order.paid", "4711"));
    /// let receipts = acme.publish_many([paid(acme.user(7)), paid(hub.user(7))]).await;
    /// assert!(receipts[0].is_ok() && receipts[1].is_err());
    /// # Ok(()) }
    /// ```
    pub async fn publish_many<'a, I>(&self, events: I) -> Vec<Result<Receipt, PublishError>>
    where
        I: IntoIterator<Item = (Target<'a>, Event)>,
    {
        self.source.publish_many(events.into_iter().map(|(target, event)| (self.checked(target), event))).await
    }

    /// Returns the run of this name in the scope, as [`Hub::run`].
    pub fn run<N: TryInto<Topic, Error: Into<InvalidName>>>(&self, name: N) -> Run {
        Run::of(&self.source, self, name)
    }

    /// Opens a stream in this process, as [`Hub::subscribe`]. Puts the subscription into this
    /// scope.
    ///
    /// # Errors
    /// Those of [`Hub::subscribe`]. The subscription is also invalid if it belongs to another
    /// scope.
    pub fn subscribe(
        &self,
        subscription: Subscription,
        cursor: impl Into<Cursor>,
    ) -> Result<Subscriber, SubscriptionError> {
        self.source.subscribe(subscription.placed_in(self.scope_name()?), cursor)
    }

    /// Creates a ticket, as [`Hub::ticket`]. Puts the subscription into this scope.
    ///
    /// Cancel safety: that of [`Hub::ticket`].
    ///
    /// # Errors
    /// Those of [`Hub::ticket`]. The subscription is also invalid if it belongs to another scope.
    pub async fn ticket(&self, subscription: Subscription, ttl: Duration) -> Result<Ticket, SubscriptionError> {
        self.source.ticket(subscription.placed_in(self.scope_name()?), ttl).await
    }

    /// Returns the open connections of the scope on this instance, in no particular order.
    /// [`Hub::connections`] returns those of all scopes.
    #[must_use]
    pub fn connections(&self) -> Vec<ConnectionInfo> {
        let hub = &self.source;
        let now = hub.now();
        let topics = |handle: &ConnectionHandle| hub.log().topics(&handle.subscriber);
        self.handles().iter().map(|handle| ConnectionInfo::of(handle, topics(handle), now)).collect()
    }

    /// Returns the figures of the scope on this instance. The cost grows with the number of its
    /// connections and their topics. All figures are zero if the name of the scope is invalid.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let hub = tower_sse::Hub::builder().build()?;
    /// use tower_sse::Subscription;
    ///
    /// let acme = hub.scope("acme");
    /// let page = acme.subscribe(Subscription::for_user("ada").topic("orders"), None)?;
    /// let stats = acme.stats();
    /// assert_eq!((stats.connections, stats.users, stats.topics), (1, 1, 1));
    /// # drop(page);
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn stats(&self) -> ScopeStats {
        let handles = self.handles();
        let users: HashSet<_> = handles.iter().filter_map(|handle| handle.user()).collect();
        let log = self.source.log();
        let topics: HashSet<_> = handles.iter().flat_map(|handle| log.topics(&handle.subscriber)).collect();
        ScopeStats {
            connections: handles.len(),
            users: users.len(),
            topics: topics.len(),
            delivered: handles.iter().map(|handle| handle.delivered.load(Ordering::Relaxed)).sum(),
        }
    }

    fn handles(&self) -> Handles {
        self.name.as_ref().map(|name| self.source.registry().all_in(name)).unwrap_or_default()
    }
}

impl Scope<Publisher> {
    /// Publishes several events of this scope, as [`Publisher::publish_many`].
    ///
    /// Cancel safety: that of [`Publisher::publish_many`].
    ///
    /// # Errors
    /// Those of [`Publisher::publish_many`]. An event for a target of another scope, of no scope or
    /// of all scopes is invalid, and does not stop the others.
    ///
    /// # Panics
    /// Panics under the same conditions as [`Target::publish`](Target::<Publisher>::publish).
    pub async fn publish_many<'a, I>(&self, events: I) -> Vec<Result<Receipt, PublishError>>
    where
        I: IntoIterator<Item = (Target<'a, Publisher>, Event)>,
    {
        self.source.publish_many(events.into_iter().map(|(target, event)| (self.checked(target), event))).await
    }

    /// Returns the run of this name in the scope, as [`Publisher::run`].
    pub fn run<N: TryInto<Topic, Error: Into<InvalidName>>>(&self, name: N) -> Run {
        Run::of(self.source.run_writer(), self, name)
    }
}

impl<S> fmt::Debug for Scope<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scope").field("name", &self.name).finish_non_exhaustive()
    }
}
