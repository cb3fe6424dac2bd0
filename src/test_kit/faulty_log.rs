//! A shared log in memory whose faults a test scripts.

use std::collections::btree_set::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::{BoxFuture, FutureExt, ready};
use futures::stream::{BoxStream, Stream, StreamExt, once};
use tokio::sync::watch;
use tokio::task::yield_now;

use super::faults::{Both, Call, Fault, Faults, Operation};
use crate::backplane::{
    Answer, Backplane, BackplaneError, Begun, ControlMessage, ControlStream, CurrentValue, JournalAppend, JournalId,
    JournalPage, Journals, LogPosition, LogState, Memory, NewRecord, Range, ReadLimit, Seen, Stored,
};
use crate::macros::opaque_debug;
use crate::sync::Mutex;

/// The limit of one batch of a tail.
const BATCH: ReadLimit = ReadLimit::records(512);

/// A shared log in the memory of this process, whose faults a test scripts. Clones are the same
/// log.
///
/// Each hub has its own [connection](Self::connect) with its own [`Faults`]. The methods of the log
/// itself change its history, as failures and administrators do at a broker.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use tower_sse::test_kit::{Fault, FaultyLog, Operation};
/// use tower_sse::{Event, Hub, NextEventError, Subscription};
///
/// let log = FaultyLog::new();
/// let (near, far) = (log.connect(), log.connect());
/// let one = Hub::builder().backplane(near.clone()).build()?;
/// let other = Hub::builder().backplane(far.clone()).build()?;
/// # let ready = async || while !one.is_ready() || !other.is_ready() { tokio::time::sleep(std::time::Duration::from_millis(1)).await; };
/// # ready().await;
/// let mut page = other.subscribe(Subscription::anonymous().topic("news"), None)?;
///
/// // The broker stores an event, and the answer is lost.
/// near.faults().next(Operation::Append, Fault::LoseAnswer);
/// let error = one.topic("news").publish(Event::unnamed("1")).await.unwrap_err();
/// assert!(error.is_unknown());
/// assert_eq!(page.next_event().await?.data, "1");
///
/// // The other hub is cut off from the broker, and misses nothing.
/// far.faults().cut();
/// one.topic("news").publish(Event::unnamed("2")).await?;
/// far.faults().heal();
/// assert_eq!(page.next_event().await?.data, "2");
///
/// // The broker loses its data.
/// log.restore(&FaultyLog::new());
/// assert!(matches!(page.next_event().await, Err(NextEventError::Gap { .. })));
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct FaultyLog {
    shared: Arc<Shared>,
}

struct Shared {
    memory: Memory,
    /// The faults of all connections.
    faults: Faults,
    /// The numbers of the records that no reader receives.
    hidden: Mutex<BTreeSet<u64>>,
    /// Wakes the tails that wait for a record, after each change.
    changes: watch::Sender<()>,
}

impl Default for FaultyLog {
    fn default() -> Self {
        Self::new()
    }
}

impl FaultyLog {
    /// Creates an empty log without faults.
    #[must_use]
    pub fn new() -> Self {
        Self::of(Memory::new())
    }

    fn of(memory: Memory) -> Self {
        let shared =
            Shared { memory, faults: Faults::new(), hidden: Mutex::default(), changes: watch::Sender::default() };
        Self { shared: Arc::new(shared) }
    }

    /// Returns a new connection, for one hub or one publisher.
    #[must_use]
    pub fn connect(&self) -> LogConnection {
        LogConnection { log: self.clone(), faults: Arc::new(Faults::new()) }
    }

    /// Returns the faults that apply to every connection, in addition to its own faults.
    #[must_use]
    pub fn faults(&self) -> &Faults {
        &self.shared.faults
    }

    /// Returns a separate log with a copy of all data: records, current values, journals, control
    /// messages and idempotency keys. The copy has no faults, and hides no records.
    #[must_use]
    pub fn backup(&self) -> Self {
        Self::of(self.shared.memory.backup())
    }

    /// Replaces all data with a copy of the data of another log, as a broker that was restored from
    /// a backup, or a replica that was promoted. Open streams stay open, and continue after the
    /// number that they have reached. Call [`Faults::break_streams`] first if the broker restarts.
    ///
    /// With an empty log, the broker has lost its data. A [backup](Self::backup) to which a test
    /// has appended other records is a log that has grown after it was restored.
    pub fn restore(&self, backup: &Self) {
        self.change(|memory| memory.restore(&backup.shared.memory));
    }

