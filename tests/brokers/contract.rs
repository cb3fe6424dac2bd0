//! The guarantees of an adapter, as one suite that runs against every adapter.

use std::collections::BTreeMap;

use bytes::Bytes;
use futures::StreamExt;
use tower_sse::backplane::{Backplane, LogLimits, LogPosition, LogState, NewRecord, Redis, Value};

use crate::kit::broker::{Broker, for_each_broker};
use crate::kit::soon;
use crate::redis_server::{FORGETFUL, RedisServer};

fn record(text: &str) -> NewRecord {
    NewRecord::new(Bytes::from(text.to_owned()))
}

fn text(payload: &Bytes) -> &str {
    std::str::from_utf8(payload).unwrap()
}

async fn append(log: &dyn Backplane, records: Vec<NewRecord>, seen: Option<LogPosition>) -> Vec<LogPosition> {
    soon(log.append(records, seen)).await.into_iter().map(Result::unwrap).collect()
}

async fn numbers_are_contiguous_and_ordered(log: &dyn Backplane) {
    let empty = soon(log.state(None)).await.unwrap();
    assert_eq!((empty.first, empty.last), (1, 0));
    let places = append(log, (0..700).map(|n| record(&n.to_string())).collect(), None).await;
    assert!(places.iter().enumerate().all(|(n, place)| place.sequence == n as u64 + 1 && place.epoch == empty.epoch));
    assert_eq!(
        soon(log.state(places.last().copied())).await.unwrap(),
        LogState { epoch: empty.epoch, first: 1, last: 700 }
    );
    let range = soon(log.range(3, 5)).await.unwrap();
    assert_eq!(
        range.iter().map(|stored| (stored.sequence, text(&stored.payload))).collect::<Vec<_>>(),
        [(4, "3"), (5, "4"), (6, "5"), (7, "6"), (8, "7")]
    );
    assert!(soon(log.range(700, 5)).await.unwrap().is_empty());
}

async fn simultaneous_writers_get_each_number_once(log: &dyn Backplane) {
    let before = soon(log.state(None)).await.unwrap().last;
    let writer = |name: usize| async move {
        let mut mine = Vec::new();
        for n in 0..50 {
            mine.extend(append(log, vec![record(&format!("{name}.{n}"))], None).await);
        }
        mine
    };
    let all = futures::future::join_all((0..8).map(writer)).await;
    assert!(
        all.iter().all(|mine| mine.is_sorted_by_key(|place| place.sequence)),
        "the records of a writer are out of order"
    );
    let mut numbers: Vec<u64> = all.into_iter().flatten().map(|place| place.sequence).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, (before + 1..=before + 400).collect::<Vec<_>>());
}

async fn a_tail_has_the_stored_and_the_new_records(log: &dyn Backplane) {
    let before = append(log, vec![record("a"), record("b")], None).await;
    let mut tail = log.tail(before[0].sequence);
    let mut received = Vec::new();
    let mut publish = (0..5).map(|n| n.to_string());
    while received.len() < 6 {
        if let Some(next) = publish.next() {
            append(log, vec![record(&next)], None).await;
        }
        let batch = soon(tail.next()).await.unwrap().unwrap();
        assert!(!batch.is_empty());
        received.extend(batch.iter().map(|stored| (stored.sequence, text(&stored.payload).to_owned())));
    }
    let expected = ["b", "0", "1", "2", "3", "4"].map(str::to_owned);
    let first = before[1].sequence;
    assert_eq!(
        received,
        expected.into_iter().enumerate().map(|(n, text)| (first + n as u64, text)).collect::<Vec<_>>()
    );
}

async fn current_values_are_the_newest_of_each_id(log: &dyn Backplane) {
    let set = |text: &str, id: &str, removes| {
        let mut outgoing = record(text);
        outgoing.values = vec![Value::new(id, removes)];
        outgoing
    };
    let special = "[\"topic\",\"a:b{}\\u0000\",\"k\"]";
    let places = append(
        log,
        vec![
            set("1", "x", false),
            set("2", special, false),
            set("3", "x", false),
            set("4", "y", false),
            set("5", "y", true),
        ],
        None,
    )
    .await;
    let values = soon(log.values()).await.unwrap();
    let values: BTreeMap<u64, &str> =
        values.iter().map(|value| (value.record.sequence, text(&value.record.payload))).collect();
    assert_eq!(values, BTreeMap::from([(places[1].sequence, "2"), (places[2].sequence, "3")]));
}

