//! The connections of other instances, in little memory.
//!
//! 1. A connection with a user and three topics takes about 100 bytes. Users, topics and scopes are
//!    stored once, and a connection refers to them by number. The connections of a user are a list,
//!    and those of a topic or a scope a compressed bitmap.
//! 2. The indexes and the connections change in one step ([`Connections::insert`],
//!    [`Connections::remove`]).
//! 3. A user without a connection stays known for the grace period. So does a member that has left
//!    a topic with presence events ([`Connections::forget`]). No other topic has members, because
//!    no event would report that they have left.
//! 4. The connections of a user are walked through if there are at most [`MANY`]. For a user with
//!    more, the table counts the connections in each topic ([`UserCounts`]), so that a change of
//!    one connection walks through none of the others.

use std::collections::hash_map::HashMap;
use std::sync::Arc;

use hashbrown::HashTable;
use roaring::RoaringBitmap;

use super::message::{HalfId, InstanceId, PeerConnection};
use super::slots::Slots;
use super::topics::Topics;
use super::users::Users;
use crate::hub::departures::Departures;
use crate::log::Millis;
use crate::types::{ScopeName, Topic, TopicFilter, UserId, each_once};

/// The number in place of a connection, a user or a topic that does not exist.
const NONE: u32 = u32::MAX;
/// The first number of a list of topics that is in [`Connections::long_lists`].
const LONG: u32 = u32::MAX - 1;
/// The number of topics that a connection stores itself.
const INLINE: usize = 3;
/// The maximum number of connections of a user without a [`UserCounts`]. Small in tests, so that
/// the property test reaches it.
const MANY: usize = if cfg!(test) { 2 } else { 32 };

/// The connections of one instance, by their ids. The entries are numbers of connections.
pub(super) type Ids = HashTable<u32>;

/// The connections of all other instances.
#[derive(Debug, Default)]
pub(super) struct Connections {
    records: Slots<Record>,
    users: Users,
    topics: Topics,
    /// The topics of connections with more than [`INLINE`] topics.
    long_lists: Slots<Box<[u32]>>,
    /// The data of the connections that have data.
    data: HashMap<u32, Arc<str>>,
    /// The counts of the users with more than [`MANY`] connections.
    user_counts: HashMap<u32, UserCounts>,
    /// By topic, the members whose last connection has left the topic, each with the time and the
    /// instance of that connection.
    departed: HashMap<u32, HashMap<u32, (Millis, InstanceId)>>,
    /// The users whose last connection has closed, each with the time.
    absent: HashMap<u32, Millis>,
    /// The queue of both kinds of departures: the topic, which is [`NONE`] for a user without a
    /// connection, and the user.
    pub(super) departures: Departures<(u32, u32)>,
}

/// A connection.
#[derive(Debug)]
struct Record {
    /// The id in two parts. In one part, each record would be eight bytes larger.
    id: [u32; 2],
    user: u32,
    /// The next connection of the user. For an anonymous connection, the number of its scope.
    next: u32,
    /// The previous connection of the user.
    previous: u32,
    /// The topics, or [`LONG`] and the number of a long list.
    topics: [u32; INLINE],
}

/// The counts of a user with very many connections.
#[derive(Debug, Default)]
struct UserCounts {
    connections: usize,
    /// The number of these connections in each topic.
    topics: HashMap<u32, u32>,
}

impl Default for Record {
    fn default() -> Self {
        Self { id: [0; 2], user: NONE, next: NONE, previous: NONE, topics: [NONE; INLINE] }
    }
}

impl Record {
    fn id(&self) -> HalfId {
        HalfId(u64::from(self.id[0]) << 32 | u64::from(self.id[1]))
    }
}

fn parts_of(id: HalfId) -> [u32; 2] {
    [(id.0 >> 32) as u32, id.0 as u32]
}

/// Returns the topics of a list that are not in another one.
fn without(topics: &[u32], others: &[u32]) -> Vec<u32> {
    let topics = topics.iter().copied();
    if others.len() <= INLINE {
        return topics.filter(|topic| !others.contains(topic)).collect();
    }
    let others: RoaringBitmap = others.iter().copied().collect();
    topics.filter(|topic| !others.contains(*topic)).collect()
}

