//! Control messages between instances, over a log that a test can cut off or slow down.

use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use tower_sse::backplane::{Backplane, ControlStream, Memory};
use tower_sse::test_kit::{Fault, FaultyLog, Operation};
use tower_sse::{
    Cursor, Disconnect, EndReason, Event, Hub, HubBuilder, Subscriber, SubscriberItem, Subscription, TopicFilter,
};

use crate::kit::broker::{Broker, nats_log};
use crate::kit::{soon, until};
use crate::nats_server::NatsServer;
use crate::reached::Reached;
use crate::redis_server::{FORGETFUL, RedisServer};

fn builder() -> HubBuilder {
    Hub::builder()
        .probe_interval(Duration::from_millis(100))
        .peer_timeout(Duration::from_millis(900))
        .presence_grace(Duration::from_millis(50))
        .presence_for(TopicFilter::prefix("room/"))
}

async fn start(builder: HubBuilder, log: impl Backplane) -> Hub {
    let hub = builder.backplane(log).build().unwrap();
    until(|| hub.is_ready()).await;
    hub
}

fn listen(hub: &Hub, user: &str, topic: &str) -> Subscriber {
    hub.subscribe(Subscription::for_user(user).topic(topic), Cursor::Absent).unwrap()
}

async fn until_ended(stream: &mut Subscriber) -> EndReason {
    loop {
        if let SubscriberItem::End(reason) = soon(stream.next()).await.unwrap() {
            return reason;
        }
    }
}