    /// Removes the newest records, at most this number, and the current values that they have set.
    /// The epoch stays, so that an instance has to detect the loss. The numbers that
    /// [`hide`](Self::hide) has hidden stay hidden, also for the records that are appended next.
    pub fn roll_back(&self, records: u64) {
        self.change(|memory| memory.roll_back(records));
    }

    /// Removes the records up to this number, as a limit of the log does. A number above that of
    /// the newest record removes all records. Current values stay.
    pub fn trim_through(&self, number: u64) {
        self.change(|memory| memory.trim_through(number));
    }

    /// Removes all records, and sets the number of the newest record: as if records up to this
    /// number had been appended, none of which is retained. For the tests of this crate.
    #[doc(hidden)]
    pub fn trim_to(&self, last: u64) {
        self.change(|memory| memory.trim_to(last));
    }

    /// Hides the records with these numbers from readers, as a replica that is behind, or a broker
    /// whose administrator has deleted records. The log state still counts them.
    pub fn hide(&self, numbers: impl IntoIterator<Item = u64>) {
        self.shared.hidden.lock().extend(numbers);
    }

    /// Shows all hidden records again.
    pub fn show_all(&self) {
        self.shared.hidden.lock().clear();
        self.shared.changes.send_replace(());
    }

    /// Returns the number of the newest record, or 0 if no record was appended.
    #[must_use]
    pub fn last(&self) -> u64 {
        self.shared.memory.last()
    }

    /// Returns the current journal of a key with all entries, or `None` if the key has none. The
    /// faults do not apply. For the tests of this crate, because the entries are not stable.
    #[doc(hidden)]
    #[must_use]
    pub fn journal(&self, key: &str) -> Option<JournalPage> {
        self.shared.memory.journal(key)
    }

    /// Removes the newest entries of the current journal of a key, at most this number, and opens
    /// the journal again, as a broker that was restored from a backup. A journal without entries is
    /// forgotten. The key of a journal is the name of the run. With 0 entries, nothing changes.
    pub fn roll_back_journal(&self, key: &str, entries: usize) {
        self.shared.memory.roll_back_journal(key, entries);
    }

    fn change(&self, change: impl FnOnce(&Memory)) {
        change(&self.shared.memory);
        self.shared.changes.send_replace(());
    }

    fn visible(&self, after: u64, limit: ReadLimit) -> Vec<Stored> {
        self.shared.memory.range_without(&self.shared.hidden.lock(), after, limit)
    }
}

/// A connection to a [`FaultyLog`], which [`FaultyLog::connect`] returns: the [`Backplane`] of one
/// hub. Clones are the same connection.
#[derive(Clone)]
pub struct LogConnection {
    log: FaultyLog,
    faults: Arc<Faults>,
}

impl LogConnection {
    /// Returns the faults of this connection.
    #[must_use]
    pub fn faults(&self) -> &Faults {
        &self.faults
    }