impl Connections {
    pub(super) fn new(rules: Vec<TopicFilter>, grace: Millis) -> Self {
        Self { departures: Departures::new(grace), topics: Topics::new(rules), ..Self::default() }
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
        if known.is_some_and(|number| !self.has_same_user(number, connection)) {
            self.remove(ids, from, connection.id, now);
            known = None;
        }
        let number = known.unwrap_or_else(|| self.add(ids, connection));
        match &connection.data {
            Some(data) if self.data.get(&number) != Some(data) => _ = self.data.insert(number, Arc::clone(data)),
            Some(_) => {}
            None => _ = self.data.remove(&number),
        }
        let scope = self.users.scopes.name(self.scope_number(number));
        let mut topics: Vec<u32> = connection.topics.iter().map(|topic| self.topics.number(topic, scope)).collect();
        each_once(&mut topics, |topic| topic);
        if *self.topics_of(number) == *topics {
            return number;
        }
        let before = self.topics_of(number).to_vec();
        self.set_topics(number, &topics);
        without(&topics, &before).into_iter().for_each(|topic| self.enter(number, topic));
        // Only the topics that the connection has left, because each leave queues a departure.
        without(&before, &topics).into_iter().for_each(|topic| self.leave(from, number, topic, now));
        number
    }

    /// Returns whether a connection has the user and the scope that its instance reports.
    fn has_same_user(&self, number: u32, connection: &PeerConnection) -> bool {
        match (self.records.get(number).user, &connection.user) {
            (NONE, None) => *self.scope_of(number) == connection.scope,
            (NONE, Some(_)) | (_, None) => false,
            (known, Some(user)) => self.users.is(known, user),
        }
    }

    /// Adds a connection without topics.
    fn add(&mut self, ids: &mut Ids, connection: &PeerConnection) -> u32 {
        let user = connection.user.as_ref().map(|user| self.users.number(user));
        let scope = match user {
            Some(user) => self.users.scope(user),
            None => self.users.scopes.number(&connection.scope),
        };
        let next = user.map_or(scope, |user| self.users.first(user));
        let id = parts_of(connection.id);
        let number = self.records.insert(Record { id, user: user.unwrap_or(NONE), next, ..Record::default() });
        self.users.scopes.add_connection(scope, number);
        if let Some(user) = user {
            if next != NONE {
                self.records.at(next).previous = number;
            }
            self.users.set_first(user, number);
            self.absent.remove(&user);
            match self.user_counts.get_mut(&user) {
                Some(counts) => counts.connections += 1,
                None => self.begin_counts(user),
            }
        }
        ids.insert_unique(connection.id.0, number, |number| self.records.get(*number).id().0);
        number
    }

    /// Begins to count the connections of a user if there are more than [`MANY`].
    fn begin_counts(&mut self, user: u32) {
        let first = self.users.first(user);
        if self.list(first).nth(MANY).is_none() {
            return;
        }
        let mut counts = UserCounts::default();
        for number in self.list(first) {
            counts.connections += 1;
            self.topics_of(number).iter().for_each(|topic| *counts.topics.entry(*topic).or_default() += 1);
        }
        self.user_counts.insert(user, counts);
    }

    /// Removes a connection of an instance. `ids` are those of the instance.
    pub(super) fn remove(&mut self, ids: &mut Ids, from: InstanceId, id: HalfId, now: Millis) {
        let Ok(entry) = ids.find_entry(id.0, |number| self.records.get(*number).id() == id) else { return };
        let (number, _) = entry.remove();
        // The topics come first, so that the departures from them are forgotten before the user.
        for topic in self.topics_of(number).to_vec() {
            self.leave(from, number, topic, now);
        }
        let scope = self.scope_number(number);
        let Record { user, next, previous, .. } = *self.records.get(number);
        if user != NONE {
            if next != NONE {
                self.records.at(next).previous = previous;
            }
            if previous != NONE {
                self.records.at(previous).next = next;
            }
            if self.users.first(user) == number {
                self.users.set_first(user, next);
            }
            if let Some(counts) = self.user_counts.get_mut(&user) {
                counts.connections -= 1;
                // Well below the limit, so that one connection that comes and goes costs little.
                if counts.connections <= MANY / 2 {
                    self.user_counts.remove(&user);
                }
            }
            if self.users.first(user) == NONE {
                self.absent.insert(user, now);
                self.departures.push(now, (NONE, user));
            }
        }
        self.set_topics(number, &[]);
        self.data.remove(&number);
        self.users.scopes.remove_connection(scope, number);
        self.records.remove(number);
    }

