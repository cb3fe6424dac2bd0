//! A shared log whose journals a test can watch. A test scripts faults of its requests about
//! journals and control messages. The faults are those of the test kit.

use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::{Either, select};
use serde_json::Value;
use tower_sse::backplane::JournalPage;
use tower_sse::test_kit::{Call, Fault, FaultyLog, LogConnection, Operation};

use crate::control_bytes;

/// The broker, as one instance reaches it.
pub(crate) struct Broker {
    pub(crate) log: FaultyLog,
    pub(crate) connection: LogConnection,
    pub(crate) faults: Faults,
}

/// The faults of one instance.
pub(crate) struct Faults {
    connection: LogConnection,
    state: Arc<State>,
}

/// The control messages of an instance that are lost.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) enum Messages {
    #[default]
    None,
    /// The announcements of runs.
    Runs,
    All,
}

impl Messages {
    fn contain(self, message: &[u8]) -> bool {
        match self {
            Self::None => false,
            Self::Runs => control_bytes::kinds(message).contains(&control_bytes::RUNS),
            Self::All => true,
        }
    }
}

/// The faults of an instance that last until the test ends them.
#[derive(Default)]
struct State {
    /// Whether requests have an effect: [`HERE`], [`AWAY`] or [`SILENT`].
    reach: AtomicU8,
    /// The control messages that are lost.
    lost_messages: Mutex<Messages>,
    /// Whether this instance receives no control messages, not even its own.
    is_deaf: AtomicBool,
}

const HERE: u8 = 0;
/// Requests have no effect, and their callers know that.
const AWAY: u8 = 1;
/// Requests have no effect, and their callers do not know what happened.
const SILENT: u8 = 2;

impl Broker {
    pub(crate) fn new() -> Self {
        Self::of(FaultyLog::new())
    }

    /// Returns the same broker for another instance, which has its own faults.
    pub(crate) fn other(&self) -> Self {
        Self::of(self.log.clone())
    }

    fn of(log: FaultyLog) -> Self {
        let connection = log.connect();
        let state = Arc::<State>::default();
        let when = |operation, fault, applies: fn(&State, &Call<'_>) -> bool| {
            let state = Arc::clone(&state);
            connection.faults().every_if(operation, fault, move |call| applies(&state, call));
        };
        when(Operation::Broadcast, Fault::LoseEffect, |state, call| {
            state.lost_messages.lock().unwrap().contain(&call.payloads[0])
        });
        when(Operation::DeliverMessage, Fault::LoseAnswer, |state, _| state.is_deaf.load(Ordering::SeqCst));
        for operation in
            [Operation::BeginJournal, Operation::AppendJournal, Operation::ReadJournal, Operation::Broadcast]
        {
            when(operation, Fault::Unavailable, |state, _| state.reach.load(Ordering::SeqCst) == AWAY);
            when(operation, Fault::LoseRequest, |state, _| state.reach.load(Ordering::SeqCst) == SILENT);
        }
        Self { faults: Faults { connection: connection.clone(), state }, log, connection }
    }

    pub(crate) fn journal(&self, key: &str) -> Option<Journal> {
        self.log.journal(key).map(Journal)
    }
}

impl Faults {
    fn next(&self, operation: Operation, faults: impl IntoIterator<Item = Fault>) {
        faults.into_iter().for_each(|fault| self.connection.faults().next(operation, fault));
    }

    /// Sets the faults of the next requests that begin a journal.
    pub(crate) fn begin(&self, faults: impl IntoIterator<Item = Fault>) {
        self.next(Operation::BeginJournal, faults);
    }

    /// Sets the faults of the next appends.
    pub(crate) fn append(&self, faults: impl IntoIterator<Item = Fault>) {
        self.next(Operation::AppendJournal, faults);
    }

    /// Sets the faults of the next reads.
    pub(crate) fn read(&self, faults: impl IntoIterator<Item = Fault>) {
        self.next(Operation::ReadJournal, faults);
    }

    /// Makes all journals and all control messages fail. The callers know that nothing happened.
    pub(crate) fn set_away(&self, away: bool) {
        self.state.reach.store(if away { AWAY } else { HERE }, Ordering::SeqCst);
    }

    /// Makes all journals and all control messages fail. The callers do not know what happened.
    pub(crate) fn set_silent(&self) {
        self.state.reach.store(SILENT, Ordering::SeqCst);
    }

    /// Loses these control messages.
    pub(crate) fn lose_messages(&self, messages: Messages) {
        *self.state.lost_messages.lock().unwrap() = messages;
    }

    pub(crate) fn pass_messages(&self) {
        self.lose_messages(Messages::None);
    }

    /// Makes this instance receive no control messages.
    pub(crate) fn set_deaf(&self) {
        self.state.is_deaf.store(true, Ordering::SeqCst);
    }

    /// Lets all requests and answers pass that are held.
    pub(crate) fn release(&self) {
        self.connection.faults().release();
    }

    /// Waits for a future, and lets all requests and answers pass that are held until then.
    pub(crate) async fn released_during<T>(&self, future: impl Future<Output = T>) -> T {
        let releases = async {
            loop {
                self.release();
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        match select(pin!(future), pin!(releases)).await {
            Either::Left((output, _)) => output,
            Either::Right(((), _)) => unreachable!(),
        }
    }

    /// Returns the number of requests that were held.
    pub(crate) fn held(&self) -> u64 {
        self.connection.faults().holds()
    }
}

/// A journal as the broker has stored it.
pub(crate) struct Journal(JournalPage);

impl Journal {
    pub(crate) fn is_closed(&self) -> bool {
        self.0.is_closed
    }

    /// Returns the entries as JSON.
    pub(crate) fn entries(&self) -> Vec<Value> {
        self.0.entries.iter().map(|entry| serde_json::from_slice(entry).unwrap()).collect()
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
        assert!(ends.len() <= 1 && ends.len() == usize::from(self.is_closed()), "{ends:?}");
        assert_eq!(ends.first().copied(), entries.last().unwrap()["end"].as_str());
        ends.first().map(|&end| end.to_owned())
    }
}
