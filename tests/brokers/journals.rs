//! Journals, the storage of runs: properties of one broker, and the faults of brokers. The contract
//! suite of the test kit has the rules that every adapter keeps.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tower_sse::backplane::{
    Backplane, Begun, JournalAppend, JournalId, JournalPage, Journals, Memory, Nats, NewRecord, Redis,
};

use crate::faulty::Faulty;
use crate::kit::broker::{Broker, BrokerServer, for_each_broker, nats_log};
use crate::kit::soon;
use crate::nats_server::NatsServer;
use crate::proxy::{Mode, Proxy};
use crate::redis_server::{FORGETFUL, RedisServer};

const KEY: &str = "answers/7";
const HOUR: Option<Duration> = Some(Duration::from_secs(3600));
const ALL: usize = usize::MAX;

async fn begin(log: &dyn Backplane, key: &str, first: &str) -> Begun {
    soon(log.begin_journal(key, Bytes::from(first.to_owned()))).await.unwrap()
}

async fn begin_new(log: &dyn Backplane, key: &str, first: &str) -> JournalId {
    let begun = begin(log, key, first).await;
    let Begun::New(id) = begun else { panic!("{begun:?}") };
    id
}

/// Appends an entry to the journal of [`KEY`].
async fn append(log: &dyn Backplane, id: JournalId, after: u64, entry: &str, close: Option<Duration>) -> JournalAppend {
    soon(log.append_journal(KEY, id, after, Bytes::from(entry.to_owned()), close)).await.unwrap()
}

async fn read(log: &dyn Backplane, key: &str, id: Option<JournalId>, after: u64) -> Option<JournalPage> {
    soon(log.read_journal(key, id, after, ALL)).await.unwrap()
}

/// Returns the entries of the current journal of a key, or an empty list without a journal.
async fn entries(log: &dyn Backplane, key: &str) -> Vec<String> {
    let page = read(log, key, None, 0).await;
    page.map_or_else(Vec::new, |page| texts(&page.entries))
}

fn texts(entries: &[Bytes]) -> Vec<String> {
    entries.iter().map(|entry| String::from_utf8(entry.to_vec()).unwrap()).collect()
}

fn page(id: JournalId, entries: &[&str], last: u64, is_closed: bool) -> JournalPage {
    let entries = entries.iter().map(|entry| Bytes::from((*entry).to_owned())).collect();
    JournalPage::new(id, entries, last, is_closed)
}

use JournalAppend::{Appended, Conflict};

async fn journals_of_two_namespaces_are_independent(broker: impl Broker) {
    let (log, other) = (broker.log("n"), broker.log("other"));
    let one = begin_new(&log, KEY, "one").await;
    let elsewhere = begin_new(&other, KEY, "elsewhere").await;
    assert_eq!(append(&log, one, 1, "one end", HOUR).await, Appended);
    assert_eq!(read(&other, KEY, None, 0).await, Some(page(elsewhere, &["elsewhere"], 1, false)));
    assert_eq!(read(&log, KEY, None, 0).await, Some(page(one, &["one", "one end"], 2, true)));
}

for_each_broker!(journals_of_two_namespaces_are_independent(broker): redis, nats, postgres);

