//! Control messages: instances broadcast commands and the changes of their connections.
//!
//! 1. One task receives the control messages, and broadcasts the changes of connections. It runs
//!    for the life of the hub, in a [task slot](crate::hub::tasks::slot). After an interruption the
//!    task continues after the last message that it received, so that it misses no message that the
//!    broker still retains. Then it broadcasts a hello, which the other instances answer with their
//!    leases. A lease shows whether presence updates are missing.
//! 2. The task gathers changes of connections for [`GATHER`], and broadcasts them together
//!    ([`outbox`](crate::hub::peers::outbox)).
//! 3. After a missing presence update, the task reads the list of that instance. It first asks the
//!    instance for the list if no usable list is known ([`connections`](super::connections)).
//! 4. An instance that has received none of its own messages for the peer timeout is not ready,
//!    because the other instances may count it as gone ([`table`](crate::hub::peers::table)).

use std::collections::hash_set::HashSet;
use std::pin::pin;
use std::sync::Weak;

use futures::FutureExt;
use futures::future::{BoxFuture, pending, select};
use futures::stream::{BoxStream, FuturesUnordered, StreamExt};
use tokio::time::{Duration, Instant};

use super::broadcast::stream_of;
use super::connections::ReadPart;
use super::shared_log::SharedLog;
use crate::backplane::{Answer, ControlMessage, ControlStream, next_until};
use crate::hub::peers::message::{Body, Message};
use crate::hub::peers::outbox::PresenceEvent;
use crate::hub::tasks::back_off::BackOff;
use crate::hub::tasks::background::Job;
use crate::hub::{Hub, Inner};
use crate::sync::Ordering;
use crate::types::{Address, Audience, Topic, UserId};

/// The time for which the task gathers changes before it broadcasts them.
const GATHER: Duration = Duration::from_millis(50);
/// The maximum number of presence events in one append.
const BATCH: usize = 256;
/// The interval at which an instance repeats its hello, until it receives one of its own messages.
const HELLO_EVERY: Duration = Duration::from_millis(500);
/// The maximum number of lists that are read at the same time.
const READS: usize = 8;

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

/// The lists that are being read. If the task is replaced or ends, the lists are read again.
struct Reads {
    reads: FuturesUnordered<BoxFuture<'static, ReadPart>>,
    hub: Weak<Inner>,
}

impl Drop for Reads {
    fn drop(&mut self) {
        if let Some(inner) = self.hub.upgrade()
            && let Some(shared) = &inner.shared_log
        {
            shared.peers.lock().stop_reading();
        }
    }
}

/// What the task does next.
enum Step {
    Receive(ControlMessage),
    Apply(ReadPart),
    Turn,
}

/// Returns the next step. A due turn comes before messages. A part of a list that was read comes
/// before both only if `part_first` is true.
async fn next_step(
    part_first: bool,
    next_turn: Instant,
    messages: &mut BoxStream<'static, Answer<ControlMessage>>,
    reads: &mut FuturesUnordered<BoxFuture<'static, ReadPart>>,
) -> Answer<Step> {
    let read = async {
        match reads.next().await {
            Some(read) => read,
            None => pending().await,
        }
    };
    let apply = read.map(|read| Ok(Step::Apply(read)));
    let other = next_until(next_turn, messages).map(|received| Ok(received?.map_or(Step::Turn, Step::Receive)));
    let (apply, other) = (pin!(apply), pin!(other));
    if part_first { select(apply, other).await.factor_first().0 } else { select(other, apply).await.factor_first().0 }
}

