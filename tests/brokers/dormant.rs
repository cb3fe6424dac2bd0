//! Audiences without listeners on an instance: the instance keeps only the numbers of their events,
//! and streams that open later read the events from the broker.

use std::sync::atomic::Ordering;
use std::time::Duration;

use tower_sse::backplane::{Backplane, Memory};
use tower_sse::{
    Cursor, Event, Hub, Publisher, Retention, Start, Subscriber, SubscriberItem, Subscription, Target, TopicFilter,
};

use crate::kit::broker::for_each_broker;
use crate::kit::{soon, until};
use crate::reached::Reached;

async fn start(log: impl Backplane) -> Hub {
    let builder = Hub::builder().retention_for(TopicFilter::prefix("live/"), Retention::live().count(3));
    // A probe reads ranges too.
    let builder = builder.probe_interval(Duration::from_secs(3_600));
    let hub = builder.topic_retention(Retention::replay().count(5)).backplane(log).build().unwrap();
    until(|| hub.is_ready()).await;
    hub
}

/// Reads until the stream has caught up. Returns the data of the events, and the gaps with their
/// topics.
async fn read(stream: &mut Subscriber) -> (Vec<String>, Vec<String>) {
    let (mut events, mut gaps) = (Vec::new(), Vec::new());
    loop {
        match soon(stream.next()).await.unwrap() {
            SubscriberItem::Event(event) => events.push(event.data),
            SubscriberItem::Gap { reason, topics } => gaps.push(format!("{reason} {topics:?}")),
            SubscriberItem::Live(_) => return (events, gaps),
            _ => {}
        }
    }
}

async fn a_stream_reads_what_was_published_without_a_listener_on_its_instance(log: impl Backplane + Clone) {
    let reached = Reached::new(&log);
    let (one, two) = (start(log).await, start(reached.clone()).await);
    let begin = one.position();
    // Publishes an event, and waits until the other instance has applied it.
    let publish = async |target: Target<'_>, data: &str| {
        let position = target.publish(Event::unnamed(data.to_owned())).await.unwrap().position;
        until(|| two.position() == position).await;
        position
    };
    for n in 0..4 {
        publish(one.topic("a").and(one.topic("live/b")).and(one.user("ada")), &n.to_string()).await;
    }
    let reads = || reached.way.reads.load(Ordering::SeqCst);
    let reads_before = reads();
    let data = |from: usize| (from..4).map(|n| n.to_string()).collect::<Vec<_>>();

    let open = |subscription: Subscription, cursor: Cursor| two.subscribe(subscription, cursor).unwrap();
    let topic = |name: &str| Subscription::anonymous().topic(name);
    // Resumed streams.
    assert_eq!(read(&mut open(topic("a"), begin.into())).await, (data(0), Vec::new()));
    assert_eq!(read(&mut open(Subscription::for_user("ada"), begin.into())).await, (data(0), Vec::new()));
    // The window of the `live` topic has three events.
    let (events, gaps) = read(&mut open(topic("live/b"), begin.into())).await;
    assert_eq!((events, gaps.len()), (data(1), 1), "{gaps:?}");
    // Streams that begin with a part of the history.
    assert_eq!(read(&mut open(topic("a").start(Start::Last(2)), Cursor::Absent)).await, (data(2), Vec::new()));
    assert_eq!(read(&mut open(topic("a").start(Start::Oldest), Cursor::Absent)).await, (data(0), Vec::new()));
    assert_eq!(read(&mut open(topic("a"), Cursor::Absent)).await, (Vec::new(), Vec::new()));
    assert!(reads() > reads_before, "the events came from the memory of the instance");

    // A topic that an open stream joins.
    let mut page = open(topic("other"), Cursor::Absent);
    read(&mut page).await;
    publish(one.topic("joined"), "before").await;
    two.connection(page.connection()).join("joined").since(begin).await.unwrap();
    let cursor = publish(one.topic("joined"), "after").await;
    for expected in ["before", "after"] {
        let event = soon(async {
            loop {
                if let SubscriberItem::Event(event) = page.next().await.unwrap() {
                    return event;
                }
            }
        });
        assert_eq!(event.await.data, expected);
    }

    // A page that is reloaded needs no broker.
    drop(page);
    until(|| two.stats().connections == 0).await;
    publish(one.topic("other"), "meanwhile").await;
    let reads_before = reads();
    let mut page = open(topic("other"), cursor.into());
    let (events, gaps) = read(&mut page).await;
    assert_eq!((events, gaps.len(), reads()), (vec!["meanwhile".to_owned()], 0, reads_before));
}

