//! The hub's part of the control stream: commands reach every instance, and each knows who is connected elsewhere.
//!
//! 1. One task hears and tells; it lives while the hub does, in a [task slot](crate::hub::tasks::slot) like the one that follows the
//!    log. When it could not hear it goes on after what it heard last, so that no command is missed, and asks all
//!    instances anew.
//! 2. What changes here is noted at once and told a moment later, many changes in one message; then its number goes up.
//! 3. A disconnect and a leave are carried out when they are heard. A join that was given when the log was further than
//!    this instance waits until the log is there, at most for the publish timeout. A leave that overtakes joins of its
//!    topic carries them out first, so that it has the last word.
//! 4. An instance that has not heard itself for a lease is deaf: the others count it as gone. It is not ready then.

use std::collections::hash_set::HashSet;
use std::collections::vec_deque::VecDeque;
use std::sync::Weak;

use bytes::Bytes;
use futures::future::{Either, select};
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt};
use tokio::time::{Duration, Instant, sleep_until};

use super::settings_digest::Agreement;
use super::shared_log::SharedLog;
use crate::backplane::{BackplaneError, Told};
use crate::hub::peers::message::{Body, Here, InstanceId, Message, News, Part};
use crate::hub::peers::table::{Heard, Peers};
use crate::hub::tasks::back_off::{BackOff, in_time};
use crate::hub::tasks::background::Job;
use crate::hub::{Hub, Inner};
use crate::log::{Millis, millis};
use crate::sync::{AtomicBool, AtomicU64, Mutex, Ordering};
use crate::types::audience::{Address, Audience};
use crate::types::command::{Action, Command};
use crate::types::event::Event;
use crate::types::name::{ConnectionId, Topic, UserId};
use crate::types::position::Position;

/// How long changes are gathered before they are told.
const GATHER: Duration = Duration::from_millis(50);
/// How many connections one message tells of.
const BATCH: usize = 256;
/// And about how many bytes: brokers take at least 1 MiB, unless they are told otherwise.
const BATCH_SIZE: usize = 64 * 1024;
/// How often an instance repeats its question until it hears the question itself.
const ASK_EVERY: Duration = Duration::from_millis(500);
/// After how long what happens on one instance is known on the others, generously.
const SETTLE: Duration = Duration::from_secs(2);
/// How many commands wait for the log at most, and how many presence events for the broker.
const WAITING: usize = 10_000;
/// How many bytes of names one connection may have in a message. Its further topics are not known on other instances.
const LARGEST: usize = 512 * 1024;

/// In place of a time: never.
const NEVER: Millis = Millis::MAX;

#[derive(Debug)]
pub(in crate::hub) struct Control {
    me: InstanceId,
    agreement: Agreement,
    pub(in crate::hub) peers: Mutex<Peers>,
    outbox: Mutex<Outbox>,
    /// In the order in which they were given, each with the time until which it waits.
    waiting: Mutex<VecDeque<(Millis, Command)>>,
    /// Presence events, to be appended to the shared log in this order.
    tidings: Mutex<Tidings>,
    /// Where the log was, a while ago; newest last.
    positions: Mutex<VecDeque<(Millis, Position)>>,
    /// Of what was heard last.
    mark: Mutex<Option<Box<str>>>,
    /// It has heard itself, so whatever is said from now on.
    hears: AtomicBool,
    /// When it heard itself last, or [`NEVER`].
    heard_at: AtomicU64,
    lease: Millis,
    /// It has said goodbye: who is connected is not told of any more.
    gone: AtomicBool,
}

/// Presence events that wait for the broker, oldest first.
#[derive(Debug, Default)]
struct Tidings {
    waiting: VecDeque<Tiding>,
    /// How many were dropped because the queue was full, ever.
    dropped: u64,
}

/// A presence event about a member of a topic.
#[derive(Clone, Debug)]
struct Tiding {
    topic: Topic,
    user: UserId,
    event: Event,
}

#[derive(Debug, Default)]
struct Outbox {
    changed: HashSet<ConnectionId>,
    /// Of the last news.
    number: u64,
    /// Somebody wants to know all.
    asked: bool,
}

impl Control {
    pub(in crate::hub) fn new(lease: Duration, grace: Duration, agreement: Agreement) -> Self {
        Self {
            agreement,
            me: InstanceId(fastrand::u64(..)),
            peers: Mutex::new(Peers::new(millis(lease), millis(grace))),
            outbox: Mutex::default(),
            waiting: Mutex::default(),
            tidings: Mutex::default(),
            positions: Mutex::default(),
            mark: Mutex::default(),
            hears: AtomicBool::new(false),
            heard_at: AtomicU64::new(NEVER),
            lease: millis(lease),
            gone: AtomicBool::new(false),
        }
    }

