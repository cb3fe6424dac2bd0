//! Numbers and positions. Inside the log numbers only go up, also when the log behind it begins a new life: then its
//! numbers go on above all that were ever used, and a position is an epoch and the distance from where it began.

use std::collections::vec_deque::VecDeque;

use crate::sync::RwLock;
use crate::types::{Epoch, GapReason, Position};
use crate::wire::IdPrefix;

/// How many breaks are remembered with their reason.
const BREAKS: usize = 64;

#[derive(Debug)]
pub(super) struct Epochs(RwLock<Lives>);

#[derive(Debug)]
struct Lives {
    current: Life,
    /// For those who have not read to the beginning of the current one.
    before: Option<Life>,
    /// Where records are missing, oldest first.
    breaks: VecDeque<Break>,
}

/// Up to `at` records are missing, for this reason to those who had read less than `below`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Break {
    pub(super) at: u64,
    pub(super) below: u64,
    pub(super) reason: GapReason,
}

#[derive(Debug)]
struct Life {
    epoch: Epoch,
    /// The number of its position zero.
    base: u64,
    prefix: std::sync::Arc<IdPrefix>,
}

impl Life {
    fn new(epoch: Epoch, base: u64) -> Self {
        Self { epoch, base, prefix: std::sync::Arc::new(IdPrefix::new(epoch)) }
    }
}

impl Epochs {
    pub(super) fn new(epoch: Epoch) -> Self {
        Self(RwLock::new(Lives { current: Life::new(epoch, 0), before: None, breaks: VecDeque::new() }))
    }

    pub(super) fn current(&self) -> Epoch {
        self.0.read().current.epoch
    }

    /// What the ids of new records start with, and where their numbers begin.
    pub(super) fn prefix(&self) -> (std::sync::Arc<IdPrefix>, u64) {
        let lives = self.0.read();
        (std::sync::Arc::clone(&lives.current.prefix), lives.current.base)
    }

    /// The same of an epoch, if it is the current one.
    pub(super) fn prefix_of(&self, epoch: Epoch) -> Option<(std::sync::Arc<IdPrefix>, u64)> {
        let lives = self.0.read();
        (lives.current.epoch == epoch).then(|| (std::sync::Arc::clone(&lives.current.prefix), lives.current.base))
    }

    pub(super) fn position(&self, number: u64) -> Position {
        let lives = self.0.read();
        let life = match &lives.before {
            Some(before) if number < lives.current.base => before,
            _ => &lives.current,
        };
        Position::new(life.epoch, number.saturating_sub(life.base))
    }

    /// The number of a position of the current life.
    pub(super) fn number(&self, position: Position) -> Option<u64> {
        let lives = self.0.read();
        (position.epoch() == lives.current.epoch).then(|| lives.current.base.saturating_add(position.sequence()))
    }

    /// A new life begins at this number. The break is noted by [`note_break`](Self::note_break).
    pub(super) fn begin(&self, epoch: Epoch, base: u64) {
        let mut lives = self.0.write();
        let before = std::mem::replace(&mut lives.current, Life::new(epoch, base));
        lives.before = Some(before);
    }

    pub(super) fn note_break(&self, new: Break) {
        let mut lives = self.0.write();
        if lives.breaks.len() == BREAKS {
            lives.breaks.pop_front();
        }
        lives.breaks.push_back(new);
    }

    /// Why records up to a floor are missing to who has read this far, if it was not the bounds of the channel.
    pub(super) fn reason(&self, floor: u64, cursor: u64) -> Option<GapReason> {
        let lives = self.0.read();
        let known = lives.breaks.iter().rev().find(|known| known.at == floor)?;
        (cursor < known.below).then_some(known.reason)
    }
}
