//! Limits of connections, of connection attempts, of connection age and of topics.

use std::future::ready;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use axum::Router;
use futures::future::join_all;
use http::{Request, StatusCode};
use tokio::task::JoinHandle;
use tower::Service;
use tower_sse::{
    EndReason, Event, Hub, HubBuilder, OverLimit, Public, RefusalReason, Retention, Start, StreamRequest, Subscription,
    TopicFilter,
};

use crate::kit::access::from_query;
use crate::kit::{self, Events, Server, get, parsed, resume, send, soon, subscribe, until};

const RETRY: Duration = Duration::from_millis(100);
const SECOND: Duration = Duration::from_secs(1);
/// Below 13.5 s, at which the first heartbeat would end a stream that is too old.
const LATE: Duration = Duration::from_secs(10);

/// Serves streams of the user in the query and of the topic `t`.
async fn serve(builder: HubBuilder) -> (Hub, Server) {
    let hub = builder.retry(RETRY).build().unwrap();
    let access = async |request: StreamRequest| Ok(from_query(&request).topic("t"));
    let server = Server::start(&hub, Router::new().route_service("/events", hub.endpoint(access))).await;
    (hub, server)
}

/// The outcome of a request for a stream.
enum Outcome {
    Opened(Events),
    /// The time after which to try again.
    Refused(Duration),
}

async fn attempt(server: &Server, path: &str) -> Outcome {
    let mut events = get(server.addr, path).await.events();
    let first = events.next().await;
    if first.event == "hub.hello" {
        return Outcome::Opened(events);
    }
    assert_eq!((first.event.as_str(), parsed(&first)["reason"].as_str()), ("hub.refused", Some("limit")));
    let retry = first.retry.expect("a refusal has a retry time");
    assert_eq!(parsed(&first)["retry_ms"], u64::try_from(retry.as_millis()).unwrap());
    let rest = events.rest().await;
    assert!(rest.is_empty(), "{rest:?}");
    Outcome::Refused(retry)
}

async fn is_opened(server: &Server, path: &str) -> bool {
    matches!(attempt(server, path).await, Outcome::Opened(_))
}

/// Sends `count` requests at the same time. Returns the open streams, and the retry times of the
/// refusals.
async fn rush(server: &Server, path: &str, count: usize) -> (Vec<Events>, Vec<Duration>) {
    let (mut opened, mut refused) = (Vec::new(), Vec::new());
    for outcome in join_all((0..count).map(|_| attempt(server, path))).await {
        match outcome {
            Outcome::Opened(events) => opened.push(events),
            Outcome::Refused(retry) => refused.push(retry),
        }
    }
    (opened, refused)
}

/// Polls the number of connections on a thread, and keeps the maximum.
struct ConnectionMonitor {
    stop: Arc<AtomicBool>,
    max: Arc<AtomicUsize>,
    thread: std::thread::JoinHandle<()>,
}

impl ConnectionMonitor {
    fn over(hub: &Hub) -> Self {
        let (stop, max) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (hub, stopped, seen) = (hub.clone(), Arc::clone(&stop), Arc::clone(&max));
        let thread = std::thread::spawn(move || {
            // Reads the number once more after `stop` was set.
            loop {
                let is_last = stopped.load(Ordering::SeqCst);
                seen.fetch_max(hub.stats().connections, Ordering::SeqCst);
                if is_last {
                    return;
                }
                std::thread::yield_now();
            }
        });
        Self { stop, max, thread }
    }

    fn max(self) -> usize {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.join().unwrap();
        self.max.load(Ordering::SeqCst)
    }
}

/// Reads to the end, which has to be that of a stream that was displaced by a newer one.
async fn displaced(events: Events) {
    let bye = events.rest().await.pop().unwrap();
    assert_eq!(bye.event, "hub.bye");
    assert_eq!(parsed(&bye), serde_json::json!({ "reason": "limit", "reconnect": "later" }));
    let retry = bye.retry.unwrap();
    assert!((10 * RETRY..=20 * RETRY).contains(&retry), "{retry:?}");
}

fn spread(times: &[Duration]) -> Duration {
    *times.iter().max().unwrap() - *times.iter().min().unwrap()
}

// -------------------------------------------------------------------------------------------------
// Number of connections

