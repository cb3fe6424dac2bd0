//! Hubs that share a log: each instance delivers the events of the others, and a client can resume
//! at any instance.

use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use tower_sse::backplane::{Backplane, Memory};
use tower_sse::{Event, GapReason, Hub, HubBuilder, Public, Retention, TopicFilter};

use crate::kit::broker::{Broker, BrokerServer, REQUEST_LIMIT, for_each_broker};
use crate::kit::{Events, Server, get, resume, soon, subscribe, until};
use crate::proxy::{Mode, Proxy};
use crate::redis_server::{FORGETFUL, RedisServer};

pub fn builder() -> HubBuilder {
    Hub::builder()
        .retention_for(TopicFilter::prefix("latest/"), Retention::latest_per_key())
        .topic_retention(Retention::replay().count(20_000).bytes(32 << 20))
        .probe_interval(Duration::from_millis(100))
        .publish_timeout(REQUEST_LIMIT)
}

pub struct Instance {
    pub hub: Hub,
    pub server: Server,
}

impl Instance {
    pub async fn start(backplane: impl Backplane) -> Self {
        let hub = builder().backplane(backplane).build().unwrap();
        let access = Public::topics(TopicFilter::any());
        let server = Server::start(&hub, Router::new().route_service("/events", hub.endpoint(access))).await;
        Self { hub, server }
    }

    pub async fn ready(self) -> Self {
        until(|| self.hub.is_ready()).await;
        self
    }
}

/// Publishes a number to `t`. Returns whether the publish succeeded; a failed publish may still
/// have been appended.
async fn publish(hub: &Hub, number: u64) -> bool {
    hub.topic("t").publish(Event::unnamed(number.to_string())).await.is_ok()
}

async fn numbers(events: &mut Events, count: usize) -> Vec<u64> {
    let mut numbers = Vec::new();
    while numbers.len() < count {
        let event = events.next().await;
        assert!(event.event != "hub.gap", "a gap without loss: {}", event.data);
        if event.event == "message" {
            numbers.push(event.data.parse().unwrap());
        }
    }
    numbers
}

pub async fn each_instance_delivers_the_events_of_the_other(log: impl Backplane + Clone) {
    let (one, two) = (Instance::start(log.clone()).await.ready().await, Instance::start(log).await.ready().await);
    let mut at_one = subscribe(one.server.addr, "/events?topic=t").await;
    let mut at_two = subscribe(two.server.addr, "/events?topic=t").await;
    for n in 0..100 {
        let hub = if n % 2 == 0 { &one.hub } else { &two.hub };
        let published = hub.topic("t").publish(Event::unnamed(n.to_string())).await.unwrap();
        let (a, b) = (at_one.next_own().await, at_two.next_own().await);
        assert_eq!((&a.data, &b.data), (&n.to_string(), &n.to_string()));
        assert_eq!((a.id, b.id), (published.position.to_string(), published.position.to_string()));
    }
    // A batch arrives as a whole and in order.
    let batch = (0..500).map(|n| (one.hub.topic("t"), Event::unnamed(n.to_string())));
    assert!(one.hub.publish_many(batch).await.iter().all(Result::is_ok));
    assert_eq!(numbers(&mut at_two, 500).await, (0..500).collect::<Vec<_>>());

    // A client reconnects to the two instances in turn while both publish.
    let mut last = at_two.last_id.clone();
    let mut expected = 0;
    for round in 0..50 {
        let instance = if round % 2 == 0 { &one } else { &two };
        let mut events = resume(instance.server.addr, "/events?topic=t", &last).await;
        for n in expected..expected + 20 {
            let hub = if n % 3 == 0 { &one.hub } else { &two.hub };
            assert!(publish(hub, n).await);
        }
        assert_eq!(numbers(&mut events, 20).await, (expected..expected + 20).collect::<Vec<_>>(), "round {round}");
        expected += 20;
        last = events.last_id.clone();
    }
}

