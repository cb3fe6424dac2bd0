//! The other instances of the same shared log, and the connections that they have reported. This
//! code does no I/O, and callers pass the time.
//!
//! 1. An instance is known while its lease lasts. Its presence updates and lease messages renew the
//!    lease. When the lease ends, the instance is removed together with its connections
//!    ([`Peers::sweep`]).
//! 2. Presence updates are numbered. After a missing number, the list of that instance is read from
//!    the broker ([`reports`](super::reports)).
//! 3. The connections of all instances are in one compact table
//!    ([`connections`](super::connections)).
//! 4. After an instance has ended, one of the others publishes `hub.left` for its members
//!    ([`witnesses`](super::witnesses)).

use std::collections::hash_map::HashMap;
use std::sync::Arc;

use roaring::RoaringBitmap;

use super::connections::{Connections, Ids};
use super::message::{HalfId, InstanceId, List, PeerConnection, PresenceUpdate};
use super::reports::Reports;
use super::witnesses::{Ended, SETTLE};
use crate::log::Millis;
use crate::types::{Address, Audience, ConnectionId, ScopeName, Topic, TopicFilter, UserId};

/// The user of a connection of another instance, and the data of the connection.
pub(in crate::hub) type Other = (Option<UserId>, Option<Arc<str>>);

/// The other instances, under the lock of `SharedLog::peers`. The control task changes them.
/// Streams and calls of the application read them.
#[derive(Debug, Default)]
pub(in crate::hub) struct Peers {
    instances: HashMap<InstanceId, Peer>,
    connections: Connections,
    ended: Ended,
    /// The number of readings of lists that have begun.
    readings: u64,
    lease: Millis,
    /// Whether this instance has received one of its own messages since it last connected to the
    /// broker. From then on it receives all messages.
    receives_own: bool,
    /// The time at which this instance last received one of its own messages.
    own_received_at: Option<Millis>,
}

/// The reading of the list of an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::hub) struct Reading {
    pub(in crate::hub) of: InstanceId,
    pub(in crate::hub) list: List,
    /// The number of this reading.
    number: u64,
}

/// Another instance.
#[derive(Debug)]
struct Peer {
    first_seen: Millis,
    last_seen: Millis,
    lease_until: Millis,
    reports: Reports,
    ids: Ids,
    /// The known connections that the list has not contained yet, while its parts are applied.
    unconfirmed: Option<RoaringBitmap>,
}

impl Peers {
    /// Creates the table of an instance. `rules` are the filters of the topics with presence
    /// events.
    pub(in crate::hub) fn new(lease: Millis, grace: Millis, rules: Vec<TopicFilter>) -> Self {
        Self { connections: Connections::new(rules, grace), lease, ..Self::default() }
    }

    /// Receives a presence update. Applies it, unless an earlier update is missing.
    pub(in crate::hub) fn update(&mut self, from: InstanceId, update: PresenceUpdate, now: Millis) {
        let peer = self.renew_lease(from, now);
        if let Some(update) = peer.reports.update(update, now) {
            self.apply(from, update, now);
        }
    }

    fn apply(&mut self, from: InstanceId, update: PresenceUpdate, now: Millis) {
        let Some(peer) = self.instances.get_mut(&from) else { return };
        for connection in update.open {
            self.connections.insert(&mut peer.ids, from, &connection, now);
        }
        for id in update.closed {
            self.connections.remove(&mut peer.ids, from, id, now);
        }
    }

    /// Renews the lease of an instance whose newest presence update has this number.
    pub(in crate::hub) fn lease(&mut self, from: InstanceId, number: u64, now: Millis) {
        let lease = self.lease;
        let reports = &mut self.renew_lease(from, now).reports;
        reports.lease(number, now);
        if reports.is_complete() {
            // The last pause ended more than one lease ago, so the next question need not wait.
            reports.forget_pauses(now, lease);
        }
    }

    /// Notes that an instance has stored its list of connections. Ignores an unknown instance: the
    /// announcement of an instance that has ended may follow its goodbye.
    pub(in crate::hub) fn listed(&mut self, from: InstanceId, list: List) {
        if let Some(peer) = self.instances.get_mut(&from) {
            peer.reports.listed(list);
        }
    }

    /// Notes that an instance has asked another one for a list that includes the updates up to this
    /// number.
    pub(in crate::hub) fn asked(&mut self, to: InstanceId, needed: u64, now: Millis) {
        if let Some(peer) = self.instances.get_mut(&to) {
            peer.reports.asked(needed, now);
        }
    }

    /// Returns the instances that this instance has to ask for their lists now. Each has the number
    /// of the newest update that the list has to include.
    pub(in crate::hub) fn questions(&mut self, now: Millis) -> Vec<(InstanceId, u64)> {
        let question = |(id, peer): (&InstanceId, &mut Peer)| Some((*id, peer.reports.ask(now)?));
        self.instances.iter_mut().filter_map(question).collect()
    }

