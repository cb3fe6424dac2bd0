//! What a client sends while its stream lasts is read away, and its leaving is noticed.

use std::time::{Duration, Instant};

use tokio::io::AsyncWriteExt;
use tower_sse::{EndReason, Hub, Retention};

use crate::deadline::takes_no_more;
use crate::kit::{soon, until};
use crate::peer::Peer;
use crate::site::Site;

async fn is_forgotten(site: &Site, count: u64) {
    let since = Instant::now();
    until(|| site.hub.stats().connections == 0).await;
    assert!(since.elapsed() < Duration::from_secs(1), "after {:?}", since.elapsed());
    assert_eq!(site.hub.stats().ended(EndReason::Client), count);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_never_stops_talking_is_served_like_others() {
    let site = Site::start(Hub::builder()).await;
    let (mut events, mut writer) = Peer::connect(site.addr).await.open("/events?topic=t").await;
    let (mut quiet, _quiet) = Peer::connect(site.addr).await.open("/events?topic=t").await;
    site.taken(2).await;
    let talk = tokio::spawn(async move {
        let piece = [b'x'; 64 * 1024];
        // More than any buffer on the way holds, so it is read.
        for _ in 0..1000 {
            soon(writer.write_all(&piece)).await.unwrap();
        }
        writer
    });
    let mut n = 0;
    while !talk.is_finished() || n < 10 {
        site.publish("t", n.to_string()).await;
        assert_eq!(events.next_own().await.data, n.to_string());
        assert_eq!(quiet.next_own().await.data, n.to_string());
        n += 1;
    }
    let _writer = talk.await.unwrap();
    assert_eq!(site.hub.stats().connections, 2);
}

#[tokio::test]
async fn an_end_is_noticed() {
    let site = Site::start(Hub::builder()).await;
    let (events, writer) = Peer::connect(site.addr).await.open("/events?topic=t").await;
    site.taken(1).await;
    drop((events, writer));
    is_forgotten(&site, 1).await;
}

#[tokio::test]
async fn half_an_end_is_one() {
    let site = Site::start(Hub::builder()).await;
    let (_events, mut writer) = Peer::connect(site.addr).await.open("/events?topic=t").await;
    site.taken(1).await;
    writer.shutdown().await.unwrap();
    is_forgotten(&site, 1).await;
}

#[tokio::test]
async fn an_end_behind_stray_input_is_noticed() {
    let site = Site::start(Hub::builder()).await;
    for (count, bytes) in [1, 1000, 1024, 100_000, 1 << 20].into_iter().enumerate() {
        let (_events, mut writer) = Peer::connect(site.addr).await.open("/events?topic=t").await;
        site.taken(count + 1).await;
        soon(writer.write_all(&vec![b'x'; bytes])).await.unwrap();
        writer.shutdown().await.unwrap();
        is_forgotten(&site, count as u64 + 1).await;
    }
}

/// It has left before the socket is taken.
#[tokio::test]
async fn an_end_together_with_the_request_is_noticed() {
    let site = Site::start(Hub::builder()).await;
    let mut peer = Peer::connect(site.addr).await;
    peer.send("GET /events?topic=t HTTP/1.1\r\nhost: test\r\n\r\nstray").await;
    peer.writer.shutdown().await.unwrap();
    until(|| site.hub.stats().connected == 1).await;
    is_forgotten(&site, 1).await;
}

#[tokio::test]
async fn a_reset_is_noticed() {
    let site = Site::start(Hub::builder()).await;
    for count in 1..=3 {
        let mut peer = Peer::connect(site.addr).await;
        peer.get("/events?topic=t").await;
        peer.reader.head().await;
        site.taken(count).await;
        peer.reset();
        is_forgotten(&site, count as u64).await;
    }
}

/// While bytes wait that it does not take.
#[tokio::test]
async fn a_stuck_client_that_leaves_is_noticed() {
    for resets in [false, true] {
        let wide = Retention::replay().bytes(16 << 20);
        let site = Site::start(Hub::builder().topic_retention(wide)).await;
        let mut peer = Peer::narrow(site.addr).await;
        peer.get("/events?topic=t").await;
        peer.reader.head().await;
        site.taken(1).await;
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
        is_forgotten(&site, 1).await;
    }
}
