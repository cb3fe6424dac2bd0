//! The other instances of the same shared log, and the connections that they have reported. This
//! code does no I/O, and callers pass the time.
//!
//! 1. An instance is known while its lease lasts. Its presence updates and lease messages renew the
//!    lease. When the lease ends, the instance is removed together with its connections
//!    ([`Peers::sweep`]).
//! 2. Presence updates are numbered. After a missing number, further updates of that instance are
//!    ignored until its complete list arrives ([`Peers::update`]).
//! 3. Connections are indexed by user, by topic, and by user within a topic. The indexes and the
//!    connections change in one step.
//! 4. When an instance ends, the witness with the lowest id publishes `hub.left` for the members of
//!    the ended instance ([`Peers::take_orphans`]). A witness is an instance that was connected for
//!    at least [`SETTLE`] before the last update or lease message of the ended instance, so that it
//!    knows the members. An instance that connected later is no witness, however low its id,
//!    because it may not know the members. Each instance that knows the members publishes the
//!    event, unless it knows a live witness with a lower id. So the event may be published twice
//!    rather than not at all.
//! 5. A witness may end before it has published the event. So an instance that leaves the event to
//!    a witness keeps the members until the witness must have published it.

use std::collections::hash_map::HashMap;
use std::collections::hash_set::HashSet;
use std::sync::Arc;

use super::message::{InstanceId, Part, PeerConnection, PresenceUpdate};
use crate::hub::departures::Departures;
use crate::log::Millis;
use crate::types::{ConnectionId, Topic, UserId};

/// The time within which a change on one instance should reach all other instances, in
/// milliseconds. The value has a wide margin.
pub(super) const SETTLE: Millis = 2_000;

/// The user of a connection of another instance, and the data of the connection.
pub(in crate::hub) type Other = (Option<UserId>, Option<Arc<str>>);

/// The other instances, under the lock of `SharedLog::peers`. The control task changes them.
/// Streams and calls of the application read them.
#[derive(Debug, Default)]
pub(in crate::hub) struct Peers {
    instances: HashMap<InstanceId, Peer>,
    by_user: HashMap<UserId, PeerUser>,
    by_topic: HashMap<Topic, PeerTopic>,
    /// By topic, the members whose last peer connection has left the topic, each with the time and
    /// the instance of that connection.
    departed: HashMap<Topic, HashMap<UserId, (Millis, InstanceId)>>,
    /// The queue of these departures. An entry without a topic is for a user whose last peer
    /// connection has closed.
    departures: Departures<(Option<Topic>, UserId)>,
    /// The ended instances with members for which `hub.left` may still have to be published.
    ended: Vec<EndedInstance>,
    lease: Millis,
    /// Whether this instance has received one of its own messages since it last connected to the
    /// broker. From then on it receives all messages.
    receives_own: bool,
    /// The time at which this instance last received one of its own messages.
    own_received_at: Option<Millis>,
}

/// Another instance.
#[derive(Debug, Default)]
struct Peer {
    /// The number of the last applied presence update. `None` until a complete list begins to
    /// arrive, at first and after a missing update.
    number: Option<u64>,
    first_seen: Millis,
    last_seen: Millis,
    lease_until: Millis,
    connections: HashMap<ConnectionId, Arc<PeerConnection>>,
    /// The known connections that the complete list has not contained yet, while its parts arrive.
    unconfirmed: HashSet<ConnectionId>,
    /// The earliest time of the next request for the complete list.
    ask_at: Millis,
    /// The pause between the last request and `ask_at`.
    ask_pause: Millis,
}

/// An instance that has ended.
#[derive(Debug)]
struct EndedInstance {
    /// The other witnesses, as rule 4 of the module defines them.
    witnesses: Vec<InstanceId>,
    /// The members of the instance, each with the time of departure. The earliest departure is the
    /// last entry.
    members: Vec<(Millis, Topic, UserId)>,
}

/// A user who has, or had, connections on other instances.
#[derive(Debug, Default)]
struct PeerUser {
    connections: HashMap<ConnectionId, Arc<PeerConnection>>,
    /// The time at which the last connection closed. `None` while there are connections.
    left_at: Option<Millis>,
}

/// A topic on other instances.
#[derive(Debug, Default)]
struct PeerTopic {
    connections: HashMap<ConnectionId, Arc<PeerConnection>>,
    /// The number of these connections of each user.
    users: HashMap<UserId, usize>,
}

