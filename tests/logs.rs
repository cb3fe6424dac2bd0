//! Log lines, which contain no user data and are rate-limited, and the counts of `Hub::stats`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests and their helpers may panic")]

mod kit;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Write};
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::kit::redis::{FORGETFUL, RedisServer};
use crate::kit::{Server, get, resume, send, soon, subscribe, until};
use axum::Router;
use futures::{FutureExt, StreamExt};
use http::Request;
use http_body_util::BodyExt;
use proc_macro2::{TokenStream, TokenTree};
use quote::ToTokens;
use tower::ServiceExt;
use tower_sse::backplane::{Backplane as _, NewRecord, Redis};
use tower_sse::test_kit::{Fault, FaultyLog, LogConnection, Operation};
use tower_sse::{
    Cursor, Disconnect, EndReason, Event, EventBody, GapReason, Hub, HubBuilder, IntoAccess, LagPolicy, Public,
    Refusal, RefusalReason, Retention, Start, StreamRequest, SubscriberItem, Subscription, TopicFilter,
};
use tracing::Level;
use tracing::field::{Field, Visit};
use tracing::subscriber::DefaultGuard;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};

// -------------------------------------------------------------------------------------------------
// A subscriber that collects log lines

#[derive(Clone, Debug)]
struct LogLine {
    level: Level,
    /// The message and every field.
    text: String,
}

/// The log lines of this crate, of every level. Each test and all of its tasks run on one thread.
#[derive(Clone, Debug, Default)]
struct LogLines(Arc<Mutex<Vec<LogLine>>>);

struct TextVisitor<'a>(&'a mut String);

impl Visit for TextVisitor<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        write!(self.0, " {field}={value:?}").unwrap();
    }
}

impl<S: tracing::Subscriber> Layer<S> for LogLines {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        if event.metadata().target().starts_with("tower_sse") {
            let mut text = String::new();
            event.record(&mut TextVisitor(&mut text));
            self.0.lock().unwrap().push(LogLine { level: *event.metadata().level(), text });
        }
    }

    fn on_new_span(&self, span: &tracing::span::Attributes<'_>, _: &tracing::Id, _: Context<'_, S>) {
        if span.metadata().target().starts_with("tower_sse") {
            let mut text = span.metadata().name().to_owned();
            span.record(&mut TextVisitor(&mut text));
            self.0.lock().unwrap().push(LogLine { level: *span.metadata().level(), text });
        }
    }
}

impl LogLines {
    fn capture() -> (Self, DefaultGuard) {
        let lines = Self::default();
        let guard = tracing::subscriber::set_default(tracing_subscriber::registry().with(lines.clone()));
        (lines, guard)
    }

    fn all(&self) -> Vec<LogLine> {
        self.0.lock().unwrap().clone()
    }

    fn at(&self, level: Level) -> Vec<String> {
        self.all().into_iter().filter(|line| line.level == level).map(|line| line.text).collect()
    }

    /// The lines about streams, at debug.
    fn of_streams(&self) -> Vec<String> {
        self.at(Level::DEBUG).into_iter().filter(|line| line.contains("event stream")).collect()
    }

    /// The warnings, without the one about the missing hub listener: these tests use no sockets.
    fn warnings(&self) -> Vec<String> {
        self.at(Level::WARN).into_iter().filter(|line| !line.contains("does not watch")).collect()
    }

    fn above_debug(&self) -> Vec<LogLine> {
        self.all().into_iter().filter(|line| line.level < Level::DEBUG).collect()
    }
}

// -------------------------------------------------------------------------------------------------
// Requests without sockets, because sockets do not work under a paused clock

type Body = Pin<Box<EventBody>>;

/// Sends a request to the endpoint, and returns the body of the response.
async fn request<M, A: IntoAccess<M>>(hub: &Hub, access: A, request: http::request::Builder) -> Body {
    let response = soon(hub.endpoint(access).oneshot(request.body(()).unwrap())).await.unwrap();
    Box::pin(response.into_body())
}

/// Reads every frame that is ready.
fn ready(body: &mut Body) -> String {
    let mut text = Vec::new();
    while let Some(Some(Ok(frame))) = body.frame().now_or_never() {
        text.extend_from_slice(&frame.into_data().unwrap());
    }
    String::from_utf8(text).unwrap()
}

/// Opens a stream of a topic and reads until it has caught up.
async fn open(hub: &Hub, topic: &str) -> Body {
    let access = Public::topics(TopicFilter::any());
    let mut body = request(hub, access, Request::get(format!("/?topic={topic}"))).await;
    assert!(ready(&mut body).contains("hub.live"));
    body
}

/// Opens a stream with an invalid event id, which causes a gap.
async fn gap(hub: &Hub) {
    let access = Public::topics(TopicFilter::any());
    let mut body = request(hub, access, Request::get("/").header("last-event-id", "nonsense")).await;
    assert!(ready(&mut body).contains("hub.gap"));
}

async fn refused(hub: &Hub) {
    let access = |_: StreamRequest| async { Err(Refusal::retry_later(RefusalReason::Busy)) };
    let mut body = request(hub, access, Request::get("/")).await;
    assert!(ready(&mut body).contains("hub.refused"));
}

fn build(builder: HubBuilder) -> Hub {
    builder.build().unwrap()
}

// -------------------------------------------------------------------------------------------------
// Log lines

