//! Answers that a member of a NATS cluster may give: a description of a stream without a leader, a
//! number that is too low, a stream or a message that a new leader does not know yet, and a replica
//! that is behind. A proxy in front of a single server rewrites its answers, see `nats_rewrites`.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::future::join_all;
use serde_json::{Value as Json, json};
use tower_sse::backplane::{
    Backplane, BackplaneError, Begun, JournalAppend, JournalId, Journals as _, LogPosition, LogState, Nats, NewRecord,
    Range, ReadLimit, Value,
};
use tower_sse::{Cursor, Event, Hub, SubscriberItem, Subscription};

use crate::kit::broker::{REQUEST_LIMIT, nats_log, range};
use crate::kit::{soon, until};
use crate::nats_rewrites::{
    Announced, LEADER, MEMBER, SINGLE, announcing, count_down, is_info, is_info_of, is_message_of, lower, member,
    set_no_message, set_no_stream, set_to_zero,
};
use crate::nats_server::NatsServer;

fn record(text: &str) -> NewRecord {
    NewRecord::new(Bytes::from(text.to_owned()))
}

async fn append(log: &Nats, records: Vec<NewRecord>) -> Vec<LogPosition> {
    soon(log.append(records, None)).await.into_iter().map(Result::unwrap).collect()
}

/// Appends 120 records, and returns the state after them.
async fn filled(server: &NatsServer) -> (Nats, LogState) {
    let log = nats_log(server, "n");
    append(&log, (0..120).map(|n| record(&n.to_string())).collect()).await;
    let state = soon(log.state(None)).await.unwrap();
    assert_eq!(state.last, 120);
    (log, state)
}

/// Appends 120 records and a value, and returns the state before the value.
async fn filled_with_value(server: &NatsServer) -> (Nats, LogState) {
    let (log, state) = filled(server).await;
    let mut value = record("value");
    value.values = vec![Value::new("id", false)];
    append(&log, vec![value]).await;
    server.wait_until_copied("n", 1).await;
    (log, state)
}

/// Begins a run with two entries.
async fn begun_run(log: &Nats) -> JournalId {
    let Begun::New(id) = soon(log.begin_journal("run", "1".into())).await.unwrap() else { panic!() };
    soon(log.append_journal("run", id, 1, "2".into(), None)).await.unwrap();
    id
}

/// Checks that a read fails for now, and has a known outcome.
fn assert_unavailable<T: std::fmt::Debug>(read: Result<T, BackplaneError>) {
    let error = read.unwrap_err();
    assert!(!error.is_rejected() && !error.is_unknown(), "{error}");
}

fn seen(state: LogState) -> Option<LogPosition> {
    Some(LogPosition::new(state.epoch, state.last))
}