/// Later records replace or remove the value of each id independently.
async fn a_record_may_be_the_value_of_several_ids(log: &dyn Backplane) {
    let set = |text: &str, ids: &[&str], removes| {
        let mut outgoing = record(text);
        outgoing.values = ids.iter().map(|id| Value::new(*id, removes)).collect();
        outgoing
    };
    append(
        log,
        vec![
            set("both", &["x", "y"], false),
            set("z", &["z"], false),
            set("only x", &["x"], false),
            set("both gone", &["z", "w"], true),
        ],
        None,
    )
    .await;
    let current = async || {
        let values = soon(log.values()).await.unwrap();
        values
            .iter()
            .map(|value| (value.id.to_string(), text(&value.record.payload).to_owned()))
            .collect::<BTreeMap<_, _>>()
    };
    let is = |id: &str, text: &str| (id.to_owned(), text.to_owned());
    assert_eq!(current().await, BTreeMap::from([is("y", "both"), is("x", "only x")]));
    append(log, vec![set("gone", &["y"], true)], None).await;
    assert_eq!(current().await, BTreeMap::from([is("x", "only x")]));
}

async fn a_repeated_idempotency_key_is_appended_once(log: &dyn Backplane) {
    let mut once = record("once");
    once.idempotency_key = Some("key".into());
    let first = append(log, vec![once.clone()], None).await;
    let again = append(log, vec![once, record("other")], None).await;
    assert_eq!(first[0], again[0]);
    assert_eq!(again[1].sequence, first[0].sequence + 1);
}

async fn a_log_that_ends_below_the_seen_position_begins_a_new_epoch(log: &dyn Backplane) {
    let place = append(log, vec![record("x")], None).await[0];
    let seen = LogPosition { sequence: place.sequence + 10, ..place };
    let state = soon(log.state(Some(seen))).await.unwrap();
    assert!(state.epoch != place.epoch && state.last == place.sequence);
    // The epoch changes only once: no later request with or without a position changes it again.
    for seen in [None, Some(seen), Some(LogPosition { epoch: state.epoch, sequence: state.last })] {
        assert_eq!(soon(log.state(seen)).await.unwrap().epoch, state.epoch);
    }
    let ahead = LogPosition { epoch: state.epoch, sequence: state.last + 1 };
    let next = append(log, vec![record("y")], Some(ahead)).await[0];
    assert!(next.epoch != state.epoch && next.sequence == state.last + 1);
}

