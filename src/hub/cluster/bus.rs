//! The hub's part of the control stream: commands reach every instance, and each knows who is connected elsewhere.
//!
//! 1. One task listens and broadcasts; it lives while the hub does, in a [task slot](crate::hub::tasks::slot)
//!    like the one that follows the log. When it could not listen it goes on after the last message that it got,
//!    so that no command is missed, and asks all instances anew.
//! 2. What changes here is reported a moment later, many changes in one message
//!    ([`outbox`](crate::hub::peers::outbox)).
//! 3. A disconnect and a leave are carried out when they are heard. A join that was given when the log was further than
//!    this instance waits until the log is there, at most for the publish timeout. A leave that overtakes joins of its
//!    topic carries them out first, so that it has the last word.
//! 4. An instance that has not heard itself for a lease is not ready: the others count it as gone
//!    ([`table`](crate::hub::peers::table)).

use std::collections::hash_set::HashSet;
use std::sync::Weak;

use bytes::Bytes;
use futures::FutureExt;
use futures::stream::BoxStream;
use tokio::time::{Duration, Instant};

use super::shared_log::SharedLog;
use crate::backplane::{Answer, ControlMessage, in_time, next_until};
use crate::hub::peers::message::{Body, Here, Message, News, Part, cut_topics};
use crate::hub::peers::outbox::{Due, PresenceEvent};
use crate::hub::peers::table::Heard;
use crate::hub::tasks::back_off::BackOff;
use crate::hub::tasks::background::Job;
use crate::hub::{Hub, Inner};
use crate::log::{Millis, millis};
use crate::types::{Action, Address, Audience, Command, ConnectionId, Topic, UserId};

/// How long changes are gathered before they are broadcast.
const GATHER: Duration = Duration::from_millis(50);
/// How many connections one message tells of.
const BATCH: usize = 256;
/// And about how many bytes: brokers take at least 1 MiB, unless they are told otherwise.
const BATCH_SIZE: usize = 64 * 1024;
/// How often an instance repeats its question until it hears the question itself.
const ASK_EVERY: Duration = Duration::from_millis(500);
/// How many commands wait for the log at most.
const WAITING: usize = 10_000;

pub(in crate::hub) static JOB: Job<Inner> =
    Job { run: |hub, _| attend(hub).boxed(), has_work: |_| true, has_more: |_| true };

async fn attend(hub: Weak<Inner>) {
    let mut back_off = BackOff::new();
    loop {
        let Some(inner) = hub.upgrade() else { return };
        let Some(shared) = &inner.shared_log else { return };
        let mark = shared.mark.lock().clone();
        let heard = shared.backplane.listen(mark);
        drop(inner);
        if let Err(error) = listen_and_broadcast(&hub, heard).await {
            let Some(inner) = hub.upgrade() else { return };
            inner.counters.control_failed(&error, inner.now());
        }
        back_off.wait().await;
    }
}