    /// Adds a connection to a topic.
    fn enter(&mut self, number: u32, topic: u32) {
        self.topics.at(topic).connections.insert(number);
        let user = self.records.get(number).user;
        self.forget_departure(topic, user);
        if let Some(counts) = self.user_counts.get_mut(&user) {
            *counts.topics.entry(topic).or_default() += 1;
        }
    }

    /// Removes a connection from a topic.
    fn leave(&mut self, from: InstanceId, number: u32, topic: u32, now: Millis) {
        let user = self.records.get(number).user;
        let of = self.topics.at(topic);
        of.connections.remove(number);
        let has_events = of.has_events;
        if let Some(counts) = self.user_counts.get_mut(&user)
            && let Some(count) = counts.topics.get_mut(&topic)
        {
            *count -= 1;
            if *count == 0 {
                counts.topics.remove(&topic);
            }
        }
        if has_events && user != NONE && !self.is_in(topic, user) {
            self.departed.entry(topic).or_default().insert(user, (now, from));
            self.departures.push(now, (topic, user));
        }
        self.free_topic_if_unused(topic);
    }

    /// Returns whether a user has a connection in a topic.
    fn is_in(&self, topic: u32, user: u32) -> bool {
        match self.user_counts.get(&user) {
            Some(counts) => counts.topics.contains_key(&topic),
            None => {
                let connections = &self.topics.get(topic).connections;
                self.list(self.users.first(user)).any(|number| connections.contains(number))
            }
        }
    }

    /// Returns the connections of a list of connections of one user.
    fn list(&self, first: u32) -> impl Iterator<Item = u32> {
        let some = |number: u32| (number != NONE).then_some(number);
        std::iter::successors(some(first), move |number| some(self.records.get(*number).next))
    }

