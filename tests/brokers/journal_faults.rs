//! Journals that a test can watch, and whose requests fail one by one as the test says. The log and
//! the control messages are those of a `Memory`.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt};
use serde_json::Value;
use tokio::sync::watch;
use tower_sse::backplane::sealed::Sealed;
use tower_sse::backplane::{
    Backplane, BackplaneError, Begun, ControlMessage, CurrentValue, JournalAppend, JournalId, JournalPage, Journals,
    LogPosition, LogState, Memory, NewRecord, Seen, Stored,
};

/// What happens to one request. Further requests of its kind succeed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The request has no effect, and its caller knows that.
    Refused,
    /// The broker never accepts the request: it is too large, for example.
    Rejected,
    /// The request is lost on its way, and its caller receives no answer.
    LostRequest,
    /// The request has its effect, and the answer is lost.
    LostAnswer,
    /// The broker receives the request twice.
    Twice,
    /// The request waits for [`Faults::release`], and then has its effect.
    HeldRequest,
    /// The request has its effect, and the answer waits for [`Faults::release`].
    HeldAnswer,
    /// The request waits for [`Faults::release`] and then has its effect, also if its caller has
    /// given up by then. The caller receives no answer.
    Late,
}

/// The requests of one instance, and their faults.
#[derive(Default)]
pub(crate) struct Faults {
    begin: Mutex<VecDeque<Fault>>,
    append: Mutex<VecDeque<Fault>>,
    read: Mutex<VecDeque<Fault>>,
    /// While the broker is away, requests have no effect.
    away: AtomicBool,
    /// Whether the callers of a broker that is away know that their requests have no effect.
    away_is_known: AtomicBool,
    /// The control messages with one of these texts are lost.
    lost_messages: Mutex<Vec<&'static str>>,
    /// Whether this instance receives no control messages.
    deaf: AtomicBool,
    released: watch::Sender<bool>,
    held: AtomicU64,
}

impl Faults {
    /// Sets the faults of the next requests that begin a journal.
    pub(crate) fn begin(&self, faults: impl IntoIterator<Item = Fault>) {
        self.begin.lock().unwrap().extend(faults);
    }

    /// Sets the faults of the next appends.
    pub(crate) fn append(&self, faults: impl IntoIterator<Item = Fault>) {
        self.append.lock().unwrap().extend(faults);
    }

    /// Sets the faults of the next reads.
    pub(crate) fn read(&self, faults: impl IntoIterator<Item = Fault>) {
        self.read.lock().unwrap().extend(faults);
    }

    /// Makes all journals and all control messages fail. The callers know that nothing happened.
    pub(crate) fn set_away(&self, away: bool) {
        self.away_is_known.store(true, Ordering::SeqCst);
        self.away.store(away, Ordering::SeqCst);
    }

    /// Makes all journals and all control messages fail. The callers do not know what happened.
    pub(crate) fn set_silent(&self, away: bool) {
        self.away_is_known.store(false, Ordering::SeqCst);
        self.away.store(away, Ordering::SeqCst);
    }

    /// Loses the control messages with this text.
    pub(crate) fn lose_messages(&self, text: &'static str) {
        self.lost_messages.lock().unwrap().push(text);
    }

    pub(crate) fn pass_messages(&self) {
        self.lost_messages.lock().unwrap().clear();
    }

    /// Sets whether this instance receives no control messages, not even its own.
    pub(crate) fn set_deaf(&self, deaf: bool) {
        self.deaf.store(deaf, Ordering::SeqCst);
    }

    /// Lets all requests and answers pass that are held.
    pub(crate) fn release(&self) {
        self.released.send_replace(true);
    }

    /// Returns the number of requests that were held.
    pub(crate) fn held(&self) -> u64 {
        self.held.load(Ordering::SeqCst)
    }

    fn reach(&self) -> Result<(), BackplaneError> {
        if !self.away.load(Ordering::SeqCst) {
            return Ok(());
        }
        Err(if self.away_is_known.load(Ordering::SeqCst) {
            BackplaneError::unavailable("away")
        } else {
            BackplaneError::unknown("silent")
        })
    }

    async fn wait(&self) {
        self.held.fetch_add(1, Ordering::SeqCst);
        let _ = self.released.subscribe().wait_for(|released| *released).await;
    }
}

/// The journals of a broker, by key.
#[derive(Default)]
pub(crate) struct Store(Mutex<HashMap<String, Journal>>);

#[derive(Clone)]
pub(crate) struct Journal {
    id: JournalId,
    entries: Vec<Bytes>,
    pub(crate) is_closed: bool,
    pub(crate) keep: Option<Duration>,
}