    /// Returns up to `most` readings of lists that have to begin now. The caller reads each list,
    /// applies its parts, and calls [`end_list`](Self::end_list).
    pub(in crate::hub) fn lists_to_read(&mut self, most: usize) -> Vec<Reading> {
        let Self { instances, readings, .. } = self;
        let begin = |(of, peer): (&InstanceId, &mut Peer)| {
            let list = peer.reports.begin_reading(*readings + 1)?;
            peer.unconfirmed = None;
            *readings += 1;
            Some(Reading { of: *of, list, number: *readings })
        };
        instances.iter_mut().filter_map(begin).take(most).collect()
    }

    /// Notes that the lists which were being read will not be applied.
    pub(in crate::hub) fn stop_reading(&mut self) {
        self.instances.values_mut().for_each(|peer| peer.reports.stop_reading());
    }

    /// Applies connections of a list. Returns whether the list is still needed. If not, the reading
    /// ends.
    pub(in crate::hub) fn apply_part(&mut self, reading: &Reading, open: &[PeerConnection], now: Millis) -> bool {
        let Some(peer) = self.instances.get_mut(&reading.of).filter(|peer| peer.expects(reading)) else { return false };
        peer.begin_list();
        for connection in open {
            let known = self.connections.find(&peer.ids, connection.id);
            if let Some((unconfirmed, known)) = peer.unconfirmed.as_mut().zip(known) {
                unconfirmed.remove(known);
            }
            self.connections.insert(&mut peer.ids, reading.of, connection, now);
        }
        true
    }

    /// Removes up to `most` connections that a list did not contain, after all parts were applied.
    /// Returns whether there may be more.
    pub(in crate::hub) fn remove_unconfirmed(&mut self, reading: &Reading, most: usize, now: Millis) -> bool {
        let Some(peer) = self.instances.get_mut(&reading.of).filter(|peer| peer.expects(reading)) else { return false };
        peer.begin_list();
        let numbers: Vec<u32> = peer.unconfirmed.iter().flatten().take(most).collect();
        for number in &numbers {
            peer.unconfirmed.iter_mut().for_each(|unconfirmed| _ = unconfirmed.remove(*number));
            let id = self.connections.id_of(*number);
            self.connections.remove(&mut peer.ids, reading.of, id, now);
        }
        numbers.len() == most
    }

    /// Ends the reading of a list. If the whole list was applied, applies the updates that have
    /// waited.
    pub(in crate::hub) fn end_list(&mut self, reading: &Reading, is_read: bool, now: Millis) {
        let Some(peer) = self.instances.get_mut(&reading.of) else { return };
        if !peer.reports.is_read_by(reading.number) {
            return;
        }
        peer.unconfirmed = None;
        let updates = peer.reports.end_reading(reading.list, is_read);
        updates.into_iter().for_each(|update| self.apply(reading.of, update, now));
    }

    /// Renews the lease of an instance that has sent a presence update or a lease message. Adds an
    /// unknown instance.
    fn renew_lease(&mut self, from: InstanceId, now: Millis) -> &mut Peer {
        let peer = self.instances.entry(from).or_insert_with(|| Peer::new(now));
        peer.last_seen = now;
        peer.lease_until = now.saturating_add(self.lease);
        peer
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
        let Some(mut peer) = self.instances.remove(&from) else { return };
        let members = self.connections.members_of(&peer.ids, from, now);
        let settle = self.lease.max(SETTLE);
        let settled = |other: &Peer| other.first_seen.saturating_add(settle) <= peer.last_seen;
        let witnesses = self.instances.iter().filter(|(_, other)| settled(other)).map(|(id, _)| *id);
        self.ended.add(witnesses.collect(), members);
        let ids: Vec<_> = peer.ids.iter().map(|number| self.connections.id_of(*number)).collect();
        ids.into_iter().for_each(|id| self.connections.remove(&mut peer.ids, from, id, now));
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
        self.connections.forget(now);
    }

    /// Returns whether a user has a topic on another instance, or had it within the grace period.
    /// The topic has presence events.
    pub(in crate::hub) fn is_member(&self, topic: &Topic, user: &UserId, now: Millis) -> bool {
        self.connections.is_connected(topic, user) || self.connections.last_instance(topic, user, now).is_some()
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
        let last = self.connections.last_instance(topic, user, now);
        // If the member has left this instance and another within the grace period, the instance
        // with the lower id publishes. Both may publish, but at least one of them does.
        self.connections.is_connected(topic, user)
            || last.is_some_and(|at| at < instance && self.instances.contains_key(&at))
    }

    /// Returns the members that have left a topic with presence events on other instances within
    /// the grace period.
    pub(in crate::hub) fn leaving(&self, topic: &Topic, now: Millis) -> Vec<UserId> {
        self.connections.leaving(topic, now)
    }