/// The result of a presence update or a lease message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::hub) enum UpdateResult {
    /// No presence update of the sender is missing.
    Fine,
    /// A presence update of the sender is missing, so its complete list is needed.
    Missing,
}

/// The first pause between two requests to an instance for its complete list, in milliseconds. Each
/// further request doubles the pause, up to [`LONGEST_ASK_PAUSE`].
const FIRST_ASK_PAUSE: Millis = 1_000;
/// The longest pause between two requests to an instance for its complete list, in milliseconds.
const LONGEST_ASK_PAUSE: Millis = 300_000;

impl Peers {
    pub(in crate::hub) fn new(lease: Millis, grace: Millis) -> Self {
        Self { departures: Departures::new(grace), lease, ..Self::default() }
    }

    /// Applies a presence update, or a part of a complete list. Returns [`UpdateResult::Missing`]
    /// and ignores the connections if an earlier update or part is missing.
    pub(in crate::hub) fn update(&mut self, from: InstanceId, update: PresenceUpdate, now: Millis) -> UpdateResult {
        let peer = self.renew_lease(from, now);
        match update.all {
            Some(Part::First) => {
                peer.number = Some(update.number);
                peer.unconfirmed = peer.connections.keys().copied().collect();
            }
            Some(Part::More) if peer.number == Some(update.number) => {}
            None if peer.number.is_some_and(|number| number.checked_add(1) == Some(update.number)) => {
                peer.number = Some(update.number);
            }
            // The update was already applied.
            None if peer.number.is_some_and(|number| number >= update.number) => return UpdateResult::Fine,
            Some(Part::More) | None => {
                peer.number = None;
                return UpdateResult::Missing;
            }
        }
        if update.all.is_none() {
            self.complete_list(from, now);
        }
        for connection in update.open {
            if let Some(peer) = self.instances.get_mut(&from) {
                peer.unconfirmed.remove(&connection.id);
            }
            self.insert(from, connection, now);
        }
        for id in update.closed {
            self.remove(from, id, now);
        }
        UpdateResult::Fine
    }

    /// Renews the lease of an instance whose newest presence update has this number. Returns
    /// [`UpdateResult::Missing`] if this instance has not applied that update.
    pub(in crate::hub) fn lease(&mut self, from: InstanceId, number: u64, now: Millis) -> UpdateResult {
        if self.renew_lease(from, now).number != Some(number) {
            return UpdateResult::Missing;
        }
        self.complete_list(from, now);
        // The last pause ended more than one lease ago, so the next request need not wait.
        if let Some(peer) = self.instances.get_mut(&from)
            && now > peer.ask_at.saturating_add(self.lease)
        {
            (peer.ask_at, peer.ask_pause) = (0, 0);
        }
        UpdateResult::Fine
    }

    /// Returns whether this instance may request the complete list of another instance now. If so,
    /// begins the pause before the next request. The pauses become longer, because an update that
    /// this version of the crate cannot decode would be missing again after every complete list.
    pub(in crate::hub) fn may_ask(&mut self, from: InstanceId, now: Millis) -> bool {
        let peer = self.renew_lease(from, now);
        if now < peer.ask_at {
            return false;
        }
        peer.ask_pause = (peer.ask_pause * 2).clamp(FIRST_ASK_PAUSE, LONGEST_ASK_PAUSE);
        peer.ask_at = now.saturating_add(peer.ask_pause);
        true
    }

    /// Renews the lease of an instance that has sent a presence update or a lease message. Adds an
    /// unknown instance.
    fn renew_lease(&mut self, from: InstanceId, now: Millis) -> &mut Peer {
        let peer = self.instances.entry(from).or_insert_with(|| Peer { first_seen: now, ..Peer::default() });
        peer.last_seen = now;
        peer.lease_until = now.saturating_add(self.lease);
        peer
    }

    /// Ends a complete list: removes the connections that the list did not contain. The next lease
    /// or update of the sender calls this method, because the list arrives in parts. Otherwise a
    /// user whose connection is in a later part would leave.
    fn complete_list(&mut self, from: InstanceId, now: Millis) {
        let Some(peer) = self.instances.get_mut(&from) else { return };
        let unconfirmed = std::mem::take(&mut peer.unconfirmed);
        unconfirmed.into_iter().for_each(|id| self.remove(from, id, now));
    }

    /// Removes an instance that has sent its goodbye.
    pub(in crate::hub) fn goodbye(&mut self, from: InstanceId, now: Millis) {
        if let Some(peer) = self.instances.get_mut(&from) {
            peer.last_seen = now;
        }
        self.end(from, now);
    }

