//! The hub's part of a log that several instances share: it writes to it, follows it, and says when it cannot.
//!
//! 1. Only one task follows, and only it applies records, in the order of the log. It lives while the hub does, in a
//!    [task slot](crate::hub::tasks::slot): another replaces it if its runtime is gone or does not run it.
//! 2. Before it follows, it compares where the log is with what this instance has: another epoch, records that are gone.
//! 3. While nothing comes it asks every interval whether really nothing is there, so a mute connection is noticed.

use std::sync::Weak;

use futures::future::{Either, select};
use futures::{FutureExt, StreamExt};
use tokio::time::{Duration, Instant, sleep_until};

use super::history::Next;
use super::record::{self, Decoded, Unreadable};
use super::shared_log::{MOST, SharedLog, believable};
use super::{append, presence_records};
use crate::backplane::{BackplaneError, Current, Place, Stored};
use crate::hub::tasks::back_off::{BackOff, in_time};
use crate::hub::tasks::background::Job;
use crate::hub::tasks::workers::wake_rest;
use crate::hub::{Hub, Inner};
use crate::log::{Effect, Entry};
use crate::sync::Ordering;
use crate::types::audience::Audience;
use crate::types::error::PublishError;
use crate::types::event::Event;
use crate::types::position::{Epoch, Position};

/// After how many probes that found something which did not come a connection counts as mute.
const MUTE: u32 = 2;
/// A server may be busy for a moment.
const SHORTEST_LOOK: Duration = Duration::from_secs(1);

pub(in crate::hub) static JOB: Job<Inner> = Job { run: |hub, _| follow(hub).boxed(), has_work: |_| true };

async fn follow(inner: Weak<Inner>) {
    let hub = || inner.upgrade().map(|inner| Hub { inner });
    let mut back_off = BackOff::new();
    loop {
        let Some(hub_now) = hub() else { return };
        let Some(shared) = &hub_now.inner.shared_log else { return };
        let last = shared.last();
        let outcome = match hub_now.catch_up(shared).await {
            Ok(()) => {
                hub_now.set_stale(shared, false);
                let tail = shared.backplane.tail(shared.last());
                let probe = hub_now.settings().probe_interval;
                drop(hub_now);
                listen(&inner, tail, probe).await
            }
            Err(error) => {
                drop(hub_now);
                Err(error)
            }
        };
        let Some(hub_now) = hub() else { return };
        let Some(shared) = &hub_now.inner.shared_log else { return };
        if let Err(error) = outcome {
            hub_now.counters().broker_failed(&shared.backplane.describe(), &error, hub_now.now());
            hub_now.set_stale(shared, true);
        }
        // It got on.
        if shared.last() != last {
            back_off = BackOff::new();
        }
        drop(hub_now);
        back_off.wait().await;
    }
}

/// From when on the age of a record counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Age {
    /// From now on: it has just come. The clocks of publishers do not matter.
    New,
    /// From when it was published: this instance starts.
    AsPublished,
}

/// Applies what comes, until the connection breaks or the log is not what it was. `Ok` if it is to be compared anew.
async fn listen(
    inner: &Weak<Inner>,
    mut tail: futures::stream::BoxStream<'static, Result<Vec<Stored>, BackplaneError>>,
    probe: Duration,
) -> Result<(), BackplaneError> {
    let mut next_probe = Instant::now() + probe;
    let (mut mute, mut uncompared) = (0, 0);
    loop {
        // The probe comes first, so that a log that is never silent is compared too.
        let came = match select(std::pin::pin!(sleep_until(next_probe)), tail.next()).await {
            Either::Left(_) => None,
            Either::Right((came, _)) => Some(came),
        };
        let Some(hub) = inner.upgrade().map(|inner| Hub { inner }) else { return Ok(()) };
        let Some(shared) = &hub.inner.shared_log else { return Ok(()) };
        match came {
            Some(Some(Ok(batch))) => {
                mute = 0;
                hub.apply(shared, batch, Age::New).await?;
            }
            Some(Some(Err(error))) => return Err(error),
            Some(None) => return Err(BackplaneError::unknown("the connection ended")),
            None => {
                next_probe = Instant::now() + probe;
                // So that what goes wrong in silence is noticed within two intervals.
                let state = shared.look(hub.log().epoch(), probe.max(SHORTEST_LOOK)).await?;
                if state.epoch != hub.log().epoch().0 {
                    return Ok(());
                }
                match hub.is_another(shared, state).await {
                    Ok(false) => uncompared = 0,
                    Ok(true) => return Ok(()),
                    // Reading may be slow for a moment, while much is read.
                    Err(error) => {
                        uncompared += 1;
                        if uncompared >= MUTE {
                            return Err(error);
                        }
                    }
                }
                // Something is there that has not come since the last look.
                mute = if state.last > shared.last() { mute + 1 } else { 0 };
                if mute >= MUTE {
                    return Err(BackplaneError::unknown("the connection is mute"));
                }
            }
        }
    }
}

