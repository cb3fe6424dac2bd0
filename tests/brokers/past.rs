//! Backfill: a client whose cursor is older than the memory of an instance receives the missing
//! records from the broker's log. Clients that need the same records share one read.

use std::sync::atomic::Ordering;
use std::time::Duration;

use tower_sse::backplane::{Backplane, LogLimits, Memory};
use tower_sse::test_kit::FaultyLog;
use tower_sse::{
    Cursor, Event, Hub, HubBuilder, Position, Retention, Subscriber, SubscriberItem, Subscription, TopicFilter,
};

use crate::kit::broker::{Broker, for_each_broker};
use crate::kit::{soon, until};
use crate::reached::Reached;
use crate::redis_server::{FORGETFUL, RedisServer};

/// A hub that keeps few records in memory.
fn builder() -> HubBuilder {
    Hub::builder()
        .topic_retention(Retention::replay().count(8))
        .retention_for(TopicFilter::prefix("live/"), Retention::live())
        .probe_interval(Duration::from_millis(100))
}

async fn start(log: impl Backplane) -> Hub {
    let hub = builder().backplane(log).build().unwrap();
    until(|| hub.is_ready()).await;
    hub
}

fn open(hub: &Hub, topics: &[&str], cursor: Position) -> Subscriber {
    hub.subscribe(Subscription::anonymous().with_topics(topics.iter().copied()), cursor).unwrap()
}

/// Reads until the stream has caught up. Returns the events, and the gaps with their topics.
async fn read(stream: &mut Subscriber) -> (Vec<(String, Position)>, Vec<String>) {
    let (mut events, mut gaps) = (Vec::new(), Vec::new());
    loop {
        match soon(stream.next()).await.unwrap() {
            SubscriberItem::Event(event) => events.push((event.data, event.position)),
            SubscriberItem::Gap { reason, topics } => gaps.push(format!("{reason} {topics:?}")),
            SubscriberItem::Live(_) => return (events, gaps),
            _ => {}
        }
    }
}

async fn publish(hub: &Hub, topics: &[&str], numbers: std::ops::Range<u32>) {
    let events =
        numbers.flat_map(|n| topics.iter().map(move |topic| (hub.topic(*topic), Event::unnamed(n.to_string()))));
    assert!(hub.publish_many(events.collect::<Vec<_>>()).await.iter().all(Result::is_ok));
}

fn number(position: Position) -> u64 {
    position.to_string().rsplit('.').next().unwrap().parse().unwrap()
}

fn numbers(events: &[(String, Position)]) -> Vec<u32> {
    events.iter().map(|(data, _)| data.parse().unwrap()).collect()
}

