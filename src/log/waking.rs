//! Waking: a publisher wakes a few listeners itself. If a channel has more listeners, the publisher
//! queues the channel, and workers wake its listeners in batches.
//!
//! A channel in the queue has `marked` set. `marked` is reset before the first listener of the
//! channel is visited. So a record that becomes visible during the visit puts the channel into the
//! queue again.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::Waker;

use smallvec::SmallVec;

use super::channel::Channel;
use super::time::Millis;
use crate::sync::{Mutex, Ordering};

/// The maximum number of listeners that a publisher wakes itself. The bound keeps the cost of
/// publishing independent of the number of listeners.
const WAKE_AT_ONCE: usize = if cfg!(tower_sse_loom) { 1 } else { 32 };
/// The maximum number of slots that are visited under one hold of a channel's lock.
const BATCH: usize = 256;

#[derive(Debug, Default)]
pub(super) struct Deferred {
    queue: Mutex<VecDeque<Visit>>,
}

/// The channels whose listeners an append has not woken yet.
#[derive(Debug, Default)]
#[must_use = "the listeners sleep until `wake`"]
pub(crate) struct PendingWakes(pub(super) SmallVec<[Arc<Channel>; 4]>);

impl PendingWakes {
    pub(crate) fn unite(&mut self, other: Self) {
        self.0.extend(other.0);
    }
}

#[derive(Debug)]
struct Visit {
    channel: Arc<Channel>,
    from: usize,
}

impl Deferred {
    /// Wakes the listeners of `channels`, or puts the channels into the queue. The caller has
    /// raised `visible_through` to cover the records.
    pub(super) fn mark(&self, channels: impl IntoIterator<Item = Arc<Channel>>, now: Millis) {
        let mut wakers: SmallVec<[Waker; WAKE_AT_ONCE]> = SmallVec::new();
        let mut budget = WAKE_AT_ONCE;
        for channel in channels {
            let listening = channel.listening();
            let quick = listening <= budget && channel.slots() <= BATCH;
            if quick && !channel.marked.load(Ordering::Acquire) {
                budget -= listening;
                let rest = channel.visit(0, BATCH, |listener| {
                    if let Some(waker) = listener.notify(now) {
                        wakers.push(waker);
                    }
                });
                if rest.is_some() {
                    self.push(channel);
                }
            } else {
                self.push(channel);
            }
        }
        wakers.into_iter().for_each(Waker::wake);
    }

    pub(super) fn push(&self, channel: Arc<Channel>) {
        if !channel.marked.swap(true, Ordering::AcqRel) {
            self.queue.lock().push_back(Visit { channel, from: 0 });
        }
    }

    pub(super) fn is_waiting(&self) -> bool {
        !self.queue.lock().is_empty()
    }

    /// Wakes the listeners in one batch of slots of the first queued channel. Returns whether the
    /// queue is not empty afterwards.
    pub(super) fn wake_batch(&self, now: Millis) -> bool {
        let Some(Visit { channel, from }) = self.queue.lock().pop_front() else {
            return false;
        };
        if from == 0 {
            channel.marked.swap(false, Ordering::AcqRel);
        }
        let mut wakers: SmallVec<[Waker; BATCH]> = SmallVec::new();
        let rest = channel.visit(from, BATCH, |listener| {
            if let Some(waker) = listener.notify(now) {
                wakers.push(waker);
            }
        });
        if let Some(from) = rest {
            self.queue.lock().push_front(Visit { channel, from });
        }
        wakers.into_iter().for_each(Waker::wake);
        self.is_waiting()
    }
}