impl Hub {
    /// Compares, and loads what is needed to follow.
    async fn catch_up(&self, shared: &SharedLog) -> Result<(), BackplaneError> {
        self.load(shared).await?;
        shared.loaded.store(true, Ordering::Release);
        self.carry_out_waiting(shared);
        Ok(())
    }

    /// Goes on from what this instance has.
    async fn load(&self, shared: &SharedLog) -> Result<(), BackplaneError> {
        let mut state = shared.look(self.log().epoch(), self.settings().publish_timeout).await?;
        if self.is_another(shared, state).await? {
            // Younger than what this has seen, although it has grown since: it takes a new epoch.
            let seen = Place { epoch: state.epoch, sequence: MOST };
            state = in_time(self.settings().publish_timeout, shared.backplane.state(Some(seen))).await?;
        }
        believable(state.last)?;
        believable(state.first)?;
        let first = state.first.max(1);
        let begins_anew = state.epoch != self.log().epoch().0;
        if begins_anew {
            self.begin_anew(shared, Epoch(state.epoch), first - 1).await?;
        } else if first > shared.last() + 1 {
            self.lose_through(shared, first - 1).await?;
        }
        // Open streams get what was published while this instance could not follow, however long that was.
        let age = if shared.is_loaded() { Age::New } else { Age::AsPublished };
        while shared.last() < state.last {
            match self.read_on(shared, shared.last()).await? {
                Next::Records(batch) => self.apply(shared, batch, age).await?,
                Next::Lost(upto) => self.lose_through(shared, upto).await?,
            }
            if shared.last() < state.last {
                tokio::task::yield_now().await;
            }
        }
        // Values may be newer than every record that is kept.
        self.log().advance(state.last.max(shared.last()), self.now());
        Ok(())
    }

    /// The log has another epoch, of which nothing is kept up to a number but current values.
    async fn begin_anew(&self, shared: &SharedLog, epoch: Epoch, gone: u64) -> Result<(), BackplaneError> {
        let values = self.current_values(shared).await?;
        // Before the epoch: a publish between the two must not claim to have seen more of the new epoch than there is.
        shared.last.store(gone, Ordering::Release);
        // What is known is of the life before.
        shared.history.clear();
        // Streams that read the new epoch have seen this before.
        shared.epochs.fetch_add(1, Ordering::AcqRel);
        self.log().begin_epoch(epoch, gone, values, self.now());
        wake_rest(&*self.inner);
        Ok(())
    }

    /// Records up to a number are lost, and current values may have changed in them.
    async fn lose_through(&self, shared: &SharedLog, upto: u64) -> Result<(), BackplaneError> {
        let values = self.current_values(shared).await?;
        self.log().lose_all(upto, values, self.now());
        shared.last.store(upto, Ordering::Release);
        wake_rest(&*self.inner);
        Ok(())
    }

    async fn current_values(&self, shared: &SharedLog) -> Result<Vec<(u64, Entry)>, BackplaneError> {
        let current = shared.backplane.values().await?;
        let mut values: Vec<_> = current.iter().filter_map(|current| self.read_value(current)).collect();
        values.sort_by_key(|(sequence, _)| *sequence);
        Ok(values)
    }

    /// A current value with its place, for the address that it is of: others of its union may have another since.
    fn read_value(&self, current: &Current) -> Option<(u64, Entry)> {
        let Entry { audience, effect, draft, published } =
            self.read_aged(&current.record.payload, Age::AsPublished).ok()?;
        let Effect::Sets(key) = &effect else { return None };
        let address = audience.addresses().iter().find(|address| record::value_id(address, key) == *current.id)?;
        let mut of = Audience::from(address.clone());
        audience.excluded().iter().for_each(|id| of.exclude(*id));
        believable(current.record.sequence).ok()?;
        Some((current.record.sequence, Entry { audience: of, effect, draft, published }))
    }

