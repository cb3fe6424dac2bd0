//! A log in the memory of this process, for tests and for several hubs in one process.

use std::collections::hash_map::HashMap;
use std::collections::vec_deque::VecDeque;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use futures::future::{BoxFuture, FutureExt, ready};
use futures::stream::BoxStream;
use tokio::sync::watch;
use tokio::time::{Duration, Instant};

use super::journal::{Begun, JournalAppend, JournalId, JournalPage, Journals};
use super::memory_control::{Control, Mark};
use super::memory_journals::MemoryJournals;
use super::{
    Answer, Backplane, BackplaneError, ControlMessage, ControlStream, CurrentValue, LogPosition, LogState, NewRecord,
    Range, ReadLimit, Seen, Stored,
};
use crate::macros::opaque_debug;
use crate::sync::Mutex;

/// A shared log in the memory of this process, for tests. Hubs that are built with clones of one
/// `Memory` are instances that share one log.
///
/// The log retains the newest 65,536 records. It is lost when the process ends.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use tower_sse::backplane::Memory;
/// use tower_sse::{Event, Hub, SubscriberItem, Subscription};
///
/// let log = Memory::new();
/// let one = Hub::builder().backplane(log.clone()).build()?;
/// let other = Hub::builder().backplane(log).build()?;
/// # while !other.is_ready() { tokio::time::sleep(std::time::Duration::from_millis(1)).await; }
/// let mut page = other.subscribe(Subscription::for_user("ada"), None)?;
/// one.user("ada").publish(Event::new("document.shared", "7")).await?;
/// while let Some(item) = page.next().await {
///     let SubscriberItem::Event(event) = item else { continue };
///     assert_eq!(event.data, "7");
///     break;
/// }
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Memory {
    pub(super) shared: Arc<Shared>,
}

pub(super) struct Shared {
    pub(super) log: Mutex<Log>,
    pub(super) journals: Mutex<MemoryJournals>,
    /// Wakes the streams that wait for a record, after each append.
    pub(super) appended: watch::Sender<()>,
    /// Wakes the streams that wait for a control message, after each broadcast.
    pub(super) control: watch::Sender<()>,
}

#[derive(Clone, Default)]
pub(super) struct Log {
    pub(super) epoch: u64,
    pub(super) last: u64,
    pub(super) records: VecDeque<Stored>,
    pub(super) values: HashMap<Box<str>, Stored>,
    /// The positions of the records whose idempotency keys are remembered.
    pub(super) by_key: HashMap<Box<str>, LogPosition>,
    /// The values of [`Backplane::put_once`] by key, each with the time at which it expires.
    deposits: HashMap<Box<str>, (Instant, Bytes)>,
    /// The values of [`Backplane::put_shared`] by key, each with the time at which it expires.
    shared: HashMap<Box<str>, (Instant, Bytes)>,
    /// The idempotency keys in `by_key` with the time of their append, oldest first.
    keys: VecDeque<(Instant, Box<str>)>,
    control: Control,
}

/// The maximum number of retained records.
const MAX_RECORDS: usize = 65_536;
/// The limit of one batch of a tail.
const BATCH: ReadLimit = ReadLimit::records(512);
/// The maximum time for which a value is stored. It keeps the end of the time representable.
const LONGEST_DEPOSIT: Duration = Duration::from_secs(366 * 24 * 3600);
/// The time for which an idempotency key is remembered.
const KEY_LIFETIME: Duration = Duration::from_secs(600);

impl Memory {
    /// Creates an empty log.
    #[must_use]
    pub fn new() -> Self {
        let log = Mutex::new(Log { epoch: fastrand::u64(1..), ..Log::default() });
        let (appended, control) = (watch::Sender::new(()), watch::Sender::new(()));
        Self { shared: Arc::new(Shared { log, journals: Mutex::default(), appended, control }) }
    }

    /// Returns a stream of the items that `next` returns. While `next` returns `None`, the stream
    /// waits for a change.
    fn stream<T: Send + 'static>(
        &self,
        mut changes: watch::Receiver<()>,
        mut next: impl FnMut(&Log) -> Option<T> + Send + 'static,
    ) -> BoxStream<'static, Answer<T>> {
        let shared = Arc::clone(&self.shared);
        Box::pin(async_stream::try_stream! {
            loop {
                let found = next(&shared.log.lock());
                match found {
                    Some(found) => yield found,
                    None => changes.changed().await.map_err(|_| BackplaneError::unavailable("the log was dropped"))?,
                }
            }
        })
    }
}

impl Default for Memory {
    fn default() -> Self {
        Self::new()
    }
}

impl Log {
    /// Begins a new epoch if the log is in the epoch of `seen` and ends below `seen`. Returns the
    /// state of the log.
    fn state(&mut self, seen: Option<Seen>) -> LogState {
        if seen.is_some_and(|seen| seen.epoch == self.epoch && seen.sequence > self.last) {
            self.epoch = fastrand::u64(1..);
        }
        let first = self.records.front().map_or(self.last + 1, |record| record.sequence);
        LogState { epoch: self.epoch, first, last: self.last }
    }

