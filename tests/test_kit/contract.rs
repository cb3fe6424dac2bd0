//! The contract suite of adapters: it accepts what the contract allows, and it names each broken
//! rule.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures::future::{BoxFuture, pending, ready};
use futures::stream::{BoxStream, repeat};
use futures::{FutureExt, StreamExt};
use tower_sse::backplane::{
    Backplane, BackplaneError, Begun, ControlMessage, ControlStream, CurrentValue, JournalAppend, JournalId,
    JournalPage, Journals, LogPosition, LogState, Memory, NewRecord, Range, ReadLimit, Seen, Stored,
};
use tower_sse::test_kit::{
    Call, Fault, FaultyLog, LogConnection, Operation, check_backplane, check_clustered_backplane,
};

use crate::failure;

/// Logs by name.
#[derive(Default)]
struct Logs<L>(Mutex<HashMap<String, L>>);

impl<L: Clone + Default> Logs<L> {
    fn log(&self, name: &str) -> L {
        self.0.lock().unwrap().entry(name.to_owned()).or_default().clone()
    }

    fn names(&self) -> Vec<String> {
        self.0.lock().unwrap().keys().cloned().collect()
    }
}

/// Returns the names of the rules that an adapter breaks, and the whole failure.
async fn broken_rules<B: Backplane>(connect: impl Fn(&str) -> B) -> (Vec<String>, String) {
    let failure = failure(check_backplane(connect)).await;
    let rules = failure.lines().skip(1).filter_map(|line| line.trim().split_once(": "));
    (rules.map(|(rule, _)| rule.to_owned()).collect(), failure)
}

/// Checks the log with faults. `script` sets the faults of each connection.
async fn check_with_faults(script: impl Fn(&LogConnection)) {
    let logs = Logs::<FaultyLog>::default();
    let connect = |name: &str| {
        let connection = logs.log(name).connect();
        script(&connection);
        connection
    };
    check_backplane(connect).await;
}

#[tokio::test(start_paused = true)]
async fn the_log_with_faults_keeps_the_contract_without_faults() {
    check_with_faults(|_| ()).await;
}

