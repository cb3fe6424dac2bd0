//! A minimal adapter of another crate, which keeps the contract: [`Table`]. `docs/adapters.md`
//! explains it.
//!
//! The "broker" is a lock around some tables, so that the code shows only what an adapter has to
//! do. Readers poll the tables, as with a database without notifications. A real adapter returns
//! the errors of its broker, and limits the time of each request.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures::future::{BoxFuture, FutureExt, ready};
use futures::stream::{BoxStream, StreamExt, unfold};
use tokio::time::{Instant, sleep};
use tower_sse::backplane::{
    Backplane, BackplaneError, Begun, ControlMessage, ControlStream, CurrentValue, JournalAppend, JournalId,
    JournalPage, Journals, LogPosition, LogState, NewRecord, Range, ReadLimit, Seen, Stored,
};
use tower_sse::test_kit::check_backplane;
use tower_sse::{Event, Hub, Subscription};

use crate::kit::{soon, until};

type Answer<T> = Result<T, BackplaneError>;

/// The time between two reads of a stream that waits.
const POLL: Duration = Duration::from_millis(5);
/// The maximum number of retained records.
const MAX_RECORDS: usize = 100_000;
/// The maximum number of retained messages of one control stream.
const MAX_MESSAGES: usize = 10_000;
/// The time for which an idempotency key is remembered.
const KEY_LIFETIME: Duration = Duration::from_secs(600);
/// The time after which an open journal without appends is forgotten, and the maximum time for
/// which a closed journal is kept.
const DAY: Duration = Duration::from_secs(24 * 3600);

/// A log in tables. Clones are connections to the same log.
#[derive(Clone, Default)]
struct Table(Arc<Mutex<Tables>>);

#[derive(Default)]
struct Tables {
    epoch: u64,
    last: u64,
    records: BTreeMap<u64, Stored>,
    values: BTreeMap<Box<str>, Stored>,
    keys: HashMap<Box<str>, (Instant, LogPosition)>,
    /// The messages of each control stream. All streams share one sequence of numbers, so the
    /// number of a message is its mark.
    messages: HashMap<ControlStream, BTreeMap<u64, Bytes>>,
    newest_message: u64,
    once: HashMap<String, (Instant, Bytes)>,
    shared: HashMap<String, (Instant, Bytes)>,
    journals: HashMap<String, Journal>,
}

struct Journal {
    id: JournalId,
    entries: Vec<Bytes>,
    is_closed: bool,
    ends: Instant,
}

fn random() -> u64 {
    fastrand::u64(1..)
}

impl Tables {
    /// Begins a new epoch if the log has none, or if it ends below the position that the caller has
    /// seen in this epoch.
    fn state(&mut self, seen: Option<Seen>) -> LogState {
        if self.epoch == 0 || seen.is_some_and(|seen| seen.epoch == self.epoch && seen.sequence > self.last) {
            self.epoch = random();
        }
        let first = self.records.keys().next().copied().unwrap_or(self.last + 1);
        LogState::new(self.epoch, first, self.last)
    }

    fn append(&mut self, record: NewRecord) -> LogPosition {
        let known = record.idempotency_key.as_ref().and_then(|key| self.keys.get(key));
        if let Some((at, position)) = known
            && at.elapsed() < KEY_LIFETIME
            && position.epoch == self.epoch
        {
            return *position;
        }
        self.last += 1;
        let position = LogPosition::new(self.epoch, self.last);
        let stored = Stored::new(self.last, record.payload).at(SystemTime::now());
        for value in record.values {
            if value.removes {
                self.values.remove(&value.id);
            } else {
                self.values.insert(value.id, stored.clone());
            }
        }
        self.records.insert(self.last, stored);
        if self.records.len() > MAX_RECORDS {
            self.records.pop_first();
        }
        if let Some(key) = record.idempotency_key {
            self.keys.retain(|_, (at, _)| at.elapsed() < KEY_LIFETIME);
            self.keys.insert(key, (Instant::now(), position));
        }
        position
    }

    fn after(&self, number: u64, limit: ReadLimit) -> Vec<Stored> {
        limit.take(self.records.range(number + 1..).map(|(_, stored)| stored.clone()))
    }