    /// Takes in what the log says, in its order.
    async fn apply(&self, shared: &SharedLog, batch: Vec<Stored>, age: Age) -> Result<(), BackplaneError> {
        for stored in batch {
            let last = shared.last();
            if stored.sequence <= last {
                continue;
            }
            believable(stored.sequence)?;
            if stored.sequence > last + 1 {
                self.fill(shared, stored.sequence, age).await?;
            }
            self.apply_one(shared, &stored, age);
        }
        wake_rest(&*self.inner);
        self.inner.tasks.sweep.ensure(&self.inner);
        // Commands that were given when the log was further than this instance.
        self.carry_out_waiting(shared);
        Ok(())
    }

    /// Reads what lies before a record that came.
    async fn fill(&self, shared: &SharedLog, before: u64, age: Age) -> Result<(), BackplaneError> {
        loop {
            let last = shared.last();
            if last + 1 >= before {
                return Ok(());
            }
            match self.read_on(shared, last).await? {
                Next::Records(batch) => {
                    let together = batch.iter().zip(last + 1..before).take_while(|(stored, n)| stored.sequence == *n);
                    together.for_each(|(stored, _)| self.apply_one(shared, stored, age));
                }
                Next::Lost(upto) => self.lose_through(shared, upto.min(before - 1)).await?,
            }
        }
    }

    fn apply_one(&self, shared: &SharedLog, stored: &Stored, age: Age) {
        let now = self.now();
        match self.read_aged(&stored.payload, age) {
            Ok(entry) => {
                self.attach_connections(&entry.audience);
                self.log().apply(stored.sequence, entry, now);
            }
            Err(audience) => {
                shared.skipped.fetch_add(1, Ordering::Relaxed);
                self.counters().record_skipped(stored.sequence, now);
                self.log().lose(stored.sequence, audience.as_deref(), now);
            }
        }
        shared.history.add(stored);
        shared.last.store(stored.sequence, Ordering::Release);
    }

    /// A record by the rules of the publish API; else for whom it was, if that can be read.
    pub(in crate::hub) fn read(&self, payload: &[u8]) -> Result<Entry, Option<Box<Audience>>> {
        self.read_aged(payload, Age::New)
    }

    fn read_aged(&self, payload: &[u8], age: Age) -> Result<Entry, Option<Box<Audience>>> {
        let decoded = record::decode(payload, self.settings().max_targets);
        let Decoded { audience, event, published_at } = decoded.map_err(|unreadable| match unreadable {
            Unreadable::Garbage => None,
            Unreadable::Of(audience) => Some(audience),
        })?;
        let entry = if presence_records::is_tiding(&event) {
            presence_records::entry(audience, &event).map_err(Some)?
        } else {
            self.entry(audience, &event).map_err(|refused| Some(Box::new(refused.0)))?
        };
        let passed = |at: u64| self.now().saturating_sub(record::unix_millis().saturating_sub(at));
        Ok(Entry { published: published_at.filter(|_| age == Age::AsPublished).map(passed), ..entry })
    }

    /// Appends to the shared log, in one round trip where the broker can.
    pub(in crate::hub) async fn append_shared(
        &self,
        shared: &SharedLog,
        events: Vec<(Audience, Event)>,
    ) -> Vec<Result<Position, PublishError>> {
        self.inner.ensure_shared_log();
        let keeps_values = |address: &_| self.log().keeps_values(address);
        let records = events.iter().map(|(audience, event)| append::record(audience, event, keeps_values)).collect();
        let limit = self.settings().publish_timeout;
        let places = append::append(&*shared.backplane, records, shared.seen(self.log().epoch()), limit).await;
        places.into_iter().map(|place| place.map(append::position)).collect()
    }

    /// Tells everybody when the log cannot be followed, and when it can again.
    fn set_stale(&self, shared: &SharedLog, stale: bool) {
        if shared.stale.swap(stale, Ordering::AcqRel) != stale {
            self.counters().staleness(stale);
            let now = self.now();
            for link in self.registry().all() {
                link.wake(now);
            }
        }
    }
}