/// A network delays requests and deliveries, and a client library may repeat a request.
#[tokio::test(start_paused = true)]
async fn the_contract_allows_delays_and_repeated_requests() {
    check_with_faults(|connection| {
        let millis = |count| Fault::Delay(Duration::from_millis(count));
        for operation in [Operation::Append, Operation::State, Operation::Range, Operation::Values] {
            connection.faults().every(operation, millis(3));
        }
        for operation in [Operation::DeliverRecords, Operation::DeliverMessage, Operation::ReadJournal] {
            connection.faults().every(operation, millis(7));
        }
        connection.faults().every(Operation::BeginJournal, Fault::Duplicate);
        // Not the last entry of a journal that is kept for no time: its repeat finds no journal.
        let is_repeatable = |call: &Call<'_>| !call.contains("last");
        connection.faults().every_if(Operation::AppendJournal, Fault::Duplicate, is_repeatable);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_fault_that_the_contract_forbids_breaks_a_rule() {
    for (operation, fault, rule, text) in [
        (Operation::Append, Fault::Duplicate, "numbers_are_contiguous_and_in_order", "the position of a record"),
        (
            Operation::DeliverRecords,
            Fault::Duplicate,
            "a_tail_has_the_stored_and_the_new_records",
            "the records of a tail",
        ),
        (Operation::DeliverRecords, Fault::LoseAnswer, "a_tail_has_the_stored_and_the_new_records", "yielded nothing"),
        (
            Operation::DeliverMessage,
            Fault::LoseAnswer,
            "a_listener_without_a_mark_gets_new_messages",
            "yielded nothing",
        ),
        (
            Operation::DeliverMessage,
            Fault::Unavailable,
            "a_listener_with_a_mark_gets_the_messages_after_it",
            "ended with an error",
        ),
        (Operation::State, Fault::HoldAnswer, "a_new_log_is_empty", "a call did not return within 20s"),
        (Operation::Values, Fault::Unavailable, "current_values_are_the_newest_of_each_id", "a call failed"),
    ] {
        let logs = Logs::<FaultyLog>::default();
        let connect = |name: &str| {
            let connection = logs.log(name).connect();
            connection.faults().every(operation, fault);
            connection
        };
        let (rules, failure) = broken_rules(connect).await;
        assert!(rules.iter().any(|broken| broken == rule), "{operation:?} {fault:?}: {failure}");
        assert!(failure.contains(text), "{operation:?} {fault:?}: {failure}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_interrupted_rule_of_a_cluster_is_checked_again_with_a_new_log() {
    for (operation, fault, rule) in [
        (Operation::Values, Fault::Unavailable, "current_values_are_the_newest_of_each_id"),
        (Operation::BeginJournal, Fault::LoseAnswer, "keys_and_entries_may_have_any_bytes"),
        (Operation::DeliverRecords, Fault::Unavailable, "a_tail_has_the_stored_and_the_new_records"),
    ] {
        let logs = Logs::<FaultyLog>::default();
        check_clustered_backplane(|name| {
            let connection = logs.log(name).connect();
            if [rule, &format!("{rule}_again")].contains(&name) {
                connection.faults().every(operation, fault);
            }
            connection
        })
        .await;
        assert!(logs.names().contains(&format!("{rule}_again_again")), "{rule}");
    }
}

/// Most rules call at least one of these operations.
fn fail_always(connection: &LogConnection, fault: Fault) {
    for operation in [Operation::State, Operation::Append, Operation::BeginJournal] {
        connection.faults().every(operation, fault);
    }
}

#[tokio::test(start_paused = true)]
async fn interrupted_rules_of_a_cluster_are_checked_again_a_limited_number_of_times() {
    for (fault, repeats) in [(Fault::Unavailable, 12), (Fault::Rejected, 0)] {
        let logs = Logs::<FaultyLog>::default();
        let connect = |name: &str| {
            let connection = logs.log(name).connect();
            fail_always(&connection, fault);
            connection
        };
        let failure = failure(check_clustered_backplane(connect)).await;
        assert!(failure.lines().count() > 20, "{failure}");
        let names = logs.names();
        assert!(names.iter().all(|name| !name.ends_with("_again_again_again")), "{names:?}");
        assert_eq!(names.iter().filter(|name| name.ends_with("_again")).count(), repeats, "{names:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn other_failures_are_not_repeated() {
    let names = Mutex::new(Vec::new());
    let unrelated = |name: &str| {
        names.lock().unwrap().push(name.to_owned());
        Memory::new()
    };
    failure(check_clustered_backplane(unrelated)).await;
    let logs = Logs::<FaultyLog>::default();
    let unavailable = |name: &str| {
        let connection = logs.log(name).connect();
        fail_always(&connection, Fault::Unavailable);
        connection
    };
    failure(check_backplane(unavailable)).await;
    names.lock().unwrap().extend(logs.names());
    let names = names.into_inner().unwrap();
    assert!(names.len() > 40 && names.iter().all(|name| !name.ends_with("_again")), "{names:?}");
}

#[tokio::test(start_paused = true)]
async fn hidden_records_break_a_rule() {
    let logs = Logs::<FaultyLog>::default();
    let connect = |name: &str| {
        let log = logs.log(name);
        log.hide([4]);
        log.connect()
    };
    let (rules, failure) = broken_rules(connect).await;
    assert!(rules.contains(&"numbers_are_contiguous_and_in_order".to_owned()), "{failure}");
}

/// Every connection has a log of its own.
#[tokio::test(start_paused = true)]
async fn connections_that_share_no_log_break_rules() {
    let (rules, failure) = broken_rules(|_| Memory::new()).await;
    for rule in [
        "writers_and_readers_see_the_same_order",
        "one_of_many_simultaneous_writers_begins_a_journal",
        "repeated_calls_have_their_effect_once",
    ] {
        assert!(rules.iter().any(|broken| broken == rule), "{rule}: {failure}");
    }
}

/// What is wrong with an adapter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Defect {
    ForgetsIdempotencyKeys,
    KeepsItsEpoch,
    StopsDuringAStream,
    KeepsRemovedValues,
    KeepsOneValueOfARecord,
    ListensFromTheOldestMessage,
    ForgetsMarks,
    GivesAValueAgain,
    KeepsValues,
    BeginsASecondTime,
    ReplacesNoClosedJournal,
    AppendsAnywhere,
    RejectsRepeats,
    ReadsAnyJournal,
    ReadsAllEntries,
    ForgetsNoJournal,
    RejectsALongTime,
    HasOneJournal,
    ReadsKeysInLowerCase,
    NeverTakes,
    RepeatsOneMessage,
    RepeatsOneMessageSlowly,
    ReadsAnotherOrder,
    LeavesRecordsOut,
    RemembersKeysOfAnotherEpoch,
    KeepsValuesForAMoment,
    MixesControlStreams,
    CutsSharedValues,
    SkipsNumbersInANewEpoch,
    AddsARecordWithAnAudience,
    IsAlwaysBehind,
    ReadsAnySize,
    OmitsALargeRecord,
    HasAWrongTime,
}

/// A record that an adapter adds.
const ADDED: &str = r#"{"v":1,"to":{"all":true},"data":"x"}"#;

/// A log in memory with one defect.
#[derive(Clone)]
struct Defective {
    memory: Memory,
    defect: Defect,
    has_stream: Arc<AtomicBool>,
}

impl Defective {
    fn has(&self, defect: Defect) -> bool {
        self.defect == defect
    }

    /// Whether the adapter begins a new epoch with a record of its own.
    fn adds_a_record(&self) -> bool {
        matches!(self.defect, Defect::SkipsNumbersInANewEpoch | Defect::AddsARecordWithAnAudience)
    }

    fn key(&self, key: &str) -> String {
        match self.defect {
            Defect::HasOneJournal => String::new(),
            Defect::ReadsKeysInLowerCase => key.to_lowercase(),
            _ => key.to_owned(),
        }
    }
}

type Answer<T> = Result<T, BackplaneError>;

impl Backplane for Defective {
    fn append(&self, mut records: Vec<NewRecord>, seen: Option<Seen>) -> BoxFuture<'_, Vec<Answer<LogPosition>>> {
        for record in &mut records {
            match self.defect {
                Defect::ForgetsIdempotencyKeys => record.idempotency_key = None,
                Defect::KeepsRemovedValues => record.values.retain(|value| !value.removes),
                Defect::KeepsOneValueOfARecord => record.values.truncate(1),
                _ => {}
            }
        }
        if self.has(Defect::RemembersKeysOfAnotherEpoch)
            && let [NewRecord { idempotency_key: Some(_), payload, .. }] = &*records
        {
            let stored = self
                .memory
                .range(0, ReadLimit::records(1_000))
                .now_or_never()
                .unwrap()
                .unwrap()
                .into_records()
                .unwrap();
            let epoch = self.memory.state(None).now_or_never().unwrap().unwrap().epoch;
            if let Some(stored) = stored.iter().find(|stored| stored.payload == *payload) {
                return ready(vec![Ok(LogPosition::new(epoch, stored.sequence))]).boxed();
            }
        }
        if self.adds_a_record() {
            let last = self.memory.state(None).now_or_never().unwrap().unwrap().last;
            if seen.is_some_and(|seen| seen.sequence > last) {
                self.memory.append(vec![NewRecord::new(ADDED.into())], seen).now_or_never().unwrap();
            }
        }
        self.memory.append(records, seen.filter(|_| !self.has(Defect::KeepsItsEpoch)))
    }

    fn state(&self, seen: Option<Seen>) -> BoxFuture<'_, Answer<LogState>> {
        if self.has(Defect::StopsDuringAStream) && self.has_stream.load(Ordering::SeqCst) {
            return pending().boxed();
        }
        self.memory.state(seen.filter(|_| !self.has(Defect::KeepsItsEpoch)))
    }

    fn range(&self, after: u64, limit: ReadLimit) -> BoxFuture<'_, Answer<Range>> {
        async move {
            if self.has(Defect::IsAlwaysBehind) && after > 0 {
                return Ok(Range::NotYet);
            }
            let bytes = if self.has(Defect::ReadsAnySize) { usize::MAX } else { limit.bytes };
            let mut records = self.memory.range(after, limit.bytes(bytes)).await?.into_records().unwrap();
            if self.has(Defect::OmitsALargeRecord) {
                records.retain(|stored| stored.payload.len() <= limit.bytes);
            }
            if self.has(Defect::HasAWrongTime) {
                records.iter_mut().for_each(|stored| stored.at = stored.at.map(|at| at - Duration::from_secs(3600)));
            }
            if self.has(Defect::ReadsAnotherOrder) {
                // The payloads of two records are exchanged.
                for pair in records.chunks_exact_mut(2) {
                    let first = std::mem::take(&mut pair[0].payload);
                    pair[0].payload = std::mem::replace(&mut pair[1].payload, first);
                }
            }
            if self.has(Defect::SkipsNumbersInANewEpoch) {
                records.retain(|stored| stored.payload != ADDED);
            }
            if self.has(Defect::LeavesRecordsOut) {
                records.retain(|stored| stored.sequence != 600);
            }
            Ok(Range::Records(records))
        }
        .boxed()
    }

    fn tail(&self, after: u64) -> BoxStream<'static, Answer<Vec<Stored>>> {
        self.has_stream.store(true, Ordering::SeqCst);
        self.memory.tail(after)
    }

    fn values(&self) -> BoxFuture<'_, Answer<Vec<CurrentValue>>> {
        self.memory.values()
    }

    fn broadcast(&self, stream: ControlStream, message: Bytes) -> BoxFuture<'_, Answer<()>> {
        let is_mixed = self.has(Defect::MixesControlStreams);
        self.memory.broadcast(if is_mixed { ControlStream::Presence } else { stream }, message)
    }

    fn listen(&self, after: Option<Box<str>>) -> BoxStream<'static, Answer<ControlMessage>> {
        match self.defect {
            Defect::ListensFromTheOldestMessage => self.memory.listen(after.or(Some("0".into()))),
            Defect::ForgetsMarks => self.memory.listen(None).boxed(),
            Defect::RepeatsOneMessage | Defect::RepeatsOneMessageSlowly if after.is_some() => {
                let pause = Duration::from_secs(u64::from(self.has(Defect::RepeatsOneMessageSlowly)));
                let again = repeat(()).then(move |()| async move {
                    if !pause.is_zero() {
                        tokio::time::sleep(pause).await;
                    }
                    Ok(ControlMessage::new("1", "first".into()))
                });
                again.boxed()
            }
            _ => self.memory.listen(after),
        }
    }

    fn put_once(&self, key: &str, payload: Bytes, time: Duration) -> BoxFuture<'_, Answer<()>> {
        let time = match self.defect {
            Defect::KeepsValues => time * 1000,
            Defect::KeepsValuesForAMoment => time.min(Duration::from_secs(1)),
            _ => time,
        };
        self.memory.put_once(key, payload, time)
    }

    fn take(&self, key: &str) -> BoxFuture<'_, Answer<Option<Bytes>>> {
        if self.has(Defect::NeverTakes) {
            return pending().boxed();
        }
        let taken = self.memory.take(key).now_or_never().unwrap();
        if self.has(Defect::GivesAValueAgain)
            && let Ok(Some(payload)) = &taken
        {
            self.memory.put_once(key, payload.clone(), Duration::from_secs(60)).now_or_never().unwrap().unwrap();
        }
        ready(taken).boxed()
    }

    fn put_shared(&self, key: &str, payload: Bytes, time: Duration) -> BoxFuture<'_, Answer<()>> {
        let size = if self.has(Defect::CutsSharedValues) { payload.len().min(100_000) } else { payload.len() };
        self.memory.put_shared(key, payload.slice(..size), time)
    }

    fn get_shared(&self, key: &str) -> BoxFuture<'_, Answer<Option<Bytes>>> {
        self.memory.get_shared(key)
    }

    fn describe(&self) -> String {
        "a defective log".into()
    }
}

