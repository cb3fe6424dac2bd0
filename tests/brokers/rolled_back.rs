//! A log that was rolled back: by a backup, by a failover to a replica that was behind, or by a
//! resync of a demoted primary. Each loss is one gap, even if the lost events and their
//! replacements are equal.

use std::time::{Duration, Instant};

use bytes::Bytes;
use tower_sse::backplane::{Backplane, NewRecord, Redis};
use tower_sse::test_kit::{FaultyLog, Operation};
use tower_sse::{Cursor, Event, Hub, Position, Publisher, Subscriber, SubscriberItem, Subscription};

use crate::instances::{Instance, builder};
use crate::kit::broker::{BrokerServer, REQUEST_LIMIT, for_each_broker};
use crate::kit::{soon, subscribe, until};
use crate::proxy::{Mode, Proxy};
use crate::redis_server::{DURABLE, FORGETFUL, RedisServer};

async fn start(log: impl Backplane) -> Hub {
    let hub = builder().backplane(log).build().unwrap();
    until(|| hub.is_ready()).await;
    hub
}

fn worker(log: impl Backplane) -> Publisher {
    builder().backplane(log).publisher().unwrap()
}

fn log_at(port: u16) -> Redis {
    Redis::new(&format!("redis://127.0.0.1:{port}"), "n").unwrap().timeout(REQUEST_LIMIT)
}

pub fn open(hub: &Hub) -> Subscriber {
    hub.subscribe(Subscription::anonymous().topic("t"), Cursor::Absent).unwrap()
}

async fn publish_ticks(worker: &Publisher, count: usize) {
    let ticks = (0..count).map(|_| (worker.topic("t"), Event::unnamed("tick")));
    assert!(worker.publish_many(ticks).await.iter().all(Result::is_ok));
}

pub async fn read_events(page: &mut Subscriber, count: usize) {
    for _ in 0..count {
        soon(page.next_event()).await.unwrap();
    }
}

/// The reasons of the gaps that come before this event.
pub async fn gaps_before(page: &mut Subscriber, event: &str) -> Vec<String> {
    let mut gaps = Vec::new();
    loop {
        match soon(page.next()).await.unwrap() {
            SubscriberItem::Gap { reason, .. } => gaps.push(reason.as_str().to_owned()),
            SubscriberItem::Event(received) if received.data == event => return gaps,
            _ => {}
        }
    }
}

/// The broker restores a backup, and the log grows past the position of the instance while the
/// instance is cut off.
async fn equal_events_do_not_hide_a_roll_back<B: BrokerServer>(mut server: B) {
    let proxy = Proxy::start(server.port()).await;
    let hub = start(B::log_at(proxy.port, "n", REQUEST_LIMIT)).await;
    let mut page = open(&hub);
    publish_ticks(&worker(B::log_at(server.port(), "n", REQUEST_LIMIT)), 10).await;
    read_events(&mut page, 10).await;
    proxy.set(Mode::Resets);
    until(|| !hub.is_ready()).await;
    let saved = server.save();
    proxy.set(Mode::Passes);
    until(|| hub.is_ready()).await;
    publish_ticks(&worker(B::log_at(server.port(), "n", REQUEST_LIMIT)), 10).await;
    read_events(&mut page, 10).await;
    proxy.set(Mode::Resets);
    until(|| !hub.is_ready()).await;
    server.kill();
    server.roll_back(&saved);
    server.restart();
    // This worker has not seen the ten lost events.
    let late = worker(B::log_at(server.port(), "n", REQUEST_LIMIT));
    publish_ticks(&late, 30).await;
    proxy.set(Mode::Passes);
    until(|| hub.is_ready()).await;
    late.topic("t").publish(Event::unnamed("end")).await.unwrap();
    assert_eq!(gaps_before(&mut page, "end").await, ["epoch"]);
}

for_each_broker!(equal_events_do_not_hide_a_roll_back(durable): redis, nats, postgres);

/// Starts a primary and a replica that is in sync with it.
async fn replicated() -> Option<(RedisServer, RedisServer)> {
    let (primary, replica) = (RedisServer::start(FORGETFUL)?, RedisServer::start(FORGETFUL)?);
    follow(&replica, &primary).await;
    Some((primary, replica))
}

/// Makes a server the replica of another, and waits until it is in sync.
async fn follow(replica: &RedisServer, primary: &RedisServer) {
    replica.follow(primary, primary.port).await;
}

fn promote(server: &RedisServer) {
    assert_eq!(server.cli(&["REPLICAOF", "NO", "ONE"]), "OK");
}

