//! A log in this process whose faults a test stages one by one: records that cannot be read yet or at all, a history that is
//! exchanged under open connections, a broker that is away. It counts how often it is asked.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use futures::stream::{BoxStream, StreamExt};
use tokio::sync::watch;
use tower_sse::backplane::sealed::Sealed;
use tower_sse::backplane::{
    Backplane, BackplaneError, ControlMessage, CurrentValue, LogPosition, LogState, Memory, NewRecord, Seen, Stored,
};

#[derive(Clone)]
pub(crate) struct FakeLog {
    shared: Arc<Shared>,
}

struct Shared {
    log: Mutex<Log>,
    changes: watch::Sender<u64>,
    cuts: watch::Sender<u64>,
    away: AtomicBool,
    ranges: AtomicU64,
    states: AtomicU64,
    control: Memory,
}

#[derive(Clone)]
struct Log {
    epoch: u64,
    last: u64,
    records: VecDeque<Stored>,
    values: HashMap<Box<str>, Stored>,
    /// The numbers that `range` leaves out.
    hidden: BTreeSet<u64>,
}

impl Log {
    fn look(&mut self, seen: Option<Seen>) -> LogState {
        if seen.is_some_and(|seen| seen.epoch == self.epoch && seen.sequence > self.last) {
            self.epoch = fastrand();
        }
        let first = self.records.front().map_or(self.last + 1, |record| record.sequence);
        LogState { epoch: self.epoch, first, last: self.last }
    }

    fn append(&mut self, record: NewRecord) -> LogPosition {
        self.last += 1;
        let stored = Stored { sequence: self.last, payload: record.payload };
        for value in record.values {
            if value.removes {
                self.values.remove(&value.id);
            } else {
                self.values.insert(value.id, stored.clone());
            }
        }
        self.records.push_back(stored);
        LogPosition { epoch: self.epoch, sequence: self.last }
    }
}

/// Not zero, and another for each call.
fn fastrand() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(0) | 1
}

impl FakeLog {
    pub(crate) fn new() -> Self {
        let empty = Log {
            epoch: fastrand(),
            last: 0,
            records: VecDeque::new(),
            values: HashMap::new(),
            hidden: BTreeSet::new(),
        };
        Self::of(empty)
    }

    fn of(log: Log) -> Self {
        let shared = Shared {
            log: Mutex::new(log),
            changes: watch::Sender::new(0),
            cuts: watch::Sender::new(0),
            away: AtomicBool::new(false),
            ranges: AtomicU64::new(0),
            states: AtomicU64::new(0),
            control: Memory::new(),
        };
        Self { shared: Arc::new(shared) }
    }

    fn with<T>(&self, change: impl FnOnce(&mut Log) -> T) -> T {
        let done = change(&mut self.shared.log.lock().unwrap());
        self.shared.changes.send_modify(|count| *count += 1);
        done
    }

    /// Another log with the same history up to a number.
    pub(crate) fn fork(&self, upto: u64) -> Self {
        let mut log = self.shared.log.lock().unwrap().clone();
        log.records.retain(|record| record.sequence <= upto);
        log.values.retain(|_, record| record.sequence <= upto);
        log.last = upto;
        Self::of(log)
    }

    /// Has another log's history from now on. Open tails go on after the number that they have reached.
    pub(crate) fn exchange(&self, other: &Self) {
        let other = other.shared.log.lock().unwrap().clone();
        self.with(|log| *log = other);
    }

    /// Drops all records and goes on after a number.
    pub(crate) fn trim_to(&self, number: u64) {
        self.with(|log| {
            log.records.clear();
            log.last = number;
        });
    }

    /// `range` leaves these numbers out.
    pub(crate) fn hide(&self, numbers: impl IntoIterator<Item = u64>) {
        self.with(|log| log.hidden.extend(numbers));
    }

    pub(crate) fn show_all(&self) {
        self.with(|log| log.hidden.clear());
    }

    /// Ends every tail that is open, with an error.
    pub(crate) fn cut(&self) {
        self.shared.cuts.send_modify(|count| *count += 1);
    }

    /// While it is away it answers nothing but errors.
    pub(crate) fn set_away(&self, away: bool) {
        self.shared.away.store(away, Ordering::SeqCst);
        if away {
            self.cut();
        }
    }

