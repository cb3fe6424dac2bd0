//! Behavior that is specific to NATS: limits, rejections, and a log that was rolled back.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use tower_sse::backplane::{Backplane, LogLimits, LogPosition, LogState, Nats, NewRecord, Range, ReadLimit, Value};

use crate::kit::broker::{nats_log, range};
use crate::kit::soon;
use crate::nats_rewrites::{SINGLE, announcing, set_to_zero};
use crate::nats_server::NatsServer;

fn record(text: &str) -> NewRecord {
    NewRecord::new(Bytes::from(text.to_owned()))
}

fn value(text: &str, id: &str) -> NewRecord {
    let mut outgoing = record(text);
    outgoing.values = vec![Value::new(id, false)];
    outgoing
}

async fn append(log: &Nats, records: Vec<NewRecord>) -> Vec<LogPosition> {
    soon(log.append(records, None)).await.into_iter().map(Result::unwrap).collect()
}

async fn values(log: &Nats) -> BTreeMap<u64, String> {
    let text = |payload: &Bytes| String::from_utf8(payload.to_vec()).unwrap();
    soon(log.values()).await.unwrap().iter().map(|value| (value.record.sequence, text(&value.record.payload))).collect()
}

#[tokio::test]
async fn nats_trims_by_length_and_by_age_and_reports_its_first_record() {
    let Some(server) = NatsServer::start() else { return };
    let log = nats_log(&server, "length").limits(LogLimits::new().max_records(1_000).max_values(10));
    append(&log, vec![value("copied", "id")]).await;
    server.wait_until_copied("length", 1).await;
    append(&log, (0..4_999).map(|n| record(&n.to_string())).collect()).await;
    let state = soon(log.state(None)).await.unwrap();
    assert_eq!((state.first, state.last), (4_001, 5_000));
    assert_eq!(range(&log, 0, 1).await[0].sequence, 4_001);
    assert_eq!(values(&log).await, BTreeMap::from([(1, "copied".to_owned())]));
    // A tail that starts at a trimmed record returns an error.
    let trimmed = soon(log.tail(10).next()).await.unwrap().unwrap_err();
    assert!(!trimmed.is_rejected(), "{trimmed}");
    // The oldest values are dropped first.
    append(&log, (0..20).map(|n| value(&n.to_string(), &n.to_string())).collect()).await;
    soon(async {
        while values(&log).await.values().cloned().collect::<Vec<_>>()
            != (10..20).map(|n| n.to_string()).collect::<Vec<_>>()
        {
            // A value that the copy has dropped is still read from the log until the copy has
            // caught up.
            append(&log, vec![record("x")]).await;
        }
    })
    .await;

    let log = nats_log(&server, "age").limits(LogLimits::new().max_age(Duration::from_millis(200)));
    append(&log, vec![record("old"), record("old")]).await;
    soon(async { while soon(log.state(None)).await.unwrap().first != 3 {} }).await;
    append(&log, vec![record("new")]).await;
    assert_eq!(soon(log.state(None)).await.unwrap().last, 3);
}

/// A later record replaces or removes a value in the copy too, when the log no longer has either
/// record.
#[tokio::test]
async fn values_outlive_the_log_independently_of_each_other() {
    let Some(server) = NatsServer::start() else { return };
    let log = nats_log(&server, "n").limits(LogLimits::new().max_records(1));
    let both = |text: &str, removes| {
        let mut outgoing = record(text);
        outgoing.values = vec![Value::new("x", removes), Value::new("y", removes)];
        outgoing
    };
    append(&log, vec![both("both", false)]).await;
    server.wait_until_copied("n", 1).await;
    append(&log, vec![value("only x", "x")]).await;
    server.wait_until_copied("n", 2).await;
    append(&log, vec![record("plain")]).await;
    assert_eq!(values(&log).await, BTreeMap::from([(1, "both".to_owned()), (2, "only x".to_owned())]));
    append(&log, vec![value("z", "z")]).await;
    server.wait_until_copied("n", 3).await;
    append(&log, vec![both("gone", true)]).await;
    server.wait_until_copied("n", 4).await;
    append(&log, vec![record("plain")]).await;
    assert_eq!(values(&log).await, BTreeMap::from([(4, "z".to_owned())]));
}

