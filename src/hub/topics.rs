//! Changes that a page makes to the topics of its own connection.

use std::collections::hash_set::HashSet;
use std::sync::Arc;

use tokio::time::{Duration, Instant};

use super::Hub;
use crate::hub::connection::handle::ConnectionHandle;
use crate::log::TooManyTopics;
use crate::types::{
    Action, Address, Change, ConnectionId, DisconnectClock, Refusal, ScopeName, Subscription, Topic, UserId, each_once,
};

/// The maximum time for which a request waits until another instance reports an unknown connection.
const PATIENCE: Duration = Duration::from_millis(500);
/// The time between two look-ups of an unknown connection.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// The maximum size of a change for a connection of another instance, in bytes of the message.
/// Brokers limit the size of a message. A change is not split into several messages, so that it is
/// never carried out in part.
const MAX_BYTES: usize = 64 * 1024;
/// The maximum length of a position in a message, with its quotes and brackets, in bytes.
const MAX_ID_BYTES: usize = 68;

/// A connection whose page may change its topics.
pub(crate) struct Changeable<'a> {
    hub: &'a Hub,
    id: ConnectionId,
    scope: &'a ScopeName,
    place: Place,
}

/// The instance on which a connection is open.
enum Place {
    /// The connection is open on this instance.
    Here(Arc<ConnectionHandle>),
    /// The connection is open on another instance, which has reported these topics.
    Elsewhere(Vec<Topic>),
}

impl Hub {
    /// Returns the connection with this id on any instance, if it belongs to the scope and the user
    /// of a subscription. With a shared log this may wait, as in [`look_for`](Self::look_for).
    pub(crate) async fn connection_of<'a>(
        &'a self,
        id: ConnectionId,
        granted: &'a Subscription,
    ) -> Option<Changeable<'a>> {
        let place = self.look_for(|| self.place_of(id, granted)).await?;
        Some(Changeable { hub: self, id, scope: &granted.scope, place })
    }

    /// Returns whether a connection with this id may be open. With a shared log it always returns
    /// true, because another instance may not have reported its connection yet.
    pub(crate) fn may_have_connection(&self, id: ConnectionId) -> bool {
        self.inner.shared_log.is_some() || self.registry().find(id).is_some()
    }

    /// Returns whether a connection with this id is open on any instance, for any user. With a
    /// shared log this may wait, as in [`look_for`](Self::look_for).
    pub(crate) async fn has_connection(&self, id: ConnectionId) -> bool {
        let is_open = || {
            let is_elsewhere = || self.inner.shared_log.as_ref().is_some_and(|shared| shared.find(id).is_some());
            (self.registry().find(id).is_some() || is_elsewhere()).then_some(())
        };
        self.look_for(is_open).await.is_some()
    }

    /// Returns the result of `look`. With a shared log it repeats `look` for up to [`PATIENCE`]
    /// while the result is `None`, because another instance may not have reported its connection
    /// yet.
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

    fn place_of(&self, id: ConnectionId, granted: &Subscription) -> Option<Place> {
        // Anonymous connections of two scopes have the same user, which is none.
        let is_of = |user: Option<&UserId>, scope: &ScopeName| user == granted.user() && *scope == granted.scope;
        if let Some(handle) = self.registry().find(id) {
            // A stream of a run reads no topics.
            return (is_of(handle.user(), handle.scope()) && !handle.reads_run).then_some(Place::Here(handle));
        }
        let peer = self.inner.shared_log.as_ref()?.find(id)?;
        is_of(peer.user.as_ref(), &peer.scope).then(|| Place::Elsewhere(peer.topics.clone()))
    }
}

impl Changeable<'_> {
    /// Makes the connection leave topics and then join topics, and returns the topics in force. It
    /// makes the whole change or none of it. `asked_at` is the time of the page's request.
    ///
    /// For a connection of another instance, it computes the returned topics from that instance's
    /// last report. If that instance then refuses the change, the topics of the connection stay
    /// unchanged.
    pub(crate) async fn change(&self, change: Change, asked_at: DisconnectClock) -> Result<Vec<Topic>, Refusal> {
        let hub = self.hub;
        match &self.place {
            Place::Here(handle) => hub.change_topics_of(handle, &change, asked_at),
            Place::Elsewhere(had) => {
                let topics = change.topics(had, hub.settings().max_topics)?;
                hub.check_bans_of(&change.join, asked_at)?;
                if change.size() > MAX_BYTES {
                    return Err(TooManyTopics.into());
                }
                let audience = Address::Connection(self.id, self.scope.clone()).into();
                hub.issue(audience, Action::Change(change)).await.map_err(|_| Refusal::outdated())?;
                Ok(topics)
            }
        }
    }
}

impl Change {
    /// Returns the topics of a connection after the change, unless there are more than `limit`.
    fn topics(&self, had: &[Topic], limit: usize) -> Result<Vec<Topic>, TooManyTopics> {
        let Self { leave, join, .. } = self;
        // Check this first, because the rest takes time that grows with the number of topics.
        if join.len() > limit || leave.len() > limit {
            return Err(TooManyTopics);
        }
        let leave: HashSet<&Topic> = leave.iter().collect();
        let mut topics: Vec<Topic> = had.iter().filter(|topic| !leave.contains(topic)).chain(join).cloned().collect();
        each_once(&mut topics, |topic| topic);
        if topics.len() > limit { Err(TooManyTopics) } else { Ok(topics) }
    }

    /// Returns the approximate size of the change in a message, in bytes.
    fn size(&self) -> usize {
        let escaped = |topic: &Topic| topic.as_str().bytes().filter(|byte| b"\"\\".contains(byte)).count();
        let bounded = self.bounds.iter().map(|(topic, _)| topic);
        let ids = self.bounds.len() * MAX_ID_BYTES;
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
    fn change_of_topics_is_rejected_when_it_may_not_fit_into_one_message() {
        let hub = Hub::builder().max_topics(1_000).backplane(Memory::new()).build().unwrap();
        let id = ConnectionId::from_bits(1);
        let change = |had: &[Topic], join: Vec<Topic>, leave: Vec<Topic>| {
            let elsewhere =
                Changeable { hub: &hub, id, scope: ScopeName::root(), place: Place::Elsewhere(had.to_vec()) };
            let change = Change { leave, join, since: Cursor::Absent, bounds: Vec::new() };
            block_on(elsewhere.change(change, DisconnectClock::now()))
        };
        let long = |n: usize, with: &str| Topic::try_from(format!("{n:03}{}", with.repeat(250))).unwrap();
        let topics = |count, with| (0..count).map(|n| long(n, with)).collect::<Vec<_>>();
        for (join, leave) in [(topics(300, "x"), vec![]), (vec![], topics(300, "x")), (topics(150, "\""), vec![])] {
            assert_eq!(change(&[], join, leave), Err(TooManyTopics.into()));
        }
        // The longest names, as many as the default limit allows, fit into one message.
        let (leave, join) = (topics(128, "x"), topics(128, "y"));
        let longest = Change { leave, join, since: Cursor::Absent, bounds: Vec::new() };
        assert!(longest.size() <= MAX_BYTES && longest.size() > MAX_BYTES - 1_000, "{}", longest.size());
        let had: Vec<Topic> = (0..990).map(Topic::from).collect();
        assert_eq!(change(&had, topics(11, "x"), vec![]), Err(TooManyTopics.into()));
    }
}
