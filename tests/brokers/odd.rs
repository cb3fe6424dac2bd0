//! Runtimes that end while others continue, and a log that fails for some requests. No stream waits
//! without end, and no stream receives a wrong state.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt};
use http::Request;
use http_body_util::BodyExt;
use tower::ServiceExt;
use tower_sse::backplane::sealed::Sealed;
use tower_sse::backplane::{
    Backplane, BackplaneError, ControlMessage, CurrentValue, LogPosition, LogState, Memory, NewRecord, Seen, Stored,
};
use tower_sse::{
    Disconnect, Event, Hub, HubBuilder, Position, Public, Retention, Subscriber, SubscriberItem, Subscription,
    TopicFilter,
};

use crate::kit::{soon, until};
use crate::pass_journals::pass_journals;

/// A log that a test can replace, stall, or make fail for some numbers.
#[derive(Clone)]
struct Odd {
    log: Arc<Mutex<Memory>>,
    /// The number of reads of older records.
    reads: Arc<AtomicU64>,
    /// While set, a read of older records waits.
    hangs: Arc<AtomicBool>,
    /// A read that starts below this number fails.
    fails_below: Arc<AtomicU64>,
    away: Arc<AtomicBool>,
    cut: tokio::sync::watch::Sender<u64>,
}

impl Odd {
    fn new() -> Self {
        Self {
            log: Arc::new(Mutex::new(Memory::new())),
            reads: Arc::default(),
            hangs: Arc::default(),
            fails_below: Arc::default(),
            away: Arc::default(),
            cut: tokio::sync::watch::Sender::new(0),
        }
    }
    fn inner(&self) -> Memory {
        self.log.lock().unwrap().clone()
    }
    fn cut(&self) {
        self.cut.send_modify(|n| *n += 1);
    }
    async fn journals(&self) -> Result<Memory, BackplaneError> {
        if self.away.load(Ordering::SeqCst) { Err(BackplaneError::unavailable("away")) } else { Ok(self.inner()) }
    }
}

impl Sealed for Odd {}

pass_journals!(Odd);

impl Backplane for Odd {
    fn append(
        &self,
        records: Vec<NewRecord>,
        seen: Option<Seen>,
    ) -> BoxFuture<'_, Vec<Result<LogPosition, BackplaneError>>> {
        async move { self.inner().append(records, seen).await }.boxed()
    }
    fn state(&self, seen: Option<Seen>) -> BoxFuture<'_, Result<LogState, BackplaneError>> {
        async move {
            if self.away.load(Ordering::SeqCst) {
                return Err(BackplaneError::unavailable("away"));
            }
            self.inner().state(seen).await
        }
        .boxed()
    }
    fn range(&self, after: u64, limit: usize) -> BoxFuture<'_, Result<Vec<Stored>, BackplaneError>> {
        async move {
            self.reads.fetch_add(1, Ordering::SeqCst);
            while self.hangs.load(Ordering::SeqCst) {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            if after < self.fails_below.load(Ordering::SeqCst) {
                return Err(BackplaneError::unavailable("failed by the test"));
            }
            self.inner().range(after, limit).await
        }
        .boxed()
    }
    fn tail(&self, after: u64) -> BoxStream<'static, Result<Vec<Stored>, BackplaneError>> {
        let mut cut = self.cut.subscribe();
        cut.mark_unchanged();
        let tail = self.inner().tail(after);
        let broken = async move {
            let _ = cut.changed().await;
        };
        tail.take_until(broken).boxed()
    }
    fn values(&self) -> BoxFuture<'_, Result<Vec<CurrentValue>, BackplaneError>> {
        async move { self.inner().values().await }.boxed()
    }
    fn broadcast(&self, message: Bytes) -> BoxFuture<'_, Result<(), BackplaneError>> {
        async move { self.inner().broadcast(message).await }.boxed()
    }
    fn listen(&self, after: Option<Box<str>>) -> BoxStream<'static, Result<ControlMessage, BackplaneError>> {
        self.inner().listen(after)
    }
    fn put_once(&self, key: &str, payload: Bytes, time: Duration) -> BoxFuture<'_, Result<(), BackplaneError>> {
        let key = key.to_owned();
        async move { self.inner().put_once(&key, payload, time).await }.boxed()
    }
    fn take(&self, key: &str) -> BoxFuture<'_, Result<Option<Bytes>, BackplaneError>> {
        let key = key.to_owned();
        async move { self.inner().take(&key).await }.boxed()
    }
    fn describe(&self) -> String {
        "an odd log".into()
    }
}