    fn broadcast(&mut self, stream: ControlStream, message: Bytes) {
        self.newest_message += 1;
        let messages = self.messages.entry(stream).or_default();
        messages.insert(self.newest_message, message);
        if messages.len() > MAX_MESSAGES {
            messages.pop_first();
        }
    }

    /// Returns the journal of a key, unless it is forgotten.
    fn journal(&mut self, key: &str) -> Option<&mut Journal> {
        self.journals.get_mut(key).filter(|journal| journal.ends > Instant::now())
    }
}

impl Table {
    fn lock(&self) -> MutexGuard<'_, Tables> {
        self.0.lock().unwrap()
    }

    /// Streams what `next` returns, and asks again after [`POLL`] while it returns nothing.
    fn poll<T: Send + 'static>(
        &self,
        next: impl FnMut(&Tables) -> Option<T> + Send + 'static,
    ) -> BoxStream<'static, Answer<T>> {
        unfold((self.clone(), next), async |(this, mut next)| {
            loop {
                let found = next(&this.lock());
                if let Some(found) = found {
                    return Some((Ok(found), (this, next)));
                }
                sleep(POLL).await;
            }
        })
        .boxed()
    }
}

impl Backplane for Table {
    fn append(&self, records: Vec<NewRecord>, seen: Option<Seen>) -> BoxFuture<'_, Vec<Answer<LogPosition>>> {
        let mut tables = self.lock();
        tables.state(seen);
        let positions = records.into_iter().map(|record| Ok(tables.append(record))).collect();
        ready(positions).boxed()
    }

    fn state(&self, seen: Option<Seen>) -> BoxFuture<'_, Answer<LogState>> {
        ready(Ok(self.lock().state(seen))).boxed()
    }

    fn range(&self, after: u64, limit: ReadLimit) -> BoxFuture<'_, Answer<Range>> {
        ready(Ok(Range::Records(self.lock().after(after, limit)))).boxed()
    }

    fn tail(&self, after: u64) -> BoxStream<'static, Answer<Vec<Stored>>> {
        let mut after = after;
        self.poll(move |tables| {
            let batch = tables.after(after, ReadLimit::records(512).bytes(1 << 20));
            after = batch.last()?.sequence;
            Some(batch)
        })
    }

    fn values(&self) -> BoxFuture<'_, Answer<Vec<CurrentValue>>> {
        let values = &self.lock().values;
        let values = values.iter().map(|(id, record)| CurrentValue::new(id.clone(), record.clone())).collect();
        ready(Ok(values)).boxed()
    }

    fn broadcast(&self, stream: ControlStream, message: Bytes) -> BoxFuture<'_, Answer<()>> {
        self.lock().broadcast(stream, message);
        ready(Ok(())).boxed()
    }

    fn listen(&self, after: Option<Box<str>>) -> BoxStream<'static, Answer<ControlMessage>> {
        let mut after: u64 = match after {
            None => self.lock().newest_message,
            // All messages follow a mark that is not of this log.
            Some(mark) => mark.parse().unwrap_or(0),
        };
        self.poll(move |tables| {
            let streams = tables.messages.values();
            let (number, message) = streams.filter_map(|stream| stream.range(after + 1..).next()).min()?;
            after = *number;
            Some(ControlMessage::new(number.to_string(), message.clone()))
        })
    }

    fn put_once(&self, key: &str, payload: Bytes, time: Duration) -> BoxFuture<'_, Answer<()>> {
        self.lock().once.insert(key.to_owned(), (Instant::now() + time.min(DAY), payload));
        ready(Ok(())).boxed()
    }

    fn take(&self, key: &str) -> BoxFuture<'_, Answer<Option<Bytes>>> {
        let taken = self.lock().once.remove(key).filter(|(ends, _)| *ends > Instant::now());
        ready(Ok(taken.map(|(_, payload)| payload))).boxed()
    }

    fn put_shared(&self, key: &str, payload: Bytes, time: Duration) -> BoxFuture<'_, Answer<()>> {
        let ends = Instant::now() + time.min(Duration::from_secs(300));
        let shared = &mut self.lock().shared;
        shared.retain(|_, (ends, _)| *ends > Instant::now());
        shared.insert(key.to_owned(), (ends, payload));
        ready(Ok(())).boxed()
    }

    fn get_shared(&self, key: &str) -> BoxFuture<'_, Answer<Option<Bytes>>> {
        let found = self.lock().shared.get(key).filter(|(ends, _)| *ends > Instant::now()).cloned();
        ready(Ok(found.map(|(_, payload)| payload))).boxed()
    }

    fn describe(&self) -> String {
        "tables in memory".into()
    }
}

