//! The connections of other instances, as far as they have told. Pure: time is passed in.
//!
//! 1. An instance is known while its lease lasts; every message renews it. When it is over, so are its connections.
//! 2. Its news are numbered. After a number that is missing nothing of it is believed until it has told all again.
//! 3. What is asked for is indexed by user, by topic and by both, and the indexes change with the
//!    connections, in one step.
//! 4. Of an instance that has ended somebody else tells who has left with it: the lowest of its
//!    witnesses. A witness is one that surely heard who was connected there, since it was here for a
//!    while before the ended one was heard last. One that came later is none, however low: it may know
//!    of nobody. Whoever knew the ended one defers to a lower witness only, so the lowest witness
//!    always tells, and who knew it and sees no witness tells too: rather twice than not at all.
//! 5. A witness may end before it has told. So whoever defers does not forget before the witness must
//!    have told long ago.

use std::collections::hash_map::HashMap;
use std::collections::hash_set::HashSet;
use std::sync::Arc;

use super::message::{Here, InstanceId, News, Part};
use crate::hub::departures::Departures;
use crate::log::Millis;
use crate::types::{ConnectionId, Topic, UserId};

/// After how long what happens on one instance is known on the others, and an instance that is heard
/// has heard everything, generously.
pub(super) const SETTLE: Millis = 2_000;

/// A connection of another instance: its user and the data attached to it.
pub(in crate::hub) type Other = (Option<UserId>, Option<Arc<str>>);

#[derive(Debug, Default)]
pub(in crate::hub) struct Peers {
    instances: HashMap<InstanceId, Peer>,
    by_user: HashMap<UserId, Elsewhere>,
    by_topic: HashMap<Topic, Listeners>,
    /// Members of topics that have no connection elsewhere any more: since when, and on which instance the
    /// last one was.
    gone: HashMap<Topic, HashMap<UserId, (Millis, InstanceId)>>,
    /// When each of them left, and when each user lost its last connection elsewhere (no topic).
    departures: Departures<(Option<Topic>, UserId)>,
    /// Instances that have ended, for whose members somebody else has to speak.
    ended: Vec<Ended>,
    lease: Millis,
    /// This instance has heard itself since its connection was made, so it hears what is said from now on.
    hears_itself: bool,
    /// When this instance heard itself last.
    heard_at: Option<Millis>,
}

#[derive(Debug, Default)]
struct Peer {
    /// Of the last news; none before it has told all.
    number: Option<u64>,
    first_heard: Millis,
    last_heard: Millis,
    until: Millis,
    connections: HashMap<ConnectionId, Arc<Here>>,
    /// What it has not named yet of those that were known, while it tells all.
    unnamed: HashSet<ConnectionId>,
    /// When it may be asked for everything again, and how long the pause before was.
    ask_at: Millis,
    ask_pause: Millis,
}

/// An instance that was there.
#[derive(Debug)]
struct Ended {
    /// Who surely knows the same of it.
    witnesses: Vec<InstanceId>,
    /// Who was there, and since when that is over; the oldest last.
    members: Vec<(Millis, Topic, UserId)>,
}

/// A user on other instances.
#[derive(Debug, Default)]
struct Elsewhere {
    connections: HashMap<ConnectionId, Arc<Here>>,
    /// When the last of them has gone.
    left_at: Option<Millis>,
}

/// A topic on other instances.
#[derive(Debug, Default)]
struct Listeners {
    connections: HashMap<ConnectionId, Arc<Here>>,
    /// How many of them each user has.
    users: HashMap<UserId, usize>,
}

/// What hearing something calls for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::hub) enum Heard {
    Fine,
    /// Something of this instance is missing.
    Missing,
}

/// How long after a question to an instance the next may follow, at first. Each that does not help doubles it.
const ASK_AGAIN: Millis = 1_000;
/// And at most.
const ASK_AGAIN_AT_MOST: Millis = 300_000;

impl Peers {
    pub(in crate::hub) fn new(lease: Millis, grace: Millis) -> Self {
        Self { departures: Departures::new(grace), lease, ..Self::default() }
    }

