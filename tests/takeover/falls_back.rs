//! If the socket cannot be taken over, the body continues, and no event is lost.

use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use bytes::Bytes;
use futures::StreamExt;
use http::{HeaderName, HeaderValue, Method, Request, Response, header};
use http_body_util::{BodyDataStream, Full};
use hyper_util::rt::TokioIo;
use tower::util::MapResponseLayer;
use tower_http::compression::CompressionLayer;
use tower_http::compression::predicate::SizeAbove;
use tower_sse::{EndReason, Hub, RefusalReason};

use crate::kit::access::by_query;
use crate::kit::{Events, http2, reply, send, soon, until};
use crate::layers::{How, between, polled_in_another_task};
use crate::peer::Peer;
use crate::site::{Bare, Site};

/// The time after which the hub withdraws its offer.
const OFFER_TIMEOUT: Duration = Duration::from_secs(1);

fn builder() -> tower_sse::HubBuilder {
    Hub::builder().heartbeat(Duration::from_millis(100)).visible_heartbeat()
}

fn with(how: How) -> impl FnOnce(Router) -> Router {
    move |app: Router| app.layer(MapResponseLayer::new(move |response| between(response, how)))
}

/// Checks a stream that continues by its body, to its end.
async fn works_by_body(site: Site, mut events: Events) {
    site.delivers_by_body(&mut events).await;
    while events.next().await.event != "hub.live" {}
    site.delivers_by_body(&mut events).await;
    assert_eq!((site.hub.stats().connections, site.passed.ended()), (1, 0));
    let hub = site.hub.clone();
    let (drained, rest) = tokio::join!(site.drain_and_shut_down(Duration::ZERO), events.rest());
    assert_eq!((drained.ended, drained.cut), (1, 0));
    assert_eq!(rest.last().unwrap().event, "hub.bye");
    assert_eq!(hub.stats().ended(EndReason::Draining), 1);
}

#[tokio::test]
async fn an_http_1_0_stream_falls_back() {
    let site = Site::start(builder()).await;
    let mut peer = Peer::connect(site.addr).await;
    peer.send("GET /events?topic=t HTTP/1.0\r\n\r\n").await;
    let head = peer.reader.head().await;
    assert_eq!((head.status.as_str(), head.header("transfer-encoding")), ("HTTP/1.0 200 OK", ""));
    works_by_body(site, peer.reader.events_to_the_end()).await;
}

#[tokio::test]
async fn an_http_1_0_stream_with_keep_alive_falls_back() {
    let site = Site::start(builder()).await;
    let mut peer = Peer::connect(site.addr).await;
    peer.send("GET /events?topic=t HTTP/1.0\r\nconnection: keep-alive\r\n\r\n").await;
    peer.reader.head().await;
    works_by_body(site, peer.reader.events_to_the_end()).await;
}

#[tokio::test]
async fn an_http_2_stream_falls_back() {
    let site = Site::start(builder()).await;
    let mut sender = http2(site.addr).await;
    let request = Request::get("http://test/events?topic=t").body(Full::new(Bytes::new())).unwrap();
    let reply = reply(soon(sender.send_request(request)).await.unwrap());
    assert_eq!(reply.header("connection"), "");
    let mut events = reply.events();
    assert_eq!(events.next().await.event, "hub.hello");
    works_by_body(site, events).await;
}

#[tokio::test]
async fn many_streams_on_one_http_2_connection_fall_back() {
    let hub = builder().build().unwrap();
    let server = Bare::start(&hub, hub.endpoint(by_query)).await;
    let mut sender = http2(server.addr).await;
    let mut streams = Vec::new();
    for n in 0..5 {
        let request = Request::get(format!("http://test/events?topic=t{n}")).body(Full::new(Bytes::new())).unwrap();
        streams.push(reply(soon(sender.send_request(request)).await.unwrap()).events());
    }
    for (n, events) in streams.iter_mut().enumerate() {
        hub.topic(format!("t{n}")).publish(tower_sse::Event::unnamed("x")).await.unwrap();
        assert_eq!(events.next_own().await.data, "x");
    }
    assert_eq!(server.serving(), 1);
}

