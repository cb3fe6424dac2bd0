//! What an idle stream costs in memory, taken over and not, and what one costs whose client reads nothing. Alone in
//! its process, since it looks at all of it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "these are tests, helpers and all")]

mod kit;

use crate::kit::{soon, until};
use axum::Router;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::Mutex;
use tower_sse::{Event, Hub, Public, Retention, TopicFilter};

const STREAMS: usize = 1000;

/// One test after the other.
static ALONE: Mutex<()> = Mutex::const_new(());

fn resident_bytes() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

/// Both ends are in this process.
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
async fn a_stream_that_is_taken_over_costs_a_fraction_and_what_its_client_sends_costs_nothing() {
    let _alone = ALONE.lock().await;
    // What the first use of everything needs.
    let first = Hub::builder().build().unwrap();
    drop((open(&first, true, 20).await, open(&Hub::builder().build().unwrap(), false, 20).await));
    until(|| first.stats().connections == 0).await;

    let hub = Hub::builder().build().unwrap();
    let before = resident_bytes();
    let mut streams = open(&hub, true, STREAMS).await;
    let taken_over = resident_bytes().saturating_sub(before) / STREAMS;

    // Much more than the kernel's buffers hold.
    let talker = &mut streams[0];
    let before = resident_bytes();
    let piece = [b'x'; 64 * 1024];
    for _ in 0..1000 {
        soon(talker.write_all(&piece)).await.unwrap();
    }
    let grown = resident_bytes().saturating_sub(before);
    assert!(grown < 8 << 20, "{} kB more", grown >> 10);
    let published = hub.topic("t").publish(Event::unnamed("x")).await.unwrap();
    assert_eq!(published.connections, STREAMS);
    let mut event = [0; 64];
    let count = soon(talker.read(&mut event)).await.unwrap();
    assert!(String::from_utf8_lossy(&event[..count]).contains("data: x\n"));

    let other = Hub::builder().build().unwrap();
    let before = resident_bytes();
    let by_body = open(&other, false, STREAMS).await;
    let as_body = resident_bytes().saturating_sub(before) / STREAMS;
    assert!(as_body > 4 * taken_over, "{taken_over} bytes taken over, {as_body} not");
    assert!(taken_over < 3000, "{taken_over} bytes, the client's end included");

    drop((streams, by_body));
    until(|| hub.stats().connections + other.stats().connections == 0).await;
}

/// The kernel's buffers are not in it.
#[tokio::test]
async fn a_client_that_reads_nothing_costs_little_memory() {
    const CLIENTS: usize = 200;
    let _alone = ALONE.lock().await;
    let hub = Hub::builder().topic_retention(Retention::replay().bytes(1 << 20)).build().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let app = Router::new().route_service("/events", hub.endpoint(Public::topics(TopicFilter::any())));
    let watched = kit::watched(&hub, listener);
    tokio::spawn(async move { axum::serve(watched, app).await.unwrap() });
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
        // Two audiences, so that each client has bytes of its own.
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
