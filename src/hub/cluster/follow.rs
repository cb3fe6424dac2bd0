//! The hub's part of a log that several instances share: it writes to it, follows it, and says when it cannot.
//!
//! 1. Only one task follows, and only it applies records, in the order of the log. It lives while the hub does, in a
//!    [task slot](crate::hub::tasks::slot): another replaces it if its runtime is gone or does not run it.
//! 2. Before it follows, it compares where the log is with what this instance has: another epoch, records that are gone.
//! 3. While nothing comes it asks every interval whether really nothing is there, so a mute connection is noticed.

use std::collections::hash_set::HashSet;
use std::sync::{Arc, Weak};

use futures::StreamExt;
use futures::future::{Either, select};
use tokio::time::{Duration, Instant, sleep_until};

use super::backfill::{self, Past};
use super::bus::{self, Control};
use super::history::{History, Next};
use super::record::{self, Decoded, Unreadable};
use super::settings_digest::Agreement;
use super::{append, presence_records};
use crate::backplane::{Backplane, BackplaneError, Current, Place, Seen, State, Stored};
use crate::hub::peers::table::Other;
use crate::hub::tasks::back_off::{BackOff, in_time};
use crate::hub::tasks::slot::TaskSlot;
use crate::hub::tasks::workers;
use crate::hub::upkeep::sweep;
use crate::hub::{Hub, Inner, Settings};
use crate::log::{Effect, Entry, Millis, Policies};
use crate::sync::{AtomicBool, AtomicU64, Ordering};
use crate::types::audience::{Address, Audience};
use crate::types::error::PublishError;
use crate::types::event::Event;
use crate::types::name::{ConnectionId, Topic, UserId};
use crate::types::position::{Epoch, Position};

/// After how many probes that found something which did not come a connection counts as mute.
const MUTE: u32 = 2;
/// A server may be busy for a moment.
const SHORTEST_LOOK: Duration = Duration::from_secs(1);
/// How far a client may be ahead of what this instance knows of the log: other instances may be faster.
const MOST_AHEAD: u64 = 100_000;
/// The same while the log cannot be followed. Far below all numbers that are counted exactly, since a new life of the log
/// begins above what clients claim.
const MOST_AHEAD_WHILE_STALE: u64 = 1 << 40;

pub(in crate::hub) struct Remote {
    pub(in crate::hub) backplane: Arc<dyn Backplane>,
    following: Arc<TaskSlot>,
    /// The log was read from its beginning once.
    loaded: AtomicBool,
    /// It cannot be followed now.
    stale: AtomicBool,
    /// The number of the newest record that was applied, in the current epoch.
    last: AtomicU64,
    /// Records that could not be read, ever.
    skipped: AtomicU64,
    /// The newest record that the log had when it was asked last.
    latest: AtomicU64,
    /// How many epochs the log has begun while this instance followed it.
    epochs: AtomicU64,
    pub(in crate::hub) history: History,
    pub(in crate::hub) past: Past,
    pub(in crate::hub) control: Control,
}

impl Remote {
    pub(in crate::hub) fn new(backplane: Arc<dyn Backplane>, settings: &Settings, policies: &Policies) -> Self {
        let agreement = Agreement::new(settings, policies, backplane.limits());
        Self {
            control: Control::new(settings.lease, settings.presence_grace, agreement),
            backplane,
            following: Arc::default(),
            loaded: AtomicBool::new(false),
            stale: AtomicBool::new(false),
            last: AtomicU64::new(0),
            skipped: AtomicU64::new(0),
            latest: AtomicU64::new(0),
            epochs: AtomicU64::new(0),
            history: History::default(),
            past: Past::default(),
        }
    }

    pub(in crate::hub) fn is_loaded(&self) -> bool {
        self.loaded.load(Ordering::Acquire)
    }

    pub(in crate::hub) fn is_stale(&self) -> bool {
        self.stale.load(Ordering::Acquire)
    }

    pub(in crate::hub) fn epochs(&self) -> u16 {
        // Only compared with a recent one.
        self.epochs.load(Ordering::Acquire) as u16
    }

    /// Whether this instance follows the log and hears the others at this moment.
    pub(in crate::hub) fn is_ready(&self, now: Millis) -> bool {
        self.is_loaded() && !self.is_stale() && self.is_attended() && self.control.is_heard(now)
    }

    /// Whether the tasks of the shared log run on a runtime that is alive.
    fn is_attended(&self) -> bool {
        self.following.is_attended() && self.control.is_attended() && self.past.is_attended()
    }