    /// Removes an instance and its connections, and keeps its members for
    /// [`take_orphans`](Self::take_orphans).
    fn end(&mut self, from: InstanceId, now: Millis) {
        let Some(peer) = self.instances.get(&from) else { return };
        let mut members = Vec::new();
        for connection in peer.connections.values() {
            let Some(user) = &connection.user else { continue };
            members.extend(connection.topics.iter().map(|topic| (now, topic.clone(), user.clone())));
        }
        for (topic, users) in &self.departed {
            let recent = users.iter().filter(|(_, (since, at))| *at == from && !self.departures.is_over(*since, now));
            members.extend(recent.map(|(user, (since, _))| (*since, topic.clone(), user.clone())));
        }
        if !members.is_empty() {
            members.sort_unstable_by_key(|(since, ..)| std::cmp::Reverse(*since));
            let settled = |other: &Peer| other.first_seen.saturating_add(SETTLE) <= peer.last_seen;
            let witnesses = self.instances.iter().filter(|(id, other)| **id != from && settled(other));
            self.ended.push(EndedInstance { witnesses: witnesses.map(|(id, _)| *id).collect(), members });
        }
        let ids: Vec<_> = peer.connections.keys().copied().collect();
        ids.into_iter().for_each(|id| self.remove(from, id, now));
        self.instances.remove(&from);
    }

    /// Notes that this instance has received one of its own messages. So the broker accepts the
    /// messages of this instance, and this instance receives messages.
    pub(in crate::hub) fn note_own_message(&mut self, now: Millis) {
        (self.receives_own, self.own_received_at) = (true, Some(now));
    }

    /// Returns whether this instance has received one of its own messages since it last connected.
    pub(in crate::hub) fn receives_own_messages(&self) -> bool {
        self.receives_own
    }

    /// Returns whether this instance has received one of its own messages within the lease.
    /// Otherwise the other instances may count this instance as gone.
    pub(in crate::hub) fn is_received(&self, now: Millis) -> bool {
        self.own_received_at.is_some_and(|at| now.saturating_sub(at) <= self.lease)
    }

    /// Notes that this instance has connected to the broker. All leases begin anew, because no
    /// message could renew them without a connection.
    pub(in crate::hub) fn reconnected(&mut self, now: Millis) {
        self.receives_own = false;
        let until = now.saturating_add(self.lease);
        self.instances.values_mut().for_each(|peer| peer.lease_until = until);
    }

    /// Removes instances whose lease is over, and forgets members and users whose grace period is
    /// over.
    pub(in crate::hub) fn sweep(&mut self, now: Millis) {
        let over: Vec<_> =
            self.instances.iter().filter(|(_, peer)| peer.lease_until <= now).map(|(id, _)| *id).collect();
        over.into_iter().for_each(|id| self.end(id, now));
        while let Some((since, (topic, user))) = self.departures.pop_due(now) {
            // The user may have returned and left again meanwhile. Then a later entry is in the
            // queue.
            match topic {
                Some(topic) if self.departure_of(&topic, &user).is_some_and(|(at, _)| at == since) => {
                    self.forget_departure(&topic, &user);
                }
                None if self.by_user.get(&user).is_some_and(|user| user.left_at == Some(since)) => {
                    self.by_user.remove(&user);
                }
                _ => {}
            }
        }
    }

    /// Returns whether a user has a topic on another instance, or had it within the grace period.
    pub(in crate::hub) fn is_member(&self, topic: &Topic, user: &UserId, now: Millis) -> bool {
        self.is_connected(topic, user) || self.last_instance(topic, user, now).is_some()
    }

    /// Returns whether another instance, and not this one, has to publish `hub.left` for a member
    /// that has left this instance. `instance` is the id of this instance.
    pub(in crate::hub) fn publishes_left(
        &self,
        topic: &Topic,
        user: &UserId,
        instance: InstanceId,
        now: Millis,
    ) -> bool {
        let last = self.last_instance(topic, user, now);
        // If the member has left this instance and another within the grace period, the instance
        // with the lower id publishes. Both may publish, but at least one of them does.
        self.is_connected(topic, user) || last.is_some_and(|at| at < instance && self.instances.contains_key(&at))
    }

    fn is_connected(&self, topic: &Topic, user: &UserId) -> bool {
        self.by_topic.get(topic).is_some_and(|peer_topic| peer_topic.users.contains_key(user))
    }

