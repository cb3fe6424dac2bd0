//! The part of the log that all reads share: everything that a read needs besides its cursor and
//! its channels.
//!
//! Publishers write this part under the sequencer's lock. Reads never take that lock.

use super::channel::Channel;
use super::epochs::Epochs;
use super::latest::Latest;
use super::policies::Policies;
use super::shared_chunks::Pieces;
use crate::sync::{AtomicU64, Ordering};
use crate::types::Epoch;
use crate::types::retention::Kind;

#[derive(Debug)]
pub(super) struct Readable {
    pub(super) epochs: Epochs,
    pub(super) policies: Policies,
    /// The newest number that readers may read. Written under the sequencer's lock.
    visible_through: AtomicU64,
    /// The shared log no longer has the records up to and including this number, as far as this
    /// process knows. Zero if there is no shared log.
    shared_trimmed_through: AtomicU64,
    pub(super) latest: Latest,
    pub(super) pieces: Pieces,
}

impl Readable {
    pub(super) fn new(epoch: Epoch, policies: Policies) -> Self {
        Self {
            epochs: Epochs::new(epoch),
            policies,
            visible_through: AtomicU64::new(0),
            shared_trimmed_through: AtomicU64::new(0),
            latest: Latest::default(),
            pieces: Pieces::default(),
        }
    }

    pub(super) fn visible_through(&self) -> u64 {
        self.visible_through.load(Ordering::Acquire)
    }

    /// Makes all records up to and including this number readable. The caller holds the sequencer's
    /// lock, and has stored the records in their channels.
    pub(super) fn raise_visible_through(&self, number: u64) {
        self.visible_through.store(number, Ordering::Release);
    }

    pub(super) fn shared_trimmed_through(&self) -> u64 {
        self.shared_trimmed_through.load(Ordering::Acquire)
    }

    /// Notes that the shared log no longer has the records up to and including this number.
    pub(super) fn note_shared_trimmed(&self, through: u64) {
        self.shared_trimmed_through.fetch_max(through, Ordering::AcqRel);
    }

    /// Returns whether the shared log may still contain the records after this number that a
    /// channel has dropped. True if the channel keeps a history and the number is in the current
    /// epoch.
    pub(super) fn may_backfill(&self, channel: &Channel, after: u64) -> bool {
        self.keeps_history(channel) && after >= self.base()
    }

    /// Returns whether a channel keeps a history ([`Kind::Replay`]). The other kinds keep a short
    /// window or the newest values, so a new reader misses nothing that they have dropped.
    pub(super) fn keeps_history(&self, channel: &Channel) -> bool {
        self.policies.get(channel.policy).kind == Kind::Replay
    }

    /// Returns the number at which the current epoch begins.
    pub(super) fn base(&self) -> u64 {
        self.epochs.base()
    }
}