    fn free_topic_if_unused(&mut self, topic: u32) {
        if self.topics.get(topic).connections.is_empty() && !self.departed.contains_key(&topic) {
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

    /// Returns the user of a connection.
    fn user_of(&self, number: u32) -> Option<UserId> {
        let user = self.records.get(number).user;
        if user == NONE { None } else { self.users.id(user) }
    }

    /// Returns the number of the scope of a connection.
    fn scope_number(&self, number: u32) -> u32 {
        match self.records.get(number) {
            Record { user: NONE, next, .. } => *next,
            Record { user, .. } => self.users.scope(*user),
        }
    }

    /// Returns the scope of a connection.
    pub(super) fn scope_of(&self, number: u32) -> &ScopeName {
        self.users.scopes.name(self.scope_number(number))
    }

    /// Returns the number of connections that are not of the root scope.
    pub(super) fn len_of_scopes(&self) -> usize {
        self.users.scopes.len()
    }

    /// Returns the connections of a scope that is not the root scope.
    pub(super) fn in_scope(&self, scope: &ScopeName) -> Option<&RoaringBitmap> {
        self.users.scopes.connections(scope)
    }

    /// Returns the connections of each scope that is not the root scope.
    pub(super) fn in_scopes(&self) -> impl Iterator<Item = &RoaringBitmap> {
        self.users.scopes.all()
    }

    /// Returns the id of a connection.
    pub(super) fn id_of(&self, number: u32) -> HalfId {
        self.records.get(number).id()
    }

    /// Returns the user and the data of a connection.
    pub(super) fn describe(&self, number: u32) -> (Option<UserId>, Option<Arc<str>>) {
        (self.user_of(number), self.data.get(&number).cloned())
    }

    /// Returns the topics of a connection.
    pub(super) fn topic_names(&self, number: u32) -> Vec<Topic> {
        self.topics_of(number).iter().filter_map(|topic| self.topics.get(*topic).name.clone()).collect()
    }

    /// Returns the connections of a topic.
    pub(super) fn in_topic(&self, topic: &Topic) -> Option<&RoaringBitmap> {
        self.topics.find(topic).map(|topic| &self.topics.get(topic).connections)
    }

    /// Returns the connections of a user.
    pub(super) fn of_user(&self, user: &UserId) -> impl Iterator<Item = u32> {
        self.list(self.users.find(user).map_or(NONE, |user| self.users.first(user)))
    }

    /// Returns the number of connections of a user.
    pub(super) fn count_of_user(&self, user: &UserId) -> usize {
        let count = |number| match self.user_counts.get(&number) {
            Some(counts) => counts.connections,
            None => self.list(self.users.first(number)).count(),
        };
        self.users.find(user).map_or(0, count)
    }

    /// Returns whether a user has a connection, or had one within the grace period.
    pub(super) fn is_online(&self, user: &UserId, now: Millis) -> bool {
        let is_recent = |user: &u32| self.absent.get(user).is_none_or(|since| !self.departures.is_over(*since, now));
        self.users.find(user).as_ref().is_some_and(is_recent)
    }

    /// Returns whether a user has a connection in a topic.
    pub(super) fn is_connected(&self, topic: &Topic, user: &UserId) -> bool {
        let found = self.topics.find(topic).zip(self.users.find(user));
        found.is_some_and(|(topic, user)| self.is_in(topic, user))
    }

    /// Returns the instance on which a member last had a topic, if the member has left within the
    /// grace period.
    pub(super) fn last_instance(&self, topic: &Topic, user: &UserId, now: Millis) -> Option<InstanceId> {
        let (topic, user) = self.topics.find(topic).zip(self.users.find(user))?;
        let (since, at) = self.departed.get(&topic)?.get(&user)?;
        (!self.departures.is_over(*since, now)).then_some(*at)
    }

    /// Returns the members that have left a topic within the grace period.
    pub(super) fn leaving(&self, topic: &Topic, now: Millis) -> Vec<UserId> {
        let users = self.topics.find(topic).and_then(|topic| self.departed.get(&topic)).into_iter().flatten();
        let recent = users.filter(|(_, (since, _))| !self.departures.is_over(*since, now));
        recent.filter_map(|(user, _)| self.users.id(*user)).collect()
    }

    /// Returns the members of an instance in topics with presence events, each with the time of
    /// departure: those with a connection, which depart now, and those that have left within the
    /// grace period.
    pub(super) fn members_of(&self, ids: &Ids, from: InstanceId, now: Millis) -> Vec<(Millis, Topic, UserId)> {
        let mut members = Vec::new();
        for number in ids {
            let Some(user) = self.user_of(*number) else { continue };
            let topics = self.topics_of(*number).iter().map(|topic| self.topics.get(*topic));
            let names = topics.filter(|topic| topic.has_events).filter_map(|topic| topic.name.clone());
            members.extend(names.map(|topic| (now, topic, user.clone())));
        }
        for (topic, users) in &self.departed {
            let Some(topic) = &self.topics.get(*topic).name else { continue };
            let recent = users.iter().filter(|(_, (since, at))| *at == from && !self.departures.is_over(*since, now));
            members
                .extend(recent.filter_map(|(user, (since, _))| Some((*since, topic.clone(), self.users.id(*user)?))));
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
                    self.users.remove(user);
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
        use super::memory::of_map;
        let long_lists = (0..self.long_lists.end()).map(|list| size_of_val(&**self.long_lists.get(list)));
        self.records.allocated()
            + self.users.allocated()
            + self.topics.allocated()
            + self.long_lists.allocated()
            + long_lists.sum::<usize>()
            + of_map(&self.data)
            + of_map(&self.user_counts)
            + self.user_counts.values().map(|counts| of_map(&counts.topics)).sum::<usize>()
            + of_map(&self.departed)
            + self.departed.values().map(of_map).sum::<usize>()
            + of_map(&self.absent)
            + self.departures.allocated()
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.records.len() + self.long_lists.len() == 0
            && self.users.is_empty()
            && self.topics.is_empty()
            && self.data.is_empty()
            && self.user_counts.is_empty()
            && self.absent.is_empty()
            && self.departed.is_empty()
            && self.departures.next_due().is_none()
    }
}