    pub(in crate::hub) fn news(&mut self, from: InstanceId, news: News, now: Millis) -> Heard {
        let peer = self.heard(from, now);
        match news.all {
            Some(Part::First) => {
                peer.number = Some(news.number);
                peer.unnamed = peer.connections.keys().copied().collect();
            }
            Some(Part::More) if peer.number == Some(news.number) => {}
            None if peer.number.is_some_and(|number| number.checked_add(1) == Some(news.number)) => {
                peer.number = Some(news.number);
            }
            // What was told already.
            None if peer.number.is_some_and(|number| number >= news.number) => return Heard::Fine,
            Some(Part::More) | None => {
                peer.number = None;
                return Heard::Missing;
            }
        }
        if news.all.is_none() {
            self.has_told_all(from, now);
        }
        for here in news.here {
            if let Some(peer) = self.instances.get_mut(&from) {
                peer.unnamed.remove(&here.id);
            }
            self.insert(from, here, now);
        }
        for id in news.gone {
            self.remove(from, id, now);
        }
        Heard::Fine
    }

    pub(in crate::hub) fn lease(&mut self, from: InstanceId, number: u64, now: Millis) -> Heard {
        if self.heard(from, now).number != Some(number) {
            return Heard::Missing;
        }
        self.has_told_all(from, now);
        // Nothing was missing for long enough: the next question need not wait.
        if let Some(peer) = self.instances.get_mut(&from)
            && now > peer.ask_at.saturating_add(self.lease)
        {
            (peer.ask_at, peer.ask_pause) = (0, 0);
        }
        Heard::Fine
    }

    /// Whether an instance may be asked for everything now. An entry that this version cannot read is
    /// missing again after every answer, so the questions become rarer.
    pub(in crate::hub) fn may_ask(&mut self, from: InstanceId, now: Millis) -> bool {
        let peer = self.heard(from, now);
        if now < peer.ask_at {
            return false;
        }
        peer.ask_pause = (peer.ask_pause * 2).clamp(ASK_AGAIN, ASK_AGAIN_AT_MOST);
        peer.ask_at = now.saturating_add(peer.ask_pause);
        true
    }

    /// An instance is alive.
    fn heard(&mut self, from: InstanceId, now: Millis) -> &mut Peer {
        let peer = self.instances.entry(from).or_insert_with(|| Peer { first_heard: now, ..Peer::default() });
        peer.last_heard = now;
        peer.until = now.saturating_add(self.lease);
        peer
    }

    /// What it did not name is gone. Not before: a list of all comes in parts, and nobody is to seem gone in between.
    fn has_told_all(&mut self, from: InstanceId, now: Millis) {
        let Some(peer) = self.instances.get_mut(&from) else { return };
        let unnamed = std::mem::take(&mut peer.unnamed);
        unnamed.into_iter().for_each(|id| self.remove(from, id, now));
    }

    pub(in crate::hub) fn bye(&mut self, from: InstanceId, now: Millis) {
        if let Some(peer) = self.instances.get_mut(&from) {
            peer.last_heard = now;
        }
        self.end(from, now);
    }

    /// What was there is gone.
    fn end(&mut self, from: InstanceId, now: Millis) {
        let Some(peer) = self.instances.get(&from) else { return };
        let mut members = Vec::new();
        for here in peer.connections.values() {
            let Some(user) = &here.user else { continue };
            members.extend(here.topics.iter().map(|topic| (now, topic.clone(), user.clone())));
        }
        for (topic, users) in &self.gone {
            let recent = users.iter().filter(|(_, (since, at))| *at == from && !self.departures.is_over(*since, now));
            members.extend(recent.map(|(user, (since, _))| (*since, topic.clone(), user.clone())));
        }
        if !members.is_empty() {
            members.sort_unstable_by_key(|(since, ..)| std::cmp::Reverse(*since));
            let settled = |other: &Peer| other.first_heard.saturating_add(SETTLE) <= peer.last_heard;
            let witnesses = self.instances.iter().filter(|(id, other)| **id != from && settled(other));
            self.ended.push(Ended { witnesses: witnesses.map(|(id, _)| *id).collect(), members });
        }
        let ids: Vec<_> = peer.connections.keys().copied().collect();
        ids.into_iter().for_each(|id| self.remove(from, id, now));
        self.instances.remove(&from);
    }

    /// This instance has heard what it said itself. So it hears the others, and they hear it.
    pub(in crate::hub) fn heard_itself(&mut self, now: Millis) {
        (self.hears_itself, self.heard_at) = (true, Some(now));
    }

    pub(in crate::hub) fn hears_itself(&self) -> bool {
        self.hears_itself
    }

