//! The hub's part of the control stream: commands reach every instance, and each knows who is connected elsewhere.
//!
//! 1. One task hears and tells; it lives while the hub does, in a [task slot](super::task) like the one that follows the
//!    log. When it could not hear it goes on after what it heard last, so that no command is missed, and asks all
//!    instances anew.
//! 2. What changes here is noted at once and told a moment later, many changes in one message; then its number goes up.
//! 3. A command that was given when the log was further than this instance waits until the log is there.

use std::collections::hash_set::HashSet;
use std::collections::vec_deque::VecDeque;
use std::sync::{Arc, Weak};

use bytes::Bytes;
use futures::StreamExt;
use futures::future::{Either, select};
use futures::stream::BoxStream;
use tokio::runtime::Handle;
use tokio::time::{Duration, Instant, sleep, sleep_until};

use super::agreement::Agreement;
use super::peers::{Heard, Peers};
use super::remote::{Remote, in_time};
use super::task::TaskSlot;
use super::{Hub, Inner};
use crate::audience::{Address, Audience};
use crate::backplane::{BackplaneError, Told};
use crate::command::Command;
use crate::event::Event;
use crate::log::{Millis, millis};
use crate::message::{Body, Here, InstanceId, Message, News, Part};
use crate::name::{ConnectionId, Topic};
use crate::position::Position;
use crate::sync::{AtomicBool, Mutex, Ordering};

/// How long changes are gathered before they are told.
const GATHER: Duration = Duration::from_millis(50);
/// How many connections one message tells of.
const BATCH: usize = 256;
/// And about how many bytes: brokers take at least 1 MiB, unless they are told otherwise.
const BATCH_SIZE: usize = 64 * 1024;
const PAUSE: Duration = Duration::from_millis(500);
/// After how long what happens on one instance is known on the others, generously.
const SETTLE: Duration = Duration::from_secs(2);
/// How many commands wait for the log at most.
const WAITING: usize = 10_000;

#[derive(Debug)]
pub(super) struct Control {
    me: InstanceId,
    agreement: Agreement,
    pub(super) peers: Mutex<Peers>,
    outbox: Mutex<Outbox>,
    /// In the order in which they were given.
    waiting: Mutex<VecDeque<Command>>,
    /// Who has come and gone, to be appended to the shared log in this order.
    tidings: Mutex<VecDeque<(Topic, Event)>>,
    /// Where the log was, a while ago; newest last.
    positions: Mutex<VecDeque<(Millis, Position)>>,
    attending: Arc<TaskSlot>,
    /// Of what was heard last.
    mark: Mutex<Option<Box<str>>>,
    /// It has heard itself, so whatever is said from now on.
    hears: AtomicBool,
    /// It has said goodbye: who is connected is not told of any more.
    gone: AtomicBool,
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
    pub(super) fn new(lease: Duration, grace: Duration, agreement: Agreement) -> Self {
        Self {
            agreement,
            me: InstanceId(fastrand::u64(..)),
            peers: Mutex::new(Peers::new(millis(lease), millis(grace))),
            outbox: Mutex::default(),
            waiting: Mutex::default(),
            tidings: Mutex::default(),
            positions: Mutex::default(),
            attending: Arc::default(),
            mark: Mutex::default(),
            hears: AtomicBool::new(false),
            gone: AtomicBool::new(false),
        }
    }

    /// What all are asked.
    fn question(&self) -> Body {
        Body::Ask(self.agreement.terms().clone())
    }

    pub(super) fn is_attended(&self) -> bool {
        self.attending.is_attended()
    }

    pub(super) fn me(&self) -> InstanceId {
        self.me
    }

    /// Says in a topic that somebody has come or gone. If the broker is away for long the oldest are dropped.
    pub(super) fn tell_of(&self, topic: Topic, event: Event) {
        let mut tidings = self.tidings.lock();
        if tidings.len() == WAITING {
            tidings.pop_front();
        }
        tidings.push_back((topic, event));
    }

