//! The hub's part of a log that several instances share: it writes to it, follows it, and says when it cannot.
//!
//! 1. Only one task follows, and only it applies records, in the order of the log. It lives while the hub does, in a
//!    [task slot](super::task): another replaces it if its runtime is gone or does not run it.
//! 2. Before it follows, it compares where the log is with what this instance has: another epoch, records that are gone.
//! 3. While nothing comes it asks every interval whether really nothing is there, so a mute connection is noticed.

use std::collections::hash_set::HashSet;
use std::hash::{DefaultHasher, Hasher};
use std::sync::{Arc, Weak};

use futures::StreamExt;
use futures::future::{Either, select};
use tokio::time::{Duration, Instant, sleep, sleep_until, timeout};

use super::agreement::Agreement;
use super::control::{self, Control};
use super::past::{self, Past};
use super::presence::Other;
use super::task::TaskSlot;
use super::{Hub, Inner, Settings, housekeeping, outgoing, tidings, workers};
use crate::audience::{Address, Audience};
use crate::backplane::{Backplane, BackplaneError, Current, Place, Seen, State, Stored};
use crate::error::PublishError;
use crate::event::Event;
use crate::log::{Effect, Entry, Millis, Policies};
use crate::name::{ConnectionId, Topic, UserId};
use crate::position::{Epoch, Position};
use crate::record::{self, Unreadable};
use crate::sync::{AtomicBool, AtomicU64, Mutex, Ordering};

/// How many records are read at a time when this instance catches up.
const BATCH: usize = 1024;
/// After how many probes that found something which did not come a connection counts as mute.
const MUTE: u32 = 2;
/// A server may be busy for a moment.
const SHORTEST_LOOK: Duration = Duration::from_secs(1);
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

pub(super) struct Remote {
    pub(super) backplane: Arc<dyn Backplane>,
    following: Arc<TaskSlot>,
    /// The log was read from its beginning once.
    loaded: AtomicBool,
    /// It cannot be followed now.
    stale: AtomicBool,
    /// The number of the newest record that was applied, in the current epoch.
    last: AtomicU64,
    /// Records that could not be read, ever.
    skipped: AtomicU64,
    /// The newest record that was applied, by its number and a hash: whether the log still has it there.
    newest: Mutex<Option<(u64, u64)>>,
    pub(super) past: Past,
    pub(super) control: Control,
}

impl Remote {
    pub(super) fn new(backplane: Arc<dyn Backplane>, settings: &Settings, policies: &Policies) -> Self {
        let agreement = Agreement::new(settings, policies, backplane.limits());
        Self {
            control: Control::new(settings.lease, settings.presence_grace, agreement),
            backplane,
            following: Arc::default(),
            loaded: AtomicBool::new(false),
            stale: AtomicBool::new(false),
            last: AtomicU64::new(0),
            skipped: AtomicU64::new(0),
            newest: Mutex::default(),
            past: Past::default(),
        }
    }

    pub(super) fn is_loaded(&self) -> bool {
        self.loaded.load(Ordering::Acquire)
    }

    pub(super) fn is_stale(&self) -> bool {
        self.stale.load(Ordering::Acquire)
    }

    /// Whether this instance follows the log and hears the others at this moment.
    pub(super) fn is_ready(&self, now: Millis) -> bool {
        self.is_loaded() && !self.is_stale() && self.is_attended() && self.control.is_heard(now)
    }

    /// Whether the tasks of the shared log run on a runtime that is alive.
    fn is_attended(&self) -> bool {
        self.following.is_attended() && self.control.is_attended() && self.past.is_attended()
    }

    pub(super) fn changed(&self, id: ConnectionId) {
        self.control.changed(id);
    }

    /// The connections of an audience on other instances, each once.
    pub(super) fn others(&self, audience: &Audience) -> Vec<Other> {
        let peers = self.control.peers.lock();
        let mut seen: HashSet<ConnectionId> = audience.excluded().iter().copied().collect();
        let mut others = Vec::new();
        for address in audience.addresses() {
            let found: Vec<_> = match address {
                Address::Everyone => peers.all().collect(),
                Address::Topic(topic) => peers.in_topic(topic).collect(),
                Address::User(user) => peers.connections_of(user).collect(),
                Address::Connection(id) => peers.find(*id).into_iter().collect(),
            };
            others.extend(
                found
                    .into_iter()
                    .filter(|here| seen.insert(here.id))
                    .map(|here| (here.user.clone(), here.data.clone())),
            );
        }
        others
    }

    /// How many connections an address has on other instances.
    pub(super) fn others_at(&self, address: &Address) -> usize {
        let peers = self.control.peers.lock();
        match address {
            Address::Everyone => peers.all().count(),
            Address::Topic(topic) => peers.topic_len(topic),
            Address::User(user) => peers.of_user(user),
            Address::Connection(id) => usize::from(peers.find(*id).is_some()),
        }
    }