for_each_broker!(each_instance_delivers_the_events_of_the_other(log): memory, redis, nats, postgres);

/// An instance that starts later loads the records of the log and every current value before it is
/// ready.
async fn a_late_instance_has_the_records_of_the_log(log: impl Backplane + Clone) {
    let one = Instance::start(log.clone()).await.ready().await;
    let begin = one.hub.position().to_string();
    one.hub.topic("latest/a").publish(Event::new("v", "1").key("k")).await.unwrap();
    one.hub.topic("latest/a").publish(Event::new("v", "2").key("k")).await.unwrap();
    one.hub.topic("latest/a").publish(Event::new("v", "gone").key("other")).await.unwrap();
    one.hub.topic("latest/a").publish(Event::removal("other")).await.unwrap();
    for n in 0..50 {
        assert!(publish(&one.hub, n).await);
    }
    let two = Instance::start(log).await.ready().await;
    let mut history = resume(two.server.addr, "/events?topic=t", &begin).await;
    assert_eq!(numbers(&mut history, 50).await, (0..50).collect::<Vec<_>>());
    let mut page = get(two.server.addr, "/events?topic=latest/a").await.events();
    let before: Vec<_> = page.caught_up().await.into_iter().filter(|event| event.event == "v").collect();
    assert_eq!(before.iter().map(|event| event.data.as_str()).collect::<Vec<_>>(), ["2"]);
}

for_each_broker!(a_late_instance_has_the_records_of_the_log(log): memory, redis, nats, postgres);

async fn an_instance_that_starts_without_its_broker_sends_retryable_refusals_and_recovers<B: BrokerServer>(
    mut server: B,
) {
    server.kill();
    let one = Instance::start(server.log("n")).await;
    assert!(!one.hub.is_ready());
    let refused = get(one.server.addr, "/events?topic=t").await.events().next().await;
    assert!(refused.event == "hub.refused" && refused.data.contains("starting"), "{}", refused.data);
    let error = one.hub.topic("t").publish(Event::unnamed("x")).await.unwrap_err();
    assert!(error.is_unavailable() && !error.is_unknown() && !error.is_invalid(), "{error:?}");
    server.restart();
    let one = one.ready().await;
    let mut events = subscribe(one.server.addr, "/events?topic=t").await;
    assert!(publish(&one.hub, 1).await);
    assert_eq!(events.next_own().await.data, "1");
}

for_each_broker!(an_instance_that_starts_without_its_broker_sends_retryable_refusals_and_recovers(durable): redis, nats, postgres);

/// The broker is killed under load and restarted. Clients receive every acknowledged event and no
/// gap.
async fn a_durable_broker_that_is_killed_loses_no_acknowledged_event<B: BrokerServer>(mut server: B) {
    let log = || B::log_at(server.port(), "durable", Duration::from_millis(500));
    let (one, two) = (Instance::start(log()).await.ready().await, Instance::start(log()).await.ready().await);
    let mut streams =
        [subscribe(one.server.addr, "/events?topic=t").await, subscribe(two.server.addr, "/events?topic=t").await];
    let publisher = tokio::spawn({
        let hub = two.hub.clone();
        async move {
            let (mut acknowledged, mut failed, mut after) = (Vec::new(), 0, 0);
            for n in 0..1_000_000_u64 {
                let begun = std::time::Instant::now();
                if publish(&hub, n).await {
                    acknowledged.push(n);
                    after += u64::from(failed > 0);
                } else {
                    failed += 1;
                    // The limit of the adapter is half a second, and a busy machine adds to it.
                    assert!(begun.elapsed() < REQUEST_LIMIT, "the publish failed too late");
                }
                if after == 200 {
                    break;
                }
            }
            (acknowledged, failed)
        }
    });
    until(|| two.hub.stats().published > 200).await;
    server.kill();
    until(|| !one.hub.is_ready() && !two.hub.is_ready()).await;
    server.restart();
    until(|| one.hub.is_ready() && two.hub.is_ready()).await;
    let (acknowledged, failed) = soon(publisher).await.unwrap();
    assert!(failed > 0);
    for stream in &mut streams {
        let (mut received, mut stale, mut live) = (Vec::new(), 0, 0);
        while received.last() != acknowledged.last() || live == 0 {
            let event = stream.next().await;
            match event.event.as_str() {
                "hub.gap" => panic!("a gap without loss: {}", event.data),
                "hub.stale" => stale += 1,
                "hub.live" => live += 1,
                "message" => received.push(event.data.parse::<u64>().unwrap()),
                _ => {}
            }
        }
        assert!(received.is_sorted_by(|a, b| a < b), "events are out of order or repeated");
        let received: BTreeSet<_> = received.into_iter().collect();
        assert!(acknowledged.iter().all(|n| received.contains(n)), "an acknowledged event is missing");
        assert!(stale >= 1 && live >= 1, "{stale} `hub.stale` and {live} `hub.live`");
    }
}

