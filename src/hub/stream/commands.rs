//! Carries out commands on the connections of this instance: disconnect, join, leave and change.
//!
//! 1. [`Hub::carry_out`] carries out the commands of this instance and of other instances in the
//!    same way.
//! 2. A command is recorded before connections are looked up: a disconnect in the bans, and a join
//!    or a leave of a user in the topics of that user. A connection that is being opened checks
//!    both records after it has entered the registry. So the command finds the connection, or the
//!    connection finds the record.
//! 3. After a topic was removed from a connection, an earlier request of the client to change its
//!    topics cannot add topics ([`Hub::take_topic`]).

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
    /// Carries a command out on the connections of this instance. Returns the number of connections
    /// that it has ended or changed.
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
            // If the target excludes a connection, a ban of the address would also ban the client
            // of that connection when it reconnects. So only the ids of the ended streams ban their
            // clients.
            Reconnect::BlockedFor(within) if audience.excluded().is_empty() => now.saturating_add(millis(within)),
            Reconnect::BlockedFor(_) | Reconnect::Now | Reconnect::After(_) | Reconnect::Over => 0,
        };
        // A request from before the disconnect may open its stream within this time. The time is
        // longer than the access timeout, because a handler mount may take longer than an access
        // hook.
        let requests = now.saturating_add(millis(self.settings().access_timeout) * 2 + 5_000);
        // Another instance may have issued a ticket before the disconnect, with this maximum
        // lifetime.
        let tickets = self.inner.shared_log.as_ref().map_or(0, |_| now.saturating_add(millis(LONGEST_TICKET)));
        let remember = requests.max(self.inner.tickets.last_over_at()).max(tickets);
        let addresses = audience.addresses().iter().filter(|address| !matches!(address, Address::Connection(..)));
        // Record the disconnect before the connections are looked up (rule 2).
        self.inner.bans.note_disconnect(addresses, until, remember, now);
        let handles = self.handles(audience);
        for handle in &handles {
            let retry = match disconnect.reconnect {
                Reconnect::After(after) => Some(self.jittered_retry(after, 1.0..=1.5)),
                // A random delay, so that clients that are disconnected together do not reconnect
                // together.
                Reconnect::Now => Some(self.jittered_retry(self.settings().retry, 1.0..=2.0)),
                Reconnect::BlockedFor(_) | Reconnect::Over => None,
            };
            let note = disconnect.note.clone();
            let ending =
                Ending { reconnect: disconnect.reconnect, retry, note, ..Ending::now(EndReason::Disconnected) };
            self.end_now(handle, ending);
        }
        handles.len()
    }

    /// Ends a connection. It is removed from the registry and its channels at once, and its stream
    /// writes `hub.bye` when it is polled next.
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
        // The housekeeping forgets users who have no connection, so make sure that it runs.
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

    /// Returns the point from which a connection reads a topic that it joins with this cursor.
    pub(in crate::hub) fn since(&self, cursor: Cursor) -> Since {
        match self.resolve_cursor(cursor) {
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

    /// Removes a topic from a connection. Returns whether the connection had the topic. An earlier
    /// request of the client to change its topics can then add no topic.
    pub(in crate::hub) fn take_topic(&self, handle: &Arc<ConnectionHandle>, topic: &Topic) -> bool {
        handle.topic_removed_at.fetch_max(DisconnectClock::new().count(), Ordering::SeqCst);
        self.inner.leave_topic(handle, topic)
    }

    /// Carries out a change of topics that a client has requested from another instance. Returns
    /// the number of connections that accepted the change.
    pub(in crate::hub) fn change_all(&self, audience: &Audience, change: &Change) -> Result<usize, CommandError> {
        let mut changed = 0;
        for handle in self.handles(audience) {
            match self.change_topics_of(&handle, change, DisconnectClock::now()) {
                Ok(_) => changed += 1,
                Err(Refusal(Kind::Invalid(_))) => {
                    return Err(CommandError::too_many_topics(self.settings().max_topics));
                }
                // A topic is banned, or was removed meanwhile, or the stream reads a run. The other
                // instance answers the client, so this instance cannot refuse the change, and the
                // connection keeps its topics. `change_topics_of` returns no refusal for another
                // reason.
                Err(Refusal(
                    Kind::Gone
                    | Kind::RetryLater { .. }
                    | Kind::Unauthorized
                    | Kind::Forbidden
                    | Kind::Panicked
                    | Kind::NoRun
                    | Kind::Unresumable,
                )) => {}
            }
        }
        Ok(changed)
    }

    /// Changes the topics of a connection, as a whole or not at all. Returns the topics after the
    /// change.
    pub(in crate::hub) fn change_topics_of(
        &self,
        handle: &Arc<ConnectionHandle>,
        change: &Change,
        asked_at: DisconnectClock,
    ) -> Result<Vec<Topic>, Refusal> {
        if handle.reads_run {
            return Err(Refusal::gone());
        }
        let Change { leave, join, since, bounds } = change;
        let limit = self.settings().max_topics;
        // Check the limit before the work below, whose cost grows with the number of topics.
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
        // The log calls `check_bans_at` after it has added the connection to the listeners of the
        // joined topics. From then on, a command that removes or bans a topic finds the connection.
        // `check_bans_at` finds earlier commands.
        self.inner.change_topics(handle, leave, &joining, || self.check_bans_at(handle, join, asked_at))
    }

    /// Returns a refusal if one of the topics is banned, or was disconnected after `asked_at`. If
    /// there are topics to join, also returns a refusal if a topic was removed from the connection
    /// after `asked_at`.
    fn check_bans_at(
        &self,
        handle: &ConnectionHandle,
        join: &[Topic],
        asked_at: DisconnectClock,
    ) -> Result<(), Refusal> {
        if !join.is_empty() && DisconnectClock::from_count(handle.topic_removed_at.load(Ordering::SeqCst)) > asked_at {
            return Err(Refusal::outdated());
        }
        self.check_bans_of(join, asked_at)
    }

    /// Returns a refusal if one of the topics is banned, or was disconnected after `asked_at`.
    pub(in crate::hub) fn check_bans_of(&self, join: &[Topic], asked_at: DisconnectClock) -> Result<(), Refusal> {
        let topics: Vec<_> = join.iter().cloned().map(Address::Topic).collect();
        self.check_bans(&topics, asked_at)
    }
}

fn users(audience: &Audience) -> impl Iterator<Item = &UserId> {
    audience.addresses().iter().filter_map(|address| match address {
        Address::User(user) => Some(user),
        Address::Everyone(_) | Address::Topic(_) | Address::Connection(..) | Address::EveryScope => None,
    })
}
