//! The state that this instance has of the shared log and of the other instances.
//!
//! The tasks in [`follow`](super::follow), [`bus`](super::bus) and [`backfill`](super::backfill)
//! change this state.
//!
//! 1. A client's position may be ahead of this instance, but only up to a limit
//!    ([`SharedLog::most_ahead`]).
//! 2. A record number that no hub can have written is an error of the broker ([`check_sequence`]).

use std::collections::hash_set::HashSet;
use std::collections::vec_deque::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use super::blocks::Blocks;
use super::history::History;
use super::settings_digest::SettingsDigest;
use crate::backplane::{Answer, Backplane, BackplaneError, LogPosition, LogState, Seen, in_time};
use crate::hub::Settings;
use crate::hub::connection::handle::ConnectionHandle;
use crate::hub::peers::message::{Body, InstanceId};
use crate::hub::peers::outbox::Outbox;
use crate::hub::peers::table::{Other, Peers};
use crate::log::{Block, Millis, Policies, millis};
use crate::sync::{AtomicBool, AtomicU64, Mutex, Ordering};
use crate::types::{Address, Audience, Command, ConnectionId, Epoch, Event, Position, Topic, UserId};

/// The maximum number of records by which a client may be ahead of this instance. Clients may be
/// ahead because other instances may read the log faster.
const MAX_AHEAD: u64 = 100_000;
/// The same limit while the log cannot be followed. It is far below [`MAX_SEQUENCE`], because the
/// numbers of a new epoch begin above all numbers that clients have sent.
const MAX_AHEAD_WHILE_STALE: u64 = 1 << 40;

/// The highest record number that a hub accepts. Brokers and their scripts count exactly up to
/// here.
pub(super) const MAX_SEQUENCE: u64 = 1 << 53;

/// The shared log, and the state of this instance for it.
pub(in crate::hub) struct SharedLog {
    pub(in crate::hub) backplane: Arc<dyn Backplane>,
    /// Whether this instance has read the whole log once.
    pub(super) loaded: AtomicBool,
    /// Whether the log cannot be followed now.
    pub(super) stale: AtomicBool,
    /// The number of the newest record that was applied, in the current epoch.
    pub(super) last: AtomicU64,
    /// The number of records that were skipped because they could not be read.
    pub(super) skipped: AtomicU64,
    /// The number of the newest record that the log had at the last query of its state.
    latest: AtomicU64,
    /// The number of epochs that have begun while this instance followed the log.
    pub(super) epochs: AtomicU64,
    pub(super) history: History,
    pub(super) blocks: Mutex<Blocks>,
    /// The id of this instance.
    pub(super) instance_id: InstanceId,
    pub(super) settings_digest: SettingsDigest,
    /// The mark of the control message that was received last.
    pub(super) mark: Mutex<Option<Box<str>>>,
    /// Commands that wait for the log, in the order in which they arrived, each with the time at
    /// which the wait ends.
    pub(super) commands: Mutex<VecDeque<(Millis, Command)>>,
    pub(super) peers: Mutex<Peers>,
    pub(super) outbox: Mutex<Outbox>,
}