impl Journal {
    /// Returns the entries as JSON.
    pub(crate) fn entries(&self) -> Vec<Value> {
        self.entries.iter().map(|entry| serde_json::from_slice(entry).unwrap()).collect()
    }

    /// Returns the data of all events.
    pub(crate) fn events(&self) -> Vec<String> {
        let entries = self.entries();
        let events = entries.iter().flat_map(|entry| entry["events"].as_array().cloned().unwrap_or_default());
        events.map(|event| event["data"].as_str().unwrap().to_owned()).collect()
    }

    /// Returns the end of the run in its last entry.
    pub(crate) fn end(&self) -> Option<String> {
        let entries = self.entries();
        let ends: Vec<_> = entries.iter().filter_map(|entry| entry["end"].as_str()).collect();
        assert!(ends.len() <= 1 && ends.len() == usize::from(self.is_closed), "{ends:?}");
        assert_eq!(ends.first().copied(), entries.last().unwrap()["end"].as_str());
        ends.first().map(|&end| end.to_owned())
    }
}

impl Store {
    pub(crate) fn journal(&self, key: &str) -> Option<Journal> {
        self.0.lock().unwrap().get(key).cloned()
    }

    /// Loses all journals.
    pub(crate) fn clear(&self) {
        self.0.lock().unwrap().clear();
    }

    /// Removes the newest entries of a journal, as a restored backup does.
    pub(crate) fn roll_back(&self, key: &str, count: usize) {
        let mut journals = self.0.lock().unwrap();
        let journal = journals.get_mut(key).unwrap();
        journal.entries.truncate(journal.entries.len() - count);
        journal.is_closed = false;
    }

    fn begin(&self, key: &str, first: Bytes) -> Begun {
        let mut journals = self.0.lock().unwrap();
        if let Some(journal) = journals.get(key).filter(|journal| !journal.is_closed) {
            return if journal.entries[0] == first { Begun::New(journal.id) } else { Begun::Active(journal.id) };
        }
        let id = JournalId::new(fastrand::u64(1..)).unwrap();
        journals.insert(key.to_owned(), Journal { id, entries: vec![first], is_closed: false, keep: None });
        Begun::New(id)
    }

    fn append(&self, key: &str, id: JournalId, after: u64, entry: Bytes, keep: Option<Duration>) -> JournalAppend {
        let mut journals = self.0.lock().unwrap();
        let Some(journal) = journals.get_mut(key).filter(|journal| journal.id == id) else {
            return JournalAppend::Conflict;
        };
        let (count, after) = (journal.entries.len(), after as usize);
        let has_closed = journal.is_closed && count == after + 1;
        if journal.entries.get(after) == Some(&entry) && has_closed == keep.is_some() {
            return JournalAppend::Appended;
        }
        if count != after || journal.is_closed {
            return JournalAppend::Conflict;
        }
        journal.entries.push(entry);
        (journal.is_closed, journal.keep) = (keep.is_some(), keep);
        JournalAppend::Appended
    }

    fn read(&self, key: &str, id: Option<JournalId>, after: u64, max_bytes: usize) -> Option<JournalPage> {
        let journals = self.0.lock().unwrap();
        let journal = journals.get(key).filter(|journal| id.is_none_or(|id| id == journal.id))?;
        let mut bytes = 0;
        let rest = journal.entries.iter().skip(after as usize);
        let fits = |&(index, entry): &(usize, &Bytes)| {
            bytes += entry.len();
            index == 0 || bytes <= max_bytes
        };
        let entries = rest.enumerate().take_while(fits).map(|(_, entry)| entry.clone()).collect();
        Some(JournalPage { id: journal.id, entries, last: journal.entries.len() as u64, is_closed: journal.is_closed })
    }
}

/// The broker, as one instance reaches it. Clones are the same instance.
#[derive(Clone, Default)]
pub(crate) struct FaultyJournals {
    memory: Memory,
    pub(crate) store: Arc<Store>,
    pub(crate) faults: Arc<Faults>,
}

impl FaultyJournals {
    /// Returns the same broker for another instance, which has its own faults.
    pub(crate) fn other(&self) -> Self {
        Self { memory: self.memory.clone(), store: Arc::clone(&self.store), faults: Arc::default() }
    }