#[tokio::test(flavor = "multi_thread")]
async fn simultaneous_requests_are_refused_above_the_limit_with_spread_retry_times() {
    let (hub, server) = serve(Hub::builder().max_connections(10, OverLimit::Refuse)).await;
    let watch = ConnectionMonitor::over(&hub);
    let (opened, refused) = rush(&server, "/events", 50).await;
    assert_eq!((opened.len(), refused.len(), watch.max()), (10, 40, 10));
    assert!(refused.iter().all(|retry| (RETRY..=3 * RETRY).contains(retry)), "{refused:?}");
    assert!(spread(&refused) > RETRY / 4, "{refused:?}");
    assert_eq!(hub.stats().refused(RefusalReason::Limit), 40);
}

#[tokio::test(flavor = "multi_thread")]
async fn simultaneous_requests_displace_the_oldest_connections() {
    let (hub, server) = serve(Hub::builder().max_connections(10, OverLimit::CloseOldest)).await;
    let watch = ConnectionMonitor::over(&hub);
    let (opened, _) = rush(&server, "/events", 50).await;
    assert_eq!((opened.len(), watch.max(), hub.stats().connections), (50, 10, 10));
    assert_eq!(hub.stats().ended(EndReason::Limit), 40);
}

#[tokio::test(flavor = "multi_thread")]
async fn simultaneous_tabs_of_a_user_are_refused_above_the_limit() {
    let (hub, server) = serve(Hub::builder().max_connections_per_user(3, OverLimit::Refuse)).await;
    let watch = ConnectionMonitor::over(&hub);
    let (ada, ben) = tokio::join!(rush(&server, "/events?user=ada", 25), rush(&server, "/events?user=ben", 25));
    assert_eq!((ada.0.len(), ben.0.len(), watch.max()), (3, 3, 6));
    assert_eq!((hub.user("ada").count(), hub.user("ben").count()), (3, 3));
    assert!(spread(&ada.1) > RETRY / 4, "{:?}", ada.1);
}

#[tokio::test(flavor = "multi_thread")]
async fn simultaneous_tabs_of_a_user_displace_the_oldest() {
    let (hub, server) = serve(Hub::builder().max_connections_per_user(3, OverLimit::CloseOldest)).await;
    let watch = ConnectionMonitor::over(&hub);
    let (opened, _) = rush(&server, "/events?user=ada", 50).await;
    assert_eq!((opened.len(), watch.max(), hub.user("ada").count()), (50, 3, 3));
}

#[tokio::test]
async fn anonymous_connections_do_not_count_for_the_limit_of_a_user() {
    let (_hub, server) = serve(Hub::builder().max_connections_per_user(1, OverLimit::Refuse)).await;
    let (opened, _) = rush(&server, "/events", 5).await;
    assert_eq!(opened.len(), 5);
    let _first = subscribe(server.addr, "/events?user=ada").await;
    assert!(!is_opened(&server, "/events?user=ada").await);
    assert!(is_opened(&server, "/events?user=ben").await);
}

#[tokio::test]
async fn both_limits_hold_and_a_displaced_tab_frees_a_place_in_both() {
    let builder =
        Hub::builder().max_connections(2, OverLimit::Refuse).max_connections_per_user(1, OverLimit::CloseOldest);
    let (hub, server) = serve(builder).await;
    let ada = subscribe(server.addr, "/events?user=ada").await;
    let _ben = subscribe(server.addr, "/events?user=ben").await;
    assert!(!is_opened(&server, "/events?user=eve").await);
    let _ada = subscribe(server.addr, "/events?user=ada").await;
    displaced(ada).await;
    assert_eq!((hub.stats().connections, hub.user("ada").count(), hub.user("ben").count()), (2, 1, 1));
}

#[tokio::test]
async fn the_oldest_connection_is_displaced_and_resumes_without_loss() {
    for builder in [
        Hub::builder().max_connections(2, OverLimit::CloseOldest),
        Hub::builder().max_connections_per_user(2, OverLimit::CloseOldest),
    ] {
        let (hub, server) = serve(builder).await;
        let path = "/events?user=ada";
        let first = subscribe(server.addr, path).await;
        let mut second = subscribe(server.addr, path).await;
        let last_id = first.last_id.clone();
        let mut third = subscribe(server.addr, path).await;
        displaced(first).await;
        hub.topic("t").publish(Event::unnamed("meanwhile")).await.unwrap();
        assert_eq!(second.next_own().await.data, "meanwhile");
        assert_eq!(third.next_own().await.data, "meanwhile");
        let mut back = resume(server.addr, path, &last_id).await;
        let before: Vec<_> = back.caught_up().await.into_iter().map(|event| (event.event, event.data)).collect();
        assert_eq!(before[0].0, "hub.hello");
        assert_eq!(before[1..], [("message".to_owned(), "meanwhile".to_owned())]);
        // `back` displaced the second stream, which was the oldest then.
        displaced(second).await;
    }
}