    fn both(&self) -> Both<'_> {
        Both { own: &self.faults, all: &self.log.shared.faults }
    }

    /// Makes a request with its fault.
    async fn request<T: Send + 'static>(
        &self,
        call: Call<'_>,
        effect: impl for<'a> Fn(&'a FaultyLog) -> BoxFuture<'a, Answer<T>> + Send + Sync + 'static,
    ) -> Answer<T> {
        self.request_or(call, Err(unavailable()), effect).await
    }

    /// As [`request`](Self::request). `not_yet` is the answer of a server with the fault `NotYet`.
    async fn request_or<T: Send + 'static>(
        &self,
        call: Call<'_>,
        not_yet: Answer<T>,
        effect: impl for<'a> Fn(&'a FaultyLog) -> BoxFuture<'a, Answer<T>> + Send + Sync + 'static,
    ) -> Answer<T> {
        // A request over a network is never ready at once.
        yield_now().await;
        let answer = match self.both().begin(&call)? {
            None => effect(&self.log).await,
            Some((Fault::Unavailable, _)) => return Err(unavailable()),
            Some((Fault::NotYet, _)) => return not_yet,
            Some((Fault::Rejected, _)) => return Err(rejected()),
            Some((Fault::LoseRequest, _)) => return Err(BackplaneError::unknown("the test has lost the request")),
            Some((Fault::LoseAnswer, _)) => {
                let _ = effect(&self.log).await;
                Err(BackplaneError::unknown("the test has lost the answer"))
            }
            // The effect is in a copy of the data, which is dropped.
            Some((Fault::LoseEffect, _)) => effect(&self.log.backup()).await,
            Some((Fault::Duplicate, _)) => {
                let _ = effect(&self.log).await;
                effect(&self.log).await
            }
            Some((Fault::Delay(time), _)) => {
                tokio::time::sleep(time).await;
                effect(&self.log).await
            }
            Some((Fault::HoldRequest, released)) => {
                self.both().count_hold();
                released.await;
                effect(&self.log).await
            }
            Some((Fault::HoldAnswer, released)) => {
                let answer = effect(&self.log).await;
                self.log.shared.changes.send_replace(());
                self.both().count_hold();
                released.await;
                answer
            }
            Some((Fault::Late, released)) => {
                self.both().count_hold();
                // With the connection, because its faults may release the request.
                let this = self.clone();
                tokio::spawn(async move {
                    released.await;
                    let _ = effect(&this.log).await;
                    this.log.shared.changes.send_replace(());
                });
                Err(BackplaneError::unknown("the test delays the request"))
            }
        };
        self.log.shared.changes.send_replace(());
        yield_now().await;
        answer
    }

    /// Waits until a stream may deliver. Returns the number of times that it yields the batch or
    /// the message.
    async fn deliver(&self, call: Call<'_>) -> Answer<usize> {
        match self.both().begin(&call)? {
            None => {}
            Some((Fault::Unavailable | Fault::NotYet, _)) => return Err(unavailable()),
            Some((Fault::Rejected, _)) => return Err(rejected()),
            Some((Fault::LoseRequest | Fault::LoseAnswer | Fault::LoseEffect | Fault::Late, _)) => return Ok(0),
            Some((Fault::Duplicate, _)) => return Ok(2),
            Some((Fault::Delay(time), _)) => tokio::time::sleep(time).await,
            Some((Fault::HoldRequest | Fault::HoldAnswer, released)) => {
                self.both().count_hold();
                released.await;
            }
        }
        Ok(1)
    }

    /// Ends a stream with an error when the connection breaks.
    fn until_break<T: Send + 'static>(
        &self,
        stream: impl Stream<Item = Answer<T>> + Send + 'static,
    ) -> BoxStream<'static, Answer<T>> {
        let broken = || ready(Err(BackplaneError::unavailable("the test has ended the stream")));
        // Before the check, because a cut right after it would not end the stream.
        let next_break = self.both().next_break();
        if self.faults.is_cut() || self.log.faults().is_cut() {
            return once(broken()).boxed();
        }
        stream.take_until(next_break.boxed()).chain(once(broken())).boxed()
    }
}

fn unavailable() -> BackplaneError {
    BackplaneError::unavailable("the test has made the broker unavailable")
}

fn rejected() -> BackplaneError {
    BackplaneError::rejected("the test has made the broker reject the request")
}