    /// Makes a request with the next fault of its kind.
    async fn request<T: Send + 'static>(
        &self,
        faults: &Mutex<VecDeque<Fault>>,
        effect: impl Fn(&Store) -> T + Send + 'static,
    ) -> Result<T, BackplaneError> {
        // A request over a network is never ready at once.
        tokio::task::yield_now().await;
        self.faults.reach()?;
        let next = faults.lock().unwrap().pop_front();
        let answer = match next {
            None => effect(&self.store),
            Some(Fault::Refused) => return Err(BackplaneError::unavailable("refused by the test")),
            Some(Fault::Rejected) => return Err(BackplaneError::rejected("rejected by the test")),
            Some(Fault::LostRequest) => return Err(BackplaneError::unknown("the request was lost")),
            Some(Fault::LostAnswer) => {
                effect(&self.store);
                return Err(BackplaneError::unknown("the answer was lost"));
            }
            Some(Fault::Twice) => {
                effect(&self.store);
                effect(&self.store)
            }
            Some(Fault::HeldRequest) => {
                self.faults.wait().await;
                effect(&self.store)
            }
            Some(Fault::HeldAnswer) => {
                let answer = effect(&self.store);
                self.faults.wait().await;
                answer
            }
            Some(Fault::Late) => {
                let this = self.clone();
                tokio::spawn(async move {
                    this.faults.wait().await;
                    effect(&this.store)
                });
                return Err(BackplaneError::unknown("the request is late"));
            }
        };
        // Neither is the answer.
        tokio::task::yield_now().await;
        Ok(answer)
    }
}

impl Sealed for FaultyJournals {}

impl Journals for FaultyJournals {
    fn begin_journal(&self, key: &str, first: Bytes) -> BoxFuture<'_, Result<Begun, BackplaneError>> {
        let key = key.to_owned();
        self.request(&self.faults.begin, move |store| store.begin(&key, first.clone())).boxed()
    }

    fn append_journal(
        &self,
        key: &str,
        id: JournalId,
        after: u64,
        entry: Bytes,
        close: Option<Duration>,
    ) -> BoxFuture<'_, Result<JournalAppend, BackplaneError>> {
        let key = key.to_owned();
        let effect = move |store: &Store| store.append(&key, id, after, entry.clone(), close);
        self.request(&self.faults.append, effect).boxed()
    }

    fn read_journal(
        &self,
        key: &str,
        id: Option<JournalId>,
        after: u64,
        max_bytes: usize,
    ) -> BoxFuture<'_, Result<Option<JournalPage>, BackplaneError>> {
        let key = key.to_owned();
        self.request(&self.faults.read, move |store| store.read(&key, id, after, max_bytes)).boxed()
    }
}

impl Backplane for FaultyJournals {
    fn append(
        &self,
        records: Vec<NewRecord>,
        seen: Option<Seen>,
    ) -> BoxFuture<'_, Vec<Result<LogPosition, BackplaneError>>> {
        self.memory.append(records, seen)
    }

    fn state(&self, seen: Option<Seen>) -> BoxFuture<'_, Result<LogState, BackplaneError>> {
        self.memory.state(seen)
    }

    fn range(&self, after: u64, limit: usize) -> BoxFuture<'_, Result<Vec<Stored>, BackplaneError>> {
        self.memory.range(after, limit)
    }

    fn tail(&self, after: u64) -> BoxStream<'static, Result<Vec<Stored>, BackplaneError>> {
        self.memory.tail(after)
    }

    fn values(&self) -> BoxFuture<'_, Result<Vec<CurrentValue>, BackplaneError>> {
        self.memory.values()
    }

    fn broadcast(&self, message: Bytes) -> BoxFuture<'_, Result<(), BackplaneError>> {
        async move {
            self.faults.reach()?;
            let text = String::from_utf8_lossy(&message);
            if self.faults.lost_messages.lock().unwrap().iter().any(|lost| text.contains(lost)) {
                return Ok(());
            }
            self.memory.broadcast(message).await
        }
        .boxed()
    }

    fn listen(&self, after: Option<Box<str>>) -> BoxStream<'static, Result<ControlMessage, BackplaneError>> {
        let (this, messages) = (self.clone(), self.memory.listen(after));
        messages.filter(move |_| std::future::ready(!this.faults.deaf.load(Ordering::SeqCst))).boxed()
    }

    fn put_once(&self, key: &str, payload: Bytes, time: Duration) -> BoxFuture<'_, Result<(), BackplaneError>> {
        self.memory.put_once(key, payload, time)
    }

    fn take(&self, key: &str) -> BoxFuture<'_, Result<Option<Bytes>, BackplaneError>> {
        self.memory.take(key)
    }

    fn describe(&self) -> String {
        "faulty journals".into()
    }
}