    /// Whose a connection of another instance is, and its topics.
    pub(super) fn find(&self, id: ConnectionId) -> Option<(Option<UserId>, Vec<Topic>)> {
        self.control.peers.lock().find(id).map(|here| (here.user.clone(), here.topics.clone()))
    }

    /// How many other instances are known.
    pub(super) fn instances(&self) -> usize {
        self.control.peers.lock().len()
    }

    /// Says in a topic that somebody has come or gone.
    pub(super) fn tell_of(&self, topic: Topic, user: UserId, event: Event) {
        self.control.tell_of(topic, user, event);
    }

    /// Whether a user is a member of a topic on another instance.
    pub(super) fn is_member(&self, topic: &Topic, user: &UserId, now: Millis) -> bool {
        self.control.peers.lock().is_member(topic, user, now)
    }

    /// Whether another instance tells of a member that has left here.
    pub(super) fn speaks_for(&self, topic: &Topic, user: &UserId, now: Millis) -> bool {
        self.control.peers.lock().speaks_for(topic, user, self.control.me(), now)
    }

    /// Members on other instances who are not told of as gone yet, and from where on what is said later is news.
    pub(super) fn leaving(&self, topic: &Topic, now: Millis) -> Vec<UserId> {
        self.control.peers.lock().leaving(topic, now).cloned().collect()
    }

    pub(super) fn settled_position(&self) -> Option<Position> {
        self.control.settled_position()
    }

    pub(super) fn is_online(&self, user: &UserId, now: Millis) -> bool {
        self.control.peers.lock().is_online(user, now)
    }

    pub(super) fn skipped(&self) -> u64 {
        self.skipped.load(Ordering::Relaxed)
    }
}

impl std::fmt::Debug for Remote {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Remote").field("backplane", &self.backplane.describe()).finish_non_exhaustive()
    }
}

/// Makes sure that the tasks of the shared log run, if there is a runtime.
pub(super) fn ensure(inner: &Arc<Inner>) {
    let Some(remote) = &inner.remote else { return };
    if remote.is_attended() {
        return;
    }
    let Some(runtime) = workers::home(inner) else { return };
    control::ensure(inner, remote, &runtime);
    let hub = Arc::downgrade(inner);
    remote.following.ensure(&runtime, |_| follow(hub), || {});
    past::ensure(inner, remote);
}

