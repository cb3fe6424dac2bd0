//! Control messages: instances broadcast commands and the changes of their connections.
//!
//! 1. One task receives the control messages, and broadcasts the changes of connections. It runs
//!    for the life of the hub, in a [task slot](crate::hub::tasks::slot). After an interruption the
//!    task continues after the last message that it received, so that it misses no command that the
//!    broker still retains. Then it requests the connections of all instances.
//! 2. The task gathers changes of connections for [`GATHER`], and broadcasts them together
//!    ([`outbox`](crate::hub::peers::outbox)).
//! 3. A disconnect and a leave are carried out when they arrive. A join or a change of topics waits
//!    until this instance's log has reached the position at which the command was issued, at most
//!    for the publish timeout. Before a leave, the waiting commands that join the same topic are
//!    carried out. Otherwise these commands would take effect after the leave.
//! 4. An instance that has received none of its own messages for the peer timeout is not ready,
//!    because the other instances may count it as gone ([`table`](crate::hub::peers::table)).

use std::collections::hash_set::HashSet;
use std::sync::Weak;

use bytes::Bytes;
use futures::FutureExt;
use futures::stream::BoxStream;
use tokio::time::{Duration, Instant};

use super::shared_log::SharedLog;
use crate::backplane::{Answer, ControlMessage, in_time, next_until};
use crate::hub::peers::message::{Body, Message, Part, PeerConnection, PresenceUpdate, cut_topics};
use crate::hub::peers::outbox::{Due, PresenceEvent};
use crate::hub::peers::table::UpdateResult;
use crate::hub::tasks::back_off::BackOff;
use crate::hub::tasks::background::Job;
use crate::hub::{Hub, Inner};
use crate::log::{Millis, millis};
use crate::types::{Action, Address, Audience, Command, ConnectionId, Topic, UserId};

/// The time for which the task gathers changes before it broadcasts them.
const GATHER: Duration = Duration::from_millis(50);
/// The maximum number of connections in one message, and of presence events in one append.
const BATCH: usize = 256;
/// The approximate size in bytes at which a message is full. The last connection of a message may
/// exceed it. Brokers accept at least 1 MiB by default.
const BATCH_SIZE: usize = 64 * 1024;
/// The interval at which an instance repeats its request for connections, until it receives one of
/// its own messages.
const ASK_EVERY: Duration = Duration::from_millis(500);
/// The maximum number of commands that wait for the log. Further commands do not wait.
const MAX_QUEUED: usize = 10_000;

pub(in crate::hub) static JOB: Job<Inner> =
    Job { run: |hub, _| run(hub).boxed(), has_work: |_| true, has_more: |_| true };

/// Listens and broadcasts until the hub is dropped. Reconnects after each error.
async fn run(hub: Weak<Inner>) {
    let mut back_off = BackOff::new();
    loop {
        let Some(inner) = hub.upgrade() else { return };
        let Some(shared) = &inner.shared_log else { return };
        let mark = shared.mark.lock().clone();
        let messages = shared.backplane.listen(mark);
        drop(inner);
        if let Err(error) = listen_and_broadcast(&hub, messages).await {
            let Some(inner) = hub.upgrade() else { return };
            inner.counters.control_failed(&error, inner.now());
        }
        back_off.wait().await;
    }
}