/// The proxy switches to the new primary, and connections to the old one stay open.
#[tokio::test]
async fn an_instance_of_a_demoted_primary_is_not_ready_until_it_reaches_the_new_primary() {
    let Some((old, new)) = replicated().await else { return };
    let proxy = Proxy::start(old.port).await;
    let hub = start(log_at(proxy.port)).await;
    let mut page = open(&hub);
    hub.topic("t").publish(Event::unnamed("1")).await.unwrap();
    read_events(&mut page, 1).await;
    old.wait_for_replica().await;
    promote(&new);
    follow(&old, &new).await;
    until(|| !hub.is_ready()).await;
    let error = hub.topic("t").publish(Event::unnamed("2")).await.unwrap_err();
    assert!(error.is_unavailable() && !error.is_unknown(), "{error}");
    proxy.set_target(new.port);
    until(|| hub.is_ready()).await;
    hub.topic("t").publish(Event::unnamed("3")).await.unwrap();
    assert_eq!(gaps_before(&mut page, "3").await, [""; 0]);
}

/// A demoted primary copies the data of its successor. That removes the records that only the
/// demoted primary had, while connections to it stay open.
#[tokio::test]
async fn a_resync_of_a_demoted_primary_under_open_connections_is_one_gap() {
    let Some((primary, replica)) = replicated().await else { return };
    let hub = start(log_at(primary.port)).await;
    let mut page = open(&hub);
    publish_ticks(&worker(log_at(primary.port)), 150).await;
    read_events(&mut page, 150).await;
    primary.wait_for_replica().await;
    promote(&replica);
    publish_ticks(&worker(log_at(primary.port)), 100).await;
    read_events(&mut page, 100).await;
    publish_ticks(&worker(log_at(replica.port)), 200).await;
    follow(&primary, &replica).await;
    until(|| !hub.is_ready()).await;
    promote(&primary);
    until(|| hub.is_ready()).await;
    hub.topic("t").publish(Event::unnamed("end")).await.unwrap();
    assert_eq!(gaps_before(&mut page, "end").await, ["epoch"]);
}

/// The promoted replica does not have all records that the primary had acknowledged.
#[tokio::test]
async fn a_promotion_of_a_replica_with_fewer_records_is_one_gap() {
    let Some((primary, replica)) = replicated().await else { return };
    let proxy = Proxy::start(primary.port).await;
    let hub = start(log_at(proxy.port)).await;
    let mut page = open(&hub);
    publish_ticks(&worker(log_at(primary.port)), 20).await;
    primary.wait_for_replica().await;
    promote(&replica);
    publish_ticks(&worker(log_at(primary.port)), 10).await;
    read_events(&mut page, 30).await;
    proxy.set_target(replica.port);
    let killed = primary.cli(&["CLIENT", "KILL", "TYPE", "normal"]);
    assert!(killed.parse::<u32>().unwrap() > 0, "{killed}");
    let late = worker(log_at(replica.port));
    publish_ticks(&late, 30).await;
    late.topic("t").publish(Event::unnamed("end")).await.unwrap();
    assert_eq!(gaps_before(&mut page, "end").await, ["epoch"]);
}

/// Records of a worker were acknowledged, no instance had read them, and other records took their
/// numbers.
#[tokio::test]
async fn a_worker_whose_records_were_replaced_begins_a_new_epoch_with_its_next_publish() {
    let Some((old, new)) = replicated().await else { return };
    let (to_hub, to_worker) = (Proxy::start(old.port).await, Proxy::start(old.port).await);
    let hub = start(log_at(to_hub.port)).await;
    let mut page = open(&hub);
    let early = worker(log_at(to_worker.port));
    publish_ticks(&early, 10).await;
    read_events(&mut page, 10).await;
    old.wait_for_replica().await;
    to_hub.set(Mode::Resets);
    until(|| !hub.is_ready()).await;
    promote(&new);
    publish_ticks(&early, 10).await;
    to_worker.set_target(new.port);
    old.cli(&["CLIENT", "KILL", "TYPE", "normal"]);
    let late = worker(log_at(new.port));
    publish_ticks(&late, 30).await;
    to_hub.set_target(new.port);
    to_hub.set(Mode::Passes);
    until(|| hub.is_ready()).await;
    read_events(&mut page, 30).await;
    let before = hub.position();
    let publish = async || early.topic("t").publish(Event::unnamed("end")).await;
    let after = soon(async {
        loop {
            // The first call may still meet the connection that the server closed.
            if let Ok(published) = publish().await {
                return published.position;
            }
        }
    })
    .await;
    assert_ne!(epoch(after), epoch(before), "{before} {after}");
    // The instance detects the new epoch at the next probe.
    until(|| epoch(hub.position()) == epoch(after)).await;
    // Neither worker begins another epoch.
    let next = early.topic("t").publish(Event::unnamed("next")).await.unwrap().position;
    let last = late.topic("t").publish(Event::unnamed("last")).await.unwrap().position;
    assert_eq!([epoch(next), epoch(last)], [epoch(after), epoch(after)]);
    assert_eq!(gaps_before(&mut page, "last").await, ["epoch"]);
}