    /// How often `range` was called.
    pub(crate) fn ranges(&self) -> u64 {
        self.shared.ranges.load(Ordering::SeqCst)
    }

    /// How often `state` was called.
    pub(crate) fn states(&self) -> u64 {
        self.shared.states.load(Ordering::SeqCst)
    }

    pub(crate) fn last(&self) -> u64 {
        self.shared.log.lock().unwrap().last
    }

    async fn pass(&self) -> Result<(), BackplaneError> {
        // As a network would.
        tokio::task::yield_now().await;
        if self.shared.away.load(Ordering::SeqCst) { Err(BackplaneError::unavailable("away")) } else { Ok(()) }
    }
}

impl Sealed for FakeLog {}

impl Backplane for FakeLog {
    fn append(
        &self,
        records: Vec<NewRecord>,
        seen: Option<Seen>,
    ) -> BoxFuture<'_, Vec<Result<LogPosition, BackplaneError>>> {
        async move {
            if self.pass().await.is_err() {
                return records.iter().map(|_| Err(BackplaneError::unavailable("away"))).collect();
            }
            self.with(|log| {
                log.look(seen);
                records.into_iter().map(|record| Ok(log.append(record))).collect()
            })
        }
        .boxed()
    }

    fn state(&self, seen: Option<Seen>) -> BoxFuture<'_, Result<LogState, BackplaneError>> {
        self.shared.states.fetch_add(1, Ordering::SeqCst);
        async move {
            self.pass().await?;
            Ok(self.shared.log.lock().unwrap().look(seen))
        }
        .boxed()
    }

    fn range(&self, after: u64, limit: usize) -> BoxFuture<'_, Result<Vec<Stored>, BackplaneError>> {
        self.shared.ranges.fetch_add(1, Ordering::SeqCst);
        async move {
            self.pass().await?;
            let log = self.shared.log.lock().unwrap();
            let is_there = |record: &&Stored| record.sequence > after && !log.hidden.contains(&record.sequence);
            Ok(log.records.iter().filter(is_there).take(limit).cloned().collect())
        }
        .boxed()
    }

    fn tail(&self, after: u64) -> BoxStream<'static, Result<Vec<Stored>, BackplaneError>> {
        let (this, mut after) = (self.clone(), after);
        let (mut changes, mut cuts) = (self.shared.changes.subscribe(), self.shared.cuts.subscribe());
        cuts.mark_unchanged();
        let tail = async_stream::stream! {
            loop {
                let batch: Vec<_> = {
                    let log = this.shared.log.lock().unwrap();
                    let is_there = |record: &&Stored| record.sequence > after && !log.hidden.contains(&record.sequence);
                    log.records.iter().filter(is_there).cloned().collect()
                };
                if let Some(newest) = batch.last() {
                    after = newest.sequence;
                    yield Ok(batch);
                } else {
                    changes.changed().await.unwrap();
                }
            }
        };
        let cut = async move { drop(cuts.changed().await) };
        tail.take_until(cut).boxed()
    }

    fn values(&self) -> BoxFuture<'_, Result<Vec<CurrentValue>, BackplaneError>> {
        async move {
            self.pass().await?;
            let log = self.shared.log.lock().unwrap();
            Ok(log.values.iter().map(|(id, record)| CurrentValue { id: id.clone(), record: record.clone() }).collect())
        }
        .boxed()
    }

    fn broadcast(&self, message: Bytes) -> BoxFuture<'_, Result<(), BackplaneError>> {
        async move {
            self.pass().await?;
            self.shared.control.broadcast(message).await
        }
        .boxed()
    }

    fn listen(&self, after: Option<Box<str>>) -> BoxStream<'static, Result<ControlMessage, BackplaneError>> {
        self.shared.control.listen(after)
    }

    fn put_once(&self, key: &str, payload: Bytes, time: Duration) -> BoxFuture<'_, Result<(), BackplaneError>> {
        self.shared.control.put_once(key, payload, time)
    }

    fn take(&self, key: &str) -> BoxFuture<'_, Result<Option<Bytes>, BackplaneError>> {
        self.shared.control.take(key)
    }

    fn describe(&self) -> String {
        "a fake".into()
    }
}
