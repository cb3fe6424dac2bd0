//! Who is there.
//!
//! 1. A connection gets and leaves topics that tell of it under the roster's lock, log and roster together. So a
//!    snapshot of such a topic and the position in it belong together: later events tell what changed since.
//! 2. The roster's lock is taken before those of the log and the registry, never after. No connection is woken under it.

use std::collections::btree_map::BTreeMap;
use std::collections::hash_set::HashSet;
use std::sync::Arc;

use super::roster::Roster;
use crate::hub::connection::handle::Link;
use crate::hub::connection::registry::Links;
use crate::hub::tasks::workers;
use crate::hub::upkeep::sweep;
use crate::hub::{Hub, Inner, Target};
use crate::log::{Asleep, Begin, Effect, Entry, Joined, Joining, Millis, Since, TooManyTopics, Wanted};
use crate::sync::{Mutex, Ordering};
use crate::types::audience::{Address, Audience};
use crate::types::event::Event;
use crate::types::name::{ConnectionId, Topic, UserId};
use crate::types::position::Position;
use crate::types::retention::TopicRule;
use crate::wire::{Draft, hub_events};

/// How many members are told of as gone in one turn.
const SWEEP: usize = 256;

/// Who is there at one moment: [`Target::presence`]. Serialises with the feature `json`.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Presence {
    /// Where in the log this was: of topics that tell who comes and goes, later `hub.joined` and `hub.left` events say
    /// what changed since.
    pub position: Position,
    /// Each user once, however many pages and tabs there are, in the order of their names.
    pub members: Vec<Member>,
    /// The number of anonymous connections.
    pub anonymous: usize,
}

/// A user who is there.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Member {
    /// Who.
    pub user: UserId,
    /// How many connections of this user there are. None while a reload, or a way through a tunnel, is not told of yet.
    pub connections: usize,
    data: Option<Arc<str>>,
}

impl Member {
    /// What [`Subscription::data`](crate::Subscription::data) attached to the newest of them, as JSON.
    #[must_use]
    pub fn data_json(&self) -> Option<&str> {
        self.data.as_deref()
    }
}

#[cfg(feature = "json")]
impl serde::Serialize for Presence {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeMap;
        let mut map = serializer.serialize_map(Some(3))?;
        map.serialize_entry("position", &self.position.to_string())?;
        map.serialize_entry("members", &self.members)?;
        map.serialize_entry("anonymous", &self.anonymous)?;
        map.end()
    }
}

#[cfg(feature = "json")]
impl serde::Serialize for Member {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeMap;
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("user", self.user.as_str())?;
        map.serialize_entry("connections", &self.connections)?;
        if let Some(value) = self.data_json().and_then(|json| serde_json::from_str::<serde_json::Value>(json).ok()) {
            map.serialize_entry("data", &value)?;
        }
        map.end()
    }
}

