//! A hub whose streams live on several runtimes. One runtime is not driven, is blocked or has
//! ended, and streams on a healthy runtime are not affected.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use tokio::runtime::{Builder, Runtime};
use tower::ServiceExt;
use tower_sse::{
    Access, Cursor, Disconnect, EndReason, Event, EventBody, Hub, HubBuilder, Recheck, Refusal, StreamRequest,
    Subscriber, SubscriberItem, Subscription, TopicFilter,
};

use crate::kit::access::from_query;
use crate::kit::broker::{Broker, for_each_broker};
use crate::kit::{soon, until};

/// More listeners than a publisher wakes itself.
const MANY: usize = 40;
const MOMENT: Duration = Duration::from_millis(100);

#[derive(Clone, Copy, Debug, PartialEq)]
enum Failure {
    /// The runtime lives, and no thread runs it.
    Undriven,
    /// A task blocks the only thread of the runtime until the test is over.
    Blocked,
    Dropped,
}

const FAILURES: [Failure; 3] = [Failure::Undriven, Failure::Blocked, Failure::Dropped];

/// A runtime on which streams were opened before it failed.
struct FailedRuntime {
    /// The blocked thread and the sender that releases it.
    thread: Option<(mpsc::Sender<()>, JoinHandle<()>)>,
    undriven: Option<Runtime>,
    bodies: Vec<EventBody>,
}

impl FailedRuntime {
    fn runtime() -> Runtime {
        Builder::new_current_thread().enable_all().build().unwrap()
    }

    /// Opens a stream on a new runtime once the hub is ready there, and makes the runtime fail.
    async fn after_a_stream(hub: &Hub, failure: Failure) -> Self {
        let (opened, is_open) = tokio::sync::oneshot::channel();
        let (release, released) = mpsc::channel();
        let hub = hub.clone();
        let thread = std::thread::spawn(move || {
            let runtime = Self::runtime();
            let body = runtime.block_on(async {
                until(|| hub.is_ready()).await;
                let body = open(&hub, "/events?user=other&topic=elsewhere").await;
                // The hub's tasks get their first turns.
                for _ in 0..10 {
                    tokio::task::yield_now().await;
                }
                body
            });
            match failure {
                Failure::Undriven => drop(opened.send((Some(runtime), body))),
                Failure::Dropped => {
                    drop(runtime);
                    drop(opened.send((None, body)));
                }
                Failure::Blocked => runtime.block_on(async move {
                    drop(opened.send((None, body)));
                    // This blocks the runtime on purpose.
                    let _ = released.recv();
                }),
            }
        });
        let (undriven, body) = soon(is_open).await.unwrap();
        Self { thread: Some((release, thread)), undriven, bodies: vec![body] }
    }
}

impl Drop for FailedRuntime {
    fn drop(&mut self) {
        if let Some((release, thread)) = self.thread.take() {
            drop(release);
            drop(thread.join());
        }
        self.bodies.clear();
        if let Some(runtime) = self.undriven.take() {
            runtime.shutdown_background();
        }
    }
}

/// Counts the rechecks of streams of `ada`.
#[derive(Default)]
struct Counted(AtomicUsize);

struct Hook(Arc<Counted>);

impl Access for Hook {
    async fn authorize(&self, request: StreamRequest) -> Result<Subscription, Refusal> {
        Ok(from_query(&request))
    }

    async fn recheck(&self, subscription: Subscription) -> Recheck {
        if subscription.user().is_some_and(|user| user.as_str() == "ada") {
            self.0.0.fetch_add(1, Ordering::SeqCst);
        }
        Recheck::Keep
    }
}

fn counted() -> &'static Arc<Counted> {
    static COUNTED: std::sync::LazyLock<Arc<Counted>> = std::sync::LazyLock::new(Arc::default);
    &COUNTED
}

/// Opens a stream through the endpoint, as a server would.
async fn open(hub: &Hub, uri: &str) -> EventBody {
    let endpoint = hub.endpoint(Hook(Arc::clone(counted())));
    let request = Request::get(uri).body(Full::<Bytes>::default()).unwrap();
    soon(endpoint.oneshot(request)).await.unwrap().into_body()
}

fn builder() -> HubBuilder {
    Hub::builder()
        .recheck_every(MOMENT)
        .write_deadline(4 * MOMENT)
        .heartbeat(MOMENT)
        .presence_grace(MOMENT)
        .presence_for(TopicFilter::prefix("room/"))
        .probe_interval(MOMENT)
}

fn listen(hub: &Hub, topic: &str) -> Subscriber {
    hub.subscribe(Subscription::for_user("ada").topic(topic), Cursor::Absent).unwrap()
}

async fn next_event(stream: &mut Subscriber) -> String {
    loop {
        match soon(stream.next()).await.unwrap() {
            SubscriberItem::Event(event) if event.name.is_empty() => return event.data,
            SubscriberItem::Event(event) => return event.name,
            SubscriberItem::End(reason) => return format!("end: {reason:?}"),
            _ => {}
        }
    }
}

async fn live(stream: &mut Subscriber) {
    while !matches!(soon(stream.next()).await.unwrap(), SubscriberItem::Live(_)) {}
}

/// Runs `case` on the healthy runtime, once for each failure of another runtime that has a stream.
async fn with_each_failure(build: impl Fn() -> Hub, mut case: impl AsyncFnMut(&Hub, Failure)) {
    for failure in FAILURES {
        let hub = build();
        let first = FailedRuntime::after_a_stream(&hub, failure).await;
        case(&hub, failure).await;
        drop(first);
    }
}