/// Processes received messages, and broadcasts in turns, until an error occurs or the hub is
/// dropped.
async fn listen_and_broadcast(
    hub: &Weak<Inner>,
    mut messages: BoxStream<'static, Answer<ControlMessage>>,
) -> Answer<()> {
    let started = Instant::now();
    let (mut next_turn, mut next_lease, mut next_ask) = (started, started, started);
    let mut is_first = true;
    loop {
        // A due turn comes first, so that many messages do not keep the task from broadcasting.
        let received = next_until(next_turn, &mut messages).await?;
        let Some(inner) = hub.upgrade() else { return Ok(()) };
        let hub = Hub { inner };
        let Some(shared) = &hub.inner.shared_log else { return Ok(()) };
        match received {
            Some(control) => {
                let reply = hub.receive(shared, &control.message);
                *shared.mark.lock() = Some(control.mark);
                if let Some(reply) = reply {
                    hub.broadcast(shared, reply).await?;
                }
            }
            None => {
                let now = Instant::now();
                if std::mem::take(&mut is_first) {
                    shared.peers.lock().reconnected(hub.now());
                    let mut runs = shared.runs.lock();
                    runs.owners.reconnected(hub.now());
                    runs.may_be_ended = true;
                }
                let is_closed = shared.outbox.lock().is_closed;
                let receives_own_messages = shared.peers.lock().receives_own_messages();
                let reports = !is_closed && !shared.writes_only;
                if now >= next_ask && reports && !receives_own_messages {
                    // Repeat the request until this instance receives one of its own messages. The
                    // instance also reports its own connections, because the others may have missed
                    // messages.
                    next_ask = now + ASK_EVERY;
                    shared.outbox.lock().report_all();
                    hub.broadcast(shared, shared.report_request()).await?;
                }
                if reports {
                    hub.broadcast_connections(shared).await?;
                }
                if !is_closed {
                    hub.broadcast_run_news(shared).await?;
                }
                hub.append_presence(shared).await;
                shared.outbox.lock().note_position(hub.now(), hub.position());
                hub.carry_out_queued(shared);
                if now >= next_lease && !is_closed {
                    next_lease = now + hub.settings().peer_timeout / 3;
                    #[cfg(feature = "metrics")]
                    hub.inner.record_stats();
                    let number = shared.outbox.lock().number;
                    // Any message shows that the writer of a run is alive.
                    let lease = if shared.writes_only { Body::Runs(Vec::new()) } else { Body::Lease(number) };
                    hub.broadcast(shared, lease).await?;
                    shared.peers.lock().sweep(hub.now());
                    hub.look_at_runs(shared);
                    let is_unheard = !shared.peers.lock().is_received(hub.now());
                    if is_unheard && started.elapsed() > hub.settings().peer_timeout {
                        hub.counters().no_own_messages(hub.now());
                    }
                }
                if !shared.writes_only {
                    let orphans = shared.peers.lock().take_orphans(shared.instance_id, hub.now());
                    for (topic, user) in orphans {
                        hub.inner.publish_left_of_orphan(&topic, &user);
                    }
                }
                // Counted from the end of this turn, so that after a long turn the task has time
                // for messages before the next turn.
                next_turn = Instant::now() + GATHER;
            }
        }
    }
}

impl Hub {
    /// Processes a control message. Returns a message to broadcast in reply, if any.
    fn receive(&self, shared: &SharedLog, bytes: &[u8]) -> Option<Body> {
        let Message { from, body } = Message::decode(bytes)?;
        let now = self.now();
        if from == shared.instance_id {
            shared.peers.lock().note_own_message(now);
            return None;
        }
        shared.runs.lock().owners.heard(from, now);
        let mut result = UpdateResult::Fine;
        match body {
            Body::Command(command) => self.carry_out_or_queue(shared, command),
            Body::Ask(settings) => {
                shared.outbox.lock().report_all();
                if shared.settings_digest.differs(&settings) {
                    return Some(Body::Settings(shared.settings_digest.digest.clone()));
                }
            }
            Body::Settings(settings) => {
                shared.settings_digest.differs(&settings);
            }
            Body::Lease(number) => result = shared.peers.lock().lease(from, number, now),
            Body::Goodbye => {
                shared.peers.lock().goodbye(from, now);
                shared.runs.lock().owners.left(from, now);
                self.look_at_runs(shared);
            }
            Body::PresenceUpdate(update) => result = shared.peers.lock().update(from, update, now),
            Body::Runs(news) => self.receive_run_news(shared, news),
            Body::Stop(name, id) => self.receive_stop(shared, &name, id),
        }
        let is_closed = shared.outbox.lock().is_closed;
        let must_ask = result == UpdateResult::Missing
            && !is_closed
            && !shared.writes_only
            && shared.peers.lock().may_ask(from, now);
        must_ask.then(|| shared.report_request())
    }