async fn listen_and_broadcast(hub: &Weak<Inner>, mut heard: BoxStream<'static, Answer<ControlMessage>>) -> Answer<()> {
    let begun = Instant::now();
    let (mut next_turn, mut next_lease, mut next_ask) = (begun, begun, begun);
    let mut is_first = true;
    loop {
        // Its own turn comes first, so that many messages do not keep it from broadcasting.
        let came = next_until(next_turn, &mut heard).await?;
        let Some(inner) = hub.upgrade() else { return Ok(()) };
        let hub = Hub { inner };
        let Some(shared) = &hub.inner.shared_log else { return Ok(()) };
        match came {
            Some(control) => {
                let question = hub.receive(shared, &control.message);
                *shared.mark.lock() = Some(control.mark);
                if let Some(question) = question {
                    hub.broadcast(shared, question).await?;
                }
            }
            None => {
                let now = Instant::now();
                if std::mem::take(&mut is_first) {
                    shared.peers.lock().reconnected(hub.now());
                }
                let gone = shared.outbox.lock().is_closed;
                let is_heard = shared.peers.lock().hears_itself();
                if now >= next_ask && !gone && !is_heard {
                    // Until it hears its own question. Others tell all, and so does this one: they may have missed
                    // something.
                    next_ask = now + ASK_EVERY;
                    shared.outbox.lock().report_all();
                    hub.broadcast(shared, shared.question()).await?;
                }
                if !gone {
                    hub.tell_news(shared).await?;
                }
                hub.append_presence(shared).await;
                shared.outbox.lock().note_position(hub.now(), hub.position());
                hub.carry_out_waiting(shared);
                if now >= next_lease && !gone {
                    next_lease = now + hub.settings().peer_timeout / 3;
                    let number = shared.outbox.lock().number;
                    hub.broadcast(shared, Body::Lease(number)).await?;
                    shared.peers.lock().sweep(hub.now());
                    let is_deaf = !shared.peers.lock().is_heard(hub.now());
                    if is_deaf && begun.elapsed() > hub.settings().peer_timeout {
                        hub.counters().deaf(hub.now());
                    }
                }
                let orphans = shared.peers.lock().take_orphans(shared.me, hub.now());
                for (topic, user) in orphans {
                    hub.inner.tell_of_orphan(&topic, &user);
                }
                // After the turn: one that takes long leaves time to hear before the next.
                next_turn = Instant::now() + GATHER;
            }
        }
    }
}

impl Hub {
    /// Takes in what another instance says. Returns what is to be said to it.
    fn receive(&self, shared: &SharedLog, bytes: &[u8]) -> Option<Body> {
        let Message { from, body } = Message::decode(bytes)?;
        let now = self.now();
        if from == shared.me {
            shared.peers.lock().heard_itself(now);
            return None;
        }
        let mut heard = Heard::Fine;
        match body {
            Body::Command(command) => self.carry_out_in_time(shared, command),
            Body::Ask(theirs) => {
                shared.outbox.lock().report_all();
                if shared.agreement.differs(&theirs) {
                    return Some(Body::Settings(shared.agreement.terms.clone()));
                }
            }
            Body::Settings(theirs) => {
                shared.agreement.differs(&theirs);
            }
            Body::Lease(number) => heard = shared.peers.lock().lease(from, number, now),
            Body::Bye => shared.peers.lock().bye(from, now),
            Body::News(news) => heard = shared.peers.lock().news(from, news, now),
        }
        let is_closed = shared.outbox.lock().is_closed;
        let is_asked = heard == Heard::Missing && !is_closed && shared.peers.lock().may_ask(from, now);
        is_asked.then(|| shared.question())
    }

    async fn broadcast(&self, shared: &SharedLog, body: Body) -> Answer<()> {
        let message = Message { from: shared.me, body };
        let sent = shared.backplane.broadcast(Bytes::from(message.encode()));
        in_time(self.settings().publish_timeout, sent).await
    }

    /// Broadcasts what has changed, or everything if an instance has asked for it.
    async fn tell_news(&self, shared: &SharedLog) -> Answer<()> {
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
        for (index, (here, gone)) in self.here_and_gone(&ids).into_iter().enumerate() {
            let part = if index == 0 { Part::First } else { Part::More };
            let number = if all { number } else { number + 1 + index as u64 };
            let news = News { number, all: all.then_some(part), here, gone: if all { Vec::new() } else { gone } };
            if let Err(error) = self.broadcast(shared, Body::News(news)).await {
                // Whoever missed it, or did not, is told all when this can speak again.
                shared.outbox.lock().report_all();
                return Err(error);
            }
            shared.outbox.lock().number = number;
        }
        if all {
            // That was all.
            self.broadcast(shared, Body::Lease(number)).await?;
        }
        Ok(())
    }