#[tokio::test]
async fn a_closed_connection_frees_its_place() {
    for builder in [
        Hub::builder().max_connections(1, OverLimit::Refuse),
        Hub::builder().max_connections_per_user(1, OverLimit::Refuse),
    ] {
        let (hub, server) = serve(builder).await;
        let first = subscribe(server.addr, "/events?user=ada").await;
        assert!(!is_opened(&server, "/events?user=ada").await);
        drop(first);
        until(|| hub.stats().connections == 0).await;
        assert!(is_opened(&server, "/events?user=ada").await);
    }
}

#[tokio::test]
async fn a_head_request_does_not_count_as_a_connection() {
    let (hub, server) = serve(Hub::builder().max_connections(1, OverLimit::Refuse)).await;
    let head = async || send(server.addr, Request::head("/events").body("").unwrap()).await;
    for _ in 0..5 {
        assert_eq!(head().await.status, StatusCode::OK);
    }
    assert_eq!(hub.stats().connections, 0);
    let _only = subscribe(server.addr, "/events").await;
    assert_eq!(head().await.status, StatusCode::OK);
    assert_eq!(hub.stats().connections, 1);
}

#[tokio::test]
async fn a_subscriber_in_the_process_counts_as_a_connection() {
    let (hub, server) = serve(Hub::builder().max_connections(1, OverLimit::Refuse)).await;
    let inside = hub.subscribe(Subscription::anonymous(), None).unwrap();
    assert!(!is_opened(&server, "/events").await);
    assert!(hub.subscribe(Subscription::anonymous(), None).unwrap_err().is_over_limit());
    drop(inside);
    assert!(is_opened(&server, "/events").await);
}

// -------------------------------------------------------------------------------------------------
// Connection rate

#[tokio::test]
async fn requests_above_the_rate_get_retry_times_in_order() {
    let (_hub, server) = serve(Hub::builder().max_connects_per_second(10)).await;
    let (mut opened, mut refused) = (Vec::new(), Vec::new());
    let since = Instant::now();
    for _ in 0..40 {
        match attempt(&server, "/events").await {
            Outcome::Opened(events) => opened.push(events),
            Outcome::Refused(retry) => refused.push(retry),
        }
    }
    // The requests of one second, and those that the rate permits during the test.
    let tenths = since.elapsed().as_millis() / 100;
    assert!((10..=11 + tenths).contains(&(opened.len() as u128)), "{} in {tenths} tenths of a second", opened.len());
    // The retry times of the others spread over about three seconds, in the order of the requests.
    let (soonest, latest) = (&refused[..5], &refused[refused.len() - 5..]);
    assert!(soonest.iter().max() < latest.iter().min(), "{refused:?}");
    assert!(spread(&refused) > SECOND, "{refused:?}");
    assert!(refused.iter().all(|retry| *retry < 6 * SECOND), "{refused:?}");
}

#[tokio::test]
async fn a_request_above_the_rate_gets_a_stream_after_its_retry_time() {
    let (hub, server) = serve(Hub::builder().max_connects_per_second(10)).await;
    let (mut opened, mut waiting) = rush(&server, "/events", 20).await;
    waiting.sort();
    let since = Instant::now();
    for retry in waiting {
        tokio::time::sleep_until((since + retry).into()).await;
        match attempt(&server, "/events").await {
            Outcome::Opened(events) => opened.push(events),
            Outcome::Refused(_) => panic!("refused after the retry time"),
        }
    }
    assert_eq!((opened.len(), hub.stats().connections), (20, 20));
}

/// Serves a hub with a hook that counts its calls.
async fn serve_counting(builder: HubBuilder) -> (Hub, Server, Arc<AtomicUsize>) {
    let hub = builder.retry(RETRY).build().unwrap();
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&calls);
    let access = move |_: StreamRequest| {
        counted.fetch_add(1, Ordering::SeqCst);
        ready(Ok(Subscription::anonymous().may_join(TopicFilter::any())))
    };
    let app = Router::new()
        .route("/", axum::routing::get(async || ""))
        .layer(hub.layer("/events", access).allow_topic_changes());
    let server = Server::start(&hub, app).await;
    (hub, server, calls)
}