    /// Broadcasts a control message within the publish timeout.
    pub(super) async fn broadcast(&self, shared: &SharedLog, body: Body) -> Answer<()> {
        let message = Message { from: shared.instance_id, body };
        let sent = shared.backplane.broadcast(Bytes::from(message.encode()));
        in_time(self.settings().publish_timeout, sent).await
    }

    /// Broadcasts the connections that have changed, or all connections if the complete list is
    /// due.
    async fn broadcast_connections(&self, shared: &SharedLog) -> Answer<()> {
        let (due, number) = {
            let mut outbox = shared.outbox.lock();
            let Some(due) = outbox.take_due() else { return Ok(()) };
            (due, outbox.number)
        };
        let all = due == Due::All;
        let ids: Vec<_> = match due {
            Due::All => self.registry().all().iter().map(|handle| handle.id()).collect(),
            Due::Changed(ids) => ids.into_iter().collect(),
        };
        for (index, (open, closed)) in self.connection_batches(&ids).into_iter().enumerate() {
            let part = if index == 0 { Part::First } else { Part::More };
            let number = if all { number } else { number + 1 + index as u64 };
            let update = PresenceUpdate {
                number,
                all: all.then_some(part),
                open,
                closed: if all { Vec::new() } else { closed },
            };
            if let Err(error) = self.broadcast(shared, Body::PresenceUpdate(update)).await {
                // Other instances may not have received the update, so report all connections
                // later.
                shared.outbox.lock().report_all();
                return Err(error);
            }
            shared.outbox.lock().number = number;
        }
        if all {
            // The lease message ends the complete list. The other instances then remove the
            // connections that the list did not contain.
            self.broadcast(shared, Body::Lease(number)).await?;
        }
        Ok(())
    }

    /// Returns the open connections and the ids of the closed connections, in batches. Each batch
    /// fits into one message. Returns at least one batch.
    fn connection_batches(&self, ids: &[ConnectionId]) -> Vec<(Vec<PeerConnection>, Vec<ConnectionId>)> {
        let mut batches = Vec::new();
        let (mut open, mut closed, mut size) = (Vec::new(), Vec::new(), 0);
        for &id in ids {
            match self.registry().find(id) {
                Some(handle) => {
                    let mut topics = self.log().topics(&handle.subscriber);
                    if cut_topics(&mut topics) {
                        self.counters().topics_truncated(self.now());
                    }
                    let (scope, user, data) = (handle.scope().clone(), handle.user(), handle.data());
                    let connection = PeerConnection { id, scope, user: user.cloned(), data: data.cloned(), topics };
                    size += connection.size();
                    open.push(connection);
                }
                None => closed.push(id),
            }
            if open.len() + closed.len() >= BATCH || size >= BATCH_SIZE {
                batches.push((std::mem::take(&mut open), std::mem::take(&mut closed)));
                size = 0;
            }
        }
        if batches.is_empty() || !open.is_empty() || !closed.is_empty() {
            batches.push((open, closed));
        }
        batches
    }