/// A server copies values out of the log a moment after they were published, and a busy log drops
/// its oldest records. Since version 2.10 the first copy takes up to 200 ms, after the streams are
/// made and after each start of the server.
#[tokio::test]
async fn acknowledged_values_survive_a_busy_log_on_a_fresh_and_on_a_restarted_server() {
    let Some(mut server) = NatsServer::start() else { return };
    for start in ["fresh", "restarted"] {
        if start == "restarted" {
            server.kill();
            server.restart();
        }
        let log = nats_log(&server, "n").limits(LogLimits::new().max_records(1_000));
        append(&log, (0..20).map(|n| value(start, &format!("{start} {n}"))).collect()).await;
        append(&log, (0..3_000).map(|n| record(&n.to_string())).collect()).await;
        let kept = values(&log).await.into_values().filter(|text| text == start).count();
        assert_eq!(kept, 20, "on a {start} server");
    }
}

#[tokio::test]
async fn record_over_max_payload_is_rejected_and_the_others_are_appended() {
    let Some(server) = NatsServer::start() else { return };
    let log = nats_log(&server, "n");
    append(&log, vec![record("x")]).await;
    // Headers count towards the limit.
    let large = "x".repeat(1 << 20);
    let large = vec![record(&large), record(&format!("{large}x")), value(&large, "id"), record("y")];
    let places = soon(log.append(large, None)).await;
    for refused in &places[1..3] {
        let refused = refused.as_ref().unwrap_err();
        assert!(refused.is_rejected() && refused.to_string().contains("max_payload"), "{refused}");
    }
    assert_eq!((places[0].as_ref().unwrap().sequence, places[3].as_ref().unwrap().sequence), (2, 3));
}

#[tokio::test]
async fn wrong_password_is_rejected_and_unreachable_server_is_not() {
    let Some(server) = NatsServer::start_with(&["--user", "ada", "--pass", "s3c+ret"]) else { return };
    let log = Nats::new(&server.url().replace("nats://", "nats://ada:s3c%2Bret@"), "n").unwrap();
    append(&log, vec![record("x")]).await;
    let wrong = Nats::new(&server.url().replace("nats://", "nats://ada:wr0ng@"), "n").unwrap();
    let refused = soon(wrong.append(vec![record("x")], None)).await.pop().unwrap().unwrap_err();
    assert!(refused.is_rejected(), "{refused}");
    let unreachable = Nats::new("nats://127.0.0.1:1", "n").unwrap();
    let error = soon(unreachable.state(None)).await.unwrap_err();
    assert!(!error.is_unknown() && !error.is_rejected(), "{error}");
    let not_appended = soon(unreachable.append(vec![record("x")], None)).await.pop().unwrap().unwrap_err();
    assert!(!not_appended.is_unknown());
}

#[tokio::test]
async fn errors_and_descriptions_of_nats_contain_no_password() {
    let Some(server) = NatsServer::start_with(&["--user", "ada", "--pass", "s3cret"]) else { return };
    let wrong = Nats::new(&server.url().replace("nats://", "nats://ada:wr0ng@"), "n").unwrap();
    let unreachable = Nats::new("nats://ada:wr0ng@127.0.0.1:1", "n").unwrap();
    for log in [wrong, unreachable] {
        let error = soon(log.state(None)).await.unwrap_err();
        for text in [format!("{error} {error:?}"), log.describe(), format!("{log:?}")] {
            assert!(!text.contains("wr0ng"), "{text}");
        }
    }
    for invalid in ["http://ada:wr0ng@host", "ws://ada:wr0ng@host"] {
        let error = Nats::new(invalid, "n").unwrap_err();
        assert!(!format!("{error} {error:?}").contains("wr0ng"), "{error}");
    }
    Nats::new("", "n").unwrap_err();
}