#[cfg(not(unix))]
#[test]
fn a_stream_on_a_unix_socket_falls_back() {
    crate::kit::skip::skipped("this system has no Unix sockets");
}

#[cfg(unix)]
#[tokio::test]
async fn a_stream_on_a_unix_socket_falls_back() {
    let hub = builder().build().unwrap();
    let path = std::env::temp_dir().join(format!("tower-sse-takeover-{}", std::process::id()));
    let listener = tokio::net::UnixListener::bind(&path).unwrap();
    let app = Router::new().route_service("/events", hub.endpoint(by_query));
    let serve = axum::serve(hub.listener_with_takeover(listener), app);
    let serve = tokio::spawn(async move { serve.await.unwrap() });
    let io = TokioIo::new(tokio::net::UnixStream::connect(&path).await.unwrap());
    std::fs::remove_file(&path).unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
    tokio::spawn(connection);
    let request = Request::get("/events?topic=t").header("host", "test").body(Full::<Bytes>::default()).unwrap();
    let reply = reply(soon(sender.send_request(request)).await.unwrap());
    // The response has no `connection: close` on such a socket.
    assert_eq!(reply.header("connection"), "");
    let mut events = reply.events();
    assert_eq!(events.next().await.event, "hub.hello");
    for n in 0..3 {
        hub.topic("t").publish(tower_sse::Event::unnamed(n.to_string())).await.unwrap();
        assert_eq!(events.next_own().await.data, n.to_string());
    }
    soon(hub.drain(Duration::ZERO)).await;
    assert_eq!(events.rest().await.pop().unwrap().event, "hub.bye");
    serve.abort();
}

#[tokio::test]
async fn a_compressed_stream_falls_back() {
    let compressor = CompressionLayer::new().compress_when(SizeAbove::new(0));
    let site = Site::with(builder(), |app| app.layer(compressor)).await;
    let request = Request::get("/events?topic=t").header("accept-encoding", "gzip").body("").unwrap();
    let reply = send(site.addr, request).await;
    assert_eq!(reply.header("content-encoding"), "gzip");
    let mut unpacked = flate2::write::GzDecoder::new(Vec::new());
    let bytes = BodyDataStream::new(reply.body).map(move |piece| {
        use std::io::Write;
        let piece = piece.map_err(|error| error.to_string())?;
        unpacked.write_all(&piece).and_then(|()| unpacked.flush()).map_err(|error| error.to_string())?;
        Ok::<_, String>(Bytes::from(std::mem::take(unpacked.get_mut())))
    });
    let mut events = Events::parse(bytes);
    assert_eq!(events.next().await.event, "hub.hello");
    works_by_body(site, events).await;
}

async fn falls_back_with(how: How) {
    let site = Site::with(builder(), with(how)).await;
    let (events, _writer) = Peer::connect(site.addr).await.open("/events?topic=t").await;
    works_by_body(site, events).await;
}

/// If the first bytes show the change, the stream does not wait until the offer is withdrawn. A
/// busy machine can be late as well, but not at every try.
#[tokio::test]
async fn a_changed_body_is_detected_at_once() {
    for how in [How::Prefix(": before\n\n"), How::Change, How::Split, How::HeadFirst, How::LookAhead] {
        let mut took = Vec::new();
        while took.last().is_none_or(|last| *last >= OFFER_TIMEOUT * 3 / 4) {
            assert!(took.len() < 5, "{how:?}: {took:?}");
            let site = Site::with(builder(), with(how)).await;
            let (mut events, _writer) = Peer::connect(site.addr).await.open("/events?topic=t").await;
            let since = Instant::now();
            site.delivers_by_body(&mut events).await;
            took.push(since.elapsed());
        }
    }
}

#[tokio::test]
async fn a_stream_with_a_prefix_falls_back() {
    falls_back_with(How::Prefix(": before\n\n")).await;
    falls_back_with(How::PrefixAlone(": before\n\n")).await;
}

/// The text looks like the blank line that ends a head.
#[tokio::test]
async fn a_stream_with_an_empty_line_before_it_falls_back() {
    falls_back_with(How::Prefix(":\r\n")).await;
    falls_back_with(How::Prefix(":\r\n\r\n")).await;
    falls_back_with(How::PrefixAlone(":\r\n\r\n")).await;
}

