//! Presence: the users of a target, counts of connections, and whether a user is online.

use std::collections::btree_map::BTreeMap;
use std::sync::Arc;

use serde::Serialize;
use serde_json::value::RawValue;

use super::{Hub, Target};
use crate::hub::connection::handle::ConnectionHandle;
use crate::sync::Ordering;
use crate::types::{Address, Position, UserId};

/// A snapshot of the users of a target, returned by [`Target::presence`]. It serializes with serde.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let hub = tower_sse::Hub::builder().build()?;
/// use tower_sse::Subscription;
///
/// let ada = Subscription::for_user("ada").topic("documents/7").data("Ada Lovelace");
/// let page = hub.subscribe(ada, None)?;
/// let presence = hub.topic("documents/7").presence();
/// assert_eq!((presence.members.len(), presence.anonymous), (1, 0));
/// assert_eq!(presence.members[0].user.as_str(), "ada");
/// # drop(page);
/// # Ok(()) }
/// ```
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Presence {
    /// The position of the snapshot in the log. In topics with presence events, the `hub.joined`
    /// and `hub.left` events after this position report every later change.
    pub position: Position,
    /// The users, sorted by name. A user with several connections appears once.
    pub members: Vec<Member>,
    /// The number of anonymous connections.
    pub anonymous: usize,
}

/// A user in a [`Presence`] snapshot.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let hub = tower_sse::Hub::builder().build()?;
/// use tower_sse::Subscription;
///
/// let pages = [(); 2].map(|()| hub.subscribe(Subscription::for_user("ada").data("Ada"), None));
/// let presence = hub.user("ada").presence();
/// let [ada] = &presence.members[..] else { panic!("one member") };
/// assert_eq!((ada.user.as_str(), ada.connections), ("ada", 2));
/// assert_eq!(ada.data_json(), Some(r#""Ada""#));
/// # drop(pages);
/// # Ok(()) }
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Member {
    /// The user.
    pub user: UserId,
    /// The number of the user's connections that belong to the target. In a topic with presence
    /// events, it is zero between the end of the last connection and `hub.left`, for example during
    /// a reload.
    pub connections: usize,
    #[serde(serialize_with = "raw", skip_serializing_if = "Option::is_none")]
    data: Option<Arc<str>>,
}

impl Member {
    /// Returns the value that [`Subscription::data`](crate::Subscription::data) attached to a
    /// connection of this user, as JSON, or `None` if there is none. If several connections of this
    /// instance belong to the target, the newest of them counts.
    #[must_use]
    pub fn data_json(&self) -> Option<&str> {
        self.data.as_deref()
    }
}

/// Serializes JSON text as a JSON value, not as a string.
fn raw<S: serde::Serializer>(json: &Option<Arc<str>>, serializer: S) -> Result<S::Ok, S::Error> {
    let value: Option<&RawValue> = json.as_deref().and_then(|json| serde_json::from_str(json).ok());
    value.serialize(serializer)
}

