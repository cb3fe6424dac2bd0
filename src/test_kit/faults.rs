//! Faults that a test scripts: which operation fails next, and how.

#![allow(clippy::panic, reason = "a condition that does not come panics, as a failed assertion does")]

use std::collections::hash_map::HashMap;
use std::collections::vec_deque::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use futures::future::{Either, pending, select};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::backplane::BackplaneError;
use crate::macros::opaque_debug;
use crate::sync::Mutex;

/// The time limit of a test that waits.
const TIME_LIMIT: Duration = Duration::from_secs(5);

/// An operation of a [`FaultyLog`](super::FaultyLog): a method of
/// [`Backplane`](crate::backplane::Backplane) or [`Journals`](crate::backplane::Journals), or a
/// delivery of one of its streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Operation {
    /// [`Backplane::append`](crate::backplane::Backplane::append).
    Append,
    /// [`Backplane::state`](crate::backplane::Backplane::state), which a hub also uses as a probe.
    State,
    /// [`Backplane::range`](crate::backplane::Backplane::range).
    Range,
    /// The delivery of a batch by [`Backplane::tail`](crate::backplane::Backplane::tail).
    DeliverRecords,
    /// [`Backplane::values`](crate::backplane::Backplane::values).
    Values,
    /// [`Backplane::broadcast`](crate::backplane::Backplane::broadcast).
    Broadcast,
    /// The delivery of a control message by
    /// [`Backplane::listen`](crate::backplane::Backplane::listen).
    DeliverMessage,
    /// [`Backplane::put_once`](crate::backplane::Backplane::put_once).
    PutOnce,
    /// [`Backplane::take`](crate::backplane::Backplane::take).
    Take,
    /// [`Backplane::put_shared`](crate::backplane::Backplane::put_shared).
    PutShared,
    /// [`Backplane::get_shared`](crate::backplane::Backplane::get_shared).
    GetShared,
    /// [`Journals::begin_journal`](crate::backplane::Journals::begin_journal).
    BeginJournal,
    /// [`Journals::append_journal`](crate::backplane::Journals::append_journal).
    AppendJournal,
    /// [`Journals::read_journal`](crate::backplane::Journals::read_journal).
    ReadJournal,
}

/// A fault of an operation.
///
/// A hub gives an append up after its
/// [`publish_timeout`](crate::HubBuilder::publish_timeout), and other requests after time limits of
/// its own. If the caller gives up first, a request of `Delay` or `HoldRequest` never has an
/// effect. For a request that has its effect after its caller has given up, use `Late`.
///
/// A delivery is a batch of records or a control message that a stream of the log yields. For a
/// delivery, the variants have the meaning in the second column:
///
/// | Fault | Delivery |
/// |---|---|
/// | `Unavailable`, `Rejected`, `NotYet` | the stream ends with this error, and the next stream delivers again |
/// | `LoseRequest`, `LoseAnswer`, `LoseEffect`, `Late` | the stream leaves the batch or the message out, and continues |
/// | `Duplicate` | the stream yields the batch or the message twice |
/// | `Delay`, `HoldRequest`, `HoldAnswer` | the delivery, and the ones after it, wait |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// The request fails without an effect, and the caller knows that: the broker cannot be
    /// reached.
    Unavailable,
    /// The server answers a range with [`Range::NotYet`](crate::backplane::Range::NotYet), as a
    /// replica that is known to be behind. Other operations have no such answer, and fail as with
    /// `Unavailable`.
    NotYet,
    /// The broker rejects the request, for example because the request is too large.
    Rejected,
    /// The request is lost. It has no effect, and the caller receives an
    /// [unknown](BackplaneError::is_unknown) error.
    LoseRequest,
    /// The request has its effect, and the answer is lost. The caller receives an
    /// [unknown](BackplaneError::is_unknown) error.
    LoseAnswer,
    /// The broker confirms the request and then loses its effect, as in a failover to a replica
    /// that is behind. The caller takes the request for successful.
    LoseEffect,
    /// The broker receives the request twice, as if a client had repeated it. So an append without
    /// an idempotency key appends its records twice.
    Duplicate,
    /// The request reaches the broker after this time. The call must be in a tokio runtime with a
    /// timer. With tokio's paused clock, the time costs no real time.
    Delay(Duration),
    /// The request waits for [`Faults::release`] before it reaches the broker.
    HoldRequest,
    /// The request has its effect, and the answer waits for [`Faults::release`].
    HoldAnswer,
    /// The caller receives an [unknown](BackplaneError::is_unknown) error at once. The request
    /// waits for [`Faults::release`], and then has its effect. The call must be in a tokio runtime.
    Late,
}

