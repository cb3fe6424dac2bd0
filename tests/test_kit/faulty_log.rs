//! Hubs on one log whose faults a test scripts. The clock is paused, so a wait costs no real time.

use std::time::Duration;

use futures::{FutureExt, StreamExt};
use tokio::time::Instant;
use tower_sse::backplane::{Backplane, Begun, ControlStream, JournalAppend, Journals, NewRecord, ReadLimit, Value};
use tower_sse::test_kit::{Fault, FaultyLog, LogConnection, Operation};
use tower_sse::{
    Disconnect, EndReason, Event, GapReason, Hub, NextEventError, PublishError, Retention, Subscriber, SubscriberItem,
    Subscription,
};

use crate::failure;
use crate::kit::{soon, until};

async fn start(log: &LogConnection) -> Hub {
    let hub = Hub::builder()
        .topic_retention(Retention::replay())
        .probe_interval(Duration::from_millis(100))
        .backplane(log.clone())
        .build()
        .unwrap();
    until(|| hub.is_ready()).await;
    hub
}

/// Two hubs on one log, each with its connection.
struct Pair {
    log: FaultyLog,
    near: LogConnection,
    far: LogConnection,
    one: Hub,
    other: Hub,
}

impl Pair {
    async fn start() -> Self {
        let log = FaultyLog::new();
        let (near, far) = (log.connect(), log.connect());
        let (one, other) = (start(&near).await, start(&far).await);
        until(|| one.stats().others == 1 && other.stats().others == 1).await;
        Self { log, near, far, one, other }
    }

    /// Opens a stream at the second hub.
    fn open(&self) -> Subscriber {
        self.other.subscribe(Subscription::for_user("ada").topic("news"), None).unwrap()
    }
}

async fn post(hub: &Hub, headline: &str) -> Result<(), PublishError> {
    soon(hub.topic("news").publish(Event::unnamed(headline.to_owned()))).await.map(drop)
}

async fn headline(page: &mut Subscriber) -> String {
    soon(page.next_event()).await.unwrap().data
}

fn record(text: &'static str) -> Vec<NewRecord> {
    vec![NewRecord::new(text.into())]
}