/// The text looks like a response head.
#[tokio::test]
async fn a_stream_with_a_second_head_falls_back() {
    let head = ": HTTP/1.1 200 OK\r\nconnection: close\r\ntransfer-encoding: chunked\r\n";
    falls_back_with(How::Prefix(head)).await;
    let alone = "HTTP/1.1 200 OK\r\nconnection: close\r\ntransfer-encoding: chunked\r\n";
    falls_back_with(How::PrefixAlone(alone)).await;
}

#[tokio::test]
async fn a_stream_with_a_suffix_falls_back() {
    falls_back_with(How::Suffix(": behind\n\n")).await;
}

#[tokio::test]
async fn a_stream_with_a_changed_first_frame_falls_back() {
    falls_back_with(How::Change).await;
}

/// The bytes after the head equal those of a stream that can be taken over.
#[tokio::test]
async fn a_stream_that_a_layer_frames_falls_back() {
    let site = Site::with(builder(), |app| {
        app.layer(MapResponseLayer::new(|mut response: Response<Body>| {
            response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from_static("1000000"));
            between(response, How::Chunk)
        }))
    })
    .await;
    let mut peer = Peer::connect(site.addr).await;
    peer.get("/events?topic=t").await;
    let head = peer.reader.head().await;
    assert_eq!((head.header("content-length"), head.header("transfer-encoding")), ("1000000", ""));
    assert!(peer.reader.chunk().await.unwrap().unwrap().starts_with(b"event: hub.hello\n"));
    site.delivers_by_body(&mut peer.reader.events_to_the_end()).await;
}

#[tokio::test]
async fn a_stream_with_a_split_first_frame_falls_back() {
    falls_back_with(How::Split).await;
}

#[tokio::test]
async fn a_stream_whose_head_is_written_first_falls_back() {
    falls_back_with(How::HeadFirst).await;
}

#[tokio::test]
async fn a_stream_with_a_layer_that_reads_ahead_falls_back() {
    falls_back_with(How::LookAhead).await;
}

#[tokio::test]
async fn a_stream_with_a_layer_that_buffers_falls_back() {
    let site = Site::with(builder(), with(How::HoldBytes(1024))).await;
    let mut peer = Peer::connect(site.addr).await;
    peer.get("/events?topic=t").await;
    peer.reader.head().await;
    let mut events = peer.reader.events();
    // Heartbeats fill the buffer, once the body continues.
    assert_eq!(events.next().await.event, "hub.hello");
    for n in 0..2 {
        site.publish("t", format!("{n}{}", "x".repeat(1024))).await;
        assert!(events.next_own().await.data.starts_with(&n.to_string()));
    }
    assert!(site.passed.frames() > 3);
    assert_eq!(site.passed.ended(), 0);
}

#[tokio::test]
async fn a_stream_whose_first_frame_is_delayed_past_the_offer_falls_back() {
    falls_back_with(How::HoldFor(3 * OFFER_TIMEOUT)).await;
}

#[tokio::test]
async fn a_stream_whose_first_frame_is_delayed_briefly_falls_back() {
    falls_back_with(How::HoldFor(OFFER_TIMEOUT / 10)).await;
}

#[tokio::test]
async fn a_stream_without_connection_close_falls_back() {
    let site = Site::with(builder(), |app| {
        app.layer(MapResponseLayer::new(|mut response: Response<Body>| {
            response.headers_mut().remove(header::CONNECTION);
            response
        }))
    })
    .await;
    let mut peer = Peer::connect(site.addr).await;
    peer.get("/events?topic=t").await;
    assert_eq!(peer.reader.head().await.header("connection"), "");
    let hello = peer.reader.chunk().await.unwrap().unwrap();
    assert!(hello.starts_with(b"event: hub.hello\n"));
    for n in 0..3 {
        site.publish("t", n.to_string()).await;
    }
    let mut text = String::new();
    while !text.contains("data: 2\n") {
        text.push_str(std::str::from_utf8(&peer.reader.chunk().await.unwrap().unwrap()).unwrap());
    }
    assert_eq!(site.passed.ended(), 0);
    let [connection] = &site.hub.connections()[..] else { panic!("one stream") };
    site.hub.connection(connection.id).disconnect(tower_sse::Disconnect::now()).await.unwrap();
    while peer.reader.chunk().await.unwrap().is_some() {}
    // The connection stays open, and the next stream on it falls back too.
    peer.get("/").await;
    assert_eq!(peer.reader.head().await.header("content-length"), "5");
    assert_eq!(peer.reader.take(5).await, b"hello");
    peer.get("/events?topic=t").await;
    peer.reader.head().await;
    let mut events = peer.reader.events();
    assert_eq!(events.next().await.event, "hub.hello");
    site.delivers_by_body(&mut events).await;
}