/// An operation as the condition of [`Faults::every_if`] receives it.
///
/// The payloads are in the encoding of the hub, which a later version of this crate may change. A
/// condition is stable if it uses `key`, `after` or the text of an event that the test has
/// published.
///
/// ```
/// use tower_sse::test_kit::{Fault, FaultyLog, Operation};
///
/// let log = FaultyLog::new();
/// log.faults().every_if(Operation::Append, Fault::Rejected, |call| call.contains("Bridge closed"));
/// log.faults().every_if(Operation::ReadJournal, Fault::Unavailable, |call| call.key == Some("answers/7"));
/// log.faults().every_if(Operation::Range, Fault::LoseAnswer, |call| call.after.is_some_and(|after| after < 512));
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Call<'a> {
    /// The kind of the operation.
    pub operation: Operation,
    /// The number after which a range or a journal is read, or after which an entry is appended to
    /// a journal.
    pub after: Option<u64>,
    /// The key of a journal, or of a single-use or shared value.
    pub key: Option<&'a str>,
    /// The bytes of each record, control message, journal entry or value that is sent or delivered.
    /// Their encoding is not stable.
    pub payloads: Vec<Bytes>,
}

impl<'a> Call<'a> {
    pub(super) fn new(operation: Operation) -> Self {
        Self { operation, after: None, key: None, payloads: Vec::new() }
    }

    pub(super) fn after(self, after: u64) -> Self {
        Self { after: Some(after), ..self }
    }

    pub(super) fn key(self, key: &'a str) -> Self {
        Self { key: Some(key), ..self }
    }

    pub(super) fn payloads<'p>(self, payloads: impl IntoIterator<Item = &'p Bytes>) -> Self {
        Self { payloads: payloads.into_iter().cloned().collect(), ..self }
    }

    /// Returns whether the bytes of a record, message, entry or value contain this text.
    #[must_use]
    pub fn contains(&self, text: &str) -> bool {
        self.payloads.iter().any(|payload| String::from_utf8_lossy(payload).contains(text))
    }
}

/// The faults of one connection, or of all connections of a [`FaultyLog`](super::FaultyLog), which
/// has an example.
///
/// Without faults, every operation succeeds. A fault applies from the next operation on. An
/// operation has at most one fault. Faults of [`next`](Self::next) come before faults of
/// [`every`](Self::every), and faults of the connection before those of the log.
///
/// [`FaultyLog::faults`](super::FaultyLog::faults) apply to every connection, in addition to its
/// own faults. Each of the two is [healed](Self::heal) separately: a connection works again when
/// neither is cut. A [`release`](Self::release) or [`heal`](Self::heal) of a connection also
/// releases the operations of this connection that a fault of the log holds.
pub struct Faults {
    script: Mutex<Script>,
    /// Counts the calls of [`release`](Faults::release). A held operation waits for the next one.
    releases: watch::Sender<u64>,
    /// Counts the operations that have waited for a release.
    holds: watch::Sender<u64>,
    /// Counts the times at which all open streams have ended.
    breaks: watch::Sender<u64>,
}