for_each_broker!(
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    a_durable_broker_that_is_killed_loses_no_acknowledged_event(durable): redis, nats, postgres
);

/// Each cursor gets exactly one gap with its reason, and then live events.
async fn a_broker_that_returns_empty_is_one_gap_for_every_stream<B: BrokerServer>(mut server: B) {
    let log = || server.log("empty");
    let (one, two) = (Instance::start(log()).await.ready().await, Instance::start(log()).await.ready().await);
    let mut streams = [
        subscribe(one.server.addr, "/events?topic=t&topic=latest/a").await,
        subscribe(two.server.addr, "/events?topic=t&topic=latest/a").await,
    ];
    one.hub.topic("latest/a").publish(Event::new("v", "old").key("k")).await.unwrap();
    for n in 0..10 {
        assert!(publish(&one.hub, n).await);
    }
    for stream in &mut streams {
        assert_eq!(stream.next_own().await.data, "old");
        assert_eq!(numbers(stream, 10).await, (0..10).collect::<Vec<_>>());
    }
    let old = streams[0].last_id.clone();
    server.kill();
    server.restart();
    soon(async { while !publish(&two.hub, 10).await {} }).await;
    for stream in &mut streams {
        let mut gaps = Vec::new();
        loop {
            let event = stream.next().await;
            match event.event.as_str() {
                "hub.gap" => gaps.push(event.data),
                "message" => {
                    assert_eq!(event.data, "10");
                    break;
                }
                _ => {}
            }
        }
        assert_eq!(gaps.len(), 1, "{gaps:?}");
        assert!(gaps[0].contains("\"epoch\"") && gaps[0].contains("latest/a"), "{}", gaps[0]);
    }
    // A client that reconnects later with an id of the old epoch also receives one gap.
    until(|| one.hub.is_ready() && two.hub.is_ready()).await;
    for instance in [&one, &two] {
        let mut late = resume(instance.server.addr, "/events?topic=t", &old).await;
        let gaps: Vec<_> = late.caught_up().await.into_iter().filter(|event| event.event == "hub.gap").collect();
        assert!(gaps.len() == 1 && gaps[0].data.contains(GapReason::Epoch.as_str()));
    }
    assert!(publish(&one.hub, 11).await);
    for stream in &mut streams {
        assert_eq!(numbers(stream, 1).await, [11]);
    }
}

for_each_broker!(a_broker_that_returns_empty_is_one_gap_for_every_stream(broker): redis, nats, postgres);

