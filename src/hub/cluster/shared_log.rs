//! The state of the shared log and of the other instances, as this instance knows it.
//!
//! The tasks in [`follow`](super::follow), [`bus`](super::bus) and [`backfill`](super::backfill)
//! share this state with the streams of this instance.
//!
//! 1. A client's position may be ahead of this instance, but only up to a limit
//!    ([`SharedLog::most_ahead`]).
//! 2. A record number above [`MAX_SEQUENCE`] is an error of the broker ([`check_sequence`]).

use std::collections::vec_deque::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use super::blocks::Blocks;
use super::history::History;
use super::settings_digest::SettingsDigest;
use crate::backplane::{Answer, Backplane, BackplaneError, LogPosition, LogState, Seen, Stored, in_time};
use crate::hub::Settings;
use crate::hub::connection::handle::ConnectionHandle;
use crate::hub::peers::message::{InstanceId, PeerConnection};
use crate::hub::peers::outbox::Outbox;
use crate::hub::peers::table::{Other, Peers};
use crate::hub::runs::exchange::Exchange;
use crate::log::{Block, Millis, Policies, millis};
use crate::sync::{AtomicBool, AtomicU64, Mutex, Ordering};
use crate::types::{Address, Audience, Command, ConnectionId, Epoch, Event, Position, Topic, UserId};

/// The maximum number of records by which a client's position may be above the newest record that
/// this instance knows to be in the log. A client can be ahead because it comes from an instance
/// that has read more of the log.
const MAX_AHEAD: u64 = 100_000;
/// The value of [`SharedLog::most_ahead`] while this instance cannot follow the log. The value is
/// far below [`MAX_SEQUENCE`], because the numbers of a new epoch begin above all numbers that
/// clients have sent.
const MAX_AHEAD_WHILE_STALE: u64 = 1 << 40;

/// The highest record number that a hub accepts. Brokers and their scripts count exactly up to this
/// number.
pub(super) const MAX_SEQUENCE: u64 = 1 << 53;

/// The shared log, and the state of this instance for it.
pub(in crate::hub) struct SharedLog {
    pub(in crate::hub) backplane: Arc<dyn Backplane>,
    /// Whether this instance has read the whole log once.
    pub(super) loaded: AtomicBool,
    /// Whether this instance cannot follow the log now.
    pub(super) stale: AtomicBool,
    /// The number, in the current epoch, of the newest record that was applied or marked as lost.
    pub(super) last: AtomicU64,
    /// The number of records that were skipped because they were invalid.
    pub(super) skipped: AtomicU64,
    /// The number of control messages, and of parts of them, that this version could not read.
    pub(super) unread: AtomicU64,
    /// The number of the newest record in the log at the last query of the log's state.
    latest: AtomicU64,
    /// The number of times that this instance has switched to a new epoch of the log.
    pub(super) epochs: AtomicU64,
    pub(super) history: History,
    pub(super) blocks: Mutex<Blocks>,
    /// The id of this instance.
    pub(in crate::hub) instance_id: InstanceId,
    pub(super) settings_digest: SettingsDigest,
    /// The mark of the last control message that this instance has received. `None` before the
    /// first.
    pub(super) mark: Mutex<Option<Box<str>>>,
    /// Commands of other instances that wait for the log, in the order in which they arrived. Each
    /// has the time at which its wait ends.
    pub(super) commands: Mutex<VecDeque<(Millis, Command)>>,
    pub(super) peers: Mutex<Peers>,
    pub(super) outbox: Mutex<Outbox>,
    /// The work on runs that waits for the tasks.
    pub(in crate::hub) runs: Mutex<Exchange>,
    /// Whether this instance belongs to a publisher, and only writes runs. The other instances do
    /// not count it among their peers, because it knows nothing of connections.
    pub(in crate::hub) writes_only: bool,
}

impl SharedLog {
    pub(in crate::hub) fn new(backplane: Arc<dyn Backplane>, settings: &Settings, policies: &Policies) -> Self {
        let settings_digest = SettingsDigest::new(settings, policies, backplane.describe_limits());
        Self {
            instance_id: InstanceId(fastrand::u64(..)),
            settings_digest,
            mark: Mutex::default(),
            commands: Mutex::default(),
            peers: Mutex::new(Peers::new(
                millis(settings.peer_timeout),
                millis(settings.presence_grace),
                settings.presence_rules.clone(),
            )),
            outbox: Mutex::default(),
            runs: Mutex::new(Exchange::new(millis(settings.peer_timeout))),
            writes_only: false,
            backplane,
            loaded: AtomicBool::new(false),
            stale: AtomicBool::new(false),
            last: AtomicU64::new(0),
            skipped: AtomicU64::new(0),
            unread: AtomicU64::new(0),
            latest: AtomicU64::new(0),
            epochs: AtomicU64::new(0),
            history: History::default(),
            blocks: Mutex::default(),
        }
    }

    /// Makes this the shared log of an instance that only writes runs.
    pub(in crate::hub) fn for_runs_only(mut self) -> Self {
        self.writes_only = true;
        self
    }

    /// Returns whether this instance has read the whole log once.
    pub(in crate::hub) fn is_loaded(&self) -> bool {
        self.loaded.load(Ordering::Acquire)
    }

    /// Returns the number of the newest record that was applied or marked as lost.
    pub(super) fn last(&self) -> u64 {
        self.last.load(Ordering::Acquire)
    }

    /// Notes that the next record was applied, skipped or marked as lost.
    pub(super) fn applied(&self, stored: &Stored) {
        self.history.add(stored);
        self.last.store(stored.sequence, Ordering::Release);
    }

