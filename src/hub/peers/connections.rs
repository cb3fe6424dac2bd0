//! The connections of other instances, in little memory.
//!
//! 1. A connection with a user and three topics takes about 100 bytes. Users and topics are
//!    stored once, and a connection refers to them by number. The connections of a user are a list,
//!    and those of a topic a compressed bitmap.
//! 2. The indexes and the connections change in one step ([`Connections::insert`],
//!    [`Connections::remove`]).
//! 3. A user without a connection stays known for the grace period. So does a member that has left
//!    a topic with presence events ([`Connections::forget`]). No other topic has members, because
//!    no event would report that they have left.

use std::collections::hash_map::{HashMap, RandomState};
use std::hash::BuildHasher;
use std::sync::Arc;

use hashbrown::HashTable;
use roaring::RoaringBitmap;

use super::message::{HalfId, InstanceId, PeerConnection};
use super::short_text::ShortText;
use super::slots::Slots;
use crate::hub::departures::Departures;
use crate::log::Millis;
use crate::types::{ScopeName, Scoped, Topic, TopicFilter, UserId, each_once};

/// The number in place of a connection, a user or a topic that does not exist.
const NONE: u32 = u32::MAX;
/// The first number of a list of topics that is in [`Connections::long_lists`].
const LONG: u32 = u32::MAX - 1;
/// The number of topics that a connection stores itself.
const INLINE: usize = 3;

/// The connections of one instance, by their ids. The entries are numbers of connections.
pub(super) type Ids = HashTable<u32>;

/// The connections of all other instances.
#[derive(Debug, Default)]
pub(super) struct Connections {
    records: Slots<Record>,
    users: Slots<User>,
    users_by_name: HashTable<u32>,
    topics: Slots<PeerTopic>,
    topics_by_name: HashTable<u32>,
    /// The topics of connections with more than [`INLINE`] topics.
    long_lists: Slots<Box<[u32]>>,
    /// The data of the connections that have data.
    data: HashMap<u32, Arc<str>>,
    /// The scopes of the connections that are not of the root scope.
    scopes: HashMap<u32, ScopeName>,
    by_scope: HashMap<ScopeName, RoaringBitmap>,
    /// By topic, the members whose last connection has left the topic, each with the time and the
    /// instance of that connection.
    departed: HashMap<u32, HashMap<u32, (Millis, InstanceId)>>,
    /// The users whose last connection has closed, each with the time.
    absent: HashMap<u32, Millis>,
    /// The queue of both kinds of departures: the topic, which is [`NONE`] for a user without a
    /// connection, and the user.
    pub(super) departures: Departures<(u32, u32)>,
    /// The filters of the topics with presence events.
    rules: Vec<TopicFilter>,
    hasher: RandomState,
}

/// A connection.
#[derive(Debug)]
struct Record {
    /// The id in two parts. In one part, each record would be eight bytes larger.
    id: [u32; 2],
    user: u32,
    /// The next and the previous connection of the user.
    next: u32,
    previous: u32,
    /// The topics, or [`LONG`] and the number of a long list.
    topics: [u32; INLINE],
}

/// A user who has, or had, connections on other instances.
#[derive(Debug)]
struct User {
    name: ShortText,
    scope: ScopeName,
    /// The first connection of the user.
    first: u32,
    count: u32,
}

/// A topic on other instances.
#[derive(Debug, Default)]
struct PeerTopic {
    /// `None` for a number that is not used.
    name: Option<Topic>,
    connections: RoaringBitmap,
    has_events: bool,
}

impl Default for Record {
    fn default() -> Self {
        Self { id: [0; 2], user: NONE, next: NONE, previous: NONE, topics: [NONE; INLINE] }
    }
}

impl Default for User {
    fn default() -> Self {
        Self { name: ShortText::default(), scope: ScopeName::ROOT, first: NONE, count: 0 }
    }
}

impl User {
    /// Returns the parts of the name, which are hashed and compared as those of a [`UserId`].
    fn key(&self) -> (&str, &ScopeName) {
        (self.name.as_str(), &self.scope)
    }

    fn id(&self) -> Option<UserId> {
        // The name was checked before it was stored.
        UserId::try_from(self.name.as_str()).and_then(|user| user.placed_in(&self.scope)).ok()
    }
}