    /// Removes and returns the members of ended instances for which this instance has to publish
    /// `hub.left`. Their grace period is over, no other instance has them as members, and this
    /// instance knows no live witness with a lower id.
    ///
    /// While the list of an instance is missing, a member may be on that instance. So this instance
    /// then waits for the list, at most for one lease.
    pub(in crate::hub) fn take_orphans(&mut self, instance: InstanceId, now: Millis) -> Vec<(Topic, UserId)> {
        let Self { instances, connections, ended, lease, .. } = self;
        let is_complete = instances.values().all(|peer| peer.reports.is_complete());
        let wait = connections.departures.grace.saturating_add(if is_complete { 0 } else { *lease });
        let mut orphans = ended.take_orphans(instance, now, wait, *lease, |id| instances.contains_key(id));
        orphans.retain(|(topic, user)| !self.is_member(topic, user, now));
        orphans
    }

    /// Returns whether a user has a connection on another instance, or had one within the grace
    /// period.
    pub(in crate::hub) fn is_online(&self, user: &UserId, now: Millis) -> bool {
        self.connections.is_online(user, now)
    }

    /// Returns the number of connections that an address has on other instances.
    pub(in crate::hub) fn count(&self, address: &Address) -> usize {
        match address {
            Address::Everyone(_) | Address::EveryScope => self.count_all(&Audience::from(address.clone())),
            Address::Topic(topic) => self.connections.in_topic(topic).map_or(0, count),
            Address::User(user) => self.connections.count_of_user(user),
            Address::Connection(id, scope) => usize::from(self.find_in(*id, scope).is_some()),
        }
    }

    /// Returns the number of connections that an audience has on other instances. A connection
    /// counts once.
    pub(in crate::hub) fn count_all(&self, audience: &Audience) -> usize {
        if !audience.addresses().contains(&Address::Everyone(ScopeName::ROOT)) {
            return count(&self.all(audience));
        }
        // The other addresses of the audience add nothing, because they are of the root scope, or
        // of all scopes.
        let is_of_all = audience.addresses().contains(&Address::EveryScope);
        let excluded = audience.excluded().iter().filter_map(|id| self.find_number((*id).into()));
        // Two ids may have the same first half.
        let excluded: RoaringBitmap =
            excluded.filter(|number| is_of_all || self.connections.scope_of(*number).is_root()).collect();
        let others = if is_of_all { 0 } else { self.connections.len_of_scopes() };
        self.connections.len() - others - count(&excluded)
    }

    /// Returns the user and the data of each connection of an audience on other instances. A
    /// connection is returned once.
    pub(in crate::hub) fn others(&self, audience: &Audience) -> Vec<Other> {
        self.all(audience).iter().map(|number| self.connections.describe(number)).collect()
    }

    /// Returns the numbers of the connections of an audience.
    fn all(&self, audience: &Audience) -> RoaringBitmap {
        let mut all = RoaringBitmap::new();
        for address in audience.addresses() {
            match address {
                Address::Everyone(scope) if scope.is_root() => {
                    self.instances.values().for_each(|peer| all.extend(peer.ids.iter().copied()));
                    self.connections.in_scopes().for_each(|of| all -= of);
                }
                Address::Everyone(scope) => self.connections.in_scope(scope).into_iter().for_each(|of| all |= of),
                // Added below, because everyone in the root scope would remove these connections.
                Address::EveryScope => {}
                Address::Topic(topic) => self.connections.in_topic(topic).into_iter().for_each(|of| all |= of),
                Address::User(user) => all.extend(self.connections.of_user(user)),
                Address::Connection(id, scope) => all.extend(self.find_in(*id, scope)),
            }
        }
        if audience.addresses().contains(&Address::EveryScope) {
            self.connections.in_scopes().for_each(|of| all |= of);
        }
        for id in audience.excluded() {
            self.find_number((*id).into()).iter().for_each(|number| _ = all.remove(*number));
        }
        all
    }

    /// Returns a connection of another instance.
    pub(in crate::hub) fn find(&self, id: ConnectionId) -> Option<PeerConnection> {
        let number = self.find_number(id.into())?;
        let ((user, data), topics) = (self.connections.describe(number), self.connections.topic_names(number));
        Some(PeerConnection { id: id.into(), scope: self.connections.scope_of(number).clone(), user, data, topics })
    }

    /// Returns the number of a connection, if it is of this scope.
    fn find_in(&self, id: ConnectionId, scope: &ScopeName) -> Option<u32> {
        self.find_number(id.into()).filter(|number| self.connections.scope_of(*number) == scope)
    }

    fn find_number(&self, id: HalfId) -> Option<u32> {
        self.instances.values().find_map(|peer| self.connections.find(&peer.ids, id))
    }

    /// Returns the number of other instances.
    pub(in crate::hub) fn len(&self) -> usize {
        self.instances.len()
    }

    /// Returns the number of connections on other instances, of all scopes.
    #[cfg(feature = "test-kit")]
    pub(in crate::hub) fn connections(&self) -> usize {
        self.connections.len()
    }

    /// Returns the allocated memory of the connections in bytes, without their data.
    #[cfg(any(test, feature = "test-kit"))]
    pub(in crate::hub) fn allocated(&self) -> usize {
        let ids: usize = self.instances.values().map(|peer| peer.ids.allocation_size()).sum();
        self.connections.allocated() + ids
    }
}

impl Peer {
    fn new(now: Millis) -> Self {
        Self {
            first_seen: now,
            last_seen: now,
            lease_until: now,
            reports: Reports::new(now),
            ids: Ids::new(),
            unconfirmed: None,
        }
    }