#[tokio::test]
async fn a_stream_with_another_connection_header_falls_back() {
    let site = Site::with(builder(), |app| {
        app.layer(MapResponseLayer::new(|mut response: Response<Body>| {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("keep-alive"));
            response.headers_mut().insert("x-connection", HeaderValue::from_static("connection: close"));
            response
        }))
    })
    .await;
    let mut peer = Peer::connect(site.addr).await;
    peer.get("/events?topic=t").await;
    assert_eq!(peer.reader.head().await.header("connection"), "keep-alive");
    let mut events = peer.reader.events();
    assert_eq!(events.next().await.event, "hub.hello");
    site.delivers_by_body(&mut events).await;
}

#[tokio::test]
async fn a_stream_with_a_changed_status_falls_back() {
    let site = Site::with(builder(), |app| {
        app.layer(MapResponseLayer::new(|mut response: Response<Body>| {
            *response.status_mut() = http::StatusCode::ACCEPTED;
            response
        }))
    })
    .await;
    let mut peer = Peer::connect(site.addr).await;
    peer.get("/events?topic=t").await;
    assert_eq!(peer.reader.head().await.status, "HTTP/1.1 202 Accepted");
    let mut events = peer.reader.events();
    assert_eq!(events.next().await.event, "hub.hello");
    works_by_body(site, events).await;
}

/// Whether the socket is taken over depends on the order of the two tasks. No event is lost in
/// either case.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_another_task_polls_loses_no_event() {
    for _ in 0..50 {
        let site = Site::with(Hub::builder(), |app| app.layer(MapResponseLayer::new(polled_in_another_task))).await;
        let (mut events, _writer) = Peer::connect(site.addr).await.open("/events?topic=t").await;
        for n in 0..20 {
            site.publish("t", n.to_string()).await;
        }
        for n in 0..20 {
            assert_eq!(events.next_own().await.data, n.to_string());
        }
        let (drained, rest) = tokio::join!(site.drain_and_shut_down(Duration::ZERO), events.rest());
        assert_eq!((drained.ended, rest.last().unwrap().event.as_str()), (1, "hub.bye"));
    }
}

/// Adds header lines of about a hundred bytes each.
fn with_lines(lines: usize) -> impl FnOnce(Router) -> Router {
    move |app| {
        app.layer(MapResponseLayer::new(move |mut response: Response<Body>| {
            for n in 0..lines {
                let name: HeaderName = format!("x-{n}").parse().unwrap();
                response.headers_mut().insert(name, HeaderValue::from_str(&"v".repeat(90)).unwrap());
            }
            response
        }))
    }
}

/// The head and the first frame go out in many pieces.
#[tokio::test]
async fn a_head_that_needs_many_writes_loses_no_event() {
    for (lines, is_short) in [(1, true), (150, true), (400, false)] {
        let site = Site::narrow(Hub::builder(), with_lines(lines)).await;
        let mut peer = Peer::narrow(site.addr).await;
        peer.get("/events?topic=t").await;
        until(|| site.hub.stats().connections == 1).await;
        let head = peer.reader.head_slowly(200).await;
        assert!((0..lines).all(|n| head.header(&format!("x-{n}")).len() == 90));
        let mut events = peer.reader.events();
        assert_eq!(events.next().await.event, "hub.hello");
        if is_short {
            site.taken(1).await;
            site.delivers_as_taken(&mut events).await;
        } else {
            site.delivers_by_body(&mut events).await;
        }
        for n in 0..20 {
            site.publish("t", format!("{n} {}", "x".repeat(10_000))).await;
        }
        for n in 0..20 {
            assert_eq!(events.next_own().await.data, format!("{n} {}", "x".repeat(10_000)));
        }
        let (drained, rest) = tokio::join!(site.drain_and_shut_down(Duration::ZERO), events.rest());
        assert_eq!((drained.ended, drained.cut, rest.len()), (1, 0, 1));
    }
}

