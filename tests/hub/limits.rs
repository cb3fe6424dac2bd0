//! How many connections there may be, how fast they may come, and how old they may get.

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

use crate::kit::access::asked_for;
use crate::kit::{self, Events, Server, get, parsed, resume, send, soon, subscribe, until};

const RETRY: Duration = Duration::from_millis(100);
const SECOND: Duration = Duration::from_secs(1);

/// Everybody is who the query says and reads the topic `t`.
async fn serve(builder: HubBuilder) -> (Hub, Server) {
    let hub = builder.retry(RETRY).build().unwrap();
    let access = async |request: StreamRequest| Ok(asked_for(&request).topic("t"));
    let server = Server::start(&hub, Router::new().route_service("/events", hub.endpoint(access))).await;
    (hub, server)
}

/// What came of a request for a stream.
enum Outcome {
    LetIn(Events),
    /// With the time after which to try again.
    Refused(Duration),
}

async fn attempt(server: &Server, path: &str) -> Outcome {
    let mut events = get(server.addr, path).await.events();
    let first = events.next().await;
    if first.event == "hub.hello" {
        return Outcome::LetIn(events);
    }
    assert_eq!((first.event.as_str(), parsed(&first)["reason"].as_str()), ("hub.refused", Some("limit")));
    let retry = first.retry.expect("a refusal says when to come back");
    assert_eq!(parsed(&first)["retry_ms"], u64::try_from(retry.as_millis()).unwrap());
    let rest = events.rest().await;
    assert!(rest.is_empty(), "{rest:?}");
    Outcome::Refused(retry)
}

async fn is_let_in(server: &Server, path: &str) -> bool {
    matches!(attempt(server, path).await, Outcome::LetIn(_))
}

/// So many at the same time; those that were let in, and when the others are to come back.
async fn rush(server: &Server, path: &str, count: usize) -> (Vec<Events>, Vec<Duration>) {
    let (mut let_in, mut refused) = (Vec::new(), Vec::new());
    for outcome in join_all((0..count).map(|_| attempt(server, path))).await {
        match outcome {
            Outcome::LetIn(events) => let_in.push(events),
            Outcome::Refused(retry) => refused.push(retry),
        }
    }
    (let_in, refused)
}

/// Looks, on a thread of its own, for the most connections that are ever open at once.
struct Watch {
    stop: Arc<AtomicBool>,
    most: Arc<AtomicUsize>,
    thread: std::thread::JoinHandle<()>,
}

impl Watch {
    fn over(hub: &Hub) -> Self {
        let (stop, most) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (hub, stopped, seen) = (hub.clone(), Arc::clone(&stop), Arc::clone(&most));
        let thread = std::thread::spawn(move || {
            // The last look is after the end.
            loop {
                let is_last = stopped.load(Ordering::SeqCst);
                seen.fetch_max(hub.stats().connections, Ordering::SeqCst);
                if is_last {
                    return;
                }
                std::thread::yield_now();
            }
        });
        Self { stop, most, thread }
    }

    fn most(self) -> usize {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.join().unwrap();
        self.most.load(Ordering::SeqCst)
    }
}

/// Reads to the end, which has to be the one that makes room for another.
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

// ---------------------------------------------------------------------------------------------------------------------
// How many