    /// Where the log was before what others have not told of yet: from there on nothing is missed.
    pub(super) fn settled_position(&self) -> Option<Position> {
        self.positions.lock().front().map(|(_, position)| *position)
    }

    /// A connection of this instance has come, changed or gone.
    pub(super) fn changed(&self, id: ConnectionId) {
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
    let topics: usize = here.topics.iter().map(|topic| topic.as_str().len() + 4).sum();
    user + data + topics + 64
}

pub(super) fn ensure(inner: &Arc<Inner>, remote: &Remote, runtime: &Handle) {
    let hub = Arc::downgrade(inner);
    remote.control.attending.ensure(runtime, |_| attend(hub), || {});
}

async fn attend(hub: Weak<Inner>) {
    loop {
        let Some(inner) = hub.upgrade() else { return };
        let Some(remote) = &inner.remote else { return };
        let mark = remote.control.mark.lock().clone();
        let heard = remote.backplane.hear(mark);
        drop(inner);
        if let Err(error) = hear_and_tell(&hub, heard).await {
            tracing::debug!(%error, "the control stream broke");
        }
        sleep(PAUSE.mul_f64(0.5 + fastrand::f64())).await;
    }
}

async fn hear_and_tell(
    hub: &Weak<Inner>,
    mut heard: BoxStream<'static, Result<Told, BackplaneError>>,
) -> Result<(), BackplaneError> {
    let mut next_tell = Instant::now();
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
        let Some(remote) = &hub.inner.remote else { return Ok(()) };
        match came {
            Some(Some(Ok(told))) => {
                let question = hub.hear(remote, &told.message);
                *remote.control.mark.lock() = Some(told.mark);
                if let Some(question) = question {
                    hub.say(remote, question).await?;
                }
            }
            Some(Some(Err(error))) => return Err(error),
            Some(None) => return Err(BackplaneError::unknown("the connection ended")),
            None => {
                let now = Instant::now();
                next_tell = now + GATHER;
                if std::mem::take(&mut is_first) {
                    remote.control.hears.store(false, Ordering::Release);
                    // While this one could not hear, nobody could renew a lease.
                    remote.control.peers.lock().renew(hub.now());
                }
                let gone = remote.control.gone.load(Ordering::Acquire);
                if now >= next_ask && !gone && !remote.control.hears.load(Ordering::Acquire) {
                    // Until it hears its own question. Others tell all, and so does this one: they may have missed something.
                    next_ask = now + PAUSE;
                    remote.control.outbox.lock().ask();
                    hub.say(remote, remote.control.question()).await?;
                }
                if !gone {
                    hub.tell_news(remote).await?;
                }
                hub.tell_tidings(remote).await;
                hub.note_position(remote);
                if now >= next_lease && !gone {
                    next_lease = now + hub.settings().lease / 3;
                    let number = remote.control.outbox.lock().number;
                    hub.say(remote, Body::Lease(number)).await?;
                    remote.control.peers.lock().sweep(hub.now());
                }
                let orphans = remote.control.peers.lock().take_orphans(remote.control.me, hub.now());
                for (topic, user) in orphans {
                    hub.inner.tell_of_orphan(&topic, &user);
                }
            }
        }
    }
}

impl Hub {
    /// Takes in what another instance says. Returns what is to be said to it.
    fn hear(&self, remote: &Remote, bytes: &[u8]) -> Option<Body> {
        let Message { from, body } = Message::decode(bytes)?;
        if from == remote.control.me {
            remote.control.hears.store(true, Ordering::Release);
            return None;
        }
        let now = self.now();
        let heard = match body {
            Body::Command(command) => {
                self.carry_out_in_time(remote, command);
                Heard::Fine
            }
            Body::Ask(theirs) => {
                remote.control.agreement.compare(&theirs);
                remote.control.outbox.lock().ask();
                Heard::Fine
            }
            Body::Lease(number) => remote.control.peers.lock().lease(from, number, now),
            Body::Bye => {
                remote.control.peers.lock().bye(from, now);
                Heard::Fine
            }
            Body::News(news) => remote.control.peers.lock().news(from, news, now),
        };
        (heard == Heard::Missing && !remote.control.gone.load(Ordering::Acquire)).then(|| remote.control.question())
    }