    /// Returns the other instance on which a member last had a topic, if the member has left within
    /// the grace period.
    fn last_instance(&self, topic: &Topic, user: &UserId, now: Millis) -> Option<InstanceId> {
        self.departure_of(topic, user).filter(|(since, _)| !self.departures.is_over(*since, now)).map(|(_, at)| at)
    }

    /// Returns the time of a member's departure, and the instance of its last connection.
    fn departure_of(&self, topic: &Topic, user: &UserId) -> Option<(Millis, InstanceId)> {
        self.departed.get(topic)?.get(user).copied()
    }

    /// Returns the members that have left a topic on other instances within the grace period.
    pub(in crate::hub) fn leaving(&self, topic: &Topic, now: Millis) -> impl Iterator<Item = &UserId> {
        let users = self.departed.get(topic).into_iter().flatten();
        users.filter(move |(_, (since, _))| !self.departures.is_over(*since, now)).map(|(user, _)| user)
    }

    /// Removes and returns the members of ended instances for which this instance has to publish
    /// `hub.left`. Their grace period is over, no other instance has them as members, and this
    /// instance knows no live witness with a lower id.
    pub(in crate::hub) fn take_orphans(&mut self, instance: InstanceId, now: Millis) -> Vec<(Topic, UserId)> {
        let mut orphans = Vec::new();
        let mut ended = std::mem::take(&mut self.ended);
        ended.retain_mut(|EndedInstance { witnesses, members }| {
            let defers = witnesses.iter().any(|witness| *witness < instance && self.instances.contains_key(witness));
            // A witness may detect the end of the instance one lease later than this instance. This
            // instance needs another lease to detect that the witness has ended.
            let wait = self.departures.grace.saturating_add(if defers { self.lease.saturating_mul(2) } else { 0 });
            while let Some((_, topic, user)) = members.pop_if(|(since, ..)| since.saturating_add(wait) <= now) {
                if !defers && !self.is_member(&topic, &user, now) {
                    orphans.push((topic, user));
                }
            }
            !members.is_empty()
        });
        self.ended = ended;
        orphans
    }

    /// Returns the connections of a user on other instances.
    pub(in crate::hub) fn of_user(&self, user: &UserId) -> impl Iterator<Item = &Arc<PeerConnection>> {
        self.by_user.get(user).into_iter().flat_map(|user| user.connections.values())
    }

    /// Returns whether a user has a connection on another instance, or had one within the grace
    /// period.
    pub(in crate::hub) fn is_online(&self, user: &UserId, now: Millis) -> bool {
        let is_recent = |since| !self.departures.is_over(since, now);
        self.by_user.get(user).is_some_and(|user| user.left_at.is_none_or(is_recent))
    }

    /// Returns the connections of a topic on other instances.
    pub(in crate::hub) fn in_topic(&self, topic: &Topic) -> impl Iterator<Item = &Arc<PeerConnection>> {
        self.by_topic.get(topic).into_iter().flat_map(|peer_topic| peer_topic.connections.values())
    }

    /// Returns the connections of all other instances.
    pub(in crate::hub) fn all(&self) -> impl Iterator<Item = &Arc<PeerConnection>> {
        self.instances.values().flat_map(|peer| peer.connections.values())
    }

    /// Returns a connection of another instance.
    pub(in crate::hub) fn find(&self, id: ConnectionId) -> Option<&Arc<PeerConnection>> {
        self.instances.values().find_map(|peer| peer.connections.get(&id))
    }

    /// Returns the number of other instances.
    pub(in crate::hub) fn len(&self) -> usize {
        self.instances.len()
    }

    /// Adds a connection of another instance, or replaces its state.
    fn insert(&mut self, from: InstanceId, connection: PeerConnection, now: Millis) {
        let known = self.instances.get(&from).and_then(|peer| peer.connections.get(&connection.id)).cloned();
        match known {
            Some(known) if *known == connection => return,
            // Remove only the topics that the connection has left. Removing and adding the other
            // topics again would queue a departure for each of them.
            Some(known) if known.user == connection.user => {
                let kept: HashSet<&Topic> = connection.topics.iter().collect();
                let left = known.topics.iter().filter(|topic| !kept.contains(topic));
                left.for_each(|topic| self.leave(from, &known, topic, now));
            }
            Some(_) => self.remove(from, connection.id, now),
            None => {}
        }
        let connection = Arc::new(connection);
        if let Some(user) = &connection.user {
            let peer_user = self.by_user.entry(user.clone()).or_default();
            peer_user.connections.insert(connection.id, Arc::clone(&connection));
            peer_user.left_at = None;
        }
        for topic in &connection.topics {
            let peer_topic = self.by_topic.entry(topic.clone()).or_default();
            let is_new = peer_topic.connections.insert(connection.id, Arc::clone(&connection)).is_none();
            if let Some(user) = connection.user.as_ref().filter(|_| is_new) {
                *peer_topic.users.entry(user.clone()).or_default() += 1;
                self.forget_departure(topic, user);
            }
        }
        if let Some(peer) = self.instances.get_mut(&from) {
            peer.connections.insert(connection.id, connection);
        }
    }