#[tokio::test]
async fn a_stream_logs_a_line_at_debug_when_it_opens_and_when_it_ends() {
    let (lines, _guard) = LogLines::capture();
    let hub = build(Hub::builder());
    let app = Router::new().layer(hub.layer("/events", Public::topics(TopicFilter::any())));
    let server = Server::start(&hub, app).await;
    let mut events = subscribe(server.addr, "/events?topic=t").await;
    hub.topic("t").publish(Event::unnamed("x")).await.unwrap();
    events.next().await;
    let opened = lines.of_streams();
    assert_eq!(opened.len(), 1, "{opened:?}");
    assert!(opened[0].contains("opened") && opened[0].contains("resuming=false"), "{opened:?}");
    let id = events.last_id.clone();
    drop(events);
    until(|| hub.stats().connections == 0).await;
    let lines_so_far = lines.of_streams();
    assert_eq!(lines_so_far.len(), 2, "{lines_so_far:?}");
    assert!(lines_so_far[1].contains("ended") && lines_so_far[1].contains("reason=client"), "{lines_so_far:?}");
    resume(server.addr, "/events?topic=t", &id).await.caught_up().await;
    assert!(lines.of_streams()[2].contains("resuming=true"));
    assert_eq!(lines.above_debug().len(), 1, "only the line about the start: {:?}", lines.above_debug());
}

#[tokio::test]
async fn a_start_logs_one_line_with_the_log_the_name_and_the_mounts() {
    let (lines, _guard) = LogLines::capture();
    let hub = build(Hub::builder().instance_name("blue"));
    let app = Router::new().layer(hub.layer("/events", Public::topics(TopicFilter::any())));
    assert_eq!(lines.at(Level::INFO), Vec::<String>::new(), "the hub is not mounted yet");
    let server = Server::start(&hub, app).await;
    subscribe(server.addr, "/events?topic=t").await;
    let logged = lines.at(Level::INFO);
    assert_eq!(logged.len(), 1, "{logged:?}");
    for part in ["this process", "instance=\"blue\"", "/events"] {
        assert!(logged[0].contains(part), "{logged:?}");
    }
}

#[tokio::test]
async fn a_publish_logs_one_line_at_debug_without_the_user() {
    let (lines, _guard) = LogLines::capture();
    let hub = build(Hub::builder());
    let receipt = hub.user("ada").publish(Event::unnamed("x")).await.unwrap();
    let logged = lines.at(Level::DEBUG);
    assert_eq!(logged.len(), 1, "{logged:?}");
    for part in ["published", "user", "receivers=0", &receipt.position.to_string()] {
        assert!(logged[0].contains(part), "{logged:?}");
    }
    assert!(!logged[0].contains("ada"), "{logged:?}");
}

#[tokio::test]
async fn a_publish_of_a_publisher_logs_one_line_at_debug() {
    let (lines, _guard) = LogLines::capture();
    let publisher = tower_sse::Publisher::new(tower_sse::backplane::Memory::new()).unwrap();
    let receipt = publisher.topic("t").publish(Event::unnamed("x")).await.unwrap();
    let logged: Vec<_> = lines.at(Level::DEBUG).into_iter().filter(|line| line.contains("message=")).collect();
    assert!(logged.len() == 1 && logged[0].contains(&receipt.position.to_string()), "{logged:?}");
}

#[tokio::test]
async fn a_ticket_for_a_subscription_with_extensions_logs_one_warning() {
    let (lines, _guard) = LogLines::capture();
    let hub = build(Hub::builder());
    let issue = |subscription| hub.ticket(subscription, Duration::from_secs(30));
    issue(Subscription::for_user("ada")).await.unwrap();
    assert_eq!(lines.at(Level::WARN), Vec::<String>::new());
    issue(Subscription::for_user("ada").extension(7)).await.unwrap();
    let logged = lines.at(Level::WARN);
    assert!(logged.len() == 1 && logged[0].contains("recheck"), "{logged:?}");
}

#[tokio::test]
async fn a_layer_that_is_created_again_and_again_warns_once_of_its_path() {
    let (lines, _guard) = LogLines::capture();
    let hub = build(Hub::builder());
    for _ in 0..100 {
        let _ = hub.layer("/events/{id}", Public::topics(TopicFilter::any()));
    }
    assert_eq!(lines.at(Level::WARN).len(), 1);
}

#[tokio::test]
async fn a_key_without_a_retention_rule_logs_one_warning_and_sets_a_flag() {
    let (lines, _guard) = LogLines::capture();
    let latest = Retention::latest_per_key();
    let hub = build(Hub::builder().retention_for(TopicFilter::prefix("latest/"), latest));
    let publish = async |topic: &str, event: Event| hub.topic(topic).publish(event).await.unwrap().key_ignored;
    assert!(!publish("t", Event::unnamed("x")).await);
    assert!(!publish("latest/a", Event::unnamed("x").key("k")).await);
    assert_eq!(lines.at(Level::WARN), Vec::<String>::new());
    assert!(publish("t", Event::unnamed("x").key("k")).await);
    assert!(publish("t", Event::removal("k")).await);
    let logged = lines.at(Level::WARN);
    assert!(logged.len() == 1 && logged[0].contains("latest_per_key"), "{logged:?}");
    // It is enough that one topic of the union keeps values.
    let both = hub.topic("t").and(hub.topic("latest/a"));
    assert!(!both.publish(Event::unnamed("x").key("k")).await.unwrap().key_ignored);
}

#[tokio::test]
async fn a_publisher_warns_of_a_key_without_a_retention_rule() {
    let (lines, _guard) = LogLines::capture();
    let publisher = tower_sse::Publisher::new(tower_sse::backplane::Memory::new()).unwrap();
    for _ in 0..2 {
        assert!(publisher.topic("t").publish(Event::unnamed("x").key("k")).await.unwrap().key_ignored);
    }
    let logged = lines.at(Level::WARN);
    assert!(logged.len() == 1 && logged[0].contains("latest_per_key"), "{logged:?}");
}