fn key_of(user: &UserId) -> (&str, &ScopeName) {
    (user.as_str(), user.scope_name())
}

impl Record {
    fn id(&self) -> HalfId {
        HalfId(u64::from(self.id[0]) << 32 | u64::from(self.id[1]))
    }
}

fn parts_of(id: HalfId) -> [u32; 2] {
    [(id.0 >> 32) as u32, id.0 as u32]
}

impl Connections {
    pub(super) fn new(rules: Vec<TopicFilter>, grace: Millis) -> Self {
        Self { departures: Departures::new(grace), rules, ..Self::default() }
    }

    /// Returns the number of connections.
    pub(super) fn len(&self) -> usize {
        self.records.len()
    }

    /// Returns a connection of the instance with these ids.
    pub(super) fn find(&self, ids: &Ids, id: HalfId) -> Option<u32> {
        // The ids are random, so an id is its own hash.
        ids.find(id.0, |number| self.records.get(*number).id() == id).copied()
    }

    /// Adds a connection of an instance, or replaces its state. `ids` are those of the instance.
    /// Returns the number of the connection.
    pub(super) fn insert(&mut self, ids: &mut Ids, from: InstanceId, connection: &PeerConnection, now: Millis) -> u32 {
        let mut known = self.find(ids, connection.id);
        if let Some(number) = known
            && (self.user_of(number) != connection.user.as_ref().map(key_of)
                || *self.scope_of(number) != connection.scope)
        {
            self.remove(ids, from, connection.id, now);
            known = None;
        }
        let number = known.unwrap_or_else(|| self.add(ids, connection));
        match &connection.data {
            Some(data) if self.data.get(&number) != Some(data) => _ = self.data.insert(number, Arc::clone(data)),
            Some(_) => {}
            None => _ = self.data.remove(&number),
        }
        let mut topics: Vec<u32> = connection.topics.iter().map(|topic| self.topic(topic)).collect();
        each_once(&mut topics, |topic| topic);
        if *self.topics_of(number) == *topics {
            return number;
        }
        let before: RoaringBitmap = self.topics_of(number).iter().copied().collect();
        let after: RoaringBitmap = topics.iter().copied().collect();
        for topic in &after - &before {
            self.topics.at(topic).connections.insert(number);
        }
        self.set_topics(number, &topics);
        let user = self.records.get(number).user;
        for topic in &after - &before {
            self.forget_departure(topic, user);
        }
        // Only the topics that the connection has left, because each leave queues a departure.
        for topic in &before - &after {
            self.leave(from, number, topic, now);
        }
        number
    }

    /// Adds a connection without topics.
    fn add(&mut self, ids: &mut Ids, connection: &PeerConnection) -> u32 {
        let mut record = Record { id: parts_of(connection.id), ..Record::default() };
        let scope = self.interned(&connection.scope);
        if let Some(user) = &connection.user {
            record.user = self.user(user, &scope);
            record.next = self.users.get(record.user).first;
        }
        let (user, next) = (record.user, record.next);
        let number = self.records.insert(record);
        if user != NONE {
            if next != NONE {
                self.records.at(next).previous = number;
            }
            let of = self.users.at(user);
            of.first = number;
            of.count += 1;
            self.absent.remove(&user);
        }
        if !scope.is_root() {
            self.scopes.insert(number, scope.clone());
            self.by_scope.entry(scope).or_default().insert(number);
        }
        ids.insert_unique(connection.id.0, number, |number| self.records.get(*number).id().0);
        number
    }

    /// Removes a connection of an instance. `ids` are those of the instance.
    pub(super) fn remove(&mut self, ids: &mut Ids, from: InstanceId, id: HalfId, now: Millis) {
        let Ok(entry) = ids.find_entry(id.0, |number| self.records.get(*number).id() == id) else { return };
        let (number, _) = entry.remove();
        // The topics come first, so that the departures from them are forgotten before the user.
        for topic in self.topics_of(number).to_vec() {
            self.leave(from, number, topic, now);
        }
        let Record { user, next, previous, .. } = *self.records.get(number);
        if user != NONE {
            if next != NONE {
                self.records.at(next).previous = previous;
            }
            if previous != NONE {
                self.records.at(previous).next = next;
            }
            let of = self.users.at(user);
            of.count -= 1;
            if of.first == number {
                of.first = next;
            }
            if of.count == 0 {
                self.absent.insert(user, now);
                self.departures.push(now, (NONE, user));
            }
        }
        self.set_topics(number, &[]);
        self.data.remove(&number);
        if let Some(scope) = self.scopes.remove(&number)
            && let Some(of) = self.by_scope.get_mut(&scope)
        {
            of.remove(number);
            if of.is_empty() {
                self.by_scope.remove(&scope);
            }
        }
        self.records.remove(number);
    }