impl Journals for Defective {
    fn begin_journal(&self, key: &str, first: Bytes) -> BoxFuture<'_, Answer<Begun>> {
        let key = self.key(key);
        async move {
            if self.has(Defect::ReplacesNoClosedJournal)
                && let Some(page) = self.memory.read_journal(&key, None, 0, 0).await?
            {
                return Ok(Begun::Active(page.id));
            }
            match self.memory.begin_journal(&key, first).await? {
                Begun::Active(id) if self.has(Defect::BeginsASecondTime) => Ok(Begun::New(id)),
                begun => Ok(begun),
            }
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
        let key = self.key(key);
        async move {
            let last = self.memory.read_journal(&key, Some(id), 0, 0).await?.map_or(0, |page| page.last);
            let (after, close) = match self.defect {
                Defect::AppendsAnywhere => (last, close),
                Defect::RejectsRepeats if after != last => return Ok(JournalAppend::Conflict),
                Defect::ForgetsNoJournal => (after, close.map(|_| Duration::from_secs(3600))),
                Defect::RejectsALongTime if close > Some(Duration::from_secs(24 * 3600)) => {
                    return Err(BackplaneError::rejected("the time is too long"));
                }
                _ => (after, close),
            };
            self.memory.append_journal(&key, id, after, entry, close).await
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
        let id = id.filter(|_| !self.has(Defect::ReadsAnyJournal));
        let max_bytes = if self.has(Defect::ReadsAllEntries) { usize::MAX } else { max_bytes };
        let key = self.key(key);
        async move { self.memory.read_journal(&key, id, after, max_bytes).await }.boxed()
    }
}

#[tokio::test(start_paused = true)]
async fn each_defect_of_an_adapter_breaks_the_rule_about_it() {
    for (defect, rule) in [
        (Defect::ForgetsIdempotencyKeys, "a_repeated_idempotency_key_is_appended_once"),
        (Defect::KeepsItsEpoch, "a_log_that_ends_below_the_seen_position_begins_a_new_epoch"),
        (Defect::StopsDuringAStream, "a_stream_that_is_not_polled_delays_no_other_call"),
        (Defect::KeepsRemovedValues, "current_values_are_the_newest_of_each_id"),
        (Defect::KeepsOneValueOfARecord, "a_record_may_be_the_value_of_several_ids"),
        (Defect::ListensFromTheOldestMessage, "a_listener_without_a_mark_gets_new_messages"),
        (Defect::ForgetsMarks, "a_listener_with_a_mark_gets_the_messages_after_it"),
        (Defect::GivesAValueAgain, "a_value_that_is_put_once_is_taken_once"),
        (Defect::KeepsValues, "a_value_that_is_put_once_expires"),
        (Defect::MixesControlStreams, "presence_messages_displace_no_commands"),
        (Defect::ForgetsMarks, "a_mark_is_a_position_in_both_control_streams"),
        (Defect::CutsSharedValues, "a_shared_value_is_read_by_every_caller"),
        (Defect::BeginsASecondTime, "an_open_journal_is_active_until_it_is_closed"),
        (Defect::ReplacesNoClosedJournal, "one_of_many_simultaneous_writers_replaces_a_closed_journal"),
        (Defect::AppendsAnywhere, "an_append_that_does_not_fit_is_a_conflict"),
        (Defect::AppendsAnywhere, "one_of_several_simultaneous_appends_with_one_number_succeeds"),
        (Defect::RejectsRepeats, "repeated_calls_have_their_effect_once"),
        (Defect::ReadsAnyJournal, "a_closed_journal_is_replaced_by_the_next_one"),
        (Defect::ReadsAllEntries, "a_journal_is_read_in_pages_of_limited_size"),
        (Defect::ForgetsNoJournal, "a_closed_journal_is_forgotten_after_its_time"),
        (Defect::RejectsALongTime, "a_journal_may_be_closed_for_any_time"),
        (Defect::HasOneJournal, "journals_of_two_keys_are_independent"),
        (Defect::ReadsKeysInLowerCase, "keys_and_entries_may_have_any_bytes"),
        (Defect::NeverTakes, "a_value_that_is_put_once_is_taken_once"),
        (Defect::RepeatsOneMessage, "a_listener_with_a_mark_gets_the_messages_after_it"),
        (Defect::RepeatsOneMessageSlowly, "a_listener_with_a_mark_gets_the_messages_after_it"),
        (Defect::ReadsAnotherOrder, "writers_and_readers_see_the_same_order"),
        (Defect::LeavesRecordsOut, "numbers_are_contiguous_and_in_order"),
        (Defect::RemembersKeysOfAnotherEpoch, "an_idempotency_key_is_for_one_epoch"),
        (Defect::KeepsValuesForAMoment, "a_value_that_is_put_once_expires"),
        (Defect::SkipsNumbersInANewEpoch, "a_log_that_ends_below_the_seen_position_begins_a_new_epoch"),
        (Defect::AddsARecordWithAnAudience, "a_log_that_ends_below_the_seen_position_begins_a_new_epoch"),
        (Defect::IsAlwaysBehind, "numbers_are_contiguous_and_in_order"),
        (Defect::ReadsAnySize, "a_range_is_limited_in_bytes_and_has_at_least_one_record"),
        (Defect::OmitsALargeRecord, "a_range_is_limited_in_bytes_and_has_at_least_one_record"),
        (Defect::HasAWrongTime, "records_have_the_time_at_which_the_log_stored_them"),
    ] {
        let logs = Logs::<Memory>::default();
        let (rules, failure) =
            broken_rules(|name| Defective { memory: logs.log(name), defect, has_stream: Arc::default() }).await;
        assert!(rules.iter().any(|broken| broken == rule), "{defect:?}: {failure}");
    }
}