/// The other instances read the list of connections instead.
#[tokio::test]
async fn a_report_about_connections_that_the_broker_rejects_logs_a_warning() {
    let (lines, _guard) = LogLines::capture();
    let log = FaultyLog::new();
    let (near, far) = (log.connect(), log.connect());
    near.faults().every_if(Operation::Broadcast, Fault::Rejected, |call| call.contains("ada"));
    let hub = |log: LogConnection| build(Hub::builder().peer_timeout(Duration::from_millis(900)).backplane(log));
    let (one, other) = (hub(near), hub(far));
    until(|| one.is_ready() && other.is_ready()).await;
    let page = one.subscribe(Subscription::for_user("ada"), Cursor::Absent).unwrap();
    until(|| other.user("ada").is_online()).await;
    let warnings = lines.warnings();
    let rejected = warnings.iter().filter(|line| line.contains("rejected a report about connections"));
    assert_eq!(rejected.count(), 1, "{warnings:?}");
    drop(page);
}

#[tokio::test]
async fn a_page_of_another_origin_logs_one_warning_with_the_origin() {
    let (lines, _guard) = LogLines::capture();
    let hub = build(Hub::builder());
    for _ in 0..2 {
        let foreign = Request::get("/").header("host", "api.example").header("origin", "http://localhost:5173");
        let access = Public::topics(TopicFilter::any());
        let body = request(&hub, access, foreign).await;
        assert_eq!(body.collect().await.unwrap().to_bytes(), "the origin of this page is not allowed\n");
    }
    let logged = lines.at(Level::WARN);
    assert_eq!(logged.len(), 1, "{logged:?}");
    assert!(logged[0].contains("http://localhost:5173") && logged[0].contains("allow_cross_origin"), "{logged:?}");
}

#[tokio::test]
async fn an_invalid_subscription_logs_one_warning_with_the_cause() {
    let (lines, _guard) = LogLines::capture();
    let hub = build(Hub::builder());
    for _ in 0..2 {
        let access = async |_: StreamRequest| Ok(Subscription::anonymous().topic("a\nb"));
        request(&hub, access, Request::get("/")).await;
    }
    let logged = lines.at(Level::WARN);
    assert!(logged.len() == 1 && logged[0].contains("400") && logged[0].contains("control character"), "{logged:?}");
}

#[tokio::test]
async fn streams_without_the_hub_listener_log_one_warning() {
    let (lines, _guard) = LogLines::capture();
    let hub = build(Hub::builder());
    let _streams = [open(&hub, "t").await, open(&hub, "t").await];
    let logged = lines.at(Level::WARN);
    assert!(logged.len() == 1 && logged[0].contains("hub.listener"), "{logged:?}");
}

#[tokio::test]
async fn a_hook_that_blocks_its_thread_logs_one_warning() {
    let (lines, _guard) = LogLines::capture();
    let hub = build(Hub::builder());
    for _ in 0..2 {
        let access = async |_: StreamRequest| {
            // The hub measures this with the clock of the system, which a test cannot pause.
            std::thread::sleep(Duration::from_millis(250));
            Ok(Subscription::anonymous())
        };
        request(&hub, access, Request::get("/")).await;
    }
    let logged = lines.warnings();
    assert!(logged.len() == 1 && logged[0].contains("blocked its thread"), "{logged:?}");
}

#[test]
fn a_layer_path_with_a_parameter_logs_a_warning() {
    let (lines, _guard) = LogLines::capture();
    let hub = build(Hub::builder());
    let _ = hub.layer("/rooms/{id}/events", Public::topics(TopicFilter::any()));
    let logged = lines.at(Level::WARN);
    assert!(logged.len() == 1 && logged[0].contains("cannot have parameters"), "{logged:?}");
}

#[tokio::test]
async fn a_drain_logs_its_counts() {
    let (lines, _guard) = LogLines::capture();
    let hub = build(Hub::builder());
    let mut stream = hub.subscribe(Subscription::for_user("ada"), Cursor::Absent).unwrap();
    let draining = hub.clone();
    let (drained, _) = tokio::join!(draining.drain(Duration::ZERO), async { while stream.next().await.is_some() {} });
    assert_eq!((drained.ended, drained.cut), (1, 0));
    let logged = lines.at(Level::INFO);
    assert!(logged.iter().any(|line| line.contains("drained") && line.contains("ended=1")), "{logged:?}");
    assert_eq!(lines.at(Level::WARN), Vec::<String>::new());
    assert!(lines.at(Level::DEBUG).iter().any(|line| line.contains("reason=draining")));
}

#[tokio::test(start_paused = true)]
async fn many_gaps_log_one_warning_and_later_the_number_suppressed() {
    let (lines, _guard) = LogLines::capture();
    let hub = build(Hub::builder());
    for _ in 0..50 {
        gap(&hub).await;
    }
    let logged = lines.warnings();
    assert_eq!(logged.len(), 1, "{logged:?}");
    assert!(logged[0].contains("gap") && logged[0].contains("reason=invalid"), "{logged:?}");
    tokio::time::advance(Duration::from_secs(60)).await;
    gap(&hub).await;
    let logged = lines.warnings();
    assert_eq!(logged.len(), 2, "{logged:?}");
    assert!(logged[1].contains("suppressed=49"), "{logged:?}");
    let every_one = lines.at(Level::DEBUG).iter().filter(|line| line.contains("gap")).count();
    assert_eq!(every_one, 51);
    assert_eq!(hub.stats().gaps(GapReason::Invalid), 51);
}

#[tokio::test(start_paused = true)]
async fn many_refusals_log_one_warning_and_later_the_number_suppressed() {
    let (lines, _guard) = LogLines::capture();
    let hub = build(Hub::builder());
    for _ in 0..50 {
        refused(&hub).await;
    }
    let logged = lines.at(Level::WARN);
    assert_eq!(logged.len(), 1, "{logged:?}");
    assert!(logged[0].contains("refused") && logged[0].contains("reason=busy"), "{logged:?}");
    tokio::time::advance(Duration::from_secs(60)).await;
    refused(&hub).await;
    assert!(lines.at(Level::WARN)[1].contains("suppressed=49"));
    assert_eq!(hub.stats().refused(RefusalReason::Busy), 51);
}