impl Target<'_> {
    /// Who is there now: the connections of the target, those of one user merged into one member.
    ///
    /// Of a topic that tells who comes and goes ([`HubBuilder::presence_for`](crate::HubBuilder::presence_for)) those are
    /// members whose leaving was not told yet; so the snapshot and the events from its position on never contradict each
    /// other. Elsewhere it is who has a stream open at this moment.
    ///
    /// Empty for a target whose name is not allowed.
    #[must_use]
    pub fn presence(&self) -> Presence {
        let hub = self.hub;
        let presences = &hub.inner.presences;
        let nobody = || Presence { position: hub.position(), members: Vec::new(), anonymous: 0 };
        let Ok(audience) = &self.audience else { return nobody() };
        // Only for topics that tell: what it costs others is that they wait.
        let tells = audience.addresses().iter().filter_map(Address::topic).any(|topic| presences.tells(topic));
        if tells {
            hub.inner.sweep_roster();
        }
        let roster = tells.then(|| presences.roster.lock());
        let mut presence = nobody();
        let mut members: BTreeMap<UserId, Member> = BTreeMap::new();
        let mut newest: BTreeMap<UserId, u64> = BTreeMap::new();
        for link in hub.links(audience) {
            let Some(user) = link.user() else {
                presence.anonymous += 1;
                continue;
            };
            let empty = || Member { user: user.clone(), connections: 0, data: None };
            let member = members.entry(user.clone()).or_insert_with(empty);
            member.connections += 1;
            let newest = newest.entry(user.clone()).or_default();
            let opened = link.opened.load(Ordering::Relaxed);
            if opened >= *newest {
                *newest = opened;
                member.data = link.data().cloned();
            }
        }
        let spared = hub.registry().find_all(audience.excluded().iter().copied());
        for topic in audience.addresses().iter().filter_map(Address::topic) {
            for (user, member) in roster.iter().flat_map(|roster| roster.members(topic)) {
                let is_of =
                    |link: &&Arc<Link>| link.user() == Some(user) && hub.log().topics(&link.subscriber).contains(topic);
                let spared = spared.iter().filter(is_of).count();
                if spared == 0 || spared < member.connections {
                    let connections = member.connections.saturating_sub(spared);
                    let known = || Member { user: user.clone(), connections, data: member.data.clone() };
                    members.entry(user.clone()).or_insert_with(known);
                }
            }
        }
        drop(roster);
        for (user, data) in hub.inner.remote.iter().flat_map(|remote| remote.others(audience)) {
            let Some(user) = user else {
                presence.anonymous += 1;
                continue;
            };
            let empty = || Member { user: user.clone(), connections: 0, data: data.clone() };
            members.entry(user.clone()).or_insert_with(empty).connections += 1;
        }
        if let Some(remote) = hub.inner.remote.as_ref().filter(|_| tells) {
            // What others have not told of yet comes twice rather than not at all.
            presence.position = remote.settled_position().unwrap_or(presence.position);
            for topic in audience.addresses().iter().filter_map(Address::topic) {
                for user in remote.leaving(topic, hub.now()) {
                    let empty = Member { user: user.clone(), connections: 0, data: None };
                    members.entry(user).or_insert(empty);
                }
            }
        }
        presence.members = members.into_values().collect();
        presence
    }

    /// How many connections the target has at this moment; each once, also of a union.
    #[must_use]
    pub fn count(&self) -> usize {
        let Ok(audience) = &self.audience else { return 0 };
        match audience.addresses() {
            [address] if audience.excluded().is_empty() => self.hub.connections_at(address),
            _ => {
                let others = self.hub.inner.remote.as_ref().map_or(0, |remote| remote.others(audience).len());
                self.hub.links(audience).len() + others
            }
        }
    }

    /// Whether anybody listens at this moment: one look-up for each address of the target, so that the
    /// application computes no dashboard without a reader.
    #[must_use]
    pub fn has_subscribers(&self) -> bool {
        match &self.audience {
            Err(_) => false,
            Ok(audience) if audience.excluded().is_empty() => {
                audience.addresses().iter().any(|address| self.hub.connections_at(address) > 0)
            }
            Ok(_) => self.count() > 0,
        }
    }

    /// Whether the target can be reached by an event: what decides whether to fall back to mail or web push.
    ///
    /// A user is online while a stream is open, and for
    /// [`HubBuilder::presence_grace`](crate::HubBuilder::presence_grace) after the last one has ended: who reloads a page,
    /// or comes back after a deploy, gets the event from the log, and needs no mail. [`count`](Self::count) says who has a
    /// stream at this moment. For other targets, and where a connection is [left out](Self::except), this is
    /// [`has_subscribers`](Self::has_subscribers).
    #[must_use]
    pub fn is_online(&self) -> bool {
        let now = self.hub.now();
        let Ok(audience) = &self.audience else { return false };
        if self.has_subscribers() {
            return true;
        }
        audience.excluded().is_empty()
            && audience.addresses().iter().any(|address| match address {
                Address::User(user) => {
                    let remote = self.hub.inner.remote.as_ref();
                    self.hub.registry().is_online(user, now) || remote.is_some_and(|remote| remote.is_online(user, now))
                }
                _ => false,
            })
    }
}