#[tokio::test]
async fn commands_arrive_while_sending_is_slow() {
    let log = Memory::new();
    let slow = Reached::new(&log);
    let (one, two) = (start(builder(), slow.clone()).await, start(builder(), log).await);
    slow.way.broadcast_takes.store(60, Ordering::SeqCst);
    // The instance has presence updates to send all the time.
    let churn = tokio::spawn({
        let one = one.clone();
        async move {
            loop {
                drop(listen(&one, "bea", "news"));
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    });
    let before = slow.way.broadcasts.load(Ordering::SeqCst);
    until(|| slow.way.broadcasts.load(Ordering::SeqCst) > before + 2).await;
    for _ in 0..5 {
        let mut page = listen(&one, "ada", "news");
        two.user("ada").disconnect(Disconnect::now()).await.unwrap();
        assert_eq!(until_ended(&mut page).await, EndReason::Disconnected);
    }
    churn.abort();
}

/// An instance repeats the storing of its list after an error. The broker may execute the first
/// attempt later, when the instance has other connections.
#[tokio::test]
async fn a_late_attempt_to_store_a_list_hides_no_connection() {
    let log = FaultyLog::new();
    let (near, far) = (log.connect(), log.connect());
    let (one, witness) = (start(builder(), near.clone()).await, start(builder(), log.connect()).await);
    let ada = listen(&one, "ada", "news");
    until(|| witness.topic("news").count() == 1).await;
    near.faults().next(Operation::PutShared, Fault::Late);
    far.faults().next(Operation::GetShared, Fault::HoldRequest);
    let two = start(builder(), far.clone()).await;
    until(|| near.faults().calls(Operation::PutShared) == 1).await;
    let bea = listen(&one, "bea", "news");
    // The second attempt was announced, and `two` begins to read it.
    far.faults().until_holds(1).await;
    near.faults().release();
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    far.faults().release();
    until(|| two.topic("news").count() == 2).await;
    drop((ada, bea));
}

/// The list has several parts, and each part has more connections than one step applies.
#[tokio::test]
async fn a_large_list_is_read_in_parts_and_removes_the_connections_that_it_does_not_contain() {
    let log = FaultyLog::new();
    let (near, far) = (log.connect(), log.connect());
    let one = start(builder(), near.clone()).await;
    let data = "x".repeat(400);
    let page = |n: usize| one.subscribe(Subscription::for_user(n).topic("news").data(&data), Cursor::Absent).unwrap();
    let witness = start(builder(), log.connect()).await;
    let mut pages: Vec<_> = (0..1_000).map(page).collect();
    until(|| witness.topic("news").count() == 1_000).await;
    let two = start(builder(), far.clone()).await;
    until(|| two.topic("news").count() == 1_000).await;
    assert!(far.faults().calls(Operation::GetShared) >= 3);
    // The updates about the closed connections do not arrive, except for one if a lease is lost in
    // its place.
    (0..3).for_each(|_| near.faults().next(Operation::Broadcast, Fault::LoseEffect));
    pages.truncate(400);
    until(|| two.topic("news").count() == 400).await;
    assert!((0..1_000).all(|n| two.user(n).count() == usize::from(n < 400)));
}

#[tokio::test]
async fn a_disconnect_and_a_leave_do_not_wait_for_a_log_that_cannot_be_read() {
    let log = Memory::new();
    let behind = Reached::new(&log);
    let (one, two) = (start(builder(), behind.clone()).await, start(builder(), log).await);
    let mut disconnected = listen(&one, "ada", "news");
    let left = listen(&one, "bea", "news");
    until(|| two.topic("news").count() == 2).await;
    behind.way.log_is_away.store(true, Ordering::SeqCst);
    // From here on, commands have positions that `one` cannot reach.
    two.topic("other").publish(Event::unnamed("x")).await.unwrap();
    until(|| !one.is_ready()).await;
    // The join waits for the log. The disconnect and the leave follow it.
    two.user("cyd").join("other").await.unwrap();
    two.user("ada").disconnect(Disconnect::now()).await.unwrap();
    two.user("bea").leave("news").await.unwrap();
    assert_eq!(until_ended(&mut disconnected).await, EndReason::Disconnected);
    until(|| one.topic("news").count() == 0).await;
    drop(left);
}

#[tokio::test]
async fn a_join_waits_for_the_log_no_longer_than_the_publish_timeout() {
    let log = Memory::new();
    let behind = Reached::new(&log);
    let timeout = Duration::from_millis(300);
    let (one, two) = (start(builder().publish_timeout(timeout), behind.clone()).await, start(builder(), log).await);
    let page = listen(&one, "ada", "news");
    until(|| two.topic("news").count() == 1).await;
    behind.way.log_is_away.store(true, Ordering::SeqCst);
    two.topic("other").publish(Event::unnamed("x")).await.unwrap();
    until(|| !one.is_ready()).await;
    two.user("ada").join("other").await.unwrap();
    until(|| one.topic("other").count() == 1).await;
    drop(page);
}

#[tokio::test]
async fn a_leave_takes_effect_after_a_waiting_join() {
    let log = Memory::new();
    let behind = Reached::new(&log);
    let (one, two) = (start(builder(), behind.clone()).await, start(builder(), log).await);
    let page = listen(&one, "ada", "news");
    until(|| two.topic("news").count() == 1).await;
    behind.way.log_is_away.store(true, Ordering::SeqCst);
    two.topic("other").publish(Event::unnamed("x")).await.unwrap();
    until(|| !one.is_ready()).await;
    two.user("ada").join("other").await.unwrap();
    two.user("ada").leave("other").await.unwrap();
    two.user("ada").leave("news").await.unwrap();
    until(|| one.topic("news").count() == 0).await;
    behind.way.log_is_away.store(false, Ordering::SeqCst);
    until(|| one.is_ready() && one.position() == two.position()).await;
    assert_eq!(one.topic("other").count(), 0);
    drop(page);
}

/// The key of the control stream holds something else, so the log works and the control stream does
/// not.
#[tokio::test]
async fn an_instance_that_receives_no_control_messages_is_not_ready() {
    let Some(server) = RedisServer::start(FORGETFUL) else { return };
    let first = start(builder(), server.log("n")).await;
    drop(first);
    let keys = server.cli(&["KEYS", "*"]);
    let control = keys.lines().find(|key| key.ends_with("presence")).unwrap().to_owned();
    server.cli(&["DEL", &control]);
    server.cli(&["SET", &control, "not a stream"]);
    let hub = builder().backplane(server.log("n")).build().unwrap();
    // The hub has read the log, so it opens streams.
    until(|| hub.subscribe(Subscription::anonymous().topic("news"), Cursor::Absent).is_ok()).await;
    assert!(!hub.is_ready());
    server.cli(&["DEL", &control]);
    until(|| hub.is_ready()).await;
}

#[tokio::test]
async fn an_instance_whose_messages_no_longer_arrive_is_not_ready_after_its_lease() {
    let log = Memory::new();
    let one = Reached::new(&log);
    let hub = start(builder(), one.clone()).await;
    one.way.broadcast_takes.store(3_600_000, Ordering::SeqCst);
    until(|| !hub.is_ready()).await;
}

/// NATS limits a message to 1 MiB. A connection with longer names must not block the presence
/// updates of other connections.
#[tokio::test]
async fn a_connection_with_very_many_topics_does_not_hide_other_connections_with_nats() {
    const TOPICS: usize = 6_000;
    let Some(server) = NatsServer::start() else { return };
    let log = || nats_log(&server, "wide");
    let one = start(builder().max_topics(TOPICS), log()).await;
    let two = start(builder().max_topics(TOPICS), log()).await;
    let name = "x".repeat(240);
    let topics = (0..TOPICS).map(|n| format!("{n:05}/{name}"));
    let wide = one.subscribe(Subscription::for_user("wide").with_topics(topics), Cursor::Absent).unwrap();
    let narrow = listen(&one, "ada", "news");
    until(|| two.user("ada").count() == 1 && two.user("wide").count() == 1).await;
    drop((wide, narrow));
}

/// The broker accepts `hub.left` and rejects the `hub.joined` before it.
#[tokio::test]
async fn a_failed_presence_event_is_not_published_after_a_later_one_of_the_same_member() {
    let log = Memory::new();
    let reached = Reached::new(&log);
    let hub = start(builder(), reached.clone()).await;
    let mut watcher = hub.subscribe(Subscription::anonymous().topic("room/1"), Cursor::Absent).unwrap();
    reached.way.log_is_away.store(true, Ordering::SeqCst);
    drop(listen(&hub, "ada", "room/1"));
    // Both presence events wait for the log.
    until(|| hub.topic("room/1").presence().members.is_empty()).await;
    *reached.way.fails_once.lock().unwrap() = Some("hub.joined");
    reached.way.log_is_away.store(false, Ordering::SeqCst);
    until(|| reached.way.fails_once.lock().unwrap().is_none() && hub.is_ready()).await;
    // These presence events follow those of ada.
    drop(listen(&hub, "bea", "room/1"));
    let mut received = Vec::new();
    while !received.iter().any(|event: &String| event.contains("hub.left") && event.contains("bea")) {
        if let SubscriberItem::Event(event) = soon(watcher.next()).await.unwrap() {
            received.push(format!("{} {}", event.name, event.data));
        }
    }
    let of_ada: Vec<_> = received.iter().filter(|event| event.contains("ada")).collect();
    assert!(of_ada.last().unwrap().starts_with("hub.left"), "{received:?}");
}

/// Each message shows that an update is missing, as if the answers could not be read.
#[tokio::test]
async fn the_list_of_an_instance_is_requested_less_often_when_it_cannot_be_read() {
    let log = Memory::new();
    let reached = Reached::new(&log);
    let hub = start(builder(), reached.clone()).await;
    // The lease of the instance 7, with the number 3.
    let lease = Bytes::from_static(&[1, 7, 0, 0, 0, 0, 0, 0, 0, 1, 0, 4, 1, 3]);
    let before = reached.way.broadcasts.load(Ordering::SeqCst);
    for _ in 0..200 {
        log.broadcast(ControlStream::Presence, lease.clone()).await.unwrap();
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // The heartbeats of the hub, its own list on request, and few requests: not one request for
    // each message.
    let sent = reached.way.broadcasts.load(Ordering::SeqCst) - before;
    assert!(sent < 50, "{sent} messages in a second");
    drop(hub);
}

#[tokio::test]
async fn mark_of_another_log_starts_with_the_oldest_message() {
    let log = Memory::new();
    soon(log.broadcast(ControlStream::Presence, "first".into())).await.unwrap();
    for mark in [7, usize::MAX] {
        let mut messages = log.listen(Some(format!("{mark} {mark}").into()));
        assert_eq!(soon(messages.next()).await.unwrap().unwrap().message, "first");
    }
}

#[tokio::test]
async fn value_is_stored_for_any_time() {
    let log = Memory::new();
    soon(log.put_once("key", "value".into(), Duration::MAX)).await.unwrap();
    assert_eq!(soon(log.take("key")).await.unwrap(), Some("value".into()));
}

#[tokio::test]
async fn first_event_to_a_connection_counts_its_stream() {
    let hub = start(builder(), Memory::new()).await;
    let mut page = listen(&hub, "ada", "news");
    let receipt = soon(hub.connection(page.connection()).publish(Event::unnamed("x"))).await.unwrap();
    assert_eq!(receipt.connections, 1);
    while !matches!(soon(page.next()).await, Some(SubscriberItem::Event(_))) {}
}

#[tokio::test]
async fn join_over_the_limit_reports_the_limit_when_the_broker_is_away() {
    let log = FaultyLog::new();
    let hub = start(builder().max_topics(1), log.connect()).await;
    let page = listen(&hub, "ada", "news");
    log.faults().cut();
    let error = soon(hub.connection(page.connection()).join("other").into_future()).await.unwrap_err();
    assert!(!error.is_unavailable(), "{error}");
}