/// Every replica of a stream answers while the stream has no leader.
#[tokio::test]
async fn a_description_without_a_leader_is_an_error_and_a_number_that_is_too_low_begins_no_epoch() {
    let Some(server) = NatsServer::start() else { return };
    let (log, before) = filled(&server).await;
    let hub = Hub::builder().backplane(log.clone()).build().unwrap();
    until(|| hub.is_ready()).await;
    let mut page = hub.subscribe(Subscription::anonymous().topic("t"), Cursor::Absent).unwrap();
    let lower_with = |leader: &'static str| {
        move |_: Option<&str>, json: &mut Json| {
            lower(json);
            if is_info_of(json, "tower-sse-log_n") {
                json["cluster"]["leader"] = json!(leader);
            }
        }
    };
    let leaderless = member(&server, lower_with("")).await;
    for _ in 0..2 {
        let error = soon(leaderless.state(seen(before))).await.unwrap_err();
        assert!(!error.is_rejected() && error.to_string().contains("has no leader"), "{error}");
    }
    assert_eq!(soon(log.state(seen(before))).await.unwrap(), before);

    // Once for the session that is opened, and once for the session that is open.
    let behind = member(&server, lower_with(LEADER)).await;
    for proofs in 1..=2 {
        let state = soon(behind.state(seen(before))).await.unwrap();
        assert_eq!((state.epoch, state.last), (before.epoch, before.last + proofs));
    }
    append(&behind, vec![record(r#"{"v":1,"to":{"topics":["other"]},"data":"x"}"#)]).await;
    // The record without an audience is no loss for an instance.
    hub.topic("t").publish(Event::unnamed("end")).await.unwrap();
    loop {
        match soon(page.next()).await.unwrap() {
            SubscriberItem::Event(event) => break assert_eq!(event.data, "end"),
            SubscriberItem::Gap { topics, .. } => panic!("a gap without loss: {topics:?}"),
            _ => {}
        }
    }
}

#[tokio::test]
async fn a_log_of_a_cluster_that_has_lost_records_begins_one_epoch() {
    // A proof is appended at the number of the first lost record.
    for (lost, is_open) in [1, 2, 3, 50].into_iter().flat_map(|lost| [(lost, false), (lost, true)]) {
        let Some(server) = NatsServer::start() else { return };
        let (log, before) = filled(&server).await;
        let member = member(&server, |_, _| {}).await;
        if is_open {
            assert_eq!(soon(member.state(None)).await.unwrap(), before);
        }
        let seen = Some(LogPosition::new(before.epoch, before.last + lost));
        let state = soon(member.state(seen)).await.unwrap();
        assert_ne!(state.epoch, before.epoch, "{lost} {is_open}");
        assert_eq!(soon(member.state(seen)).await.unwrap().epoch, state.epoch);
        assert_eq!(soon(log.state(seen)).await.unwrap().epoch, state.epoch);
        // A position above every number makes the log begin another epoch, as the hub requires when
        // it has found other records at the same numbers.
        let all = Some(LogPosition::new(state.epoch, u64::from(u32::MAX)));
        assert_ne!(soon(member.state(all)).await.unwrap().epoch, state.epoch);
    }
}

/// Each adapter appends its own record, and only the first of these records has a lost number.
#[tokio::test]
async fn three_adapters_that_find_the_same_loss_at_once_begin_one_epoch() {
    for lost in [1, 2, 3] {
        let Some(server) = NatsServer::start() else { return };
        let (_, before) = filled(&server).await;
        let member = async |_| member(&server, |_, _| {}).await.timeout(REQUEST_LIMIT);
        let members: Vec<_> = join_all((0..3).map(member)).await;
        let seen = Some(LogPosition::new(before.epoch, before.last + lost));
        let states = || async { join_all(members.iter().map(|member| soon(member.state(seen)))).await };
        let first = states().await.into_iter().map(Result::unwrap);
        let begun: BTreeSet<_> = first.map(|state| state.epoch).filter(|epoch| *epoch != before.epoch).collect();
        let now: BTreeSet<_> = states().await.into_iter().map(|state| state.unwrap().epoch).collect();
        assert_eq!((begun.len(), &now), (1, &begun), "{lost}");
    }
}

/// The record that proved the loss makes the log longer.
#[tokio::test]
async fn a_loss_is_remembered_if_the_new_epoch_cannot_begin_at_once() {
    let Some(server) = NatsServer::start() else { return };
    let (_, before) = filled(&server).await;
    let has_leader = Arc::new(AtomicBool::new(true));
    let bucket = Arc::clone(&has_leader);
    let member = member(&server, move |_, json| {
        if is_info_of(json, "KV_tower-sse_n") && !bucket.load(Ordering::SeqCst) {
            json["cluster"]["leader"] = json!("");
        }
    })
    .await;
    assert_eq!(soon(member.state(None)).await.unwrap(), before);
    has_leader.store(false, Ordering::SeqCst);
    let seen = Some(LogPosition::new(before.epoch, before.last + 1));
    let error = soon(member.state(seen)).await.unwrap_err();
    assert!(!error.is_rejected(), "{error}");
    has_leader.store(true, Ordering::SeqCst);
    assert_ne!(soon(member.state(seen)).await.unwrap().epoch, before.epoch);
}

/// Other instances have appended records since the loss, so the number of the proof is high enough.
#[tokio::test]
async fn a_record_of_the_adapter_that_was_replaced_begins_a_new_epoch_after_the_log_has_grown() {
    let Some(server) = NatsServer::start() else { return };
    let (_, before) = filled(&server).await;
    let is_lost = Arc::new(AtomicBool::new(false));
    let lost = Arc::clone(&is_lost);
    let member = member(&server, move |_, json| {
        if !lost.load(Ordering::SeqCst) {
            return;
        }
        lower(json);
        if is_message_of(json, ".r.") && json["message"]["seq"] == 121 {
            json["message"]["data"] = json!("b3RoZXI=");
        }
    })
    .await;
    let own = append(&member, vec![record("own")]).await[0];
    assert_eq!((own.epoch, own.sequence), (before.epoch, 121));
    is_lost.store(true, Ordering::SeqCst);
    assert_ne!(soon(member.state(Some(own))).await.unwrap().epoch, before.epoch);
}

/// A single server of many versions describes itself as the leader of a cluster without a name.
#[tokio::test]
async fn a_single_server_that_names_itself_as_the_leader_is_not_a_cluster() {
    let Some(server) = NatsServer::start() else { return };
    let (_, before) = filled(&server).await;
    let asks = Arc::new(AtomicUsize::new(0));
    let asked = Arc::clone(&asks);
    let rewrite = move |subject: Option<&str>, json: &mut Json| {
        if is_info(json) && json["config"].is_object() {
            json["cluster"] = json!({ "leader": "NBEN4XJ3" });
        }
        asked.fetch_add(usize::from(subject == Some("$JS.API.STREAM.INFO.tower-sse-shared_n")), Ordering::SeqCst);
    };
    let log = announcing(SINGLE, &server, rewrite).await;
    assert_eq!(soon(log.state(None)).await.unwrap(), before);
    // The adapter asks once for a stream that does not exist.
    server.api("STREAM.DELETE.tower-sse-shared_n", "").await;
    asks.store(0, Ordering::SeqCst);
    assert_eq!(soon(log.get_shared("key")).await.unwrap(), None);
    assert_eq!(asks.load(Ordering::SeqCst), 1);
    // The description of the log proves a loss, without a record that is appended.
    let lost = Some(LogPosition::new(before.epoch, before.last + 5));
    let state = soon(log.state(lost)).await.unwrap();
    assert_eq!((state.epoch != before.epoch, state.last), (true, before.last));
}

/// The log has removed these records, so no server is behind.
#[tokio::test]
async fn records_that_were_removed_from_a_cluster_are_no_error() {
    let Some(server) = NatsServer::start() else { return };
    let log = member(&server, |_, _| {}).await;
    let records = (0..20).map(|n| record(&format!(r#"{{"v":1,"to":{{"topics":["t"]}},"data":"{n}"}}"#)));
    append(&log, records.collect()).await;
    let hub = Hub::builder().backplane(log.clone()).build().unwrap();
    until(|| hub.is_ready() && hub.position().to_string().ends_with(".20")).await;
    let deleted = server.api("STREAM.MSG.DELETE.tower-sse-log_n", "{\"seq\":20}").await;
    assert_eq!(deleted["success"], true, "{deleted}");
    assert_eq!(range(&log, 19, 10).await, []);
    let purged = server.api("STREAM.PURGE.tower-sse-log_n", "").await;
    assert_eq!(purged["success"], true, "{purged}");
    assert_eq!(range(&log, 0, 10).await, []);
    let state = soon(log.state(None)).await.unwrap();
    assert_eq!((state.first, state.last), (21, 20));
    // A page with an old position.
    let position = hub.position().to_string();
    let cursor = Cursor::parse(position.replace(".20", ".7").as_bytes());
    let mut page = hub.subscribe(Subscription::anonymous().topic("t"), cursor).unwrap();
    let mut has_gap = false;
    loop {
        match soon(page.next()).await.unwrap() {
            SubscriberItem::Gap { .. } => has_gap = true,
            SubscriberItem::Live(_) => break assert!(has_gap),
            _ => {}
        }
    }
}

#[tokio::test]
async fn a_description_whose_number_is_too_low_deletes_no_value() {
    let Some(server) = NatsServer::start() else { return };
    filled_with_value(&server).await;
    let created = async || server.api("STREAM.INFO.tower-sse-values_n", "").await["created"].clone();
    let before = created().await;
    let behind = member(&server, |_, json| lower(json)).await;
    soon(behind.state(None)).await.unwrap();
    assert_eq!((created().await, soon(behind.values()).await.unwrap().len()), (before, 1));
}

#[tokio::test]
async fn a_log_of_a_cluster_is_created_within_a_short_time_limit() {
    let Some(server) = NatsServer::start() else { return };
    let log = member(&server, |_, _| {}).await.timeout(Duration::from_millis(250));
    let state = soon(async {
        loop {
            if let Ok(state) = log.state(None).await {
                return state;
            }
        }
    })
    .await;
    assert_eq!(state.last, 0);
}

/// After an election, a server may begin to copy values much later than it answers requests.
#[tokio::test]
async fn a_log_of_a_cluster_is_opened_although_its_values_are_not_copied_yet() {
    let Some(server) = NatsServer::start() else { return };
    let (_, before) = filled_with_value(&server).await;
    let new_leader = member(&server, |_, json| {
        if is_info_of(json, "tower-sse-values_n") {
            json["sources"][0]["active"] = json!(-1);
        }
    })
    .await;
    assert_eq!(append(&new_leader, vec![record("x")]).await[0].epoch, before.epoch);
    assert_eq!(soon(new_leader.values()).await.unwrap().len(), 1);
}

/// A server that has just become the leader of the cluster may not know a stream yet.
#[tokio::test]
async fn a_stream_that_a_new_leader_does_not_know_yet_is_neither_created_again_nor_lost() {
    let Some(server) = NatsServer::start() else { return };
    let (log, before) = filled_with_value(&server).await;
    let unknown = |times: usize| {
        let times = AtomicUsize::new(times);
        move |_: Option<&str>, json: &mut Json| {
            if is_info_of(json, "tower-sse-log_n") && count_down(&times) {
                set_no_stream(json);
            }
        }
    };
    for times in [2, usize::MAX] {
        let new_leader = member(&server, unknown(times)).await.timeout(Duration::from_secs(1));
        match soon(new_leader.state(None)).await {
            Ok(state) => assert!(times == 2 && state.epoch == before.epoch, "{times} {state:?}"),
            Err(error) => assert!(times > 2 && !error.is_rejected(), "{times} {error}"),
        }
        assert_eq!(soon(log.state(None)).await.unwrap().epoch, before.epoch, "{times}");
        assert_eq!(soon(log.values()).await.unwrap().len(), 1, "{times}");
    }
    // The claim of the adapter that did not find the log does not stop others for long.
    assert_eq!(soon(nats_log(&server, "n").state(None)).await.unwrap().epoch, before.epoch);
}

/// Up to version 2.10, a replica that is behind begins with an older record.
#[tokio::test]
async fn a_tail_skips_records_that_a_replica_delivers_again() {
    let Some(server) = NatsServer::start() else { return };
    filled(&server).await;
    let clamped = member(&server, |subject, json| {
        if subject.is_some_and(|subject| subject.starts_with("$JS.API.CONSUMER.CREATE.tower-sse-log_n")) {
            json["config"]["opt_start_seq"] = json!(96);
        }
    })
    .await;
    let mut tail = clamped.tail(100);
    let batch = soon(tail.next()).await.unwrap().unwrap();
    assert_eq!(batch[0].sequence, 101);
    let range = range(&clamped, 100, 3).await;
    assert_eq!(range.iter().map(|stored| stored.sequence).collect::<Vec<_>>(), [101, 102, 103]);
}

/// Neither the replica nor a leader that was replaced has the records.
#[tokio::test]
async fn records_that_a_replica_does_not_have_yet_are_not_missing_and_values_are_an_error() {
    let Some(server) = NatsServer::start() else { return };
    filled_with_value(&server).await;
    let empty = member(&server, |_, json| set_to_zero(json, "num_pending")).await;
    assert_eq!(soon(empty.range(100, ReadLimit::records(10))).await.unwrap(), Range::NotYet);
    assert_unavailable(soon(empty.values()).await);
    let replaced = member(&server, |_, json| {
        set_to_zero(json, "num_pending");
        if is_message_of(json, ".r.") {
            set_no_message(json);
        }
        lower(json);
    })
    .await;
    let end = soon(replaced.state(None)).await.unwrap().last;
    assert_eq!(soon(replaced.range(100, ReadLimit::records(10))).await.unwrap(), Range::NotYet);
    // The log ends here.
    assert_eq!(range(&replaced, end, 10).await, []);
}

/// A leader that was replaced without knowing it does not have the newest messages.
#[tokio::test]
async fn a_ticket_and_a_run_that_one_read_does_not_find_are_read_again_after_a_write() {
    let Some(server) = NatsServer::start() else { return };
    let log = nats_log(&server, "n");
    soon(log.put_once("ticket", "ada".into(), Duration::from_secs(60))).await.unwrap();
    let id = begun_run(&log).await;
    // The first request for a message of each of these subjects finds none.
    let missing = || {
        let left = [".d.", ".j."].map(|subject| (subject, AtomicUsize::new(1)));
        move |_: Option<&str>, json: &mut Json| {
            if left.iter().any(|(subject, left)| is_message_of(json, subject) && count_down(left)) {
                set_no_message(json);
            }
        }
    };
    let replaced = member(&server, missing()).await;
    assert_eq!(soon(replaced.take("ticket")).await.unwrap(), Some("ada".into()));
    assert_eq!(soon(replaced.take("ticket")).await.unwrap(), None);
    let page = soon(replaced.read_journal("run", Some(id), 0, 1 << 20)).await.unwrap().unwrap();
    assert_eq!((page.entries.len(), page.last), (2, 2));
    let replaced = member(&server, missing()).await;
    let appended = soon(replaced.append_journal("run", id, 2, "3".into(), None)).await.unwrap();
    assert_eq!(appended, JournalAppend::Appended);
    // What does not exist is not found.
    assert_eq!(soon(replaced.take("other")).await.unwrap(), None);
    assert_eq!(soon(replaced.read_journal("other", None, 0, 1 << 20)).await.unwrap(), None);
    assert_eq!(soon(replaced.append_journal("run", id, 7, "8".into(), None)).await.unwrap(), JournalAppend::Conflict);
}

/// A server that has just become the leader of the cluster may not know the stream of runs yet.
#[tokio::test]
async fn a_run_whose_stream_is_not_found_is_read_again_after_a_write() {
    let Some(server) = NatsServer::start() else { return };
    let log = nats_log(&server, "n");
    let id = begun_run(&log).await;
    let unknown = || async {
        let times = Arc::new(AtomicUsize::new(0));
        let left = Arc::clone(&times);
        let member = member(&server, move |_, json| {
            if is_info_of(json, "tower-sse-journals_n") && count_down(&left) {
                set_no_stream(json);
            }
        })
        .await;
        soon(member.state(None)).await.unwrap();
        times.store(3, Ordering::SeqCst);
        member
    };
    let page = soon(unknown().await.read_journal("run", Some(id), 0, 1 << 20)).await.unwrap().unwrap();
    assert_eq!((page.entries.len(), page.last), (2, 2));
    let appended = soon(unknown().await.append_journal("run", id, 2, "3".into(), None)).await.unwrap();
    assert_eq!(appended, JournalAppend::Appended);
}

/// A leader that was replaced has the message of an earlier ticket of the same key, or lacks the
/// message that says that the ticket was taken.
#[tokio::test]
async fn a_ticket_that_one_read_describes_as_taken_or_not_yet_as_taken_is_read_again_after_a_write() {
    let Some(server) = NatsServer::start() else { return };
    let log = nats_log(&server, "n");
    for wrong in [0, 1] {
        soon(log.put_once("ticket", "ada".into(), Duration::from_secs(60))).await.unwrap();
        let reads = AtomicUsize::new(0);
        let replaced = member(&server, move |_, json| {
            if !is_message_of(json, ".d.") || reads.fetch_add(1, Ordering::SeqCst) != wrong {
                return;
            }
            if wrong == 0 {
                json["message"].as_object_mut().unwrap().remove("data");
            } else {
                set_no_message(json);
            }
        })
        .await;
        assert_eq!(soon(replaced.take("ticket")).await.unwrap(), Some("ada".into()), "{wrong}");
        assert_eq!(soon(replaced.take("ticket")).await.unwrap(), None, "{wrong}");
    }
}

#[tokio::test]
async fn an_old_server_in_a_cluster_and_replicas_on_a_single_server_are_rejected_with_the_reason() {
    let Some(server) = NatsServer::start() else { return };
    let old = Announced { version: "2.12.1", ..MEMBER };
    let old = announcing(old, &server, |_, _| {}).await;
    let error = soon(old.state(None)).await.unwrap_err();
    let text = error.to_string();
    assert!(error.is_rejected() && text.contains("2.12.1") && text.contains("2.12.2"), "{text}");
    assert!(text.contains("may omit acknowledged records"), "{text}");
    let replicated = Nats::new(&server.url(), "r").unwrap().replicas(3).unwrap();
    let error = soon(replicated.state(None)).await.unwrap_err();
    assert!(error.is_rejected() && error.to_string().contains("replicas"), "{error}");
    for replicas in [0, 6] {
        let error = Nats::new(&server.url(), "r").unwrap().replicas(replicas).unwrap_err();
        assert!(error.is_rejected() && error.to_string().contains(&replicas.to_string()), "{error}");
    }
}