#[tokio::test]
async fn head_requests_and_changes_of_topics_call_the_hook_within_the_connection_rate() {
    let rate = 5;
    let (hub, server, calls) = serve_counting(Hub::builder().max_connects_per_second(rate)).await;
    let _page = subscribe(server.addr, "/events").await;
    let change = format!("http://test/events/{}/topics?join=t", hub.connections()[0].id);
    for (method, target) in [("HEAD", "http://test/events"), ("POST", change.as_str())] {
        let (since, before) = (Instant::now(), calls.load(Ordering::SeqCst));
        let mut sender = kit::http2(server.addr).await;
        let mut refused = 0;
        for _ in 0..200 {
            let request = Request::builder().method(method).uri(target).body(Default::default()).unwrap();
            let reply = soon(sender.send_request(request)).await.unwrap();
            if method == "POST" && reply.status() == StatusCode::SERVICE_UNAVAILABLE {
                let wait: u64 = reply.headers()["retry-after"].to_str().unwrap().parse().unwrap();
                assert!((1..=60).contains(&wait), "{wait}");
                refused += 1;
            }
        }
        let times = calls.load(Ordering::SeqCst) - before;
        let allowed = rate as usize + 1 + (since.elapsed().as_secs_f64() * f64::from(rate)) as usize;
        assert!(times <= allowed, "{method}: {times} calls of the hook where {allowed} are allowed");
        assert!(method == "HEAD" || refused == 200 - times, "{refused} refused, {times} calls of the hook");
    }
}

#[tokio::test]
async fn a_change_of_topics_of_an_unknown_connection_does_not_call_the_hook() {
    let (hub, server, calls) = serve_counting(Hub::builder()).await;
    let page = subscribe(server.addr, "/events").await;
    let id = hub.connections()[0].id;
    drop(page);
    until(|| hub.stats().connections == 0).await;
    let before = calls.load(Ordering::SeqCst);
    for id in [id.to_string(), "f".repeat(32), "x".to_owned()] {
        let request = Request::post(format!("/events/{id}/topics?join=t")).body("").unwrap();
        assert_eq!(send(server.addr, request).await.status, StatusCode::NOT_FOUND, "{id}");
    }
    assert_eq!(calls.load(Ordering::SeqCst), before);
}

#[tokio::test]
async fn subscribers_in_the_process_count_for_the_connection_rate() {
    let hub = Hub::builder().max_connects_per_second(1).build().unwrap();
    let _first = hub.subscribe(Subscription::anonymous(), None).unwrap();
    assert!(hub.subscribe(Subscription::anonymous(), None).unwrap_err().is_over_limit());
}

// -------------------------------------------------------------------------------------------------
// Connection age

/// Publishes the numbers from 0, one each millisecond, until it is dropped.
struct Publisher(JoinHandle<()>);

