//! The members of topics with presence events. This code does no I/O, and callers pass the time.
//!
//! 1. All connections of a user with the same topic are one member.
//! 2. A member that returns within the grace period has not left. So [`Roster::enter`] reports only
//!    new members, for `hub.joined`, and [`Roster::sweep`] reports only members whose grace period
//!    is over, for `hub.left`.

use std::collections::hash_map::{Entry, HashMap};
use std::sync::Arc;

use crate::hub::departures::Departures;
use crate::log::Millis;
use crate::macros::shrink_if_sparse;
use crate::sync::Mutex;
use crate::types::{Topic, TopicFilter, UserId};

/// The topics with presence events, and their members.
#[derive(Debug)]
pub(in crate::hub) struct Presences {
    /// The filters of the topics with presence events.
    pub(in crate::hub) rules: Vec<TopicFilter>,
    /// The roster. Its lock is taken before the locks of the log and the registry, and never after
    /// them. No connection is woken under it.
    pub(in crate::hub) roster: Mutex<Roster>,
}

impl Presences {
    pub(in crate::hub) fn new(rules: Vec<TopicFilter>, grace: Millis) -> Self {
        Self { rules, roster: Mutex::new(Roster::new(grace)) }
    }

    /// Returns whether a topic has presence events.
    pub(in crate::hub) fn has_presence_events(&self, topic: &Topic) -> bool {
        self.rules.iter().any(|rule| rule.matches(topic))
    }

    /// Returns the time at which the next grace period of a member is over.
    pub(in crate::hub) fn next_due(&self) -> Option<Millis> {
        if self.rules.is_empty() { None } else { self.roster.lock().next_due() }
    }
}

/// The members of each topic.
#[derive(Debug)]
pub(in crate::hub) struct Roster {
    /// The members, by topic and by user. A key that joins both names could be ambiguous.
    members: HashMap<Topic, HashMap<UserId, Member>>,
    /// The members without a connection, until their grace period is over.
    leaving: Departures<(Topic, UserId)>,
}

/// A user who has connections with a topic, or had them within the grace period.
#[derive(Clone, Debug)]
pub(in crate::hub) struct Member {
    pub(in crate::hub) connections: usize,
    /// The data of the connection that entered the topic last.
    pub(in crate::hub) data: Option<Arc<str>>,
    /// The time since which the member has no connection. `None` while it has connections.
    idle_since: Option<Millis>,
}

impl Roster {
    pub(in crate::hub) fn new(grace: Millis) -> Self {
        Self { members: HashMap::new(), leaving: Departures::new(grace) }
    }

    /// Adds a connection of a user to a topic. Returns whether the user is a new member.
    pub(in crate::hub) fn enter(&mut self, topic: &Topic, user: &UserId, data: Option<&Arc<str>>) -> bool {
        let members = self.members.entry(topic.clone()).or_default();
        match members.entry(user.clone()) {
            Entry::Occupied(mut entry) => {
                let member = entry.get_mut();
                member.connections += 1;
                member.idle_since = None;
                member.data = data.cloned();
                false
            }
            Entry::Vacant(entry) => {
                entry.insert(Member { connections: 1, data: data.cloned(), idle_since: None });
                true
            }
        }
    }

    /// Removes a connection of a user from a topic. After the last connection, the member stays
    /// until [`sweep`](Self::sweep) removes it.
    pub(in crate::hub) fn exit(&mut self, topic: &Topic, user: &UserId, now: Millis) {
        let Some(member) = self.members.get_mut(topic).and_then(|members| members.get_mut(user)) else { return };
        member.connections = member.connections.saturating_sub(1);
        if member.connections == 0 {
            member.idle_since = Some(now);
            self.leaving.push(now, (topic.clone(), user.clone()));
        }
    }

    /// Returns the time at which the next [`sweep`](Self::sweep) is due.
    pub(in crate::hub) fn next_due(&self) -> Option<Millis> {
        self.leaving.next_due()
    }

