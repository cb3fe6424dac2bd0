//! The part of the log that readers share: all that a read needs beside its cursor and its channels.
//!
//! Publishers write it under the sequencer's lock. A read takes no lock of the sequencer.

use super::channel::Channel;
use super::epochs::Epochs;
use super::heads::Heads;
use super::policies::Policies;
use super::shared_chunks::Pieces;
use crate::sync::{AtomicU64, Ordering};
use crate::types::Epoch;
use crate::types::retention::Kind;

#[derive(Debug)]
pub(super) struct Readable {
    pub(super) epochs: Epochs,
    pub(super) policies: Policies,
    /// The newest number that every reader may read up to. Written under the sequencer's lock.
    horizon: AtomicU64,
    pub(super) heads: Heads,
    pub(super) pieces: Pieces,
}

impl Readable {
    pub(super) fn new(epoch: Epoch, policies: Policies) -> Self {
        Self {
            epochs: Epochs::new(epoch),
            policies,
            horizon: AtomicU64::new(0),
            heads: Heads::default(),
            pieces: Pieces::default(),
        }
    }

    pub(super) fn horizon(&self) -> u64 {
        self.horizon.load(Ordering::Acquire)
    }

    /// Everything up to this number can be read. Under the sequencer's lock.
    pub(super) fn raise_horizon(&self, number: u64) {
        self.horizon.store(number, Ordering::Release);
    }

    /// Whether what a channel has dropped after a number may be had elsewhere: it is for those who
    /// come back, and of this life.
    pub(super) fn is_elsewhere(&self, channel: &Channel, after: u64) -> bool {
        self.keeps_history(channel) && after >= self.base()
    }

    /// Whether the events of a channel are a history. The other kinds keep a moment or the newest
    /// values, so a fresh reader misses nothing of what they have dropped.
    pub(super) fn keeps_history(&self, channel: &Channel) -> bool {
        self.policies.get(channel.policy).kind == Kind::Replay
    }

    /// Where the numbers of the current life begin.
    pub(super) fn base(&self) -> u64 {
        self.epochs.base()
    }
}