async fn an_unreadable_record_is_skipped_and_is_a_gap_for_its_audience(log: impl Backplane + Clone) {
    let one = Instance::start(log.clone()).await.ready().await;
    let mut a = subscribe(one.server.addr, "/events?topic=a").await;
    let mut b = subscribe(one.server.addr, "/events?topic=b").await;
    let unreadable =
        |bytes: &'static str| vec![tower_sse::backplane::NewRecord::new(bytes::Bytes::from_static(bytes.as_bytes()))];
    // A record of a later version, and a record with a reserved event name.
    for bytes in [r#"{"v":2,"to":{"topics":["a"]}}"#, r#"{"v":1,"to":{"topics":["a"]},"event":"hub.live","data":""}"#] {
        soon(log.append(unreadable(bytes), None)).await;
        let gap = a.next().await;
        assert!(gap.event == "hub.gap" && gap.data.contains("\"lost\"") && gap.data.contains("\"a\""), "{}", gap.data);
    }
    // The audience cannot be read either, so every stream receives a gap.
    soon(log.append(unreadable("?"), None)).await;
    for stream in [&mut a, &mut b] {
        let gap = stream.next().await;
        assert!(gap.event == "hub.gap" && gap.data.contains("\"lost\""), "{}", gap.data);
    }
    one.hub.topic("a").and(one.hub.topic("b")).publish(Event::unnamed("on")).await.unwrap();
    assert_eq!((a.next_own().await.data, b.next_own().await.data), ("on".to_owned(), "on".to_owned()));
    assert_eq!(one.hub.stats().skipped, 3);
}

for_each_broker!(an_unreadable_record_is_skipped_and_is_a_gap_for_its_audience(log): memory, redis, nats, postgres);