    /// Whether this instance has heard itself within a lease, so that the others do not count it as gone.
    pub(in crate::hub) fn is_heard(&self, now: Millis) -> bool {
        self.heard_at.is_some_and(|at| now.saturating_sub(at) <= self.lease)
    }

    /// The connection was made anew. While this instance could not hear, no lease could be renewed, so
    /// each begins again.
    pub(in crate::hub) fn reconnected(&mut self, now: Millis) {
        self.hears_itself = false;
        let until = now.saturating_add(self.lease);
        self.instances.values_mut().for_each(|peer| peer.until = until);
    }

    /// Forgets instances whose lease is over, and users who have stayed away.
    pub(in crate::hub) fn sweep(&mut self, now: Millis) {
        let over: Vec<_> = self.instances.iter().filter(|(_, peer)| peer.until <= now).map(|(id, _)| *id).collect();
        over.into_iter().for_each(|id| self.end(id, now));
        while let Some((since, (topic, user))) = self.departures.pop_due(now) {
            // It may have been back meanwhile, and have left again.
            match topic {
                Some(topic) if self.gone_from(&topic, &user).is_some_and(|(at, _)| at == since) => {
                    self.no_longer_gone(&topic, &user);
                }
                None if self.by_user.get(&user).is_some_and(|user| user.left_at == Some(since)) => {
                    self.by_user.remove(&user);
                }
                _ => {}
            }
        }
    }

    /// Whether a user is a member of a topic elsewhere, or was less than the grace ago.
    pub(in crate::hub) fn is_member(&self, topic: &Topic, user: &UserId, now: Millis) -> bool {
        self.is_connected(topic, user) || self.left(topic, user, now).is_some()
    }

    /// Whether another instance, and not this one, tells of a member that has left here.
    pub(in crate::hub) fn speaks_for(&self, topic: &Topic, user: &UserId, me: InstanceId, now: Millis) -> bool {
        let left = self.left(topic, user, now);
        // Of two that ended at the same time the lower one tells; both may, but never neither.
        self.is_connected(topic, user) || left.is_some_and(|at| at < me && self.instances.contains_key(&at))
    }

    fn is_connected(&self, topic: &Topic, user: &UserId) -> bool {
        self.by_topic.get(topic).is_some_and(|listeners| listeners.users.contains_key(user))
    }

    /// The instance that a member elsewhere has left a topic on less than the grace ago.
    fn left(&self, topic: &Topic, user: &UserId, now: Millis) -> Option<InstanceId> {
        self.gone_from(topic, user).filter(|(since, _)| !self.departures.is_over(*since, now)).map(|(_, at)| at)
    }

    fn gone_from(&self, topic: &Topic, user: &UserId) -> Option<(Millis, InstanceId)> {
        self.gone.get(topic)?.get(user).copied()
    }

    /// Members elsewhere who have left a topic less than the grace ago.
    pub(in crate::hub) fn leaving(&self, topic: &Topic, now: Millis) -> impl Iterator<Item = &UserId> {
        let users = self.gone.get(topic).into_iter().flatten();
        users.filter(move |(_, (since, _))| !self.departures.is_over(*since, now)).map(|(user, _)| user)
    }