#[tokio::test(start_paused = true)]
async fn warnings_of_one_kind_do_not_suppress_another_kind() {
    let (lines, _guard) = LogLines::capture();
    let hub = build(Hub::builder());
    for _ in 0..3 {
        gap(&hub).await;
        refused(&hub).await;
    }
    let logged = lines.warnings();
    assert_eq!(logged.len(), 2, "{logged:?}");
    assert!(logged[0].contains("gap") && logged[1].contains("refused"), "{logged:?}");
}

#[tokio::test(start_paused = true)]
async fn evictions_by_the_byte_budget_log_one_warning() {
    let (lines, _guard) = LogLines::capture();
    let hub = build(Hub::builder().max_payload(1000).retention_budget(3000));
    let publish = async |topics| {
        for n in 0..topics {
            hub.topic(n).publish(Event::unnamed("x".repeat(900))).await.unwrap();
        }
    };
    publish(30).await;
    until(|| !lines.at(Level::WARN).is_empty()).await;
    publish(30).await;
    // The hub checks its counters every few seconds.
    tokio::time::sleep(Duration::from_secs(9)).await;
    let logged = lines.at(Level::WARN);
    assert_eq!(logged.len(), 1, "{logged:?}");
    assert!(logged[0].contains("budget"), "{logged:?}");
    tokio::time::sleep(Duration::from_secs(60)).await;
    publish(30).await;
    until(|| lines.at(Level::WARN).len() == 2).await;
    assert!(hub.stats().evicted >= 80, "{:?}", hub.stats());
}

#[tokio::test(start_paused = true)]
async fn events_dropped_by_the_limits_of_a_topic_do_not_count_as_evicted() {
    let (lines, _guard) = LogLines::capture();
    let hub = build(Hub::builder().topic_retention(Retention::replay().count(1)));
    for _ in 0..50 {
        hub.topic("t").publish(Event::unnamed("x")).await.unwrap();
    }
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(hub.stats().evicted, 0);
    assert_eq!(lines.above_debug().len(), 0, "{:?}", lines.above_debug());
}

#[tokio::test(start_paused = true)]
async fn stalled_streams_log_one_warning() {
    let (lines, _guard) = LogLines::capture();
    let hub = build(Hub::builder().write_deadline(Duration::from_secs(4)));
    let mut bodies = Vec::new();
    for _ in 0..20 {
        bodies.push(open(&hub, "t").await);
    }
    hub.topic("t").publish(Event::unnamed("no client reads")).await.unwrap();
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(hub.stats().stalled, 20);
    assert_eq!(lines.warnings(), Vec::<String>::new(), "not yet");
    until(|| hub.stats().ended(EndReason::Stalled) == 20).await;
    let logged = lines.warnings();
    assert_eq!(logged.len(), 1, "{logged:?}");
    assert!(logged[0].contains("stalled"), "{logged:?}");
    assert_eq!(hub.stats().connections, 0);
    drop(bodies);
    assert_eq!(hub.stats().ended(EndReason::Client), 0, "each stream ends with one reason");
}

#[tokio::test]
async fn a_payload_too_large_for_some_clients_logs_one_warning() {
    let (lines, _guard) = LogLines::capture();
    let hub = build(Hub::builder());
    hub.topic("t").publish(Event::unnamed("x".repeat(60 << 10))).await.unwrap();
    assert_eq!(lines.at(Level::WARN), Vec::<String>::new());
    for _ in 0..5 {
        hub.topic("t").publish(Event::unnamed("x".repeat(65 << 10))).await.unwrap();
    }
    let logged = lines.at(Level::WARN);
    assert_eq!(logged.len(), 1, "a warning once above 64 KiB (wire.md, defaults and limits): {logged:?}");
}

#[tokio::test]
async fn a_layer_path_without_a_leading_slash_logs_a_warning() {
    let (lines, _guard) = LogLines::capture();
    let hub = build(Hub::builder());
    drop(hub.layer("events", Public::topics(TopicFilter::any())));
    assert_eq!(lines.at(Level::WARN).len(), 1);
    drop(hub.layer("/events", Public::topics(TopicFilter::any())));
    assert_eq!(lines.at(Level::WARN).len(), 1);
}

// -------------------------------------------------------------------------------------------------
// Secrets

/// Part of every value that a log line must not contain.
const SECRET: &str = "s3cr3t";

async fn secret_access(request: StreamRequest) -> Result<Subscription, Refusal> {
    let subscription = Subscription::for_user("s3cr3t-user").topic("s3cr3t-topic").data("s3cr3t-data");
    // Applications may log the request, so its `Debug` output must not contain the query.
    tracing::trace!(target: "application", ?request);
    match request.query_values("ticket").next().as_deref() {
        Some("s3cr3t-panic") => panic!("s3cr3t-panic"),
        Some("s3cr3t-slow") => std::future::pending().await,
        Some("s3cr3t-login") => Err(Refusal::unauthorized()),
        Some("s3cr3t-later") => Err(Refusal::retry_later(RefusalReason::Busy)),
        Some("s3cr3t-bad") => Ok(subscription.topic("s3cr3t\0")),
        Some("s3cr3t-many") => Ok(subscription.with_topics((0..500).map(|n| format!("s3cr3t-{n}")))),
        Some("s3cr3t-brief") => Ok(subscription.expires_in(Duration::from_millis(20))),
        _ => Ok(subscription),
    }
}

