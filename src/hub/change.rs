//! What a page does to its own connection: it changes its topics.

use std::collections::hash_set::HashSet;
use std::sync::Arc;

use tokio::time::{Duration, Instant};

use super::link::Link;
use super::{Hub, OpenError};
use crate::audience::Address;
use crate::command::Action;
use crate::moment::Moment;
use crate::name::{ConnectionId, Topic, UserId};
use crate::position::Cursor;
use crate::sync::Ordering;

/// How long a connection is looked for that another instance may not have told of yet.
const PATIENCE: Duration = Duration::from_millis(500);
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// A connection whose page may change what it has.
pub(crate) struct Changeable<'a> {
    hub: &'a Hub,
    id: ConnectionId,
    place: Place,
}

enum Place {
    Here(Arc<Link>),
    /// On another instance, with these topics.
    Elsewhere(Vec<Topic>),
}

impl Hub {
    /// A connection, on whichever instance, if it is this user's, or nobody's in particular where there is no user. With
    /// several instances it takes as long for somebody else's as for one that is not there.
    pub(crate) async fn connection_of(&self, id: ConnectionId, user: Option<&UserId>) -> Option<Changeable<'_>> {
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(place) = self.place_of(id, user) {
                return Some(Changeable { hub: self, id, place });
            }
            if self.inner.remote.is_none() || Instant::now() >= until {
                return None;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    fn place_of(&self, id: ConnectionId, user: Option<&UserId>) -> Option<Place> {
        if let Some(link) = self.registry().find(id) {
            return (link.user() == user).then_some(Place::Here(link));
        }
        let (owner, topics) = self.inner.remote.as_ref()?.find(id)?;
        (owner.as_ref() == user).then_some(Place::Elsewhere(topics))
    }
}

/// Why a page did not change its topics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ChangeError {
    TooMany,
    /// A topic was disconnected, and is closed for a time.
    Barred,
    /// What it was decided by is not true any more: it is to be asked anew.
    Outdated,
}

impl Changeable<'_> {
    /// Leaves, then joins, all or nothing; returns the topics in force. `asked_at` is when the page asked.
    pub(crate) async fn change(
        &self,
        join: &[Topic],
        since: Cursor,
        leave: &[Topic],
        asked_at: Moment,
    ) -> Result<Vec<Topic>, ChangeError> {
        let limit = self.hub.settings().max_topics;
        if join.len() > limit || leave.len() > limit {
            return Err(ChangeError::TooMany);
        }
        let had = match &self.place {
            Place::Here(link) => self.hub.log().topics(&link.subscriber),
            Place::Elsewhere(topics) => topics.clone(),
        };
        let kept = had.iter().filter(|topic| !leave.contains(topic)).count();
        let new: HashSet<&Topic> = join.iter().filter(|topic| !had.contains(topic) || leave.contains(topic)).collect();
        if kept + new.len() > limit {
            return Err(ChangeError::TooMany);
        }
        self.object(join, asked_at)?;
        match &self.place {
            Place::Here(link) => self.change_here(link, &new, join, since, leave, asked_at),
            Place::Elsewhere(_) => {
                self.change_elsewhere(join, since, leave).await?;
                let kept = had.iter().filter(|topic| !leave.contains(topic));
                Ok(kept.chain(new).cloned().collect())
            }
        }
    }

    /// By commands, which the instance that has it carries out.
    async fn change_elsewhere(&self, join: &[Topic], since: Cursor, leave: &[Topic]) -> Result<(), ChangeError> {
        let leaves = leave.iter().map(|topic| Action::Leave(topic.clone()));
        let joins = join.iter().map(|topic| Action::Join(topic.clone(), since));
        for action in leaves.chain(joins) {
            let audience = Address::Connection(self.id).into();
            self.hub.give(audience, action).await.map_err(|_| ChangeError::Outdated)?;
        }
        Ok(())
    }

    fn change_here(
        &self,
        link: &Arc<Link>,
        new: &HashSet<&Topic>,
        join: &[Topic],
        since: Cursor,
        leave: &[Topic],
        asked_at: Moment,
    ) -> Result<Vec<Topic>, ChangeError> {
        let hub = self.hub;
        let since = hub.since(since);
        // What is joined anew is left before, what is only left is left at the end, so that it stays if nothing comes of it.
        let (anew, left): (Vec<_>, Vec<_>) = leave.iter().partition(|topic| join.contains(topic));
        for topic in anew {
            hub.inner.leave_topic(link, topic);
        }
        for topic in join {
            hub.inner.join_topic(link, topic, since, usize::MAX).map_err(|_| ChangeError::TooMany)?;
        }
        // Whoever takes a topic away from here on finds it; who did before is found out here.
        if let Err(objection) = self.object(join, asked_at) {
            for topic in new {
                hub.inner.leave_topic(link, topic);
            }
            return Err(objection);
        }
        for topic in left {
            hub.inner.leave_topic(link, topic);
        }
        Ok(hub.log().topics(&link.subscriber))
    }

    fn object(&self, join: &[Topic], asked_at: Moment) -> Result<(), ChangeError> {
        if let Place::Here(link) = &self.place
            && !join.is_empty()
            && Moment::from_count(link.taken_at.load(Ordering::SeqCst)) > asked_at
        {
            return Err(ChangeError::Outdated);
        }
        let topics: Vec<_> = join.iter().cloned().map(Address::Topic).collect();
        match self.hub.object(&topics, asked_at) {
            Ok(()) => Ok(()),
            Err(OpenError::Barred) => Err(ChangeError::Barred),
            Err(_) => Err(ChangeError::Outdated),
        }
    }
}