impl Publisher {
    fn start(hub: &Hub) -> Self {
        let hub = hub.clone();
        Self(tokio::spawn(async move {
            for n in 0_u64.. {
                hub.topic("t").publish(Event::new("n", n.to_string())).await.unwrap();
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }))
    }
}

impl Drop for Publisher {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Reads to the end, which has to be that of age. Returns the received numbers.
async fn read_until_age(events: &mut Events) -> Vec<u64> {
    let mut numbers = Vec::new();
    loop {
        let event = events.next().await;
        match event.event.as_str() {
            "n" => numbers.push(event.data.parse().unwrap()),
            "hub.hello" | "hub.live" => {}
            "hub.bye" => {
                assert_eq!(parsed(&event), serde_json::json!({ "reason": "age", "reconnect": "now" }));
                assert!(event.retry.is_some());
                assert!(events.try_next().await.is_none());
                return numbers;
            }
            other => panic!("{other}: {}", event.data),
        }
    }
}

#[tokio::test]
async fn a_stream_ends_at_its_age_and_resumes_without_loss_while_a_publisher_runs() {
    let (hub, server) = serve(Hub::builder().max_connection_age(SECOND)).await;
    let mut since = Instant::now();
    let mut events = subscribe(server.addr, "/events").await;
    let _publisher = Publisher::start(&hub);
    let mut numbers = Vec::new();
    for _ in 0..3 {
        numbers.extend(read_until_age(&mut events).await);
        let lived = since.elapsed();
        assert!(lived >= SECOND * 4 / 5 && lived < LATE, "{lived:?}");
        since = Instant::now();
        let last_id = events.last_id.clone();
        events = resume(server.addr, "/events", &last_id).await;
    }
    assert!(!numbers.is_empty());
    assert_eq!(numbers, (0..numbers.len() as u64).collect::<Vec<_>>());
    assert_eq!(hub.stats().ended(EndReason::Age), 3);
}

#[tokio::test]
async fn pending_events_are_delivered_before_a_stream_ends_of_age() {
    const RECORDS: u64 = 100;
    let wide = Retention::replay().bytes(64 << 20);
    let (hub, server) = serve(Hub::builder().max_connection_age(SECOND).topic_retention(wide)).await;
    let mut events = subscribe(server.addr, "/events").await;
    // Far more than the buffers of the sockets hold: the client reads nothing before the age is
    // reached.
    let large = "x".repeat(200_000);
    for _ in 0..RECORDS {
        hub.topic("t").publish(Event::new("large", large.clone())).await.unwrap();
    }
    tokio::time::sleep(SECOND + SECOND / 10).await;
    hub.topic("t").publish(Event::new("last", "")).await.unwrap();
    let names: Vec<_> = events_until_bye(&mut events).await;
    assert_eq!(names.iter().filter(|name| *name == "large").count() as u64, RECORDS);
}

async fn events_until_bye(events: &mut Events) -> Vec<String> {
    let mut names = Vec::new();
    loop {
        let event = events.next().await;
        if event.event == "hub.bye" {
            assert_eq!(parsed(&event)["reason"], "age");
            return names;
        }
        names.push(event.event);
    }
}

#[tokio::test]
async fn streams_that_opened_together_end_and_reconnect_at_different_times() {
    let (_hub, server) = serve(Hub::builder().max_connection_age(SECOND)).await;
    let since = Instant::now();
    let streams = join_all((0..40).map(|_| subscribe(server.addr, "/events"))).await;
    let ends = join_all(streams.into_iter().map(async |events| {
        let bye = events.rest().await.pop().unwrap();
        (since.elapsed(), bye.retry.unwrap())
    }))
    .await;
    let (ended, retries): (Vec<_>, Vec<_>) = ends.into_iter().unzip();
    assert!(ended.iter().all(|age| *age >= SECOND * 4 / 5 && *age < LATE), "{ended:?}");
    assert!(spread(&ended) > SECOND / 10, "{ended:?}");
    assert!(spread(&retries) > RETRY / 2, "{retries:?}");
}

#[tokio::test]
async fn one_client_with_many_requests_delays_others_by_a_bounded_time() {
    let (_hub, server) = serve(Hub::builder().max_connects_per_second(10)).await;
    let mut sender = kit::http2(server.addr).await;
    for _ in 0..2_000 {
        let request = Request::get("http://test/events").body(Default::default()).unwrap();
        drop(soon(sender.send_request(request)).await.unwrap());
    }
    let refused = get(server.addr, "/events").await.events().next().await;
    // 30 s in the queue and the default of 2 s, plus half of the sum at random.
    assert!(refused.retry.unwrap() <= Duration::from_secs(48), "{:?}", refused.retry);
}

/// Two requests, each for as many topics as the limit permits, at the same moment.
#[test]
fn simultaneous_changes_of_topics_do_not_exceed_the_limit() {
    const LIMIT: usize = 64;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let _entered = runtime.enter();
    let hub = Hub::builder().max_topics(LIMIT).build().unwrap();
    let endpoint = hub.endpoint(Public::topics(TopicFilter::any())).allow_topic_changes();
    for _ in 0..600 {
        let stream = hub.subscribe(Subscription::anonymous(), None).unwrap();
        let id = hub.connections()[0].id;
        let ready = Barrier::new(2);
        let change = |thread: usize| {
            let joins: Vec<_> = (0..LIMIT).map(|topic| format!("join={thread}-{topic}")).collect();
            let request = Request::post(format!("/events/{id}/topics?{}", joins.join("&"))).body(()).unwrap();
            let mut endpoint = endpoint.clone();
            let _entered = runtime.handle().enter();
            ready.wait();
            futures::executor::block_on(endpoint.call(request)).unwrap().status()
        };
        let answers = std::thread::scope(|scope| {
            [0, 1].map(|thread| scope.spawn(move || change(thread))).map(|thread| thread.join().unwrap())
        });
        assert_eq!(hub.connections()[0].topics.len(), LIMIT, "{answers:?}");
        assert_eq!(answers.iter().filter(|status| **status == StatusCode::OK).count(), 1, "{answers:?}");
        drop(stream);
    }
}

#[tokio::test]
async fn topics_joined_by_user_do_not_exceed_the_limit() {
    let hub = Hub::builder().max_topics(2).build().unwrap();
    for topic in ["a", "b"] {
        hub.user("ada").join(topic).await.unwrap();
    }
    let topics = |hub: &Hub| hub.connections()[0].topics.iter().map(ToString::to_string).collect::<Vec<_>>();
    for (own, has) in [(&["x", "y"][..], ["x", "y"]), (&["x"], ["x", "a"]), (&[], ["a", "b"])] {
        let stream = hub.subscribe(Subscription::for_user("ada").with_topics(own.iter().copied()), None).unwrap();
        assert_eq!(topics(&hub), has);
        drop(stream);
    }
}

/// Measures `calls` calls of `work` 15 times, and returns the shortest time. Compare only work that
/// takes about as long: a busy machine interrupts long work more often than short work.
fn shortest(calls: usize, mut work: impl FnMut()) -> Duration {
    let mut run = || {
        let begun = Instant::now();
        (0..calls).for_each(|_| work());
        begun.elapsed()
    };
    (0..15).map(|_| run()).min().unwrap()
}

fn names(count: usize) -> impl Iterator<Item = String> {
    (0..count).map(|n| format!("a topic with a name {n}"))
}

/// 8 streams with 1,000 topics take as long as one with 8,000. If each topic were compared with
/// each other topic, the one stream would take 8 times as long.
#[test]
fn opening_a_stream_takes_time_in_proportion_to_its_topics() {
    let hub = Hub::builder().max_topics(10_000).build().unwrap();
    let open = |streams: usize, topics: usize| {
        let subscription = Subscription::anonymous().with_topics(names(topics));
        shortest(streams, || drop(hub.subscribe(subscription.clone(), None).unwrap()))
    };
    let (few, many) = (open(8, 1_000), open(1, 8_000));
    assert!(many < few * 5, "{few:?} for 8 times 1,000 topics, {many:?} for 8,000");
}

/// 16 subscriptions with 1,000 topics take as long as one with 16,000. If each topic were compared
/// with each other topic, the one subscription would take 16 times as long.
#[test]
fn a_subscription_takes_time_in_proportion_to_its_topics() {
    let build = |subscriptions: usize, topics: usize| {
        let names: Vec<_> = names(topics).collect();
        shortest(subscriptions, || {
            assert_eq!(Subscription::anonymous().with_topics(names.iter()).topics().len(), topics);
        })
    };
    let (few, many) = (build(16, 1_000), build(1, 16_000));
    assert!(many < few * 8, "{few:?} for 16 times 1,000 topics, {many:?} for 16,000");
}

/// The hub collects and sorts the events of a new stream while publishers continue.
#[test]
fn opening_a_stream_with_many_events_does_not_block_publishers() {
    const TOPICS: usize = 100;
    let hub = Hub::builder().retention_budget(256 << 20).build().unwrap();
    for n in 0..TOPICS * 1_000 {
        hub.topic(n % TOPICS).publish_now(Event::unnamed("x")).unwrap();
    }
    let is_over = AtomicBool::new(false);
    let shares = std::thread::scope(|scope| {
        let publisher = scope.spawn(|| {
            let mut published = Vec::new();
            while !is_over.load(Ordering::Relaxed) {
                let begun = Instant::now();
                hub.topic("other").publish_now(Event::unnamed("x")).unwrap();
                published.push((begun, begun.elapsed()));
            }
            published
        });
        let opened: Vec<_> = (0..10)
            .map(|_| {
                let subscription = Subscription::anonymous().with_topics(0..TOPICS).start(Start::Last(1_000_000));
                let begun = Instant::now();
                let stream = hub.subscribe(subscription, None).unwrap();
                let took = begun.elapsed();
                drop(stream);
                (begun, took)
            })
            .collect();
        is_over.store(true, Ordering::Relaxed);
        let published = publisher.join().unwrap();
        let share = |(begun, took): (Instant, Duration)| {
            let meanwhile = published.iter().filter(|(at, lasted)| *at < begun + took && *at + *lasted > begun);
            let longest = meanwhile.map(|(_, lasted)| *lasted).max().unwrap_or_default();
            longest.as_secs_f64() / took.as_secs_f64()
        };
        opened.into_iter().map(share).collect::<Vec<_>>()
    });
    // A blocked publish would take as long as the opening, each time. So the smallest share
    // decides.
    let least = shares.iter().copied().fold(f64::INFINITY, f64::min);
    assert!(least < 0.4, "longest publish, as shares of the time to open: {shares:?}");
}