/// NATS accepts 1 MiB by default.
async fn a_large_entry_is_stored_or_rejected_with_the_limit(log: impl Backplane) {
    let large = Bytes::from(vec![b'x'; (1 << 20) - 1024]);
    let Begun::New(id) = soon(log.begin_journal(KEY, large.clone())).await.unwrap() else { panic!() };
    assert!(read(&log, KEY, None, 0).await.unwrap().entries == [&large[..]]);
    assert_eq!(soon(log.begin_journal(KEY, large.clone())).await.unwrap(), Begun::New(id));
    let mut count = 1;
    for size in [1 << 20, (1 << 20) + 1, 4 << 20] {
        let appended = soon(log.append_journal(KEY, id, count, vec![b'y'; size].into(), None)).await;
        match appended {
            Ok(appended) => {
                assert_eq!(appended, Appended);
                count += 1;
            }
            Err(error) => assert!(error.is_rejected() && error.to_string().contains("max_payload"), "{error}"),
        }
    }
    assert_eq!(append(&log, id, count, "small", None).await, Appended);
    let first = soon(log.read_journal(KEY, None, 0, 1000)).await.unwrap().unwrap();
    assert_eq!((first.entries, first.last), (vec![large], count + 1));
    let last = read(&log, KEY, None, count).await.unwrap();
    assert_eq!(texts(&last.entries), ["small"]);
    let Err(error) = soon(log.begin_journal("answers/8", vec![b'y'; 4 << 20].into())).await else { return };
    assert!(error.is_rejected() && error.to_string().contains("max_payload"), "{error}");
}

for_each_broker!(a_large_entry_is_stored_or_rejected_with_the_limit(log): memory, redis, nats, postgres);

/// The results of random calls, on two connections, are those of `Memory`.
async fn random_calls_have_the_results_of_the_memory_adapter(broker: impl Broker) {
    let (logs, model) = ([broker.log("n"), broker.log("n")], Memory::new());
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut below = |limit: u64| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random % limit
    };
    // Pairs of ids of equal journals.
    let unknown = JournalId::new(7).unwrap();
    let mut ids = vec![(unknown, unknown)];
    for step in 0..1_500 {
        let log = &logs[below(2) as usize];
        let key = ["a", "b"][below(2) as usize];
        let entry = Bytes::from(["x", "y", "z"][below(3) as usize]);
        let current = soon(model.read_journal(key, None, 0, 0)).await.unwrap();
        let last = current.as_ref().map_or(0, |page| page.last);
        // Usually the current journal of the key, else any of the newest journals.
        let known = ids.iter().copied().find(|(id, _)| current.as_ref().is_some_and(|page| page.id == *id));
        let any = ids[ids.len() - 1 - below(ids.len().min(4) as u64) as usize];
        let (expected, id) = known.filter(|_| below(4) > 0).unwrap_or(any);
        let after = (last + 1).saturating_sub(below(4));
        match below(10) {
            0..2 => {
                let begun = soon(log.begin_journal(key, entry.clone())).await.unwrap();
                match (soon(model.begin_journal(key, entry)).await.unwrap(), begun) {
                    (Begun::New(expected), Begun::New(id)) if !ids.contains(&(expected, id)) => {
                        ids.push((expected, id));
                    }
                    (Begun::New(expected), Begun::New(id)) | (Begun::Active(expected), Begun::Active(id)) => {
                        assert!(ids.contains(&(expected, id)), "step {step}");
                    }
                    different => panic!("step {step}: {different:?}"),
                }
            }
            2..8 => {
                let close = if below(5) == 0 { HOUR } else { None };
                let expected = soon(model.append_journal(key, expected, after, entry.clone(), close)).await.unwrap();
                let appended = soon(log.append_journal(key, id, after, entry, close)).await.unwrap();
                assert_eq!(appended, expected, "step {step}");
            }
            _ => {
                let (is_given, max_bytes) = (below(2) == 0, below(6) as usize);
                let expected = model.read_journal(key, is_given.then_some(expected), after, max_bytes).await.unwrap();
                let page = soon(log.read_journal(key, is_given.then_some(id), after, max_bytes)).await.unwrap();
                assert!(
                    expected.as_ref().zip(page.as_ref()).is_none_or(|(one, two)| ids.contains(&(one.id, two.id))),
                    "step {step}"
                );
                let content = |page: Option<JournalPage>| page.map(|page| (page.entries, page.last, page.is_closed));
                assert_eq!(content(page), content(expected), "step {step}");
            }
        }
    }
    assert!(ids.len() > 20, "the calls began too few journals: {}", ids.len());
}