/// Topics that tell who comes and goes.
#[derive(Debug)]
pub(in crate::hub) struct Presences {
    rules: Vec<TopicRule>,
    roster: Mutex<Roster>,
}

impl Presences {
    pub(in crate::hub) fn new(rules: Vec<TopicRule>, grace: Millis) -> Self {
        Self { rules, roster: Mutex::new(Roster::new(grace)) }
    }

    fn tells(&self, topic: &Topic) -> bool {
        self.rules.iter().any(|rule| rule.matches(topic))
    }

    /// When a member is to be told of as gone.
    pub(in crate::hub) fn next_due(&self) -> Option<Millis> {
        if self.rules.is_empty() { None } else { self.roster.lock().next_due() }
    }
}

impl Hub {
    /// How many connections an address has, here and elsewhere.
    fn connections_at(&self, address: &Address) -> usize {
        let here = match address {
            // It has a channel only once somebody has written to it.
            Address::Connection(id) => usize::from(self.registry().find(*id).is_some()),
            _ => self.log().listening(address),
        };
        here + self.inner.remote.as_ref().map_or(0, |remote| remote.others_at(address))
    }

    /// The connections of an audience on this instance, each once.
    pub(in crate::hub) fn links(&self, audience: &Audience) -> Links {
        let mut links = Links::new();
        let mut seen: HashSet<ConnectionId> = audience.excluded().iter().copied().collect();
        for address in audience.addresses() {
            let found: Links = match address {
                Address::Everyone => self.registry().all().into(),
                Address::User(user) => self.registry().of_user(user),
                Address::Connection(id) => self.registry().find(*id).into_iter().collect(),
                Address::Topic(_) => self.registry().find_all(self.log().listeners(address)),
            };
            links.extend(found.into_iter().filter(|link| seen.insert(link.id())));
        }
        links
    }
}

/// What a connection is subscribed to changes here and nowhere else, so that the roster knows.
///
/// A change that is about no topic that tells takes no lock of the roster, so that one rule costs the others nothing.
impl Inner {
    pub(in crate::hub) fn open_channels(self: &Arc<Self>, link: &Arc<Link>, wanted: Vec<Wanted>, begin: Begin) -> u64 {
        let tells = self.tells_of(link, wanted.iter().filter_map(|wanted| wanted.address.topic()));
        self.with_roster(link, tells, |told| {
            let accepted_at = self.log.open(link, wanted, begin, self.now());
            if let Some(told) = told {
                self.log.topics(&link.subscriber).iter().for_each(|topic| told.enter(link, topic));
            }
            accepted_at
        })
    }

    pub(in crate::hub) fn close_channels(self: &Arc<Self>, link: &Link) -> Vec<Topic> {
        let may_tell = link.user().is_some() && !self.presences.rules.is_empty();
        let tells = may_tell && self.tells_of(link, &self.log.topics(&link.subscriber));
        let topics = self.with_roster(link, tells, |told| {
            let topics = self.log.close(&link.subscriber, self.now());
            if let Some(told) = told {
                topics.iter().for_each(|topic| told.exit(link, topic));
            }
            topics
        });
        // It may have joined one that tells between the look and the end.
        if !tells && self.tells_of(link, &topics) {
            self.with_own_roster(link, true, |told| {
                if let Some(told) = told {
                    topics.iter().for_each(|topic| told.exit(link, topic));
                }
            });
        }
        topics
    }

    pub(in crate::hub) fn join_topic(
        self: &Arc<Self>,
        link: &Arc<Link>,
        topic: &Topic,
        since: Since,
        max_topics: usize,
    ) -> Result<bool, TooManyTopics> {
        let joined = self.with_roster(link, self.tells_of(link, [topic]), |told| {
            let address = Address::Topic(topic.clone());
            let joined = self.log.join(link, &address, since, max_topics, self.now())?;
            if let Some(told) = told.filter(|_| joined) {
                told.enter(link, topic);
            }
            Ok(joined)
        })?;
        if joined {
            // It may have something to read, and tells its page which topics it has now.
            link.wake(self.now());
        }
        Ok(joined)
    }