/// Processes received messages, and broadcasts in turns, until an error occurs or the hub is
/// dropped.
async fn listen_and_broadcast(
    hub: &Weak<Inner>,
    mut messages: BoxStream<'static, Answer<ControlMessage>>,
) -> Answer<()> {
    let started = Instant::now();
    let (mut next_turn, mut next_lease, mut next_hello) = (started, started, started);
    let mut is_first = true;
    let mut reads = Reads { reads: FuturesUnordered::new(), hub: hub.clone() };
    // A part comes first once for each turn. So many lists do not keep the task from messages, and
    // many messages do not keep it from lists.
    let mut part_first = true;
    loop {
        let step = next_step(part_first, next_turn, &mut messages, &mut reads.reads).await?;
        let Some(inner) = hub.upgrade() else { return Ok(()) };
        let hub = Hub { inner };
        let Some(shared) = &hub.inner.shared_log else { return Ok(()) };
        match step {
            Step::Receive(control) => {
                let reply = hub.receive(shared, &control.message);
                *shared.mark.lock() = Some(control.mark);
                if let Some(reply) = reply {
                    hub.broadcast(shared, reply).await?;
                }
            }
            Step::Apply(read) => {
                part_first = false;
                reads.reads.extend(hub.apply_part(shared, read).await);
            }
            Step::Turn => {
                part_first = true;
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
                if now >= next_hello && reports && !receives_own_messages {
                    next_hello = now + HELLO_EVERY;
                    hub.broadcast(shared, Body::Hello(shared.settings_digest.digest.clone())).await?;
                }
                if reports {
                    hub.broadcast_changes(shared).await?;
                    hub.store_list(shared).await?;
                    let questions = shared.peers.lock().questions(hub.now());
                    for (instance, needed) in questions {
                        hub.broadcast(shared, Body::Ask(instance, needed)).await?;
                    }
                    let lists = shared.peers.lock().lists_to_read(READS - reads.reads.len());
                    reads.reads.extend(lists.into_iter().map(|reading| hub.read_list(shared, reading)));
                }
                if !is_closed {
                    hub.broadcast_run_news(shared).await?;
                }
                hub.append_presence(shared).await;
                shared.outbox.lock().note_position(hub.now(), hub.position());
                hub.carry_out_queued(shared);
                let lease_is_due = std::mem::take(&mut shared.outbox.lock().lease_is_due) && reports;
                if (now >= next_lease || lease_is_due) && !is_closed {
                    next_lease = now + hub.settings().peer_timeout / 3;
                    #[cfg(feature = "metrics")]
                    hub.inner.record_stats();
                    let number = shared.outbox.lock().number();
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
        let Some(Message { from, entries, skipped }) = Message::decode(bytes) else {
            shared.unread.fetch_add(1, Ordering::Relaxed);
            return None;
        };
        shared.unread.fetch_add(skipped as u64, Ordering::Relaxed);
        let now = self.now();
        if from == shared.instance_id {
            shared.peers.lock().note_own_message(now);
            return None;
        }
        // Commands have their own stream, so one may arrive after the goodbye of its instance.
        if !entries.iter().any(|body| stream_of(body) == ControlStream::Commands) {
            shared.runs.lock().owners.heard(from, now);
        }
        let mut reply = None;
        for body in entries {
            match body {
                Body::Command(command) => self.carry_out_or_queue(shared, command),
                Body::Stop(name, id) => self.receive_stop(shared, &name, id),
                Body::Runs(news) => self.receive_run_news(shared, news),
                Body::Goodbye => {
                    shared.peers.lock().goodbye(from, now);
                    shared.runs.lock().owners.left(from, now);
                    self.look_at_runs(shared);
                }
                Body::Hello(settings) => {
                    shared.outbox.lock().lease_is_due = true;
                    if shared.settings_digest.differs(&settings) {
                        reply = Some(Body::Settings(shared.settings_digest.digest.clone()));
                    }
                }
                Body::Settings(settings) => _ = shared.settings_digest.differs(&settings),
                // An instance without streams needs no connections of others.
                _ if shared.writes_only => {}
                Body::Lease(number) => shared.peers.lock().lease(from, number, now),
                Body::PresenceUpdate(update) => shared.peers.lock().update(from, update, now),
                Body::Ask(to, needed) if to == shared.instance_id => shared.outbox.lock().asked(needed, now),
                Body::Ask(to, needed) => shared.peers.lock().asked(to, needed, now),
                Body::Listed(list) => shared.peers.lock().listed(from, list),
                Body::Part(_) => {}
            }
        }
        reply
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

    /// Broadcasts the goodbye of this instance, so that the other instances remove its connections
    /// at once.
    pub(in crate::hub) async fn broadcast_goodbye(&self, shared: &SharedLog) {
        // The ends of this instance's runs come first. A later message would look like one of an
        // instance that is alive.
        if let Err(error) = self.broadcast_run_news(shared).await {
            tracing::debug!(name: "sse.run.announce_failed", %error, "the ends of runs were not announced");
        }
        shared.outbox.lock().is_closed = true;
        if let Err(error) = self.send_goodbye(shared).await {
            tracing::debug!(name: "sse.peer.goodbye_failed", %error, "the goodbye failed: other instances may remove this instance only after peer_timeout");
        }
    }
}