    /// How far a client may be ahead of this instance. An instance that cannot follow the log does not know how far the log
    /// has come, and one that can knows how far it is behind.
    pub(in crate::hub) fn most_ahead(&self) -> u64 {
        if self.is_stale() {
            return MOST_AHEAD_WHILE_STALE;
        }
        let behind = self.latest.load(Ordering::Acquire).saturating_sub(self.last.load(Ordering::Acquire));
        behind.saturating_add(MOST_AHEAD)
    }

    pub(in crate::hub) fn changed(&self, id: ConnectionId) {
        self.control.changed(id);
    }

    /// The connections of an audience on other instances, each once.
    pub(in crate::hub) fn others(&self, audience: &Audience) -> Vec<Other> {
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
    pub(in crate::hub) fn others_at(&self, address: &Address) -> usize {
        let peers = self.control.peers.lock();
        match address {
            Address::Everyone => peers.all().count(),
            Address::Topic(topic) => peers.topic_len(topic),
            Address::User(user) => peers.of_user(user),
            Address::Connection(id) => usize::from(peers.find(*id).is_some()),
        }
    }

    /// Whose a connection of another instance is, and its topics.
    pub(in crate::hub) fn find(&self, id: ConnectionId) -> Option<(Option<UserId>, Vec<Topic>)> {
        self.control.peers.lock().find(id).map(|here| (here.user.clone(), here.topics.clone()))
    }

    /// How many other instances are known.
    pub(in crate::hub) fn instances(&self) -> usize {
        self.control.peers.lock().len()
    }

    /// Says in a topic that somebody has come or gone.
    pub(in crate::hub) fn tell_of(&self, topic: Topic, user: UserId, event: Event) {
        self.control.tell_of(topic, user, event);
    }

    /// Whether a user is a member of a topic on another instance.
    pub(in crate::hub) fn is_member(&self, topic: &Topic, user: &UserId, now: Millis) -> bool {
        self.control.peers.lock().is_member(topic, user, now)
    }

    /// Whether another instance tells of a member that has left here.
    pub(in crate::hub) fn speaks_for(&self, topic: &Topic, user: &UserId, now: Millis) -> bool {
        self.control.peers.lock().speaks_for(topic, user, self.control.me(), now)
    }

    /// Members on other instances who are not told of as gone yet, and from where on what is said later is news.
    pub(in crate::hub) fn leaving(&self, topic: &Topic, now: Millis) -> Vec<UserId> {
        self.control.peers.lock().leaving(topic, now).cloned().collect()
    }

    pub(in crate::hub) fn settled_position(&self) -> Option<Position> {
        self.control.settled_position()
    }

    pub(in crate::hub) fn is_online(&self, user: &UserId, now: Millis) -> bool {
        self.control.peers.lock().is_online(user, now)
    }

    pub(in crate::hub) fn skipped(&self) -> u64 {
        self.skipped.load(Ordering::Relaxed)
    }
}

impl std::fmt::Debug for Remote {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Remote").field("backplane", &self.backplane.describe()).finish_non_exhaustive()
    }
}

/// Makes sure that the tasks of the shared log run, if there is a runtime.
pub(in crate::hub) fn ensure(inner: &Arc<Inner>) {
    let Some(remote) = &inner.remote else { return };
    if remote.is_attended() {
        return;
    }
    bus::ensure(inner, remote);
    workers::ensure_task(inner, &remote.following, |hub, _| follow(hub), |_| {});
    backfill::ensure(inner, remote);
}

async fn follow(inner: Weak<Inner>) {
    let hub = || inner.upgrade().map(|inner| Hub { inner });
    let mut back_off = BackOff::new();
    loop {
        let Some(hub_now) = hub() else { return };
        let Some(remote) = &hub_now.inner.remote else { return };
        let last = remote.last.load(Ordering::Acquire);
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
        if remote.last.load(Ordering::Acquire) != last {
            back_off = BackOff::new();
        }
        drop(hub_now);
        back_off.wait().await;
    }
}

/// From when on the age of a record counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Age {
    /// From now on: it has just come. The clocks of publishers do not matter.
    New,
    /// From when it was published: this instance starts.
    AsPublished,
}

/// Numbers beyond what every part of this and every broker counts exactly are not of a hub.
const MOST: u64 = 1 << 53;

pub(in crate::hub) fn believable(sequence: u64) -> Result<(), BackplaneError> {
    if sequence > MOST {
        return Err(BackplaneError::unknown("the log has a number that no hub has written"));
    }
    Ok(())
}