impl Journals for Table {
    fn begin_journal(&self, key: &str, first: Bytes) -> BoxFuture<'_, Answer<Begun>> {
        let mut tables = self.lock();
        if let Some(open) = tables.journal(key).filter(|journal| !journal.is_closed) {
            // A repeat of the call that began the journal has the same first entry.
            let is_repeat = open.entries[0] == first;
            return ready(Ok(if is_repeat { Begun::New(open.id) } else { Begun::Active(open.id) })).boxed();
        }
        let id = JournalId::random();
        let journal = Journal { id, entries: vec![first], is_closed: false, ends: Instant::now() + DAY };
        tables.journals.insert(key.to_owned(), journal);
        ready(Ok(Begun::New(id))).boxed()
    }

    fn append_journal(
        &self,
        key: &str,
        id: JournalId,
        after: u64,
        entry: Bytes,
        close: Option<Duration>,
    ) -> BoxFuture<'_, Answer<JournalAppend>> {
        let mut tables = self.lock();
        let after = usize::try_from(after).unwrap_or(usize::MAX);
        let appended = match tables.journal(key).filter(|journal| journal.id == id) {
            Some(journal) if journal.entries.len() == after && !journal.is_closed => {
                journal.entries.push(entry);
                journal.is_closed = close.is_some();
                journal.ends = Instant::now() + close.unwrap_or(DAY).min(DAY);
                JournalAppend::Appended
            }
            // A repeat of a call that had its effect.
            Some(journal)
                if journal.entries.get(after) == Some(&entry)
                    && (journal.is_closed && journal.entries.len() == after + 1) == close.is_some() =>
            {
                JournalAppend::Appended
            }
            _ => JournalAppend::Conflict,
        };
        ready(Ok(appended)).boxed()
    }

    fn read_journal(
        &self,
        key: &str,
        id: Option<JournalId>,
        after: u64,
        max_bytes: usize,
    ) -> BoxFuture<'_, Answer<Option<JournalPage>>> {
        let mut tables = self.lock();
        let journal = tables.journal(key).filter(|journal| id.is_none_or(|id| journal.id == id));
        let page = journal.map(|journal| {
            let (mut entries, mut bytes) = (Vec::new(), 0);
            for entry in journal.entries.iter().skip(usize::try_from(after).unwrap_or(usize::MAX)) {
                bytes += entry.len();
                if bytes > max_bytes && !entries.is_empty() {
                    break;
                }
                entries.push(entry.clone());
            }
            JournalPage::new(journal.id, entries, journal.entries.len() as u64, journal.is_closed)
        });
        ready(Ok(page)).boxed()
    }
}

#[tokio::test(start_paused = true)]
async fn adapter_of_another_crate_keeps_the_contract() {
    let logs = Mutex::new(HashMap::<String, Table>::new());
    check_backplane(|name| logs.lock().unwrap().entry(name.to_owned()).or_default().clone()).await;
}

#[tokio::test(start_paused = true)]
async fn two_instances_share_the_log_of_an_adapter_of_another_crate() {
    let log = Table::default();
    let one = Hub::builder().backplane(log.clone()).build().unwrap();
    let other = Hub::builder().backplane(log).build().unwrap();
    until(|| one.is_ready() && other.is_ready()).await;
    let mut page = other.subscribe(Subscription::for_user("ada"), None).unwrap();
    one.user("ada").publish(Event::new("document.shared", "7")).await.unwrap();
    assert_eq!(soon(page.next_event()).await.unwrap().data, "7");
    until(|| one.user("ada").count() == 1).await;
}
