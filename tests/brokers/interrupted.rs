//! Runtimes that end while others continue, and a log that fails for some requests. No stream waits
//! without end, and no stream receives a wrong state.

use std::time::Duration;

use futures::StreamExt;
use http::Request;
use tower_sse::backplane::{Backplane, Memory};
use tower_sse::test_kit::{Call, Fault, FaultyLog, LogConnection, Operation, TestClient};
use tower_sse::{
    Disconnect, Event, Hub, HubBuilder, Position, Public, Retention, SseEndpoint, Subscriber, SubscriberItem,
    Subscription, TopicFilter,
};

use crate::kit::{soon, until};

/// Returns the connection of the only instance of a new log.
fn connect() -> LogConnection {
    FaultyLog::new().connect()
}

fn builder() -> HubBuilder {
    Hub::builder().topic_retention(Retention::replay().count(8)).probe_interval(Duration::from_millis(100))
}

async fn start(log: impl Backplane) -> Hub {
    let hub = builder().backplane(log).build().unwrap();
    until(|| hub.is_ready()).await;
    hub
}

/// Opens the page of topic `a` with a last event id, which may be empty.
async fn open(hub: &Hub, last_event_id: &str) -> TestClient<SseEndpoint, ()> {
    let request = Request::get("/?topic=a").header("last-event-id", last_event_id).body(()).unwrap();
    let page = TestClient::open(&hub.endpoint(Public::topics(TopicFilter::any())), request).await.unwrap();
    page.time_limit(Duration::from_secs(60))
}

async fn publish(hub: &Hub, topic: &str, count: u32) {
    let events: Vec<_> = (0..count).map(|n| (hub.topic(topic), Event::unnamed(n.to_string()))).collect();
    assert!(hub.publish_many(events).await.iter().all(Result::is_ok));
}

fn number(position: Position) -> u64 {
    position.to_string().rsplit('.').next().unwrap().parse().unwrap()
}

async fn caught_up(hub: &Hub, n: u64) {
    until(|| number(hub.position()) >= n).await;
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

/// Runs a test in a separate thread, since it may hang.
fn within(limit: Duration, test: impl FnOnce() + Send + 'static) {
    let (done, is_done) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        test();
        let _ = done.send(());
    });
    is_done.recv_timeout(limit).expect("the test hangs or has panicked");
}

async fn count_events(stream: &mut Subscriber, expected: usize) {
    for _ in 0..expected {
        soon(stream.next_event()).await.unwrap();
    }
}

/// The runtime of the newest stream has ended, and another stream needs older records.
#[test]
fn backfill_continues_when_the_runtime_of_the_newest_stream_has_ended() {
    within(Duration::from_secs(20), || {
        let b = runtime();
        let (hub, mut stream) = b.block_on(async {
            let hub = start(Memory::new()).await;
            let begin = hub.position();
            publish(&hub, "a", 100).await;
            caught_up(&hub, 100).await;
            let stream = hub.subscribe(Subscription::anonymous().topic("a"), begin).unwrap();
            (hub, stream)
        });
        let a = runtime();
        let _other = a.block_on(async { hub.subscribe(Subscription::anonymous().topic("b"), None).unwrap() });
        a.shutdown_timeout(Duration::from_secs(1));
        b.block_on(count_events(&mut stream, 100));
    });
}

/// The runtime of the task that reads the log ends while a stream on another runtime waits for the
/// records.
#[test]
fn records_arrive_after_the_runtime_of_the_reading_task_is_gone() {
    within(Duration::from_secs(30), || {
        let b = runtime();
        let log = connect();
        let (hub, mut stream) = b.block_on(async {
            let hub = start(log.clone()).await;
            let begin = hub.position();
            publish(&hub, "a", 100).await;
            caught_up(&hub, 100).await;
            let stream = hub.subscribe(Subscription::anonymous().topic("a"), begin).unwrap();
            (hub, stream)
        });
        let a = runtime();
        log.faults().every(Operation::Range, Fault::HoldRequest);
        let before = log.faults().calls(Operation::Range);
        // The first poll is on this runtime, so this runtime reads the log.
        a.block_on(async {
            assert!(futures::poll!(StreamExt::next(&mut stream)).is_pending());
            until(|| log.faults().calls(Operation::Range) > before).await;
        });
        // The stream waits on the other runtime when this one ends, and is polled again only if it
        // is woken.
        let (waits, is_waiting) = std::sync::mpsc::channel();
        let task = b.spawn(async move {
            std::future::poll_fn(|cx| {
                let next = stream.poll_next_unpin(cx);
                waits.send(()).unwrap();
                next.map(drop)
            })
            .await;
            count_events(&mut stream, 99).await;
        });
        is_waiting.recv().unwrap();
        a.shutdown_timeout(Duration::from_secs(1));
        log.faults().heal();
        b.block_on(task).unwrap();
        drop(hub);
    });
}

/// The disconnect is broadcast after the runtime of the control task has ended, and before the task
/// starts on the other runtime.
#[test]
fn a_disconnect_arrives_after_the_runtime_of_the_control_task_has_ended() {
    within(Duration::from_secs(30), || {
        let (a, b) = (runtime(), runtime());
        let log = Memory::new();
        let two = b.block_on(start(log.clone()));
        let one = a.block_on(start(log));
        // The instance has received a control message.
        a.block_on(until(|| one.stats().others == 1));
        let mut stream = b.block_on(async { one.subscribe(Subscription::for_user("ada"), None).unwrap() });
        a.shutdown_timeout(Duration::from_secs(1));
        b.block_on(async {
            two.user("ada").disconnect(Disconnect::default()).await.unwrap();
            // The next use of the hub restarts the tasks that have ended with their runtime.
            publish(&one, "a", 1).await;
            while !matches!(soon(stream.next()).await.unwrap(), SubscriberItem::End(_)) {}
        });
    });
}

