//! What the hub says of itself: log lines that name nobody and do not flood, and counts that are exact.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "these are tests, helpers and all")]

mod kit;

use std::fmt::{self, Write};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::kit::{Server, get, resume, send, soon, subscribe, until};
use axum::Router;
use futures::{FutureExt, StreamExt};
use http::Request;
use http_body_util::BodyExt;
use tower::ServiceExt;
use tower_sse::{
    Cursor, Disconnect, EndReason, Event, EventBody, GapReason, Hub, HubBuilder, IntoAccess, LagPolicy, Public,
    Refusal, RefusalReason, Retention, Start, StreamRequest, SubscriberItem, Subscription, TopicFilter,
};
use tracing::Level;
use tracing::field::{Field, Visit};
use tracing::subscriber::DefaultGuard;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};

// ---------------------------------------------------------------------------------------------------------------------
// A subscriber that keeps what it hears

#[derive(Clone, Debug)]
struct Line {
    level: Level,
    /// The message and every field.
    text: String,
}

/// The lines of this crate, of any level. Tests run on one thread each, and so does everything in them.
#[derive(Clone, Debug, Default)]
struct Lines(Arc<Mutex<Vec<Line>>>);

struct Text<'a>(&'a mut String);

impl Visit for Text<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        write!(self.0, " {field}={value:?}").unwrap();
    }
}

impl<S: tracing::Subscriber> Layer<S> for Lines {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        if event.metadata().target().starts_with("tower_sse") {
            let mut text = String::new();
            event.record(&mut Text(&mut text));
            self.0.lock().unwrap().push(Line { level: *event.metadata().level(), text });
        }
    }

    fn on_new_span(&self, span: &tracing::span::Attributes<'_>, _: &tracing::Id, _: Context<'_, S>) {
        if span.metadata().target().starts_with("tower_sse") {
            let mut text = span.metadata().name().to_owned();
            span.record(&mut Text(&mut text));
            self.0.lock().unwrap().push(Line { level: *span.metadata().level(), text });
        }
    }
}

impl Lines {
    fn capture() -> (Self, DefaultGuard) {
        let lines = Self::default();
        let guard = tracing::subscriber::set_default(tracing_subscriber::registry().with(lines.clone()));
        (lines, guard)
    }

    fn all(&self) -> Vec<Line> {
        self.0.lock().unwrap().clone()
    }

    fn at(&self, level: Level) -> Vec<String> {
        self.all().into_iter().filter(|line| line.level == level).map(|line| line.text).collect()
    }

    /// Those about streams, at debug.
    fn of_streams(&self) -> Vec<String> {
        self.at(Level::DEBUG).into_iter().filter(|line| line.contains("event stream")).collect()
    }

    /// Warnings, but that the hub does not watch the sockets: here are none.
    fn warnings(&self) -> Vec<String> {
        self.at(Level::WARN).into_iter().filter(|line| !line.contains("does not watch")).collect()
    }