#[tokio::test(flavor = "multi_thread")]
async fn of_many_at_once_as_many_as_fit_are_let_in_and_the_others_come_back_spread_out() {
    let (hub, server) = serve(Hub::builder().max_connections(10, OverLimit::Refuse)).await;
    let watch = Watch::over(&hub);
    let (let_in, refused) = rush(&server, "/events", 50).await;
    assert_eq!((let_in.len(), refused.len(), watch.most()), (10, 40, 10));
    assert!(refused.iter().all(|retry| (RETRY..=3 * RETRY).contains(retry)), "{refused:?}");
    assert!(spread(&refused) > RETRY / 4, "{refused:?}");
    assert_eq!(hub.stats().refused(RefusalReason::Limit), 40);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_at_once_the_oldest_make_room() {
    let (hub, server) = serve(Hub::builder().max_connections(10, OverLimit::CloseOldest)).await;
    let watch = Watch::over(&hub);
    let (let_in, _) = rush(&server, "/events", 50).await;
    assert_eq!((let_in.len(), watch.most(), hub.stats().connections), (50, 10, 10));
    assert_eq!(hub.stats().ended(EndReason::Limit), 40);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_tabs_of_a_user_at_once_as_many_as_fit_are_let_in() {
    let (hub, server) = serve(Hub::builder().max_connections_per_user(3, OverLimit::Refuse)).await;
    let watch = Watch::over(&hub);
    let (ada, ben) = tokio::join!(rush(&server, "/events?user=ada", 25), rush(&server, "/events?user=ben", 25));
    assert_eq!((ada.0.len(), ben.0.len(), watch.most()), (3, 3, 6));
    assert_eq!((hub.user("ada").count(), hub.user("ben").count()), (3, 3));
    assert!(spread(&ada.1) > RETRY / 4, "{:?}", ada.1);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_tabs_of_a_user_at_once_the_oldest_make_room() {
    let (hub, server) = serve(Hub::builder().max_connections_per_user(3, OverLimit::CloseOldest)).await;
    let watch = Watch::over(&hub);
    let (let_in, _) = rush(&server, "/events?user=ada", 50).await;
    assert_eq!((let_in.len(), watch.most(), hub.user("ada").count()), (50, 3, 3));
}

#[tokio::test]
async fn pages_of_nobody_in_particular_count_for_no_user() {
    let (_hub, server) = serve(Hub::builder().max_connections_per_user(1, OverLimit::Refuse)).await;
    let (let_in, _) = rush(&server, "/events", 5).await;
    assert_eq!(let_in.len(), 5);
    let _first = subscribe(server.addr, "/events?user=ada").await;
    assert!(!is_let_in(&server, "/events?user=ada").await);
    assert!(is_let_in(&server, "/events?user=ben").await);
}

#[tokio::test]
async fn both_limits_hold_and_a_tab_that_makes_room_for_its_user_makes_room_for_all() {
    let builder =
        Hub::builder().max_connections(2, OverLimit::Refuse).max_connections_per_user(1, OverLimit::CloseOldest);
    let (hub, server) = serve(builder).await;
    let ada = subscribe(server.addr, "/events?user=ada").await;
    let _ben = subscribe(server.addr, "/events?user=ben").await;
    assert!(!is_let_in(&server, "/events?user=eve").await);
    let _ada = subscribe(server.addr, "/events?user=ada").await;
    displaced(ada).await;
    assert_eq!((hub.stats().connections, hub.user("ada").count(), hub.user("ben").count()), (2, 1, 1));
}

#[tokio::test]
async fn the_oldest_is_the_one_that_goes_and_it_misses_nothing() {
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
        // In its turn.
        displaced(second).await;
    }
}

#[tokio::test]
async fn who_leaves_makes_room() {
    for builder in [
        Hub::builder().max_connections(1, OverLimit::Refuse),
        Hub::builder().max_connections_per_user(1, OverLimit::Refuse),
    ] {
        let (hub, server) = serve(builder).await;
        let first = subscribe(server.addr, "/events?user=ada").await;
        assert!(!is_let_in(&server, "/events?user=ada").await);
        drop(first);
        until(|| hub.stats().connections == 0).await;
        assert!(is_let_in(&server, "/events?user=ada").await);
    }
}

#[tokio::test]
async fn a_head_takes_no_place() {
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
async fn a_stream_in_this_process_takes_a_place_and_finds_none_left() {
    let (hub, server) = serve(Hub::builder().max_connections(1, OverLimit::Refuse)).await;
    let inside = hub.subscribe(Subscription::anonymous(), None).unwrap();
    assert!(!is_let_in(&server, "/events").await);
    assert!(hub.subscribe(Subscription::anonymous(), None).unwrap_err().is_over_limit());
    drop(inside);
    assert!(is_let_in(&server, "/events").await);
}

// ---------------------------------------------------------------------------------------------------------------------
// How fast

#[tokio::test]
async fn who_comes_too_fast_waits_in_line() {
    let (_hub, server) = serve(Hub::builder().max_connects_per_second(10)).await;
    let (mut let_in, mut refused) = (Vec::new(), Vec::new());
    let since = Instant::now();
    for _ in 0..40 {
        match attempt(&server, "/events").await {
            Outcome::LetIn(events) => let_in.push(events),
            Outcome::Refused(retry) => refused.push(retry),
        }
    }
    // As many as a second allows, and those whose time came meanwhile.
    let came = since.elapsed().as_millis() / 100;
    assert!((10..=11 + came).contains(&(let_in.len() as u128)), "{} in {came} tenths", let_in.len());
    // The others need about three seconds, in the order in which they came.
    let (soonest, latest) = (&refused[..5], &refused[refused.len() - 5..]);
    assert!(soonest.iter().max() < latest.iter().min(), "{refused:?}");
    assert!(spread(&refused) > SECOND, "{refused:?}");
    assert!(refused.iter().all(|retry| *retry < 6 * SECOND), "{refused:?}");
}

#[tokio::test]
async fn who_came_too_fast_is_let_in_when_it_comes_back_in_its_time() {
    let (hub, server) = serve(Hub::builder().max_connects_per_second(10)).await;
    let (mut let_in, mut waiting) = rush(&server, "/events", 20).await;
    waiting.sort();
    let since = Instant::now();
    for retry in waiting {
        tokio::time::sleep_until((since + retry).into()).await;
        match attempt(&server, "/events").await {
            Outcome::LetIn(events) => let_in.push(events),
            Outcome::Refused(_) => panic!("its time had come"),
        }
    }
    assert_eq!((let_in.len(), hub.stats().connections), (20, 20));
}

/// A hub whose hook counts how often it is asked.
async fn serve_counting(builder: HubBuilder) -> (Hub, Server, Arc<AtomicUsize>) {
    let hub = builder.retry(RETRY).build().unwrap();
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&asked);
    let access = move |_: StreamRequest| {
        counted.fetch_add(1, Ordering::SeqCst);
        ready(Ok(Subscription::anonymous().may_join(TopicFilter::any())))
    };
    let app = Router::new()
        .route("/", axum::routing::get(async || ""))
        .layer(hub.layer("/events", access).allow_topic_changes());
    let server = Server::start(&hub, app).await;
    (hub, server, asked)
}

#[tokio::test]
async fn head_requests_and_changes_of_topics_ask_the_hook_no_faster_than_streams() {
    let rate = 5;
    let (hub, server, asked) = serve_counting(Hub::builder().max_connects_per_second(rate)).await;
    let _page = subscribe(server.addr, "/events").await;
    let change = format!("http://test/events/{}/topics?join=t", hub.connections()[0].id);
    for (method, target) in [("HEAD", "http://test/events"), ("POST", change.as_str())] {
        let (since, before) = (Instant::now(), asked.load(Ordering::SeqCst));
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
        let times = asked.load(Ordering::SeqCst) - before;
        let allowed = rate as usize + 1 + (since.elapsed().as_secs_f64() * f64::from(rate)) as usize;
        assert!(times <= allowed, "{method}: asked {times} times where {allowed} are allowed");
        assert!(method == "HEAD" || refused == 200 - times, "{refused} refused, asked {times} times");
    }
}

#[tokio::test]
async fn a_change_of_topics_of_an_unknown_connection_does_not_ask_the_hook() {
    let (hub, server, asked) = serve_counting(Hub::builder()).await;
    let page = subscribe(server.addr, "/events").await;
    let id = hub.connections()[0].id;
    drop(page);
    until(|| hub.stats().connections == 0).await;
    let before = asked.load(Ordering::SeqCst);
    for id in [id.to_string(), "f".repeat(32), "x".to_owned()] {
        let request = Request::post(format!("/events/{id}/topics?join=t")).body("").unwrap();
        assert_eq!(send(server.addr, request).await.status, StatusCode::NOT_FOUND, "{id}");
    }
    assert_eq!(asked.load(Ordering::SeqCst), before);
}

#[tokio::test]
async fn streams_in_this_process_are_not_opened_faster_either() {
    let hub = Hub::builder().max_connects_per_second(1).build().unwrap();
    let _first = hub.subscribe(Subscription::anonymous(), None).unwrap();
    assert!(hub.subscribe(Subscription::anonymous(), None).unwrap_err().is_over_limit());
}

// ---------------------------------------------------------------------------------------------------------------------
// How old

/// Publishes numbers from 0 on, a thousand a second, until it is dropped.
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

/// Reads to the end, which has to be that of age; returns the numbers that came.
async fn grows_old(events: &mut Events) -> Vec<u64> {
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
async fn a_stream_ends_at_its_age_and_comes_back_without_a_gap_while_a_publisher_runs() {
    let (hub, server) = serve(Hub::builder().max_connection_age(SECOND)).await;
    let mut since = Instant::now();
    let mut events = subscribe(server.addr, "/events").await;
    let _publisher = Publisher::start(&hub);
    let mut numbers = Vec::new();
    for _ in 0..3 {
        numbers.extend(grows_old(&mut events).await);
        let lived = since.elapsed();
        assert!(lived >= SECOND * 4 / 5 && lived < 3 * SECOND, "{lived:?}");
        since = Instant::now();
        let last_id = events.last_id.clone();
        events = resume(server.addr, "/events", &last_id).await;
    }
    assert!(!numbers.is_empty());
    assert_eq!(numbers, (0..numbers.len() as u64).collect::<Vec<_>>());
    assert_eq!(hub.stats().ended(EndReason::Age), 3);
}

#[tokio::test]
async fn what_waits_when_a_stream_is_old_is_written_before_it_ends() {
    const RECORDS: u64 = 100;
    let wide = Retention::replay().bytes(64 << 20);
    let (hub, server) = serve(Hub::builder().max_connection_age(SECOND).topic_retention(wide)).await;
    let mut events = subscribe(server.addr, "/events").await;
    // Far more than the buffers between us and a client that does not read until its stream is old.
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
async fn streams_that_came_together_do_not_end_together_nor_come_back_together() {
    let (_hub, server) = serve(Hub::builder().max_connection_age(SECOND)).await;
    let since = Instant::now();
    let streams = join_all((0..40).map(|_| subscribe(server.addr, "/events"))).await;
    let ends = join_all(streams.into_iter().map(async |events| {
        let bye = events.rest().await.pop().unwrap();
        (since.elapsed(), bye.retry.unwrap())
    }))
    .await;
    let (ended, retries): (Vec<_>, Vec<_>) = ends.into_iter().unzip();
    assert!(ended.iter().all(|age| *age >= SECOND * 4 / 5 && *age < 3 * SECOND), "{ended:?}");
    assert!(spread(&ended) > SECOND / 10, "{ended:?}");
    assert!(spread(&retries) > RETRY / 2, "{retries:?}");
}

#[tokio::test]
async fn one_client_that_comes_again_and_again_keeps_nobody_away_for_long() {
    let (_hub, server) = serve(Hub::builder().max_connects_per_second(10)).await;
    let mut sender = kit::http2(server.addr).await;
    for _ in 0..2_000 {
        let request = Request::get("http://test/events").body(Default::default()).unwrap();
        drop(soon(sender.send_request(request)).await.unwrap());
    }
    let refused = get(server.addr, "/events").await.events().next().await;
    // Thirty seconds, the usual two, and half of it at random.
    assert!(refused.retry.unwrap() <= Duration::from_secs(48), "{:?}", refused.retry);
}

/// Two pages' worth of topics at the same moment, again and again.
#[test]
fn simultaneous_changes_of_topics_pass_no_limit() {
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
async fn topics_that_a_user_was_made_to_join_pass_no_limit() {
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

/// The shortest time of some runs that so many calls in a row take. What is compared must take about as long, because a
/// busy machine interrupts long work more often than short work.
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

/// Eight streams with 1,000 topics take as long as one with 8,000. If each topic were compared with each, the one would take
/// eight times as long.
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

/// 16 subscriptions with 1,000 topics take as long as one with 16,000. If each topic were compared with each, the one would
/// take 16 times as long.
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

/// The events that a page starts with are found and put in order while others publish.
#[test]
fn a_start_with_many_events_does_not_stop_publishers() {
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
    // A publisher that is stopped waits for as long as the opening takes, each time.
    let least = shares.iter().copied().fold(f64::INFINITY, f64::min);
    assert!(least < 0.4, "the longest publish in shares of the opening: {shares:?}");
}