    pub(in crate::hub) fn join_as_of(
        self: &Arc<Self>,
        link: &Arc<Link>,
        topic: &Topic,
        joined: &Joined,
    ) -> Result<bool, TooManyTopics> {
        self.with_roster(link, self.tells_of(link, [topic]), |told| {
            let is_new = self.log.join_as_of(link, joined, self.settings.max_topics, self.now())?;
            if let Some(told) = told.filter(|_| is_new) {
                told.enter(link, topic);
            }
            Ok(is_new)
        })
    }

    /// Leaves, then joins, all or nothing; returns the topics in force. `confirm` is asked as [`Log::change`] says.
    ///
    /// [`Log::change`]: crate::log::Log::change
    pub(in crate::hub) fn change_topics<E: From<TooManyTopics>>(
        self: &Arc<Self>,
        link: &Arc<Link>,
        leave: &[Topic],
        join: &[Joining],
        confirm: impl FnOnce() -> Result<(), E>,
    ) -> Result<Vec<Topic>, E> {
        let tells = self.tells_of(link, leave.iter().chain(join.iter().map(|joining| &joining.topic)));
        let changed = self.with_roster(link, tells, |told| -> Result<_, E> {
            let changed = self.log.change(link, leave, join, self.settings.max_topics, self.now(), confirm)?;
            if let Some(told) = told {
                changed.left.iter().for_each(|topic| told.exit(link, topic));
                changed.joined.iter().for_each(|topic| told.enter(link, topic));
            }
            Ok(changed)
        })?;
        if changed.is_any() {
            link.wake(self.now());
        }
        Ok(changed.topics)
    }

    pub(in crate::hub) fn leave_topic(self: &Arc<Self>, link: &Link, topic: &Topic) -> bool {
        let left = self.with_roster(link, self.tells_of(link, [topic]), |told| {
            let left = self.log.leave(&link.subscriber, &Address::Topic(topic.clone()), self.now());
            if let Some(told) = told.filter(|_| left) {
                told.exit(link, topic);
            }
            left
        });
        if left {
            link.wake(self.now());
        }
        left
    }

    /// Tells of members that have not come back, of some if there are many. Returns whether there are more.
    pub(in crate::hub) fn sweep_roster(self: &Arc<Self>) -> bool {
        if self.presences.rules.is_empty() {
            return false;
        }
        let mut roster = self.presences.roster.lock();
        let mut told = Told { inner: self, roster: &mut roster, asleep: Asleep::default() };
        let mut count = 0;
        while count < SWEEP
            && let Some((topic, user)) = told.roster.sweep(self.now())
        {
            let elsewhere = self.remote.as_ref().is_some_and(|remote| remote.speaks_for(&topic, &user, self.now()));
            if !elsewhere {
                let tiding = hub_events::left(&topic, &user);
                told.publish(topic, &user, tiding);
            }
            count += 1;
        }
        let asleep = told.asleep;
        drop(roster);
        self.wake(asleep);
        count == SWEEP
    }

    /// A member of an instance that has ended is gone, unless it is here.
    #[cfg(feature = "json")]
    pub(in crate::hub) fn tell_of_orphan(&self, topic: &Topic, user: &UserId) {
        let is_here = || self.presences.roster.lock().members(topic).any(|(member, _)| member == user);
        if self.presences.tells(topic)
            && !is_here()
            && let Some(remote) = &self.remote
        {
            let (name, data) = hub_events::left(topic, user);
            remote.tell_of(topic.clone(), user.clone(), Event::text(name, data));
        }
    }