/// The new epoch was empty when the hub detected it.
#[tokio::test]
async fn the_newest_record_of_an_old_epoch_causes_no_further_epoch() {
    let log = FaultyLog::new();
    let connection = log.connect();
    let hub = start(connection.clone()).await;
    publish(&hub, "a", 10).await;
    caught_up(&hub, 10).await;
    let first = hub.position();
    // The broker restarts empty.
    log.restore(&FaultyLog::new());
    log.faults().break_streams();
    let epoch = |position: Position| position.to_string().split('.').nth(1).unwrap().to_owned();
    until(|| epoch(hub.position()) != epoch(first)).await;
    until(|| hub.is_ready()).await;
    let second = epoch(hub.position());
    // The instance is cut off while another instance publishes.
    connection.faults().cut();
    tokio::time::sleep(Duration::from_millis(300)).await;
    let other = start(log.connect()).await;
    publish(&other, "b", 20).await;
    connection.faults().heal();
    caught_up(&hub, 20).await;
    assert_eq!(epoch(hub.position()), second, "the epoch has changed although the log is the same");
}

/// One block of the log cannot be read, and another stream needs another block.
#[tokio::test]
async fn a_failed_block_delays_no_other_block() {
    let log = connect();
    let hub = start(log.clone()).await;
    let begin = hub.position();
    publish(&hub, "a", 1_500).await;
    caught_up(&hub, 1_500).await;
    let middle = hub.position();
    publish(&hub, "a", 100).await;
    caught_up(&hub, 1_600).await;
    let is_low = |call: &Call<'_>| call.after.is_some_and(|after| after < 512);
    log.faults().every_if(Operation::Range, Fault::Unavailable, is_low);
    let mut low = hub.subscribe(Subscription::anonymous().topic("a"), begin).unwrap();
    tokio::spawn(async move { while low.next().await.is_some() {} });
    tokio::time::sleep(Duration::from_millis(200)).await;
    let mut high = hub.subscribe(Subscription::anonymous().topic("a"), middle).unwrap();
    count_events(&mut high, 100).await;
}

/// A visible heartbeat would report that the waiting stream is live.
#[tokio::test(start_paused = true)]
async fn a_stream_that_waits_for_older_records_is_not_live() {
    let log = connect();
    let hub = builder().heartbeat(Duration::from_secs(5)).visible_heartbeat().backplane(log.clone()).build().unwrap();
    until(|| hub.is_ready()).await;
    let begin = hub.position();
    publish(&hub, "a", 100).await;
    caught_up(&hub, 100).await;
    log.faults().every(Operation::Range, Fault::HoldRequest);
    let mut page = open(&hub, &begin.to_string()).await;
    let live = async { while page.next().await.is_some_and(|event| event.name != "hub.live") {} };
    assert!(tokio::time::timeout(Duration::from_secs(30), live).await.is_err());
}

/// The broker is away, and the stream waits for a block.
#[tokio::test(start_paused = true)]
async fn a_stream_that_waits_for_an_unavailable_broker_receives_stale() {
    let log = connect();
    let hub = builder().heartbeat(Duration::from_secs(5)).backplane(log.clone()).build().unwrap();
    until(|| hub.is_ready()).await;
    let begin = hub.position();
    publish(&hub, "a", 100).await;
    caught_up(&hub, 100).await;
    log.faults().cut();
    tokio::time::sleep(Duration::from_secs(10)).await;
    open(&hub, &begin.to_string()).await.expect_event("hub.stale").await;
}

/// The last state that a page receives is its true state. A page that connects while the broker is
/// away is live at first, since it has every event of the instance. Then it is stale, and no
/// heartbeat makes it live again before the broker is back.
#[tokio::test(start_paused = true)]
async fn a_page_that_connects_without_a_broker_receives_stale_after_live() {
    let log = connect();
    let hub = builder().heartbeat(Duration::from_secs(5)).visible_heartbeat().backplane(log.clone()).build().unwrap();
    until(|| hub.is_ready()).await;
    log.faults().cut();
    until(|| !hub.is_ready()).await;
    let mut page = open(&hub, "").await.time_limit(Duration::from_secs(600));
    for name in ["hub.hello", "hub.live", "hub.stale"] {
        assert_eq!(page.next().await.unwrap().name, name);
    }
    let next = tokio::time::timeout(Duration::from_secs(300), page.next()).await;
    assert!(next.is_err(), "{next:?}");
    log.faults().heal();
    // The visible heartbeat is `hub.live` too.
    for _ in 0..3 {
        assert_eq!(page.next().await.unwrap().name, "hub.live");
    }
}

/// The instance cannot know that the log is still the same, although the tail yields records.
#[tokio::test(start_paused = true)]
async fn an_instance_whose_probe_fails_is_not_ready_until_the_probe_succeeds() {
    let log = FaultyLog::new();
    let connection = log.connect();
    let hub = start(connection.clone()).await;
    let other = start(log.connect()).await;
    let mut stream = hub.subscribe(Subscription::anonymous().topic("a"), None).unwrap();
    connection.faults().every(Operation::State, Fault::Unavailable);
    until(|| !hub.is_ready()).await;
    publish(&other, "a", 8).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(!hub.is_ready());
    connection.faults().heal();
    count_events(&mut stream, 8).await;
    until(|| hub.is_ready()).await;
}
