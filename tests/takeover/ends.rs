//! The end of a stream that was taken over: the client receives every event, the last chunk, and
//! the end of the connection.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tower_sse::{Disconnect, EndReason, Hub, LagPolicy, Retention, StreamEnd};

use crate::kit::{Sse, parsed, soon};
use crate::peer::Peer;
use crate::site::Site;

fn goodbye(event: &Sse) -> Value {
    assert_eq!(event.event, "hub.bye");
    parsed(event)
}

#[tokio::test]
async fn each_kind_of_disconnect_arrives_with_its_goodbye() {
    let second = Duration::from_secs(1);
    for (disconnect, word) in [
        (Disconnect::now(), "now"),
        (Disconnect::reconnect_after(10 * second), "later"),
        (Disconnect::block_for(3600 * second), "never"),
    ] {
        let site = Site::start(Hub::builder()).await;
        let (mut events, _writer) = Peer::connect(site.addr).await.open("/events?topic=t&user=ada").await;
        site.taken(1).await;
        site.delivers_as_taken(&mut events).await;
        assert_eq!(site.hub.user("ada").disconnect(disconnect.note("signed out")).await.unwrap().connections, 1);
        let rest = events.rest().await;
        let [bye] = &rest[..] else { panic!("{rest:?}") };
        assert_eq!(goodbye(bye), json!({ "reason": "disconnected", "reconnect": word, "note": "signed out" }));
        assert_eq!((bye.retry.is_some(), bye.id.starts_with("0.")), (word != "never", word == "never"), "{bye:?}");
        assert_eq!((site.hub.stats().connections, site.hub.stats().ended(EndReason::Disconnected)), (0, 1));
    }
}

#[tokio::test]
async fn a_drain_spreads_the_reconnects_over_its_window() {
    const STREAMS: usize = 40;
    let window = Duration::from_secs(20);
    let site = Site::start(Hub::builder()).await;
    let mut streams = Vec::new();
    for _ in 0..STREAMS {
        streams.push(Peer::connect(site.addr).await.open("/events?topic=t").await);
    }
    site.taken(STREAMS).await;
    site.publish("t", "before").await;
    let drained = site.drain_and_shut_down(window).await;
    assert_eq!((drained.ended, drained.cut), (STREAMS, 0));
    let mut retries = Vec::new();
    for (events, _writer) in streams {
        let mut rest = events.rest().await;
        let bye = rest.pop().unwrap();
        assert_eq!(goodbye(&bye), json!({ "reason": "draining", "reconnect": "now" }));
        assert_eq!(rest.pop().unwrap().data, "before");
        retries.push(bye.retry.unwrap());
    }
    assert!(retries.iter().all(|retry| *retry <= window));
    assert!(*retries.iter().max().unwrap() - *retries.iter().min().unwrap() > window / 3, "{retries:?}");
}

/// A socket that is closed with unread input sends a reset. The reset discards bytes that the peer
/// has not read yet.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_frame_arrives_although_the_client_keeps_sending() {
    for round in 0..10 {
        let site = Site::start(Hub::builder()).await;
        let (events, mut writer) = Peer::connect(site.addr).await.open("/events?topic=t").await;
        site.taken(1).await;
        let over = Arc::new(AtomicBool::new(false));
        let sender = tokio::spawn({
            let over = Arc::clone(&over);
            async move {
                while !over.load(Ordering::SeqCst) {
                    soon(writer.write_all(&[b'x'; 32 * 1024])).await.unwrap();
                }
                writer
            }
        });
        for n in 0..10 {
            site.publish("t", format!("{n} {}", "y".repeat(5000))).await;
        }
        let drained = site.drain_and_shut_down(Duration::ZERO).await;
        assert_eq!((drained.ended, drained.cut), (1, 0));
        // The client sends for a while after the end, and only then begins to read.
        tokio::time::sleep(Duration::from_millis(100)).await;
        over.store(true, Ordering::SeqCst);
        let _writer = sender.await.unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
        let rest = events.rest().await;
        assert_eq!(rest.last().map(|event| event.event.as_str()), Some("hub.bye"), "round {round}: {rest:?}");
        assert_eq!(rest.iter().filter(|event| event.event == "message").count(), 10);
    }
}

/// The input is unread in the server's kernel at the drain, because nothing has woken the stream.
#[tokio::test]
async fn the_last_frame_arrives_with_unread_input() {
    let site = Site::start(Hub::builder()).await;
    let mut streams = Vec::new();
    for _ in 0..20 {
        streams.push(Peer::connect(site.addr).await.open("/events?topic=t").await);
    }
    site.taken(20).await;
    // Without an `await`, so that this single thread reads nothing in between.
    for (_, writer) in &streams {
        assert_eq!(writer.try_write(&[b'x'; 10_000]).unwrap(), 10_000);
    }
    let drained = site.drain_and_shut_down(Duration::ZERO).await;
    assert_eq!((drained.ended, drained.cut), (20, 0));
    tokio::time::sleep(Duration::from_millis(1200)).await;
    for (events, _writer) in streams {
        assert_eq!(goodbye(&events.rest().await.pop().unwrap())["reason"], "draining");
    }
}