    /// What all are asked.
    fn question(&self) -> Body {
        Body::Ask(self.agreement.terms().clone())
    }

    pub(in crate::hub) fn me(&self) -> InstanceId {
        self.me
    }

    /// Whether this instance hears what it says itself. So it hears the others, and they hear it.
    pub(in crate::hub) fn is_heard(&self, now: Millis) -> bool {
        let heard_at = self.heard_at.load(Ordering::Acquire);
        heard_at != NEVER && now.saturating_sub(heard_at) <= self.lease
    }

    /// Publishes a presence event in a topic. If the broker is away for long the oldest are dropped.
    pub(in crate::hub) fn tell_of(&self, topic: Topic, user: UserId, event: Event) {
        let mut tidings = self.tidings.lock();
        if tidings.waiting.len() == WAITING {
            tidings.waiting.pop_front();
            tidings.dropped += 1;
        }
        tidings.waiting.push_back(Tiding { topic, user, event });
    }

    /// Where the log was before what others have not told of yet: from there on nothing is missed.
    pub(in crate::hub) fn settled_position(&self) -> Option<Position> {
        self.positions.lock().front().map(|(_, position)| *position)
    }

    /// A connection of this instance has come, changed or gone.
    pub(in crate::hub) fn changed(&self, id: ConnectionId) {
        let mut outbox = self.outbox.lock();
        // All will be told anyway.
        if !outbox.asked {
            outbox.changed.insert(id);
        }
    }
}

impl Outbox {
    /// All are told of, so also those that have changed.
    fn ask(&mut self) {
        self.asked = true;
        self.changed.clear();
    }
}

/// About how many bytes one connection takes in a message.
fn size_of(here: &Here) -> usize {
    let user = here.user.as_ref().map_or(0, |user| user.as_str().len());
    let data = here.data.as_ref().map_or(0, |data| data.len());
    let topics: usize = here.topics.iter().map(size_of_topic).sum();
    user + data + topics + 64
}

/// JSON writes a control character in six bytes; a topic has none, so a byte takes two at most.
fn size_of_topic(topic: &Topic) -> usize {
    let escaped = topic.as_str().bytes().filter(|byte| b"\"\\".contains(byte)).count();
    topic.as_str().len() + escaped + 4
}

/// Leaves out topics that no broker would take in one message. Returns whether there were any.
fn cut_topics(topics: &mut Vec<Topic>) -> bool {
    let mut size = 0;
    let fits = |topic: &&Topic| {
        size += size_of_topic(topic);
        size <= LARGEST
    };
    let count = topics.iter().take_while(fits).count();
    let is_cut = count < topics.len();
    topics.truncate(count);
    is_cut
}

pub(in crate::hub) static JOB: Job<Inner> = Job { run: |hub, _| attend(hub).boxed(), has_work: |_| true };

async fn attend(hub: Weak<Inner>) {
    let mut back_off = BackOff::new();
    loop {
        let Some(inner) = hub.upgrade() else { return };
        let Some(shared) = &inner.shared_log else { return };
        let mark = shared.control.mark.lock().clone();
        let heard = shared.backplane.hear(mark);
        drop(inner);
        let outcome = hear_and_tell(&hub, heard).await;
        if let Err(error) = outcome {
            let Some(inner) = hub.upgrade() else { return };
            inner.counters.control_failed(&error, inner.now());
        }
        back_off.wait().await;
    }
}

