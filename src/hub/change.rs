//! What a page does to its own connection: it changes its topics.

use std::collections::hash_set::HashSet;
use std::sync::Arc;

use super::link::Link;
use super::{Hub, OpenError};
use crate::audience::Address;
use crate::moment::Moment;
use crate::name::{ConnectionId, Topic, UserId};
use crate::position::Cursor;
use crate::sync::Ordering;

/// A connection whose page may change what it has.
pub(crate) struct Changeable<'a> {
    hub: &'a Hub,
    link: Arc<Link>,
}

impl Hub {
    /// A connection of this instance, if it is this user's, or nobody's in particular where there is no user.
    pub(crate) fn connection_of(&self, id: ConnectionId, user: Option<&UserId>) -> Option<Changeable<'_>> {
        let link = self.registry().find(id).filter(|link| link.user() == user)?;
        Some(Changeable { hub: self, link })
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
    pub(crate) fn change(
        &self,
        join: &[Topic],
        since: Cursor,
        leave: &[Topic],
        asked_at: Moment,
    ) -> Result<Vec<Topic>, ChangeError> {
        let (hub, link) = (self.hub, &self.link);
        let limit = hub.settings().max_topics;
        if join.len() > limit || leave.len() > limit {
            return Err(ChangeError::TooMany);
        }
        let had = hub.log().topics(&link.subscriber);
        let kept = had.iter().filter(|topic| !leave.contains(topic)).count();
        let new: HashSet<&Topic> = join.iter().filter(|topic| !had.contains(topic) || leave.contains(topic)).collect();
        if kept + new.len() > limit {
            return Err(ChangeError::TooMany);
        }
        self.object(join, asked_at)?;
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
        if !join.is_empty() && Moment::from_count(self.link.taken_at.load(Ordering::SeqCst)) > asked_at {
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