fn alone() -> Hub {
    builder().build().unwrap()
}

#[tokio::test]
async fn a_publish_to_many_listeners_reaches_them() {
    with_each_failure(alone, async |hub, failure| {
        let mut streams: Vec<_> = (0..MANY).map(|_| listen(hub, "news")).collect();
        for stream in &mut streams {
            live(stream).await;
        }
        // The runtime of the last stream is the one that fails.
        let _last = FailedRuntime::after_a_stream(hub, failure).await;
        let readers = streams.into_iter().map(|mut stream| tokio::spawn(async move { next_event(&mut stream).await }));
        let readers: Vec<_> = readers.collect();
        tokio::task::yield_now().await;
        hub.topic("news").publish(Event::unnamed("headline")).await.unwrap();
        for reader in readers {
            assert_eq!(soon(reader).await.unwrap(), "headline", "{failure:?}");
        }
    })
    .await;
}

#[tokio::test]
async fn a_stream_is_rechecked() {
    with_each_failure(alone, async |hub, _| {
        let mut body = open(hub, "/events?user=ada&topic=news").await;
        let reader = tokio::spawn(async move { while body.frame().await.is_some() {} });
        let before = counted().0.load(Ordering::SeqCst);
        until(|| counted().0.load(Ordering::SeqCst) >= before + 3).await;
        reader.abort();
    })
    .await;
}

#[tokio::test]
async fn a_stream_that_is_not_read_counts_as_stalled() {
    with_each_failure(alone, async |hub, _| {
        let mut body = open(hub, "/events?user=stalled&topic=news").await;
        soon(body.frame()).await.unwrap().unwrap();
        hub.topic("news").publish(Event::unnamed("headline")).await.unwrap();
        until(|| hub.stats().ended(EndReason::Stalled) > 0 && !hub.user("stalled").has_subscribers()).await;
    })
    .await;
}

#[tokio::test]
async fn a_member_that_leaves_is_published() {
    with_each_failure(alone, async |hub, failure| {
        let mut watcher = hub.subscribe(Subscription::for_user("bea").topic("room/1"), Cursor::Absent).unwrap();
        assert_eq!(next_event(&mut watcher).await, "hub.joined");
        live(&mut watcher).await;
        drop(listen(hub, "room/1"));
        assert_eq!(next_event(&mut watcher).await, "hub.joined", "{failure:?}");
        assert_eq!(next_event(&mut watcher).await, "hub.left", "{failure:?}");
    })
    .await;
}

/// Two instances on one log. The first has streams on a failed runtime.
async fn with_a_shared_log(broker: impl Broker, mut case: impl AsyncFnMut(&Hub, &Hub, Failure)) {
    for failure in FAILURES {
        let other = builder().backplane(broker.log("n")).build().unwrap();
        until(|| other.is_ready()).await;
        // Built without a runtime, so that the first stream decides where its tasks run.
        let log = broker.log("n");
        let hub = std::thread::spawn(move || builder().backplane(log).build().unwrap()).join().unwrap();
        let failed = FailedRuntime::after_a_stream(&hub, failure).await;
        case(&hub, &other, failure).await;
        drop(failed);
    }
}

async fn an_event_of_another_instance_arrives(broker: impl Broker) {
    with_a_shared_log(broker, async |hub, other, failure| {
        let mut stream = listen(hub, "news");
        other.topic("news").publish(Event::unnamed("from elsewhere")).await.unwrap();
        assert_eq!(next_event(&mut stream).await, "from elsewhere", "{failure:?}");
        until(|| hub.is_ready()).await;
    })
    .await;
}

async fn an_event_of_this_instance_arrives(broker: impl Broker) {
    with_a_shared_log(broker, async |hub, _, failure| {
        let mut stream = listen(hub, "news");
        hub.topic("news").publish(Event::unnamed("from here")).await.unwrap();
        assert_eq!(next_event(&mut stream).await, "from here", "{failure:?}");
    })
    .await;
}

async fn a_disconnect_by_another_instance_arrives(broker: impl Broker) {
    with_a_shared_log(broker, async |hub, other, failure| {
        let mut stream = listen(hub, "news");
        other.user("ada").disconnect(Disconnect::now()).await.unwrap();
        assert_eq!(next_event(&mut stream).await, "end: Disconnected", "{failure:?}");
    })
    .await;
}

async fn an_instance_is_not_ready_while_its_tasks_do_not_run(broker: impl Broker) {
    for failure in FAILURES {
        let log = broker.log("n");
        let hub = std::thread::spawn(move || builder().backplane(log).build().unwrap()).join().unwrap();
        let failed = FailedRuntime::after_a_stream(&hub, failure).await;
        // A thread outside of any runtime calls `is_ready`, so that no caller can take the tasks
        // over.
        let observed = hub.clone();
        let not_ready = tokio::task::spawn_blocking(move || {
            std::thread::spawn(move || {
                let begun = std::time::Instant::now();
                while observed.is_ready() {
                    assert!(begun.elapsed() < Duration::from_secs(10), "{failure:?}: still ready");
                    std::thread::yield_now();
                }
            })
            .join()
        });
        soon(not_ready).await.unwrap().unwrap();
        drop(failed);
    }
}

for_each_broker!(an_event_of_another_instance_arrives(broker): memory, redis, nats, postgres);
for_each_broker!(an_event_of_this_instance_arrives(broker): memory, redis, nats, postgres);
for_each_broker!(a_disconnect_by_another_instance_arrives(broker): memory, redis, nats, postgres);
for_each_broker!(an_instance_is_not_ready_while_its_tasks_do_not_run(broker): memory);