    /// In batches that a broker takes; at least one.
    fn here_and_gone(&self, ids: &[ConnectionId]) -> Vec<(Vec<Here>, Vec<ConnectionId>)> {
        let mut batches = Vec::new();
        let (mut here, mut gone, mut size) = (Vec::new(), Vec::new(), 0);
        for &id in ids {
            match self.registry().find(id) {
                Some(handle) => {
                    let mut topics = self.log().topics(&handle.subscriber);
                    if cut_topics(&mut topics) {
                        self.counters().topics_cut(self.now());
                    }
                    let one = Here { id, user: handle.user().cloned(), data: handle.data().cloned(), topics };
                    size += one.size();
                    here.push(one);
                }
                None => gone.push(id),
            }
            if here.len() + gone.len() >= BATCH || size >= BATCH_SIZE {
                batches.push((std::mem::take(&mut here), std::mem::take(&mut gone)));
                size = 0;
            }
        }
        if batches.is_empty() || !here.is_empty() || !gone.is_empty() {
            batches.push((here, gone));
        }
        batches
    }

    /// Appends presence events. One that fails is tried again, unless a later one about the same member was appended. A
    /// broker that may have it already gets it twice, which changes nothing for its readers.
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
                Err(error) => tracing::warn!(%error, "a presence event could not be published"),
                Ok(_) => drop(later.insert((&event.topic, &event.user))),
            }
        }
        shared.outbox.lock().announced(batch.len(), dropped, again);
    }

    /// Sends a command to the other instances.
    pub(in crate::hub) async fn tell_command(&self, shared: &SharedLog, command: Command) -> Answer<()> {
        self.inner.ensure_shared_log();
        self.broadcast(shared, Body::Command(command)).await
    }

    /// Says goodbye: what was connected here is gone.
    pub(in crate::hub) async fn tell_bye(&self, shared: &SharedLog) {
        shared.outbox.lock().is_closed = true;
        if let Err(error) = self.broadcast(shared, Body::Bye).await {
            tracing::debug!(%error, "the others learn by the lease that this instance is gone");
        }
    }

    fn carry_out_in_time(&self, shared: &SharedLog, command: Command) {
        match &command.action {
            Action::Disconnect(_) => return self.carry_out_late(&command),
            Action::Leave(topic) => {
                // Under the lock, so that no other thread carries out a part of them.
                let mut waiting = shared.commands.lock();
                waiting.retain(|(_, waiting)| {
                    let is_overtaken = waiting.joins(topic);
                    if is_overtaken {
                        self.carry_out_late(waiting);
                    }
                    !is_overtaken
                });
                return self.carry_out_late(&command);
            }
            Action::Join(..) | Action::Change(_) => {}
        }
        let until = self.now().saturating_add(millis(self.settings().publish_timeout));
        let mut waiting = shared.commands.lock();
        if waiting.len() < WAITING {
            waiting.push_back((until, command));
        } else {
            self.carry_out_late(&command);
        }
        drop(waiting);
        self.carry_out_waiting(shared);
    }

    /// In their order: those behind one that waits wait too. Under the lock, since both tasks come here.
    pub(in crate::hub) fn carry_out_waiting(&self, shared: &SharedLog) {
        let mut waiting = shared.commands.lock();
        let is_due = |(until, command): &(Millis, Command)| *until <= self.now() || !self.is_ahead(command);
        while waiting.front().is_some_and(is_due) {
            waiting.pop_front().iter().for_each(|(_, command)| self.carry_out_late(command));
        }
    }

    /// Whoever gave it was told of errors.
    fn carry_out_late(&self, command: &Command) {
        if let Err(error) = self.carry_out(command) {
            tracing::debug!(%error, "a command of another instance was carried out in part");
        }
    }

    /// It was given when the log was further than it is here.
    fn is_ahead(&self, command: &Command) -> bool {
        self.log().number(command.issued_at).is_some_and(|number| number > self.log().last())
    }
}