/// The writer has written the whole stream, but much of it is still in the server's kernel, for a
/// client that sends and does not read yet. A closed socket would answer with a reset, which
/// discards the rest.
#[tokio::test]
async fn the_last_frame_arrives_when_the_kernel_holds_it_for_long() {
    let site = Site::start(Hub::builder()).await;
    let mut peer = site.narrow_stream().await;
    for n in 0..20 {
        site.publish("t", format!("{n} {}", "y".repeat(5000))).await;
    }
    let drained = site.drain_and_shut_down(Duration::ZERO).await;
    assert_eq!((drained.ended, drained.cut), (1, 0));
    for _ in 0..30 {
        peer.send("stray input").await;
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let rest = peer.reader.events().rest().await;
    assert_eq!(rest.iter().filter(|event| event.event == "message").count(), 20);
    assert_eq!(goodbye(rest.last().unwrap())["reason"], "draining");
}

/// A client that does not close its connection after the end keeps no socket open.
#[tokio::test]
async fn an_idle_client_is_closed_after_the_end() {
    let site = Site::start(Hub::builder()).await;
    let (events, mut writer) = Peer::connect(site.addr).await.open("/events?topic=t").await;
    site.taken(1).await;
    let [connection] = &site.hub.connections()[..] else { panic!("one stream") };
    site.hub.connection(connection.id).disconnect(Disconnect::now()).await.unwrap();
    let since = Instant::now();
    // A socket that is closed answers with a reset.
    soon(async {
        while writer.write_all(b"stray input").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    assert!(since.elapsed() < Duration::from_secs(5), "{:?}", since.elapsed());
    drop(events);
}

#[tokio::test]
async fn an_aborted_end_has_no_last_chunk() {
    let site = Site::start(Hub::builder().stream_end(StreamEnd::Abort)).await;
    let mut peer = Peer::connect(site.addr).await;
    peer.get("/events?topic=t").await;
    peer.reader.head().await;
    site.taken(1).await;
    site.publish("t", "x").await;
    let (drained, (text, is_proper)) = tokio::join!(site.drain_and_shut_down(Duration::ZERO), peer.reader.text());
    assert_eq!((drained.ended, drained.cut), (1, 0));
    assert!(!is_proper);
    assert!(text.contains("data: x\n") && text.contains("event: hub.bye\n") && text.ends_with("\n\n"), "{text}");
}

#[tokio::test]
async fn an_expiring_subscription_receives_a_notice_and_ends() {
    let site = Site::start(Hub::builder()).await;
    let since = Instant::now();
    let (mut events, _writer) = Peer::connect(site.addr).await.open("/events?topic=t&expires_ms=2000").await;
    site.taken(1).await;
    events.caught_up().await;
    assert_eq!(events.next().await.event, "hub.expiring");
    let rest = events.rest().await;
    assert_eq!(goodbye(&rest[0]), json!({ "reason": "expired", "reconnect": "now" }));
    assert!((1700..20_000).contains(&since.elapsed().as_millis()), "{:?}", since.elapsed());
    assert_eq!((rest.len(), site.passed.frames()), (1, 1));
}

#[tokio::test]
async fn a_stream_ends_at_its_maximum_age() {
    let second = Duration::from_secs(1);
    let site = Site::start(Hub::builder().max_connection_age(second)).await;
    let since = Instant::now();
    let (events, _writer) = Peer::connect(site.addr).await.open("/events?topic=t").await;
    site.taken(1).await;
    let bye = events.rest().await.pop().unwrap();
    assert_eq!(goodbye(&bye), json!({ "reason": "age", "reconnect": "now" }));
    assert!(since.elapsed() >= second * 4 / 5 && since.elapsed() < 10 * second, "{:?}", since.elapsed());
    assert_eq!(site.passed.frames(), 1);
}

#[tokio::test]
async fn a_lagging_stream_ends_with_the_policy_disconnect() {
    let brief = Retention::live().count(4).on_lag(LagPolicy::Disconnect);
    let site = Site::narrow(Hub::builder().topic_retention(brief), |app| app).await;
    let peer = site.narrow_stream().await;
    for n in 0..100 {
        site.publish("t", format!("{n} {}", "x".repeat(20_000))).await;
        tokio::task::yield_now().await;
    }
    let rest = peer.reader.events().rest().await;
    assert_eq!(goodbye(rest.last().unwrap())["reason"], "lagged");
    assert!(!rest.iter().any(|event| event.event == "hub.gap"));
    assert_eq!(site.hub.stats().ended(EndReason::Lagged), 1);
}