for_each_broker!(a_stream_reads_what_was_published_without_a_listener_on_its_instance(log): memory, redis, nats, postgres);

/// After a deploy, the clients of another instance reconnect to this one at once.
#[tokio::test]
async fn streams_of_distinct_users_that_reconnect_at_once_share_the_reads_of_the_broker() {
    const USERS: usize = 1_000;
    const BLOCK: usize = 512;
    let log = Memory::new();
    let reached = Reached::new(&log);
    let hub = start(reached.clone()).await;
    let publisher = Publisher::new(log).unwrap();
    let mut cursors = Vec::new();
    for _ in 0..20 {
        let events = (0..USERS).map(|n| (publisher.user(n.to_string()), Event::unnamed("x")));
        let appended = publisher.publish_many(events).await;
        cursors.push(appended[USERS - 1].as_ref().unwrap().position);
    }
    until(|| hub.position() == cursors[19]).await;
    let reads = || reached.way.reads.load(Ordering::SeqCst) as usize;
    for (missed, round) in [(0, 19), (2, 17), (19, 0)] {
        let reads_before = reads();
        let clients = (0..USERS).map(|n| {
            let mut stream = hub.subscribe(Subscription::for_user(n.to_string()), cursors[round]).unwrap();
            async move { read(&mut stream).await }
        });
        for (events, gaps) in futures::future::join_all(clients).await {
            assert_eq!((events.len(), gaps.len()), (missed, 0));
        }
        // One read for each block of the log, and one for a block that the missed events only
        // touch at each end. No read if the clients have missed nothing.
        let limit = if missed == 0 { 0 } else { missed * USERS / BLOCK + 2 };
        assert!(reads() - reads_before <= limit, "{} reads for {missed} events of each user", reads() - reads_before);
    }
}

/// Clients that were offline for different times reconnect at once. The blocks that they need are
/// larger than the memory for blocks. The runtime has one thread, which polls the woken streams
/// before the task that reads blocks.
#[tokio::test]
async fn streams_with_distinct_cursors_that_reconnect_at_once_read_each_block_of_the_broker_once() {
    const USERS: usize = 128;
    const BLOCK: usize = 512;
    const ROUNDS: usize = 104;
    let log = Memory::new();
    let reached = Reached::new(&log);
    let hub = start(reached.clone()).await;
    let publisher = Publisher::new(log).unwrap();
    let mut cursors = vec![hub.position()];
    for _ in 0..ROUNDS {
        let events = (0..USERS).map(|n| (publisher.user(n.to_string()), Event::unnamed("x".repeat(1_500))));
        let appended = publisher.publish_many(events).await;
        cursors.push(appended[USERS - 1].as_ref().unwrap().position);
    }
    until(|| hub.position() == cursors[ROUNDS]).await;
    let reads = || reached.way.reads.load(Ordering::SeqCst) as usize;
    let reads_before = reads();
    let clients = (0..USERS).map(|n| {
        let round = n * ROUNDS / USERS;
        let mut stream = hub.subscribe(Subscription::for_user(n.to_string()), cursors[round]).unwrap();
        tokio::spawn(async move { (ROUNDS - round, read(&mut stream).await) })
    });
    for client in clients.collect::<Vec<_>>() {
        let (missed, (events, gaps)) = client.await.unwrap();
        assert_eq!((events.len(), gaps.len()), (missed, 0));
    }
    let (reads, blocks) = (reads() - reads_before, (USERS * ROUNDS).div_ceil(BLOCK));
    assert!(reads <= blocks + 2, "{reads} reads of {blocks} blocks");
}