async fn a_listener_without_a_mark_gets_new_control_messages(log: &dyn Backplane) {
    soon(log.broadcast(Bytes::from_static(b"before"))).await.unwrap();
    let (mut one, mut two) = (log.listen(None), log.listen(None));
    // A listener connects at its first poll.
    assert!(futures::poll!(one.next()).is_pending() && futures::poll!(two.next()).is_pending());
    let received = async {
        let mut messages = Vec::new();
        for listener in [&mut one, &mut two] {
            messages.push(soon(listener.next()).await.unwrap().unwrap());
        }
        messages
    };
    let broadcasts = async {
        loop {
            soon(log.broadcast(Bytes::from_static(b"now"))).await.unwrap();
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    let messages = match futures::future::select(std::pin::pin!(received), std::pin::pin!(broadcasts)).await {
        futures::future::Either::Left((messages, _)) => messages,
        futures::future::Either::Right(((), _)) => unreachable!(),
    };
    assert!(messages.iter().all(|control| control.message == "now"));
}

/// A listener that reconnects continues after the last message that it received.
async fn a_listener_with_a_mark_gets_the_messages_after_the_mark(log: &dyn Backplane) {
    let mut listener = log.listen(None);
    assert!(futures::poll!(listener.next()).is_pending());
    let broadcasts = async {
        loop {
            soon(log.broadcast(Bytes::from_static(b"first"))).await.unwrap();
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    let next = soon(listener.next());
    let last = match futures::future::select(std::pin::pin!(next), std::pin::pin!(broadcasts)).await {
        futures::future::Either::Left((message, _)) => message.unwrap().unwrap(),
        futures::future::Either::Right(((), _)) => unreachable!(),
    };
    drop(listener);
    for n in 0..100 {
        soon(log.broadcast(Bytes::from(n.to_string()))).await.unwrap();
    }
    let (mut listener, mut received) = (log.listen(Some(last.mark)), Vec::new());
    while received.last().is_none_or(|last| last != "99") {
        let control = soon(listener.next()).await.unwrap().unwrap();
        received.extend(Some(text(&control.message).to_owned()).filter(|text| text != "first"));
    }
    assert_eq!(received, (0..100).map(|n| n.to_string()).collect::<Vec<_>>());
    // A listener with a mark that the broker does not have still receives messages.
    let mut listener = log.listen(Some("7".into()));
    assert!(!soon(listener.next()).await.unwrap().unwrap().message.is_empty());
}

async fn a_value_that_is_put_once_is_taken_once(log: &dyn Backplane) {
    let minute = std::time::Duration::from_secs(60);
    soon(log.put_once("a", Bytes::from_static(b"1"), minute)).await.unwrap();
    soon(log.put_once("a", Bytes::from_static(b"2"), minute)).await.unwrap();
    let taken = futures::future::join_all((0..10).map(|_| log.take("a"))).await;
    let got: Vec<_> = taken.into_iter().filter_map(Result::unwrap).collect();
    assert_eq!(got, [Bytes::from_static(b"2")]);
    assert_eq!(soon(log.take("b")).await.unwrap(), None);
    soon(log.put_once("c", Bytes::from_static(b"3"), std::time::Duration::from_millis(1_000))).await.unwrap();
    tokio::time::sleep(std::time::Duration::from_millis(1_100)).await;
    assert_eq!(soon(log.take("c")).await.unwrap(), None, "the deposit did not expire");
}

/// Both streams are polled once, while they may be connecting, and then not for a while.
async fn a_stream_that_is_not_polled_delays_no_other_call(log: &dyn Backplane) {
    let (mut tail, mut listener) = (log.tail(0), log.listen(None));
    assert!(futures::poll!(tail.next()).is_pending() && futures::poll!(listener.next()).is_pending());
    soon(log.state(None)).await.unwrap();
    append(log, vec![record("x")], None).await;
    soon(log.broadcast(Bytes::from_static(b"x"))).await.unwrap();
    assert_eq!(text(&soon(tail.next()).await.unwrap().unwrap()[0].payload), "x");
}

async fn adapter_keeps_the_contract(broker: impl Broker) {
    a_stream_that_is_not_polled_delays_no_other_call(&broker.log("0")).await;
    numbers_are_contiguous_and_ordered(&broker.log("a")).await;
    simultaneous_writers_get_each_number_once(&broker.log("b")).await;
    a_tail_has_the_stored_and_the_new_records(&broker.log("c")).await;
    current_values_are_the_newest_of_each_id(&broker.log("d")).await;
    a_record_may_be_the_value_of_several_ids(&broker.log("union")).await;
    a_repeated_idempotency_key_is_appended_once(&broker.log("e")).await;
    a_log_that_ends_below_the_seen_position_begins_a_new_epoch(&broker.log("f")).await;
    a_listener_without_a_mark_gets_new_control_messages(&broker.log("g")).await;
    a_listener_with_a_mark_gets_the_messages_after_the_mark(&broker.log("mark")).await;
    a_value_that_is_put_once_is_taken_once(&broker.log("h")).await;
}

for_each_broker!(adapter_keeps_the_contract(broker): memory, redis, nats);

/// The batch needs more calls of the script than may be pending on a connection, and the server has
/// not loaded the script yet.
#[tokio::test]
async fn a_large_batch_keeps_its_order_on_a_fresh_server() {
    let Some(server) = RedisServer::start(FORGETFUL) else { return };
    let log = Redis::new(&server.url(), "n").unwrap().timeout(std::time::Duration::from_secs(15));
    for round in 0..3 {
        server.cli(&["SCRIPT", "FLUSH"]);
        let places = append(&log, (0..40_000).map(|n| record(&n.to_string())).collect(), None).await;
        let expected = round * 40_000 + 1..;
        assert!(
            places.iter().map(|place| place.sequence).zip(expected).all(|(actual, expected)| actual == expected),
            "{round}"
        );
    }
}

async fn namespaces_of_a_broker_are_isolated(broker: impl Broker) {
    let names = ["a", "A", "a}:log", "{a}", "a:log", "%61", "", "_", "ä", "a b", "a.b", "a.*", "*", ">"];
    let logs: Vec<_> = names.iter().map(|name| broker.log(name)).collect();
    for (log, name) in logs.iter().zip(names) {
        let mut value = record(name);
        value.values = vec![Value::new("id", false)];
        append(log, vec![record(name), value], None).await;
    }
    for (log, name) in logs.iter().zip(names) {
        let range = soon(log.range(0, 10)).await.unwrap();
        assert_eq!(range.iter().map(|stored| text(&stored.payload)).collect::<Vec<_>>(), [name, name]);
        let values = soon(log.values()).await.unwrap();
        assert_eq!(values.iter().map(|value| text(&value.record.payload)).collect::<Vec<_>>(), [name]);
    }
}

for_each_broker!(namespaces_of_a_broker_are_isolated(broker): redis, nats);

#[tokio::test]
async fn redis_trims_by_length_and_by_age_and_reports_its_first_record() {
    let Some(server) = RedisServer::start(FORGETFUL) else { return };
    let log = Redis::new(&server.url(), "length").unwrap().limits(LogLimits::new().max_records(1_000));
    append(&log, (0..5_000).map(|n| record(&n.to_string())).collect(), None).await;
    let state = soon(log.state(None)).await.unwrap();
    assert_eq!(state.last, 5_000);
    assert!((3_000..=4_001).contains(&state.first), "{state:?}");
    assert_eq!(soon(log.range(0, 1)).await.unwrap()[0].sequence, state.first);

    let log = Redis::new(&server.url(), "age")
        .unwrap()
        .limits(LogLimits::new().max_age(std::time::Duration::from_millis(50)));
    append(&log, vec![record("old"), record("old")], None).await;
    tokio::time::sleep(std::time::Duration::from_millis(60)).await;
    append(&log, vec![record("new")], None).await;
    assert_eq!(soon(log.state(None)).await.unwrap().first, 3);
    // An append trims at least as many expired records as it adds.
    append(&log, (0..1_000).map(|n| record(&n.to_string())).collect(), None).await;
    tokio::time::sleep(std::time::Duration::from_millis(60)).await;
    append(&log, (0..1_000).map(|n| record(&n.to_string())).collect(), None).await;
    // On a busy machine, the first records of the later batch expire before the batch is complete.
    let first = soon(log.state(None)).await.unwrap().first;
    assert!((1_004..=2_004).contains(&first), "{first}");
}

#[tokio::test]
async fn key_of_another_type_on_redis_is_rejected_and_unreachable_server_is_not() {
    let Some(server) = RedisServer::start(FORGETFUL) else { return };
    server.cli(&["SET", "tower-sse:{wrong}:log", "no stream"]);
    let wrong = Redis::new(&server.url(), "wrong").unwrap();
    let refused = soon(wrong.append(vec![record("x")], None)).await.pop().unwrap().unwrap_err();
    assert!(refused.is_rejected() && refused.to_string().contains("WRONGTYPE"), "{refused}");
    let unreachable = Redis::new("redis://127.0.0.1:1/", "n").unwrap();
    let error = soon(unreachable.state(None)).await.unwrap_err();
    assert!(!error.is_unknown() && !error.is_rejected(), "{error}");
}

#[tokio::test]
async fn redis_adapter_loads_its_scripts_again_after_the_server_has_dropped_them() {
    let Some(server) = RedisServer::start(FORGETFUL) else { return };
    let log = Redis::new(&server.url(), "n").unwrap();
    append(&log, vec![record("x")], None).await;
    server.cli(&["SCRIPT", "FLUSH"]);
    append(&log, vec![record("y")], None).await;
}

#[tokio::test]
async fn errors_and_descriptions_of_redis_contain_no_password() {
    let unreachable = Redis::new("redis://ada:s3cret@127.0.0.1:1/", "n").unwrap();
    let error = soon(unreachable.state(None)).await.unwrap_err();
    for text in [format!("{error} {error:?}"), unreachable.describe(), format!("{unreachable:?}")] {
        assert!(!text.contains("s3cret"), "{text}");
    }
    let invalid = Redis::new("http://ada:s3cret@host", "n").unwrap_err();
    assert!(!format!("{invalid} {invalid:?}").contains("s3cret"), "{invalid}");
}