/// The hub also validates records that have a reserved name.
#[tokio::test]
async fn presence_records_that_no_hub_wrote_are_skipped_and_are_a_gap_for_their_audience() {
    let log = Memory::new();
    let one = Instance::start(log.clone()).await.ready().await;
    let mut a = subscribe(one.server.addr, "/events?topic=a").await;
    let mut b = subscribe(one.server.addr, "/events?topic=b").await;
    let append = async |to: &str, data: &str| {
        let data = serde_json::to_string(data).unwrap();
        let record = format!(r#"{{"v":1,"to":{to},"event":"hub.joined","data":{data}}}"#);
        soon(log.append(vec![tower_sse::backplane::NewRecord::new(record.into())], None)).await;
    };
    let valid = r#"{"topic":"a","user":"ada"}"#;
    let long = format!(r#"{{"topic":"a","user":"ada","data":"{}"}}"#, "x".repeat(9_000));
    for data in [&*long, "{", r#"{"topic":"b","user":"ada"}"#] {
        append(r#"{"topics":["a"]}"#, data).await;
        let gap = a.next().await;
        assert!(gap.event == "hub.gap" && gap.data.contains("\"lost\"") && gap.data.contains("\"a\""), "{gap:?}");
    }
    append(r#"{"topics":["a","b"]}"#, valid).await;
    for stream in [&mut a, &mut b] {
        let gap = stream.next().await;
        assert!(gap.event == "hub.gap" && gap.data.contains("\"lost\""), "{gap:?}");
    }
    assert_eq!(one.hub.stats().skipped, 4);
    append(r#"{"topics":["a"]}"#, valid).await;
    let joined = a.next().await;
    assert_eq!((&*joined.event, &*joined.data), ("hub.joined", valid));
    assert_eq!(one.hub.stats().skipped, 4);
}

#[tokio::test]
async fn a_script_in_another_language_publishes() {
    let Some(server) = RedisServer::start(FORGETFUL) else { return };
    let one = Instance::start(server.log("a/b c")).await.ready().await;
    let mut page = subscribe(one.server.addr, "/events?topic=t").await;
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/publish.py");
    let mut command = Command::new("python3");
    command.args([script, &server.port.to_string(), "a/b c", "t", "greeting", "Grüße\naus Python"]);
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let event = page.next_own().await;
    assert_eq!((event.event.as_str(), event.data.as_str()), ("greeting", "Grüße\naus Python"));
    assert_eq!(event.id, String::from_utf8(output.stdout).unwrap().trim());
}

#[tokio::test]
async fn publish_now_is_an_error_with_a_shared_log() {
    let one = Instance::start(Memory::new()).await.ready().await;
    let error = one.hub.topic("t").publish_now(Event::unnamed("x")).unwrap_err();
    assert!(error.is_unavailable() && !error.is_unknown());
}

/// The network between one instance and the broker fails, and the other instance is not affected.
/// After the network has recovered, the stream continues without a missing event.
async fn a_cut_between_an_instance_and_its_broker_is_detected_and_no_event_is_missing_afterwards<B: BrokerServer>(
    server: B,
) {
    let proxy = Proxy::start(server.port()).await;
    let near = Instance::start(B::log_at(server.port(), "cut", Duration::from_secs(5))).await.ready().await;
    let far = Instance::start(B::log_at(proxy.port, "cut", Duration::from_millis(300))).await.ready().await;
    let mut stream = subscribe(far.server.addr, "/events?topic=t").await;
    let mut expected = 0;
    for mode in [Mode::StallsAnswers, Mode::StallsRequests, Mode::Resets, Mode::Delays(Duration::from_millis(30))] {
        proxy.set(mode);
        if !matches!(mode, Mode::Delays(_)) {
            until(|| !far.hub.is_ready()).await;
            // A publish on this instance fails.
            assert!(!publish(&far.hub, 1_000_000).await, "{mode:?}");
        }
        assert!(near.hub.is_ready());
        for n in expected..expected + 50 {
            assert!(publish(&near.hub, n).await);
        }
        proxy.set(Mode::Passes);
        let mut received = Vec::new();
        while received.last() != Some(&(expected + 49)) {
            let event = stream.next().await;
            assert!(event.event != "hub.gap", "{mode:?}: {}", event.data);
            // The failed publish may still be appended after the cut.
            if event.event == "message" && event.data != "1000000" {
                received.push(event.data.parse::<u64>().unwrap());
            }
        }
        assert_eq!(received, (expected..expected + 50).collect::<Vec<_>>(), "{mode:?}");
        expected += 50;
        until(|| far.hub.is_ready()).await;
    }
}

for_each_broker!(
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    a_cut_between_an_instance_and_its_broker_is_detected_and_no_event_is_missing_afterwards(broker): redis, nats, postgres
);

/// Publishes ten records, and returns a copy of the stored log. Saving may restart the broker, so
/// it happens before the instances of the test start.
async fn saved_after_ten<B: BrokerServer>(server: &mut B, namespace: &str) -> PathBuf {
    let one = Instance::start(server.log(namespace)).await.ready().await;
    for n in 0..10 {
        assert!(publish(&one.hub, n).await);
    }
    one.hub.drain(Duration::ZERO).await;
    server.save()
}

/// The broker restarts from a copy without the newest records. Each stream receives one gap, and a
/// new epoch begins, so that no position means two records.
async fn a_broker_that_was_rolled_back_is_one_reported_gap<B: BrokerServer>(mut server: B) {
    let copy = saved_after_ten(&mut server, "back").await;
    let log = || server.log("back");
    let (one, two) = (Instance::start(log()).await.ready().await, Instance::start(log()).await.ready().await);
    let mut streams =
        [subscribe(one.server.addr, "/events?topic=t").await, subscribe(two.server.addr, "/events?topic=t").await];
    for n in 10..20 {
        assert!(publish(&one.hub, n).await);
    }
    for stream in &mut streams {
        assert_eq!(numbers(stream, 10).await, (10..20).collect::<Vec<_>>());
    }
    let before = one.hub.position().to_string();
    server.kill();
    server.roll_back(&copy);
    server.restart();
    for stream in &mut streams {
        loop {
            let event = stream.next().await;
            if event.event == "hub.gap" {
                assert!(event.data.contains("\"epoch\""), "{}", event.data);
                break;
            }
            assert!(event.event.starts_with("hub."), "{event:?}");
        }
    }
    until(|| one.hub.is_ready() && two.hub.is_ready()).await;
    let after = one.hub.topic("t").publish(Event::unnamed("20")).await.unwrap().position.to_string();
    assert!(after.split('.').nth(1) != before.split('.').nth(1), "{before} {after}");
    for stream in &mut streams {
        loop {
            let event = stream.next().await;
            assert!(event.event != "hub.gap", "a second gap");
            if event.data == "20" {
                break;
            }
        }
    }
    let mut late = resume(two.server.addr, "/events?topic=t", &before).await;
    let gaps = late.caught_up().await.into_iter().filter(|event| event.event == "hub.gap").count();
    assert_eq!(gaps, 1);
}

for_each_broker!(a_broker_that_was_rolled_back_is_one_reported_gap(durable): redis, nats, postgres);

/// Returns the epoch and the number of an id.
fn parts(id: &str) -> (String, u64) {
    let mut parts = id.split('.').skip(1);
    (parts.next().unwrap().to_owned(), parts.next().unwrap().parse().unwrap())
}

/// Both instances publish during the rollback. Each stream receives one gap, and then every event
/// that was acknowledged in the new epoch. No position means two records.
async fn a_rollback_under_load_is_one_gap_and_nothing_of_the_new_epoch_is_missing<B: BrokerServer>(mut server: B) {
    let copy = saved_after_ten(&mut server, "load").await;
    let log = || B::log_at(server.port(), "load", Duration::from_millis(500));
    let (one, two) = (Instance::start(log()).await.ready().await, Instance::start(log()).await.ready().await);
    let mut streams = Vec::new();
    for n in 0..4 {
        let instance = if n % 2 == 0 { &one } else { &two };
        streams.push(subscribe(instance.server.addr, "/events?topic=t").await);
    }
    let stop = Arc::new(AtomicBool::new(false));
    let publishers = [(&one.hub, 1_000_000_u64), (&two.hub, 2_000_000)].map(|(hub, first)| {
        let (hub, stop) = (hub.clone(), Arc::clone(&stop));
        tokio::spawn(async move {
            let mut acknowledged = Vec::new();
            for n in first.. {
                if stop.load(Ordering::SeqCst) {
                    break;
                }
                if let Ok(published) = hub.topic("t").publish(Event::unnamed(n.to_string())).await {
                    acknowledged.push((parts(&published.position.to_string()), n.to_string()));
                }
            }
            acknowledged
        })
    });
    let more = |than: [u64; 2]| one.hub.stats().published > than[0] + 300 && two.hub.stats().published > than[1] + 300;
    until(|| more([0, 0])).await;
    server.kill();
    server.roll_back(&copy);
    let then = [one.hub.stats().published, two.hub.stats().published];
    server.restart();
    until(|| more(then)).await;
    stop.store(true, Ordering::SeqCst);
    let mut meanings = HashMap::new();
    let mut acknowledged = BTreeSet::new();
    let new = parts(&one.hub.position().to_string()).0;
    for publisher in publishers {
        let mine = soon(publisher).await.unwrap();
        assert!(mine.is_sorted_by(|((a, m), _), ((b, n), _)| if a == b { m < n } else { *b == new }), "in order");
        for (place, n) in mine {
            assert!(meanings.insert(place.clone(), n).is_none(), "{place:?} was assigned twice");
            acknowledged.insert(place);
        }
    }
    soon(one.hub.topic("t").publish(Event::unnamed("end"))).await.unwrap();
    for stream in &mut streams {
        let mut epochs = vec![Vec::new()];
        loop {
            let event = stream.next().await;
            match event.event.as_str() {
                "hub.gap" => {
                    assert!(event.data.contains("\"epoch\""), "{}", event.data);
                    epochs.push(Vec::new());
                }
                "message" if event.data == "end" => break,
                "message" => {
                    let place = parts(&event.id);
                    let meaning = meanings.entry(place.clone()).or_insert_with(|| event.data.clone());
                    assert_eq!(*meaning, event.data, "{place:?} means two records");
                    epochs.last_mut().unwrap().push(place);
                }
                _ => {}
            }
        }
        let [before, after] = <[_; 2]>::try_from(epochs).expect("one gap");
        assert!(before.iter().all(|place| place.0 != new) && before.is_sorted_by(|a, b| a.1 < b.1));
        assert!(after.iter().all(|place| place.0 == new) && after.is_sorted_by(|a, b| a.1 < b.1));
        // Every event up to the last one before the gap, and every event after the gap.
        let until = before.last().map_or(0, |place| place.1);
        let (before, after): (BTreeSet<_>, BTreeSet<_>) = (before.into_iter().collect(), after.into_iter().collect());
        for place in &acknowledged {
            let is_there =
                if place.0 == new { after.contains(place) } else { place.1 > until || before.contains(place) };
            assert!(is_there, "{place:?} is missing");
        }
    }
}

for_each_broker!(
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    a_rollback_under_load_is_one_gap_and_nothing_of_the_new_epoch_is_missing(durable): redis, nats, postgres
);

/// Every instance restarts while the log is trimmed many times over.
async fn a_rolling_restart_with_a_busy_log_keeps_current_values_and_reports_one_gap<B: BrokerServer>(server: B) {
    let log = || B::with_max_records(server.log("roll"), 500);
    let mut one = Instance::start(log()).await.ready().await;
    for n in 0..20 {
        let event = Event::new("v", n.to_string()).key(format!("k{n}"));
        one.hub.topic("latest/a").publish(event).await.unwrap();
    }
    assert!(publish(&one.hub, 1).await);
    let old = one.hub.position().to_string();
    for _ in 0..2 {
        let busy = (0..6_000).map(|n| (one.hub.topic("busy"), Event::unnamed(n.to_string())));
        assert!(one.hub.publish_many(busy).await.iter().all(Result::is_ok));
        one.hub.drain(Duration::ZERO).await;
        one = Instance::start(log()).await.ready().await;
    }
    let mut page = get(one.server.addr, "/events?topic=latest/a").await.events();
    let values = page.caught_up().await.into_iter().filter(|event| event.event == "v").count();
    assert_eq!(values, 20);
    let mut late = resume(one.server.addr, "/events?topic=t", &old).await;
    let gaps: Vec<_> = late.caught_up().await.into_iter().filter(|event| event.event == "hub.gap").collect();
    assert!(gaps.len() == 1 && gaps[0].data.contains("trimmed"), "{gaps:?}");
    assert!(publish(&one.hub, 2).await);
    assert_eq!(numbers(&mut late, 1).await, [2]);
}

for_each_broker!(a_rolling_restart_with_a_busy_log_keeps_current_values_and_reports_one_gap(broker): redis, nats, postgres);

async fn an_instance_that_starts_during_publishes_delivers_every_event_in_order(log: impl Backplane + Clone) {
    let one = Instance::start(log.clone()).await.ready().await;
    let begin = one.hub.position().to_string();
    let publisher = tokio::spawn({
        let hub = one.hub.clone();
        async move {
            for n in 0..1_000 {
                assert!(publish(&hub, n).await);
                tokio::task::yield_now().await;
            }
        }
    });
    // Each instance reads more events than the one before it. The first ones start while events are
    // still published.
    for read in [200, 400, 600, 800, 1_000] {
        let joins = Instance::start(log.clone()).await.ready().await;
        let mut events = resume(joins.server.addr, "/events?topic=t", &begin).await;
        assert_eq!(numbers(&mut events, read).await, (0..read as u64).collect::<Vec<_>>());
    }
    soon(publisher).await.unwrap();
}

for_each_broker!(
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    an_instance_that_starts_during_publishes_delivers_every_event_in_order(log): memory, redis, nats, postgres
);