    /// Returns whether the parts that a reading has read have to be applied.
    fn expects(&self, reading: &Reading) -> bool {
        self.reports.is_read_by(reading.number) && self.reports.expects(&reading.list)
    }

    /// Notes all known connections as unconfirmed, when the first part of a list is applied.
    fn begin_list(&mut self) {
        let Self { unconfirmed, ids, .. } = self;
        unconfirmed.get_or_insert_with(|| ids.iter().copied().collect());
    }
}

fn count(numbers: &RoaringBitmap) -> usize {
    usize::try_from(numbers.len()).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Scoped;
    use proptest::prelude::*;
    use std::collections::{BTreeMap, BTreeSet};

    fn connection(id: u128, user: usize, topics: &[usize]) -> PeerConnection {
        PeerConnection {
            id: HalfId(id as u64),
            scope: ScopeName::ROOT,
            user: (user > 0).then(|| UserId::from(user)),
            data: None,
            topics: topics.iter().map(|topic| Topic::from(*topic)).collect(),
        }
    }

    /// Creates a table in which all topics have presence events.
    fn peers(lease: Millis, grace: Millis) -> Peers {
        Peers::new(lease, grace, vec![TopicFilter::any()])
    }

    fn presence_update(number: u64, open: Vec<PeerConnection>) -> PresenceUpdate {
        PresenceUpdate { number, open, ..PresenceUpdate::default() }
    }

    /// Reads the list of an instance, with these parts.
    fn read_list(peers: &mut Peers, of: InstanceId, number: u64, parts: &[Vec<PeerConnection>], now: Millis) {
        let list = List { number, serial: 1, parts: parts.len() as u64 };
        peers.listed(of, list);
        let [reading] = peers.lists_to_read(9)[..] else { panic!("one list has to be read") };
        assert_eq!((reading.of, reading.list), (of, list));
        parts.iter().for_each(|part| assert!(peers.apply_part(&reading, part, now)));
        end_list(peers, &reading, now);
    }

    fn end_list(peers: &mut Peers, reading: &Reading, now: Millis) {
        while peers.remove_unconfirmed(reading, 2, now) {}
        peers.end_list(reading, true, now);
    }

    fn user(number: usize) -> Address {
        Address::User(UserId::from(number))
    }

    fn topic(number: usize) -> Address {
        Address::Topic(Topic::from(number))
    }

    #[test]
    fn updates_after_a_missing_one_are_applied_after_the_list() {
        let (mut peers, one) = (peers(100, 10), InstanceId(1));
        peers.update(one, presence_update(5, vec![connection(1, 1, &[])]), 0);
        assert_eq!(peers.count(&user(1)), 0, "updates before the list wait");
        read_list(&mut peers, one, 4, &[vec![connection(2, 1, &[7])], vec![connection(3, 1, &[])]], 0);
        assert_eq!((peers.count(&user(1)), peers.count(&topic(7))), (3, 1));
        peers.update(one, presence_update(6, vec![connection(4, 1, &[])]), 0);
        peers.update(one, presence_update(6, vec![connection(9, 1, &[])]), 0);
        assert_eq!(peers.count(&user(1)), 4, "an update is applied once");
        // Another task has read the same list. It would remove the newer connections.
        let late = Reading { of: one, list: List { number: 4, serial: 1, parts: 2 }, number: 1 };
        assert!(!peers.apply_part(&late, &[], 0));
        end_list(&mut peers, &late, 0);
        assert_eq!(peers.count(&user(1)), 4);
    }

    /// The control task may be replaced while it reads a list, or the instance may end and return
    /// with the same id. A second reading of the list must not count the parts of the first.
    #[test]
    fn parts_of_two_readings_are_not_combined() {
        for returns in [false, true] {
            let (mut peers, one) = (peers(100, 10), InstanceId(1));
            let list = List { number: 3, serial: 1, parts: 2 };
            let begin = |peers: &mut Peers, now| {
                peers.lease(one, 3, now);
                peers.listed(one, list);
                peers.lists_to_read(9)[0]
            };
            let first = begin(&mut peers, 0);
            assert!(peers.apply_part(&first, &[connection(1, 1, &[7])], 0));
            if returns {
                peers.sweep(100);
            } else {
                peers.stop_reading();
            }
            let second = begin(&mut peers, 100);
            assert!(!peers.apply_part(&first, &[connection(2, 1, &[7])], 100));
            end_list(&mut peers, &first, 100);
            assert!(!peers.instances[&one].reports.is_complete());
            assert!(peers.apply_part(&second, &[connection(3, 1, &[7])], 100));
            end_list(&mut peers, &second, 100);
            assert_eq!(peers.count(&topic(7)), 1, "the second reading has read one connection");
        }
    }

    #[test]
    fn list_without_connections_removes_all() {
        let (mut peers, one) = (peers(100, 10), InstanceId(1));
        peers.update(one, presence_update(1, (1..8).map(|id| connection(id, 1, &[7])).collect()), 0);
        peers.lease(one, 2, 0);
        read_list(&mut peers, one, 2, &[], 0);
        assert_eq!((peers.count(&topic(7)), peers.instances[&one].reports.is_complete()), (0, true));
    }

    #[test]
    fn connection_that_the_list_does_not_contain_is_removed_at_the_end_of_the_list() {
        let (mut peers, one) = (peers(100, 10), InstanceId(1));
        peers.update(one, presence_update(1, (1..4).map(|id| connection(id, 1, &[7])).collect()), 0);
        peers.lease(one, 3, 0);
        let list = List { number: 3, serial: 1, parts: 2 };
        peers.listed(one, list);
        let reading = peers.lists_to_read(9)[0];
        peers.apply_part(&reading, &[connection(1, 1, &[7])], 1);
        assert_eq!(peers.count(&topic(7)), 3);
        peers.apply_part(&reading, &[connection(2, 1, &[7]), connection(4, 1, &[7])], 2);
        assert_eq!(peers.count(&topic(7)), 4);
        end_list(&mut peers, &reading, 2);
        assert_eq!(peers.count(&topic(7)), 3);
        assert!(peers.find(ConnectionId::from_bits(3 << 64)).is_none() && peers.leaving(&Topic::from(7), 2).is_empty());
    }

    #[test]
    fn list_that_cannot_be_read_removes_no_connection() {
        let (mut peers, one) = (peers(100, 10), InstanceId(1));
        peers.update(one, presence_update(1, vec![connection(1, 1, &[7])]), 0);
        peers.lease(one, 3, 0);
        let list = List { number: 3, serial: 1, parts: 2 };
        peers.listed(one, list);
        let reading = peers.lists_to_read(9)[0];
        peers.end_list(&reading, false, 2);
        assert_eq!(peers.count(&topic(7)), 1);
        assert_eq!(peers.questions(100), [(one, 3)]);
    }

    #[test]
    fn union_counts_a_connection_once_and_leaves_excluded_connections_out() {
        let (mut peers, one, two) = (peers(100, 10), InstanceId(1), InstanceId(2));
        peers.update(one, presence_update(1, vec![connection(1, 1, &[7, 8]), connection(2, 0, &[8])]), 0);
        let data = PeerConnection { data: Some("7".into()), ..connection(3, 1, &[1, 2, 3, 4, 5, 6]) };
        peers.update(two, presence_update(1, vec![data]), 0);
        let mut audience = Audience::from(topic(7));
        [topic(8), user(1), topic(9)].into_iter().for_each(|address| audience.insert(address));
        assert_eq!((peers.count_all(&audience), peers.count(&Address::Everyone(ScopeName::ROOT))), (3, 3));
        audience.exclude(ConnectionId::from_bits(1 << 64));
        let mut others = peers.others(&audience);
        others.sort();
        assert_eq!(others, [(None, None), (Some(UserId::from(1)), Some("7".into()))]);
        let found = peers.find(ConnectionId::from_bits(3 << 64));
        let found = found.unwrap();
        assert_eq!((found.user, found.topics), (Some(UserId::from(1)), [1, 2, 3, 4, 5, 6].map(Topic::from).into()));
        audience.insert(Address::Everyone(ScopeName::ROOT));
        assert_eq!(peers.count_all(&audience), 2);
    }

    #[test]
    fn connections_of_other_scopes_are_counted_apart() {
        let (mut peers, one) = (peers(100, 10), InstanceId(1));
        let acme = ScopeName::named("acme").unwrap();
        let of_acme = |id: u128, user: usize, topics: &[usize]| {
            let PeerConnection { id, user, data, topics, .. } = connection(id, user, topics);
            PeerConnection {
                id,
                scope: acme.clone(),
                user: user.map(|user| user.placed_in(&acme).unwrap()),
                data,
                topics: topics.into_iter().map(|topic| topic.placed_in(&acme).unwrap()).collect(),
            }
        };
        let open = vec![
            connection(1, 1, &[7]),
            connection(2, 0, &[]),
            of_acme(3, 1, &[7]),
            of_acme(4, 0, &[]),
            of_acme(5, 1, &[]),
        ];
        peers.update(one, presence_update(1, open), 0);
        let user_of_acme = Address::User(UserId::from(1).placed_in(&acme).unwrap());
        let topic_of_acme = Address::Topic(Topic::from(7).placed_in(&acme).unwrap());
        let [root, in_acme] = [Address::Everyone(ScopeName::ROOT), Address::Everyone(acme.clone())];
        let counts = |peers: &Peers| {
            [&root, &in_acme, &Address::EveryScope, &user(1), &user_of_acme, &topic(7), &topic_of_acme]
                .map(|address| (peers.count(address), peers.others(&address.clone().into()).len()))
        };
        assert_eq!(counts(&peers), [2, 3, 3, 1, 2, 1, 1].map(|count| (count, count)));
        let mut all = Audience::from(root.clone());
        all.insert(Address::EveryScope);
        assert_eq!((peers.count_all(&all), peers.others(&all).len()), (5, 5));
        for id in [1, 3] {
            all.exclude(ConnectionId::from_bits(id << 64));
        }
        assert_eq!((peers.count_all(&all), peers.others(&all).len()), (3, 3));
        let mut of_root = Audience::from(root.clone());
        of_root.exclude(ConnectionId::from_bits(3 << 64));
        assert_eq!((peers.count_all(&of_root), peers.others(&of_root).len()), (2, 2));
        assert_eq!(peers.find(ConnectionId::from_bits(3 << 64)).map(|found| found.scope), Some(acme.clone()));
        // A connection that changes its scope is another connection.
        let moved = vec![PeerConnection { scope: ScopeName::ROOT, ..connection(4, 0, &[]) }];
        peers.update(one, PresenceUpdate { number: 2, open: moved, closed: vec![HalfId(3)] }, 0);
        assert_eq!(counts(&peers), [3, 1, 1, 1, 1, 1, 0].map(|count| (count, count)));
    }

    #[test]
    fn instance_is_removed_when_its_lease_ends() {
        let (mut peers, dies, slow) = (peers(100, 10), InstanceId(1), InstanceId(2));
        for (instance, id) in [(dies, 1), (slow, 2)] {
            peers.update(instance, presence_update(1, vec![connection(id, id as usize, &[])]), 0);
        }
        peers.lease(slow, 1, 99);
        peers.sweep(100);
        assert_eq!((peers.count(&user(1)), peers.count(&user(2))), (0, 1));
        assert!(peers.is_online(&UserId::from(1), 109) && !peers.is_online(&UserId::from(1), 110));
        peers.sweep(110);
        peers.goodbye(slow, 120);
        peers.sweep(130);
        assert!(peers.connections.is_empty() && peers.len() == 0);
    }

    #[test]
    fn surviving_instance_publishes_for_the_members_of_an_ended_one() {
        let (topic, user) = (Topic::from(7), UserId::from(1));
        let (mut peers, dies, lives) = (peers(100, 10), InstanceId(5), InstanceId(6));
        for (instance, id) in [(dies, 1), (lives, 2)] {
            peers.update(instance, presence_update(1, vec![connection(id, 1, &[7])]), 0);
        }
        peers.goodbye(dies, 50);
        assert!(peers.take_orphans(InstanceId(1), 60).is_empty(), "the user has another connection");
        peers.update(lives, PresenceUpdate { closed: vec![HalfId(2)], ..presence_update(2, vec![]) }, 70);
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
        let mut peers = peers(15_000, 10_000);
        let all = |id, topics| presence_update(1, vec![connection(id, 1, topics)]);
        peers.update(dies, all(1, &[7]), 0);
        for (other, first_seen) in others {
            peers.update(*other, all(100 + u128::from(other.0), &[]), *first_seen);
        }
        peers.lease(dies, 1, last_seen);
        peers
    }

    /// Keeps `others` alive, and returns the time before `until` at which `me` publishes
    /// `hub.left`.
    fn published_at(peers: &mut Peers, me: u64, others: &[InstanceId], until: Millis) -> Option<Millis> {
        (0..until).step_by(500).find(|now| {
            for other in others {
                peers.lease(*other, 1, *now);
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
        for (last_seen, connected_at) in [(20_000, 25_000), (20_000, 19_000), (20_000, 6_000)] {
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
        of_high.lease(low, 1, 20_100);
        assert!(published_at(&mut of_high, 9, &[], 100_000).is_some());
        // `low` ends later, but before the grace period is over.
        let mut of_high = witness(&[(low, 0)], dies, 20_000);
        assert_eq!(published_at(&mut of_high, 9, &[low], 44_000), None);
        assert!(published_at(&mut of_high, 9, &[], 100_000).is_some());
        // The member has returned meanwhile, on another instance.
        let mut of_high = witness(&[(low, 0)], dies, 20_000);
        assert_eq!(published_at(&mut of_high, 9, &[low], 44_000), None);
        let other = InstanceId(7);
        of_high.update(other, presence_update(1, vec![connection(50, 1, &[7])]), 44_000);
        assert_eq!(published_at(&mut of_high, 9, &[other], 200_000), None);
    }

    /// The cost of a goodbye grows with the number of connections, and not with its square.
    #[test]
    fn goodbye_of_an_instance_with_a_large_topic_takes_linear_time() {
        let (mut peers, one) = (peers(100, 10), InstanceId(1));
        let connections = (1..=30_000).map(|id| connection(id as u128, id, &[7])).collect();
        peers.update(one, presence_update(1, connections), 0);
        let begun = std::time::Instant::now();
        peers.goodbye(one, 0);
        assert!(begun.elapsed() < std::time::Duration::from_secs(4), "{:?}", begun.elapsed());
        assert_eq!(peers.leaving(&Topic::from(7), 0).len(), 30_000);
    }

    /// A walk through the connections of one user for each of them would take quadratic time.
    /// No instance sends such a list, but a program with access to the broker can.
    #[test]
    fn list_with_another_user_of_the_only_connection_replaces_it() {
        let (mut peers, one) = (peers(100, 10), InstanceId(1));
        let open = (0..6).map(|id| connection(id, 1, &[7])).collect();
        peers.update(one, presence_update(1, open), 0);
        let closed = (0..5).map(HalfId).collect();
        peers.update(one, PresenceUpdate { number: 2, closed, ..PresenceUpdate::default() }, 0);
        peers.lease(one, 3, 0);
        read_list(&mut peers, one, 3, &[vec![connection(5, 2, &[7])]], 0);
        assert_eq!((peers.count(&user(1)), peers.count(&user(2))), (0, 1));
    }

    #[test]
    fn connections_of_one_user_leave_a_topic_in_linear_time() {
        let (mut peers, one) = (peers(100, 10), InstanceId(1));
        let of_others = (1..=30_000).map(|id| connection(id as u128, id + 1, &[7]));
        let of_user = (30_001..=50_000).map(|id| connection(id, 1, if id <= 40_000 { &[7] } else { &[8] }));
        peers.update(one, presence_update(1, of_others.chain(of_user).collect()), 0);
        assert_eq!(peers.count(&user(1)), 20_000);
        let begun = std::time::Instant::now();
        let closed = (30_001..=40_000).map(HalfId).collect();
        peers.update(one, PresenceUpdate { number: 2, closed, ..PresenceUpdate::default() }, 0);
        assert!(begun.elapsed() < std::time::Duration::from_secs(4), "{:?}", begun.elapsed());
        assert_eq!((peers.count(&user(1)), peers.leaving(&Topic::from(7), 0)), (10_000, vec![UserId::from(1)]));
        assert!(peers.is_member(&Topic::from(8), &UserId::from(1), 0));
    }

    #[test]
    fn orphans_wait_for_a_missing_list_for_at_most_one_lease() {
        for has_list in [true, false] {
            let (mut peers, dies, other) = (peers(100, 10), InstanceId(1), InstanceId(2));
            peers.update(dies, presence_update(1, vec![connection(1, 1, &[7]), connection(2, 2, &[7])]), 0);
            peers.lease(other, 4, 0);
            peers.goodbye(dies, 50);
            assert!(peers.take_orphans(InstanceId(9), 60).is_empty(), "the members may be on the other instance");
            if has_list {
                read_list(&mut peers, other, 4, &[vec![connection(3, 1, &[7])]], 60);
                assert_eq!(peers.take_orphans(InstanceId(9), 60), [(Topic::from(7), UserId::from(2))]);
            } else {
                assert!(peers.take_orphans(InstanceId(9), 159).is_empty());
                assert_eq!(peers.take_orphans(InstanceId(9), 160).len(), 2);
            }
        }
    }

    #[test]
    fn list_without_changes_causes_no_departure() {
        let (mut peers, one) = (peers(100, 10), InstanceId(1));
        peers.update(one, presence_update(1, vec![connection(1, 1, &[7])]), 0);
        peers.lease(one, 2, 0);
        read_list(&mut peers, one, 2, &[vec![connection(1, 1, &[7])]], 0);
        assert_eq!(peers.connections.departures.next_due(), None);
    }

    #[test]
    fn change_of_topics_causes_a_departure_only_from_the_topics_that_were_left() {
        let (mut peers, one) = (peers(100, 10), InstanceId(1));
        peers.update(one, presence_update(1, vec![connection(1, 1, &[6, 7])]), 0);
        peers.update(one, presence_update(2, vec![connection(1, 1, &[7, 8])]), 0);
        let leaving = [6, 7, 8].map(|topic| peers.leaving(&Topic::from(topic), 0));
        assert_eq!(leaving, [vec![UserId::from(1)], vec![], vec![]]);
        assert!(peers.connections.departures.pop_due(10).is_some());
        assert_eq!(peers.connections.departures.next_due(), None);
    }

    #[test]
    fn topic_without_presence_events_has_no_departures() {
        let (mut peers, one) = (Peers::new(100, 10, vec![TopicFilter::exact("7")]), InstanceId(1));
        peers.update(one, presence_update(1, vec![connection(1, 1, &[6, 7])]), 0);
        peers.update(one, presence_update(2, vec![connection(1, 1, &[])]), 0);
        assert!(peers.leaving(&Topic::from(6), 0).is_empty());
        assert_eq!(peers.leaving(&Topic::from(7), 0), [UserId::from(1)]);
    }

    /// A foreign connection has a user, a topic of all connections of its scope, and a room with
    /// presence events. `of` returns its scope and the number of its room.
    ///
    /// Returns the allocated bytes for each of 95,000 connections. Checks that the figure of
    /// [`Peers::allocated`] is the same, also after half of the connections have closed.
    #[cfg(not(tower_sse_loom))]
    fn measure(of: impl Fn(u64) -> (ScopeName, u64)) -> usize {
        let connections =
            |instance: u64| (1..=5_000_u64).map(move |n| (instance * 5_000 + n).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let mut peers = Peers::new(15_000, 10_000, vec![TopicFilter::prefix("room/")]);
        let assert_estimate_is_near = |peers: &Peers, measured: &allocation_counter::AllocationInfo| {
            let estimate = peers.allocated() as f64 / measured.bytes_current as f64;
            assert!((0.95..1.05).contains(&estimate), "{} of {} bytes", peers.allocated(), measured.bytes_current);
        };
        let mut opened = allocation_counter::measure(|| {
            for instance in 0..19 {
                for (n, id) in connections(instance).enumerate() {
                    let n = n as u64;
                    let (scope, room) = of(instance * 5_000 + n);
                    let topics = ["news".to_owned(), format!("room/{room}")];
                    let topics = topics.into_iter().map(|topic| Topic::try_from(topic).unwrap());
                    let user = UserId::try_from(format!("user-{id:016x}")).unwrap();
                    let open = PeerConnection {
                        id: HalfId(id),
                        user: Some(user.placed_in(&scope).unwrap()),
                        data: None,
                        topics: topics.map(|topic| topic.placed_in(&scope).unwrap()).collect(),
                        scope,
                    };
                    peers.update(InstanceId(instance), presence_update(n + 1, vec![open]), 0);
                }
            }
        });
        assert_eq!(peers.connections.len(), 95_000);
        assert_estimate_is_near(&peers, &opened);
        let closed = allocation_counter::measure(|| {
            for instance in 0..19 {
                let closed = connections(instance).step_by(2).map(HalfId).collect();
                let update = PresenceUpdate { number: 5_001, closed, ..PresenceUpdate::default() };
                peers.update(InstanceId(instance), update, 1);
            }
        });
        let bytes = opened.bytes_current as usize / 95_000;
        opened.bytes_current += closed.bytes_current;
        assert_estimate_is_near(&peers, &opened);
        bytes
    }

    #[cfg(not(tower_sse_loom))]
    #[test]
    fn bytes_of_a_connection_are_at_most_a_hundred() {
        let bytes = measure(|connection| (ScopeName::ROOT, connection % 2_000));
        assert!(bytes <= 100, "{bytes} bytes for each connection");
    }

    /// Each of 200 scopes has 475 connections and 10 rooms.
    #[cfg(not(tower_sse_loom))]
    #[test]
    fn bytes_of_a_connection_in_a_scope_are_at_most_120() {
        let bytes = measure(|connection| {
            (ScopeName::named(&format!("tenant-{}", connection % 200)).unwrap(), connection / 200 % 10)
        });
        assert!(bytes <= 120, "{bytes} bytes for each connection");
    }

    proptest! {
        /// The indexes match the connections, and a departure is kept for the grace period.
        #[test]
        fn indexes_match_the_connections(
            steps in proptest::collection::vec(
                (0..3u64, 0..6u128, 0..3usize, proptest::collection::vec(0..4usize, 0..3), 0..11u8), 0..120
            )
        ) {
            let mut peers = peers(1_000, 10);
            let mut model: BTreeMap<(u64, u128), PeerConnection> = BTreeMap::new();
            // The time at which each member of a topic, and each user, left. `None` while it is
            // connected.
            let mut left_at: BTreeMap<(Option<usize>, usize), Option<Millis>> = BTreeMap::new();
            let (mut numbers, mut now) = ([0; 3], 0);
            for instance in 0..3 {
                peers.lease(InstanceId(instance), 0, 0);
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
                        numbers[instance as usize] = 1;
                        update.number = 1;
                    }
                    1..5 => {
                        update.closed.push(HalfId(id as u64));
                        model.remove(&(instance, id));
                    }
                    _ => {
                        update.open.push(connection(id, user, &topics));
                        model.insert((instance, id), connection(id, user, &topics));
                    }
                }
                peers.update(InstanceId(instance), update, now);
                prop_assert!(peers.instances.values().all(|peer| peer.reports.is_complete()));
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
                    prop_assert_eq!(peers.count(&Address::User(user.clone())), expected);
                    prop_assert_eq!(peers.is_online(&user, now), is_recent(None, number, expected > 0));
                }
                for number in 0..4 {
                    let topic = Topic::from(number);
                    let mut leaving = BTreeSet::new();
                    for user in 1..3 {
                        let is_of = |connection: &&PeerConnection| connection.user == Some(UserId::from(user)) && connection.topics.contains(&topic);
                        let is_there = model.values().any(|connection| is_of(&connection));
                        prop_assert_eq!(peers.connections.is_connected(&topic, &UserId::from(user)), is_there);
                        if is_recent(Some(number), user, is_there) && !is_there {
                            leaving.insert(UserId::from(user));
                        }
                    }
                    prop_assert_eq!(peers.leaving(&topic, now).into_iter().collect::<BTreeSet<_>>(), leaving);
                    let expected = model.values().filter(|connection| connection.topics.contains(&topic)).count();
                    prop_assert_eq!(peers.count(&Address::Topic(topic)), expected);
                }
                prop_assert_eq!(peers.count(&Address::Everyone(ScopeName::ROOT)), model.len());
            }
            // After the end of all instances, the table is empty.
            (0..3).for_each(|instance| peers.goodbye(InstanceId(instance), now));
            peers.sweep(now + 10);
            prop_assert!(peers.connections.is_empty());
        }
    }
}