    fn above_debug(&self) -> Vec<Line> {
        self.all().into_iter().filter(|line| line.level < Level::DEBUG).collect()
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Requests without sockets, since paused time and sockets do not go together

type Body = Pin<Box<EventBody>>;

/// A request through the service, and the body of its answer.
async fn request<M, A: IntoAccess<M>>(hub: &Hub, access: A, request: http::request::Builder) -> Body {
    let response = soon(hub.endpoint(access).oneshot(request.body(()).unwrap())).await.unwrap();
    Box::pin(response.into_body())
}

/// The frames that are there without waiting.
fn ready(body: &mut Body) -> String {
    let mut text = Vec::new();
    while let Some(Some(Ok(frame))) = body.frame().now_or_never() {
        text.extend_from_slice(&frame.into_data().unwrap());
    }
    String::from_utf8(text).unwrap()
}

/// A stream of this topic that has read everything that is there.
async fn open(hub: &Hub, topic: &str) -> Body {
    let access = Public::topics(TopicFilter::any());
    let mut body = request(hub, access, Request::get(format!("/?topic={topic}"))).await;
    assert!(ready(&mut body).contains("hub.live"));
    body
}

/// A client that comes back with something that is no position.
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

// ---------------------------------------------------------------------------------------------------------------------
// Lines

#[tokio::test]
async fn a_stream_is_a_line_at_debug_when_it_opens_and_when_it_ends() {
    let (lines, _guard) = Lines::capture();
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
    assert_eq!(lines.above_debug().len(), 1, "only the line of the start: {:?}", lines.above_debug());
}

#[tokio::test]
async fn a_start_is_one_line_with_the_log_the_name_and_the_mounts() {
    let (lines, _guard) = Lines::capture();
    let hub = build(Hub::builder().instance_name("blue"));
    let app = Router::new().layer(hub.layer("/events", Public::topics(TopicFilter::any())));
    assert_eq!(lines.at(Level::INFO), Vec::<String>::new(), "it is not mounted yet");
    let server = Server::start(&hub, app).await;
    subscribe(server.addr, "/events?topic=t").await;
    let said = lines.at(Level::INFO);
    assert_eq!(said.len(), 1, "{said:?}");
    for part in ["this process", "instance=\"blue\"", "/events"] {
        assert!(said[0].contains(part), "{said:?}");
    }
}

#[tokio::test]
async fn a_publish_is_one_line_at_debug_that_names_no_user() {
    let (lines, _guard) = Lines::capture();
    let hub = build(Hub::builder());
    let receipt = hub.user("ada").publish(Event::unnamed("x")).await.unwrap();
    let said = lines.at(Level::DEBUG);
    assert_eq!(said.len(), 1, "{said:?}");
    for part in ["published", "user", "receivers=0", &receipt.position.to_string()] {
        assert!(said[0].contains(part), "{said:?}");
    }
    assert!(!said[0].contains("ada"), "{said:?}");
}

#[tokio::test]
async fn a_key_that_no_rule_keeps_is_one_warning_and_a_flag() {
    let (lines, _guard) = Lines::capture();
    let latest = Retention::latest_per_key();
    let hub = build(Hub::builder().retention_for(TopicFilter::prefix("latest/"), latest));
    let publish = async |topic: &str, event: Event| hub.topic(topic).publish(event).await.unwrap().key_ignored;
    assert!(!publish("t", Event::unnamed("x")).await);
    assert!(!publish("latest/a", Event::unnamed("x").key("k")).await);
    assert_eq!(lines.at(Level::WARN), Vec::<String>::new());
    assert!(publish("t", Event::unnamed("x").key("k")).await);
    assert!(publish("t", Event::removal("k")).await);
    let said = lines.at(Level::WARN);
    assert!(said.len() == 1 && said[0].contains("latest_per_key"), "{said:?}");
    // One target that keeps it is enough.
    let both = hub.topic("t").and(hub.topic("latest/a"));
    assert!(!both.publish(Event::unnamed("x").key("k")).await.unwrap().key_ignored);
}

#[tokio::test]
async fn a_publisher_warns_of_a_key_that_no_rule_keeps() {
    let (lines, _guard) = Lines::capture();
    let publisher = tower_sse::Publisher::new(tower_sse::backplane::Memory::new()).unwrap();
    for _ in 0..2 {
        assert!(publisher.topic("t").publish(Event::unnamed("x").key("k")).await.unwrap().key_ignored);
    }
    let said = lines.at(Level::WARN);
    assert!(said.len() == 1 && said[0].contains("latest_per_key"), "{said:?}");
}

#[tokio::test]
async fn a_page_of_another_origin_is_one_warning_that_names_the_origin() {
    let (lines, _guard) = Lines::capture();
    let hub = build(Hub::builder());
    for _ in 0..2 {
        let foreign = Request::get("/").header("host", "api.example").header("origin", "http://localhost:5173");
        let access = Public::topics(TopicFilter::any());
        let body = request(&hub, access, foreign).await;
        assert_eq!(body.collect().await.unwrap().to_bytes(), "the origin of this page is not allowed\n");
    }
    let said = lines.at(Level::WARN);
    assert_eq!(said.len(), 1, "{said:?}");
    assert!(said[0].contains("http://localhost:5173") && said[0].contains("allow_cross_origin"), "{said:?}");
}

#[tokio::test]
async fn an_invalid_subscription_is_one_warning_that_says_why() {
    let (lines, _guard) = Lines::capture();
    let hub = build(Hub::builder());
    for _ in 0..2 {
        let access = async |_: StreamRequest| Ok(Subscription::anonymous().topic("a\nb"));
        request(&hub, access, Request::get("/")).await;
    }
    let said = lines.at(Level::WARN);
    assert!(said.len() == 1 && said[0].contains("400") && said[0].contains("control character"), "{said:?}");
}

#[tokio::test]
async fn a_socket_that_the_hub_does_not_watch_is_one_warning() {
    let (lines, _guard) = Lines::capture();
    let hub = build(Hub::builder());
    let _streams = [open(&hub, "t").await, open(&hub, "t").await];
    let said = lines.at(Level::WARN);
    assert!(said.len() == 1 && said[0].contains("hub.listener"), "{said:?}");
}

#[tokio::test]
async fn a_hook_that_blocks_its_thread_is_one_warning() {
    let (lines, _guard) = Lines::capture();
    let hub = build(Hub::builder());
    for _ in 0..2 {
        let access = async |_: StreamRequest| {
            std::thread::sleep(Duration::from_millis(250));
            Ok(Subscription::anonymous())
        };
        request(&hub, access, Request::get("/")).await;
    }
    let said = lines.warnings();
    assert!(said.len() == 1 && said[0].contains("blocked its thread"), "{said:?}");
}

#[test]
fn a_layer_path_with_a_parameter_is_a_warning() {
    let (lines, _guard) = Lines::capture();
    let hub = build(Hub::builder());
    let _ = hub.layer("/rooms/{id}/events", Public::topics(TopicFilter::any()));
    let said = lines.at(Level::WARN);
    assert!(said.len() == 1 && said[0].contains("no parameters"), "{said:?}");
}

#[tokio::test]
async fn a_drain_is_said_with_its_counts() {
    let (lines, _guard) = Lines::capture();
    let hub = build(Hub::builder());
    let mut stream = hub.subscribe(Subscription::for_user("ada"), Cursor::Absent).unwrap();
    let draining = hub.clone();
    let (drained, _) = tokio::join!(draining.drain(Duration::ZERO), async { while stream.next().await.is_some() {} });
    assert_eq!((drained.ended, drained.cut), (1, 0));
    let said = lines.at(Level::INFO);
    assert!(said.iter().any(|line| line.contains("drained") && line.contains("ended=1")), "{said:?}");
    assert_eq!(lines.at(Level::WARN), Vec::<String>::new());
    assert!(lines.at(Level::DEBUG).iter().any(|line| line.contains("reason=draining")));
}

#[tokio::test(start_paused = true)]
async fn many_gaps_are_one_warning_that_later_says_how_many() {
    let (lines, _guard) = Lines::capture();
    let hub = build(Hub::builder());
    for _ in 0..50 {
        gap(&hub).await;
    }
    let said = lines.warnings();
    assert_eq!(said.len(), 1, "{said:?}");
    assert!(said[0].contains("gap") && said[0].contains("reason=invalid"), "{said:?}");
    tokio::time::advance(Duration::from_secs(60)).await;
    gap(&hub).await;
    let said = lines.warnings();
    assert_eq!(said.len(), 2, "{said:?}");
    assert!(said[1].contains("suppressed=49"), "{said:?}");
    let every_one = lines.at(Level::DEBUG).iter().filter(|line| line.contains("gap")).count();
    assert_eq!(every_one, 51);
    assert_eq!(hub.stats().gaps(GapReason::Invalid), 51);
}

#[tokio::test(start_paused = true)]
async fn many_refusals_are_one_warning_that_later_says_how_many() {
    let (lines, _guard) = Lines::capture();
    let hub = build(Hub::builder());
    for _ in 0..50 {
        refused(&hub).await;
    }
    let said = lines.at(Level::WARN);
    assert_eq!(said.len(), 1, "{said:?}");
    assert!(said[0].contains("refused") && said[0].contains("reason=busy"), "{said:?}");
    tokio::time::advance(Duration::from_secs(60)).await;
    refused(&hub).await;
    assert!(lines.at(Level::WARN)[1].contains("suppressed=49"));
    assert_eq!(hub.stats().refused(RefusalReason::Busy), 51);
}

#[tokio::test(start_paused = true)]
async fn one_kind_of_trouble_does_not_silence_another() {
    let (lines, _guard) = Lines::capture();
    let hub = build(Hub::builder());
    for _ in 0..3 {
        gap(&hub).await;
        refused(&hub).await;
    }
    let said = lines.warnings();
    assert_eq!(said.len(), 2, "{said:?}");
    assert!(said[0].contains("gap") && said[1].contains("refused"), "{said:?}");
}

#[tokio::test(start_paused = true)]
async fn evictions_by_the_byte_budget_are_one_warning() {
    let (lines, _guard) = Lines::capture();
    let hub = build(Hub::builder().max_payload(1000).retention_budget(3000));
    let publish = async |topics| {
        for n in 0..topics {
            hub.topic(n).publish(Event::unnamed("x".repeat(900))).await.unwrap();
        }
    };
    publish(30).await;
    until(|| !lines.at(Level::WARN).is_empty()).await;
    publish(30).await;
    // The hub looks every few seconds.
    tokio::time::sleep(Duration::from_secs(9)).await;
    let said = lines.at(Level::WARN);
    assert_eq!(said.len(), 1, "{said:?}");
    assert!(said[0].contains("budget"), "{said:?}");
    tokio::time::sleep(Duration::from_secs(60)).await;
    publish(30).await;
    until(|| lines.at(Level::WARN).len() == 2).await;
    assert!(hub.stats().evicted >= 80, "{:?}", hub.stats());
}

#[tokio::test(start_paused = true)]
async fn the_bounds_of_a_channel_are_no_eviction() {
    let (lines, _guard) = Lines::capture();
    let hub = build(Hub::builder().topic_retention(Retention::replay().count(1)));
    for _ in 0..50 {
        hub.topic("t").publish(Event::unnamed("x")).await.unwrap();
    }
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(hub.stats().evicted, 0);
    assert_eq!(lines.above_debug().len(), 0, "{:?}", lines.above_debug());
}

#[tokio::test(start_paused = true)]
async fn streams_that_are_given_up_are_one_warning() {
    let (lines, _guard) = Lines::capture();
    let hub = build(Hub::builder().write_deadline(Duration::from_secs(4)));
    let mut bodies = Vec::new();
    for _ in 0..20 {
        bodies.push(open(&hub, "t").await);
    }
    hub.topic("t").publish(Event::unnamed("nobody reads")).await.unwrap();
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(hub.stats().stalled, 20);
    assert_eq!(lines.warnings(), Vec::<String>::new(), "not yet");
    until(|| hub.stats().ended(EndReason::Stalled) == 20).await;
    let said = lines.warnings();
    assert_eq!(said.len(), 1, "{said:?}");
    assert!(said[0].contains("stalled"), "{said:?}");
    assert_eq!(hub.stats().connections, 0);
    drop(bodies);
    assert_eq!(hub.stats().ended(EndReason::Client), 0, "each ends for one reason");
}

#[tokio::test]
async fn a_payload_that_a_well_used_client_cannot_read_is_warned_of_once() {
    let (lines, _guard) = Lines::capture();
    let hub = build(Hub::builder());
    hub.topic("t").publish(Event::unnamed("x".repeat(60 << 10))).await.unwrap();
    assert_eq!(lines.at(Level::WARN), Vec::<String>::new());
    for _ in 0..5 {
        hub.topic("t").publish(Event::unnamed("x".repeat(65 << 10))).await.unwrap();
    }
    let said = lines.at(Level::WARN);
    assert_eq!(said.len(), 1, "a warning once above 64 KiB (wire.md, defaults and limits): {said:?}");
}

#[tokio::test]
async fn a_path_that_is_never_requested_is_warned_of() {
    let (lines, _guard) = Lines::capture();
    let hub = build(Hub::builder());
    drop(hub.layer("events", Public::topics(TopicFilter::any())));
    assert_eq!(lines.at(Level::WARN).len(), 1);
    drop(hub.layer("/events", Public::topics(TopicFilter::any())));
    assert_eq!(lines.at(Level::WARN).len(), 1);
}

// ---------------------------------------------------------------------------------------------------------------------
// What is in no line

/// Everything that could give somebody away has this in it.
const SECRET: &str = "s3cr3t";

async fn secretive(request: StreamRequest) -> Result<Subscription, Refusal> {
    let subscription = Subscription::for_user("s3cr3t-user").topic("s3cr3t-topic").data("s3cr3t-data");
    // An application may well log this; it must not give away more than it has to.
    tracing::trace!(target: "application", ?request);
    match request.query_values("ticket").next().as_deref() {
        Some("s3cr3t-panic") => panic!("s3cr3t-panic, as asked for"),
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
    match secretive(request.clone()).await {
        Ok(subscription) => hub.respond(request, subscription),
        Err(refusal) => hub.refuse(refusal),
    }
}

#[tokio::test]
async fn no_line_says_who_reads_what_or_with_which_ticket() {
    let (lines, _guard) = Lines::capture();
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
        .route_service("/endpoint", hub.endpoint(secretive))
        .route("/handler", axum::routing::get(handler))
        .with_state(hub.clone())
        .layer(hub.layer("/layer", secretive));
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
        // One that sends rubbish behind its request, and one that leaves in the middle of it.
        for rubbish in [&b"GET /layer?ticket=s3cr3t-half"[..], b"s3cr3t s3cr3t s3cr3t\r\n\r\n"] {
            use tokio::io::{AsyncReadExt, AsyncWriteExt};
            let mut tcp = tokio::net::TcpStream::connect(server.addr).await.unwrap();
            tcp.write_all(rubbish).await.unwrap();
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
        assert!(!line.text.contains("ticket"), "no query at any level: {line:?}");
        for what in
            ["fine", "login", "later", "bad", "many", "brief", "panic", "slow", "cookie", "cursor", "data", "half"]
        {
            assert!(!line.text.contains(&format!("{SECRET}-{what}")), "{line:?}");
        }
    }
    // There was something to hear.
    let count = |level| lines.at(level).len();
    assert!(count(Level::ERROR) > 0 && count(Level::WARN) > 1 && count(Level::DEBUG) > 20, "{:?}", lines.above_debug());
}

#[tokio::test]
async fn nothing_that_can_be_formatted_gives_the_query_away() {
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

// ---------------------------------------------------------------------------------------------------------------------
// Counts

#[tokio::test(start_paused = true)]
async fn everything_is_counted_exactly() {
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
    // All but `lost`, which only a broker can be.
    let all = GapReason::ALL.iter().map(|&reason| (reason, hub.stats().gaps(reason))).collect::<Vec<_>>();
    assert!(all.iter().all(|(reason, count)| *count == u64::from(*reason != GapReason::Lost)), "{all:?}");

    // Refusals, of each reason that comes by itself.
    refused(&hub).await;
    let slow = |_: StreamRequest| std::future::pending();
    assert!(ready(&mut request(&hub, slow, Request::get("/")).await).contains("timeout"));
    assert_eq!(hub.stats().refused(RefusalReason::Busy), 1);
    assert_eq!(hub.stats().refused(RefusalReason::Timeout), 1);
    assert_eq!(hub.stats().refused(RefusalReason::Limit), 0);

    // Evictions: the budget holds four records of this size, each with a topic of its own. Eight small ones are in their way:
    // four of `a`, two each of `short` and `strict`.
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
async fn current_values_have_their_own_bytes() {
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
async fn an_event_that_a_connection_is_excepted_from_is_not_delivered_to_it() {
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
async fn both_of_two_instances_with_other_settings_log_it() {
    let (lines, _guard) = Lines::capture();
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

/// Instances that were built differently serve all the same; each says so once, and names what differs.
#[tokio::test]
async fn another_instance_with_other_settings_is_warned_of_once() {
    let (lines, _guard) = Lines::capture();
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
    // One line of each instance, the newest too.
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
async fn a_ticket_shows_in_no_log_and_in_no_debug() {
    let (lines, _guard) = Lines::capture();
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
