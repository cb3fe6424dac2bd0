//! A log in this process, for tests and for several hubs that share it.

use std::collections::hash_map::HashMap;
use std::collections::vec_deque::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures::future::{BoxFuture, ready};
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt};
use tokio::sync::watch;
use tokio::time::{Duration, Instant};

use super::{Backplane, BackplaneError, Current, Outgoing, Place, Seen, State, Stored, Told};

/// A shared log in this process: several hubs built with clones of it are instances of one. It keeps the newest 65,536
/// records. Nothing of it outlives the process.
#[derive(Clone)]
pub struct Memory {
    shared: Arc<Shared>,
}

struct Shared {
    log: Mutex<Log>,
    /// The newest number.
    last: watch::Sender<u64>,
    told: Mutex<VecDeque<Bytes>>,
    /// How many were told, ever.
    count: watch::Sender<usize>,
}

#[derive(Default)]
struct Log {
    epoch: u64,
    last: u64,
    records: VecDeque<Stored>,
    values: HashMap<Box<str>, Stored>,
    by_key: HashMap<Box<str>, Place>,
    deposits: HashMap<Box<str>, (Instant, Bytes)>,
    /// Its keys, oldest first.
    keys: VecDeque<(Instant, Box<str>)>,
}

const KEPT: usize = 65_536;
const BATCH: usize = 512;
/// How much of what is told is kept for those who are a moment behind.
const TOLD: usize = 10_000;
/// How long an idempotency key is.
const REMEMBERED: Duration = Duration::from_secs(600);

impl Memory {
    /// An empty log.
    #[must_use]
    pub fn new() -> Self {
        let log = Mutex::new(Log { epoch: fastrand::u64(1..), ..Log::default() });
        let (last, count) = (watch::Sender::new(0), watch::Sender::new(0));
        Self { shared: Arc::new(Shared { log, last, told: Mutex::default(), count }) }
    }

    fn log(&self) -> MutexGuard<'_, Log> {
        self.shared.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn told(&self) -> MutexGuard<'_, VecDeque<Bytes>> {
        self.shared.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The first message after so many, and how many that makes. Those that are not kept any more are passed over.
    fn told_after(&self, count: usize) -> Option<(usize, Bytes)> {
        let told = self.told();
        let all = *self.shared.count.borrow();
        let at = count.max(all - told.len());
        Some((at + 1, told.get(at + told.len() - all)?.clone()))
    }
}

impl Default for Memory {
    fn default() -> Self {
        Self::new()
    }
}

impl Log {
    fn look(&mut self, seen: Option<Seen>) -> State {
        if seen.is_some_and(|seen| seen.epoch == self.epoch && seen.sequence > self.last) {
            self.epoch = fastrand::u64(1..);
        }
        let first = self.records.front().map_or(self.last + 1, |record| record.sequence);
        State { epoch: self.epoch, first, last: self.last }
    }

    fn append(&mut self, record: Outgoing) -> Place {
        while self.keys.front().is_some_and(|(since, _)| since.elapsed() > REMEMBERED) {
            self.keys.pop_front().map(|(_, key)| self.by_key.remove(&key));
        }
        if let Some(place) = record.idempotency_key.as_ref().and_then(|key| self.by_key.get(key))
            && place.epoch == self.epoch
        {
            return *place;
        }
        self.last += 1;
        let place = Place { epoch: self.epoch, sequence: self.last };
        let stored = Stored { sequence: self.last, payload: record.payload };
        for value in record.values {
            if value.removes {
                self.values.remove(&value.id);
            } else {
                self.values.insert(value.id, stored.clone());
            }
        }
        self.records.push_back(stored);
        if self.records.len() > KEPT {
            self.records.pop_front();
        }
        if let Some(key) = record.idempotency_key {
            self.keys.push_back((Instant::now(), key.clone()));
            self.by_key.insert(key, place);
        }
        place
    }

    fn after(&self, after: u64, limit: usize) -> Vec<Stored> {
        let start = self.records.partition_point(|record| record.sequence <= after);
        self.records.range(start..).take(limit).cloned().collect()
    }
}

impl Backplane for Memory {
    fn append(&self, records: Vec<Outgoing>, seen: Option<Seen>) -> BoxFuture<'_, Vec<Result<Place, BackplaneError>>> {
        let mut log = self.log();
        log.look(seen);
        let places = records.into_iter().map(|record| Ok(log.append(record))).collect();
        let last = log.last;
        drop(log);
        self.shared.last.send_replace(last);
        ready(places).boxed()
    }

    fn state(&self, seen: Option<Seen>) -> BoxFuture<'_, Result<State, BackplaneError>> {
        ready(Ok(self.log().look(seen))).boxed()
    }

    fn range(&self, after: u64, limit: usize) -> BoxFuture<'_, Result<Vec<Stored>, BackplaneError>> {
        ready(Ok(self.log().after(after, limit))).boxed()
    }

    fn tail(&self, after: u64) -> BoxStream<'static, Result<Vec<Stored>, BackplaneError>> {
        let (this, mut last, mut after) = (self.clone(), self.shared.last.subscribe(), after);
        async_stream::stream! {
            loop {
                let batch = this.log().after(after, BATCH);
                if let Some(newest) = batch.last() {
                    after = newest.sequence;
                    yield Ok(batch);
                } else if last.changed().await.is_err() {
                    yield Err(BackplaneError::unavailable("gone"));
                    break;
                }
            }
        }
        .boxed()
    }

    fn values(&self) -> BoxFuture<'_, Result<Vec<Current>, BackplaneError>> {
        let log = self.log();
        let values = log.values.iter().map(|(id, record)| Current { id: id.clone(), record: record.clone() }).collect();
        ready(Ok(values)).boxed()
    }

    fn tell(&self, message: Bytes) -> BoxFuture<'_, Result<(), BackplaneError>> {
        let mut told = self.told();
        if told.len() == TOLD {
            told.pop_front();
        }
        told.push_back(message);
        // Under the lock, so that the two agree.
        self.shared.count.send_modify(|count| *count += 1);
        ready(Ok(())).boxed()
    }

    fn hear(&self, after: Option<Box<str>>) -> BoxStream<'static, Result<Told, BackplaneError>> {
        let (this, mut count) = (self.clone(), self.shared.count.subscribe());
        let mut heard = after.and_then(|mark| mark.parse().ok()).unwrap_or(*count.borrow());
        async_stream::stream! {
            loop {
                if let Some((at, message)) = this.told_after(heard) {
                    heard = at;
                    yield Ok(Told { mark: at.to_string().into(), message });
                } else if count.changed().await.is_err() {
                    yield Err(BackplaneError::unavailable("gone"));
                    break;
                }
            }
        }
        .boxed()
    }

    fn deposit(&self, key: &str, payload: Bytes, time: Duration) -> BoxFuture<'_, Result<(), BackplaneError>> {
        let now = Instant::now();
        let mut log = self.log();
        log.deposits.retain(|_, (until, _)| *until > now);
        log.deposits.insert(key.into(), (now + time, payload));
        ready(Ok(())).boxed()
    }

    fn withdraw(&self, key: &str) -> BoxFuture<'_, Result<Option<Bytes>, BackplaneError>> {
        let found = self.log().deposits.remove(key);
        ready(Ok(found.filter(|(until, _)| *until > Instant::now()).map(|(_, payload)| payload))).boxed()
    }

    fn describe(&self) -> String {
        "memory".into()
    }
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Memory").finish_non_exhaustive()
    }
}