async fn handler(
    axum::extract::State(hub): axum::extract::State<Hub>,
    request: StreamRequest,
) -> tower_sse::EventStream {
    match secret_access(request.clone()).await {
        Ok(subscription) => hub.respond(request, subscription),
        Err(refusal) => hub.refuse(refusal),
    }
}

#[tokio::test]
async fn log_lines_contain_no_users_topics_data_or_tickets() {
    let (lines, _guard) = LogLines::capture();
    let retention = Retention::replay().count(1).on_lag(LagPolicy::Disconnect);
    let hub = build(
        Hub::builder()
            .access_timeout(Duration::from_millis(50))
            .drain_limit(Duration::from_millis(100))
            .write_deadline(Duration::from_millis(200))
            .topic_retention(retention)
            .max_payload(1000)
            .retention_budget(1000),
    );
    let app = Router::new()
        .route_service("/endpoint", hub.endpoint(secret_access))
        .route("/handler", axum::routing::get(handler))
        .with_state(hub.clone())
        .layer(hub.layer("/layer", secret_access));
    let server = Server::start(&hub, app).await;
    let first = hub.topic("s3cr3t-topic").publish(Event::unnamed("s3cr3t-data")).await.unwrap().position.to_string();

    for mounting in ["/layer", "/endpoint", "/handler"] {
        let path = |ticket: &str| format!("{mounting}?ticket=s3cr3t-{ticket}&topic=s3cr3t-topic");
        let mut tickets = vec!["login", "later", "bad", "many", "brief"];
        if mounting != "/handler" {
            tickets.extend(["panic", "slow"]);
        }
        for ticket in tickets {
            drop(get(server.addr, &path(ticket)).await.text().await);
        }
        let request = |method| Request::builder().method(method).uri(path("fine")).header("cookie", "id=s3cr3t-cookie");
        send(server.addr, request("POST").body("s3cr3t-body").unwrap()).await;
        send(server.addr, request("GET").header("accept", "s3cr3t/type").body("").unwrap()).await;
        send(server.addr, request("HEAD").body("").unwrap()).await;

        let mut events = subscribe(server.addr, &path("fine")).await;
        for event in [
            Event::new("s3cr3t-name", "s3cr3t-data").key("s3cr3t-key"),
            Event::new("s3cr3t-name", "s3cr3t-data".repeat(50)),
        ] {
            hub.user("s3cr3t-user").and(hub.topic("s3cr3t-topic")).publish(event).await.unwrap();
            events.next().await;
        }
        hub.topic("s3cr3t-topic\n").publish(Event::new("s3cr3t\r", "")).await.unwrap_err();
        hub.user("s3cr3t-user").publish(Event::unnamed(SECRET.repeat(1000))).await.unwrap_err();
        // Gaps of every kind.
        let behind = hub.subscribe(Subscription::anonymous().topic("s3cr3t-topic"), Cursor::Absent).unwrap();
        for _ in 0..3 {
            hub.topic("s3cr3t-topic").publish(Event::unnamed("s3cr3t-data")).await.unwrap();
        }
        drop(behind);
        for id in ["s3cr3t-cursor", "1.0.0", &first] {
            resume(server.addr, &path("fine"), id).await.caught_up().await;
            get(server.addr, &format!("{}&last_event_id={id}", path("fine"))).await.events().caught_up().await;
        }
        // A client that disconnects within its request, and a client that sends an invalid request.
        for bytes in [&b"GET /layer?ticket=s3cr3t-half"[..], b"s3cr3t s3cr3t s3cr3t\r\n\r\n"] {
            use tokio::io::{AsyncReadExt, AsyncWriteExt};
            let mut tcp = tokio::net::TcpStream::connect(server.addr).await.unwrap();
            tcp.write_all(bytes).await.unwrap();
            tcp.shutdown().await.unwrap();
            drop(soon(tcp.read_to_end(&mut Vec::new())).await);
        }
    }
    let stalled = resume(server.addr, "/layer?ticket=s3cr3t-fine", &first).await;
    soon(hub.drain(Duration::ZERO)).await;
    drop(stalled);
    hub.topic("s3cr3t-topic").publish(Event::unnamed("s3cr3t-data")).await.unwrap_err();
    drop(get(server.addr, "/layer?ticket=s3cr3t-drained").await.text().await);

    for line in lines.above_debug() {
        assert!(!line.text.contains(SECRET), "{line:?}");
    }
    for line in lines.all() {
        assert!(!line.text.contains("ticket"), "a line contains the query: {line:?}");
        for value in
            ["fine", "login", "later", "bad", "many", "brief", "panic", "slow", "cookie", "cursor", "data", "half"]
        {
            assert!(!line.text.contains(&format!("{SECRET}-{value}")), "{line:?}");
        }
    }
    // The test has caused lines of these levels.
    let count = |level| lines.at(level).len();
    assert!(count(Level::ERROR) > 0 && count(Level::WARN) > 1 && count(Level::DEBUG) > 20, "{:?}", lines.above_debug());
}

#[tokio::test]
async fn debug_output_contains_no_query_and_no_data() {
    let request = Request::get("/events?ticket=s3cr3t").header("cookie", "s3cr3t").header("last-event-id", "s3cr3t");
    let stream_request = StreamRequest::from_request(&request.body(()).unwrap());
    assert!(!format!("{stream_request:?}").contains(SECRET), "{stream_request:?}");
    let hub = build(Hub::builder());
    let stream = hub.respond(stream_request, Subscription::anonymous().data(SECRET).extension(SECRET).topic("t"));
    let layer = hub.layer("/events", Public::topics(TopicFilter::any()));
    hub.topic("t").publish(Event::unnamed(SECRET)).await.unwrap();
    for text in [
        format!("{hub:?}"),
        format!("{stream:?}"),
        format!("{layer:?}"),
        format!("{:?}", hub.endpoint(Public::topics(TopicFilter::any()))),
        format!("{:?}", Subscription::anonymous().data(SECRET).extension(SECRET)),
        format!("{:?}", hub.stats()),
    ] {
        assert!(!text.contains(SECRET), "{text}");
    }
}