    fn forget_departure(&mut self, topic: &Topic, user: &UserId) {
        if let Some(users) = self.departed.get_mut(topic) {
            users.remove(user);
            if users.is_empty() {
                self.departed.remove(topic);
            }
        }
    }

    /// Removes a connection of another instance.
    fn remove(&mut self, from: InstanceId, id: ConnectionId, now: Millis) {
        let Some(connection) = self.instances.get_mut(&from).and_then(|peer| peer.connections.remove(&id)) else {
            return;
        };
        if let Some(user) = &connection.user
            && let Some(peer_user) = self.by_user.get_mut(user)
        {
            peer_user.connections.remove(&id);
            if peer_user.connections.is_empty() {
                peer_user.left_at = Some(now);
                self.departures.push(now, (None, user.clone()));
            }
        }
        connection.topics.iter().for_each(|topic| self.leave(from, &connection, topic, now));
    }

    /// Removes a topic from a connection of another instance.
    fn leave(&mut self, from: InstanceId, connection: &PeerConnection, topic: &Topic, now: Millis) {
        let Some(peer_topic) = self.by_topic.get_mut(topic) else { return };
        let was_listed = peer_topic.connections.remove(&connection.id).is_some();
        let user = connection.user.as_ref().filter(|_| was_listed);
        let has_left = user.filter(|user| peer_topic.remove_one_of(user));
        if peer_topic.connections.is_empty() {
            self.by_topic.remove(topic);
        }
        if let Some(user) = has_left {
            self.departed.entry(topic.clone()).or_default().insert(user.clone(), (now, from));
            self.departures.push(now, (Some(topic.clone()), user.clone()));
        }
    }
}