    /// Removes and returns one member whose grace period is over.
    pub(in crate::hub) fn sweep(&mut self, now: Millis) -> Option<(Topic, UserId)> {
        while let Some((since, (topic, user))) = self.leaving.pop_due(now) {
            let Some(members) = self.members.get_mut(&topic) else { continue };
            // The member may have returned and left again meanwhile. Then a later entry is in the
            // queue.
            if members.get(&user).is_none_or(|member| member.idle_since != Some(since)) {
                continue;
            }
            members.remove(&user);
            if members.is_empty() {
                self.members.remove(&topic);
            }
            shrink_if_sparse!(self.members);
            return Some((topic, user));
        }
        None
    }

    /// Returns the members of a topic, including those within their grace period.
    pub(in crate::hub) fn members(&self, topic: &Topic) -> impl Iterator<Item = (&UserId, &Member)> {
        self.members.get(topic).into_iter().flatten()
    }

    /// Returns the members of all topics, each with the number of connections.
    #[cfg(feature = "test-kit")]
    pub(in crate::hub) fn all(&self) -> impl Iterator<Item = (&Topic, &UserId, usize)> {
        self.members
            .iter()
            .flat_map(|(topic, members)| members.iter().map(move |(user, member)| (topic, user, member.connections)))
    }

    #[cfg(test)]
    fn is_empty(&self) -> bool {
        self.members.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::{BTreeMap, BTreeSet};

    const GRACE: Millis = 10;

    fn topic(index: usize) -> Topic {
        Topic::try_from(["a", "a:b", "b"][index]).unwrap()
    }

    fn user(index: usize) -> UserId {
        // Some names equal a topic, and some pairs with a topic would be ambiguous in a joined
        // string.
        UserId::try_from(["b", "b:a", "a"][index]).unwrap()
    }

    #[derive(Clone, Debug)]
    enum Step {
        Enter(usize, usize),
        Exit(usize, usize),
        Wait(Millis),
    }

    proptest! {
        /// Compares the roster with a model that has, for each pair, the number of connections and
        /// the time of the last exit.
        #[test]
        fn roster_reports_new_members_and_members_whose_grace_period_is_over(
            steps in proptest::collection::vec(
                prop_oneof![
                    (0..3usize, 0..3usize).prop_map(|(topic, user)| Step::Enter(topic, user)),
                    (0..3usize, 0..3usize).prop_map(|(topic, user)| Step::Exit(topic, user)),
                    (0..15u64).prop_map(Step::Wait),
                ],
                0..200,
            )
        ) {
            let mut roster = Roster::new(GRACE);
            let mut now = 0;
            let mut model: BTreeMap<(usize, usize), (usize, Millis)> = BTreeMap::new();
            for step in steps {
                match step {
                    Step::Enter(t, u) => {
                        let is_new = roster.enter(&topic(t), &user(u), None);
                        prop_assert_eq!(is_new, !model.contains_key(&(t, u)));
                        model.entry((t, u)).or_default().0 += 1;
                    }
                    Step::Exit(t, u) => {
                        if let Some((connections @ 1.., since)) = model.get_mut(&(t, u)) {
                            *connections -= 1;
                            *since = now;
                            roster.exit(&topic(t), &user(u), now);
                        }
                    }
                    Step::Wait(millis) => {
                        now += millis;
                        let mut swept = BTreeSet::new();
                        while let Some(member) = roster.sweep(now) {
                            prop_assert!(swept.insert(member));
                        }
                        let over: Vec<_> = model
                            .iter()
                            .filter(|(_, (connections, since))| *connections == 0 && since + GRACE <= now)
                            .map(|(pair, _)| *pair)
                            .collect();
                        prop_assert_eq!(swept, over.iter().map(|&(t, u)| (topic(t), user(u))).collect());
                        model.retain(|pair, _| !over.contains(pair));
                    }
                }
                for t in 0..3 {
                    let members: BTreeMap<_, _> =
                        roster.members(&topic(t)).map(|(user, member)| (user.clone(), member.connections)).collect();
                    let expected = model.iter().filter(|((topic, _), _)| *topic == t);
                    prop_assert_eq!(members, expected.map(|((_, u), (connections, _))| (user(*u), *connections)).collect());
                }
            }
            now += GRACE;
            model.iter().for_each(|((t, u), (connections, _))| {
                (0..*connections).for_each(|_| roster.exit(&topic(*t), &user(*u), now));
            });
            while roster.sweep(now + GRACE).is_some() {}
            prop_assert!(roster.is_empty() && roster.next_due().is_none());
        }
    }
}
