//! An instance that was cut off from its broker catches up with records, values and control
//! messages.

use std::time::Duration;

use tower_sse::backplane::{Backplane, LogLimits, Redis};
use tower_sse::{Cursor, Disconnect, Event, Hub, Retention, SubscriberItem, Subscription, TopicFilter};

use crate::instances::builder;
use crate::kit::broker::{Broker, BrokerServer, REQUEST_LIMIT, for_each_broker};
use crate::kit::{soon, until};
use crate::proxy::{Mode, Proxy};
use crate::redis_server::{DURABLE, FORGETFUL, RedisServer};

async fn start(log: impl Backplane) -> Hub {
    let hub = builder().backplane(log).build().unwrap();
    until(|| hub.is_ready()).await;
    hub
}

/// The broker restarts from an older copy of the log. Before the instance reads the log again, a
/// worker that never saw the lost records appends more records than were lost.
#[tokio::test]
async fn a_log_that_was_rolled_back_and_has_grown_since_is_detected() {
    let Some(mut server) = RedisServer::start(DURABLE) else { return };
    let proxy = Proxy::start(server.port).await;
    let log = |port: u16| Redis::new(&format!("redis://127.0.0.1:{port}"), "grown").unwrap().timeout(REQUEST_LIMIT);
    let hub = start(log(proxy.port)).await;
    let mut page = hub.subscribe(Subscription::anonymous().topic("t"), Cursor::Absent).unwrap();
    let publish = async |hub: &Hub, numbers: std::ops::Range<u32>| {
        for n in numbers {
            hub.topic("t").publish(Event::unnamed(n.to_string())).await.unwrap();
        }
    };
    publish(&hub, 0..10).await;
    let copy = server.copy();
    publish(&hub, 10..20).await;
    let mut received = 0;
    while received < 20 {
        received += u32::from(matches!(soon(page.next()).await.unwrap(), SubscriberItem::Event(_)));
    }
    proxy.set(Mode::Resets);
    until(|| !hub.is_ready()).await;
    server.kill();
    server.restore(&copy);
    server.restart();
    // This worker has not seen the ten lost records.
    let worker = builder().backplane(log(server.port)).publisher().unwrap();
    for n in 100..130 {
        worker.topic("t").publish(Event::unnamed(n.to_string())).await.unwrap();
    }
    proxy.set(Mode::Passes);
    let mut gaps = Vec::new();
    loop {
        match soon(page.next()).await.unwrap() {
            SubscriberItem::Gap { reason, .. } => gaps.push(reason.as_str().to_owned()),
            SubscriberItem::Event(event) if event.data == "129" => break,
            _ => {}
        }
    }
    assert_eq!(gaps, ["epoch"]);
}

/// One record is the value of two topics, and is then removed in one of them. An instance that
/// starts later has the value in the other topic only.
async fn a_value_of_a_union_ends_only_in_the_topic_that_removed_it<B: BrokerServer>(broker: B) {
    let log = B::with_max_records(broker.log("union"), 500);
    let one = start(log.clone()).await;
    let both = one.topic("latest/a").and(one.topic("latest/b"));
    both.publish(Event::new("v", "1").key("k")).await.unwrap();
    one.topic("latest/a").publish(Event::removal("k")).await.unwrap();
    broker.wait_until_copied("union", 2).await;
    busy(&one).await;
    let two = start(log).await;
    for (topic, expected) in [("latest/a", 0), ("latest/b", 1)] {
        let mut page = two.subscribe(Subscription::anonymous().topic(topic), Cursor::Absent).unwrap();
        let mut values = 0;
        loop {
            match soon(page.next()).await.unwrap() {
                SubscriberItem::Event(_) => values += 1,
                SubscriberItem::Live(_) => break,
                _ => {}
            }
        }
        assert_eq!(values, expected, "{topic}");
    }
}

async fn busy(hub: &Hub) {
    let events = (0..6_000).map(|n| (hub.topic("busy"), Event::unnamed(n.to_string())));
    assert!(hub.publish_many(events.collect::<Vec<_>>()).await.iter().all(Result::is_ok));
}

for_each_broker!(a_value_of_a_union_ends_only_in_the_topic_that_removed_it(broker): redis, nats, postgres);