    /// Removes a connection from a topic.
    fn leave(&mut self, from: InstanceId, number: u32, topic: u32, now: Millis) {
        let user = self.records.get(number).user;
        let of = self.topics.at(topic);
        of.connections.remove(number);
        if of.has_events && user != NONE && !self.is_in(topic, user) {
            self.departed.entry(topic).or_default().insert(user, (now, from));
            self.departures.push(now, (topic, user));
        }
        self.free_topic_if_unused(topic);
    }

    /// Returns whether a user has a connection in a topic.
    fn is_in(&self, topic: u32, user: u32) -> bool {
        let (of, connections) = (self.users.get(user), &self.topics.get(topic).connections);
        // The shorter of the two lists, because either may have very many connections.
        if u64::from(of.count) <= connections.len() {
            self.list(of.first).any(|number| connections.contains(number))
        } else {
            connections.iter().any(|number| self.records.get(number).user == user)
        }
    }

    /// Returns the connections of a list of connections of one user.
    fn list(&self, first: u32) -> impl Iterator<Item = u32> {
        let some = |number: u32| (number != NONE).then_some(number);
        std::iter::successors(some(first), move |number| some(self.records.get(*number).next))
    }

    /// Returns a scope that shares its text with the other connections of the scope.
    fn interned(&self, scope: &ScopeName) -> ScopeName {
        self.by_scope.get_key_value(scope).map_or(scope, |(known, _)| known).clone()
    }

    /// Returns the number of a user of a scope. Adds an unknown user.
    fn user(&mut self, user: &UserId, scope: &ScopeName) -> u32 {
        if let Some(number) = self.find_user(user) {
            return number;
        }
        let user_of_scope = User { name: ShortText::new(user.as_str()), scope: scope.clone(), ..User::default() };
        let number = self.users.insert(user_of_scope);
        let (hasher, users) = (&self.hasher, &self.users);
        let hash = |number: &u32| hasher.hash_one(users.get(*number).key());
        self.users_by_name.insert_unique(hasher.hash_one(key_of(user)), number, hash);
        number
    }

    fn find_user(&self, user: &UserId) -> Option<u32> {
        let is_named = |number: &u32| self.users.get(*number).key() == key_of(user);
        self.users_by_name.find(self.hasher.hash_one(key_of(user)), is_named).copied()
    }

    /// Returns the number of a topic. Adds an unknown topic.
    fn topic(&mut self, name: &Topic) -> u32 {
        if let Some(topic) = self.find_topic(name) {
            return topic;
        }
        let has_events = self.rules.iter().any(|rule| rule.matches(name));
        let topic = self.topics.insert(PeerTopic { name: Some(name.clone()), has_events, ..PeerTopic::default() });
        let (hasher, topics) = (&self.hasher, &self.topics);
        let hash = |topic: &u32| hasher.hash_one(&topics.get(*topic).name);
        self.topics_by_name.insert_unique(hasher.hash_one(Some(name)), topic, hash);
        topic
    }

    fn find_topic(&self, name: &Topic) -> Option<u32> {
        let is_named = |topic: &u32| self.topics.get(*topic).name.as_ref() == Some(name);
        self.topics_by_name.find(self.hasher.hash_one(Some(name)), is_named).copied()
    }

    fn free_topic_if_unused(&mut self, topic: u32) {
        let PeerTopic { name, connections, .. } = self.topics.get(topic);
        if !connections.is_empty() || self.departed.contains_key(&topic) {
            return;
        }
        let hash = self.hasher.hash_one(name);
        if let Ok(entry) = self.topics_by_name.find_entry(hash, |number| *number == topic) {
            entry.remove();
            self.topics.remove(topic);
        }
    }

