//! Carries out commands: to end connections of this instance, and to change their topics.
//!
//! A command is carried out here whether this instance gave it or another one. It is noted before connections are looked
//! up, so a connection that is being opened either finds the note or is found.

use std::collections::hash_map::HashMap;
use std::sync::Arc;

use crate::hub::Hub;
use crate::hub::connection::handle::{Ending, Link};
use crate::hub::connection::registry::UserTopic;
use crate::hub::stream::admission::OpenError;
use crate::hub::tickets::store::LONGEST as LONGEST_TICKET;
use crate::log::{Joining, Since, TooManyTopics, millis};
use crate::sync::Ordering;
use crate::types::audience::{Address, Audience};
use crate::types::command::{Action, Change, Command};
use crate::types::disconnect::{Kick, Returns};
use crate::types::disconnect_clock::Moment;
use crate::types::error::CommandError;
use crate::types::last_event_id::Cursor;
use crate::types::name::{Topic, UserId};
use crate::types::position::Position;
use crate::types::reason::EndReason;

/// Why a page did not change its topics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ChangeError {
    TooMany,
    /// A topic was disconnected, and is closed for a time.
    Barred,
    /// What it was decided by is not true any more: it is to be asked anew.
    Outdated,
}

impl From<TooManyTopics> for ChangeError {
    fn from(_: TooManyTopics) -> Self {
        Self::TooMany
    }
}

impl From<OpenError> for ChangeError {
    fn from(objection: OpenError) -> Self {
        if matches!(objection, OpenError::Barred) { Self::Barred } else { Self::Outdated }
    }
}

impl Hub {
    /// Does what a command says to the connections of this instance.
    pub(in crate::hub) fn carry_out(&self, command: &Command) -> Result<usize, CommandError> {
        match &command.action {
            Action::Disconnect(kick) => Ok(self.disconnect_all(&command.audience, kick)),
            Action::Join(topic, since) => self.join_all(&command.audience, topic, *since, command.issued_at),
            Action::Leave(topic) => Ok(self.leave_all(&command.audience, topic)),
            Action::Change(change) => self.change_all(&command.audience, change),
        }
    }

    fn disconnect_all(&self, audience: &Audience, kick: &Kick) -> usize {
        let now = self.now();
        let until = match kick.returns {
            // Where somebody is spared, the streams that are ended are barred by their ids alone.
            Returns::Never(within) if audience.excluded().is_empty() => now.saturating_add(millis(within)),
            Returns::Never(_) | Returns::Now | Returns::Later(_) => 0,
        };
        // Before the connections are looked up: one that is being opened either meets this or is found.
        // A handler may take longer than a hook.
        let requests = now.saturating_add(millis(self.settings().access_timeout) * 2 + 5_000);
        // Tickets of other instances may be as old as that.
        let tickets = self.inner.shared_log.as_ref().map_or(0, |_| now.saturating_add(millis(LONGEST_TICKET)));
        let remember = requests.max(self.inner.tickets.last_over_at()).max(tickets);
        let named = audience.addresses().iter().filter(|address| !matches!(address, Address::Connection(_)));
        self.inner.bars.kick(named, until, remember, now);
        let links = self.links(audience);
        for link in &links {
            let retry = match kick.returns {
                Returns::Later(after) => Some(self.jittered_retry(after, 1.0..=1.5)),
                // So that those who are disconnected together do not come back together.
                Returns::Now => Some(self.jittered_retry(self.settings().retry, 1.0..=2.0)),
                Returns::Never(_) => None,
            };
            let note = kick.note.clone();
            let ending = Ending { returns: kick.returns, retry, note, ..Ending::now(EndReason::Kicked) };
            self.end_now(link, ending);
        }
        links.len()
    }

    /// A connection has to go: it is out of everything at once, and its stream says goodbye when it is polled next.
    pub(in crate::hub) fn end_now(&self, link: &Arc<Link>, ending: Ending) {
        let reason = link.end(ending).reason;
        self.inner.forget(link, reason);
        link.wake(self.now());
    }