/// The broker already has a stream of that name, with settings that would lose records.
#[tokio::test]
async fn a_broker_stream_that_would_lose_records_is_rejected() {
    let Some(server) = NatsServer::start() else { return };
    for (name, setting) in
        [("a", "\"retention\":\"interest\""), ("b", "\"max_msgs_per_subject\":1"), ("c", "\"discard\":\"new\"")]
    {
        let config =
            format!("{{\"name\":\"tower-sse-log_{name}\",\"subjects\":[\"{name}\"],\"storage\":\"file\",{setting}}}");
        server.api(&format!("STREAM.CREATE.tower-sse-log_{name}"), &config).await;
        let log = nats_log(&server, name);
        let refused = soon(log.append(vec![record("x")], None)).await.pop().unwrap().unwrap_err();
        assert!(refused.is_rejected() && refused.to_string().contains("tower-sse-log"), "{refused}");
    }
}

/// Any instance may detect the rollback. A position never means two records, and the values are
/// those of the restored log.
#[tokio::test]
async fn a_log_that_was_rolled_back_begins_a_new_epoch_and_keeps_its_values() {
    let Some(mut server) = NatsServer::start() else { return };
    let log = || nats_log(&server, "n");
    let (one, two) = (log(), log());
    let before = append(&one, vec![record("1"), value("2", "kept")]).await;
    server.kill();
    let saved = server.save();
    server.restart();
    soon(async { while one.append(vec![value("3", "lost")], None).await[0].is_err() {} }).await;
    let seen = append(&one, vec![record("4")]).await[0];
    assert_eq!((seen.epoch, soon(two.state(None)).await.unwrap().last), (before[0].epoch, seen.sequence));
    server.kill();
    server.restore(&saved);
    server.restart();
    // The first append has no seen position, and the later query of the state has one.
    let place = soon(async {
        loop {
            if let Ok(place) = one.append(vec![value("new", "kept"), value("newer", "other")], None).await.remove(1) {
                break place;
            }
        }
    })
    .await;
    assert_ne!(place.epoch, seen.epoch);
    let state = soon(two.state(Some(seen))).await.unwrap();
    assert_eq!(state.epoch, place.epoch, "one of them has set the epoch");
    let values = values(&two).await;
    assert_eq!(values.values().collect::<Vec<_>>(), ["new", "newer"]);
}

/// An administrator deletes the stream while clients are connected.
#[tokio::test]
async fn a_deleted_stream_is_created_again_in_a_new_epoch() {
    let Some(server) = NatsServer::start() else { return };
    let (one, two) = (nats_log(&server, "n"), nats_log(&server, "n"));
    let before = append(&one, vec![value("1", "a"), record("2")]).await;
    soon(two.state(None)).await.unwrap();
    let mut tail = two.tail(2);
    assert!(futures::poll!(tail.next()).is_pending());
    server.api("STREAM.DELETE.tower-sse-log_n", "").await;
    let place = append(&one, vec![record("new")]).await[0];
    assert!(place.epoch != before[0].epoch && place.sequence == 1, "{place:?}");
    // The other client still has the old epoch, and learns the new one from its first append.
    assert_eq!(append(&two, vec![record("newer")]).await, [LogPosition::new(place.epoch, 2)]);
    assert_eq!(soon(two.state(None)).await.unwrap(), LogState::new(place.epoch, 1, 2));
    assert!(values(&two).await.is_empty());
    assert!(soon(tail.next()).await.unwrap().is_err());
}

/// Clients that start at the same time agree on one epoch.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_of_several_simultaneous_starts_sets_the_epoch() {
    let Some(server) = NatsServer::start() else { return };
    for round in 0..10 {
        let logs: Vec<_> = (0..8).map(|_| nats_log(&server, &format!("n{round}"))).collect();
        let places = futures::future::join_all(logs.iter().map(|log| append(log, vec![record("x")]))).await;
        let mut places: Vec<_> = places.into_iter().flatten().collect();
        places.sort_unstable_by_key(|place| place.sequence);
        assert!(places.iter().all(|place| place.epoch == places[0].epoch), "{places:?}");
        assert_eq!(places.iter().map(|place| place.sequence).collect::<Vec<_>>(), (1..=8).collect::<Vec<_>>());
    }
}

