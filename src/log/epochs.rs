//! Numbers and positions. Inside the log numbers only go up, also when the log behind it begins a new life: then its
//! numbers go on above all that were ever used, and a position is an epoch and the distance from where it began.

use std::collections::vec_deque::VecDeque;
use std::sync::Arc;

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

/// An epoch with the numbers of its records.
#[derive(Clone, Debug)]
pub(super) struct Life {
    pub(super) epoch: Epoch,
    /// The number of its position zero.
    pub(super) base: u64,
    /// The beginning of the ids of its records.
    pub(super) prefix: Arc<IdPrefix>,
}

impl Life {
    fn new(epoch: Epoch, base: u64) -> Self {
        Self { epoch, base, prefix: Arc::new(IdPrefix::new(epoch)) }
    }

    /// The number of one of its places.
    pub(super) fn number(&self, sequence: u64) -> u64 {
        self.base.saturating_add(sequence)
    }
}

impl Epochs {
    pub(super) fn new(epoch: Epoch) -> Self {
        Self(RwLock::new(Lives { current: Life::new(epoch, 0), before: None, breaks: VecDeque::new() }))
    }

    pub(super) fn current(&self) -> Life {
        self.0.read().current.clone()
    }

    /// The number of position zero of the current life.
    pub(super) fn base(&self) -> u64 {
        self.0.read().current.base
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
        let life = &self.0.read().current;
        (position.epoch() == life.epoch).then(|| life.number(position.sequence()))
    }

    /// Begins a new life at this number, and returns it. The break is noted by [`note_break`](Self::note_break).
    pub(super) fn begin(&self, epoch: Epoch, base: u64) -> Life {
        let mut lives = self.0.write();
        lives.before = Some(std::mem::replace(&mut lives.current, Life::new(epoch, base)));
        lives.current.clone()
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