    /// Members of ended instances whose grace is over and who are nowhere else, if it is for this instance
    /// to tell of them.
    pub(in crate::hub) fn take_orphans(&mut self, me: InstanceId, now: Millis) -> Vec<(Topic, UserId)> {
        let mut orphans = Vec::new();
        let mut ended = std::mem::take(&mut self.ended);
        ended.retain_mut(|Ended { witnesses, members }| {
            let defers = witnesses.iter().any(|witness| *witness < me && self.instances.contains_key(witness));
            // A witness may learn of the end a lease later than this one, and it takes another to know that it
            // ended itself.
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

    /// The connections of a user elsewhere.
    pub(in crate::hub) fn of_user(&self, user: &UserId) -> impl Iterator<Item = &Arc<Here>> {
        self.by_user.get(user).into_iter().flat_map(|user| user.connections.values())
    }

    pub(in crate::hub) fn is_online(&self, user: &UserId, now: Millis) -> bool {
        let is_recent = |since| !self.departures.is_over(since, now);
        self.by_user.get(user).is_some_and(|user| user.left_at.is_none_or(is_recent))
    }

    pub(in crate::hub) fn in_topic(&self, topic: &Topic) -> impl Iterator<Item = &Arc<Here>> {
        self.by_topic.get(topic).into_iter().flat_map(|listeners| listeners.connections.values())
    }

    pub(in crate::hub) fn all(&self) -> impl Iterator<Item = &Arc<Here>> {
        self.instances.values().flat_map(|peer| peer.connections.values())
    }

    pub(in crate::hub) fn find(&self, id: ConnectionId) -> Option<&Arc<Here>> {
        self.instances.values().find_map(|peer| peer.connections.get(&id))
    }

    pub(in crate::hub) fn len(&self) -> usize {
        self.instances.len()
    }

    fn insert(&mut self, from: InstanceId, here: Here, now: Millis) {
        let known = self.instances.get(&from).and_then(|peer| peer.connections.get(&here.id)).cloned();
        match known {
            Some(known) if *known == here => return,
            // Only the topics that it has left: taking the others out and in again would queue a departure of each.
            Some(known) if known.user == here.user => {
                let kept: HashSet<&Topic> = here.topics.iter().collect();
                let left = known.topics.iter().filter(|topic| !kept.contains(topic));
                left.for_each(|topic| self.leave(from, &known, topic, now));
            }
            Some(_) => self.remove(from, here.id, now),
            None => {}
        }
        let here = Arc::new(here);
        if let Some(user) = &here.user {
            let elsewhere = self.by_user.entry(user.clone()).or_default();
            elsewhere.connections.insert(here.id, Arc::clone(&here));
            elsewhere.left_at = None;
        }
        for topic in &here.topics {
            let listeners = self.by_topic.entry(topic.clone()).or_default();
            let is_new = listeners.connections.insert(here.id, Arc::clone(&here)).is_none();
            if let Some(user) = here.user.as_ref().filter(|_| is_new) {
                *listeners.users.entry(user.clone()).or_default() += 1;
                self.no_longer_gone(topic, user);
            }
        }
        if let Some(peer) = self.instances.get_mut(&from) {
            peer.connections.insert(here.id, here);
        }
    }

    fn no_longer_gone(&mut self, topic: &Topic, user: &UserId) {
        if let Some(users) = self.gone.get_mut(topic) {
            users.remove(user);
            if users.is_empty() {
                self.gone.remove(topic);
            }
        }
    }

    fn remove(&mut self, from: InstanceId, id: ConnectionId, now: Millis) {
        let Some(here) = self.instances.get_mut(&from).and_then(|peer| peer.connections.remove(&id)) else { return };
        if let Some(user) = &here.user
            && let Some(elsewhere) = self.by_user.get_mut(user)
        {
            elsewhere.connections.remove(&id);
            if elsewhere.connections.is_empty() {
                elsewhere.left_at = Some(now);
                self.departures.push(now, (None, user.clone()));
            }
        }
        here.topics.iter().for_each(|topic| self.leave(from, &here, topic, now));
    }

    /// A connection has left one of its topics.
    fn leave(&mut self, from: InstanceId, here: &Here, topic: &Topic, now: Millis) {
        let Some(listeners) = self.by_topic.get_mut(topic) else { return };
        let was_there = listeners.connections.remove(&here.id).is_some();
        let user = here.user.as_ref().filter(|_| was_there);
        let has_left = user.filter(|user| listeners.removes_last_of(user));
        if listeners.connections.is_empty() {
            self.by_topic.remove(topic);
        }
        if let Some(user) = has_left {
            self.gone.entry(topic.clone()).or_default().insert(user.clone(), (now, from));
            self.departures.push(now, (Some(topic.clone()), user.clone()));
        }
    }
}

impl Listeners {
    /// A connection of a user is gone; whether it was the last one.
    fn removes_last_of(&mut self, user: &UserId) -> bool {
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

    fn here(id: u128, user: usize, topics: &[usize]) -> Here {
        Here {
            id: ConnectionId::from_bits(id),
            user: (user > 0).then(|| UserId::from(user)),
            data: None,
            topics: topics.iter().map(|topic| Topic::from(*topic)).collect(),
        }
    }

    fn news(number: u64, here: Vec<Here>) -> News {
        News { number, here, ..News::default() }
    }

    #[test]
    fn what_is_missing_is_noticed_and_told_again() {
        let (mut peers, one) = (Peers::new(100, 10), InstanceId(1));
        assert_eq!(peers.news(one, news(5, vec![here(1, 1, &[])]), 0), Heard::Missing);
        assert_eq!(peers.of_user(&UserId::from(1)).count(), 0, "nothing is believed before it has told all");
        let all = News { all: Some(Part::First), ..news(5, vec![here(1, 1, &[])]) };
        assert_eq!(peers.news(one, all, 0), Heard::Fine);
        assert_eq!(peers.news(one, News { all: Some(Part::More), ..news(5, vec![here(2, 1, &[7])]) }, 0), Heard::Fine);
        assert_eq!(peers.news(one, news(6, vec![here(3, 1, &[])]), 0), Heard::Fine);
        assert_eq!(peers.news(one, news(6, vec![here(9, 1, &[])]), 0), Heard::Fine, "told already");
        assert_eq!((peers.of_user(&UserId::from(1)).count(), peers.in_topic(&Topic::from(7)).count()), (3, 1));
        assert_eq!(peers.lease(one, 6, 0), Heard::Fine);
        assert_eq!(peers.lease(one, 7, 0), Heard::Missing);
        assert_eq!(peers.news(one, news(8, vec![]), 0), Heard::Missing);
    }

    #[test]
    fn while_all_is_told_in_parts_nobody_seems_gone() {
        let (mut peers, one) = (Peers::new(100, 10), InstanceId(1));
        let all =
            |part, ids: &[u128]| News { all: Some(part), ..news(3, ids.iter().map(|id| here(*id, 1, &[7])).collect()) };
        peers.news(one, all(Part::First, &[1, 2, 3]), 0);
        peers.lease(one, 3, 0);
        peers.news(one, all(Part::First, &[1]), 1);
        assert_eq!(peers.in_topic(&Topic::from(7)).count(), 3);
        peers.news(one, all(Part::More, &[2, 4]), 2);
        assert_eq!(peers.in_topic(&Topic::from(7)).count(), 4);
        peers.lease(one, 3, 3);
        assert_eq!(peers.in_topic(&Topic::from(7)).count(), 3, "the third was not named");
        assert!(peers.find(ConnectionId::from_bits(3)).is_none() && peers.gone.is_empty());
    }

    #[test]
    fn an_instance_that_dies_is_gone_after_its_lease_and_one_that_is_slow_is_not() {
        let (mut peers, dies, slow) = (Peers::new(100, 10), InstanceId(1), InstanceId(2));
        for (instance, id) in [(dies, 1), (slow, 2)] {
            peers.news(instance, News { all: Some(Part::First), ..news(0, vec![here(id, id as usize, &[])]) }, 0);
        }
        peers.lease(slow, 0, 99);
        peers.sweep(100);
        assert_eq!((peers.of_user(&UserId::from(1)).count(), peers.of_user(&UserId::from(2)).count()), (0, 1));
        assert!(peers.is_online(&UserId::from(1), 109) && !peers.is_online(&UserId::from(1), 110));
        peers.sweep(110);
        peers.bye(slow, 120);
        peers.sweep(130);
        assert!(peers.by_user.is_empty() && peers.by_topic.is_empty() && peers.gone.is_empty() && peers.len() == 0);
    }

    #[test]
    fn one_of_those_who_are_left_speaks_for_an_instance_that_ended() {
        let (topic, user) = (Topic::from(7), UserId::from(1));
        let (mut peers, dies, lives) = (Peers::new(100, 10), InstanceId(5), InstanceId(6));
        for (instance, id) in [(dies, 1), (lives, 2)] {
            peers.news(instance, News { all: Some(Part::First), ..news(0, vec![here(id, 1, &[7])]) }, 0);
        }
        peers.bye(dies, 50);
        assert!(peers.take_orphans(InstanceId(1), 60).is_empty(), "there is another connection");
        peers.news(lives, News { gone: vec![ConnectionId::from_bits(2)], ..news(1, vec![]) }, 70);
        assert!(peers.is_member(&topic, &user, 79) && !peers.is_member(&topic, &user, 80));
        assert!(
            peers.speaks_for(&topic, &user, InstanceId(9), 75) && !peers.speaks_for(&topic, &user, InstanceId(1), 75)
        );
        peers.bye(lives, 75);
        assert!(peers.take_orphans(InstanceId(1), 79).is_empty());
        assert_eq!(peers.take_orphans(InstanceId(1), 80), [(topic, user)]);
    }

    /// What one instance sees: a dying one with a member, and others that it heard first at some time.
    fn witness(others: &[(InstanceId, Millis)], dies: InstanceId, last_heard: Millis) -> Peers {
        let mut peers = Peers::new(15_000, 10_000);
        let all = |id, topics| News { all: Some(Part::First), ..news(0, vec![here(id, 1, topics)]) };
        peers.news(dies, all(1, &[7]), 0);
        for (other, first_heard) in others {
            peers.news(*other, all(100 + u128::from(other.0), &[]), *first_heard);
        }
        peers.lease(dies, 0, last_heard);
        peers
    }

    /// Keeps the others alive; who speaks, when it is time.
    fn spoken_at(peers: &mut Peers, me: u64, others: &[InstanceId], until: Millis) -> Option<Millis> {
        (0..until).step_by(500).find(|now| {
            for other in others {
                peers.lease(*other, 0, *now);
            }
            peers.sweep(*now);
            !peers.take_orphans(InstanceId(me), *now).is_empty()
        })
    }

    #[test]
    fn a_lower_instance_that_came_too_late_to_know_silences_nobody() {
        let (late, low, dies, high) = (InstanceId(1), InstanceId(2), InstanceId(5), InstanceId(9));
        // The low one and the high one have known each other and the dying one for long. The late one came after it was
        // heard last, long before its lease was over; or so shortly before that it may not have been told anything.
        for (last_heard, came) in [(20_000, 25_000), (20_000, 19_000)] {
            let mut of_low = witness(&[(high, 0), (late, came)], dies, last_heard);
            let mut of_high = witness(&[(low, 0), (late, came)], dies, last_heard);
            let told_at = spoken_at(&mut of_low, 2, &[high, late], 100_000);
            assert_eq!(told_at, Some(last_heard + 25_000), "after the lease and the grace");
            assert_eq!(spoken_at(&mut of_high, 9, &[low, late], 100_000), None);
            assert!(of_high.ended.is_empty(), "it does not wait for ever");
            // What the late one was told before the end it tells too: it cannot know who else was.
            let mut of_late = witness(&[(low, came), (high, came)], dies, last_heard);
            assert!(spoken_at(&mut of_late, 1, &[low, high], 100_000).is_some());
        }
        // One that is lower and has been there for a while knows, and tells.
        let mut of_low = witness(&[(high, 0), (late, 3_000)], dies, 20_000);
        assert_eq!(spoken_at(&mut of_low, 2, &[high, late], 100_000), None);
    }

    #[test]
    fn the_next_one_speaks_where_the_one_that_should_ended_as_well() {
        let (low, dies) = (InstanceId(2), InstanceId(5));
        let mut of_high = witness(&[(low, 0)], dies, 20_000);
        // The low one fell silent with it.
        of_high.lease(low, 0, 20_100);
        assert!(spoken_at(&mut of_high, 9, &[], 100_000).is_some());
        // Or later, but before the grace was over.
        let mut of_high = witness(&[(low, 0)], dies, 20_000);
        assert_eq!(spoken_at(&mut of_high, 9, &[low], 44_000), None);
        assert!(spoken_at(&mut of_high, 9, &[], 100_000).is_some());
        // Who has come back meanwhile, elsewhere, has not left.
        let mut of_high = witness(&[(low, 0)], dies, 20_000);
        assert_eq!(spoken_at(&mut of_high, 9, &[low], 44_000), None);
        let other = InstanceId(7);
        of_high.news(other, News { all: Some(Part::First), ..news(0, vec![here(50, 1, &[7])]) }, 44_000);
        assert_eq!(spoken_at(&mut of_high, 9, &[other], 200_000), None);
    }

    /// An instance with a busy topic says goodbye: what that costs grows with its connections, not with their square.
    #[test]
    fn many_who_leave_a_topic_together_are_not_looked_through_for_each() {
        let (mut peers, one) = (Peers::new(100, 10), InstanceId(1));
        let here = (1..=30_000).map(|id| here(id as u128, id, &[7])).collect();
        peers.news(one, News { all: Some(Part::First), ..news(0, here) }, 0);
        let begun = std::time::Instant::now();
        peers.bye(one, 0);
        assert!(begun.elapsed() < std::time::Duration::from_secs(4), "{:?}", begun.elapsed());
        assert_eq!(peers.leaving(&Topic::from(7), 0).count(), 30_000);
    }

    #[test]
    fn a_list_of_all_that_changes_nothing_is_no_departure() {
        let (mut peers, one) = (Peers::new(100, 10), InstanceId(1));
        for _ in 0..2 {
            peers.news(one, News { all: Some(Part::First), ..news(0, vec![here(1, 1, &[7])]) }, 0);
        }
        assert_eq!(peers.departures.next_due(), None);
    }

    #[test]
    fn a_change_of_topics_is_a_departure_from_those_only_that_were_left() {
        let (mut peers, one) = (Peers::new(100, 10), InstanceId(1));
        peers.news(one, News { all: Some(Part::First), ..news(0, vec![here(1, 1, &[6, 7])]) }, 0);
        peers.news(one, news(1, vec![here(1, 1, &[7, 8])]), 0);
        assert_eq!(peers.departures.pop_due(10), Some((0, (Some(Topic::from(6)), UserId::from(1)))));
        assert_eq!(peers.departures.next_due(), None);
    }

    proptest! {
        /// The indexes say what the connections say, and a departure is known for the grace.
        #[test]
        fn the_indexes_are_true(
            steps in proptest::collection::vec(
                (0..3u64, 0..6u128, 0..3usize, proptest::collection::vec(0..4usize, 0..3), 0..11u8), 0..120
            )
        ) {
            let mut peers = Peers::new(1_000, 10);
            let mut there: BTreeMap<(u64, u128), Here> = BTreeMap::new();
            // When each member of a topic, and each user, left; none while it is there.
            let mut left_at: BTreeMap<(Option<usize>, usize), Option<Millis>> = BTreeMap::new();
            let (mut numbers, mut now) = ([0; 3], 0);
            for instance in 0..3 {
                peers.news(InstanceId(instance), News { all: Some(Part::First), ..News::default() }, 0);
            }
            for (instance, id, user, topics, what) in steps {
                numbers[instance as usize] += 1;
                if what > 8 {
                    now += id as Millis;
                    peers.sweep(now);
                }
                // Each instance has connections of its own.
                let id = id + 100 * u128::from(instance);
                let mut news = News { number: numbers[instance as usize], ..News::default() };
                match what {
                    0 => {
                        peers.bye(InstanceId(instance), now);
                        there.retain(|(of, _), _| *of != instance);
                        news.all = Some(Part::First);
                    }
                    1..5 => {
                        news.gone.push(ConnectionId::from_bits(id));
                        there.remove(&(instance, id));
                    }
                    _ => {
                        news.here.push(here(id, user, &topics));
                        there.insert((instance, id), here(id, user, &topics));
                    }
                }
                prop_assert_eq!(peers.news(InstanceId(instance), news, now), Heard::Fine);
                let mut is_recent = |topic: Option<usize>, user: usize, is_there: bool| {
                    if is_there {
                        left_at.insert((topic, user), None);
                    }
                    let left_at = left_at.get_mut(&(topic, user));
                    left_at.is_some_and(|at| is_there || *at.get_or_insert(now) + 10 > now)
                };
                for number in 1..3 {
                    let user = UserId::from(number);
                    let expected = there.values().filter(|here| here.user.as_ref() == Some(&user)).count();
                    prop_assert_eq!(peers.of_user(&user).count(), expected);
                    prop_assert_eq!(peers.is_online(&user, now), is_recent(None, number, expected > 0));
                }
                for number in 0..4 {
                    let topic = Topic::from(number);
                    let mut leaving = BTreeSet::new();
                    for user in 1..3 {
                        let is_of = |here: &&Here| here.user == Some(UserId::from(user)) && here.topics.contains(&topic);
                        let is_there = there.values().any(|here| is_of(&here));
                        prop_assert_eq!(peers.is_connected(&topic, &UserId::from(user)), is_there);
                        if is_recent(Some(number), user, is_there) && !is_there {
                            leaving.insert(UserId::from(user));
                        }
                    }
                    prop_assert_eq!(peers.leaving(&topic, now).cloned().collect::<BTreeSet<_>>(), leaving);
                    let expected = there.values().filter(|here| here.topics.contains(&topic)).count();
                    prop_assert_eq!(peers.in_topic(&topic).count(), expected);
                }
                prop_assert_eq!(peers.all().count(), there.len());
            }
            // Nothing is left behind.
            (0..3).for_each(|instance| peers.bye(InstanceId(instance), now));
            peers.sweep(now + 10);
            prop_assert!(peers.by_user.is_empty() && peers.by_topic.is_empty() && peers.gone.is_empty());
            prop_assert!(peers.departures.next_due().is_none());
        }
    }
}