/// The hub is not ready, and a publish fails with a known outcome.
#[tokio::test]
async fn a_server_without_jetstream_is_an_error_that_names_jetstream() {
    let Some(server) = NatsServer::start_without_jetstream() else { return };
    let log = Nats::new(&server.url(), "n").unwrap().timeout(Duration::from_millis(500));
    let error = soon(log.state(None)).await.unwrap_err();
    assert!(error.to_string().contains("JetStream"), "{error}");
    let hub = tower_sse::Hub::builder().backplane(log).build().unwrap();
    let error = hub.topic("t").publish(tower_sse::Event::unnamed("x")).await.unwrap_err();
    assert!(error.is_unavailable() && !error.is_unknown(), "{error}");
    assert!(!hub.is_ready());
}

/// The server may read from a replica that does not have the newest records yet.
#[tokio::test]
async fn a_read_of_a_replica_that_is_behind_proves_nothing_about_its_records() {
    let Some(server) = NatsServer::start() else { return };
    append(&nats_log(&server, "n"), vec![record("1"), record("2"), record("3")]).await;
    let behind = announcing(SINGLE, &server, |_, json| set_to_zero(json, "num_pending")).await;
    assert_eq!(soon(behind.state(None)).await.unwrap().last, 3);
    assert_eq!(soon(behind.range(1, ReadLimit::records(10))).await.unwrap(), Range::NotYet);
    assert_eq!(range(&behind, 3, 10).await, []);
}

/// An administrator deletes single records.
#[tokio::test]
async fn a_read_ends_before_a_deleted_record_and_the_next_read_continues_after_it() {
    let Some(server) = NatsServer::start() else { return };
    let log = nats_log(&server, "n");
    append(&log, ["1", "2", "3", "4", "5"].map(record).into()).await;
    for number in [2, 5] {
        let deleted = server.api("STREAM.MSG.DELETE.tower-sse-log_n", &format!("{{\"seq\":{number}}}")).await;
        assert_eq!(deleted["success"], true, "{deleted}");
    }
    let read = async |after| {
        let records = range(&log, after, 10).await;
        records.iter().map(|stored| stored.sequence).collect::<Vec<_>>()
    };
    assert_eq!((read(0).await, read(1).await, read(4).await), (vec![1], vec![3, 4], vec![]));
}

/// In a cluster, the answer to a repeated key may come before the first record with the key has its
/// number.
#[tokio::test]
async fn a_repeated_key_without_a_number_is_an_unknown_outcome() {
    let Some(server) = NatsServer::start() else { return };
    let mut once = record("once");
    once.idempotency_key = Some("key".into());
    append(&nats_log(&server, "n"), vec![once.clone()]).await;
    let log = announcing(SINGLE, &server, |_, json| set_to_zero(json, "seq")).await;
    let error = soon(log.append(vec![once], None)).await.remove(0).unwrap_err();
    assert!(error.is_unknown(), "{error}");
}

/// The clocks of two instances may differ, so an end time would be wrong on one of them.
#[tokio::test]
async fn a_value_that_is_put_once_has_a_lifetime_and_no_end_time() {
    let Some(server) = NatsServer::start() else { return };
    let log = nats_log(&server, "n");
    let mut stored = Vec::new();
    for _ in 0..2 {
        soon(log.put_once("key", Bytes::from_static(b"ticket"), Duration::from_secs(60))).await.unwrap();
        let last = format!(r#"{{"last_by_subj":"tower-sse.n.d.{}"}}"#, sha256("key"));
        let found = server.api("STREAM.MSG.GET.tower-sse-deposits_n", &last).await;
        stored.push(found["message"]["data"].as_str().unwrap().to_owned());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(stored[0], stored[1]);
    assert_eq!(soon(log.take("key")).await.unwrap(), Some(Bytes::from_static(b"ticket")));
}

fn sha256(text: &str) -> String {
    let hash = ring::digest::digest(&ring::digest::SHA256, text.as_bytes());
    hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}
