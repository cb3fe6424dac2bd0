//! What a page does to its own connection: it changes its topics.

use std::collections::hash_set::HashSet;
use std::sync::Arc;

use tokio::time::{Duration, Instant};

use super::Hub;
use crate::hub::connection::handle::ConnectionHandle;
use crate::log::TooManyTopics;
use crate::types::{Action, Address, Change, ConnectionId, DisconnectClock, Refusal, Topic, UserId, each_once};

/// How long a connection is looked for that another instance may not have told of yet.
const PATIENCE: Duration = Duration::from_millis(500);
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// How long the names of a change may be that is told to another instance, as they stand in the
/// message: what brokers take is bounded, and half a change is none. A request of 64 KiB hardly has more.
const MOST_BYTES: usize = 64 * 1024;
/// How long an id is in a message, with its quotes and brackets.
const MOST_ID_BYTES: usize = 68;

/// A connection whose page may change what it has.
pub(crate) struct Changeable<'a> {
    hub: &'a Hub,
    id: ConnectionId,
    place: Place,
}

enum Place {
    Here(Arc<ConnectionHandle>),
    /// On another instance, with these topics.
    Elsewhere(Vec<Topic>),
}

impl Hub {
    /// A connection on any instance, if it is this user's, or anonymous where there is no user.
    pub(crate) async fn connection_of(&self, id: ConnectionId, user: Option<&UserId>) -> Option<Changeable<'_>> {
        let place = self.look_for(|| self.place_of(id, user)).await?;
        Some(Changeable { hub: self, id, place })
    }

    /// Whether a connection of any user may have this id. False at once without other instances, which may
    /// have one that this instance does not know yet.
    pub(crate) fn may_have_connection(&self, id: ConnectionId) -> bool {
        self.inner.shared_log.is_some() || self.registry().find(id).is_some()
    }

    /// Whether any instance has such a connection, of any user. Waits for it if there may be other instances.
    pub(crate) async fn has_connection(&self, id: ConnectionId) -> bool {
        let is_there = || {
            let is_elsewhere = || self.inner.shared_log.as_ref().is_some_and(|shared| shared.find(id).is_some());
            (self.registry().find(id).is_some() || is_elsewhere()).then_some(())
        };
        self.look_for(is_there).await.is_some()
    }

    /// Looks once, and with several instances again for a while: another instance may not have told of a
    /// connection yet.
    async fn look_for<T>(&self, look: impl Fn() -> Option<T>) -> Option<T> {
        let until = Instant::now() + PATIENCE;
        loop {
            let found = look();
            if found.is_some() || self.inner.shared_log.is_none() || Instant::now() >= until {
                return found;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    fn place_of(&self, id: ConnectionId, user: Option<&UserId>) -> Option<Place> {
        if let Some(handle) = self.registry().find(id) {
            return (handle.user() == user).then_some(Place::Here(handle));
        }
        let (owner, topics) = self.inner.shared_log.as_ref()?.find(id)?;
        (owner.as_ref() == user).then_some(Place::Elsewhere(topics))
    }
}

impl Changeable<'_> {
    /// Leaves, then joins, all or nothing; returns the topics in force. `asked_at` is when the page asked.
    ///
    /// Of a connection elsewhere it returns what will be in force by what is known here; should its own
    /// instance find that nothing can come of it, all stays as it was.
    pub(crate) async fn change(&self, change: Change, asked_at: DisconnectClock) -> Result<Vec<Topic>, Refusal> {
        let hub = self.hub;
        match &self.place {
            Place::Here(handle) => hub.change_topics_of(handle, &change, asked_at),
            Place::Elsewhere(had) => {
                let topics = change.topics(had, hub.settings().max_topics)?;
                hub.check_bans_of(&change.join, asked_at)?;
                if change.size() > MOST_BYTES {
                    return Err(TooManyTopics.into());
                }
                let audience = Address::Connection(self.id).into();
                hub.give(audience, Action::Change(change)).await.map_err(|_| Refusal::outdated())?;
                Ok(topics)
            }
        }
    }
}

impl Change {
    /// The topics of a connection that had these, if it may have as many.
    fn topics(&self, had: &[Topic], limit: usize) -> Result<Vec<Topic>, TooManyTopics> {
        let Self { leave, join, .. } = self;
        // Before what takes longer the more there are.
        if join.len() > limit || leave.len() > limit {
            return Err(TooManyTopics);
        }
        let leave: HashSet<&Topic> = leave.iter().collect();
        let mut topics: Vec<Topic> = had.iter().filter(|topic| !leave.contains(topic)).chain(join).cloned().collect();
        each_once(&mut topics, |topic| topic);
        if topics.len() > limit { Err(TooManyTopics) } else { Ok(topics) }
    }

    /// About how many bytes it takes in a message.
    fn size(&self) -> usize {
        let escaped = |topic: &Topic| topic.as_str().bytes().filter(|byte| b"\"\\".contains(byte)).count();
        let bounded = self.bounds.iter().map(|(topic, _)| topic);
        let ids = self.bounds.len() * MOST_ID_BYTES;
        ids + self
            .leave
            .iter()
            .chain(&self.join)
            .chain(bounded)
            .map(|topic| topic.as_str().len() + escaped(topic) + 3)
            .sum::<usize>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backplane::Memory;
    use crate::types::Cursor;
    use futures::executor::block_on;

    #[test]
    fn what_no_broker_may_take_is_refused_before_it_is_told() {
        let hub = Hub::builder().max_topics(1_000).backplane(Memory::new()).build().unwrap();
        let id = ConnectionId::from_bits(1);
        let change = |had: &[Topic], join: Vec<Topic>, leave: Vec<Topic>| {
            let elsewhere = Changeable { hub: &hub, id, place: Place::Elsewhere(had.to_vec()) };
            let change = Change { leave, join, since: Cursor::Absent, bounds: Vec::new() };
            block_on(elsewhere.change(change, DisconnectClock::now()))
        };
        let long = |n: usize, with: &str| Topic::try_from(format!("{n:03}{}", with.repeat(250))).unwrap();
        let topics = |count, with| (0..count).map(|n| long(n, with)).collect::<Vec<_>>();
        for (join, leave) in [(topics(300, "x"), vec![]), (vec![], topics(300, "x")), (topics(150, "\""), vec![])] {
            assert_eq!(change(&[], join, leave), Err(TooManyTopics.into()));
        }
        // Whatever it is, it is in one message.
        let (leave, join) = (topics(128, "x"), topics(128, "y"));
        let most = Change { leave, join, since: Cursor::Absent, bounds: Vec::new() };
        assert!(most.size() <= MOST_BYTES && most.size() > MOST_BYTES - 1_000, "{}", most.size());
        let had: Vec<Topic> = (0..990).map(Topic::from).collect();
        assert_eq!(change(&had, topics(11, "x"), vec![]), Err(TooManyTopics.into()));
    }
}