impl Backplane for LogConnection {
    fn append(&self, records: Vec<NewRecord>, seen: Option<Seen>) -> BoxFuture<'_, Vec<Answer<LogPosition>>> {
        async move {
            let count = records.len();
            let call = Call::new(Operation::Append).payloads(records.iter().map(|record| &record.payload));
            let append = self.request(call, move |log| log.shared.memory.append(records.clone(), seen).map(Ok).boxed());
            match append.await {
                Ok(positions) => positions,
                Err(error) => (0..count).map(|_| Err(error.duplicate())).collect(),
            }
        }
        .boxed()
    }

    fn state(&self, seen: Option<Seen>) -> BoxFuture<'_, Answer<LogState>> {
        self.request(Call::new(Operation::State), move |log| log.shared.memory.state(seen)).boxed()
    }

    fn range(&self, after: u64, limit: ReadLimit) -> BoxFuture<'_, Answer<Range>> {
        let call = Call::new(Operation::Range).after(after);
        let not_yet = Ok(Range::NotYet);
        self.request_or(call, not_yet, move |log| ready(Ok(Range::Records(log.visible(after, limit)))).boxed()).boxed()
    }

    fn tail(&self, after: u64) -> BoxStream<'static, Answer<Vec<Stored>>> {
        let (this, mut after) = (self.clone(), after);
        let mut changes = self.log.shared.changes.subscribe();
        let tail = async_stream::try_stream! {
            loop {
                let batch = this.log.visible(after, BATCH);
                if let Some(newest) = batch.last() {
                    after = newest.sequence;
                    let payloads = batch.iter().map(|stored| &stored.payload);
                    let call = Call::new(Operation::DeliverRecords).payloads(payloads);
                    for _ in 0..this.deliver(call).await? {
                        yield batch.clone();
                    }
                } else {
                    // The connection has the sender, so it does not end before the stream.
                    let _ = changes.changed().await;
                }
            }
        };
        self.until_break(tail)
    }

    fn values(&self) -> BoxFuture<'_, Answer<Vec<CurrentValue>>> {
        self.request(Call::new(Operation::Values), |log| log.shared.memory.values()).boxed()
    }

    fn broadcast(&self, stream: ControlStream, message: Bytes) -> BoxFuture<'_, Answer<()>> {
        let call = Call::new(Operation::Broadcast).payloads([&message]);
        self.request(call, move |log| log.shared.memory.broadcast(stream, message.clone())).boxed()
    }

    fn listen(&self, after: Option<Box<str>>) -> BoxStream<'static, Answer<ControlMessage>> {
        let (this, mut messages) = (self.clone(), self.log.shared.memory.listen(after));
        let messages = async_stream::try_stream! {
            while let Some(message) = messages.next().await {
                let message = message?;
                let call = Call::new(Operation::DeliverMessage).payloads([&message.message]);
                for _ in 0..this.deliver(call).await? {
                    yield message.clone();
                }
            }
        };
        self.until_break(messages)
    }

    fn put_once(&self, key: &str, payload: Bytes, time: Duration) -> BoxFuture<'_, Answer<()>> {
        let key = key.to_owned();
        async move {
            let call = Call::new(Operation::PutOnce).key(&key).payloads([&payload]);
            let key = key.clone();
            self.request(call, move |log| log.shared.memory.put_once(&key, payload.clone(), time)).await
        }
        .boxed()
    }

    fn take(&self, key: &str) -> BoxFuture<'_, Answer<Option<Bytes>>> {
        let key = key.to_owned();
        async move {
            let call = Call::new(Operation::Take).key(&key);
            let key = key.clone();
            self.request(call, move |log| log.shared.memory.take(&key)).await
        }
        .boxed()
    }

    fn put_shared(&self, key: &str, payload: Bytes, time: Duration) -> BoxFuture<'_, Answer<()>> {
        let key = key.to_owned();
        async move {
            let call = Call::new(Operation::PutShared).key(&key).payloads([&payload]);
            let key = key.clone();
            self.request(call, move |log| log.shared.memory.put_shared(&key, payload.clone(), time)).await
        }
        .boxed()
    }

    fn get_shared(&self, key: &str) -> BoxFuture<'_, Answer<Option<Bytes>>> {
        let key = key.to_owned();
        async move {
            let call = Call::new(Operation::GetShared).key(&key);
            let key = key.clone();
            self.request(call, move |log| log.shared.memory.get_shared(&key)).await
        }
        .boxed()
    }

    fn describe(&self) -> String {
        "memory with faults".into()
    }
}

impl Journals for LogConnection {
    fn begin_journal(&self, key: &str, first: Bytes) -> BoxFuture<'_, Answer<Begun>> {
        let key = key.to_owned();
        async move {
            let call = Call::new(Operation::BeginJournal).key(&key).payloads([&first]);
            let key = key.clone();
            self.request(call, move |log| log.shared.memory.begin_journal(&key, first.clone())).await
        }
        .boxed()
    }

    fn append_journal(
        &self,
        key: &str,
        id: JournalId,
        after: u64,
        entry: Bytes,
        close: Option<Duration>,
    ) -> BoxFuture<'_, Answer<JournalAppend>> {
        let key = key.to_owned();
        async move {
            let call = Call::new(Operation::AppendJournal).key(&key).after(after).payloads([&entry]);
            let key = key.clone();
            self.request(call, move |log| log.shared.memory.append_journal(&key, id, after, entry.clone(), close)).await
        }
        .boxed()
    }

    fn read_journal(
        &self,
        key: &str,
        id: Option<JournalId>,
        after: u64,
        max_bytes: usize,
    ) -> BoxFuture<'_, Answer<Option<JournalPage>>> {
        let key = key.to_owned();
        async move {
            let call = Call::new(Operation::ReadJournal).key(&key).after(after);
            let key = key.clone();
            self.request(call, move |log| log.shared.memory.read_journal(&key, id, after, max_bytes)).await
        }
        .boxed()
    }
}

opaque_debug!(|log: FaultyLog| { faults: log.shared.faults, last: log.last() });
opaque_debug!(|connection: LogConnection| { faults: connection.faults });