    /// Returns the highest position that this instance has seen, or `None` if the instance has not
    /// read the whole log once. `epoch` is the current epoch.
    pub(super) fn seen(&self, epoch: Epoch) -> Option<Seen> {
        self.is_loaded().then(|| LogPosition { epoch: epoch.0, sequence: self.last() })
    }

    /// Queries the state of the log, and stores the number of its newest record.
    pub(super) async fn query_state(&self, epoch: Epoch, limit: Duration) -> Answer<LogState> {
        let state = in_time(limit, self.backplane.state(self.seen(epoch))).await?;
        if state.last <= MAX_SEQUENCE {
            self.latest.store(state.last, Ordering::Release);
        }
        Ok(state)
    }

    /// Returns whether this instance cannot follow the log now.
    pub(in crate::hub) fn is_stale(&self) -> bool {
        self.stale.load(Ordering::Acquire)
    }

    /// Returns the number of times that this instance has switched to a new epoch, modulo 65,536.
    pub(in crate::hub) fn epochs(&self) -> u16 {
        // 16 bits are enough, because callers only compare a value with a recent one.
        self.epochs.load(Ordering::Acquire) as u16
    }

    /// Returns whether this instance follows the log and has received one of its own control
    /// messages within the peer timeout.
    pub(in crate::hub) fn is_ready(&self, now: Millis) -> bool {
        self.is_loaded() && !self.is_stale() && self.peers.lock().is_received(now)
    }

    /// Returns the block with the records directly after `number`. `base` is the number at which
    /// the current epoch begins.
    ///
    /// If the block is not in memory, returns `None`, and the backfill task wakes the connection
    /// when it has read the block. The caller then has to ensure that the task runs. If `number` is
    /// below `base`, returns `None` and wakes the connection at once.
    pub(in crate::hub) fn find_block(
        &self,
        base: u64,
        number: u64,
        handle: &Arc<ConnectionHandle>,
        now: Millis,
    ) -> Option<Arc<Block>> {
        if number < base {
            // The number is of an epoch that has just ended. The next read of the stream reports
            // the gap.
            handle.wake(now);
            return None;
        }
        self.blocks.lock().find_or_wait(base, number, handle)
    }

    /// Returns the maximum number of records by which a client's position may be above the newest
    /// record that this instance has applied.
    ///
    /// While this instance follows the log, the limit is the instance's own lag at the last query
    /// of the log's state, plus [`MAX_AHEAD`]. While the instance cannot follow the log, its lag is
    /// unknown, so the limit is much higher.
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

    /// Returns the user and the data of each connection of an audience on other instances. A
    /// connection counts once.
    pub(in crate::hub) fn others(&self, audience: &Audience) -> Vec<Other> {
        self.peers.lock().others(audience)
    }

    /// Returns the number of connections of an audience on other instances. A connection counts
    /// once.
    pub(in crate::hub) fn count_peers(&self, audience: &Audience) -> usize {
        self.peers.lock().count_all(audience)
    }

    /// Returns the number of connections that an address has on other instances.
    pub(in crate::hub) fn count_peers_at(&self, address: &Address) -> usize {
        self.peers.lock().count(address)
    }

    /// Returns a connection on another instance, or `None` if no other instance has reported the
    /// connection.
    pub(in crate::hub) fn find(&self, id: ConnectionId) -> Option<PeerConnection> {
        self.peers.lock().find(id)
    }

    /// Returns the number of other instances.
    pub(in crate::hub) fn instances(&self) -> usize {
        self.peers.lock().len()
    }

    /// Queues a presence event of a topic. The control task appends it to the log.
    pub(in crate::hub) fn announce(&self, topic: Topic, user: UserId, event: Event) {
        self.outbox.lock().announce(topic, user, event);
    }

    /// Returns whether a user has a topic on another instance, or had it within the grace period.
    pub(in crate::hub) fn is_member(&self, topic: &Topic, user: &UserId, now: Millis) -> bool {
        self.peers.lock().is_member(topic, user, now)
    }

    /// Returns whether another instance, and not this one, has to publish `hub.left` for a member
    /// that has left this instance.
    pub(in crate::hub) fn publishes_left(&self, topic: &Topic, user: &UserId, now: Millis) -> bool {
        self.peers.lock().publishes_left(topic, user, self.instance_id, now)
    }

    /// Returns the members that have left a topic on other instances within the grace period.
    pub(in crate::hub) fn leaving(&self, topic: &Topic, now: Millis) -> Vec<UserId> {
        self.peers.lock().leaving(topic, now)
    }

    /// Returns a recent position of the log for a snapshot of presence. See
    /// [`Outbox::settled_position`].
    pub(in crate::hub) fn settled_position(&self) -> Option<Position> {
        self.outbox.lock().settled_position()
    }

    /// Returns whether a user has a connection on another instance, or had one within the grace
    /// period.
    pub(in crate::hub) fn is_online(&self, user: &UserId, now: Millis) -> bool {
        self.peers.lock().is_online(user, now)
    }

    /// Returns the number of connections of other instances, and the memory that they take in
    /// bytes, without their data.
    #[cfg(feature = "test-kit")]
    pub(in crate::hub) fn memory_of_peers(&self) -> (usize, usize) {
        let peers = self.peers.lock();
        (peers.connections(), peers.allocated())
    }

    /// Returns the number of control messages, and of parts of them, that this version could not
    /// read.
    pub(in crate::hub) fn unread(&self) -> u64 {
        self.unread.load(Ordering::Relaxed)
    }

    /// Returns the number of records that were skipped because they were invalid.
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