async fn hear_and_tell(
    hub: &Weak<Inner>,
    mut heard: BoxStream<'static, Result<Told, BackplaneError>>,
) -> Result<(), BackplaneError> {
    let begun = Instant::now();
    let mut next_tell = begun;
    let mut next_lease = Instant::now();
    let mut next_ask = Instant::now();
    let mut is_first = true;
    loop {
        // Its own turn comes first, so that much to be heard does not keep it from telling.
        let came = match select(std::pin::pin!(sleep_until(next_tell)), heard.next()).await {
            Either::Left(_) => None,
            Either::Right((came, _)) => Some(came),
        };
        let Some(inner) = hub.upgrade() else { return Ok(()) };
        let hub = Hub { inner };
        let Some(shared) = &hub.inner.shared_log else { return Ok(()) };
        match came {
            Some(Some(Ok(told))) => {
                let question = hub.hear(shared, &told.message);
                *shared.control.mark.lock() = Some(told.mark);
                if let Some(question) = question {
                    hub.say(shared, question).await?;
                }
            }
            Some(Some(Err(error))) => return Err(error),
            Some(None) => return Err(BackplaneError::unknown("the connection ended")),
            None => {
                let now = Instant::now();
                if std::mem::take(&mut is_first) {
                    shared.control.hears.store(false, Ordering::Release);
                    // While this one could not hear, nobody could renew a lease.
                    shared.control.peers.lock().renew(hub.now());
                }
                let gone = shared.control.gone.load(Ordering::Acquire);
                if now >= next_ask && !gone && !shared.control.hears.load(Ordering::Acquire) {
                    // Until it hears its own question. Others tell all, and so does this one: they may have missed something.
                    next_ask = now + ASK_EVERY;
                    shared.control.outbox.lock().ask();
                    hub.say(shared, shared.control.question()).await?;
                }
                if !gone {
                    hub.tell_news(shared).await?;
                }
                hub.tell_tidings(shared).await;
                hub.note_position(shared);
                hub.carry_out_waiting(shared);
                if now >= next_lease && !gone {
                    next_lease = now + hub.settings().lease / 3;
                    let number = shared.control.outbox.lock().number;
                    hub.say(shared, Body::Lease(number)).await?;
                    shared.control.peers.lock().sweep(hub.now());
                    if !shared.control.is_heard(hub.now()) && begun.elapsed() > hub.settings().lease {
                        hub.counters().deaf(hub.now());
                    }
                }
                let orphans = shared.control.peers.lock().take_orphans(shared.control.me, hub.now());
                for (topic, user) in orphans {
                    hub.inner.tell_of_orphan(&topic, &user);
                }
                // After the turn: one that takes long leaves time to hear before the next.
                next_tell = Instant::now() + GATHER;
            }
        }
    }
}

impl Hub {
    /// Takes in what another instance says. Returns what is to be said to it.
    fn hear(&self, shared: &SharedLog, bytes: &[u8]) -> Option<Body> {
        let Message { from, body } = Message::decode(bytes)?;
        if from == shared.control.me {
            shared.control.hears.store(true, Ordering::Release);
            shared.control.heard_at.store(self.now(), Ordering::Release);
            return None;
        }
        let now = self.now();
        let heard = match body {
            Body::Command(command) => {
                self.carry_out_in_time(shared, command);
                Heard::Fine
            }
            Body::Ask(theirs) => {
                shared.control.outbox.lock().ask();
                if shared.control.agreement.differs(&theirs) {
                    return Some(Body::Settings(shared.control.agreement.terms().clone()));
                }
                Heard::Fine
            }
            Body::Settings(theirs) => {
                shared.control.agreement.differs(&theirs);
                Heard::Fine
            }
            Body::Lease(number) => shared.control.peers.lock().lease(from, number, now),
            Body::Bye => {
                shared.control.peers.lock().bye(from, now);
                Heard::Fine
            }
            Body::News(news) => shared.control.peers.lock().news(from, news, now),
        };
        let may_ask = || !shared.control.gone.load(Ordering::Acquire) && shared.control.peers.lock().may_ask(from, now);
        (heard == Heard::Missing && may_ask()).then(|| shared.control.question())
    }

    async fn say(&self, shared: &SharedLog, body: Body) -> Result<(), BackplaneError> {
        let message = Message { from: shared.control.me, body };
        let told = shared.backplane.tell(Bytes::from(message.encode()));
        in_time(self.settings().publish_timeout, told).await
    }

    /// Tells what has changed, or all if somebody wants to know it.
    async fn tell_news(&self, shared: &SharedLog) -> Result<(), BackplaneError> {
        let (ids, number, all) = {
            let mut outbox = shared.control.outbox.lock();
            let all = std::mem::take(&mut outbox.asked);
            let changed = std::mem::take(&mut outbox.changed);
            let ids: Vec<_> = if all {
                self.registry().all().iter().map(|link| link.id()).collect()
            } else {
                changed.into_iter().collect()
            };
            (ids, outbox.number, all)
        };
        if ids.is_empty() && !all {
            return Ok(());
        }
        for (index, (here, gone)) in self.here_and_gone(&ids).into_iter().enumerate() {
            let part = if index == 0 { Part::First } else { Part::More };
            let number = if all { number } else { number + 1 + index as u64 };
            let news = News { number, all: all.then_some(part), here, gone: if all { Vec::new() } else { gone } };
            if let Err(error) = self.say(shared, Body::News(news)).await {
                // Whoever missed it, or did not, is told all when this can speak again.
                shared.control.outbox.lock().ask();
                return Err(error);
            }
            shared.control.outbox.lock().number = number;
        }
        if all {
            // That was all.
            self.say(shared, Body::Lease(number)).await?;
        }
        Ok(())
    }