    /// Appends queued presence events to the log. An event that fails because of the broker stays
    /// in the queue, unless a later event about the same member was appended. If the broker had
    /// appended the event despite the error, the log then contains the event twice. Readers see the
    /// same presence with the second event as without it.
    async fn append_presence(&self, shared: &SharedLog) {
        let (batch, dropped) = shared.outbox.lock().presence(BATCH);
        if batch.is_empty() {
            return;
        }
        let events = batch
            .iter()
            .map(|PresenceEvent { topic, event, .. }| (Audience::from(Address::Topic(topic.clone())), event.clone()));
        let appended = self.append_shared(shared, events.collect()).await;
        let mut later: HashSet<(&Topic, &UserId)> = HashSet::new();
        let mut again = Vec::new();
        for (event, outcome) in batch.iter().zip(appended).rev() {
            match outcome {
                Err(error) if error.is_unavailable() => {
                    if !later.contains(&(&event.topic, &event.user)) {
                        again.push(event.clone());
                    }
                }
                Err(error) => {
                    tracing::warn!(name: "sse.presence.publish_failed", %error, "a presence event cannot be published");
                }
                Ok(_) => drop(later.insert((&event.topic, &event.user))),
            }
        }
        shared.outbox.lock().announced(batch.len(), dropped, again);
    }

    /// Broadcasts a command to the other instances.
    pub(in crate::hub) async fn broadcast_command(&self, shared: &SharedLog, command: Command) -> Answer<()> {
        self.inner.ensure_shared_log();
        self.broadcast(shared, Body::Command(command)).await
    }

    /// Broadcasts the goodbye of this instance, so that the other instances remove its connections
    /// at once.
    pub(in crate::hub) async fn broadcast_goodbye(&self, shared: &SharedLog) {
        // The ends of this instance's runs come first. A later message would look like one of an
        // instance that is alive.
        if let Err(error) = self.broadcast_run_news(shared).await {
            tracing::debug!(name: "sse.run.announce_failed", %error, "the ends of runs were not announced");
        }
        shared.outbox.lock().is_closed = true;
        if let Err(error) = self.broadcast(shared, Body::Goodbye).await {
            tracing::debug!(name: "sse.peer.goodbye_failed", %error, "the goodbye failed: other instances may remove this instance only after peer_timeout");
        }
    }

    /// Carries out a command of another instance. Queues a join or a change of topics if this
    /// instance's log has not reached the position at which the command was issued.
    fn carry_out_or_queue(&self, shared: &SharedLog, command: Command) {
        match &command.action {
            Action::Disconnect(_) => return self.carry_out_received(&command),
            Action::Leave(topic) => {
                // Hold the lock until the leave is carried out, so that another thread does not
                // carry out a queued join after it.
                let mut queue = shared.commands.lock();
                queue.retain(|(_, queued)| {
                    let is_join_of_topic = queued.joins(topic);
                    if is_join_of_topic {
                        self.carry_out_received(queued);
                    }
                    !is_join_of_topic
                });
                return self.carry_out_received(&command);
            }
            Action::Join(..) | Action::Change(_) => {}
        }
        let until = self.now().saturating_add(millis(self.settings().publish_timeout));
        let mut queue = shared.commands.lock();
        if queue.len() < MAX_QUEUED {
            queue.push_back((until, command));
        } else {
            self.carry_out_received(&command);
        }
        drop(queue);
        self.carry_out_queued(shared);
    }

    /// Carries out queued commands whose position is reached or whose wait has ended. Stops at the
    /// first other command, so that the order stays the same. Holds the lock of the queue, because
    /// the follow task and the control task both call this method.
    pub(in crate::hub) fn carry_out_queued(&self, shared: &SharedLog) {
        let mut queue = shared.commands.lock();
        let is_due = |(until, command): &(Millis, Command)| *until <= self.now() || !self.is_ahead(command);
        while queue.front().is_some_and(is_due) {
            queue.pop_front().iter().for_each(|(_, command)| self.carry_out_received(command));
        }
    }

    /// Carries out a command of another instance. Logs an error and does not return it, because the
    /// caller of the command is on the other instance.
    fn carry_out_received(&self, command: &Command) {
        if let Err(error) = self.carry_out(command) {
            tracing::debug!(name: "sse.command.incomplete", %error, "a command of another instance was not fully carried out");
        }
    }

    /// Returns whether a command was issued at a position that this instance's log has not reached.
    fn is_ahead(&self, command: &Command) -> bool {
        self.log().number(command.issued_at).is_some_and(|number| number > self.log().last())
    }
}