    fn append(&mut self, record: NewRecord) -> LogPosition {
        while self.keys.front().is_some_and(|(since, _)| since.elapsed() > KEY_LIFETIME) {
            self.keys.pop_front().map(|(_, key)| self.by_key.remove(&key));
        }
        if let Some(position) = record.idempotency_key.as_ref().and_then(|key| self.by_key.get(key))
            && position.epoch == self.epoch
        {
            return *position;
        }
        self.last += 1;
        let position = LogPosition { epoch: self.epoch, sequence: self.last };
        let stored = Stored::new(self.last, record.payload).at(SystemTime::now());
        for value in record.values {
            if value.removes {
                self.values.remove(&value.id);
            } else {
                self.values.insert(value.id, stored.clone());
            }
        }
        self.records.push_back(stored);
        if self.records.len() > MAX_RECORDS {
            self.records.pop_front();
        }
        if let Some(key) = record.idempotency_key {
            self.keys.push_back((Instant::now(), key.clone()));
            self.by_key.insert(key, position);
        }
        position
    }

    /// Forgets the times of the keys that are no longer remembered. Otherwise the time of such a
    /// key would end a later use of the key early.
    #[cfg(feature = "test-kit")]
    pub(super) fn forget_old_keys(&mut self) {
        self.keys.retain(|(_, key)| self.by_key.contains_key(key));
    }

    fn after(&self, after: u64, limit: ReadLimit) -> Vec<Stored> {
        let start = self.records.partition_point(|record| record.sequence <= after);
        limit.take(self.records.range(start..).cloned())
    }
}

impl Backplane for Memory {
    fn append(&self, records: Vec<NewRecord>, seen: Option<Seen>) -> BoxFuture<'_, Vec<Answer<LogPosition>>> {
        let mut log = self.shared.log.lock();
        log.state(seen);
        let positions = records.into_iter().map(|record| Ok(log.append(record))).collect();
        drop(log);
        self.shared.appended.send_replace(());
        ready(positions).boxed()
    }

    fn state(&self, seen: Option<Seen>) -> BoxFuture<'_, Answer<LogState>> {
        ready(Ok(self.shared.log.lock().state(seen))).boxed()
    }

    fn range(&self, after: u64, limit: ReadLimit) -> BoxFuture<'_, Answer<Range>> {
        ready(Ok(Range::Records(self.shared.log.lock().after(after, limit)))).boxed()
    }

    fn tail(&self, after: u64) -> BoxStream<'static, Answer<Vec<Stored>>> {
        let mut after = after;
        self.stream(self.shared.appended.subscribe(), move |log| {
            let batch = log.after(after, BATCH);
            after = batch.last()?.sequence;
            Some(batch)
        })
    }

    fn values(&self) -> BoxFuture<'_, Answer<Vec<CurrentValue>>> {
        let log = self.shared.log.lock();
        let values =
            log.values.iter().map(|(id, record)| CurrentValue { id: id.clone(), record: record.clone() }).collect();
        ready(Ok(values)).boxed()
    }

    fn broadcast(&self, stream: ControlStream, message: Bytes) -> BoxFuture<'_, Answer<()>> {
        self.shared.log.lock().control.push(stream, message);
        self.shared.control.send_replace(());
        ready(Ok(())).boxed()
    }

    fn listen(&self, after: Option<Box<str>>) -> BoxStream<'static, Answer<ControlMessage>> {
        let mut after = after.map_or_else(|| self.shared.log.lock().control.end(), |mark| Mark::parse(&mark));
        self.stream(self.shared.control.subscribe(), move |log| log.control.next(&mut after))
    }

    fn put_once(&self, key: &str, payload: Bytes, time: Duration) -> BoxFuture<'_, Answer<()>> {
        let now = Instant::now();
        let mut log = self.shared.log.lock();
        log.deposits.retain(|_, (until, _)| *until > now);
        log.deposits.insert(key.into(), (now + time.min(LONGEST_DEPOSIT), payload));
        ready(Ok(())).boxed()
    }

    fn take(&self, key: &str) -> BoxFuture<'_, Answer<Option<Bytes>>> {
        let found = self.shared.log.lock().deposits.remove(key);
        ready(Ok(found.filter(|(until, _)| *until > Instant::now()).map(|(_, payload)| payload))).boxed()
    }

    fn put_shared(&self, key: &str, payload: Bytes, time: Duration) -> BoxFuture<'_, Answer<()>> {
        let now = Instant::now();
        let mut log = self.shared.log.lock();
        log.shared.retain(|_, (until, _)| *until > now);
        log.shared.insert(key.into(), (now + time.min(LONGEST_DEPOSIT), payload));
        ready(Ok(())).boxed()
    }

    fn get_shared(&self, key: &str) -> BoxFuture<'_, Answer<Option<Bytes>>> {
        let log = self.shared.log.lock();
        let found = log.shared.get(key).filter(|(until, _)| *until > Instant::now());
        ready(Ok(found.map(|(_, payload)| payload.clone()))).boxed()
    }

    fn describe(&self) -> String {
        "memory".into()
    }
}

impl Journals for Memory {
    fn begin_journal(&self, key: &str, first: Bytes) -> BoxFuture<'_, Answer<Begun>> {
        ready(Ok(self.shared.journals.lock().begin(key, first))).boxed()
    }

    fn append_journal(
        &self,
        key: &str,
        id: JournalId,
        after: u64,
        entry: Bytes,
        close: Option<Duration>,
    ) -> BoxFuture<'_, Answer<JournalAppend>> {
        ready(Ok(self.shared.journals.lock().append(key, id, after, entry, close))).boxed()
    }

    fn read_journal(
        &self,
        key: &str,
        id: Option<JournalId>,
        after: u64,
        max_bytes: usize,
    ) -> BoxFuture<'_, Answer<Option<JournalPage>>> {
        ready(Ok(self.shared.journals.lock().read(key, id, after, max_bytes))).boxed()
    }
}

opaque_debug!(|_memory: Memory| {});