// -------------------------------------------------------------------------------------------------
// Counts

#[tokio::test(start_paused = true)]
async fn stats_are_exact() {
    let hub = build(
        Hub::builder()
            .write_deadline(Duration::from_secs(4))
            .access_timeout(Duration::from_secs(1))
            .max_payload(1000)
            .retention_budget(6_000)
            .retention_for(TopicFilter::exact("short"), Retention::replay().count(2))
            .retention_for(TopicFilter::exact("strict"), Retention::replay().count(2).on_lag(LagPolicy::Disconnect)),
    );
    let fresh = hub.stats();
    assert_eq!((fresh.connections, fresh.connected, fresh.published, fresh.delivered, fresh.evicted), (0, 0, 0, 0, 0));
    assert_eq!((fresh.retained_bytes, fresh.keyed_bytes, fresh.lag, fresh.stalled), (0, 0, 0, 0));

    // Two streams of one topic and one of another: connections, published, delivered.
    let (mut one, mut two, mut other) = (open(&hub, "a").await, open(&hub, "a").await, open(&hub, "b").await);
    for _ in 0..3 {
        hub.topic("a").publish(Event::unnamed("x")).await.unwrap();
    }
    assert!(hub.topic("a").publish(Event::new("hub.x", "")).await.is_err());
    let stats = hub.stats();
    assert_eq!((stats.connections, stats.connected, stats.published, stats.delivered), (3, 3, 3, 0));
    assert_eq!(stats.lag, 3);
    assert_eq!(stats.position, hub.position());
    for body in [&mut one, &mut two, &mut other] {
        ready(body);
    }
    let stats = hub.stats();
    assert_eq!((stats.delivered, stats.lag), (6, 0));
    assert!(stats.retained_bytes > 0);
    assert_eq!(stats.channels, 3, "everyone, a, b");

    // Ends.
    drop((one, two, other));
    let first = [EndReason::Client, EndReason::Draining, EndReason::Expired, EndReason::Lagged, EndReason::Stalled];
    assert_eq!(EndReason::ALL[..5], first);
    let reasons = |hub: &Hub| EndReason::ALL[..5].iter().map(|&reason| hub.stats().ended(reason)).collect::<Vec<_>>();
    assert_eq!((hub.stats().connections, reasons(&hub)), (0, vec![3, 0, 0, 0, 0]));
    let brief = Subscription::anonymous().expires_in(Duration::from_millis(100));
    let items: Vec<_> = soon(hub.subscribe(brief, Cursor::Absent).unwrap().collect()).await;
    assert_eq!(items.last(), Some(&SubscriberItem::End(EndReason::Expired)));
    assert_eq!(reasons(&hub), [3, 0, 1, 0, 0]);
    let mut strict = hub.subscribe(Subscription::anonymous().topic("strict"), Cursor::Absent).unwrap();
    assert!(matches!(strict.next().await, Some(SubscriberItem::Live(_))));
    for _ in 0..5 {
        hub.topic("strict").publish(Event::unnamed("x")).await.unwrap();
    }
    assert_eq!(strict.next().await, Some(SubscriberItem::End(EndReason::Lagged)));
    assert_eq!(reasons(&hub), [3, 0, 1, 1, 0]);
    let stalled = open(&hub, "a").await;
    hub.topic("a").publish(Event::unnamed("x")).await.unwrap();
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(hub.stats().stalled, 1);
    until(|| hub.stats().connections == 0).await;
    assert_eq!((hub.stats().stalled, reasons(&hub)), (0, vec![3, 0, 1, 1, 1]));
    drop(stalled);
    assert_eq!(reasons(&hub), [3, 0, 1, 1, 1]);

    // Gaps.
    let begin = fresh.position;
    let mut short = hub.subscribe(Subscription::anonymous().topic("short"), Cursor::Absent).unwrap();
    assert!(matches!(short.next().await, Some(SubscriberItem::Live(_))));
    for _ in 0..5 {
        hub.topic("short").publish(Event::unnamed("x")).await.unwrap();
    }
    assert!(matches!(short.next().await, Some(SubscriberItem::Gap { reason: GapReason::Lagged, .. })));
    for cursor in [Cursor::At(begin), Cursor::Invalid, Cursor::parse(b"1.0.0")] {
        let mut stream = hub.subscribe(Subscription::anonymous().topic("short"), cursor).unwrap();
        assert!(matches!(stream.next().await, Some(SubscriberItem::Gap { .. })), "{cursor:?}");
    }
    let ahead = Cursor::parse(format!("{}0", hub.position()).as_bytes());
    let mut stream = hub.subscribe(Subscription::anonymous(), ahead).unwrap();
    assert!(matches!(stream.next().await, Some(SubscriberItem::Gap { reason: GapReason::Ahead, .. })));
    // Every reason except `lost`, which only a broker can cause.
    let all = GapReason::ALL.iter().map(|&reason| (reason, hub.stats().gaps(reason))).collect::<Vec<_>>();
    assert!(all.iter().all(|(reason, count)| *count == u64::from(*reason != GapReason::Lost)), "{all:?}");

    // Refusals.
    refused(&hub).await;
    let slow = |_: StreamRequest| std::future::pending();
    assert!(ready(&mut request(&hub, slow, Request::get("/")).await).contains("timeout"));
    assert_eq!(hub.stats().refused(RefusalReason::Busy), 1);
    assert_eq!(hub.stats().refused(RefusalReason::Timeout), 1);
    assert_eq!(hub.stats().refused(RefusalReason::Limit), 0);

    // Evictions. The budget holds four records of this size, each in its own topic. Before them it
    // holds eight small records: four of `a`, two of `short` and two of `strict`.
    assert_eq!(hub.stats().evicted, 0);
    for n in 0..20 {
        hub.topic(n).publish(Event::unnamed("x".repeat(800))).await.unwrap();
    }
    let stats = hub.stats();
    assert!(stats.retained_bytes <= 6_000, "{stats:?}");
    let mut kept =
        hub.subscribe(Subscription::anonymous().with_topics(0..20).start(Start::Oldest), Cursor::Absent).unwrap();
    let Some(SubscriberItem::Gap { topics, .. }) = kept.next().await else { panic!("no gap") };
    assert_eq!(topics.len(), 16);
    let mut count = 0;
    while let Some(SubscriberItem::Event(_)) = kept.next().await {
        count += 1;
    }
    assert_eq!(count, 4);
    assert_eq!(stats.evicted, 8 + 20 - 4);
    drop((short, stream, kept));

    // A drain.
    let staying = hub.subscribe(Subscription::anonymous(), Cursor::Absent).unwrap();
    let (drained, _) = tokio::join!(hub.drain(Duration::ZERO), staying.collect::<Vec<_>>());
    assert_eq!((drained.ended, hub.stats().ended(EndReason::Draining)), (1, 1));
    let access = Public::topics(TopicFilter::any());
    assert!(ready(&mut request(&hub, access, Request::get("/")).await).contains("draining"));
    assert_eq!(hub.stats().refused(RefusalReason::Draining), 1);
    assert_eq!(hub.stats().connections, 0);
}

