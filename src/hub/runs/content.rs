//! The events of one run in the memory of this instance, its end, and the streams that read it.

use std::collections::hash_map::HashMap;
use std::sync::Arc;
use std::task::Waker;

use smallvec::SmallVec;
use tokio::sync::watch;

use crate::hub::config::settings::RunLimits;
use crate::hub::peers::message::InstanceId;
use crate::log::{Listener, Millis};
use crate::sync::Mutex;
use crate::types::{ConnectionId, Epoch, Event, Position, RunEnd, RunError};
use crate::wire::{Draft, Frame, IdPrefix};

/// The maximum number of events that a stream reads in one step.
const MAX_EVENTS: usize = 64;
/// The maximum number of bytes that a stream reads in one step of more than one event.
const MAX_BYTES: usize = 64 * 1024;

/// One run. The ids of its events are positions: the epoch is the id of the run, and the sequence
/// is the number of events up to and including the event.
pub(in crate::hub) struct RunContent {
    pub(in crate::hub) id: Epoch,
    /// The instance that writes the run.
    pub(in crate::hub) owner: InstanceId,
    /// The last event of the run if it ends without its writer.
    pub(in crate::hub) will: Option<Event>,
    /// Whether the run is one of this instance without a writer: the broker has received its
    /// beginning after this instance had given up, or was restored from a backup.
    pub(in crate::hub) is_stray: bool,
    prefix: IdPrefix,
    state: Mutex<State>,
    /// For the writer and for a drain.
    signals: watch::Sender<Signals>,
}

/// What a writer or a drain waits for.
#[derive(Clone, Copy, Debug, Default)]
struct Signals {
    /// Whether the run should stop.
    stop: bool,
    /// Whether the writer or a task is ending the run.
    ending: bool,
    /// Whether the run has ended, or the rest of it can no longer be read.
    over: bool,
}

#[derive(Default)]
struct State {
    frames: Vec<Frame>,
    /// The sum of the sizes of all frames.
    bytes: usize,
    /// The number of entries of the journal that `frames` contains.
    entries: u64,
    over: Option<Over>,
    /// Whether the rest of the run can no longer be read.
    lost: bool,
    /// Whether `lost` has this cause: the next entry is in a format that this version cannot read.
    unreadable: bool,
    ended_at: Millis,
    listeners: HashMap<ConnectionId, Arc<dyn Listener>>,
}

/// One append of a writer, ready to be applied.
#[derive(Debug, Default)]
pub(in crate::hub) struct Entry {
    pub(in crate::hub) drafts: Vec<Draft>,
    pub(in crate::hub) over: Option<Over>,
}

/// The end of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::hub) struct Over {
    pub(in crate::hub) end: RunEnd,
    pub(in crate::hub) note: Option<Arc<str>>,
}

/// What a stream reads in one step.
#[derive(Debug, Default)]
pub(in crate::hub) struct RunPart {
    pub(in crate::hub) frames: SmallVec<[Frame; 1]>,
    /// The end of the run, if `frames` has the last event or there is no further event.
    pub(in crate::hub) over: Option<Over>,
    /// Whether the rest of the run can no longer be read.
    pub(in crate::hub) lost: bool,
    /// Whether the run has fewer events than the reader.
    pub(in crate::hub) is_ahead: bool,
}

/// The progress of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::hub) struct Progress {
    pub(in crate::hub) events: u64,
    pub(in crate::hub) entries: u64,
    pub(in crate::hub) end: Option<RunEnd>,
    pub(in crate::hub) lost: bool,
    /// Whether `lost` has this cause: the next entry is in a format that this version cannot read.
    pub(in crate::hub) unreadable: bool,
    pub(in crate::hub) ended_at: Millis,
}

impl RunContent {
    pub(in crate::hub) fn new(id: Epoch, owner: InstanceId, will: Option<Event>) -> Self {
        Self {
            id,
            owner,
            will,
            is_stray: false,
            prefix: IdPrefix::new(id),
            state: Mutex::default(),
            signals: watch::Sender::default(),
        }
    }

    pub(in crate::hub) fn progress(&self) -> Progress {
        let state = self.state.lock();
        Progress {
            events: state.frames.len() as u64,
            entries: state.entries,
            end: state.over.as_ref().map(|over| over.end),
            lost: state.lost,
            unreadable: state.unreadable,
            ended_at: state.ended_at,
        }
    }

    pub(in crate::hub) fn is_active(&self) -> bool {
        let state = self.state.lock();
        state.over.is_none() && !state.lost
    }

    /// Returns whether the run may be active. This instance may be unable to read its end.
    pub(in crate::hub) fn may_be_active(&self) -> bool {
        let state = self.state.lock();
        state.over.is_none() && (!state.lost || state.unreadable)
    }

    /// Returns the id of the position after this many events.
    pub(in crate::hub) fn position(&self, events: u64) -> Position {
        Position::new(self.id, events)
    }