async fn older_records_come_from_the_broker(log: impl Backplane + Clone) {
    let reached = Reached::new(&log);
    let one = start(log.clone()).await;
    let begin = one.position();
    publish(&one, &["a", "b", "live/c"], 0..2_000).await;
    let two = start(reached.clone()).await;
    until(|| two.position() == one.position()).await;
    let expected: Vec<_> = (0..2_000).collect();
    let before = reached.way.reads.load(Ordering::SeqCst);
    // Many clients at once, on two topics.
    let clients = (0..40).map(|n| {
        let two = two.clone();
        async move {
            let topic = if n % 2 == 0 { "a" } else { "b" };
            let mut stream = open(&two, &[topic], begin);
            read(&mut stream).await
        }
    });
    for (events, gaps) in futures::future::join_all(clients).await {
        assert!(gaps.is_empty(), "{gaps:?}");
        assert_eq!(numbers(&events), expected);
        assert!(events.is_sorted_by_key(|(_, position)| number(*position)));
    }
    let reads_for_all = reached.way.reads.load(Ordering::SeqCst) - before;
    assert!((1..=40).contains(&reads_for_all), "{reads_for_all} reads of 6,000 records for 40 clients");

    // A stream that is interrupted and resumed, beside a topic that is kept in memory only.
    let mut stream = open(&one, &["b", "live/c"], begin);
    let (mut received, mut gaps, mut cursor) = (Vec::new(), Vec::new(), begin);
    while received.len() < 500 {
        match soon(stream.next()).await.unwrap() {
            SubscriberItem::Event(event) if event.topic.as_ref().is_some_and(|topic| topic.as_str() == "b") => {
                cursor = event.position;
                received.push((event.data, event.position));
            }
            SubscriberItem::Gap { reason, topics } => gaps.push(format!("{reason} {topics:?}")),
            _ => {}
        }
    }
    assert_eq!(gaps.len(), 1, "only of the topic without history: {gaps:?}");
    assert!(gaps[0].contains("live/c") && !gaps[0].contains("\"b\""), "{gaps:?}");
    let mut stream = open(&two, &["b"], cursor);
    let (rest, gaps) = read(&mut stream).await;
    assert!(gaps.is_empty(), "{gaps:?}");
    received.extend(rest);
    assert_eq!(numbers(&received), expected);
    // Live events follow.
    publish(&one, &["b"], 2_000..2_005).await;
    for n in 2_000..2_005 {
        let event = loop {
            match soon(stream.next()).await.unwrap() {
                SubscriberItem::Event(event) => break event,
                // On a busy machine, an instance may be stale for a moment.
                SubscriberItem::Stale | SubscriberItem::Live(_) => {}
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(event.data, n.to_string());
    }

    // A topic that is joined from an old position.
    let mut page = open(&two, &["b"], one.position());
    read(&mut page).await;
    two.connection(page.connection()).join("a").since(begin).await.unwrap();
    let mut received = Vec::new();
    while received.len() < 2_000 {
        match soon(page.next()).await.unwrap() {
            SubscriberItem::Event(event) => received.push((event.data, event.position)),
            SubscriberItem::Gap { reason, .. } => panic!("a gap without loss: {reason}"),
            _ => {}
        }
    }
    assert_eq!(numbers(&received), expected);
}

for_each_broker!(older_records_come_from_the_broker(log): memory, redis, nats, postgres);

#[tokio::test]
async fn trimmed_records_of_the_broker_are_one_gap_and_the_rest_arrives() {
    let Some(server) = RedisServer::start(FORGETFUL) else { return };
    let one = start(server.log("trimmed").limits(LogLimits::new().max_records(1_000))).await;
    let begin = one.position();
    publish(&one, &["a", "b"], 0..2_000).await;
    until(|| number(one.position()) == number(begin) + 4_000).await;
    let mut stream = open(&one, &["a", "b"], begin);
    let (events, gaps) = read(&mut stream).await;
    assert_eq!(gaps.len(), 1, "{gaps:?}");
    assert!(gaps[0].contains("trimmed") && gaps[0].contains("\"a\"") && gaps[0].contains("\"b\""), "{gaps:?}");
    let numbers = numbers(&events);
    assert!(numbers.len() >= 1_000 && numbers.last() == Some(&1_999), "{}", numbers.len());
    assert!(
        events.windows(2).all(|pair| number(pair[1].1) == number(pair[0].1) + 1),
        "a hole in the remaining records"
    );
}

/// The broker is away during a backfill. The stream waits, and then receives every record.
#[tokio::test]
async fn backfill_waits_for_a_broker_that_is_away() {
    let log = FaultyLog::new();
    let one = start(log.connect()).await;
    let begin = one.position();
    publish(&one, &["a"], 0..3_000).await;
    until(|| number(one.position()) == number(begin) + 3_000).await;
    let mut stream = open(&one, &["a"], begin);
    log.faults().cut();
    let mut received = Vec::new();
    while received.len() < 3_000 {
        let next = tokio::time::timeout(Duration::from_millis(300), stream.next()).await;
        match next {
            Err(_) => log.faults().heal(),
            Ok(Some(SubscriberItem::Event(event))) => received.push((event.data, event.position)),
            Ok(Some(SubscriberItem::Gap { reason, .. })) => panic!("a gap without loss: {reason}"),
            Ok(_) => {}
        }
    }
    assert_eq!(numbers(&received), (0..3_000).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_cursor_of_another_epoch_causes_no_backfill() {
    let one = start(Memory::new()).await;
    publish(&one, &["a"], 0..100).await;
    let mut stream = one.subscribe(Subscription::anonymous().topic("a"), Cursor::parse(b"1.77.3")).unwrap();
    let (events, gaps) = read(&mut stream).await;
    assert!(events.len() <= 8 && gaps.len() == 1 && gaps[0].contains("epoch"), "{gaps:?}");
}

/// The hub reads blocks without a record for the stream silently, and only some of them in one
/// turn.
#[tokio::test]
async fn a_drained_stream_gets_the_records_behind_many_blocks_of_other_topics() {
    const BLOCKS: u32 = 40;
    let hub = start(Memory::new()).await;
    let before = hub.position();
    publish(&hub, &["other"], 0..BLOCKS * 512).await;
    // More records than memory keeps.
    publish(&hub, &["a"], 0..20).await;
    let last = number(before) + u64::from(BLOCKS * 512 + 20);
    until(|| number(hub.position()) >= last).await;
    let expected: Vec<String> = (0..20).map(|n| n.to_string()).collect();
    // The first stream loads all blocks, so that the second waits for none.
    let (events, gaps) = read(&mut open(&hub, &["a"], before)).await;
    assert_eq!((events.into_iter().map(|event| event.0).collect::<Vec<_>>(), gaps), (expected.clone(), vec![]));
    let mut late = open(&hub, &["a"], before);
    soon(hub.drain(Duration::ZERO)).await;
    let mut received = Vec::new();
    while let Some(item) = soon(late.next()).await {
        if let SubscriberItem::Event(event) = item {
            received.push(event.data);
        }
    }
    assert_eq!(received, expected);
}