#[tokio::test]
async fn current_values_count_as_keyed_bytes_and_not_as_retained_bytes() {
    let hub = build(Hub::builder().topic_retention(Retention::latest_per_key()));
    for n in 0..10 {
        hub.topic("t").publish(Event::unnamed(n.to_string()).key("k")).await.unwrap();
    }
    let stats = hub.stats();
    assert_eq!(stats.retained_bytes, 0);
    assert!((1..1_200).contains(&stats.keyed_bytes), "one value: {stats:?}");
    hub.topic("t").publish(Event::removal("k")).await.unwrap();
    assert_eq!(hub.stats().keyed_bytes, 0);
}

#[tokio::test]
async fn an_excluded_connection_does_not_count_as_a_delivery() {
    let hub = build(Hub::builder());
    let mut me = hub.subscribe(Subscription::anonymous().topic("t"), Cursor::Absent).unwrap();
    let mut you = hub.subscribe(Subscription::anonymous().topic("t"), Cursor::Absent).unwrap();
    hub.topic("t").except(me.connection()).publish(Event::unnamed("x")).await.unwrap();
    assert!(matches!(soon(you.next()).await, Some(SubscriberItem::Event(_))));
    assert!(matches!(soon(me.next()).await, Some(SubscriberItem::Live(_))));
    assert!(me.next().now_or_never().is_none());
    assert_eq!(hub.stats().delivered, 1);
}

#[tokio::test]
async fn both_of_two_instances_with_different_settings_log_a_warning() {
    let (lines, _guard) = LogLines::capture();
    let log = tower_sse::backplane::Memory::new();
    let build =
        |grace| Hub::builder().presence_grace(Duration::from_secs(grace)).backplane(log.clone()).build().unwrap();
    let older = build(7);
    until(|| older.is_ready()).await;
    let newer = build(8);
    until(|| lines.at(Level::WARN).len() == 2).await;
    assert!(lines.at(Level::WARN).iter().all(|line| line.contains("presence_grace")), "{lines:?}");
    drop(newer);
}

/// Instances with different settings work together. Each logs one warning that names the settings.
#[tokio::test]
async fn each_instance_logs_different_settings_of_other_instances_once() {
    let (lines, _guard) = LogLines::capture();
    let log = tower_sse::backplane::Memory::new();
    let build =
        |builder: HubBuilder| builder.backplane(log.clone()).peer_timeout(Duration::from_millis(900)).build().unwrap();
    let latest = || Hub::builder().retention_for(TopicFilter::prefix("latest/"), Retention::latest_per_key());
    let one = build(latest());
    let two = build(latest());
    until(|| one.stats().others == 1 && two.stats().others == 1).await;
    assert_eq!(lines.at(Level::WARN), Vec::<String>::new());
    let other = build(Hub::builder().presence_grace(Duration::from_secs(7)));
    let another = build(Hub::builder().presence_grace(Duration::from_secs(8)));
    for hub in [&one, &two, &other, &another] {
        until(|| hub.stats().others == 3).await;
    }
    // One line from each instance, also from the newest.
    until(|| lines.at(Level::WARN).len() >= 4).await;
    let mut page = another.subscribe(Subscription::anonymous().topic("t"), Cursor::Absent).unwrap();
    one.topic("t").publish(Event::unnamed("x")).await.unwrap();
    while !matches!(soon(page.next()).await.unwrap(), SubscriberItem::Event(_)) {}
    let warned = lines.at(Level::WARN);
    assert!(warned.len() <= 4, "{warned:?}");
    assert!(warned.iter().all(|line| line.contains("presence_grace") && !line.contains("max_payload")), "{warned:?}");
    assert!(warned.iter().any(|line| line.contains("retention")), "{warned:?}");
}