async fn follow(inner: Weak<Inner>) {
    let hub = || inner.upgrade().map(|inner| Hub { inner });
    let mut pause = FIRST_PAUSE;
    loop {
        let Some(hub_now) = hub() else { return };
        let Some(remote) = &hub_now.inner.remote else { return };
        let (begun, last) = (Instant::now(), remote.last.load(Ordering::Acquire));
        let outcome = match hub_now.catch_up(remote).await {
            Ok(()) => {
                hub_now.set_stale(remote, false);
                let tail = remote.backplane.tail(remote.last.load(Ordering::Acquire));
                let probe = hub_now.settings().probe_interval;
                drop(hub_now);
                listen(&inner, tail, probe).await
            }
            Err(error) => {
                drop(hub_now);
                Err(error)
            }
        };
        let Some(hub_now) = hub() else { return };
        let Some(remote) = &hub_now.inner.remote else { return };
        if let Err(error) = outcome {
            hub_now.counters().broker_failed(&remote.backplane.describe(), &error, hub_now.now());
            hub_now.set_stale(remote, true);
        }
        // It got on.
        if begun.elapsed() > LONGEST_PAUSE || remote.last.load(Ordering::Acquire) != last {
            pause = FIRST_PAUSE;
        }
        drop(hub_now);
        sleep(pause.mul_f64(0.5 + fastrand::f64())).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Numbers beyond what every part of this and every broker counts exactly are not of a hub.
const MOST: u64 = 1 << 53;

fn believable(sequence: u64) -> Result<(), BackplaneError> {
    if sequence > MOST {
        return Err(BackplaneError::unknown("the log has a number that no hub has written"));
    }
    Ok(())
}

/// What does not answer is an error.
pub(super) async fn in_time<T>(
    limit: Duration,
    what: impl Future<Output = Result<T, BackplaneError>>,
) -> Result<T, BackplaneError> {
    timeout(limit, what).await.unwrap_or_else(|_| Err(BackplaneError::unknown("no answer in time")))
}

fn hash_of(payload: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(payload);
    hasher.finish()
}

/// Applies what comes, until the connection breaks or the log is not what it was. `Ok` if it is to be compared anew.
async fn listen(
    inner: &Weak<Inner>,
    mut tail: futures::stream::BoxStream<'static, Result<Vec<Stored>, BackplaneError>>,
    probe: Duration,
) -> Result<(), BackplaneError> {
    let mut next_probe = Instant::now() + probe;
    let mut mute = 0;
    loop {
        let came = match select(tail.next(), std::pin::pin!(sleep_until(next_probe))).await {
            Either::Left((came, _)) => Some(came),
            Either::Right(_) => None,
        };
        let Some(hub) = inner.upgrade().map(|inner| Hub { inner }) else { return Ok(()) };
        let Some(remote) = &hub.inner.remote else { return Ok(()) };
        match came {
            Some(Some(Ok(batch))) => {
                mute = 0;
                hub.apply(remote, batch).await?;
            }
            Some(Some(Err(error))) => return Err(error),
            Some(None) => return Err(BackplaneError::unknown("the connection ended")),
            None => {
                next_probe = Instant::now() + probe;
                // So that what goes wrong in silence is noticed within two intervals.
                let state = hub.look(remote, probe.max(SHORTEST_LOOK)).await?;
                if state.epoch != hub.log().epoch().0 {
                    return Ok(());
                }
                // Something is there that has not come since the last look.
                mute = if state.last > remote.last.load(Ordering::Acquire) { mute + 1 } else { 0 };
                if mute >= MUTE {
                    return Err(BackplaneError::unknown("the connection is mute"));
                }
            }
        }
    }
}

impl Hub {
    /// What this instance has seen of the log.
    pub(super) fn seen(&self, remote: &Remote) -> Option<Seen> {
        remote.is_loaded().then(|| Place { epoch: self.log().epoch().0, sequence: remote.last.load(Ordering::Acquire) })
    }

    async fn look(&self, remote: &Remote, limit: Duration) -> Result<State, BackplaneError> {
        in_time(limit, remote.backplane.state(self.seen(remote))).await
    }

    /// Compares, and loads what is needed to follow.
    async fn catch_up(&self, remote: &Remote) -> Result<(), BackplaneError> {
        while !self.load(remote).await? {}
        remote.loaded.store(true, Ordering::Release);
        self.carry_out_waiting(remote);
        Ok(())
    }

    /// Goes on from what this instance has. False if the log dropped what was to be read next.
    async fn load(&self, remote: &Remote) -> Result<bool, BackplaneError> {
        let mut state = self.look(remote, self.settings().publish_timeout).await?;
        if self.is_another(remote, state).await? {
            // Younger than what this has seen, although it has grown since: it takes a new epoch.
            let seen = Place { epoch: state.epoch, sequence: MOST };
            state = in_time(self.settings().publish_timeout, remote.backplane.state(Some(seen))).await?;
        }
        believable(state.last)?;
        believable(state.first)?;
        let first = state.first.max(1);
        let begins_anew = state.epoch != self.log().epoch().0;
        if begins_anew || first > remote.last.load(Ordering::Acquire) + 1 {
            let current = remote.backplane.values().await?;
            let mut values: Vec<_> = current.iter().filter_map(|current| self.read_value(current)).collect();
            values.sort_by_key(|(sequence, _)| *sequence);
            if begins_anew {
                // Before the epoch: who publishes between the two shall not claim to have seen more of the new one than there is.
                remote.last.store(first - 1, Ordering::Release);
                // It is of the life before.
                *remote.newest.lock() = None;
                self.log().begin_epoch(Epoch(state.epoch), first - 1, values, self.now());
            } else {
                self.log().lose_all(first - 1, values, self.now());
                remote.last.store(first - 1, Ordering::Release);
            }
            workers::wake_rest(&self.inner);
        }
        while remote.last.load(Ordering::Acquire) < state.last {
            let batch = remote.backplane.range(remote.last.load(Ordering::Acquire), BATCH).await?;
            if batch.is_empty() {
                return Ok(false);
            }
            self.apply(remote, batch).await?;
            tokio::task::yield_now().await;
        }
        // Values may be newer than every record that is kept.
        self.log().advance(state.last.max(remote.last.load(Ordering::Acquire)), self.now());
        Ok(true)
    }

    /// Whether the log has other records than those that were applied, under the same numbers: it was rolled back, and
    /// somebody who had not seen what is lost has appended to it since.
    async fn is_another(&self, remote: &Remote, state: State) -> Result<bool, BackplaneError> {
        let newest = *remote.newest.lock();
        let Some((sequence, hash)) = newest.filter(|_| remote.is_loaded() && state.epoch == self.log().epoch().0)
        else {
            return Ok(false);
        };
        if !(state.first..=state.last).contains(&sequence) {
            return Ok(false);
        }
        let found = in_time(self.settings().publish_timeout, remote.backplane.range(sequence - 1, 1)).await?;
        Ok(found.first().is_some_and(|stored| stored.sequence == sequence && hash_of(&stored.payload) != hash))
    }

    /// A current value with its place, for the address that it is of: others of its union may have another since.
    fn read_value(&self, current: &Current) -> Option<(u64, Entry)> {
        let Entry { audience, effect, draft } = self.read(&current.record.payload).ok()?;
        let Effect::Sets(key) = &effect else { return None };
        let address = audience.addresses().iter().find(|address| record::value_id(address, key) == *current.id)?;
        let mut of = Audience::from(address.clone());
        audience.excluded().iter().for_each(|id| of.exclude(*id));
        believable(current.record.sequence).ok()?;
        Some((current.record.sequence, Entry { audience: of, effect, draft }))
    }

    /// Takes in what the log says, in its order.
    async fn apply(&self, remote: &Remote, batch: Vec<Stored>) -> Result<(), BackplaneError> {
        for stored in batch {
            let last = remote.last.load(Ordering::Acquire);
            if stored.sequence <= last {
                continue;
            }
            believable(stored.sequence)?;
            if stored.sequence > last + 1 {
                self.fill(remote, stored.sequence).await?;
            }
            self.apply_one(remote, &stored);
        }
        workers::wake_rest(&self.inner);
        housekeeping::ensure(&self.inner);
        // Commands that were given when the log was further than this instance.
        self.carry_out_waiting(remote);
        Ok(())
    }

    /// What lies before a record that came, if it is still to be had.
    async fn fill(&self, remote: &Remote, before: u64) -> Result<(), BackplaneError> {
        loop {
            let last = remote.last.load(Ordering::Acquire);
            if last + 1 >= before {
                return Ok(());
            }
            let batch = remote.backplane.range(last, BATCH).await?;
            for stored in batch.iter().filter(|stored| stored.sequence > last && stored.sequence < before) {
                self.miss_before(remote, stored.sequence);
                self.apply_one(remote, stored);
            }
            if batch.last().is_none_or(|stored| stored.sequence >= before || stored.sequence <= last) {
                self.miss_before(remote, before);
            }
        }
    }

    /// What is missing before a number is not to be had any more.
    fn miss_before(&self, remote: &Remote, sequence: u64) {
        if sequence > remote.last.load(Ordering::Acquire) + 1 {
            self.log().lose(sequence - 1, None, self.now());
            remote.last.store(sequence - 1, Ordering::Release);
        }
    }

    fn apply_one(&self, remote: &Remote, stored: &Stored) {
        let now = self.now();
        match self.read(&stored.payload) {
            Ok(entry) => {
                self.attach_connections(&entry.audience);
                self.log().apply(stored.sequence, entry, now);
            }
            Err(audience) => {
                remote.skipped.fetch_add(1, Ordering::Relaxed);
                self.counters().record_skipped(stored.sequence, now);
                self.log().lose(stored.sequence, audience.as_deref(), now);
            }
        }
        *remote.newest.lock() = Some((stored.sequence, hash_of(&stored.payload)));
        remote.last.store(stored.sequence, Ordering::Release);
    }

    /// A record by the rules of the publish API; else for whom it was, if that can be read.
    pub(super) fn read(&self, payload: &[u8]) -> Result<Entry, Option<Box<Audience>>> {
        let decoded = record::decode(payload, self.settings().max_targets);
        let (audience, event) = decoded.map_err(|unreadable| match unreadable {
            Unreadable::Garbage => None,
            Unreadable::Of(audience) => Some(audience),
        })?;
        if tidings::is_tiding(&event) {
            return tidings::entry(audience, &event).map_err(Some);
        }
        self.entry(audience, &event).map_err(|refused| Some(Box::new(refused.0)))
    }

    /// Appends to the shared log, in one round trip where the broker can.
    pub(super) async fn append_remote(
        &self,
        remote: &Remote,
        events: Vec<(Audience, Event)>,
    ) -> Vec<Result<Position, PublishError>> {
        ensure(&self.inner);
        let keeps_values = |address: &_| self.log().keeps_values(address);
        let records = events.iter().map(|(audience, event)| outgoing::record(audience, event, keeps_values)).collect();
        let limit = self.settings().publish_timeout;
        let places = outgoing::append(&*remote.backplane, records, self.seen(remote), limit).await;
        places.into_iter().map(|place| place.map(outgoing::position)).collect()
    }

    /// Tells everybody when the log cannot be followed, and when it can again.
    fn set_stale(&self, remote: &Remote, stale: bool) {
        if remote.stale.swap(stale, Ordering::AcqRel) != stale {
            self.counters().staleness(stale);
            let now = self.now();
            for link in self.registry().all() {
                link.wake(now);
            }
        }
    }
}

impl Inner {
    /// Whether streams are to be told that the log cannot be followed.
    pub(super) fn is_stale(&self) -> bool {
        self.remote.as_ref().is_some_and(Remote::is_stale)
    }
}
