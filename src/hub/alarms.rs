//! One clock for all streams of a runtime: it wakes each when something of its own is due. A timer in every stream would
//! take more memory than all else that an idle one needs.
//!
//! A clock lives on the runtime on which its streams are polled, and no longer: a runtime that is gone or blocked holds up
//! nobody on another. What it has not rung for when it goes is woken, to be set again by whoever is still polled.

use std::collections::btree_map::BTreeMap;
use std::collections::hash_map::{Entry, HashMap};
use std::sync::{Arc, Weak};

use tokio::runtime::{Handle, Id};
use tokio::sync::Notify;
use tokio::time::timeout_at;

use super::Inner;
use super::link::Link;
use crate::log::Millis;
use crate::sync::Mutex;

/// What is due within this many milliseconds is rung for together, at the end of them.
const TICK: Millis = 8;
/// How many streams are woken before others get their turn.
const BATCH: usize = 256;

#[derive(Default)]
pub(super) struct Alarms(Mutex<HashMap<Id, Clock>>);

#[derive(Default)]
struct Clock {
    by_tick: BTreeMap<u64, Vec<Weak<Link>>>,
    /// Something is due before what it waits for.
    roused: Arc<Notify>,
}

/// Wakes a stream when this time has come, and not when another was set before. Not, if there is no runtime here that could.
pub(super) fn set(inner: &Arc<Inner>, link: &Arc<Link>, due: Millis) {
    let Ok(runtime) = Handle::try_current() else { return };
    // Before it can ring.
    link.set_alarm(due);
    let tick = due.div_ceil(TICK);
    let mut clocks = inner.alarms.0.lock();
    let (clock, is_new) = match clocks.entry(runtime.id()) {
        Entry::Occupied(entry) => (entry.into_mut(), false),
        Entry::Vacant(entry) => (entry.insert(Clock::default()), true),
    };
    let is_first = clock.by_tick.first_key_value().is_none_or(|(first, _)| tick < *first);
    clock.by_tick.entry(tick).or_default().push(Arc::downgrade(link));
    if is_first {
        clock.roused.notify_one();
    }
    // Not under the lock: a runtime that is shutting down drops the task at once.
    drop(clocks);
    if is_new {
        let keeper = Keeper { hub: Arc::downgrade(inner), runtime: runtime.id(), is_done: false };
        runtime.spawn(keep(keeper));
    }
}

async fn keep(mut keeper: Keeper) {
    while let Some(inner) = keeper.hub.upgrade() {
        let now = inner.now();
        let (due, next) = match inner.alarms.0.lock().entry(keeper.runtime) {
            Entry::Vacant(_) => return,
            Entry::Occupied(mut entry) => {
                let clock = entry.get_mut();
                let due = clock.take_due(now);
                let next = clock.by_tick.first_key_value().map(|(tick, _)| (tick * TICK, Arc::clone(&clock.roused)));
                if next.is_none() {
                    // Whoever comes from here on winds up another.
                    keeper.is_done = true;
                    entry.remove();
                }
                (due, next)
            }
        };
        for (tick, link) in due {
            if let Some(link) = link.upgrade() {
                link.ring(|at| at.div_ceil(TICK) == tick, now);
            }
        }
        let Some((next, roused)) = next else { return };
        if next <= now {
            tokio::task::yield_now().await;
            continue;
        }
        let next = inner.instant(next);
        drop(inner);
        let _ = timeout_at(next, roused.notified()).await;
    }
}

impl Clock {
    fn take_due(&mut self, now: Millis) -> Vec<(u64, Weak<Link>)> {
        let mut due = Vec::new();
        while due.len() < BATCH
            && let Some(first) = self.by_tick.first_entry()
            && *first.key() * TICK <= now
        {
            let (tick, mut links) = first.remove_entry();
            let rest = links.split_off(links.len().min(BATCH - due.len()));
            due.extend(links.into_iter().map(|link| (tick, link)));
            if !rest.is_empty() {
                self.by_tick.insert(tick, rest);
            }
        }
        due
    }
}

struct Keeper {
    hub: Weak<Inner>,
    runtime: Id,
    is_done: bool,
}

impl Drop for Keeper {
    fn drop(&mut self) {
        if let Some(inner) = self.hub.upgrade()
            && !self.is_done
        {
            let clock = inner.alarms.0.lock().remove(&self.runtime);
            // On a runtime without time no clock can be kept. Whoever is woken would wind up the next one, and so on.
            if std::thread::panicking() {
                return;
            }
            let now = inner.now();
            let left = clock.into_iter().flat_map(|clock| clock.by_tick.into_values().flatten());
            left.filter_map(|link| link.upgrade()).for_each(|link| link.ring(|_| true, now));
        }
    }
}
