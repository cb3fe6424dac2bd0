//! The log that several instances share, as far as this instance knows it: its state and its questions.
//!
//! The tasks that change it are in [`follow`](super::follow), [`bus`](super::bus) and [`backfill`](super::backfill).
//! 1. A client is never believed to be far ahead of the log ([`SharedLog::most_ahead`]).
//! 2. A number that no hub can have written is an error of the broker ([`believable`]).

use std::collections::hash_set::HashSet;
use std::collections::vec_deque::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use super::blocks::Blocks;
use super::history::History;
use super::settings_digest::Agreement;
use crate::backplane::{Answer, Backplane, BackplaneError, LogPosition, LogState, Seen, in_time};
use crate::hub::Settings;
use crate::hub::connection::handle::ConnectionHandle;
use crate::hub::peers::message::{Body, InstanceId};
use crate::hub::peers::outbox::Outbox;
use crate::hub::peers::table::{Other, Peers};
use crate::log::{Block, Millis, Policies, millis};
use crate::sync::{AtomicBool, AtomicU64, Mutex, Ordering};
use crate::types::{Address, Audience, Command, ConnectionId, Epoch, Event, Position, Topic, UserId};

/// How far a client may be ahead of what this instance knows of the log: other instances may be faster.
const MOST_AHEAD: u64 = 100_000;
/// The same while the log cannot be followed. Far below all numbers that are counted exactly, since a
/// new life of the log begins above what clients claim.
const MOST_AHEAD_WHILE_STALE: u64 = 1 << 40;

/// Numbers beyond what every part of this and every broker counts exactly are not of a hub.
pub(super) const MOST: u64 = 1 << 53;

pub(in crate::hub) struct SharedLog {
    pub(in crate::hub) backplane: Arc<dyn Backplane>,
    /// The log was read from its beginning once.
    pub(super) loaded: AtomicBool,
    /// It cannot be followed now.
    pub(super) stale: AtomicBool,
    /// The number of the newest record that was applied, in the current epoch.
    pub(super) last: AtomicU64,
    /// Records that could not be read, ever.
    pub(super) skipped: AtomicU64,
    /// The newest record that the log had when it was asked last.
    latest: AtomicU64,
    /// How many epochs the log has begun while this instance followed it.
    pub(super) epochs: AtomicU64,
    pub(super) history: History,
    pub(super) blocks: Mutex<Blocks>,
    /// This instance.
    pub(super) me: InstanceId,
    pub(super) agreement: Agreement,
    /// Of the message that was heard last.
    pub(super) mark: Mutex<Option<Box<str>>>,
    /// Commands that wait for the log, in the order in which they were given, each with the time until which it waits.
    pub(super) commands: Mutex<VecDeque<(Millis, Command)>>,
    pub(super) peers: Mutex<Peers>,
    pub(super) outbox: Mutex<Outbox>,
}

impl SharedLog {
    pub(in crate::hub) fn new(backplane: Arc<dyn Backplane>, settings: &Settings, policies: &Policies) -> Self {
        let agreement = Agreement::new(settings, policies, backplane.describe_limits());
        Self {
            me: InstanceId(fastrand::u64(..)),
            agreement,
            mark: Mutex::default(),
            commands: Mutex::default(),
            peers: Mutex::new(Peers::new(millis(settings.peer_timeout), millis(settings.presence_grace))),
            outbox: Mutex::default(),
            backplane,
            loaded: AtomicBool::new(false),
            stale: AtomicBool::new(false),
            last: AtomicU64::new(0),
            skipped: AtomicU64::new(0),
            latest: AtomicU64::new(0),
            epochs: AtomicU64::new(0),
            history: History::default(),
            blocks: Mutex::default(),
        }
    }

    pub(in crate::hub) fn is_loaded(&self) -> bool {
        self.loaded.load(Ordering::Acquire)
    }

    /// The number of the newest record that was applied.
    pub(super) fn last(&self) -> u64 {
        self.last.load(Ordering::Acquire)
    }

    /// What this instance has seen of the log, whose epoch is this one here.
    pub(super) fn seen(&self, epoch: Epoch) -> Option<Seen> {
        self.is_loaded().then(|| LogPosition { epoch: epoch.0, sequence: self.last() })
    }

    /// Asks the broker for the state of the log.
    pub(super) async fn look(&self, epoch: Epoch, limit: Duration) -> Answer<LogState> {
        let state = in_time(limit, self.backplane.state(self.seen(epoch))).await?;
        if state.last <= MOST {
            self.latest.store(state.last, Ordering::Release);
        }
        Ok(state)
    }

    /// Whether the log cannot be followed now.
    pub(in crate::hub) fn is_stale(&self) -> bool {
        self.stale.load(Ordering::Acquire)
    }

