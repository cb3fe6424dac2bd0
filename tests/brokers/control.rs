//! What instances send each other beside the log, over a log whose parts a test can cut or slow down.

use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use tower_sse::backplane::{Backplane, Memory, Nats, Redis};
use tower_sse::{
    Cursor, Disconnect, EndReason, Event, Hub, HubBuilder, Subscriber, SubscriberItem, Subscription, TopicFilter,
};

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
async fn commands_are_heard_while_sending_is_slow() {
    let log = Memory::new();
    let slow = Reached::new(&log);
    let (one, two) = (start(builder(), slow.clone()).await, start(builder(), log).await);
    slow.way.broadcast_takes.store(60, Ordering::SeqCst);
    // There is something to send in every turn.
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

#[tokio::test]
async fn a_disconnect_and_a_leave_do_not_wait_for_a_log_that_cannot_be_read() {
    let log = Memory::new();
    let behind = Reached::new(&log);
    let (one, two) = (start(builder(), behind.clone()).await, start(builder(), log).await);
    let mut disconnected = listen(&one, "ada", "news");
    let left = listen(&one, "bea", "news");
    until(|| two.topic("news").count() == 2).await;
    behind.way.log_is_away.store(true, Ordering::SeqCst);
    // From here on the commands are given at positions that `one` cannot reach.
    two.topic("other").publish(Event::unnamed("x")).await.unwrap();
    until(|| !one.is_ready()).await;
    // A join waits for the log, and the others are behind it.
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
async fn a_leave_has_the_last_word_after_a_join_that_waits() {
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

/// The key of the control stream holds something else, so the log works and the control stream does not.
#[tokio::test]
async fn an_instance_that_cannot_hear_the_others_is_not_ready() {
    let Some(server) = RedisServer::start(FORGETFUL) else { return };
    let first = start(builder(), Redis::new(&server.url(), "deaf").unwrap()).await;
    drop(first);
    let keys = server.cli(&["KEYS", "*"]);
    let control = keys.lines().find(|key| key.ends_with("control")).unwrap().to_owned();
    server.cli(&["DEL", &control]);
    server.cli(&["SET", &control, "not a stream"]);
    let hub = builder().backplane(Redis::new(&server.url(), "deaf").unwrap()).build().unwrap();
    // The log was read, so streams are opened.
    until(|| hub.subscribe(Subscription::anonymous().topic("news"), Cursor::Absent).is_ok()).await;
    assert!(!hub.is_ready());
    server.cli(&["DEL", &control]);
    until(|| hub.is_ready()).await;
}

#[tokio::test]
async fn an_instance_that_is_heard_no_more_is_not_ready_after_its_lease() {
    let log = Memory::new();
    let one = Reached::new(&log);
    let hub = start(builder(), one.clone()).await;
    one.way.broadcast_takes.store(3_600_000, Ordering::SeqCst);
    until(|| !hub.is_ready()).await;
}

/// One message of a broker takes 1 MiB. A connection with more names than that must not stop what is sent of others.
#[tokio::test]
async fn a_connection_with_very_many_topics_does_not_hide_the_others_with_nats() {
    const TOPICS: usize = 6_000;
    let Some(server) = NatsServer::start() else { return };
    let log = || Nats::new(&server.url(), "wide").unwrap();
    let one = start(builder().max_topics(TOPICS), log()).await;
    let two = start(builder().max_topics(TOPICS), log()).await;
    let name = "x".repeat(240);
    let topics = (0..TOPICS).map(|n| format!("{n:05}/{name}"));
    let wide = one.subscribe(Subscription::for_user("wide").with_topics(topics), Cursor::Absent).unwrap();
    let narrow = listen(&one, "ada", "news");
    until(|| two.user("ada").count() == 1 && two.user("wide").count() == 1).await;
    drop((wide, narrow));
}

/// The broker takes `hub.left` and not the `hub.joined` before it.
#[tokio::test]
async fn a_failed_presence_event_is_not_published_after_a_later_one_of_the_same_member() {
    let log = Memory::new();
    let reached = Reached::new(&log);
    let hub = start(builder(), reached.clone()).await;
    let mut watcher = hub.subscribe(Subscription::anonymous().topic("room/1"), Cursor::Absent).unwrap();
    reached.way.log_is_away.store(true, Ordering::SeqCst);
    drop(listen(&hub, "ada", "room/1"));
    // Both wait for the log.
    until(|| hub.topic("room/1").presence().members.is_empty()).await;
    *reached.way.fails_once.lock().unwrap() = Some("hub.joined");
    reached.way.log_is_away.store(false, Ordering::SeqCst);
    until(|| reached.way.fails_once.lock().unwrap().is_none() && hub.is_ready()).await;
    // What comes after the presence events of that turn.
    drop(listen(&hub, "bea", "room/1"));
    let mut came = Vec::new();
    while !came.iter().any(|event: &String| event.contains("hub.left") && event.contains("bea")) {
        if let SubscriberItem::Event(event) = soon(watcher.next()).await.unwrap() {
            came.push(format!("{} {}", event.name, event.data));
        }
    }
    let of_ada: Vec<_> = came.iter().filter(|event| event.contains("ada")).collect();
    assert!(of_ada.last().unwrap().starts_with("hub.left"), "{came:?}");
}

/// An entry that this version cannot read is missing again after each answer.
#[tokio::test]
async fn an_instance_whose_list_cannot_be_read_is_asked_less_and_less() {
    let log = Memory::new();
    let reached = Reached::new(&log);
    let hub = start(builder(), reached.clone()).await;
    let stranger = |body: &str| Bytes::from(format!("{{\"v\":1,\"from\":\"7\",{body}}}"));
    let before = reached.way.broadcasts.load(Ordering::SeqCst);
    for _ in 0..200 {
        log.broadcast(stranger("\"lease\":{\"number\":3}")).await.unwrap();
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // A lease three times a lease, what it tells when it is asked, and few questions: not one for each message.
    let told = reached.way.broadcasts.load(Ordering::SeqCst) - before;
    assert!(told < 50, "{told} messages in a second");
    drop(hub);
}