    async fn say(&self, remote: &Remote, body: Body) -> Result<(), BackplaneError> {
        let message = Message { from: remote.control.me, body };
        let told = remote.backplane.tell(Bytes::from(message.encode()));
        in_time(self.settings().publish_timeout, told).await
    }

    /// Tells what has changed, or all if somebody wants to know it.
    async fn tell_news(&self, remote: &Remote) -> Result<(), BackplaneError> {
        let (ids, number, all) = {
            let mut outbox = remote.control.outbox.lock();
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
            if let Err(error) = self.say(remote, Body::News(news)).await {
                // Whoever missed it, or did not, is told all when this can speak again.
                remote.control.outbox.lock().ask();
                return Err(error);
            }
            remote.control.outbox.lock().number = number;
        }
        if all {
            // That was all.
            self.say(remote, Body::Lease(number)).await?;
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
                    let one = Here {
                        id,
                        user: link.user().cloned(),
                        data: link.data().cloned(),
                        topics: self.log().topics(&link.subscriber),
                    };
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

    /// Appends who has come and gone. What fails is tried again; a broker that may have it already gets it twice, which
    /// changes nothing for those who read it.
    async fn tell_tidings(&self, remote: &Remote) {
        let batch: Vec<_> = {
            let mut tidings = remote.control.tidings.lock();
            let due = tidings.len().min(BATCH);
            tidings.drain(..due).collect()
        };
        if batch.is_empty() {
            return;
        }
        let events = batch.iter().map(|(topic, event)| (Audience::from(Address::Topic(topic.clone())), event.clone()));
        let appended = self.append_remote(remote, events.collect()).await;
        let mut tidings = remote.control.tidings.lock();
        for (tiding, outcome) in batch.into_iter().zip(appended).rev() {
            match outcome {
                Err(error) if error.is_unavailable() => tidings.push_front(tiding),
                Err(error) => tracing::warn!(%error, "who came or went could not be told"),
                Ok(_) => {}
            }
        }
    }

    fn note_position(&self, remote: &Remote) {
        let now = self.now();
        let mut positions = remote.control.positions.lock();
        positions.push_back((now, self.position()));
        let settle = millis(SETTLE);
        while positions.get(1).is_some_and(|(at, _)| at.saturating_add(settle) <= now) {
            positions.pop_front();
        }
    }

    /// Sends a command to the other instances.
    pub(super) async fn tell_command(&self, remote: &Remote, command: Command) -> Result<(), BackplaneError> {
        super::remote::ensure(&self.inner);
        self.say(remote, Body::Command(command)).await
    }

    /// Says goodbye: what was connected here is gone.
    pub(super) async fn tell_bye(&self, remote: &Remote) {
        remote.control.gone.store(true, Ordering::Release);
        if let Err(error) = self.say(remote, Body::Bye).await {
            tracing::debug!(%error, "the others learn by the lease that this instance is gone");
        }
    }

    fn carry_out_in_time(&self, remote: &Remote, command: Command) {
        {
            let mut waiting = remote.control.waiting.lock();
            if waiting.len() < WAITING {
                waiting.push_back(command);
            } else {
                drop(waiting);
                self.carry_out_late(&command);
            }
        }
        self.carry_out_waiting(remote);
    }

    /// In their order: those behind one that waits wait too. Under the lock, since both tasks come here.
    pub(super) fn carry_out_waiting(&self, remote: &Remote) {
        let mut waiting = remote.control.waiting.lock();
        while waiting.front().is_some_and(|command| !self.is_ahead(command)) {
            waiting.pop_front().iter().for_each(|command| self.carry_out_late(command));
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