for_each_broker!(random_calls_have_the_results_of_the_memory_adapter(broker): redis, nats, postgres);

/// The records of other topics are in the common log, which has a maximum length.
async fn records_of_the_log_remove_no_entry_of_a_journal(log: impl Backplane, records: usize) {
    let id = begin_new(&log, KEY, "first").await;
    for after in 1..10 {
        for _ in 0..records / 1_000 {
            let batch = (0..1_000).map(|_| NewRecord::new(Bytes::from_static(b"x"))).collect();
            assert!(soon(log.append(batch, None)).await.iter().all(Result::is_ok));
        }
        assert_eq!(append(&log, id, after, &after.to_string(), None).await, Appended);
    }
    let state = soon(log.state(None)).await.unwrap();
    assert!(state.first > state.last / 2, "the log has removed its oldest records: {state:?}");
    assert_eq!(entries(&log, KEY).await, ["first", "1", "2", "3", "4", "5", "6", "7", "8", "9"]);
}

#[tokio::test]
async fn records_of_a_memory_log_remove_no_entry_of_a_journal() {
    records_of_the_log_remove_no_entry_of_a_journal(Memory::new(), 73_000).await;
}

async fn records_of_a_broker_log_remove_no_entry_of_a_journal<B: BrokerServer>(broker: B) {
    let log = B::with_max_records(broker.log("n"), 1_000);
    records_of_the_log_remove_no_entry_of_a_journal(log, 2_000).await;
}

for_each_broker!(records_of_a_broker_log_remove_no_entry_of_a_journal(broker): redis, nats, postgres);

async fn a_journal_survives_a_restart_of_a_durable_broker<B: BrokerServer>(mut broker: B) {
    let log = broker.log("n");
    let id = begin_new(&log, KEY, "first").await;
    assert_eq!(append(&log, id, 1, "second", None).await, Appended);
    broker.kill();
    broker.restart();
    let repeat = soon(retried(|| log.append_journal(KEY, id, 1, Bytes::from_static(b"second"), None))).await;
    assert_eq!(repeat, Appended);
    assert_eq!(append(&log, id, 2, "last", HOUR).await, Appended);
    broker.kill();
    broker.restart();
    let page_after = soon(retried(|| log.read_journal(KEY, Some(id), 0, ALL))).await;
    assert_eq!(page_after, Some(page(id, &["first", "second", "last"], 3, true)));
}

for_each_broker!(a_journal_survives_a_restart_of_a_durable_broker(durable): redis, nats, postgres);