#[derive(Default)]
struct Script {
    next: HashMap<Operation, VecDeque<Fault>>,
    every: Vec<Rule>,
    is_cut: bool,
    calls: HashMap<Operation, u64>,
}

/// A fault of every operation of one kind.
struct Rule {
    operation: Operation,
    fault: Fault,
    applies: Box<dyn Fn(&Call<'_>) -> bool + Send + Sync>,
}

impl Faults {
    pub(super) fn new() -> Self {
        let [releases, holds, breaks] = [(); 3].map(|()| watch::Sender::new(0));
        Self { script: Mutex::default(), releases, holds, breaks }
    }

    /// Sets the fault of the next operation of this kind. If a fault is set already, this fault is
    /// that of the operation after it, and so on.
    pub fn next(&self, operation: Operation, fault: Fault) {
        self.script.lock().next.entry(operation).or_default().push_back(fault);
    }

    /// Sets the fault of every operation of this kind, until [`heal`](Self::heal).
    pub fn every(&self, operation: Operation, fault: Fault) {
        self.every_if(operation, fault, |_| true);
    }

    /// Sets the fault of every operation of this kind for which `applies` returns true, until
    /// [`heal`](Self::heal). If several faults apply, the newest one counts. `applies` must not use
    /// these faults, because they are locked.
    ///
    /// ```
    /// use tower_sse::test_kit::{Fault, FaultyLog, Operation};
    ///
    /// let log = FaultyLog::new();
    /// log.faults().every_if(Operation::AppendJournal, Fault::LoseAnswer, |call| call.key == Some("answers/7"));
    /// ```
    pub fn every_if(
        &self,
        operation: Operation,
        fault: Fault,
        applies: impl Fn(&Call<'_>) -> bool + Send + Sync + 'static,
    ) {
        self.script.lock().every.push(Rule { operation, fault, applies: Box::new(applies) });
    }

    /// Cuts the connection, until [`heal`](Self::heal): open streams end with an error, and every
    /// operation fails without an effect. Operations that wait keep waiting. If they are released
    /// during the cut, they have their effect.
    pub fn cut(&self) {
        self.script.lock().is_cut = true;
        self.break_streams();
    }

    /// Ends the open streams with an error. New streams succeed at once.
    pub fn break_streams(&self) {
        self.breaks.send_modify(|count| *count += 1);
    }

    /// Lets all operations continue that wait for this call. Operations that begin later wait for
    /// the next call.
    pub fn release(&self) {
        self.releases.send_modify(|count| *count += 1);
    }

    /// Ends a cut, removes all faults that have not applied yet, and lets all operations continue
    /// that wait for [`release`](Self::release).
    pub fn heal(&self) {
        let mut script = self.script.lock();
        script.is_cut = false;
        script.next.clear();
        script.every.clear();
        // Under the lock, so that an operation that has received one of the faults is released.
        self.release();
    }

    /// Returns the number of operations that have begun to wait for [`release`](Self::release) so
    /// far. The number never decreases. An operation that is counted is released by the next call.
    #[must_use]
    pub fn holds(&self) -> u64 {
        *self.holds.borrow()
    }

    /// Waits until [`holds`](Self::holds) is at least `count`.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use tower_sse::test_kit::{Fault, FaultyLog, Operation};
    /// use tower_sse::{Event, Hub};
    ///
    /// let log = FaultyLog::new();
    /// let connection = log.connect();
    /// let hub = Hub::builder().backplane(connection.clone()).build()?;
    /// # while !hub.is_ready() { tokio::time::sleep(std::time::Duration::from_millis(1)).await; }
    /// connection.faults().next(Operation::Append, Fault::HoldAnswer);
    /// let publish = tokio::spawn(async move { hub.topic("news").publish(Event::unnamed("1")).await });
    /// connection.faults().until_holds(1).await;
    /// assert_eq!(log.last(), 1);
    /// connection.faults().release();
    /// publish.await??;
    /// # Ok(()) }
    /// ```
    ///
    /// # Panics
    ///
    /// Panics after 5 s. With tokio's paused clock, this costs no real time.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future has no effect.
    pub async fn until_holds(&self, count: u64) {
        let mut holds = self.holds.subscribe();
        let reached = timeout(TIME_LIMIT, holds.wait_for(|holds| *holds >= count)).await;
        assert!(reached.is_ok(), "expected {count} held operations, but found {} after {TIME_LIMIT:?}", self.holds());
    }

    /// Returns the number of operations of this kind that have begun, with and without a fault.
    #[must_use]
    pub fn calls(&self, operation: Operation) -> u64 {
        self.script.lock().calls.get(&operation).copied().unwrap_or(0)
    }

    pub(super) fn is_cut(&self) -> bool {
        self.script.lock().is_cut
    }

    /// Returns a future that waits for the next break of the streams.
    fn next_break(&self) -> impl Future<Output = ()> + Send + use<> {
        next_change(&self.breaks)
    }

    fn count_hold(&self) {
        self.holds.send_modify(|count| *count += 1);
    }
}

impl Script {
    fn count(&mut self, operation: Operation) {
        *self.calls.entry(operation).or_default() += 1;
    }