    fn join_all(
        &self,
        audience: &Audience,
        topic: &Topic,
        since: Cursor,
        issued_at: Position,
    ) -> Result<usize, CommandError> {
        let too_many = |_| CommandError::too_many_topics(self.settings().max_topics);
        let since = self.since(since);
        for user in users(audience) {
            let at = self.log().number(issued_at).unwrap_or_else(|| self.log().last());
            let joined = UserTopic { topic: topic.clone(), since, at };
            let max_topics = self.settings().max_topics;
            self.registry().join_user(user, joined, max_topics, self.now()).map_err(too_many)?;
        }
        // A user who is not there is forgotten in time.
        self.inner.tasks.sweep.ensure(&self.inner);
        self.inner.tasks.sweep.rouse();
        let mut joined = 0;
        for link in self.links(audience) {
            if self.inner.join_topic(&link, topic, since, self.settings().max_topics).map_err(too_many)? {
                joined += 1;
            }
        }
        Ok(joined)
    }

    /// What a page that says this wants of a topic that it joins.
    pub(in crate::hub) fn since(&self, cursor: Cursor) -> Since {
        match self.judge(cursor) {
            Ok(None) => Since::Now,
            Ok(Some(sequence)) => Since::After(sequence),
            Err(reason) => Since::Refused(reason),
        }
    }

    fn leave_all(&self, audience: &Audience, topic: &Topic) -> usize {
        for user in users(audience) {
            self.registry().leave_user(user, topic);
        }
        self.links(audience).iter().filter(|link| self.take_topic(link, topic)).count()
    }

    /// Takes a topic away. A request of the page that was decided before may not bring it back.
    pub(in crate::hub) fn take_topic(&self, link: &Arc<Link>, topic: &Topic) -> bool {
        link.taken_at.fetch_max(Moment::new().count(), Ordering::SeqCst);
        self.inner.leave_topic(link, topic)
    }

    /// For another instance, which answers the page. Returns how many connections have changed.
    pub(in crate::hub) fn change_all(&self, audience: &Audience, change: &Change) -> Result<usize, CommandError> {
        let mut changed = 0;
        for link in self.links(audience) {
            match self.change_link(&link, change, Moment::now()) {
                Ok(_) => changed += 1,
                Err(ChangeError::TooMany) => return Err(CommandError::too_many_topics(self.settings().max_topics)),
                // A topic is closed since. The page hears nothing of topics, so it has what it had.
                Err(ChangeError::Barred | ChangeError::Outdated) => {}
            }
        }
        Ok(changed)
    }

    pub(in crate::hub) fn change_link(
        &self,
        link: &Arc<Link>,
        change: &Change,
        asked_at: Moment,
    ) -> Result<Vec<Topic>, ChangeError> {
        let Change { leave, join, since, bounds } = change;
        let limit = self.settings().max_topics;
        // Before what takes longer the more there are.
        if join.len() > limit || leave.len() > limit {
            return Err(ChangeError::TooMany);
        }
        let since = self.since(*since);
        let mut afters: HashMap<&Topic, u64> = HashMap::new();
        for (topic, position) in bounds {
            let after = afters.entry(topic).or_default();
            *after = self.bound(*position).max(*after);
        }
        let after = |topic: &Topic| afters.get(topic).copied().unwrap_or(0);
        let joining: Vec<_> =
            join.iter().map(|topic| Joining { topic: topic.clone(), since, after: after(topic) }).collect();
        // What takes a topic away from then on finds it; what did before is found out by `object_at`.
        self.inner.change_topics(link, leave, &joining, || self.object_at(link, join, asked_at))
    }

    fn object_at(&self, link: &Link, join: &[Topic], asked_at: Moment) -> Result<(), ChangeError> {
        if !join.is_empty() && Moment::from_count(link.taken_at.load(Ordering::SeqCst)) > asked_at {
            return Err(ChangeError::Outdated);
        }
        self.object_to(join, asked_at)
    }

    pub(in crate::hub) fn object_to(&self, join: &[Topic], asked_at: Moment) -> Result<(), ChangeError> {
        let topics: Vec<_> = join.iter().cloned().map(Address::Topic).collect();
        Ok(self.object(&topics, asked_at)?)
    }
}

fn users(audience: &Audience) -> impl Iterator<Item = &UserId> {
    audience.addresses().iter().filter_map(|address| match address {
        Address::User(user) => Some(user),
        Address::Everyone | Address::Topic(_) | Address::Connection(_) => None,
    })
}
