//! Memory of an idle stream with and without takeover, and of a stream whose client does not read.
//! These tests are a binary of their own, because they measure the memory of the whole process.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests and their helpers may panic")]

mod kit;

use crate::kit::{soon, until};
use axum::Router;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::Mutex;
use tower_sse::{Event, Hub, Public, Retention, TopicFilter};

const STREAMS: usize = 1000;

/// Makes the tests run one after the other.
static ALONE: Mutex<()> = Mutex::const_new(());

fn resident_bytes() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

/// Opens `count` streams. Client and server are both in this process.
async fn open(hub: &Hub, takeover: bool, count: usize) -> Vec<TcpStream> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let app = Router::new().route_service("/events", hub.endpoint(Public::topics(TopicFilter::any())));
    tokio::spawn({
        let hub = hub.clone();
        async move {
            if takeover {
                axum::serve(hub.listener_with_takeover(listener), app).await.unwrap();
            } else {
                axum::serve(hub.listener(listener), app).await.unwrap();
            }
        }
    });
    let mut streams = Vec::new();
    let mut space = [0; 4096];
    for _ in 0..count {
        let mut tcp = TcpStream::connect(addr).await.unwrap();
        tcp.write_all(b"GET /events?topic=t HTTP/1.1\r\nhost: test\r\n\r\n").await.unwrap();
        let mut text = String::new();
        while !text.contains("event: hub.live") {
            let count = soon(tcp.read(&mut space)).await.unwrap();
            text.push_str(std::str::from_utf8(&space[..count]).unwrap());
        }
        streams.push(tcp);
    }
    assert_eq!(hub.stats().connections, count);
    streams
}

#[tokio::test]
async fn a_taken_over_stream_needs_a_fraction_of_the_memory_also_when_its_client_sends() {
    let _alone = ALONE.lock().await;
    // Allocates what initialization needs before the measurement.
    let first = Hub::builder().build().unwrap();
    drop((open(&first, true, 20).await, open(&Hub::builder().build().unwrap(), false, 20).await));
    until(|| first.stats().connections == 0).await;

    let hub = Hub::builder().build().unwrap();
    let before = resident_bytes();
    let mut streams = open(&hub, true, STREAMS).await;
    let taken_over = resident_bytes().saturating_sub(before) / STREAMS;

    // Much more than the buffers of the kernel hold.
    let talker = &mut streams[0];
    let before = resident_bytes();
    let piece = [b'x'; 64 * 1024];
    for _ in 0..1000 {
        soon(talker.write_all(&piece)).await.unwrap();
    }
    let grown = resident_bytes().saturating_sub(before);
    assert!(grown < 8 << 20, "the process grew by {} KiB", grown >> 10);
    let published = hub.topic("t").publish(Event::unnamed("x")).await.unwrap();
    assert_eq!(published.connections, STREAMS);
    let mut event = [0; 64];
    let count = soon(talker.read(&mut event)).await.unwrap();
    assert!(String::from_utf8_lossy(&event[..count]).contains("data: x\n"));

    let other = Hub::builder().build().unwrap();
    let before = resident_bytes();
    let by_body = open(&other, false, STREAMS).await;
    let as_body = resident_bytes().saturating_sub(before) / STREAMS;
    assert!(as_body > 4 * taken_over, "{taken_over} bytes with takeover, {as_body} without");
    assert!(taken_over < 3000, "{taken_over} bytes for each stream, with the memory of its client");

    drop((streams, by_body));
    until(|| hub.stats().connections + other.stats().connections == 0).await;
}

/// The buffers of the kernel do not count as memory of the process.
#[tokio::test]
async fn a_client_that_does_not_read_needs_little_memory() {
    const CLIENTS: usize = 200;
    let _alone = ALONE.lock().await;
    let hub = Hub::builder().topic_retention(Retention::replay().bytes(1 << 20)).build().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let app = Router::new().route_service("/events", hub.endpoint(Public::topics(TopicFilter::any())));
    let listener = kit::hub_listener(&hub, listener);
    tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(16 * 1024).unwrap();
        let mut tcp = socket.connect(addr).await.unwrap();
        tcp.write_all(b"GET /events?topic=a&topic=b HTTP/1.1\r\nhost: test\r\n\r\n").await.unwrap();
        clients.push(tcp);
    }
    until(|| hub.stats().connections == CLIENTS).await;
    let before = resident_bytes();
    for n in 0..400 {
        // Two topics in turn: the hub shares chunks only between readers of one channel, so each
        // client needs its own bytes.
        let event = Event::unnamed("x".repeat(10_000));
        hub.topic(if n % 2 == 0 { "a" } else { "b" }).publish(event).await.unwrap();
        tokio::task::yield_now().await;
    }
    let mut delivered = 0;
    until(|| hub.stats().delivered > 0).await;
    loop {
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        let now = hub.stats().delivered;
        if now == delivered {
            break;
        }
        delivered = now;
    }
    assert!(delivered > 0);
    let each = resident_bytes().saturating_sub(before) / CLIENTS;
    assert!(each < 200 * 1024, "{} KiB for each client", each >> 10);
    assert_eq!(hub.stats().connections, CLIENTS);
    drop(clients);
}
