//! Carries out commands: to end connections of this instance, and to change their topics.
//!
//! A command is carried out here whether this instance gave it or another one. It is noted before
//! connections are looked up, so a connection that is being opened either finds the note or is found.

use std::collections::hash_map::HashMap;
use std::sync::Arc;

use crate::hub::Hub;
use crate::hub::connection::handle::{ConnectionHandle, Ending};
use crate::hub::connection::registry::UserTopic;
use crate::hub::tickets::store::LONGEST as LONGEST_TICKET;
use crate::log::{Joining, Since, TooManyTopics, millis};
use crate::sync::Ordering;
use crate::types::refusal::Kind;
use crate::types::{
    Action, Address, Audience, Change, Command, CommandError, Cursor, Disconnect, DisconnectClock, EndReason, Position,
    Reconnect, Refusal, SubscriptionError, Topic, UserId,
};

impl From<TooManyTopics> for Refusal {
    fn from(_: TooManyTopics) -> Self {
        Self::invalid(SubscriptionError::TOO_MANY_TOPICS)
    }
}

impl Hub {
    /// Does what a command says to the connections of this instance.
    pub(in crate::hub) fn carry_out(&self, command: &Command) -> Result<usize, CommandError> {
        match &command.action {
            Action::Disconnect(disconnect) => Ok(self.disconnect_all(&command.audience, disconnect)),
            Action::Join(topic, since) => self.join_all(&command.audience, topic, *since, command.issued_at),
            Action::Leave(topic) => Ok(self.leave_all(&command.audience, topic)),
            Action::Change(change) => self.change_all(&command.audience, change),
        }
    }

    fn disconnect_all(&self, audience: &Audience, disconnect: &Disconnect) -> usize {
        let now = self.now();
        let until = match disconnect.reconnect {
            // If the target leaves a connection out, only the ids of the ended streams keep their clients away.
            Reconnect::BlockedFor(within) if audience.excluded().is_empty() => now.saturating_add(millis(within)),
            Reconnect::BlockedFor(_) | Reconnect::Now | Reconnect::After(_) => 0,
        };
        // Before the connections are looked up: one that is being opened either meets this or is found.
        // A handler may take longer than a hook.
        let requests = now.saturating_add(millis(self.settings().access_timeout) * 2 + 5_000);
        // Tickets of other instances may be as old as that.
        let tickets = self.inner.shared_log.as_ref().map_or(0, |_| now.saturating_add(millis(LONGEST_TICKET)));
        let remember = requests.max(self.inner.tickets.last_over_at()).max(tickets);
        let named = audience.addresses().iter().filter(|address| !matches!(address, Address::Connection(_)));
        self.inner.bans.note_disconnect(named, until, remember, now);
        let handles = self.handles(audience);
        for handle in &handles {
            let retry = match disconnect.reconnect {
                Reconnect::After(after) => Some(self.jittered_retry(after, 1.0..=1.5)),
                // So that those who are disconnected together do not come back together.
                Reconnect::Now => Some(self.jittered_retry(self.settings().retry, 1.0..=2.0)),
                Reconnect::BlockedFor(_) => None,
            };
            let note = disconnect.note.clone();
            let ending =
                Ending { reconnect: disconnect.reconnect, retry, note, ..Ending::now(EndReason::Disconnected) };
            self.end_now(handle, ending);
        }
        handles.len()
    }

    /// A connection has to go: it is out of everything at once, and its stream says goodbye when it is polled next.
    pub(in crate::hub) fn end_now(&self, handle: &Arc<ConnectionHandle>, ending: Ending) {
        let reason = handle.end(ending).reason;
        self.inner.forget(handle, reason);
        handle.wake(self.now());
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
        for handle in self.handles(audience) {
            if self.inner.join_topic(&handle, topic, since).map_err(too_many)? {
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
        self.handles(audience).iter().filter(|handle| self.take_topic(handle, topic)).count()
    }

    /// Takes a topic away. A request of the page that was decided before may not bring it back.
    pub(in crate::hub) fn take_topic(&self, handle: &Arc<ConnectionHandle>, topic: &Topic) -> bool {
        handle.taken_at.fetch_max(DisconnectClock::new().count(), Ordering::SeqCst);
        self.inner.leave_topic(handle, topic)
    }

    /// For another instance, which answers the page. Returns how many connections have changed.
    pub(in crate::hub) fn change_all(&self, audience: &Audience, change: &Change) -> Result<usize, CommandError> {
        let mut changed = 0;
        for handle in self.handles(audience) {
            match self.change_topics_of(&handle, change, DisconnectClock::now()) {
                Ok(_) => changed += 1,
                Err(Refusal(Kind::Invalid(_))) => {
                    return Err(CommandError::too_many_topics(self.settings().max_topics));
                }
                // A topic was closed since. The page is not told of topics, so it keeps those that it had. No other
                // refusal comes from a change.
                Err(Refusal(
                    Kind::Gone | Kind::RetryLater { .. } | Kind::Unauthorized | Kind::Forbidden | Kind::Panicked,
                )) => {}
            }
        }
        Ok(changed)
    }

    pub(in crate::hub) fn change_topics_of(
        &self,
        handle: &Arc<ConnectionHandle>,
        change: &Change,
        asked_at: DisconnectClock,
    ) -> Result<Vec<Topic>, Refusal> {
        let Change { leave, join, since, bounds } = change;
        let limit = self.settings().max_topics;
        // Before what takes longer the more there are.
        if join.len() > limit || leave.len() > limit {
            return Err(TooManyTopics.into());
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
        // What takes a topic away from then on finds it; what did before is found out by `check_bans_at`.
        self.inner.change_topics(handle, leave, &joining, || self.check_bans_at(handle, join, asked_at))
    }

    fn check_bans_at(
        &self,
        handle: &ConnectionHandle,
        join: &[Topic],
        asked_at: DisconnectClock,
    ) -> Result<(), Refusal> {
        if !join.is_empty() && DisconnectClock::from_count(handle.taken_at.load(Ordering::SeqCst)) > asked_at {
            return Err(Refusal::outdated());
        }
        self.check_bans_of(join, asked_at)
    }

    pub(in crate::hub) fn check_bans_of(&self, join: &[Topic], asked_at: DisconnectClock) -> Result<(), Refusal> {
        let topics: Vec<_> = join.iter().cloned().map(Address::Topic).collect();
        self.check_bans(&topics, asked_at)
    }
}

fn users(audience: &Audience) -> impl Iterator<Item = &UserId> {
    audience.addresses().iter().filter_map(|address| match address {
        Address::User(user) => Some(user),
        Address::Everyone | Address::Topic(_) | Address::Connection(_) => None,
    })
}
