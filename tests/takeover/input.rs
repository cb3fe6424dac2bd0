//! The hub discards the input of a client on an open stream, and detects that the client
//! disconnects.

use std::time::{Duration, Instant};

use tokio::io::AsyncWriteExt;
use tower_sse::{EndReason, Hub, Retention};

use crate::deadline::takes_no_more;
use crate::kit::{soon, until};
use crate::peer::Peer;
use crate::site::Site;

async fn ends_soon(site: &Site, count: u64) {
    let since = Instant::now();
    until(|| site.hub.stats().connections == 0).await;
    assert!(since.elapsed() < Duration::from_secs(1), "after {:?}", since.elapsed());
    assert_eq!(site.hub.stats().ended(EndReason::Client), count);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_keeps_sending_is_served_like_others() {
    let site = Site::start(Hub::builder()).await;
    let (mut events, mut writer) = Peer::connect(site.addr).await.open("/events?topic=t").await;
    let (mut quiet, _quiet) = Peer::connect(site.addr).await.open("/events?topic=t").await;
    site.taken(2).await;
    let sender = tokio::spawn(async move {
        let piece = [b'x'; 64 * 1024];
        // More than all buffers hold, so the server has to read it.
        for _ in 0..1000 {
            soon(writer.write_all(&piece)).await.unwrap();
        }
        writer
    });
    let mut n = 0;
    while !sender.is_finished() || n < 10 {
        site.publish("t", n.to_string()).await;
        assert_eq!(events.next_own().await.data, n.to_string());
        assert_eq!(quiet.next_own().await.data, n.to_string());
        n += 1;
    }
    let _writer = sender.await.unwrap();
    assert_eq!(site.hub.stats().connections, 2);
}

#[tokio::test]
async fn an_end_of_the_connection_ends_the_stream() {
    let site = Site::start(Hub::builder()).await;
    let (events, writer) = Peer::connect(site.addr).await.open("/events?topic=t").await;
    site.taken(1).await;
    drop((events, writer));
    ends_soon(&site, 1).await;
}

#[tokio::test]
async fn a_half_closed_connection_ends_the_stream() {
    let site = Site::start(Hub::builder()).await;
    let (_events, mut writer) = Peer::connect(site.addr).await.open("/events?topic=t").await;
    site.taken(1).await;
    writer.shutdown().await.unwrap();
    ends_soon(&site, 1).await;
}

#[tokio::test]
async fn an_end_after_stray_input_ends_the_stream() {
    let site = Site::start(Hub::builder()).await;
    for (count, bytes) in [1, 1000, 1024, 100_000, 1 << 20].into_iter().enumerate() {
        let (_events, mut writer) = Peer::connect(site.addr).await.open("/events?topic=t").await;
        site.taken(count + 1).await;
        soon(writer.write_all(&vec![b'x'; bytes])).await.unwrap();
        writer.shutdown().await.unwrap();
        ends_soon(&site, count as u64 + 1).await;
    }
}

/// The client closes the connection before the socket is taken over.
#[tokio::test]
async fn an_end_together_with_the_request_ends_the_stream() {
    let site = Site::start(Hub::builder()).await;
    let mut peer = Peer::connect(site.addr).await;
    peer.send("GET /events?topic=t HTTP/1.1\r\nhost: test\r\n\r\nstray").await;
    peer.writer.shutdown().await.unwrap();
    until(|| site.hub.stats().connected == 1).await;
    ends_soon(&site, 1).await;
}

#[tokio::test]
async fn a_reset_ends_the_stream() {
    let site = Site::start(Hub::builder()).await;
    for count in 1..=3 {
        let mut peer = Peer::connect(site.addr).await;
        peer.get("/events?topic=t").await;
        peer.reader.head().await;
        site.taken(count).await;
        peer.reset();
        ends_soon(&site, count as u64).await;
    }
}

/// The client closes the connection while bytes wait that it does not read.
#[tokio::test]
async fn a_stuck_client_that_disconnects_ends_its_stream() {
    for resets in [false, true] {
        let wide = Retention::replay().bytes(16 << 20);
        let site = Site::start(Hub::builder().topic_retention(wide)).await;
        let mut peer = site.narrow_stream().await;
        for _ in 0..40 {
            site.publish("t", "x".repeat(200_000)).await;
        }
        takes_no_more(&site.hub).await;
        if resets {
            peer.reset();
        } else {
            peer.send("stray").await;
            peer.writer.shutdown().await.unwrap();
        }
        ends_soon(&site, 1).await;
    }
}
