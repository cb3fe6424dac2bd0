//! The conversion between positions and the numbers of the log.
//!
//! Numbers only increase, also when the shared log begins a new epoch: the base of a new epoch is
//! above all numbers that were ever used. A position is an epoch and the distance of the number
//! from the base of that epoch.

use std::collections::vec_deque::VecDeque;
use std::sync::Arc;

use crate::sync::RwLock;
use crate::types::{Epoch, GapReason, Position};
use crate::wire::IdPrefix;

/// The maximum number of breaks that are stored with their reason.
const MAX_BREAKS: usize = 64;

#[derive(Debug)]
pub(super) struct Epochs(RwLock<State>);

#[derive(Debug)]
struct State {
    current: LogEpoch,
    /// The previous epoch, for readers that have not yet read up to the base of the current epoch.
    previous: Option<LogEpoch>,
    /// The breaks in the log, oldest first.
    breaks: VecDeque<Break>,
}

/// A break in the log: the record with the number `at`, and possibly records before it, are
/// missing. The reason applies to readers whose cursor is below `below`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Break {
    pub(super) at: u64,
    pub(super) below: u64,
    pub(super) reason: GapReason,
}

/// One epoch of the log, and the numbers of its records.
#[derive(Clone, Debug)]
pub(super) struct LogEpoch {
    pub(super) id: Epoch,
    /// The number of position zero of the epoch.
    pub(super) base: u64,
    /// The prefix of the ids of its records.
    pub(super) prefix: Arc<IdPrefix>,
}

impl LogEpoch {
    fn new(id: Epoch, base: u64) -> Self {
        Self { id, base, prefix: Arc::new(IdPrefix::new(id)) }
    }

    /// Returns the number of a sequence of this epoch.
    pub(super) fn number(&self, sequence: u64) -> u64 {
        self.base.saturating_add(sequence)
    }
}

impl Epochs {
    pub(super) fn new(epoch: Epoch) -> Self {
        Self(RwLock::new(State { current: LogEpoch::new(epoch, 0), previous: None, breaks: VecDeque::new() }))
    }

    pub(super) fn current(&self) -> LogEpoch {
        self.0.read().current.clone()
    }

    /// Returns the number of position zero of the current epoch.
    pub(super) fn base(&self) -> u64 {
        self.0.read().current.base
    }

    pub(super) fn position(&self, number: u64) -> Position {
        let state = self.0.read();
        let epoch = match &state.previous {
            Some(previous) if number < state.current.base => previous,
            _ => &state.current,
        };
        Position::new(epoch.id, number.saturating_sub(epoch.base))
    }

    /// Returns the number of a position of the current epoch, or `None` for another epoch.
    pub(super) fn number(&self, position: Position) -> Option<u64> {
        let epoch = &self.0.read().current;
        (position.epoch() == epoch.id).then(|| epoch.number(position.sequence()))
    }

    /// Begins a new epoch at the number `base`, and returns it. The caller notes the break with
    /// [`note_break`](Self::note_break).
    pub(super) fn begin(&self, epoch: Epoch, base: u64) -> LogEpoch {
        let mut state = self.0.write();
        state.previous = Some(std::mem::replace(&mut state.current, LogEpoch::new(epoch, base)));
        state.current.clone()
    }

    pub(super) fn note_break(&self, new: Break) {
        let mut state = self.0.write();
        if state.breaks.len() == MAX_BREAKS {
            state.breaks.pop_front();
        }
        state.breaks.push_back(new);
    }

    /// Returns the reason for which a reader with this cursor misses the records up to
    /// `trimmed_through`. Returns `None` if no stored break explains the loss. Then the bounds of
    /// the channel have usually dropped the records.
    pub(super) fn reason(&self, trimmed_through: u64, cursor: u64) -> Option<GapReason> {
        let state = self.0.read();
        let known = state.breaks.iter().rev().find(|known| known.at == trimmed_through)?;
        (cursor < known.below).then_some(known.reason)
    }
}
