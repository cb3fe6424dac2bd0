//! Bytes that a client sends after its request, and the shutdown of a server with such connections.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tower_sse::{EndReason, Hub};

use crate::kit::access::by_query;
use crate::kit::{soon, until};
use crate::peer::{Peer, request};
use crate::site::{Bare, Site};

#[tokio::test]
async fn a_request_pipelined_behind_a_stream_is_not_executed() {
    for second in [request("/count"), "POST /count HTTP/1.1\r\nhost: test\r\ncontent-length: 2\r\n\r\nhi".to_owned()] {
        let site = Site::start(Hub::builder()).await;
        let mut peer = Peer::connect(site.addr).await;
        peer.send(request("/events?topic=t") + &second.repeat(3)).await;
        peer.reader.head().await;
        let mut events = peer.reader.events();
        assert_eq!(events.next().await.event, "hub.hello");
        site.taken(1).await;
        site.delivers_as_taken(&mut events).await;
        let counted = site.counted.clone();
        let since = Instant::now();
        let (drained, rest) = tokio::join!(site.drain_and_shut_down(Duration::ZERO), events.rest());
        assert!(since.elapsed() < Duration::from_secs(5), "{:?}", since.elapsed());
        assert_eq!((drained.ended, drained.cut, rest.len()), (1, 0, 1));
        assert_eq!(counted.load(Ordering::SeqCst), 0);
    }
}

#[tokio::test]
async fn a_request_sent_on_an_open_stream_is_not_executed() {
    let site = Site::start(Hub::builder()).await;
    let (mut events, mut writer) = Peer::connect(site.addr).await.open("/events?topic=t").await;
    site.taken(1).await;
    for _ in 0..3 {
        tokio::io::AsyncWriteExt::write_all(&mut writer, request("/count").as_bytes()).await.unwrap();
        site.delivers_as_taken(&mut events).await;
    }
    let counted = site.counted.clone();
    let (drained, rest) = tokio::join!(site.drain_and_shut_down(Duration::ZERO), events.rest());
    assert_eq!((drained.ended, drained.cut, rest.len()), (1, 0, 1));
    assert_eq!(counted.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn an_incomplete_request_body_does_not_delay_the_takeover() {
    for head in [
        "GET /events?topic=t HTTP/1.1\r\nhost: test\r\ncontent-length: 100\r\n\r\n0123456789",
        "GET /events?topic=t HTTP/1.1\r\nhost: test\r\ntransfer-encoding: chunked\r\n\r\n64\r\n0123456789",
        "GET /events?topic=t HTTP/1.1\r\nhost: test\r\ncontent-length: 100\r\nexpect: 100-continue\r\n\r\n",
    ] {
        let hub = Hub::builder().build().unwrap();
        let server = Bare::start(&hub, hub.endpoint(by_query)).await;
        let mut peer = Peer::connect(server.addr).await;
        peer.send(head).await;
        assert_eq!(peer.reader.head().await.header("connection"), "close", "{head}");
        let mut events = peer.reader.events();
        assert_eq!(events.next().await.event, "hub.hello", "{head}");
        until(|| server.serving() == 0).await;
        // The rest of the body is stray input like any other.
        soon(tokio::io::AsyncWriteExt::write_all(&mut peer.writer, &[b'x'; 200_000])).await.unwrap();
        for n in 0..3 {
            hub.topic("t").publish(tower_sse::Event::unnamed(n.to_string())).await.unwrap();
            assert_eq!(events.next_own().await.data, n.to_string(), "{head}");
        }
        soon(hub.drain(Duration::ZERO)).await;
        assert_eq!(events.rest().await.pop().unwrap().event, "hub.bye", "{head}");
    }
}

#[tokio::test]
async fn without_a_stream_the_server_shuts_down_at_once() {
    let mut site = Site::start(Hub::builder()).await;
    let (events, writer) = Peer::connect(site.addr).await.open("/events?topic=t").await;
    site.taken(1).await;
    drop((events, writer));
    until(|| site.hub.stats().ended(EndReason::Client) == 1).await;
    let since = Instant::now();
    site.shut_down().await;
    assert!(since.elapsed() < Duration::from_secs(1), "{:?}", since.elapsed());
}

/// For the server, the response is finished. So an application that does not drain leaves its
/// streams open.
#[tokio::test]
async fn shutdown_of_the_server_without_a_drain_waits_for_no_stream_and_ends_none() {
    let mut site = Site::start(Hub::builder()).await;
    let mut peer = Peer::connect(site.addr).await;
    peer.send(request("/events?topic=t") + &request("/count")).await;
    peer.reader.head().await;
    let mut events = peer.reader.events();
    site.taken(1).await;
    site.shut_down().await;
    site.delivers_as_taken(&mut events).await;
    assert_eq!(soon(site.hub.drain(Duration::ZERO)).await.ended, 1);
    assert_eq!(events.rest().await.pop().unwrap().event, "hub.bye");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_ends_many_streams_with_pipelined_requests_at_once() {
    const STREAMS: usize = 100;
    let site = Site::start(Hub::builder()).await;
    let mut streams = Vec::new();
    for _ in 0..STREAMS {
        let mut peer = Peer::connect(site.addr).await;
        peer.send(request("/events?topic=t") + &request("/count")).await;
        peer.reader.head().await;
        streams.push((peer.reader.events(), peer.writer));
    }
    site.taken(STREAMS).await;
    let since = Instant::now();
    let drained = site.drain_and_shut_down(Duration::from_secs(10)).await;
    assert!(since.elapsed() < Duration::from_secs(5), "{:?}", since.elapsed());
    assert_eq!((drained.ended, drained.cut), (STREAMS, 0));
    for (events, _writer) in streams {
        assert_eq!(events.rest().await.pop().unwrap().event, "hub.bye");
    }
}