    fn topics_of(&self, number: u32) -> &[u32] {
        match &self.records.get(number).topics {
            [LONG, list, _] => self.long_lists.get(*list),
            topics => &topics[..topics.iter().position(|topic| *topic == NONE).unwrap_or(INLINE)],
        }
    }

    fn set_topics(&mut self, number: u32, topics: &[u32]) {
        if let [LONG, list, _] = self.records.get(number).topics {
            self.long_lists.remove(list);
        }
        let mut inline = [NONE; INLINE];
        match inline.get_mut(..topics.len()) {
            Some(start) => start.copy_from_slice(topics),
            None => inline = [LONG, self.long_lists.insert(topics.into()), NONE],
        }
        self.records.at(number).topics = inline;
    }

    /// Returns the name of the user of a connection.
    fn user_of(&self, number: u32) -> Option<(&str, &ScopeName)> {
        let user = self.records.get(number).user;
        (user != NONE).then(|| self.users.get(user).key())
    }

    /// Returns the user of a connection.
    fn user_id_of(&self, number: u32) -> Option<UserId> {
        let user = self.records.get(number).user;
        if user == NONE { None } else { self.users.get(user).id() }
    }

    /// Returns the scope of a connection.
    pub(super) fn scope_of(&self, number: u32) -> &ScopeName {
        self.scopes.get(&number).unwrap_or(ScopeName::root())
    }

    /// Returns the number of connections that are not of the root scope.
    pub(super) fn len_of_scopes(&self) -> usize {
        self.scopes.len()
    }

    /// Returns the connections of a scope that is not the root scope.
    pub(super) fn in_scope(&self, scope: &ScopeName) -> Option<&RoaringBitmap> {
        self.by_scope.get(scope)
    }

    /// Returns the connections of each scope that is not the root scope.
    pub(super) fn in_scopes(&self) -> impl Iterator<Item = &RoaringBitmap> {
        self.by_scope.values()
    }

    /// Returns the id of a connection.
    pub(super) fn id_of(&self, number: u32) -> HalfId {
        self.records.get(number).id()
    }

    /// Returns the user and the data of a connection.
    pub(super) fn describe(&self, number: u32) -> (Option<UserId>, Option<Arc<str>>) {
        (self.user_id_of(number), self.data.get(&number).cloned())
    }

    /// Returns the topics of a connection.
    pub(super) fn topic_names(&self, number: u32) -> Vec<Topic> {
        self.topics_of(number).iter().filter_map(|topic| self.topics.get(*topic).name.clone()).collect()
    }

    /// Returns the connections of a topic.
    pub(super) fn in_topic(&self, topic: &Topic) -> Option<&RoaringBitmap> {
        self.find_topic(topic).map(|topic| &self.topics.get(topic).connections)
    }

    /// Returns the connections of a user.
    pub(super) fn of_user(&self, user: &UserId) -> impl Iterator<Item = u32> {
        self.list(self.find_user(user).map_or(NONE, |user| self.users.get(user).first))
    }

    /// Returns the number of connections of a user.
    pub(super) fn count_of_user(&self, user: &UserId) -> usize {
        self.find_user(user).map_or(0, |user| self.users.get(user).count as usize)
    }

    /// Returns whether a user has a connection, or had one within the grace period.
    pub(super) fn is_online(&self, user: &UserId, now: Millis) -> bool {
        let is_recent = |user: &u32| self.absent.get(user).is_none_or(|since| !self.departures.is_over(*since, now));
        self.find_user(user).as_ref().is_some_and(is_recent)
    }

    /// Returns whether a user has a connection in a topic.
    pub(super) fn is_connected(&self, topic: &Topic, user: &UserId) -> bool {
        let found = self.find_topic(topic).zip(self.find_user(user));
        found.is_some_and(|(topic, user)| self.is_in(topic, user))
    }

    /// Returns the instance on which a member last had a topic, if the member has left within the
    /// grace period.
    pub(super) fn last_instance(&self, topic: &Topic, user: &UserId, now: Millis) -> Option<InstanceId> {
        let (topic, user) = self.find_topic(topic).zip(self.find_user(user))?;
        let (since, at) = self.departed.get(&topic)?.get(&user)?;
        (!self.departures.is_over(*since, now)).then_some(*at)
    }