impl SharedLog {
    pub(in crate::hub) fn new(backplane: Arc<dyn Backplane>, settings: &Settings, policies: &Policies) -> Self {
        let settings_digest = SettingsDigest::new(settings, policies, backplane.describe_limits());
        Self {
            instance_id: InstanceId(fastrand::u64(..)),
            settings_digest,
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

    /// Returns whether this instance has read the whole log once.
    pub(in crate::hub) fn is_loaded(&self) -> bool {
        self.loaded.load(Ordering::Acquire)
    }

    /// Returns the number of the newest record that was applied.
    pub(super) fn last(&self) -> u64 {
        self.last.load(Ordering::Acquire)
    }

    /// Returns the highest position that this instance has seen. `epoch` is the current epoch.
    pub(super) fn seen(&self, epoch: Epoch) -> Option<Seen> {
        self.is_loaded().then(|| LogPosition { epoch: epoch.0, sequence: self.last() })
    }

    /// Queries the state of the log.
    pub(super) async fn query_state(&self, epoch: Epoch, limit: Duration) -> Answer<LogState> {
        let state = in_time(limit, self.backplane.state(self.seen(epoch))).await?;
        if state.last <= MAX_SEQUENCE {
            self.latest.store(state.last, Ordering::Release);
        }
        Ok(state)
    }

    /// Returns whether the log cannot be followed now.
    pub(in crate::hub) fn is_stale(&self) -> bool {
        self.stale.load(Ordering::Acquire)
    }

    /// Returns a counter that increases with every new epoch.
    pub(in crate::hub) fn epochs(&self) -> u16 {
        // 16 bits are enough, because a value is only compared with a recent one.
        self.epochs.load(Ordering::Acquire) as u16
    }

    /// Returns whether this instance follows the log and has received one of its own control
    /// messages within the peer timeout.
    pub(in crate::hub) fn is_ready(&self, now: Millis) -> bool {
        self.is_loaded() && !self.is_stale() && self.peers.lock().is_received(now)
    }

    /// Returns the message that asks all instances for their connections.
    pub(super) fn report_request(&self) -> Body {
        Body::Ask(self.settings_digest.digest.clone())
    }

    /// Returns the block with the records after a number. If the block was not read yet, returns
    /// `None` and wakes the connection when it is available. The caller must then make sure that
    /// the tasks run.
    pub(in crate::hub) fn find_block(
        &self,
        base: u64,
        number: u64,
        handle: &Arc<ConnectionHandle>,
        now: Millis,
    ) -> Option<Arc<Block>> {
        if number < base {
            // The number is of an epoch that has just ended. The next read of the stream reports
            // it.
            handle.wake(now);
            return None;
        }
        self.blocks.lock().find_or_wait(base, number, handle)
    }

    /// Returns the number of records by which a client's position may be ahead of this instance.
    ///
    /// While this instance follows the log, it knows how far it is behind. While it cannot follow
    /// the log, the log may have grown by any number of records.
    pub(in crate::hub) fn most_ahead(&self) -> u64 {
        if self.is_stale() {
            return MAX_AHEAD_WHILE_STALE;
        }
        let behind = self.latest.load(Ordering::Acquire).saturating_sub(self.last());
        behind.saturating_add(MAX_AHEAD)
    }

    /// Notes that a connection of this instance was opened, changed or closed.
    pub(in crate::hub) fn changed(&self, id: ConnectionId) {
        self.outbox.lock().changed(id);
    }

    /// Returns the connections of an audience on other instances, each once.
    pub(in crate::hub) fn others(&self, audience: &Audience) -> Vec<Other> {
        let peers = self.peers.lock();
        let mut seen: HashSet<ConnectionId> = audience.excluded().iter().copied().collect();
        let found = audience.addresses().iter().flat_map(|address| match address {
            Address::Everyone => peers.all().collect(),
            Address::Topic(topic) => peers.in_topic(topic).collect(),
            Address::User(user) => peers.of_user(user).collect(),
            Address::Connection(id) => peers.find(*id).into_iter().collect::<Vec<_>>(),
        });
        found.filter(|peer| seen.insert(peer.id)).map(|peer| (peer.user.clone(), peer.data.clone())).collect()
    }

    /// Returns the number of connections that an address has on other instances.
    pub(in crate::hub) fn count_peers_at(&self, address: &Address) -> usize {
        let peers = self.peers.lock();
        match address {
            Address::Everyone => peers.all().count(),
            Address::Topic(topic) => peers.in_topic(topic).count(),
            Address::User(user) => peers.of_user(user).count(),
            Address::Connection(id) => usize::from(peers.find(*id).is_some()),
        }
    }

    /// Returns the user and the topics of a connection on another instance.
    pub(in crate::hub) fn find(&self, id: ConnectionId) -> Option<(Option<UserId>, Vec<Topic>)> {
        self.peers.lock().find(id).map(|peer| (peer.user.clone(), peer.topics.clone()))
    }

    /// Returns the number of other instances.
    pub(in crate::hub) fn instances(&self) -> usize {
        self.peers.lock().len()
    }

    /// Queues a presence event of a topic. The control task appends it to the log.
    pub(in crate::hub) fn announce(&self, topic: Topic, user: UserId, event: Event) {
        self.outbox.lock().announce(topic, user, event);
    }

    /// Returns whether a user is a member of a topic on another instance.
    pub(in crate::hub) fn is_member(&self, topic: &Topic, user: &UserId, now: Millis) -> bool {
        self.peers.lock().is_member(topic, user, now)
    }

    /// Returns whether another instance is responsible for publishing that a member has left.
    pub(in crate::hub) fn publishes_left(&self, topic: &Topic, user: &UserId, now: Millis) -> bool {
        self.peers.lock().publishes_left(topic, user, self.instance_id, now)
    }

    /// Returns the members that have left a topic on other instances, while the grace period lasts
    /// and `hub.left` is not published yet.
    pub(in crate::hub) fn leaving(&self, topic: &Topic, now: Millis) -> Vec<UserId> {
        self.peers.lock().leaving(topic, now).cloned().collect()
    }

    /// Returns a position from before all changes that other instances may not have reported yet. A
    /// snapshot of presence that names this position misses no later change.
    pub(in crate::hub) fn settled_position(&self) -> Option<Position> {
        self.outbox.lock().settled_position()
    }

    /// Returns whether a user is online on another instance, including the grace period.
    pub(in crate::hub) fn is_online(&self, user: &UserId, now: Millis) -> bool {
        self.peers.lock().is_online(user, now)
    }

    /// Returns the number of records that were skipped because they could not be read.
    pub(in crate::hub) fn skipped(&self) -> u64 {
        self.skipped.load(Ordering::Relaxed)
    }
}

/// Returns an error for a record number above [`MAX_SEQUENCE`].
pub(super) fn check_sequence(sequence: u64) -> Answer<()> {
    if sequence > MAX_SEQUENCE {
        return Err(BackplaneError::unknown("the log has a record number above the maximum"));
    }
    Ok(())
}