    pub(in crate::hub) fn epochs(&self) -> u16 {
        // Only compared with a recent one.
        self.epochs.load(Ordering::Acquire) as u16
    }

    /// Whether this instance could follow the log and hear the others when it last tried.
    pub(in crate::hub) fn is_ready(&self, now: Millis) -> bool {
        self.is_loaded() && !self.is_stale() && self.peers.lock().is_heard(now)
    }

    /// What all are asked.
    pub(super) fn question(&self) -> Body {
        Body::Ask(self.agreement.terms.clone())
    }

    /// The block with what comes after a number. If it is not here yet, the connection is woken when it
    /// is. The caller then makes sure that the tasks run.
    pub(in crate::hub) fn look_back(
        &self,
        base: u64,
        number: u64,
        handle: &Arc<ConnectionHandle>,
        now: Millis,
    ) -> Option<Arc<Block>> {
        if number < base {
            // Of a life that has just ended: the next look knows.
            handle.wake(now);
            return None;
        }
        self.blocks.lock().find_or_wait(base, number, handle)
    }

    /// How far a client may be ahead of this instance. An instance that cannot follow the log does not
    /// know how far the log has come, and one that can knows how far it is behind.
    pub(in crate::hub) fn most_ahead(&self) -> u64 {
        if self.is_stale() {
            return MOST_AHEAD_WHILE_STALE;
        }
        let behind = self.latest.load(Ordering::Acquire).saturating_sub(self.last());
        behind.saturating_add(MOST_AHEAD)
    }

    pub(in crate::hub) fn changed(&self, id: ConnectionId) {
        self.outbox.lock().changed(id);
    }

    /// The connections of an audience on other instances, each once.
    pub(in crate::hub) fn others(&self, audience: &Audience) -> Vec<Other> {
        let peers = self.peers.lock();
        let mut seen: HashSet<ConnectionId> = audience.excluded().iter().copied().collect();
        let found = audience.addresses().iter().flat_map(|address| match address {
            Address::Everyone => peers.all().collect(),
            Address::Topic(topic) => peers.in_topic(topic).collect(),
            Address::User(user) => peers.of_user(user).collect(),
            Address::Connection(id) => peers.find(*id).into_iter().collect::<Vec<_>>(),
        });
        found.filter(|here| seen.insert(here.id)).map(|here| (here.user.clone(), here.data.clone())).collect()
    }

    /// How many connections an address has on other instances.
    pub(in crate::hub) fn others_at(&self, address: &Address) -> usize {
        let peers = self.peers.lock();
        match address {
            Address::Everyone => peers.all().count(),
            Address::Topic(topic) => peers.in_topic(topic).count(),
            Address::User(user) => peers.of_user(user).count(),
            Address::Connection(id) => usize::from(peers.find(*id).is_some()),
        }
    }

    /// Whose a connection of another instance is, and its topics.
    pub(in crate::hub) fn find(&self, id: ConnectionId) -> Option<(Option<UserId>, Vec<Topic>)> {
        self.peers.lock().find(id).map(|here| (here.user.clone(), here.topics.clone()))
    }

    /// How many other instances are known.
    pub(in crate::hub) fn instances(&self) -> usize {
        self.peers.lock().len()
    }

    /// Publishes a presence event in a topic, in a moment.
    pub(in crate::hub) fn announce(&self, topic: Topic, user: UserId, event: Event) {
        self.outbox.lock().announce(topic, user, event);
    }

    /// Whether a user is a member of a topic on another instance.
    pub(in crate::hub) fn is_member(&self, topic: &Topic, user: &UserId, now: Millis) -> bool {
        self.peers.lock().is_member(topic, user, now)
    }

    /// Whether another instance tells of a member that has left here.
    pub(in crate::hub) fn speaks_for(&self, topic: &Topic, user: &UserId, now: Millis) -> bool {
        self.peers.lock().speaks_for(topic, user, self.me, now)
    }

    /// Members on other instances who are not told of as gone yet, and from where on what is said later is news.
    pub(in crate::hub) fn leaving(&self, topic: &Topic, now: Millis) -> Vec<UserId> {
        self.peers.lock().leaving(topic, now).cloned().collect()
    }

    pub(in crate::hub) fn settled_position(&self) -> Option<Position> {
        self.outbox.lock().settled_position()
    }

    pub(in crate::hub) fn is_online(&self, user: &UserId, now: Millis) -> bool {
        self.peers.lock().is_online(user, now)
    }

    pub(in crate::hub) fn skipped(&self) -> u64 {
        self.skipped.load(Ordering::Relaxed)
    }
}

pub(super) fn believable(sequence: u64) -> Answer<()> {
    if sequence > MOST {
        return Err(BackplaneError::unknown("the log has a number that no hub has written"));
    }
    Ok(())
}
