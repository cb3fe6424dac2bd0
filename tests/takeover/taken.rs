//! The server finishes with a response whose stream continues.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::routing::get;
use http::{HeaderMap, Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tower::{Layer, service_fn};
use tower_http::classify::ServerErrorsFailureClass;
use tower_http::trace::TraceLayer;
use tower_sse::{EndReason, Event, EventStream, Hub, StreamRequest, Subscription};

use crate::kit::access::by_query;
use crate::kit::{Events, soon, until};
use crate::peer::Peer;
use crate::site::{Bare, Site};

#[tokio::test]
async fn events_arrive_after_the_body_has_ended() {
    let site = Site::start(Hub::builder()).await;
    let (mut events, _writer) = Peer::connect(site.addr).await.open("/events?topic=t").await;
    events.caught_up().await;
    site.taken(1).await;
    assert_eq!(site.passed.frames(), 1, "hub.hello");
    assert_eq!(site.hub.stats().connections, 1);
    site.delivers_as_taken(&mut events).await;
}

#[tokio::test]
async fn a_silent_stream_is_taken_over() {
    let site = Site::start(Hub::builder()).await;
    let (mut events, _writer) = Peer::connect(site.addr).await.open("/events?topic=t").await;
    // Earlier than the hub would withdraw its offer.
    let since = Instant::now();
    site.taken(1).await;
    assert!(since.elapsed() < Duration::from_millis(900), "{:?}", since.elapsed());
    site.delivers_as_taken(&mut events).await;
}

#[tokio::test]
async fn a_stream_that_was_taken_over_sends_heartbeats() {
    let beat = Duration::from_millis(50);
    let site = Site::start(Hub::builder().heartbeat(beat)).await;
    let mut peer = Peer::connect(site.addr).await;
    peer.get("/events?topic=t").await;
    peer.reader.head().await;
    let mut comments = 0;
    let since = Instant::now();
    while comments < 5 {
        comments += usize::from(peer.reader.chunk().await.unwrap().unwrap() == b":\n");
    }
    assert!(since.elapsed() >= 4 * beat, "{:?}", since.elapsed());
    site.taken(1).await;
    assert_eq!(site.passed.frames(), 1);
}

#[tokio::test]
async fn a_stream_that_was_taken_over_sends_visible_heartbeats() {
    let beat = Duration::from_millis(50);
    let site = Site::start(Hub::builder().heartbeat(beat).visible_heartbeat()).await;
    let (mut events, _writer) = Peer::connect(site.addr).await.open("/events?topic=t").await;
    site.taken(1).await;
    for _ in 0..5 {
        let live = events.next().await;
        assert_eq!((live.event.as_str(), live.id.is_empty()), ("hub.live", false));
    }
    assert_eq!(site.passed.frames(), 1);
}

async fn delivers(hub: &Hub, events: &mut Events) {
    for n in 0..3 {
        hub.topic("t").publish(Event::unnamed(n.to_string())).await.unwrap();
        assert_eq!(events.next_own().await.data, n.to_string());
    }
}

/// The task that served the connection has ended.
#[tokio::test]
async fn hyper_ends_its_task_after_the_takeover() {
    let hub = Hub::builder().build().unwrap();
    let server = Bare::start(&hub, hub.endpoint(by_query)).await;
    let (mut events, _writer) = Peer::connect(server.addr).await.open("/events?topic=t").await;
    until(|| server.serving() == 0).await;
    delivers(&hub, &mut events).await;
    soon(hub.drain(Duration::ZERO)).await;
    assert_eq!(events.rest().await.pop().unwrap().event, "hub.bye");
}

#[tokio::test]
async fn the_takeover_works_with_every_mount() {
    let hub = Hub::builder().build().unwrap();
    let inner =
        service_fn(async |_: Request<Incoming>| Ok::<_, Infallible>(Response::new(Full::new(Bytes::from("inner")))));
    let layered = Bare::start(&hub, hub.layer("/events", by_query).layer(inner)).await;
    let handler = async |State(hub): State<Hub>, request: StreamRequest| -> EventStream {
        hub.respond(request, Subscription::anonymous().topic("t"))
    };
    let handled = Bare::start(&hub, Router::<Hub>::new().route("/events", get(handler)).with_state(hub.clone())).await;
    let routed = Bare::start(&hub, Router::new().route_service("/events", hub.endpoint(by_query))).await;
    for server in [layered, handled, routed] {
        let (mut events, _writer) = Peer::connect(server.addr).await.open("/events?topic=t").await;
        until(|| server.serving() == 0).await;
        delivers(&hub, &mut events).await;
    }
}

/// With and without vectored writes, and with and without title-case headers.
#[tokio::test]
async fn the_takeover_works_for_each_way_in_which_hyper_writes() {
    let hub = Hub::builder().build().unwrap();
    for (vectored, title_case) in [(false, false), (true, false), (false, true), (true, true)] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let serve = tokio::spawn({
            let hub = hub.clone();
            async move {
                let io = TokioIo::new(hub.io(listener.accept().await.unwrap().0).take_over());
                let service = TowerToHyperService::new(hub.endpoint(by_query));
                let mut builder = hyper::server::conn::http1::Builder::new();
                builder.writev(vectored).title_case_headers(title_case).serve_connection(io, service).await.unwrap();
            }
        });
        let (mut events, _writer) = Peer::connect(addr).await.open("/events?topic=t").await;
        soon(serve).await.unwrap();
        delivers(&hub, &mut events).await;
    }
}