    /// Returns an error if this entry would exceed a limit of the run, or if the run has ended. The
    /// limits do not apply to the last event, so that a writer at a limit can still end its run
    /// with an event.
    pub(in crate::hub) fn check(&self, entry: &Entry, limits: &RunLimits) -> Result<(), RunError> {
        let Entry { drafts, over } = entry;
        let state = self.state.lock();
        if state.over.is_some() || state.lost {
            return Err(RunError::ENDED);
        }
        if over.is_some() {
            return Ok(());
        }
        if state.frames.len() + drafts.len() > limits.events {
            return Err(RunError::TOO_MANY_EVENTS);
        }
        if state.bytes + drafts.iter().map(Draft::len).sum::<usize>() > limits.bytes {
            return Err(RunError::TOO_MANY_BYTES);
        }
        Ok(())
    }

    /// Applies entry number `number` of the journal, and wakes the readers. Returns the number of
    /// the first event of the entry, counted from 0. Returns `None` and changes nothing if the run
    /// has ended, or if the entry is not the next one.
    pub(in crate::hub) fn apply(&self, number: u64, entry: Entry, now: Millis) -> Option<u64> {
        let mut asleep: SmallVec<[Waker; 4]> = SmallVec::new();
        let is_over = entry.over.is_some();
        let first = {
            let mut state = self.state.lock();
            if state.over.is_some() || state.lost || state.entries + 1 != number {
                return None;
            }
            let first = state.frames.len() as u64;
            for draft in entry.drafts {
                let frame = draft.finish(&self.prefix, state.frames.len() as u64 + 1);
                state.bytes += frame.len();
                state.frames.push(frame);
            }
            state.entries = number;
            if let Some(over) = entry.over {
                state.over = Some(over);
                state.ended_at = now;
            }
            asleep.extend(state.listeners.values().filter_map(|listener| listener.notify(now)));
            first
        };
        // A waker may run code of a runtime, so it is called without the lock.
        if is_over {
            self.signals.send_modify(|signals| signals.over = true);
        }
        asleep.into_iter().for_each(Waker::wake);
        Some(first)
    }

    /// Notes that the rest of the run can no longer be read, and wakes the readers. Returns false
    /// if the run has ended, or if this was noted before.
    pub(in crate::hub) fn lose(&self, now: Millis) -> bool {
        let asleep: SmallVec<[Waker; 4]> = {
            let mut state = self.state.lock();
            if state.over.is_some() || std::mem::replace(&mut state.lost, true) {
                return false;
            }
            state.ended_at = now;
            state.listeners.values().filter_map(|listener| listener.notify(now)).collect()
        };
        self.signals.send_modify(|signals| signals.over = true);
        asleep.into_iter().for_each(Waker::wake);
        true
    }

    /// Notes that this version cannot read the next entry, and wakes the readers. Instances of the
    /// version that wrote the entry can read it. Returns false as [`lose`](Self::lose).
    pub(in crate::hub) fn lose_unreadable(&self, now: Millis) -> bool {
        self.state.lock().unreadable = true;
        self.lose(now)
    }

    /// Returns the events after the first `after` ones, within bounds that keep a step short.
    pub(in crate::hub) fn read(&self, after: u64) -> RunPart {
        let state = self.state.lock();
        let start = usize::try_from(after).unwrap_or(usize::MAX).min(state.frames.len());
        let mut part = RunPart { is_ahead: after > state.frames.len() as u64, ..RunPart::default() };
        let mut bytes = 0;
        for frame in state.frames[start..].iter().take(MAX_EVENTS) {
            bytes += frame.len();
            if bytes > MAX_BYTES && !part.frames.is_empty() {
                break;
            }
            part.frames.push(frame.clone());
        }
        if start + part.frames.len() == state.frames.len() {
            part.over = state.over.clone();
            part.lost = state.lost;
        }
        part
    }

    /// Adds a stream to the readers that every change wakes.
    pub(in crate::hub) fn listen(&self, listener: Arc<dyn Listener>) {
        self.state.lock().listeners.insert(listener.id(), listener);
    }

    pub(in crate::hub) fn unlisten(&self, id: ConnectionId) {
        self.state.lock().listeners.remove(&id);
    }

    /// Returns the number of streams that read the run.
    #[cfg(feature = "test-kit")]
    pub(in crate::hub) fn listening(&self) -> usize {
        self.state.lock().listeners.len()
    }

    /// Asks the writer to stop.
    pub(in crate::hub) fn ask_to_stop(&self) {
        self.signals.send_modify(|signals| signals.stop = true);
    }

    pub(in crate::hub) fn is_asked_to_stop(&self) -> bool {
        self.signals.borrow().stop
    }

    /// Notes that the writer or a task is ending the run, so that a drain does not abort it.
    pub(in crate::hub) fn set_ending(&self) {
        self.signals.send_modify(|signals| signals.ending = true);
    }

    pub(in crate::hub) fn is_ending(&self) -> bool {
        self.signals.borrow().ending
    }

    /// Completes when the run is over.
    pub(in crate::hub) async fn ended(&self) {
        let _ = self.signals.subscribe().wait_for(|signals| signals.over).await;
    }

    /// Completes when the writer is asked to stop, or when the run is over.
    pub(in crate::hub) async fn asked_to_stop(&self) {
        let mut signals = self.signals.subscribe();
        // The sender is part of `self`, so it cannot be dropped during the wait.
        let _ = signals.wait_for(|signals| signals.stop || signals.over).await;
    }
}

crate::macros::opaque_debug!(|content: RunContent| { progress: content.progress() });