    /// Returns the fault that is only for the next operation.
    fn take_next(&mut self, operation: Operation) -> Option<Fault> {
        self.next.get_mut(&operation)?.pop_front()
    }

    fn of_rules(&self, call: &Call<'_>) -> Option<Fault> {
        let mut rules = self.every.iter().rev().filter(|rule| rule.operation == call.operation);
        rules.find(|rule| (rule.applies)(call)).map(|rule| rule.fault)
    }
}

/// Returns a future that waits for the next change after this call.
fn next_change(changes: &watch::Sender<u64>) -> impl Future<Output = ()> + Send + use<> {
    let mut changes = changes.subscribe();
    async move {
        if changes.changed().await.is_err() {
            // The sender is gone, so there is no further change.
            pending::<()>().await;
        }
    }
}

/// The faults of one connection: its own and those of its log.
#[derive(Clone, Copy)]
pub(super) struct Both<'a> {
    pub(super) own: &'a Faults,
    pub(super) all: &'a Faults,
}

impl Both<'_> {
    /// Counts an operation. Returns its fault with its release, or an error if the connection is
    /// cut.
    ///
    /// The release is that of the first call of [`Faults::release`] after the choice of the fault.
    /// Otherwise an operation could miss the call, and wait without end.
    pub(super) fn begin(
        self,
        call: &Call<'_>,
    ) -> Result<Option<(Fault, impl Future<Output = ()> + Send + use<>)>, BackplaneError> {
        let (mut own, mut all) = (self.own.script.lock(), self.all.script.lock());
        own.count(call.operation);
        all.count(call.operation);
        if own.is_cut || all.is_cut {
            return Err(BackplaneError::unavailable("the test has cut the connection"));
        }
        let next = own.take_next(call.operation).or_else(|| all.take_next(call.operation));
        let fault = next.or_else(|| own.of_rules(call)).or_else(|| all.of_rules(call));
        let released = either(next_change(&self.own.releases), next_change(&self.all.releases));
        Ok(fault.map(|fault| (fault, released)))
    }

    /// Counts an operation that begins to wait.
    pub(super) fn count_hold(self) {
        self.own.count_hold();
        self.all.count_hold();
    }

    /// Returns a future that waits for the next break of either.
    pub(super) fn next_break(self) -> impl Future<Output = ()> + Send + use<> {
        either(self.own.next_break(), self.all.next_break())
    }
}

async fn either(one: impl Future<Output = ()>, other: impl Future<Output = ()>) {
    match select(Box::pin(one), Box::pin(other)).await {
        Either::Left(_) | Either::Right(_) => {}
    }
}

opaque_debug!(|faults: Faults| { is_cut: faults.is_cut(), holds: faults.holds() });