impl Target<'_> {
    /// Returns the users of the target. The connections of one user are merged into one member.
    ///
    /// In a topic with presence events
    /// ([`HubBuilder::presence_for`](crate::HubBuilder::presence_for)), a user stays a member until
    /// `hub.left` is published. So a page that shows the snapshot, and then applies the presence
    /// events after the snapshot's position, shows the right members. In other targets, the members
    /// are the users with an open stream at this moment.
    ///
    /// The snapshot of a target with an invalid name is empty. The cost of this method grows with
    /// the number of connections of the target.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let hub = tower_sse::Hub::builder().build()?;
    /// use tower_sse::Subscription;
    ///
    /// let ada = hub.subscribe(Subscription::for_user("ada").topic("documents/7"), None)?;
    /// let guest = hub.subscribe(Subscription::anonymous().topic("documents/7"), None)?;
    /// let presence = hub.topic("documents/7").presence();
    /// let users: Vec<&str> = presence.members.iter().map(|member| member.user.as_str()).collect();
    /// assert_eq!((users, presence.anonymous), (vec!["ada"], 1));
    /// # drop((ada, guest));
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn presence(&self) -> Presence {
        let hub = self.source;
        let presences = &hub.inner.presences;
        let empty = || Presence { position: hub.position(), members: Vec::new(), anonymous: 0 };
        let Ok(audience) = &self.audience else { return empty() };
        // Changes of presence wait for the roster's lock, so this method takes the lock only for
        // topics with presence events.
        let has_events =
            audience.addresses().iter().filter_map(Address::topic).any(|topic| presences.has_presence_events(topic));
        if has_events {
            hub.inner.sweep_roster();
        }
        let roster = has_events.then(|| presences.roster.lock());
        let mut presence = empty();
        let mut members: BTreeMap<UserId, Member> = BTreeMap::new();
        let mut newest: BTreeMap<UserId, u64> = BTreeMap::new();
        for handle in hub.handles(audience) {
            let Some(user) = handle.user() else {
                presence.anonymous += 1;
                continue;
            };
            let empty = || Member { user: user.clone(), connections: 0, data: None };
            let member = members.entry(user.clone()).or_insert_with(empty);
            member.connections += 1;
            let newest = newest.entry(user.clone()).or_default();
            let opened = handle.opened.load(Ordering::Relaxed);
            if opened >= *newest {
                *newest = opened;
                member.data = handle.data().cloned();
            }
        }
        let excluded = hub.registry().find_all(audience.excluded().iter().copied());
        for topic in audience.addresses().iter().filter_map(Address::topic) {
            for (user, member) in roster.iter().flat_map(|roster| roster.members(topic)) {
                let is_of = |handle: &&Arc<ConnectionHandle>| {
                    handle.user() == Some(user) && hub.log().topics(&handle.subscriber).contains(topic)
                };
                let excluded = excluded.iter().filter(is_of).count();
                if excluded == 0 || excluded < member.connections {
                    let connections = member.connections.saturating_sub(excluded);
                    let remaining = || Member { user: user.clone(), connections, data: member.data.clone() };
                    members.entry(user.clone()).or_insert_with(remaining);
                }
            }
        }
        drop(roster);
        for (user, data) in hub.inner.shared_log.iter().flat_map(|shared| shared.others(audience)) {
            let Some(user) = user else {
                presence.anonymous += 1;
                continue;
            };
            let empty = || Member { user: user.clone(), connections: 0, data: data.clone() };
            members.entry(user.clone()).or_insert_with(empty).connections += 1;
        }
        if let Some(shared) = hub.inner.shared_log.as_ref().filter(|_| has_events) {
            // Use an older position, so that changes that other instances have not reported yet
            // come after it. A client may receive a change twice, but misses none.
            presence.position = shared.settled_position().unwrap_or(presence.position);
            for topic in audience.addresses().iter().filter_map(Address::topic) {
                for user in shared.leaving(topic, hub.now()) {
                    let empty = Member { user: user.clone(), connections: 0, data: None };
                    members.entry(user).or_insert(empty);
                }
            }
        }
        presence.members = members.into_values().collect();
        presence
    }

    /// Returns the number of open connections of the target, on all instances. A connection counts
    /// once, also in a union of targets.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let hub = tower_sse::Hub::builder().build()?;
    /// use tower_sse::Subscription;
    ///
    /// let page = hub.subscribe(Subscription::for_user("ada").topic("documents/7"), None)?;
    /// assert_eq!(hub.user("ada").and(hub.topic("documents/7")).count(), 1);
    /// # drop(page);
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn count(&self) -> usize {
        let Ok(audience) = &self.audience else { return 0 };
        match audience.addresses() {
            [address] if audience.excluded().is_empty() => self.source.connections_at(address),
            _ => {
                let others = self.source.inner.shared_log.as_ref().map_or(0, |shared| shared.count_peers(audience));
                self.source.handles(audience).len() + others
            }
        }
    }

    /// Returns whether the target has an open connection on any instance. Use it to skip work that
    /// no client would see, for example the computation of a dashboard.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let hub = tower_sse::Hub::builder().build()?;
    /// use tower_sse::Event;
    ///
    /// let dashboard = hub.topic("dashboard");
    /// if dashboard.has_subscribers() {
    ///     let orders = 42; // a slow query
    ///     dashboard.publish(Event::new("orders", orders.to_string())).await?;
    /// }
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn has_subscribers(&self) -> bool {
        match &self.audience {
            Err(_) => false,
            Ok(audience) if audience.excluded().is_empty() => {
                audience.addresses().iter().any(|address| self.source.connections_at(address) > 0)
            }
            Ok(_) => self.count() > 0,
        }
    }

    /// Returns whether the target has an open connection, or has a user who was connected a short
    /// time ago. If not, an application may fall back to mail or web push.
    ///
    /// A user is online while a stream of the user is open, and for
    /// [`HubBuilder::presence_grace`](crate::HubBuilder::presence_grace) after the last stream has
    /// ended. So a user who only reconnects or reloads a page gets no mail. A stream that
    /// reconnects receives the event from the log. A reloaded page sends no id, so it has to load
    /// the stored notifications. By contrast, [`count`](Self::count) includes only open streams.
    /// For a target without a user, and for a target that [excludes](Self::except) a connection,
    /// this method equals [`has_subscribers`](Self::has_subscribers).
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let hub = tower_sse::Hub::builder().build()?;
    /// use tower_sse::Subscription;
    ///
    /// assert!(!hub.user("ada").is_online()); // send a mail
    /// drop(hub.subscribe(Subscription::for_user("ada"), None)?);
    /// assert_eq!(hub.user("ada").count(), 0);
    /// assert!(hub.user("ada").is_online()); // within the grace period
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn is_online(&self) -> bool {
        let now = self.source.now();
        let Ok(audience) = &self.audience else { return false };
        if self.has_subscribers() {
            return true;
        }
        audience.excluded().is_empty()
            && audience.addresses().iter().any(|address| match address {
                Address::User(user) => {
                    let shared = self.source.inner.shared_log.as_ref();
                    self.source.registry().is_online(user, now)
                        || shared.is_some_and(|shared| shared.is_online(user, now))
                }
                _ => false,
            })
    }
}

impl Hub {
    /// Returns the number of connections of an address, on all instances.
    fn connections_at(&self, address: &Address) -> usize {
        let here = match address {
            // A connection has no channel before the first event to it, so the log cannot count it.
            Address::Connection(id, scope) => {
                usize::from(self.registry().find(*id).is_some_and(|handle| handle.scope() == scope))
            }
            _ => self.log().listening(address),
        };
        here + self.inner.shared_log.as_ref().map_or(0, |shared| shared.count_peers_at(address))
    }
}