#[tokio::test]
async fn a_redis_primary_with_too_few_replicas_logs_one_warning() {
    let Some(server) = RedisServer::start(FORGETFUL) else { return };
    let few = |lines: &LogLines| {
        let warnings = lines.at(Level::WARN).into_iter();
        warnings.filter(|line| line.contains("fewer replicas than acknowledged_by requires")).collect::<Vec<_>>()
    };
    for required in [0, 2] {
        let (lines, _guard) = LogLines::capture();
        let log = Redis::new(&server.url(), "n").unwrap().acknowledged_by(required).timeout(Duration::from_secs(4));
        let record = || vec![NewRecord::new("x".into())];
        for _ in 0..2 {
            assert_eq!(soon(log.append(record(), None)).await.remove(0).is_ok(), required == 0);
        }
        let warned = few(&lines);
        assert_eq!(warned.len(), usize::from(required > 0), "{warned:?}");
        assert!(warned.iter().all(|line| line.contains(" connected=0 required=2")), "{warned:?}");
    }
}

#[tokio::test]
async fn log_lines_and_debug_output_contain_no_ticket() {
    let (lines, _guard) = LogLines::capture();
    let hub = build(Hub::builder());
    let ticket = hub.ticket(Subscription::for_user("ada").topic("t"), Duration::from_secs(60)).await.unwrap();
    let path = format!("/?ticket={}", ticket.as_str());
    let redeeming = hub.clone();
    let redeems = move |request: StreamRequest| {
        let hub = redeeming.clone();
        async move { hub.redeem(&request).await }
    };
    let mut body = request(&hub, redeems.clone(), Request::get(&path)).await;
    assert!(ready(&mut body).contains("hub.live"));
    hub.everyone().disconnect(Disconnect::now()).await.unwrap();
    assert!(ready(&mut body).contains("hub.bye"));
    let mut spent = request(&hub, redeems.clone(), Request::get(&path)).await;
    assert_eq!(ready(&mut spent), "sign in first\n");

    let stream_request = StreamRequest::from_request(&Request::get(path.as_str()).body(()).unwrap());
    let debug = format!("{ticket:?} {:?} {stream_request:?} {hub:?}", Some(ticket.clone()));
    assert!(!debug.contains(ticket.as_str()), "{debug}");
    let logged: String = lines.all().into_iter().map(|line| line.text + "\n").collect();
    assert!(logged.contains("refused") && !logged.contains(ticket.as_str()), "{logged}");
}

// -------------------------------------------------------------------------------------------------
// The table of docs/metrics.md

/// The level and the fields of log events and spans, by name.
type Listed = BTreeMap<String, (BTreeSet<String>, BTreeSet<String>)>;

/// Reads the arguments of each `tracing` macro in the source.
fn list_source(folder: &Path, listed: &mut Listed) {
    for entry in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        if entry.is_dir() {
            list_source(&entry, listed);
        } else if entry.extension().is_some_and(|extension| extension == "rs") {
            let text = std::fs::read_to_string(&entry).unwrap();
            // This test finds only macros with their path.
            let imports = text.lines().filter(|line| line.trim_start().starts_with("use tracing::"));
            assert!(imports.clone().all(|line| line.ends_with("::Instrument;")), "{}", entry.display());
            list_macros(syn::parse_file(&text).unwrap().into_token_stream(), listed);
        }
    }
}

fn list_macros(tokens: TokenStream, listed: &mut Listed) {
    let tokens: Vec<TokenTree> = tokens.into_iter().collect();
    for (at, token) in tokens.iter().enumerate() {
        let TokenTree::Group(group) = token else { continue };
        // `tracing :: level ! ( … )`
        let is_macro = at >= 5 && tokens[at - 5].to_string() == "tracing" && tokens[at - 1].to_string() == "!";
        if is_macro {
            list_macro(&tokens[at - 2].to_string(), &group.stream(), listed);
        } else {
            list_macros(group.stream(), listed);
        }
    }
}

fn list_macro(kind: &str, arguments: &TokenStream, listed: &mut Listed) {
    let arguments: Vec<TokenTree> = arguments.clone().into_iter().collect();
    let mut arguments: Vec<String> = arguments
        .split(|token| token.to_string() == ",")
        .map(|argument| argument.iter().map(ToString::to_string).collect::<String>())
        .collect();
    let first = arguments.remove(0);
    let name = match kind.strip_suffix("_span") {
        Some(_) => first.as_str(),
        None => first.strip_prefix("name:").unwrap_or_else(|| panic!("a log event has no name: {first}")),
    };
    let (levels, fields) = listed.entry(name.trim_matches('"').to_owned()).or_default();
    levels.insert(kind.strip_suffix("_span").map_or(kind.to_owned(), |level| format!("span, {level}")));
    let is_field = |argument: &&String| !argument.starts_with('"') && !argument.is_empty();
    let name = |argument: &String| argument.split('=').next().unwrap().trim_matches(['%', '?']).to_owned();
    fields.extend(arguments.iter().filter(is_field).map(name));
}

fn list_document(document: &str) -> Listed {
    let in_backticks = |cell: &str| cell.split('`').skip(1).step_by(2).map(str::to_owned).collect::<BTreeSet<_>>();
    let row = |line: &str| {
        let cells: Vec<_> = line.split(" | ").collect();
        let name = cells[0].strip_prefix("| `")?.strip_suffix('`')?.to_owned();
        let kinds = ["debug", "info", "warn", "error", "span, debug"];
        let levels: BTreeSet<_> = cells.get(1)?.split(" and ").map(str::to_owned).collect();
        levels.iter().all(|level| kinds.contains(&level.as_str())).then(|| (name, (levels, in_backticks(cells[2]))))
    };
    document.lines().filter_map(row).collect()
}

#[test]
fn the_document_lists_the_name_the_level_and_the_fields_of_every_log_event() {
    let mut listed = Listed::new();
    list_source(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src")), &mut listed);
    assert!(listed.len() > 50, "{listed:?}");
    assert_eq!(list_document(include_str!("../docs/metrics.md")), listed);
}