    /// Whether one of these topics tells of this connection's user.
    fn tells_of<'a>(&self, link: &Link, topics: impl IntoIterator<Item = &'a Topic>) -> bool {
        link.user().is_some() && topics.into_iter().any(|topic| self.presences.tells(topic))
    }

    /// Hands in the roster if the change is about topics that tell. Other instances hear of the change in any case.
    fn with_roster<R>(
        self: &Arc<Self>,
        link: &Link,
        tells: bool,
        change: impl FnOnce(Option<&mut Told<'_>>) -> R,
    ) -> R {
        let changed = self.with_own_roster(link, tells, change);
        if let Some(remote) = &self.remote {
            remote.changed(link.id());
        }
        changed
    }

    fn with_own_roster<R>(
        self: &Arc<Self>,
        link: &Link,
        tells: bool,
        change: impl FnOnce(Option<&mut Told<'_>>) -> R,
    ) -> R {
        if !tells || link.user().is_none() {
            return change(None);
        }
        let mut roster = self.presences.roster.lock();
        let mut told = Told { inner: self, roster: &mut roster, asleep: Asleep::default() };
        let changed = change(Some(&mut told));
        let (asleep, is_due) = (told.asleep, roster.next_due().is_some());
        drop(roster);
        self.wake(asleep);
        if is_due {
            sweep::ensure(self);
        }
        changed
    }

    fn wake(self: &Arc<Self>, asleep: Asleep) {
        self.log.wake(asleep, self.now());
        workers::wake_rest(self);
    }
}

/// The roster while it is locked, and whom its changes have not woken yet.
struct Told<'a> {
    inner: &'a Inner,
    roster: &'a mut Roster,
    asleep: Asleep,
}

impl Told<'_> {
    fn enter(&mut self, link: &Link, topic: &Topic) {
        if let Some(user) = link.user()
            && self.inner.presences.tells(topic)
            && self.roster.enter(topic, user, link.data())
            && !self.inner.remote.as_ref().is_some_and(|remote| remote.is_member(topic, user, self.inner.now()))
        {
            let tiding = hub_events::joined(topic, user, link.data().map(AsRef::as_ref));
            self.publish(topic.clone(), user, tiding);
        }
    }

    fn exit(&mut self, link: &Link, topic: &Topic) {
        if let Some(user) = link.user()
            && self.inner.presences.tells(topic)
        {
            let was_due = self.roster.next_due();
            self.roster.exit(topic, user, self.inner.now());
            if was_due.is_none() {
                self.inner.chores.rouse();
            }
        }
    }

    /// Nothing is published after a drain.
    fn publish(&mut self, topic: Topic, user: &UserId, (name, data): (&'static str, String)) {
        if self.inner.closed.load(Ordering::Acquire) {
            return;
        }
        if let Some(remote) = &self.inner.remote {
            remote.tell_of(topic, user.clone(), Event::text(name, data));
            return;
        }
        let draft = Draft::control(name, &data);
        let entry = Entry { audience: Address::Topic(topic).into(), effect: Effect::Nothing, draft, published: None };
        let (_, asleep) = self.inner.log.append_asleep([entry], self.inner.now());
        self.asleep.unite(asleep);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::subscription::Subscription;

    #[test]
    fn streams_without_a_topic_that_tells_wait_for_no_roster() {
        let hub = Hub::builder().presence_for(TopicRule::exact("room")).build().unwrap();
        let ada = |topic: &str| Subscription::user("ada").topic(topic);
        let _in_room = hub.stream(ada("room"), None).unwrap();
        let held = hub.inner.presences.roster.lock();
        let (done, is_done) = std::sync::mpsc::channel();
        let others = hub.clone();
        let opening = std::thread::spawn(move || {
            let stream = others.stream(ada("news"), None).unwrap();
            let link = others.registry().find(stream.connection()).unwrap();
            let topic = Topic::try_from("weather").unwrap();
            assert!(others.inner.join_topic(&link, &topic, Since::Now, 9).unwrap());
            assert!(others.inner.leave_topic(&link, &topic));
            drop((stream, link));
            done.send(()).unwrap();
        });
        let waited = is_done.recv_timeout(std::time::Duration::from_secs(10));
        drop(held);
        opening.join().unwrap();
        waited.expect("a stream waited for the roster");
        assert_eq!(hub.topic("room").presence().members.len(), 1);
    }
}