/// The hub withdraws the offer before the rest of the head is written.
#[tokio::test]
async fn a_head_that_is_read_after_the_offer_loses_no_event() {
    let site = Site::narrow(Hub::builder(), with_lines(150)).await;
    let mut peer = Peer::narrow(site.addr).await;
    peer.get("/events?topic=t").await;
    until(|| site.hub.stats().connections == 1).await;
    for n in 0..3 {
        site.publish("t", n.to_string()).await;
    }
    tokio::time::sleep(OFFER_TIMEOUT * 3 / 2).await;
    peer.reader.head().await;
    let mut events = peer.reader.events();
    assert_eq!(events.next().await.event, "hub.hello");
    for n in 0..3 {
        assert_eq!(events.next_own().await.data, n.to_string());
    }
    site.delivers(&mut events).await;
    let (drained, rest) = tokio::join!(site.drain_and_shut_down(Duration::ZERO), events.rest());
    assert_eq!((drained.ended, drained.cut, rest.len()), (1, 0, 1));
}

/// A client sends the server a first frame that the server once wrote. The server echoes it with a
/// head like that of a stream.
#[tokio::test]
async fn an_echo_of_a_first_frame_is_not_taken_over() {
    let site = Site::start(builder()).await;
    let mut peer = Peer::connect(site.addr).await;
    peer.get("/events?topic=t").await;
    peer.reader.head().await;
    let hello = peer.reader.chunk().await.unwrap().unwrap();
    assert!(hello.starts_with(b"event: hub.hello\n"));
    for _ in 0..3 {
        let mut forger = Peer::connect(site.addr).await;
        forger.send(format!("POST /echo HTTP/1.1\r\nhost: test\r\ncontent-length: {}\r\n\r\n", hello.len())).await;
        forger.send(&hello).await;
        let head = forger.reader.head().await;
        assert_eq!((head.header("connection"), head.header("transfer-encoding")), ("close", "chunked"));
        assert_eq!(forger.reader.text().await, (String::from_utf8(hello.clone()).unwrap(), true));
    }
    assert_eq!(site.hub.stats().connections, 1);
    let mut events = peer.reader.events();
    site.delivers_as_taken(&mut events).await;
}

#[tokio::test]
async fn head_requests_and_refusals_are_not_affected() {
    let site = Site::start(builder()).await;
    let mut peer = Peer::connect(site.addr).await;
    for _ in 0..2 {
        peer.send("HEAD /events?topic=t HTTP/1.1\r\nhost: test\r\n\r\n").await;
        let head = peer.reader.head().await;
        assert_eq!((head.status.as_str(), head.header("content-type")), ("HTTP/1.1 200 OK", "text/event-stream"));
        peer.send("POST /events?topic=t HTTP/1.1\r\nhost: test\r\ncontent-length: 0\r\n\r\n").await;
        let head = peer.reader.head().await;
        assert_eq!(head.status, "HTTP/1.1 405 Method Not Allowed");
        peer.reader.take(head.header("content-length").parse().unwrap()).await;
    }
    assert_eq!(site.hub.stats().connected, 0);

    soon(site.hub.drain(Duration::ZERO)).await;
    for _ in 0..2 {
        peer.get("/events?topic=t").await;
        let head = peer.reader.head().await;
        assert_eq!(head.status, "HTTP/1.1 200 OK");
        let refused = peer.reader.take(head.header("content-length").parse().unwrap()).await;
        assert!(refused.starts_with(b"event: hub.refused\n"));
    }
    assert_eq!(site.hub.stats().refused(RefusalReason::Draining), 2);
    assert_eq!(site.passed.ended(), 0);
}

#[tokio::test]
async fn other_routes_are_not_affected() {
    let site = Site::start(builder()).await;
    for method in [Method::GET, Method::POST] {
        let request = Request::builder().method(method).uri("/count").body("").unwrap();
        assert_eq!(send(site.addr, request).await.text().await, "counted");
    }
}