/// Repeats a call until it returns no error.
async fn retried<T, F: Future<Output = Result<T, tower_sse::backplane::BackplaneError>>>(call: impl Fn() -> F) -> T {
    loop {
        if let Ok(done) = call().await {
            return done;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn a_broker_that_has_lost_its_data_has_no_journal<B: BrokerServer>(mut broker: B) {
    let log = broker.log("n");
    let id = begin_new(&log, KEY, "first").await;
    assert_eq!(append(&log, id, 1, "second", None).await, Appended);
    broker.kill();
    broker.restart();
    let appended = soon(retried(|| log.append_journal(KEY, id, 2, Bytes::from_static(b"third"), None))).await;
    assert_eq!(appended, Conflict);
    assert_eq!(read(&log, KEY, None, 0).await, None);
    assert_eq!(read(&log, KEY, Some(id), 0).await, None);
    let next = begin_new(&log, KEY, "next").await;
    assert_eq!(append(&log, next, 1, "more", None).await, Appended);
    assert_eq!(entries(&log, KEY).await, ["next", "more"]);
}

for_each_broker!(a_broker_that_has_lost_its_data_has_no_journal(broker): redis, nats, postgres);

/// The backup was made while the journal was open.
async fn a_journal_of_a_restored_backup_ends_at_its_newest_entry<B: BrokerServer>(mut broker: B) {
    let log = broker.log("n");
    let id = begin_new(&log, KEY, "first").await;
    assert_eq!(append(&log, id, 1, "second", None).await, Appended);
    let saved = broker.save();
    let appended = soon(retried(|| log.append_journal(KEY, id, 2, Bytes::from_static(b"lost"), None))).await;
    assert_eq!(appended, Appended);
    broker.kill();
    broker.roll_back(&saved);
    broker.restart();
    let appended = soon(retried(|| log.append_journal(KEY, id, 3, Bytes::from_static(b"fourth"), None))).await;
    assert_eq!(appended, Conflict);
    assert_eq!(read(&log, KEY, Some(id), 0).await, Some(page(id, &["first", "second"], 2, false)));
    // Another instance ends the run.
    assert_eq!(append(&log, id, 2, "aborted", HOUR).await, Appended);
}

for_each_broker!(a_journal_of_a_restored_backup_ends_at_its_newest_entry(durable): redis, nats, postgres);

async fn calls_to_an_unreachable_broker_fail_in_time(log: impl Backplane) {
    let begun = Instant::now();
    let id = JournalId::new(7).unwrap();
    let error = soon(log.begin_journal(KEY, Bytes::new())).await.unwrap_err();
    assert!(!error.is_unknown() && !error.is_rejected(), "{error}");
    let error = soon(log.append_journal(KEY, id, 1, Bytes::new(), None)).await.unwrap_err();
    assert!(!error.is_unknown() && !error.is_rejected(), "{error}");
    let error = soon(log.read_journal(KEY, None, 0, ALL)).await.unwrap_err();
    assert!(!error.is_unknown() && !error.is_rejected(), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn calls_to_an_unreachable_redis_fail_in_time() {
    calls_to_an_unreachable_broker_fail_in_time(Redis::new("redis://127.0.0.1:1", "n").unwrap()).await;
}

#[tokio::test]
async fn calls_to_an_unreachable_nats_fail_in_time() {
    calls_to_an_unreachable_broker_fail_in_time(Nats::new("nats://127.0.0.1:1", "n").unwrap()).await;
}

/// The broker receives the request, and its answer is held back.
async fn a_call_without_an_answer_has_an_unknown_outcome_and_is_repeated<B: BrokerServer>(broker: B) {
    let proxy = Proxy::start(broker.port()).await;
    let log = B::log_at(proxy.port, "n", Duration::from_secs(2));
    let direct = broker.log("n");
    // The adapter connects.
    let id = begin_new(&log, KEY, "first").await;
    assert_eq!(append(&log, id, 1, "second", None).await, Appended);
    proxy.set(Mode::StallsAnswers);
    let begun = Instant::now();
    let error = soon(log.append_journal(KEY, id, 2, Bytes::from_static(b"third"), None)).await.unwrap_err();
    assert!(error.is_unknown(), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(16), "{:?}", begun.elapsed());
    proxy.set(Mode::Passes);
    assert_eq!(entries(&direct, KEY).await, ["first", "second", "third"]);
    let repeat = soon(retried(|| log.append_journal(KEY, id, 2, Bytes::from_static(b"third"), None))).await;
    assert_eq!(repeat, Appended);
    assert_eq!(append(&log, id, 3, "last", HOUR).await, Appended);
    proxy.set(Mode::StallsAnswers);
    assert!(soon(log.begin_journal(KEY, Bytes::from_static(b"next"))).await.is_err());
    proxy.set(Mode::Passes);
    let Begun::New(next) = soon(retried(|| log.begin_journal(KEY, Bytes::from_static(b"next")))).await else {
        panic!("the repeated call did not begin the journal");
    };
    assert_eq!(read(&direct, KEY, None, 0).await, Some(page(next, &["next"], 1, false)));
}

for_each_broker!(a_call_without_an_answer_has_an_unknown_outcome_and_is_repeated(broker): redis, nats, postgres);

/// A request and its answer take at least 20 ms.
async fn a_long_journal_is_read_in_few_round_trips<B: BrokerServer>(broker: B) {
    let log = Arc::new(broker.log("n"));
    let id = begin_new(&log, KEY, "first").await;
    let entry = |n: u64| Bytes::from(format!("{n:0100}"));
    for after in 1..5_000 {
        let appended = soon(log.append_journal(KEY, id, after, entry(after + 1), None)).await.unwrap();
        assert_eq!(appended, Appended);
    }
    let proxy = Proxy::start(broker.port()).await;
    let log = B::log_at(proxy.port, "n", Duration::from_secs(10));
    read(&log, KEY, None, 4_999).await.unwrap();
    proxy.set(Mode::Delays(Duration::from_millis(10)));
    let begun = Instant::now();
    let all = read(&log, KEY, Some(id), 0).await.unwrap();
    let took = begun.elapsed();
    assert_eq!(all.entries.len(), 5_000);
    assert!(all.entries.iter().zip(1..).skip(1).all(|(found, n)| *found == entry(n)));
    assert!(took < Duration::from_secs(5), "{took:?}");
}

for_each_broker!(a_long_journal_is_read_in_few_round_trips(broker): redis, nats, postgres);

/// Requests are late, fail, or succeed without an answer.
#[tokio::test]
async fn a_writer_that_repeats_failed_calls_stores_each_entry_once() {
    for seed in 0..20 {
        let log = Faulty::new(seed, 300);
        let first = Bytes::from_static(b"0");
        let Begun::New(id) = soon(retried(|| log.begin_journal(KEY, first.clone()))).await else { panic!("{seed}") };
        for after in 1..=50_u64 {
            let (entry, close) = (Bytes::from(after.to_string()), if after == 50 { HOUR } else { None });
            let appended = soon(retried(|| log.append_journal(KEY, id, after, entry.clone(), close))).await;
            assert_eq!(appended, Appended, "{seed}: {after}");
        }
        let mut all = Vec::new();
        while all.len() < 51 {
            let page = soon(retried(|| log.read_journal(KEY, Some(id), all.len() as u64, ALL))).await.unwrap();
            all.extend(texts(&page.entries));
        }
        assert_eq!(all, (0..=50).map(|n| n.to_string()).collect::<Vec<_>>());
    }
}

#[tokio::test(start_paused = true)]
async fn an_open_memory_journal_is_forgotten_a_day_after_its_newest_entry() {
    let (log, hour) = (Memory::new(), Duration::from_secs(3600));
    let id = begin_new(&log, KEY, "first").await;
    tokio::time::sleep(23 * hour).await;
    assert_eq!(append(&log, id, 1, "second", None).await, Appended);
    tokio::time::sleep(23 * hour).await;
    assert_eq!(begin(&log, KEY, "other").await, Begun::Active(id));
    tokio::time::sleep(hour).await;
    assert_eq!(append(&log, id, 2, "third", None).await, Conflict);
    assert_eq!(read(&log, KEY, None, 0).await, None);
    begin_new(&log, KEY, "other").await;
}

/// Returns the key of the stream of [`KEY`] on Redis, in the namespace `n`.
fn redis_key(server: &RedisServer) -> String {
    let keys = server.cli(&["KEYS", "tower-sse:{n}:journal:*"]);
    assert_eq!(keys.lines().count(), 1, "{keys}");
    keys
}

#[tokio::test]
async fn journals_on_redis_expire_without_a_reader() {
    let Some(server) = RedisServer::start(FORGETFUL) else { return };
    let log = server.log("n");
    let id = begin_new(&log, KEY, "first").await;
    let left = || server.cli(&["PTTL", &redis_key(&server)]).parse::<u64>().unwrap();
    let day = 24 * 3_600_000;
    assert!((day - 60_000..=day).contains(&left()), "{}", left());
    server.cli(&["PEXPIRE", &redis_key(&server), "100000"]);
    append(&log, id, 1, "second", None).await;
    assert!((day - 60_000..=day).contains(&left()), "{}", left());
    append(&log, id, 2, "last", HOUR).await;
    assert!((3_540_000..=3_600_000).contains(&left()), "{}", left());
}

#[tokio::test]
async fn entry_is_rejected_when_redis_is_out_of_memory() {
    let Some(server) = RedisServer::start(FORGETFUL) else { return };
    let log = server.log("n");
    let id = begin_new(&log, KEY, "first").await;
    server.cli(&["CONFIG", "SET", "maxmemory", "1"]);
    let error = soon(log.append_journal(KEY, id, 1, Bytes::from_static(b"second"), None)).await.unwrap_err();
    assert!(error.is_rejected() && error.to_string().contains("OOM"), "{error}");
    let error = soon(log.begin_journal("answers/8", Bytes::from_static(b"first"))).await.unwrap_err();
    assert!(error.is_rejected() && error.to_string().contains("OOM"), "{error}");
    assert_eq!(entries(&log, KEY).await, ["first"]);
    server.cli(&["CONFIG", "SET", "maxmemory", "0"]);
    assert_eq!(append(&log, id, 1, "second", None).await, Appended);
}

/// An administrator deletes an entry.
#[tokio::test]
async fn a_redis_journal_with_a_hole_counts_as_forgotten() {
    let Some(server) = RedisServer::start(FORGETFUL) else { return };
    let log = server.log("n");
    let id = begin_new(&log, KEY, "first").await;
    for (after, entry) in [(1, "second"), (2, "third"), (3, "fourth")] {
        append(&log, id, after, entry, None).await;
    }
    assert_eq!(server.cli(&["XDEL", &redis_key(&server), "2-0"]), "1");
    assert_eq!(read(&log, KEY, Some(id), 0).await, None);
    assert_eq!(read(&log, KEY, Some(id), 2).await, Some(page(id, &["third", "fourth"], 4, false)));
}

#[tokio::test]
async fn a_journal_cannot_be_read_from_a_demoted_redis() {
    let Some(server) = RedisServer::start(FORGETFUL) else { return };
    let Some(primary) = RedisServer::start(FORGETFUL) else { return };
    let log = server.log("n");
    let id = begin_new(&log, KEY, "first").await;
    server.follow(&primary, primary.port).await;
    begin_new(&primary.log("n"), KEY, "other").await;
    let error = soon(log.read_journal(KEY, None, 0, ALL)).await.unwrap_err();
    assert!(!error.is_unknown() && !error.is_rejected(), "{error}");
    for after in [1, 2] {
        let error = soon(log.append_journal(KEY, id, after, Bytes::from_static(b"x"), None)).await.unwrap_err();
        assert!(!error.is_unknown() && !error.is_rejected(), "{error}");
    }
    for first in ["first", "other", "third"] {
        let error = soon(log.begin_journal(KEY, Bytes::from(first))).await.unwrap_err();
        assert!(!error.is_unknown() && !error.is_rejected(), "{error}");
    }
}

/// The repeated call waits for the replica too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_entry_waits_for_a_redis_replica() {
    let Some(primary) = RedisServer::start(FORGETFUL) else { return };
    let Some(replica) = RedisServer::start(FORGETFUL) else { return };
    let proxy = Proxy::start(primary.port).await;
    replica.follow(&primary, proxy.port).await;
    let log = || Redis::new(&primary.url(), "n").unwrap().acknowledged_by(1).timeout(Duration::from_secs(2));
    let one = log();
    let id = begin_new(&one, KEY, "first").await;
    let length = |server: &RedisServer| server.cli(&["XLEN", &redis_key(server)]);
    assert_eq!(length(&replica), "1");
    proxy.set(Mode::StallsAnswers);
    for log in [&one, &log()] {
        let error = soon(log.append_journal(KEY, id, 1, Bytes::from_static(b"second"), None)).await.unwrap_err();
        assert!(error.is_unknown() && error.to_string().contains("the entry in time"), "{error}");
    }
    assert_eq!([length(&primary), length(&replica)], ["2", "1"]);
    proxy.set(Mode::Passes);
    assert_eq!(soon(retried(|| one.append_journal(KEY, id, 1, Bytes::from_static(b"second"), None))).await, Appended);
    assert_eq!(length(&replica), "2");
}

const NATS_STREAM: &str = "tower-sse-journals_n";

/// Returns the number of messages of all journals in the namespace `n`.
async fn nats_messages(server: &NatsServer) -> u64 {
    server.api(&format!("STREAM.INFO.{NATS_STREAM}"), "").await["state"]["messages"].as_u64().unwrap()
}

#[tokio::test]
async fn messages_of_a_closed_journal_on_nats_are_removed_without_a_reader() {
    let Some(server) = NatsServer::start() else { return };
    let log = nats_log(&server, "n");
    let id = begin_new(&log, KEY, "first").await;
    let other = begin_new(&log, "answers/8", "first").await;
    append(&log, id, 1, "last", Some(Duration::from_millis(300))).await;
    soon(async { while nats_messages(&server).await != 1 {} }).await;
    assert_eq!(read(&log, "answers/8", None, 0).await, Some(page(other, &["first"], 1, false)));
}

/// The adapter that closed the journal no longer runs.
#[tokio::test]
async fn a_reader_removes_the_messages_of_a_forgotten_journal_on_nats() {
    let Some(server) = NatsServer::start() else { return };
    let log = nats_log(&server, "n");
    let id = begin_new(&log, KEY, "first").await;
    append(&log, id, 1, "last", Some(Duration::from_millis(300))).await;
    drop(log);
    let log = nats_log(&server, "n");
    soon(async { while read(&log, KEY, None, 0).await.is_some() {} }).await;
    soon(async { while nats_messages(&server).await != 0 {} }).await;
}

/// Publishes an entry as a server has it that was killed before it removed the older messages.
async fn publish_on_nats(server: &NatsServer, heading: &str, entry: &'static str) {
    let client = async_nats::connect(server.url()).await.unwrap();
    let subject = server.api(&format!("STREAM.MSG.GET.{NATS_STREAM}"), "{\"seq\":1}").await;
    let subject = subject["message"]["subject"].as_str().unwrap().to_owned();
    let mut headers = async_nats::HeaderMap::new();
    headers.insert("Tower-Sse-Journal", heading);
    client.publish_with_headers(subject, headers, Bytes::from_static(entry.as_bytes())).await.unwrap();
    client.flush().await.unwrap();
}

#[tokio::test]
async fn a_reader_skips_messages_of_an_older_journal_on_nats() {
    let Some(server) = NatsServer::start() else { return };
    let log = nats_log(&server, "n");
    let old = begin_new(&log, KEY, "old").await;
    append(&log, old, 1, "old last", HOUR).await;
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_millis();
    for (number, entry) in [(1, "first"), (2, "second"), (3, "third")] {
        publish_on_nats(&server, &format!("a {number} {now}"), entry).await;
    }
    let id = JournalId::new(10).unwrap();
    soon(async { while nats_messages(&server).await < 5 {} }).await;
    assert_eq!(read(&log, KEY, None, 0).await, Some(page(id, &["first", "second", "third"], 3, false)));
    assert_eq!(read(&log, KEY, Some(old), 0).await, None);
    assert_eq!(append(&log, id, 3, "last", HOUR).await, Appended);
    begin_new(&log, KEY, "next").await;
    assert_eq!(entries(&log, KEY).await, ["next"]);
    soon(async { while nats_messages(&server).await != 1 {} }).await;
}

/// The journal began more than three days ago, so the server may remove its first entry.
#[tokio::test]
async fn an_old_open_journal_on_nats_counts_as_forgotten() {
    let Some(server) = NatsServer::start() else { return };
    let log = nats_log(&server, "n");
    let id = begin_new(&log, KEY, "first").await;
    append(&log, id, 1, "last", HOUR).await;
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_millis() as u64;
    let begun = now - 3 * 24 * 3_600_000;
    publish_on_nats(&server, &format!("a 1 {begun}"), "first").await;
    let old = JournalId::new(10).unwrap();
    soon(async { while read(&log, KEY, Some(id), 0).await.is_some() {} }).await;
    assert_eq!(read(&log, KEY, Some(old), 0).await, None);
    assert_eq!(append(&log, old, 1, "second", None).await, Conflict);
    begin_new(&log, KEY, "next").await;
}

/// An administrator deletes an entry.
#[tokio::test]
async fn a_nats_journal_with_a_hole_counts_as_forgotten() {
    let Some(server) = NatsServer::start() else { return };
    let log = nats_log(&server, "n");
    let id = begin_new(&log, KEY, "first").await;
    for (after, entry) in [(1, "second"), (2, "third"), (3, "fourth")] {
        append(&log, id, after, entry, None).await;
    }
    server.api(&format!("STREAM.MSG.DELETE.{NATS_STREAM}"), "{\"seq\":1}").await;
    assert_eq!(read(&log, KEY, Some(id), 0).await, None);
    assert_eq!(read(&log, KEY, Some(id), 2).await, Some(page(id, &["third", "fourth"], 4, false)));
}

/// An administrator deletes the stream while the adapter is connected.
#[tokio::test]
async fn journals_of_a_deleted_nats_stream_are_forgotten() {
    let Some(server) = NatsServer::start() else { return };
    let log = nats_log(&server, "n");
    let id = begin_new(&log, KEY, "first").await;
    server.api(&format!("STREAM.DELETE.{NATS_STREAM}"), "").await;
    assert_eq!(append(&log, id, 1, "second", None).await, Conflict);
    assert_eq!(read(&log, KEY, None, 0).await, None);
    begin_new(&log, KEY, "next").await;
    assert_eq!(entries(&log, KEY).await, ["next"]);
}

/// The stream discards its oldest messages instead of rejecting new ones.
#[tokio::test]
async fn a_nats_stream_that_would_lose_entries_is_rejected() {
    let Some(server) = NatsServer::start() else { return };
    let config = format!("{{\"name\":\"{NATS_STREAM}\",\"subjects\":[\"tower-sse.n.j.*\"],\"storage\":\"file\"}}");
    server.api(&format!("STREAM.CREATE.{NATS_STREAM}"), &config).await;
    let log = nats_log(&server, "n");
    let error = soon(log.begin_journal(KEY, Bytes::new())).await.unwrap_err();
    assert!(error.is_rejected() && error.to_string().contains(NATS_STREAM), "{error}");
}

#[tokio::test]
async fn an_entry_for_which_nats_has_no_room_is_rejected() {
    let Some(server) = NatsServer::start() else { return };
    let log = nats_log(&server, "n");
    let id = begin_new(&log, KEY, "first").await;
    let info = server.api(&format!("STREAM.INFO.{NATS_STREAM}"), "").await;
    let mut config = info["config"].clone();
    config["max_bytes"] = serde_json::json!(4_096);
    server.api(&format!("STREAM.UPDATE.{NATS_STREAM}"), &config.to_string()).await;
    let error = soon(log.append_journal(KEY, id, 1, vec![b'x'; 8_192].into(), None)).await.unwrap_err();
    assert!(error.is_rejected(), "{error}");
    assert_eq!(append(&log, id, 1, "second", None).await, Appended);
    assert_eq!(entries(&log, KEY).await, ["first", "second"]);
}