    /// Returns the members that have left a topic within the grace period.
    pub(super) fn leaving(&self, topic: &Topic, now: Millis) -> Vec<UserId> {
        let users = self.find_topic(topic).and_then(|topic| self.departed.get(&topic)).into_iter().flatten();
        let recent = users.filter(|(_, (since, _))| !self.departures.is_over(*since, now));
        recent.filter_map(|(user, _)| self.users.get(*user).id()).collect()
    }

    /// Returns the members of an instance in topics with presence events, each with the time of
    /// departure: those with a connection, which depart now, and those that have left within the
    /// grace period.
    pub(super) fn members_of(&self, ids: &Ids, from: InstanceId, now: Millis) -> Vec<(Millis, Topic, UserId)> {
        let mut members = Vec::new();
        for number in ids {
            let Some(user) = self.user_id_of(*number) else { continue };
            let topics = self.topics_of(*number).iter().map(|topic| self.topics.get(*topic));
            let names = topics.filter(|topic| topic.has_events).filter_map(|topic| topic.name.clone());
            members.extend(names.map(|topic| (now, topic, user.clone())));
        }
        for (topic, users) in &self.departed {
            let Some(topic) = &self.topics.get(*topic).name else { continue };
            let recent = users.iter().filter(|(_, (since, at))| *at == from && !self.departures.is_over(*since, now));
            members.extend(
                recent.filter_map(|(user, (since, _))| Some((*since, topic.clone(), self.users.get(*user).id()?))),
            );
        }
        members
    }

    /// Forgets members and users whose grace period is over. The cost grows with the number of
    /// departures, and not with the number of users.
    pub(super) fn forget(&mut self, now: Millis) {
        while let Some((since, (topic, user))) = self.departures.pop_due(now) {
            // The user may have returned and left again meanwhile. Then a later entry is in the
            // queue.
            if topic == NONE {
                if self.absent.get(&user) == Some(&since) {
                    self.absent.remove(&user);
                    let hash = self.hasher.hash_one(self.users.get(user).key());
                    if let Ok(entry) = self.users_by_name.find_entry(hash, |number| *number == user) {
                        entry.remove();
                        self.users.remove(user);
                    }
                }
            } else if self.departed.get(&topic).and_then(|users| users.get(&user)).is_some_and(|(at, _)| *at == since) {
                self.forget_departure(topic, user);
                self.free_topic_if_unused(topic);
            }
        }
    }

    fn forget_departure(&mut self, topic: u32, user: u32) {
        if let Some(users) = self.departed.get_mut(&topic) {
            users.remove(&user);
            if users.is_empty() {
                self.departed.remove(&topic);
            }
        }
    }

    /// Returns the allocated memory in bytes, without the data of the connections. The memory of
    /// bitmaps is an estimate.
    #[cfg(any(test, feature = "test-kit"))]
    pub(super) fn allocated(&self) -> usize {
        let names: usize = (0..self.users.end()).map(|user| self.users.get(user).name.allocated()).sum();
        let topics = (0..self.topics.end()).map(|topic| self.topics.get(topic)).map(|topic| {
            let statistics = topic.connections.statistics();
            // The name with its two reference counts, and the containers.
            let name = topic.name.as_ref().map_or(0, |name| name.as_str().len() + 16);
            name + statistics.n_containers as usize * 40
                + (statistics.n_bytes_array_containers + statistics.n_bytes_bitset_containers) as usize
        });
        self.records.allocated()
            + self.users.allocated()
            + names
            + self.users_by_name.allocation_size()
            + self.topics.allocated()
            + topics.sum::<usize>()
            + self.topics_by_name.allocation_size()
            + self.long_lists.allocated()
            + (0..self.long_lists.end()).map(|list| size_of_val(&**self.long_lists.get(list))).sum::<usize>()
            + self.data.capacity() * 28
            + self.scopes.capacity() * 20
            + self.absent.capacity() * 17
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        let known = [self.records.len(), self.users.len(), self.topics.len(), self.long_lists.len()];
        known == [0; 4]
            && self.users_by_name.is_empty()
            && self.topics_by_name.is_empty()
            && self.data.is_empty()
            && self.absent.is_empty()
            && self.departed.is_empty()
            && self.departures.next_due().is_none()
    }
}
