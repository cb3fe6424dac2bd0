//! Who is in which topic, for topics that tell of it. Pure: time is passed in.
//!
//! The connections of a user in a topic are one member. A member that is back within the grace was never gone: what
//! [`Roster::enter`] and [`Roster::sweep`] return is what others are to be told, no more.

use std::collections::hash_map::{Entry, HashMap};
use std::sync::Arc;

use crate::hub::departures::Departures;
use crate::log::Millis;
use crate::macros::give_memory_back;
use crate::sync::Mutex;
use crate::types::{Topic, TopicFilter, UserId};

/// Topics that tell who comes and goes.
#[derive(Debug)]
pub(in crate::hub) struct Presences {
    pub(in crate::hub) rules: Vec<TopicFilter>,
    pub(in crate::hub) roster: Mutex<Roster>,
}

impl Presences {
    pub(in crate::hub) fn new(rules: Vec<TopicFilter>, grace: Millis) -> Self {
        Self { rules, roster: Mutex::new(Roster::new(grace)) }
    }

    pub(in crate::hub) fn tells(&self, topic: &Topic) -> bool {
        self.rules.iter().any(|rule| rule.matches(topic))
    }

    /// When a member is to be told of as gone.
    pub(in crate::hub) fn next_due(&self) -> Option<Millis> {
        if self.rules.is_empty() { None } else { self.roster.lock().next_due() }
    }
}

#[derive(Debug)]
pub(in crate::hub) struct Roster {
    /// Keyed by the pair, never by a joined string.
    members: HashMap<Topic, HashMap<UserId, Member>>,
    /// Members without a connection.
    leaving: Departures<(Topic, UserId)>,
}

#[derive(Clone, Debug)]
pub(in crate::hub) struct Member {
    pub(in crate::hub) connections: usize,
    /// Of the newest connection.
    pub(in crate::hub) data: Option<Arc<str>>,
    gone_since: Option<Millis>,
}

impl Roster {
    pub(in crate::hub) fn new(grace: Millis) -> Self {
        Self { members: HashMap::new(), leaving: Departures::new(grace) }
    }

    /// A connection of a user has got a topic. Returns whether the user was not there before.
    pub(in crate::hub) fn enter(&mut self, topic: &Topic, user: &UserId, data: Option<&Arc<str>>) -> bool {
        let members = self.members.entry(topic.clone()).or_default();
        match members.entry(user.clone()) {
            Entry::Occupied(mut entry) => {
                let member = entry.get_mut();
                member.connections += 1;
                member.gone_since = None;
                member.data = data.cloned();
                false
            }
            Entry::Vacant(entry) => {
                entry.insert(Member { connections: 1, data: data.cloned(), gone_since: None });
                true
            }
        }
    }

    /// A connection of a user has a topic no more.
    pub(in crate::hub) fn exit(&mut self, topic: &Topic, user: &UserId, now: Millis) {
        let Some(member) = self.members.get_mut(topic).and_then(|members| members.get_mut(user)) else { return };
        member.connections = member.connections.saturating_sub(1);
        if member.connections == 0 {
            member.gone_since = Some(now);
            self.leaving.push(now, (topic.clone(), user.clone()));
        }
    }

    /// When a [`sweep`](Self::sweep) has something to do.
    pub(in crate::hub) fn next_due(&self) -> Option<Millis> {
        self.leaving.next_due()
    }

    /// Takes out one member that has not come back within the grace.
    pub(in crate::hub) fn sweep(&mut self, now: Millis) -> Option<(Topic, UserId)> {
        while let Some((since, (topic, user))) = self.leaving.pop_due(now) {
            let Some(members) = self.members.get_mut(&topic) else { continue };
            // It may have been back meanwhile, and have left again.
            if members.get(&user).is_none_or(|member| member.gone_since != Some(since)) {
                continue;
            }
            members.remove(&user);
            if members.is_empty() {
                self.members.remove(&topic);
            }
            give_memory_back!(self.members);
            return Some((topic, user));
        }
        None
    }

    pub(in crate::hub) fn members(&self, topic: &Topic) -> impl Iterator<Item = (&UserId, &Member)> {
        self.members.get(topic).into_iter().flatten()
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
        // With a topic of the same name beside it, and one that a separator would confuse.
        UserId::try_from(["b", "b:a", "a"][index]).unwrap()
    }

    #[derive(Clone, Debug)]
    enum Step {
        Enter(usize, usize),
        Exit(usize, usize),
        Wait(Millis),
    }

    proptest! {
        /// Against a reference that knows, for each pair, how many connections there are and since when there are none.
        #[test]
        fn who_is_told_of_is_who_came_and_who_stayed_away(
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
            let mut there: BTreeMap<(usize, usize), (usize, Millis)> = BTreeMap::new();
            for step in steps {
                match step {
                    Step::Enter(t, u) => {
                        let is_new = roster.enter(&topic(t), &user(u), None);
                        prop_assert_eq!(is_new, !there.contains_key(&(t, u)));
                        there.entry((t, u)).or_default().0 += 1;
                    }
                    Step::Exit(t, u) => {
                        if let Some((connections @ 1.., since)) = there.get_mut(&(t, u)) {
                            *connections -= 1;
                            *since = now;
                            roster.exit(&topic(t), &user(u), now);
                        }
                    }
                    Step::Wait(millis) => {
                        now += millis;
                        let mut told = BTreeSet::new();
                        while let Some(gone) = roster.sweep(now) {
                            prop_assert!(told.insert(gone));
                        }
                        let gone: Vec<_> = there
                            .iter()
                            .filter(|(_, (connections, since))| *connections == 0 && since + GRACE <= now)
                            .map(|(pair, _)| *pair)
                            .collect();
                        prop_assert_eq!(told, gone.iter().map(|&(t, u)| (topic(t), user(u))).collect());
                        there.retain(|pair, _| !gone.contains(pair));
                    }
                }
                for t in 0..3 {
                    let members: BTreeMap<_, _> =
                        roster.members(&topic(t)).map(|(user, member)| (user.clone(), member.connections)).collect();
                    let expected = there.iter().filter(|((topic, _), _)| *topic == t);
                    prop_assert_eq!(members, expected.map(|((_, u), (connections, _))| (user(*u), *connections)).collect());
                }
            }
            now += GRACE;
            there.iter().for_each(|((t, u), (connections, _))| {
                (0..*connections).for_each(|_| roster.exit(&topic(*t), &user(*u), now));
            });
            while roster.sweep(now + GRACE).is_some() {}
            prop_assert!(roster.is_empty() && roster.next_due().is_none());
        }
    }
}
