//! A log in memory whose faults a test sets one by one: records that cannot be read yet or at all,
//! a history that is replaced under open connections, a broker that is away. It counts the reads.

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

use crate::pass_journals::pass_journals;

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
    /// The numbers that `range` and `tail` leave out.
    hidden: BTreeSet<u64>,
}

impl Log {
    fn state(&mut self, seen: Option<Seen>) -> LogState {
        if seen.is_some_and(|seen| seen.epoch == self.epoch && seen.sequence > self.last) {
            self.epoch = random_epoch();
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

/// Returns a random number that is not zero.
fn random_epoch() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(0) | 1
}

impl FakeLog {
    pub(crate) fn new() -> Self {
        let empty = Log {
            epoch: random_epoch(),
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

    /// Returns another log with the same history up to a number.
    pub(crate) fn fork(&self, upto: u64) -> Self {
        let mut log = self.shared.log.lock().unwrap().clone();
        log.records.retain(|record| record.sequence <= upto);
        log.values.retain(|_, record| record.sequence <= upto);
        log.last = upto;
        Self::of(log)
    }

    /// Replaces the history with that of another log. Open tails continue after the number that
    /// they have reached.
    pub(crate) fn exchange(&self, other: &Self) {
        let other = other.shared.log.lock().unwrap().clone();
        self.with(|log| *log = other);
    }

    /// Drops all records, and continues after a number.
    pub(crate) fn trim_to(&self, number: u64) {
        self.with(|log| {
            log.records.clear();
            log.last = number;
        });
    }

    /// Hides these numbers from `range` and `tail`.
    pub(crate) fn hide(&self, numbers: impl IntoIterator<Item = u64>) {
        self.with(|log| log.hidden.extend(numbers));
    }

    pub(crate) fn show_all(&self) {
        self.with(|log| log.hidden.clear());
    }

    /// Ends every open tail.
    pub(crate) fn cut(&self) {
        self.shared.cuts.send_modify(|count| *count += 1);
    }

    /// Sets whether the broker is away. While it is away, requests return an error.
    pub(crate) fn set_away(&self, away: bool) {
        self.shared.away.store(away, Ordering::SeqCst);
        if away {
            self.cut();
        }
    }

    /// Returns the number of calls of `range`.
    pub(crate) fn ranges(&self) -> u64 {
        self.shared.ranges.load(Ordering::SeqCst)
    }

    /// Returns the number of calls of `state`.
    pub(crate) fn states(&self) -> u64 {
        self.shared.states.load(Ordering::SeqCst)
    }

    pub(crate) fn last(&self) -> u64 {
        self.shared.log.lock().unwrap().last
    }

    async fn pass(&self) -> Result<(), BackplaneError> {
        // A request over a network is never ready at once.
        tokio::task::yield_now().await;
        if self.shared.away.load(Ordering::SeqCst) { Err(BackplaneError::unavailable("away")) } else { Ok(()) }
    }

    async fn journals(&self) -> Result<&Memory, BackplaneError> {
        self.pass().await.map(|()| &self.shared.control)
    }
}

impl Sealed for FakeLog {}

pass_journals!(FakeLog);

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
                log.state(seen);
                records.into_iter().map(|record| Ok(log.append(record))).collect()
            })
        }
        .boxed()
    }

    fn state(&self, seen: Option<Seen>) -> BoxFuture<'_, Result<LogState, BackplaneError>> {
        self.shared.states.fetch_add(1, Ordering::SeqCst);
        async move {
            self.pass().await?;
            Ok(self.shared.log.lock().unwrap().state(seen))
        }
        .boxed()
    }

    fn range(&self, after: u64, limit: usize) -> BoxFuture<'_, Result<Vec<Stored>, BackplaneError>> {
        self.shared.ranges.fetch_add(1, Ordering::SeqCst);
        async move {
            self.pass().await?;
            let log = self.shared.log.lock().unwrap();
            let is_visible = |record: &&Stored| record.sequence > after && !log.hidden.contains(&record.sequence);
            Ok(log.records.iter().filter(is_visible).take(limit).cloned().collect())
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
                    let is_visible = |record: &&Stored| record.sequence > after && !log.hidden.contains(&record.sequence);
                    log.records.iter().filter(is_visible).cloned().collect()
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
        "a fake log".into()
    }
}