impl PeerTopic {
    /// Removes a connection of a user from the count. Returns whether it was the user's last
    /// connection.
    fn remove_one_of(&mut self, user: &UserId) -> bool {
        let Some(count) = self.users.get_mut(user) else { return false };
        *count -= 1;
        let is_last = *count == 0;
        if is_last {
            self.users.remove(user);
        }
        is_last
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::{BTreeMap, BTreeSet};

    fn connection(id: u128, user: usize, topics: &[usize]) -> PeerConnection {
        PeerConnection {
            scope: crate::types::ScopeName::ROOT,
            id: ConnectionId::from_bits(id),
            user: (user > 0).then(|| UserId::from(user)),
            data: None,
            topics: topics.iter().map(|topic| Topic::from(*topic)).collect(),
        }
    }

    fn presence_update(number: u64, open: Vec<PeerConnection>) -> PresenceUpdate {
        PresenceUpdate { number, open, ..PresenceUpdate::default() }
    }

    #[test]
    fn updates_after_a_missing_one_are_ignored_until_the_complete_list() {
        let (mut peers, one) = (Peers::new(100, 10), InstanceId(1));
        assert_eq!(peers.update(one, presence_update(5, vec![connection(1, 1, &[])]), 0), UpdateResult::Missing);
        assert_eq!(peers.of_user(&UserId::from(1)).count(), 0, "updates before the complete list are ignored");
        let all = PresenceUpdate { all: Some(Part::First), ..presence_update(5, vec![connection(1, 1, &[])]) };
        assert_eq!(peers.update(one, all, 0), UpdateResult::Fine);
        assert_eq!(
            peers.update(
                one,
                PresenceUpdate { all: Some(Part::More), ..presence_update(5, vec![connection(2, 1, &[7])]) },
                0
            ),
            UpdateResult::Fine
        );
        assert_eq!(peers.update(one, presence_update(6, vec![connection(3, 1, &[])]), 0), UpdateResult::Fine);
        assert_eq!(
            peers.update(one, presence_update(6, vec![connection(9, 1, &[])]), 0),
            UpdateResult::Fine,
            "already applied"
        );
        assert_eq!((peers.of_user(&UserId::from(1)).count(), peers.in_topic(&Topic::from(7)).count()), (3, 1));
        assert_eq!(peers.lease(one, 6, 0), UpdateResult::Fine);
        assert_eq!(peers.lease(one, 7, 0), UpdateResult::Missing);
        assert_eq!(peers.update(one, presence_update(8, vec![]), 0), UpdateResult::Missing);
    }

    #[test]
    fn no_connection_is_removed_while_a_complete_list_arrives_in_parts() {
        let (mut peers, one) = (Peers::new(100, 10), InstanceId(1));
        let all = |part, ids: &[u128]| PresenceUpdate {
            all: Some(part),
            ..presence_update(3, ids.iter().map(|id| connection(*id, 1, &[7])).collect())
        };
        peers.update(one, all(Part::First, &[1, 2, 3]), 0);
        peers.lease(one, 3, 0);
        peers.update(one, all(Part::First, &[1]), 1);
        assert_eq!(peers.in_topic(&Topic::from(7)).count(), 3);
        peers.update(one, all(Part::More, &[2, 4]), 2);
        assert_eq!(peers.in_topic(&Topic::from(7)).count(), 4);
        peers.lease(one, 3, 3);
        assert_eq!(peers.in_topic(&Topic::from(7)).count(), 3, "the list did not contain the third connection");
        assert!(peers.find(ConnectionId::from_bits(3)).is_none() && peers.departed.is_empty());
    }

    #[test]
    fn instance_is_removed_when_its_lease_ends() {
        let (mut peers, dies, slow) = (Peers::new(100, 10), InstanceId(1), InstanceId(2));
        for (instance, id) in [(dies, 1), (slow, 2)] {
            peers.update(
                instance,
                PresenceUpdate { all: Some(Part::First), ..presence_update(0, vec![connection(id, id as usize, &[])]) },
                0,
            );
        }
        peers.lease(slow, 0, 99);
        peers.sweep(100);
        assert_eq!((peers.of_user(&UserId::from(1)).count(), peers.of_user(&UserId::from(2)).count()), (0, 1));
        assert!(peers.is_online(&UserId::from(1), 109) && !peers.is_online(&UserId::from(1), 110));
        peers.sweep(110);
        peers.goodbye(slow, 120);
        peers.sweep(130);
        assert!(peers.by_user.is_empty() && peers.by_topic.is_empty() && peers.departed.is_empty() && peers.len() == 0);
    }

    #[test]
    fn surviving_instance_publishes_for_the_members_of_an_ended_one() {
        let (topic, user) = (Topic::from(7), UserId::from(1));
        let (mut peers, dies, lives) = (Peers::new(100, 10), InstanceId(5), InstanceId(6));
        for (instance, id) in [(dies, 1), (lives, 2)] {
            peers.update(
                instance,
                PresenceUpdate { all: Some(Part::First), ..presence_update(0, vec![connection(id, 1, &[7])]) },
                0,
            );
        }
        peers.goodbye(dies, 50);
        assert!(peers.take_orphans(InstanceId(1), 60).is_empty(), "the user has another connection");
        peers.update(
            lives,
            PresenceUpdate { closed: vec![ConnectionId::from_bits(2)], ..presence_update(1, vec![]) },
            70,
        );
        assert!(peers.is_member(&topic, &user, 79) && !peers.is_member(&topic, &user, 80));
        assert!(
            peers.publishes_left(&topic, &user, InstanceId(9), 75)
                && !peers.publishes_left(&topic, &user, InstanceId(1), 75)
        );
        peers.goodbye(lives, 75);
        assert!(peers.take_orphans(InstanceId(1), 79).is_empty());
        assert_eq!(peers.take_orphans(InstanceId(1), 80), [(topic, user)]);
    }

    /// Returns the table of an instance that knows a dying instance with one member since the time
    /// 0, and each of `others` since the given time.
    fn witness(others: &[(InstanceId, Millis)], dies: InstanceId, last_seen: Millis) -> Peers {
        let mut peers = Peers::new(15_000, 10_000);
        let all = |id, topics| PresenceUpdate {
            all: Some(Part::First),
            ..presence_update(0, vec![connection(id, 1, topics)])
        };
        peers.update(dies, all(1, &[7]), 0);
        for (other, first_seen) in others {
            peers.update(*other, all(100 + u128::from(other.0), &[]), *first_seen);
        }
        peers.lease(dies, 0, last_seen);
        peers
    }

    /// Keeps `others` alive, and returns the time before `until` at which `me` publishes
    /// `hub.left`.
    fn published_at(peers: &mut Peers, me: u64, others: &[InstanceId], until: Millis) -> Option<Millis> {
        (0..until).step_by(500).find(|now| {
            for other in others {
                peers.lease(*other, 0, *now);
            }
            peers.sweep(*now);
            !peers.take_orphans(InstanceId(me), *now).is_empty()
        })
    }

    #[test]
    fn lower_instance_that_was_connected_too_late_does_not_keep_a_witness_from_publishing() {
        let (late, low, dies, high) = (InstanceId(1), InstanceId(2), InstanceId(5), InstanceId(9));
        // `low` and `high` have known each other and the dying instance for a long time. `late`
        // connected after the last message of the dying instance, or so shortly before it that it
        // may not know the members.
        for (last_seen, connected_at) in [(20_000, 25_000), (20_000, 19_000)] {
            let mut of_low = witness(&[(high, 0), (late, connected_at)], dies, last_seen);
            let mut of_high = witness(&[(low, 0), (late, connected_at)], dies, last_seen);
            let published_at_low = published_at(&mut of_low, 2, &[high, late], 100_000);
            assert_eq!(published_at_low, Some(last_seen + 25_000), "after the lease and the grace period");
            assert_eq!(published_at(&mut of_high, 9, &[low, late], 100_000), None);
            assert!(of_high.ended.is_empty(), "the higher witness no longer keeps the members");
            // `late` publishes for the members that it knows, because it has known `low` and `high`
            // for too short a time to count them as witnesses.
            let mut of_late = witness(&[(low, connected_at), (high, connected_at)], dies, last_seen);
            assert!(published_at(&mut of_late, 1, &[low, high], 100_000).is_some());
        }
        // A lower instance that has been connected for a while is a witness, so `low` leaves the
        // event to it.
        let mut of_low = witness(&[(high, 0), (late, 3_000)], dies, 20_000);
        assert_eq!(published_at(&mut of_low, 2, &[high, late], 100_000), None);
    }

    #[test]
    fn next_witness_publishes_when_the_lowest_witness_has_ended_too() {
        let (low, dies) = (InstanceId(2), InstanceId(5));
        let mut of_high = witness(&[(low, 0)], dies, 20_000);
        // `low` ends at about the same time as the dying instance.
        of_high.lease(low, 0, 20_100);
        assert!(published_at(&mut of_high, 9, &[], 100_000).is_some());
        // `low` ends later, but before the grace period is over.
        let mut of_high = witness(&[(low, 0)], dies, 20_000);
        assert_eq!(published_at(&mut of_high, 9, &[low], 44_000), None);
        assert!(published_at(&mut of_high, 9, &[], 100_000).is_some());
        // The member has returned meanwhile, on another instance.
        let mut of_high = witness(&[(low, 0)], dies, 20_000);
        assert_eq!(published_at(&mut of_high, 9, &[low], 44_000), None);
        let other = InstanceId(7);
        of_high.update(
            other,
            PresenceUpdate { all: Some(Part::First), ..presence_update(0, vec![connection(50, 1, &[7])]) },
            44_000,
        );
        assert_eq!(published_at(&mut of_high, 9, &[other], 200_000), None);
    }

    /// The cost of a goodbye grows with the number of connections, and not with its square.
    #[test]
    fn goodbye_of_an_instance_with_a_large_topic_takes_linear_time() {
        let (mut peers, one) = (Peers::new(100, 10), InstanceId(1));
        let connections = (1..=30_000).map(|id| connection(id as u128, id, &[7])).collect();
        peers.update(one, PresenceUpdate { all: Some(Part::First), ..presence_update(0, connections) }, 0);
        let begun = std::time::Instant::now();
        peers.goodbye(one, 0);
        assert!(begun.elapsed() < std::time::Duration::from_secs(4), "{:?}", begun.elapsed());
        assert_eq!(peers.leaving(&Topic::from(7), 0).count(), 30_000);
    }

    #[test]
    fn complete_list_without_changes_causes_no_departure() {
        let (mut peers, one) = (Peers::new(100, 10), InstanceId(1));
        for _ in 0..2 {
            peers.update(
                one,
                PresenceUpdate { all: Some(Part::First), ..presence_update(0, vec![connection(1, 1, &[7])]) },
                0,
            );
        }
        assert_eq!(peers.departures.next_due(), None);
    }

    #[test]
    fn change_of_topics_causes_a_departure_only_from_the_topics_that_were_left() {
        let (mut peers, one) = (Peers::new(100, 10), InstanceId(1));
        peers.update(
            one,
            PresenceUpdate { all: Some(Part::First), ..presence_update(0, vec![connection(1, 1, &[6, 7])]) },
            0,
        );
        peers.update(one, presence_update(1, vec![connection(1, 1, &[7, 8])]), 0);
        assert_eq!(peers.departures.pop_due(10), Some((0, (Some(Topic::from(6)), UserId::from(1)))));
        assert_eq!(peers.departures.next_due(), None);
    }

    proptest! {
        /// The indexes match the connections, and a departure is kept for the grace period.
        #[test]
        fn indexes_match_the_connections(
            steps in proptest::collection::vec(
                (0..3u64, 0..6u128, 0..3usize, proptest::collection::vec(0..4usize, 0..3), 0..11u8), 0..120
            )
        ) {
            let mut peers = Peers::new(1_000, 10);
            let mut model: BTreeMap<(u64, u128), PeerConnection> = BTreeMap::new();
            // The time at which each member of a topic, and each user, left. `None` while it is
            // connected.
            let mut left_at: BTreeMap<(Option<usize>, usize), Option<Millis>> = BTreeMap::new();
            let (mut numbers, mut now) = ([0; 3], 0);
            for instance in 0..3 {
                peers.update(InstanceId(instance), PresenceUpdate { all: Some(Part::First), ..PresenceUpdate::default() }, 0);
            }
            for (instance, id, user, topics, step) in steps {
                numbers[instance as usize] += 1;
                if step > 8 {
                    now += id as Millis;
                    peers.sweep(now);
                }
                // The connections of different instances have different ids.
                let id = id + 100 * u128::from(instance);
                let mut update = PresenceUpdate { number: numbers[instance as usize], ..PresenceUpdate::default() };
                match step {
                    0 => {
                        peers.goodbye(InstanceId(instance), now);
                        model.retain(|(of, _), _| *of != instance);
                        update.all = Some(Part::First);
                    }
                    1..5 => {
                        update.closed.push(ConnectionId::from_bits(id));
                        model.remove(&(instance, id));
                    }
                    _ => {
                        update.open.push(connection(id, user, &topics));
                        model.insert((instance, id), connection(id, user, &topics));
                    }
                }
                prop_assert_eq!(peers.update(InstanceId(instance), update, now), UpdateResult::Fine);
                let mut is_recent = |topic: Option<usize>, user: usize, is_there: bool| {
                    if is_there {
                        left_at.insert((topic, user), None);
                    }
                    let left_at = left_at.get_mut(&(topic, user));
                    left_at.is_some_and(|at| is_there || *at.get_or_insert(now) + 10 > now)
                };
                for number in 1..3 {
                    let user = UserId::from(number);
                    let expected = model.values().filter(|connection| connection.user.as_ref() == Some(&user)).count();
                    prop_assert_eq!(peers.of_user(&user).count(), expected);
                    prop_assert_eq!(peers.is_online(&user, now), is_recent(None, number, expected > 0));
                }
                for number in 0..4 {
                    let topic = Topic::from(number);
                    let mut leaving = BTreeSet::new();
                    for user in 1..3 {
                        let is_of = |connection: &&PeerConnection| connection.user == Some(UserId::from(user)) && connection.topics.contains(&topic);
                        let is_there = model.values().any(|connection| is_of(&connection));
                        prop_assert_eq!(peers.is_connected(&topic, &UserId::from(user)), is_there);
                        if is_recent(Some(number), user, is_there) && !is_there {
                            leaving.insert(UserId::from(user));
                        }
                    }
                    prop_assert_eq!(peers.leaving(&topic, now).cloned().collect::<BTreeSet<_>>(), leaving);
                    let expected = model.values().filter(|connection| connection.topics.contains(&topic)).count();
                    prop_assert_eq!(peers.in_topic(&topic).count(), expected);
                }
                prop_assert_eq!(peers.all().count(), model.len());
            }
            // After the end of all instances, the table is empty.
            (0..3).for_each(|instance| peers.goodbye(InstanceId(instance), now));
            peers.sweep(now + 10);
            prop_assert!(peers.by_user.is_empty() && peers.by_topic.is_empty() && peers.departed.is_empty());
            prop_assert!(peers.departures.next_due().is_none());
        }
    }
}