fn builder() -> HubBuilder {
    Hub::builder().topic_retention(Retention::replay().count(8)).probe_interval(Duration::from_millis(100))
}

async fn start(log: impl Backplane) -> Hub {
    let hub = builder().backplane(log).build().unwrap();
    until(|| hub.is_ready()).await;
    hub
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
    let mut count = 0;
    while count < expected {
        count += usize::from(matches!(soon(stream.next()).await.unwrap(), SubscriberItem::Event(_)));
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
        let odd = Odd::new();
        let (hub, mut stream) = b.block_on(async {
            let hub = start(odd.clone()).await;
            let begin = hub.position();
            publish(&hub, "a", 100).await;
            caught_up(&hub, 100).await;
            let stream = hub.subscribe(Subscription::anonymous().topic("a"), begin).unwrap();
            (hub, stream)
        });
        let a = runtime();
        odd.hangs.store(true, Ordering::SeqCst);
        let before = odd.reads.load(Ordering::SeqCst);
        // The first poll is on this runtime, so this runtime reads the log.
        a.block_on(async {
            assert!(futures::poll!(StreamExt::next(&mut stream)).is_pending());
            until(|| odd.reads.load(Ordering::SeqCst) > before).await;
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
        odd.hangs.store(false, Ordering::SeqCst);
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
    let odd = Odd::new();
    let hub = start(odd.clone()).await;
    publish(&hub, "a", 10).await;
    caught_up(&hub, 10).await;
    let first = hub.position();
    // The broker restarts empty.
    *odd.log.lock().unwrap() = Memory::new();
    odd.cut();
    let epoch = |position: Position| position.to_string().split('.').nth(1).unwrap().to_owned();
    until(|| epoch(hub.position()) != epoch(first)).await;
    until(|| hub.is_ready()).await;
    let second = epoch(hub.position());
    // The instance is cut off while another instance publishes.
    odd.away.store(true, Ordering::SeqCst);
    odd.cut();
    tokio::time::sleep(Duration::from_millis(300)).await;
    let other = start(odd.inner()).await;
    publish(&other, "b", 20).await;
    odd.away.store(false, Ordering::SeqCst);
    caught_up(&hub, 20).await;
    assert_eq!(epoch(hub.position()), second, "the epoch has changed although the log is the same");
}

/// One block of the log cannot be read, and another stream needs another block.
#[tokio::test]
async fn a_failed_block_delays_no_other_block() {
    let odd = Odd::new();
    let hub = start(odd.clone()).await;
    let begin = hub.position();
    publish(&hub, "a", 1_500).await;
    caught_up(&hub, 1_500).await;
    let middle = hub.position();
    publish(&hub, "a", 100).await;
    caught_up(&hub, 1_600).await;
    odd.fails_below.store(512, Ordering::SeqCst);
    let mut low = hub.subscribe(Subscription::anonymous().topic("a"), begin).unwrap();
    tokio::spawn(async move { while low.next().await.is_some() {} });
    tokio::time::sleep(Duration::from_millis(200)).await;
    let mut high = hub.subscribe(Subscription::anonymous().topic("a"), middle).unwrap();
    count_events(&mut high, 100).await;
}

/// A visible heartbeat would report that the waiting stream is live.
#[tokio::test(start_paused = true)]
async fn a_stream_that_waits_for_older_records_is_not_live() {
    let odd = Odd::new();
    let hub = builder().heartbeat(Duration::from_secs(5)).visible_heartbeat().backplane(odd.clone()).build().unwrap();
    until(|| hub.is_ready()).await;
    let begin = hub.position();
    publish(&hub, "a", 100).await;
    caught_up(&hub, 100).await;
    odd.hangs.store(true, Ordering::SeqCst);
    let request = Request::get("/?topic=a").header("last-event-id", begin.to_string()).body(()).unwrap();
    let response = soon(hub.endpoint(Public::topics(TopicFilter::any())).oneshot(request)).await.unwrap();
    let mut body = Box::pin(response.into_body());
    let mut text = String::new();
    while let Ok(Some(Ok(frame))) = tokio::time::timeout(Duration::from_secs(20), body.frame()).await {
        text += std::str::from_utf8(&frame.into_data().unwrap()).unwrap();
        if text.len() > 2_000 {
            break;
        }
    }
    assert!(!text.contains("hub.live"), "{text}");
}

/// The broker is away, and the stream waits for a block.
#[tokio::test(start_paused = true)]
async fn a_stream_that_waits_for_an_unavailable_broker_receives_stale() {
    let odd = Odd::new();
    let hub = builder().heartbeat(Duration::from_secs(5)).backplane(odd.clone()).build().unwrap();
    until(|| hub.is_ready()).await;
    let begin = hub.position();
    publish(&hub, "a", 100).await;
    caught_up(&hub, 100).await;
    odd.fails_below.store(u64::MAX, Ordering::SeqCst);
    odd.away.store(true, Ordering::SeqCst);
    odd.cut();
    tokio::time::sleep(Duration::from_secs(10)).await;
    let request = Request::get("/?topic=a").header("last-event-id", begin.to_string()).body(()).unwrap();
    let response = soon(hub.endpoint(Public::topics(TopicFilter::any())).oneshot(request)).await.unwrap();
    let mut body = Box::pin(response.into_body());
    let mut text = String::new();
    for _ in 0..6 {
        if let Ok(Some(Ok(frame))) = tokio::time::timeout(Duration::from_secs(20), body.frame()).await {
            text += std::str::from_utf8(&frame.into_data().unwrap()).unwrap();
        }
    }
    assert!(text.contains("hub.stale"), "{text}");
}

/// The last state that a page receives is its true state. A page that connects while the broker is
/// away is live at first, since it has every event of the instance. Then it is stale, and no
/// heartbeat makes it live again before the broker is back.
#[tokio::test(start_paused = true)]
async fn a_page_that_connects_without_a_broker_receives_stale_after_live() {
    let odd = Odd::new();
    let hub = builder().heartbeat(Duration::from_secs(5)).visible_heartbeat().backplane(odd.clone()).build().unwrap();
    until(|| hub.is_ready()).await;
    odd.away.store(true, Ordering::SeqCst);
    odd.cut();
    until(|| !hub.is_ready()).await;
    let request = Request::get("/?topic=a").body(()).unwrap();
    let response = soon(hub.endpoint(Public::topics(TopicFilter::any())).oneshot(request)).await.unwrap();
    let mut body = Box::pin(response.into_body());
    let mut text = String::new();
    let mut frames = async |text: &mut String, seconds: u64| {
        let until = tokio::time::Instant::now() + Duration::from_secs(seconds);
        while let Ok(Some(Ok(frame))) = tokio::time::timeout_at(until, body.frame()).await {
            *text += std::str::from_utf8(&frame.into_data().unwrap()).unwrap();
        }
    };
    let last =
        |text: &str| text.lines().filter_map(|line| line.strip_prefix("event: ")).next_back().unwrap().to_owned();
    frames(&mut text, 300).await;
    assert_eq!(last(&text), "hub.stale", "{text}");
    assert_eq!(text.matches("hub.live").count(), 1, "{text}");
    odd.away.store(false, Ordering::SeqCst);
    frames(&mut text, 30).await;
    assert_eq!(last(&text), "hub.live", "{text}");
}