#[tokio::test(start_paused = true)]
async fn hubs_share_a_log_without_faults() {
    let pair = Pair::start().await;
    let mut page = pair.open();
    post(&pair.one, "1").await.unwrap();
    assert_eq!(headline(&mut page).await, "1");
    assert_eq!((pair.log.last(), pair.near.faults().calls(Operation::Append)), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_fault_is_for_one_request_of_one_connection() {
    let pair = Pair::start().await;
    let mut page = pair.open();
    pair.near.faults().next(Operation::Append, Fault::Unavailable);
    post(&pair.other, "1").await.unwrap();
    let error = post(&pair.one, "2").await.unwrap_err();
    assert!(error.is_unavailable() && !error.is_unknown(), "{error}");
    post(&pair.one, "3").await.unwrap();
    assert_eq!([headline(&mut page).await, headline(&mut page).await], ["1", "3"]);
}

#[tokio::test(start_paused = true)]
async fn a_fault_of_the_log_is_for_the_next_request_of_any_connection() {
    let pair = Pair::start().await;
    pair.log.faults().next(Operation::Append, Fault::Unavailable);
    post(&pair.other, "1").await.unwrap_err();
    post(&pair.one, "2").await.unwrap();
    pair.log.faults().every(Operation::Append, Fault::Unavailable);
    for hub in [&pair.one, &pair.other] {
        post(hub, "3").await.unwrap_err();
        post(hub, "4").await.unwrap_err();
    }
    pair.log.faults().heal();
    post(&pair.one, "5").await.unwrap();
    assert_eq!(pair.log.last(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_rejected_request_has_no_effect() {
    let pair = Pair::start().await;
    pair.near.faults().next(Operation::Append, Fault::Rejected);
    let error = post(&pair.one, "1").await.unwrap_err();
    assert!(error.is_unavailable() && !error.is_unknown(), "{error}");
    assert_eq!(pair.log.last(), 0);
}

/// The caller cannot know which of the two happened.
#[tokio::test(start_paused = true)]
async fn a_lost_request_and_a_lost_answer_are_unknown_to_the_caller() {
    let pair = Pair::start().await;
    for (fault, last) in [(Fault::LoseRequest, 0), (Fault::LoseAnswer, 1)] {
        pair.near.faults().next(Operation::Append, fault);
        assert!(post(&pair.one, "1").await.unwrap_err().is_unknown());
        assert_eq!(pair.log.last(), last, "{fault:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_delayed_request_takes_its_time_of_the_paused_clock() {
    let log = FaultyLog::new().connect();
    let (begun, real) = (Instant::now(), std::time::Instant::now());
    log.faults().next(Operation::Append, Fault::Delay(Duration::from_secs(40)));
    assert!(log.append(record("1"), None).await.iter().all(Result::is_ok));
    assert_eq!(begun.elapsed(), Duration::from_secs(40));
    assert!(real.elapsed() < Duration::from_secs(20));
}

#[tokio::test(start_paused = true)]
async fn a_held_request_has_its_effect_after_the_release() {
    let log = FaultyLog::new();
    let connection = log.connect();
    connection.faults().next(Operation::Append, Fault::HoldRequest);
    let mut append = connection.append(record("1"), None);
    assert!(tokio::time::timeout(Duration::from_secs(3600), &mut append).await.is_err());
    assert_eq!((log.last(), connection.faults().holds()), (0, 1));
    connection.faults().release();
    assert_eq!(soon(append).await[0].as_ref().unwrap().sequence, 1);
}

#[tokio::test(start_paused = true)]
async fn a_held_answer_arrives_after_the_release() {
    let log = FaultyLog::new();
    let connection = log.connect();
    connection.faults().next(Operation::Append, Fault::HoldAnswer);
    let mut append = connection.append(record("1"), None);
    assert!(tokio::time::timeout(Duration::from_secs(3600), &mut append).await.is_err());
    assert_eq!(log.last(), 1);
    log.faults().release();
    assert_eq!(soon(append).await[0].as_ref().unwrap().sequence, 1);
}

#[tokio::test(start_paused = true)]
async fn a_late_request_has_its_effect_after_its_caller_has_given_up() {
    let log = FaultyLog::new();
    let connection = log.connect();
    connection.faults().next(Operation::Append, Fault::Late);
    assert!(soon(connection.append(record("1"), None)).await[0].as_ref().unwrap_err().is_unknown());
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(log.last(), 0);
    connection.faults().release();
    until(|| log.last() == 1).await;
}

/// The release comes as soon as the operation is counted, on another thread.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_release_reaches_every_operation_that_is_counted_as_held() {
    let connection = FaultyLog::new().connect();
    for (round, fault) in (1..=4_000).zip([Fault::HoldRequest, Fault::HoldAnswer].into_iter().cycle()) {
        connection.faults().next(Operation::State, fault);
        let held = connection.clone();
        let state = tokio::spawn(async move { held.state(None).await });
        while connection.faults().holds() < round {
            std::hint::spin_loop();
        }
        connection.faults().release();
        soon(state).await.unwrap().unwrap();
    }
}

/// The hub that made the request is gone.
#[tokio::test(start_paused = true)]
async fn a_late_request_of_a_dropped_connection_waits_for_the_release() {
    let log = FaultyLog::new();
    let connection = log.connect();
    log.faults().next(Operation::Append, Fault::Late);
    assert!(soon(connection.append(record("1"), None)).await[0].as_ref().unwrap_err().is_unknown());
    drop(connection);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(log.last(), 0);
    log.faults().release();
    until(|| log.last() == 1).await;
}

#[tokio::test(start_paused = true)]
async fn a_duplicate_request_has_its_effect_twice() {
    let log = FaultyLog::new();
    let connection = log.connect();
    let mut once = NewRecord::new("once".into());
    once.idempotency_key = Some("key".into());
    for (records, last) in [(vec![once], 1), (record("twice"), 3)] {
        connection.faults().next(Operation::Append, Fault::Duplicate);
        assert_eq!(soon(connection.append(records, None)).await[0].as_ref().unwrap().sequence, last);
    }
    connection.faults().next(Operation::BeginJournal, Fault::Duplicate);
    let Begun::New(id) = soon(connection.begin_journal("answers/7", "1".into())).await.unwrap() else { panic!() };
    connection.faults().next(Operation::AppendJournal, Fault::Duplicate);
    let appended = soon(connection.append_journal("answers/7", id, 1, "2".into(), None)).await.unwrap();
    assert_eq!(appended, JournalAppend::Appended);
}

/// The broker fails over to a replica that does not have the record.
#[tokio::test(start_paused = true)]
async fn a_request_whose_effect_is_lost_is_successful_for_its_caller() {
    let log = FaultyLog::new();
    let connection = log.connect();
    let mut messages = connection.listen(None);
    connection.faults().next(Operation::Append, Fault::LoseEffect);
    connection.faults().next(Operation::Broadcast, Fault::LoseEffect);
    assert_eq!(soon(connection.append(record("lost"), None)).await[0].as_ref().unwrap().sequence, 1);
    soon(connection.broadcast(ControlStream::Presence, "lost".into())).await.unwrap();
    assert_eq!(log.last(), 0);
    assert!(messages.next().now_or_never().is_none());
    assert_eq!(soon(connection.append(record("next"), None)).await[0].as_ref().unwrap().sequence, 1);
}

#[tokio::test(start_paused = true)]
async fn a_journal_that_is_rolled_back_is_open_and_shorter() {
    let log = FaultyLog::new();
    let connection = log.connect();
    let Begun::New(id) = soon(connection.begin_journal("answers/7", "1".into())).await.unwrap() else { panic!() };
    let keep = Some(Duration::from_secs(60));
    soon(connection.append_journal("answers/7", id, 1, "2".into(), keep)).await.unwrap();
    let journal = log.journal("answers/7").unwrap();
    assert_eq!((journal.entries.len(), journal.is_closed), (2, true));
    log.roll_back_journal("answers/7", 0);
    assert_eq!(log.journal("answers/7").unwrap(), journal);
    log.roll_back_journal("answers/7", 1);
    tokio::time::sleep(Duration::from_secs(120)).await;
    let journal = log.journal("answers/7").unwrap();
    assert_eq!((journal.entries, journal.is_closed), (vec!["1".into()], false));
    let appended = soon(connection.append_journal("answers/7", id, 1, "other".into(), None)).await.unwrap();
    assert_eq!(appended, JournalAppend::Appended);
    log.roll_back_journal("answers/7", usize::MAX);
    assert_eq!(log.journal("answers/7"), None);
}

#[tokio::test(start_paused = true)]
async fn a_condition_limits_a_fault_to_some_requests() {
    let log = FaultyLog::new().connect();
    log.faults().every_if(Operation::PutOnce, Fault::Rejected, |call| call.key == Some("ticket-7"));
    log.faults().every_if(Operation::Broadcast, Fault::Rejected, |call| call.contains("goodbye"));
    let minute = Duration::from_secs(60);
    assert!(log.put_once("ticket-7", "ada".into(), minute).await.unwrap_err().is_rejected());
    log.put_once("ticket-8", "ada".into(), minute).await.unwrap();
    assert!(log.broadcast(ControlStream::Presence, "a goodbye".into()).await.unwrap_err().is_rejected());
    log.broadcast(ControlStream::Presence, "hello".into()).await.unwrap();
}

/// Records have numbers, so a hub finds the missing one.
#[tokio::test(start_paused = true)]
async fn a_delivery_that_is_lost_loses_no_event() {
    let pair = Pair::start().await;
    let mut page = pair.open();
    pair.far.faults().next(Operation::DeliverRecords, Fault::LoseAnswer);
    for headline in ["1", "2", "3"] {
        post(&pair.one, headline).await.unwrap();
    }
    for expected in ["1", "2", "3"] {
        assert_eq!(headline(&mut page).await, expected);
    }
}

#[tokio::test(start_paused = true)]
async fn a_connection_leaves_a_lost_delivery_out() {
    let log = FaultyLog::new().connect();
    for fault in [Fault::LoseRequest, Fault::LoseAnswer, Fault::Late] {
        let (mut tail, mut messages) = (log.tail(log.state(None).await.unwrap().last), log.listen(None));
        log.faults().next(Operation::DeliverRecords, fault);
        log.faults().next(Operation::DeliverMessage, fault);
        log.append(record("lost"), None).await;
        log.broadcast(ControlStream::Presence, "lost".into()).await.unwrap();
        assert!(tail.next().now_or_never().is_none() && messages.next().now_or_never().is_none());
        log.append(record("next"), None).await;
        log.broadcast(ControlStream::Presence, "next".into()).await.unwrap();
        assert_eq!(soon(tail.next()).await.unwrap().unwrap()[0].payload, "next");
        assert_eq!(soon(messages.next()).await.unwrap().unwrap().message, "next");
    }
}

#[tokio::test(start_paused = true)]
async fn a_delivery_that_is_duplicated_is_one_event() {
    let pair = Pair::start().await;
    let mut page = pair.open();
    pair.far.faults().every(Operation::DeliverRecords, Fault::Duplicate);
    pair.log.faults().every(Operation::DeliverMessage, Fault::Duplicate);
    for headline in ["1", "2", "3"] {
        post(&pair.one, headline).await.unwrap();
    }
    for expected in ["1", "2", "3"] {
        assert_eq!(headline(&mut page).await, expected);
    }
    assert!(page.next_event().now_or_never().is_none());
    pair.one.user("ada").disconnect(Disconnect::now()).await.unwrap();
    assert_eq!(soon(page.next_event()).await, Err(NextEventError::End(EndReason::Disconnected)));
}

#[tokio::test(start_paused = true)]
async fn a_connection_yields_each_duplicated_delivery_twice() {
    let log = FaultyLog::new().connect();
    log.faults().every(Operation::DeliverRecords, Fault::Duplicate);
    log.faults().next(Operation::DeliverMessage, Fault::Duplicate);
    let (mut tail, mut messages) = (log.tail(0), log.listen(None));
    log.append(record("1"), None).await;
    log.broadcast(ControlStream::Presence, "hello".into()).await.unwrap();
    log.broadcast(ControlStream::Presence, "goodbye".into()).await.unwrap();
    for _ in 0..2 {
        assert_eq!(soon(tail.next()).await.unwrap().unwrap()[0].payload, "1");
    }
    for expected in ["hello", "hello", "goodbye"] {
        assert_eq!(soon(messages.next()).await.unwrap().unwrap().message, expected);
    }
}

#[tokio::test(start_paused = true)]
async fn a_held_delivery_waits_for_the_release() {
    let log = FaultyLog::new().connect();
    let mut tail = log.tail(0);
    log.faults().next(Operation::DeliverRecords, Fault::HoldRequest);
    log.append(record("1"), None).await;
    assert!(tokio::time::timeout(Duration::from_secs(60), tail.next()).await.is_err());
    log.faults().release();
    assert_eq!(soon(tail.next()).await.unwrap().unwrap()[0].payload, "1");
}

#[tokio::test(start_paused = true)]
async fn a_hub_that_was_cut_off_misses_nothing() {
    let pair = Pair::start().await;
    let mut page = pair.open();
    post(&pair.one, "1").await.unwrap();
    assert_eq!(headline(&mut page).await, "1");
    pair.far.faults().cut();
    until(|| !pair.other.is_ready()).await;
    assert!(pair.one.is_ready(), "the other connection is not cut");
    post(&pair.one, "2").await.unwrap();
    let error = post(&pair.other, "3").await.unwrap_err();
    assert!(error.is_unavailable() && !error.is_unknown(), "{error}");
    assert!(tokio::time::timeout(Duration::from_secs(30), page.next_event()).await.is_err());
    pair.far.faults().heal();
    assert_eq!(headline(&mut page).await, "2");
    until(|| pair.other.is_ready()).await;
    post(&pair.other, "4").await.unwrap();
    assert_eq!(headline(&mut page).await, "4");
}

#[tokio::test(start_paused = true)]
async fn a_cut_of_the_log_ends_the_streams_of_all_connections() {
    let log = FaultyLog::new();
    let connections = [log.connect(), log.connect()];
    let mut tails: Vec<_> = connections.iter().map(|connection| connection.tail(0)).collect();
    let mut listeners: Vec<_> = connections.iter().map(|connection| connection.listen(None)).collect();
    log.faults().cut();
    for connection in &connections {
        tails.push(connection.tail(0));
        assert!(connection.state(None).await.is_err());
    }
    for tail in &mut tails {
        assert!(soon(tail.next()).await.unwrap().is_err());
    }
    for listener in &mut listeners {
        assert!(soon(listener.next()).await.unwrap().is_err());
    }
    log.faults().heal();
    assert!(connections[0].tail(0).next().now_or_never().is_none(), "the stream is open");
}

#[tokio::test(start_paused = true)]
async fn streams_that_end_once_are_opened_again() {
    let pair = Pair::start().await;
    let mut page = pair.open();
    pair.log.faults().break_streams();
    post(&pair.one, "1").await.unwrap();
    assert_eq!(headline(&mut page).await, "1");
}

/// The broker does not report the loss, so the hub has to detect it.
#[tokio::test(start_paused = true)]
async fn a_log_that_is_rolled_back_is_one_gap() {
    let pair = Pair::start().await;
    let mut page = pair.open();
    for headline in ["1", "2", "3"] {
        post(&pair.one, headline).await.unwrap();
    }
    for expected in ["1", "2", "3"] {
        assert_eq!(headline(&mut page).await, expected);
    }
    pair.log.roll_back(2);
    assert_eq!(pair.log.last(), 1);
    let gap = soon(page.next_event()).await.unwrap_err();
    assert!(matches!(gap, NextEventError::Gap { reason: GapReason::Epoch, .. }), "{gap}");
    // The retained record is of the new epoch too.
    assert_eq!(headline(&mut page).await, "1");
    post(&pair.one, "4").await.unwrap();
    assert_eq!(headline(&mut page).await, "4");
}

/// Otherwise the publisher of a lost record could not publish it again.
#[tokio::test(start_paused = true)]
async fn a_log_that_is_rolled_back_forgets_the_keys_and_values_of_lost_records() {
    let log = FaultyLog::new();
    let connection = log.connect();
    let mut lost = NewRecord::new("lost".into());
    lost.idempotency_key = Some("key".into());
    lost.values = vec![Value::new("boiler", false)];
    soon(connection.append(vec![lost.clone()], None)).await;
    log.roll_back(1);
    assert_eq!(soon(connection.values()).await.unwrap(), []);
    // The log remembers the key for ten minutes after the second append.
    for _ in 0..2 {
        tokio::time::sleep(Duration::from_secs(350)).await;
        assert_eq!(soon(connection.append(vec![lost.clone()], None)).await[0].as_ref().unwrap().sequence, 1);
    }
    assert_eq!(soon(connection.range(0, ReadLimit::records(10))).await.unwrap().into_records().unwrap().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_log_without_its_data_is_one_gap() {
    let pair = Pair::start().await;
    let mut page = pair.open();
    post(&pair.one, "1").await.unwrap();
    assert_eq!(headline(&mut page).await, "1");
    pair.log.restore(&FaultyLog::new());
    let gap = soon(page.next_event()).await.unwrap_err();
    assert!(matches!(gap, NextEventError::Gap { reason: GapReason::Epoch, .. }), "{gap}");
    post(&pair.one, "2").await.unwrap();
    assert_eq!(headline(&mut page).await, "2");
}

#[tokio::test(start_paused = true)]
async fn a_restored_backup_has_the_records_and_journals_of_its_time() {
    let log = FaultyLog::new();
    let connection = log.connect();
    connection.append(record("1"), None).await;
    let Begun::New(id) = connection.begin_journal("answers/7", "first".into()).await.unwrap() else { panic!() };
    let backup = log.backup();
    connection.append(record("lost"), None).await;
    connection.append_journal("answers/7", id, 1, "lost".into(), None).await.unwrap();
    assert_eq!((log.last(), backup.last()), (2, 1));
    log.restore(&backup);
    assert_eq!(log.last(), 1);
    let page = connection.read_journal("answers/7", None, 0, usize::MAX).await.unwrap().unwrap();
    assert_eq!((page.id, page.entries), (id, vec!["first".into()]));
    // The backup stays separate.
    connection.append(record("2"), None).await;
    assert_eq!((log.last(), backup.last()), (2, 1));
}

#[tokio::test(start_paused = true)]
async fn hidden_records_are_late_and_trimmed_records_are_lost() {
    let pair = Pair::start().await;
    let mut page = pair.open();
    pair.log.hide([1]);
    post(&pair.one, "1").await.unwrap();
    assert!(page.next_event().now_or_never().is_none());
    pair.log.show_all();
    assert_eq!(headline(&mut page).await, "1");
    pair.far.faults().cut();
    for headline in ["2", "3", "4"] {
        post(&pair.one, headline).await.unwrap();
    }
    pair.log.trim_through(3);
    pair.far.faults().heal();
    let gap = soon(page.next_event()).await.unwrap_err();
    assert!(matches!(gap, NextEventError::Gap { reason: GapReason::Lost, .. }), "{gap}");
    assert_eq!(headline(&mut page).await, "4");
}

#[tokio::test(start_paused = true)]
async fn a_test_that_waits_for_a_held_operation_has_a_time_limit() {
    let log = FaultyLog::new();
    let connection = log.connect();
    let failure = failure(connection.faults().until_holds(1)).await;
    assert!(failure.contains("expected 1 held operations, but found 0 after 5s"), "{failure}");
    connection.faults().next(Operation::State, Fault::HoldRequest);
    let held = connection.clone();
    tokio::spawn(async move { held.state(None).await });
    connection.faults().until_holds(1).await;
    log.faults().until_holds(1).await;
}

/// The hub cannot follow the log for a while.
#[tokio::test(start_paused = true)]
async fn next_event_skips_stale() {
    let pair = Pair::start().await;
    let (mut page, mut items) = (pair.open(), pair.open());
    pair.far.faults().cut();
    while !matches!(soon(items.next()).await, Some(SubscriberItem::Stale)) {}
    assert!(tokio::time::timeout(Duration::from_secs(60), page.next_event()).await.is_err());
    pair.far.faults().heal();
    post(&pair.one, "1").await.unwrap();
    assert_eq!(headline(&mut page).await, "1");
}
