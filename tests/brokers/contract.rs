//! The guarantees of an adapter: the contract suite of the test kit runs against every adapter, and
//! further tests are about properties of one broker.

use bytes::Bytes;
use futures::StreamExt;
use tower_sse::backplane::{
    Backplane, Begun, Journals as _, LogLimits, LogPosition, NewRecord, ReadLimit, Redis, Value,
};
use tower_sse::test_kit::check_backplane;

use crate::kit::broker::{Broker, for_each_broker, range};
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

async fn adapter_keeps_the_contract(broker: impl Broker) {
    check_backplane(|name| broker.log(name)).await;
}

for_each_broker!(
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    adapter_keeps_the_contract(broker): memory, redis, nats, postgres
);

/// The contract allows shorter answers. Those would cost more requests.
async fn adapter_returns_as_many_records_and_entries_as_fit(broker: impl Broker) {
    let log = broker.log("n");
    append(&log, (0..700).map(|n| record(&n.to_string())).collect(), None).await;
    let range = range(&log, 3, 5).await;
    assert_eq!(range.iter().map(|stored| stored.sequence).collect::<Vec<_>>(), [4, 5, 6, 7, 8]);

    let Begun::New(id) = soon(log.begin_journal("answers/7", "entry 0001".into())).await.unwrap() else { panic!() };
    for after in 1..40 {
        let entry = format!("entry {:04}", after + 1).into();
        soon(log.append_journal("answers/7", id, after, entry, None)).await.unwrap();
    }
    for (max_bytes, count) in [(0, 1), (1, 1), (25, 2), (100, 10), (usize::MAX, 40)] {
        let page = soon(log.read_journal("answers/7", Some(id), 0, max_bytes)).await.unwrap().unwrap();
        assert_eq!(page.entries.len(), count, "{max_bytes}");
    }
}

for_each_broker!(adapter_returns_as_many_records_and_entries_as_fit(broker): memory, redis, nats, postgres);

async fn ranges_and_tails_return_the_same_time_of_a_record(broker: impl Broker) {
    let log = broker.log("n");
    append(&log, (0..100).map(|n| record(&n.to_string())).collect(), None).await;
    let records = range(&log, 0, 100).await;
    assert!(records.iter().all(|stored| stored.at.is_some()));
    let (mut tail, mut tailed) = (log.tail(0), Vec::new());
    while tailed.len() < records.len() {
        tailed.extend(soon(tail.next()).await.unwrap().unwrap());
    }
    assert_eq!(tailed, records);
}

for_each_broker!(ranges_and_tails_return_the_same_time_of_a_record(broker): memory, redis, nats);

/// An entry that another program has added to the stream, and a record that is larger than all
/// records before it.
#[tokio::test]
async fn redis_reads_foreign_entries_as_empty_records_and_no_more_bytes_than_requested() {
    let Some(server) = RedisServer::start(FORGETFUL) else { return };
    let log = server.log("n");
    append(&log, vec![record("one")], None).await;
    server.cli(&["XADD", "tower-sse:{n}:log", "2-0", "other", "field"]);
    let mut records: Vec<_> = (0..50).map(|_| record("x")).collect();
    records.push(record(&"y".repeat(100_000)));
    append(&log, records, None).await;
    let all = range(&log, 0, 100).await;
    assert_eq!((all.len(), &all[1].payload[..], all[1].at), (53, &b""[..], None));
    assert!(all.iter().zip(1..).all(|(stored, sequence)| stored.sequence == sequence));
    let small = soon(log.range(0, ReadLimit::records(100).bytes(1_000))).await.unwrap().into_records().unwrap();
    assert_eq!(small.len(), 52);
}

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
        let range = range(log, 0, 10).await;
        assert_eq!(range.iter().map(|stored| text(&stored.payload)).collect::<Vec<_>>(), [name, name]);
        let values = soon(log.values()).await.unwrap();
        assert_eq!(values.iter().map(|value| text(&value.record.payload)).collect::<Vec<_>>(), [name]);
    }
}

for_each_broker!(namespaces_of_a_broker_are_isolated(broker): redis, nats, postgres);

#[tokio::test]
async fn redis_trims_by_length_and_by_age_and_reports_its_first_record() {
    let Some(server) = RedisServer::start(FORGETFUL) else { return };
    let log = server.log("length").limits(LogLimits::new().max_records(1_000));
    append(&log, (0..5_000).map(|n| record(&n.to_string())).collect(), None).await;
    let state = soon(log.state(None)).await.unwrap();
    assert_eq!(state.last, 5_000);
    assert!((3_000..=4_001).contains(&state.first), "{state:?}");
    assert_eq!(range(&log, 0, 1).await[0].sequence, state.first);

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
    let wrong = server.log("wrong");
    let refused = soon(wrong.append(vec![record("x")], None)).await.pop().unwrap().unwrap_err();
    assert!(refused.is_rejected() && refused.to_string().contains("WRONGTYPE"), "{refused}");
    let unreachable = Redis::new("redis://127.0.0.1:1/", "n").unwrap();
    let error = soon(unreachable.state(None)).await.unwrap_err();
    assert!(!error.is_unknown() && !error.is_rejected(), "{error}");
}

#[tokio::test]
async fn redis_adapter_loads_its_scripts_again_after_the_server_has_dropped_them() {
    let Some(server) = RedisServer::start(FORGETFUL) else { return };
    let log = server.log("n");
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