/// Applies what comes, until the connection breaks or the log is not what it was. `Ok` if it is to be compared anew.
async fn listen(
    inner: &Weak<Inner>,
    mut tail: futures::stream::BoxStream<'static, Result<Vec<Stored>, BackplaneError>>,
    probe: Duration,
) -> Result<(), BackplaneError> {
    let mut next_probe = Instant::now() + probe;
    let (mut mute, mut uncompared) = (0, 0);
    loop {
        // The probe comes first, so that a log that is never silent is compared too.
        let came = match select(std::pin::pin!(sleep_until(next_probe)), tail.next()).await {
            Either::Left(_) => None,
            Either::Right((came, _)) => Some(came),
        };
        let Some(hub) = inner.upgrade().map(|inner| Hub { inner }) else { return Ok(()) };
        let Some(remote) = &hub.inner.remote else { return Ok(()) };
        match came {
            Some(Some(Ok(batch))) => {
                mute = 0;
                hub.apply(remote, batch, Age::New).await?;
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
                match hub.is_another(remote, state).await {
                    Ok(false) => uncompared = 0,
                    Ok(true) => return Ok(()),
                    // Reading may be slow for a moment, while much is read.
                    Err(error) => {
                        uncompared += 1;
                        if uncompared >= MUTE {
                            return Err(error);
                        }
                    }
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
    pub(in crate::hub) fn seen(&self, remote: &Remote) -> Option<Seen> {
        remote.is_loaded().then(|| Place { epoch: self.log().epoch().0, sequence: remote.last.load(Ordering::Acquire) })
    }

    pub(in crate::hub) async fn look(&self, remote: &Remote, limit: Duration) -> Result<State, BackplaneError> {
        let state = in_time(limit, remote.backplane.state(self.seen(remote))).await?;
        if state.last <= MOST {
            remote.latest.store(state.last, Ordering::Release);
        }
        Ok(state)
    }

    /// Compares, and loads what is needed to follow.
    async fn catch_up(&self, remote: &Remote) -> Result<(), BackplaneError> {
        self.load(remote).await?;
        remote.loaded.store(true, Ordering::Release);
        self.carry_out_waiting(remote);
        Ok(())
    }

    /// Goes on from what this instance has.
    async fn load(&self, remote: &Remote) -> Result<(), BackplaneError> {
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
        if begins_anew {
            self.begin_anew(remote, Epoch(state.epoch), first - 1).await?;
        } else if first > remote.last.load(Ordering::Acquire) + 1 {
            self.lose_through(remote, first - 1).await?;
        }
        // Open streams get what was published while this instance could not follow, however long that was.
        let age = if remote.is_loaded() { Age::New } else { Age::AsPublished };
        while remote.last.load(Ordering::Acquire) < state.last {
            match self.read_on(remote, remote.last.load(Ordering::Acquire)).await? {
                Next::Records(batch) => self.apply(remote, batch, age).await?,
                Next::Lost(upto) => self.lose_through(remote, upto).await?,
            }
            if remote.last.load(Ordering::Acquire) < state.last {
                tokio::task::yield_now().await;
            }
        }
        // Values may be newer than every record that is kept.
        self.log().advance(state.last.max(remote.last.load(Ordering::Acquire)), self.now());
        Ok(())
    }

    /// The log has another epoch, of which nothing is kept up to a number but current values.
    async fn begin_anew(&self, remote: &Remote, epoch: Epoch, gone: u64) -> Result<(), BackplaneError> {
        let values = self.current_values(remote).await?;
        // Before the epoch: a publish between the two must not claim to have seen more of the new epoch than there is.
        remote.last.store(gone, Ordering::Release);
        // What is known is of the life before.
        remote.history.clear();
        // Streams that read the new epoch have seen this before.
        remote.epochs.fetch_add(1, Ordering::AcqRel);
        self.log().begin_epoch(epoch, gone, values, self.now());
        workers::wake_rest(&self.inner);
        Ok(())
    }

    /// Records up to a number are lost, and current values may have changed in them.
    async fn lose_through(&self, remote: &Remote, upto: u64) -> Result<(), BackplaneError> {
        let values = self.current_values(remote).await?;
        self.log().lose_all(upto, values, self.now());
        remote.last.store(upto, Ordering::Release);
        workers::wake_rest(&self.inner);
        Ok(())
    }

    async fn current_values(&self, remote: &Remote) -> Result<Vec<(u64, Entry)>, BackplaneError> {
        let current = remote.backplane.values().await?;
        let mut values: Vec<_> = current.iter().filter_map(|current| self.read_value(current)).collect();
        values.sort_by_key(|(sequence, _)| *sequence);
        Ok(values)
    }

    /// A current value with its place, for the address that it is of: others of its union may have another since.
    fn read_value(&self, current: &Current) -> Option<(u64, Entry)> {
        let Entry { audience, effect, draft, published } =
            self.read_aged(&current.record.payload, Age::AsPublished).ok()?;
        let Effect::Sets(key) = &effect else { return None };
        let address = audience.addresses().iter().find(|address| record::value_id(address, key) == *current.id)?;
        let mut of = Audience::from(address.clone());
        audience.excluded().iter().for_each(|id| of.exclude(*id));
        believable(current.record.sequence).ok()?;
        Some((current.record.sequence, Entry { audience: of, effect, draft, published }))
    }

    /// Takes in what the log says, in its order.
    async fn apply(&self, remote: &Remote, batch: Vec<Stored>, age: Age) -> Result<(), BackplaneError> {
        for stored in batch {
            let last = remote.last.load(Ordering::Acquire);
            if stored.sequence <= last {
                continue;
            }
            believable(stored.sequence)?;
            if stored.sequence > last + 1 {
                self.fill(remote, stored.sequence, age).await?;
            }
            self.apply_one(remote, &stored, age);
        }
        workers::wake_rest(&self.inner);
        sweep::ensure(&self.inner);
        // Commands that were given when the log was further than this instance.
        self.carry_out_waiting(remote);
        Ok(())
    }

    /// Reads what lies before a record that came.
    async fn fill(&self, remote: &Remote, before: u64, age: Age) -> Result<(), BackplaneError> {
        loop {
            let last = remote.last.load(Ordering::Acquire);
            if last + 1 >= before {
                return Ok(());
            }
            match self.read_on(remote, last).await? {
                Next::Records(batch) => {
                    let together = batch.iter().zip(last + 1..before).take_while(|(stored, n)| stored.sequence == *n);
                    together.for_each(|(stored, _)| self.apply_one(remote, stored, age));
                }
                Next::Lost(upto) => self.lose_through(remote, upto.min(before - 1)).await?,
            }
        }
    }

    fn apply_one(&self, remote: &Remote, stored: &Stored, age: Age) {
        let now = self.now();
        match self.read_aged(&stored.payload, age) {
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
        remote.history.add(stored);
        remote.last.store(stored.sequence, Ordering::Release);
    }

    /// A record by the rules of the publish API; else for whom it was, if that can be read.
    pub(in crate::hub) fn read(&self, payload: &[u8]) -> Result<Entry, Option<Box<Audience>>> {
        self.read_aged(payload, Age::New)
    }

    fn read_aged(&self, payload: &[u8], age: Age) -> Result<Entry, Option<Box<Audience>>> {
        let decoded = record::decode(payload, self.settings().max_targets);
        let Decoded { audience, event, published_at } = decoded.map_err(|unreadable| match unreadable {
            Unreadable::Garbage => None,
            Unreadable::Of(audience) => Some(audience),
        })?;
        let entry = if presence_records::is_tiding(&event) {
            presence_records::entry(audience, &event).map_err(Some)?
        } else {
            self.entry(audience, &event).map_err(|refused| Some(Box::new(refused.0)))?
        };
        let passed = |at: u64| self.now().saturating_sub(record::unix_millis().saturating_sub(at));
        Ok(Entry { published: published_at.filter(|_| age == Age::AsPublished).map(passed), ..entry })
    }

    /// Appends to the shared log, in one round trip where the broker can.
    pub(in crate::hub) async fn append_remote(
        &self,
        remote: &Remote,
        events: Vec<(Audience, Event)>,
    ) -> Vec<Result<Position, PublishError>> {
        ensure(&self.inner);
        let keeps_values = |address: &_| self.log().keeps_values(address);
        let records = events.iter().map(|(audience, event)| append::record(audience, event, keeps_values)).collect();
        let limit = self.settings().publish_timeout;
        let places = append::append(&*remote.backplane, records, self.seen(remote), limit).await;
        places.into_iter().map(|place| place.map(append::position)).collect()
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
    pub(in crate::hub) fn is_stale(&self) -> bool {
        self.remote.as_ref().is_some_and(Remote::is_stale)
    }
}