    /// In batches that a broker takes; at least one.
    fn here_and_gone(&self, ids: &[ConnectionId]) -> Vec<(Vec<Here>, Vec<ConnectionId>)> {
        let mut batches = Vec::new();
        let (mut here, mut gone, mut size) = (Vec::new(), Vec::new(), 0);
        for &id in ids {
            match self.registry().find(id) {
                Some(link) => {
                    let mut topics = self.log().topics(&link.subscriber);
                    if cut_topics(&mut topics) {
                        self.counters().topics_cut(self.now());
                    }
                    let one = Here { id, user: link.user().cloned(), data: link.data().cloned(), topics };
                    size += size_of(&one);
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
    async fn tell_tidings(&self, shared: &SharedLog) {
        // They stay in the queue until the answer is there: this task may be replaced while it waits.
        let (batch, before): (Vec<Tiding>, u64) = {
            let tidings = shared.control.tidings.lock();
            (tidings.waiting.iter().take(BATCH).cloned().collect(), tidings.dropped)
        };
        if batch.is_empty() {
            return;
        }
        let events = batch
            .iter()
            .map(|Tiding { topic, event, .. }| (Audience::from(Address::Topic(topic.clone())), event.clone()));
        let appended = self.append_shared(shared, events.collect()).await;
        let mut later: HashSet<(&Topic, &UserId)> = HashSet::new();
        let mut again = Vec::new();
        for (tiding, outcome) in batch.iter().zip(appended).rev() {
            match outcome {
                Err(error) if error.is_unavailable() => {
                    if !later.contains(&(&tiding.topic, &tiding.user)) {
                        again.push(tiding.clone());
                    }
                }
                Err(error) => tracing::warn!(%error, "a presence event could not be published"),
                Ok(_) => drop(later.insert((&tiding.topic, &tiding.user))),
            }
        }
        let mut tidings = shared.control.tidings.lock();
        // Fewer if the queue was full and the oldest were dropped meanwhile.
        let dropped = usize::try_from(tidings.dropped - before).unwrap_or(usize::MAX);
        let done = batch.len().saturating_sub(dropped).min(tidings.waiting.len());
        tidings.waiting.drain(..done);
        again.into_iter().for_each(|tiding| tidings.waiting.push_front(tiding));
    }

    fn note_position(&self, shared: &SharedLog) {
        let now = self.now();
        let mut positions = shared.control.positions.lock();
        positions.push_back((now, self.position()));
        let settle = millis(SETTLE);
        while positions.get(1).is_some_and(|(at, _)| at.saturating_add(settle) <= now) {
            positions.pop_front();
        }
    }

    /// Sends a command to the other instances.
    pub(in crate::hub) async fn tell_command(
        &self,
        shared: &SharedLog,
        command: Command,
    ) -> Result<(), BackplaneError> {
        self.inner.ensure_shared_log();
        self.say(shared, Body::Command(command)).await
    }

    /// Says goodbye: what was connected here is gone.
    pub(in crate::hub) async fn tell_bye(&self, shared: &SharedLog) {
        shared.control.gone.store(true, Ordering::Release);
        if let Err(error) = self.say(shared, Body::Bye).await {
            tracing::debug!(%error, "the others learn by the lease that this instance is gone");
        }
    }

    fn carry_out_in_time(&self, shared: &SharedLog, command: Command) {
        match &command.action {
            Action::Disconnect(_) => return self.carry_out_late(&command),
            Action::Leave(topic) => {
                let mut waiting = shared.control.waiting.lock();
                let (before, others): (Vec<_>, Vec<_>) =
                    std::mem::take(&mut *waiting).into_iter().partition(|(_, command)| command.joins(topic));
                waiting.extend(others);
                // Under the lock, so that no other thread carries out a part of them.
                before.iter().for_each(|(_, command)| self.carry_out_late(command));
                return self.carry_out_late(&command);
            }
            Action::Join(..) | Action::Change(_) => {}
        }
        let until = self.now().saturating_add(millis(self.settings().publish_timeout));
        {
            let mut waiting = shared.control.waiting.lock();
            if waiting.len() < WAITING {
                waiting.push_back((until, command));
            } else {
                drop(waiting);
                self.carry_out_late(&command);
            }
        }
        self.carry_out_waiting(shared);
    }

    /// In their order: those behind one that waits wait too. Under the lock, since both tasks come here.
    pub(in crate::hub) fn carry_out_waiting(&self, shared: &SharedLog) {
        let mut waiting = shared.control.waiting.lock();
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
