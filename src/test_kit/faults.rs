//! Faults that a test scripts: which operation fails next, and how.

use std::collections::hash_map::HashMap;
use std::collections::vec_deque::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use futures::future::{Either, select};
use tokio::sync::watch;

use crate::backplane::BackplaneError;
use crate::macros::opaque_debug;
use crate::sync::Mutex;

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
    /// [`Journals::begin_journal`](crate::backplane::Journals::begin_journal).
    BeginJournal,
    /// [`Journals::append_journal`](crate::backplane::Journals::append_journal).
    AppendJournal,
    /// [`Journals::read_journal`](crate::backplane::Journals::read_journal).
    ReadJournal,
}

/// What happens to an operation.
///
/// A delivery is a batch of records or a control message that a stream of the log yields. For a
/// delivery, the variants have the meaning in the second column:
///
/// | Fault | Delivery |
/// |---|---|
/// | `Unavailable`, `Rejected` | the stream ends with this error, and the next stream delivers again |
/// | `LoseRequest`, `LoseAnswer`, `LoseEffect`, `Late` | the stream leaves the batch or the message out, and continues |
/// | `Duplicate` | the stream yields the batch or the message twice |
/// | `Delay`, `HoldRequest`, `HoldAnswer` | the delivery, and the ones after it, wait |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// The request fails without an effect, and the caller knows that: the broker cannot be
    /// reached.
    Unavailable,
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
    /// The request reaches the broker after this time. With tokio's paused clock, the time costs no
    /// real time.
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
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Call<'a> {
    /// The kind of the operation.
    pub operation: Operation,
    /// The number after which a range or a journal is read, or after which an entry is appended to
    /// a journal.
    pub after: Option<u64>,
    /// The key of a journal, or of a value that is stored once.
    pub key: Option<&'a str>,
    /// The bytes of each record, control message, journal entry or value that is sent or delivered.
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
#[derive(Default)]
pub struct Faults {
    script: Mutex<Script>,
    /// Counts the calls of [`release`](Faults::release). A held operation waits for the next one.
    releases: watch::Sender<u64>,
    /// Counts the times at which all open streams have ended.
    breaks: watch::Sender<u64>,
}

#[derive(Default)]
struct Script {
    next: HashMap<Operation, VecDeque<Fault>>,
    every: Vec<Rule>,
    is_cut: bool,
    held: u64,
    calls: HashMap<Operation, u64>,
}

/// A fault of every operation of one kind.
struct Rule {
    operation: Operation,
    fault: Fault,
    applies: Box<dyn Fn(&Call<'_>) -> bool + Send + Sync>,
}

impl Faults {
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
    /// log.faults().every_if(Operation::DeliverMessage, Fault::LoseRequest, |call| call.contains("goodbye"));
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
    /// operation fails without an effect. Operations that wait keep waiting.
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
        drop(script);
        self.release();
    }

    /// Returns the number of operations that have waited for [`release`](Self::release), or wait
    /// for it now.
    #[must_use]
    pub fn held(&self) -> u64 {
        self.script.lock().held
    }

    /// Returns the number of operations of this kind that have begun, with and without a fault.
    #[must_use]
    pub fn calls(&self, operation: Operation) -> u64 {
        self.script.lock().calls.get(&operation).copied().unwrap_or(0)
    }

    pub(super) fn count(&self, operation: Operation) {
        *self.script.lock().calls.entry(operation).or_default() += 1;
    }

    pub(super) fn is_cut(&self) -> bool {
        self.script.lock().is_cut
    }

    /// Returns the fault that is only for the next operation.
    fn take_next(&self, operation: Operation) -> Option<Fault> {
        self.script.lock().next.get_mut(&operation)?.pop_front()
    }

    fn of_rules(&self, call: &Call<'_>) -> Option<Fault> {
        let script = self.script.lock();
        let mut rules = script.every.iter().rev().filter(|rule| rule.operation == call.operation);
        rules.find(|rule| (rule.applies)(call)).map(|rule| rule.fault)
    }

    /// Returns a future that waits for the next break of the streams.
    pub(super) fn next_break(&self) -> impl Future<Output = ()> + Send + use<> {
        wait(self.breaks.subscribe())
    }

    /// Returns a future that waits for the next release.
    fn hold(&self) -> impl Future<Output = ()> + Send + use<> {
        self.script.lock().held += 1;
        wait(self.releases.subscribe())
    }
}

/// Waits for the next change after the receiver was created.
async fn wait(mut changes: watch::Receiver<u64>) {
    // An error means that the sender is gone, and no operation is left to fail.
    let _ = changes.changed().await;
}

/// The faults of one connection: its own and those of its log.
#[derive(Clone, Copy)]
pub(super) struct Both<'a> {
    pub(super) own: &'a Faults,
    pub(super) all: &'a Faults,
}

impl Both<'_> {
    /// Counts an operation. Returns its fault, or an error if the connection is cut.
    pub(super) fn begin(self, call: &Call<'_>) -> Result<Option<Fault>, BackplaneError> {
        self.own.count(call.operation);
        self.all.count(call.operation);
        if self.own.is_cut() || self.all.is_cut() {
            return Err(BackplaneError::unavailable("the test has cut the connection"));
        }
        let next = self.own.take_next(call.operation).or_else(|| self.all.take_next(call.operation));
        Ok(next.or_else(|| self.own.of_rules(call)).or_else(|| self.all.of_rules(call)))
    }

    /// Returns a future that waits for the next release of either.
    pub(super) fn hold(self) -> impl Future<Output = ()> + Send + use<> {
        either(self.own.hold(), self.all.hold())
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

opaque_debug!(|faults: Faults| { is_cut: faults.is_cut(), held: faults.held() });