/// The disconnect is broadcast while one instance is cut off from the broker.
async fn a_disconnect_arrives_after_a_short_interruption<B: BrokerServer>(broker: B) {
    let proxy = Proxy::start(broker.port()).await;
    let near = start(broker.log("cut-off")).await;
    // This instance detects a stall soon.
    let far = start(B::log_at(proxy.port, "cut-off", Duration::from_millis(500))).await;
    until(|| near.stats().others == 1 && far.stats().others == 1).await;
    for (round, mode) in [Mode::Resets, Mode::StallsAnswers, Mode::Resets].into_iter().enumerate() {
        let user = format!("ada{round}");
        let mut page = far.subscribe(Subscription::for_user(&*user), Cursor::Absent).unwrap();
        proxy.set(mode);
        until(|| !far.is_ready()).await;
        near.user(&*user).disconnect(Disconnect::now()).await.unwrap();
        proxy.set(Mode::Passes);
        loop {
            if let SubscriberItem::End(reason) = soon(page.next()).await.unwrap() {
                assert_eq!(reason.as_str(), "disconnected");
                break;
            }
        }
        until(|| far.is_ready()).await;
    }
}

for_each_broker!(a_disconnect_arrives_after_a_short_interruption(broker): redis, nats, postgres);

/// There are more current values than one page of the read holds.
#[tokio::test]
async fn many_and_large_values_are_read_in_pages() {
    let Some(server) = RedisServer::start(FORGETFUL) else { return };
    let log = || server.log("pages");
    let latest = Retention::latest_per_key().count(10_000).bytes(64 << 20);
    let many = |log| Hub::builder().retention_for(TopicFilter::prefix("latest/"), latest.clone()).backplane(log);
    let worker = many(log()).publisher().unwrap();
    let large = "x".repeat(2_000);
    for batch in 0..5 {
        let events = (0..1_000).map(|n| {
            let key = format!("{batch}.{n}");
            (worker.topic("latest/a"), Event::new("v", large.clone()).key(key))
        });
        assert!(worker.publish_many(events.collect::<Vec<_>>()).await.iter().all(Result::is_ok));
    }
    let hub = many(log()).build().unwrap();
    until(|| hub.is_ready()).await;
    let mut page = hub.subscribe(Subscription::anonymous().topic("latest/a"), Cursor::Absent).unwrap();
    let mut values = 0;
    loop {
        match soon(page.next()).await.unwrap() {
            SubscriberItem::Event(_) => values += 1,
            SubscriberItem::Live(_) => break,
            SubscriberItem::Gap { reason, .. } => panic!("{reason}"),
            _ => {}
        }
    }
    assert_eq!(values, 5_000);
}

/// While an instance is cut off, current values change, and the log is trimmed past these changes.
#[tokio::test]
async fn values_are_current_after_a_cut_during_which_the_log_was_trimmed() {
    let Some(server) = RedisServer::start(FORGETFUL) else { return };
    let proxy = Proxy::start(server.port).await;
    let log = |port: u16| {
        let log = Redis::new(&format!("redis://127.0.0.1:{port}"), "cut").unwrap();
        log.timeout(REQUEST_LIMIT).limits(LogLimits::new().max_records(500))
    };
    let (near, far) = (start(log(server.port)).await, start(log(proxy.port)).await);
    let set = async |key: &str, value: &str| {
        near.topic("latest/a").publish(Event::new("v", value.to_owned()).key(key.to_owned())).await.unwrap();
    };
    set("stays", "1").await;
    set("changes", "1").await;
    set("ends", "1").await;
    let mut page = far.subscribe(Subscription::anonymous().topic("latest/a"), Cursor::Absent).unwrap();
    let mut received = Vec::new();
    while received.len() < 3 {
        if let SubscriberItem::Event(event) = soon(page.next()).await.unwrap() {
            received.push(event.data);
        }
    }
    proxy.set(Mode::Resets);
    until(|| !far.is_ready()).await;
    set("changes", "2").await;
    near.topic("latest/a").publish(Event::removal("ends")).await.unwrap();
    busy(&near).await;
    proxy.set(Mode::Passes);
    until(|| far.is_ready()).await;
    let mut fresh = far.subscribe(Subscription::anonymous().topic("latest/a"), Cursor::Absent).unwrap();
    let mut values = Vec::new();
    loop {
        match soon(fresh.next()).await.unwrap() {
            SubscriberItem::Event(event) => values.push(event.data),
            SubscriberItem::Live(_) => break,
            _ => {}
        }
    }
    values.sort_unstable();
    assert_eq!(values, ["1", "2"]);
    // The stream that stayed open receives one gap and then the current values.
    let (mut gaps, mut updates) = (0, Vec::new());
    while updates.last().is_none_or(|last| last != "2") {
        match soon(page.next()).await.unwrap() {
            SubscriberItem::Gap { .. } => gaps += 1,
            SubscriberItem::Event(event) => updates.push(event.data),
            _ => {}
        }
    }
    assert_eq!(gaps, 1);
}