/// An instance has published a record and not read it yet.
#[tokio::test]
async fn a_state_query_begins_a_new_epoch_when_an_acknowledged_record_was_replaced() {
    let Some((old, new)) = replicated().await else { return };
    let proxy = Proxy::start(old.port).await;
    let (log, other) = (log_at(proxy.port), log_at(new.port));
    let record = |text: &'static str| NewRecord::new(Bytes::from_static(text.as_bytes()));
    let append = async |log: &Redis, text, seen| soon(log.append(vec![record(text)], seen)).await.pop().unwrap();
    let read = append(&log, "read", None).await.unwrap();
    old.wait_for_replica().await;
    promote(&new);
    let lost = append(&log, "lost", Some(read)).await.unwrap();
    proxy.set_target(new.port);
    old.cli(&["CLIENT", "KILL", "TYPE", "normal"]);
    for _ in 0..3 {
        append(&other, "other", None).await.unwrap();
    }
    let query_state = async || {
        loop {
            if let Ok(state) = log.state(Some(read)).await {
                return state;
            }
        }
    };
    let state = soon(query_state()).await;
    assert!(lost.epoch == read.epoch && state.epoch != read.epoch, "{read:?} {lost:?} {state:?}");
    // The epoch does not change again.
    assert_eq!(soon(query_state()).await.epoch, state.epoch);
}

/// Otherwise all pages of an application would load their state at the same moment.
#[tokio::test]
async fn open_streams_get_the_gap_of_a_new_epoch_at_different_times() {
    let log = FaultyLog::new();
    let one = Instance::start(log.connect()).await.ready().await;
    let mut pages = Vec::new();
    for _ in 0..40 {
        pages.push(subscribe(one.server.addr, "/events?topic=t").await);
    }
    publish_ticks(&worker(log.connect()), 20).await;
    for page in &mut pages {
        for _ in 0..20 {
            assert_eq!(page.next_own().await.data, "tick");
        }
    }
    log.roll_back(10);
    until(|| number(one.hub.position()) == 10).await;
    for n in 0..5 {
        worker(log.connect()).topic("t").publish(Event::unnamed(n.to_string())).await.unwrap();
    }
    let each = pages.into_iter().map(|mut page| async move {
        let mut gap_at = None;
        let mut received = Vec::new();
        while received.last().is_none_or(|last| last != "4") {
            let event = page.next().await;
            match event.event.as_str() {
                "hub.gap" => {
                    assert!(
                        received.is_empty() && gap_at.is_none() && event.data.contains("\"epoch\""),
                        "{}",
                        event.data
                    );
                    gap_at = Some(Instant::now());
                }
                "message" => received.push(event.data),
                // An id of the new epoch before the gap would hide the loss.
                _ => assert!(event.id.is_empty() || gap_at.is_some(), "{}", event.event),
            }
        }
        // Every record of the new epoch, from its beginning.
        assert_eq!(received[..10], ["tick"; 10]);
        assert_eq!(received[10..], ["0", "1", "2", "3", "4"]);
        gap_at.unwrap()
    });
    let mut gaps = futures::future::join_all(each).await;
    gaps.sort();
    let spread = gaps[gaps.len() - 1] - gaps[0];
    // The delay is random within `retry`, 2 s.
    assert!(spread > Duration::from_millis(500), "{spread:?}");
    assert!(spread < Duration::from_secs(20), "{spread:?}");
}

/// The Redis server closes the connections of the hub and of the worker.
#[tokio::test]
async fn killed_connections_lose_nothing_and_report_no_gap() {
    let Some(server) = RedisServer::start(DURABLE) else { return };
    let hub = start(log_at(server.port)).await;
    let mut page = open(&hub);
    let worker = worker(log_at(server.port));
    for _ in 0..5 {
        publish_ticks(&worker, 20).await;
        server.cli(&["CLIENT", "KILL", "TYPE", "normal"]);
        soon(async { while worker.topic("t").publish(Event::unnamed("after")).await.is_err() {} }).await;
        assert_eq!(gaps_before(&mut page, "after").await, [""; 0]);
    }
    until(|| hub.is_ready()).await;
}

/// The log is rolled back and grows past the position of the instance between two reads of one open
/// connection.
#[tokio::test]
async fn a_roll_back_between_two_reads_of_a_connection_is_one_gap() {
    let log = FaultyLog::new();
    let hub = start(log.connect()).await;
    let mut page = open(&hub);
    publish_ticks(&worker(log.connect()), 20).await;
    read_events(&mut page, 20).await;
    let queries = log.faults().calls(Operation::State);
    until(|| log.faults().calls(Operation::State) > queries + 2).await;
    let other = log.backup();
    other.roll_back(10);
    publish_ticks(&worker(other.connect()), 30).await;
    log.restore(&other);
    until(|| number(hub.position()) == 40).await;
    let queries = log.faults().calls(Operation::State);
    until(|| log.faults().calls(Operation::State) > queries + 1).await;
    log_end(&log).await;
    assert_eq!(gaps_before(&mut page, "end").await, ["epoch"]);
}

async fn log_end(log: &FaultyLog) {
    worker(log.connect()).topic("t").publish(Event::unnamed("end")).await.unwrap();
}

fn epoch(position: Position) -> String {
    position.to_string().split('.').nth(1).unwrap().to_owned()
}

fn number(position: Position) -> u64 {
    position.to_string().rsplit('.').next().unwrap().parse().unwrap()
}