#[tokio::test]
async fn other_layers_see_a_response_that_ends_without_an_error() {
    let (ended, failed) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
    let trace = TraceLayer::new_for_http()
        .on_eos({
            let ended = Arc::clone(&ended);
            move |_: Option<&HeaderMap>, _: Duration, _: &tracing::Span| {
                ended.fetch_add(1, Ordering::SeqCst);
            }
        })
        .on_failure({
            let failed = Arc::clone(&failed);
            move |_: ServerErrorsFailureClass, _: Duration, _: &tracing::Span| {
                failed.fetch_add(1, Ordering::SeqCst);
            }
        });
    let site = Site::with(Hub::builder(), |app| app.layer(trace)).await;
    let (mut events, _writer) = Peer::connect(site.addr).await.open("/events?topic=t").await;
    until(|| ended.load(Ordering::SeqCst) == 1).await;
    site.delivers_as_taken(&mut events).await;
    drop(events);
    drop(_writer);
    until(|| site.hub.stats().ended(EndReason::Client) == 1).await;
    assert_eq!(failed.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn the_takeover_works_after_other_responses_on_the_connection() {
    let site = Site::start(Hub::builder()).await;
    let mut peer = Peer::connect(site.addr).await;
    for _ in 0..3 {
        peer.get("/").await;
        let head = peer.reader.head().await;
        assert_eq!((head.status.as_str(), head.header("connection")), ("HTTP/1.1 200 OK", ""));
        assert_eq!(head.header("content-length"), "5");
        assert_eq!(peer.reader.take(5).await, b"hello");
    }
    let (mut events, _writer) = peer.open("/events?topic=t").await;
    site.taken(1).await;
    site.delivers_as_taken(&mut events).await;
}

/// The server may write the responses together.
#[tokio::test]
async fn a_stream_behind_pipelined_requests_loses_no_event() {
    let site = Site::start(Hub::builder()).await;
    let mut peer = Peer::connect(site.addr).await;
    peer.send("GET / HTTP/1.1\r\nhost: test\r\n\r\n".repeat(3)).await;
    peer.get("/events?topic=t").await;
    for _ in 0..3 {
        assert_eq!(peer.reader.head().await.header("content-length"), "5");
        assert_eq!(peer.reader.take(5).await, b"hello");
    }
    assert_eq!(peer.reader.head().await.header("connection"), "close");
    let mut events = peer.reader.events();
    assert_eq!(events.next().await.event, "hub.hello");
    // With or without takeover, depending on what the server wrote together.
    site.delivers(&mut events).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_streams_are_taken_over_at_once() {
    const STREAMS: usize = 300;
    let site = Arc::new(Site::start(Hub::builder()).await);
    let mut streams = Vec::new();
    for _ in 0..STREAMS {
        let addr = site.addr;
        streams.push(tokio::spawn(async move { Peer::connect(addr).await.open("/events?topic=t").await }));
    }
    let mut open = Vec::new();
    for stream in streams {
        open.push(soon(stream).await.unwrap());
    }
    site.taken(STREAMS).await;
    for n in 0..100 {
        site.publish("t", n.to_string()).await;
    }
    for (events, _) in &mut open {
        for n in 0..100 {
            assert_eq!(events.next_own().await.data, n.to_string());
        }
    }
    assert_eq!((site.passed.frames(), site.hub.stats().connections), (STREAMS, STREAMS));
}
