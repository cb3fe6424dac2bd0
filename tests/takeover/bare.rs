//! Bare streams whose sockets were taken over: the hub's own writer writes the same bytes, and
//! breaks the streams.

use std::time::Duration;

use tower_sse::{Disconnect, Hub};

use crate::peer::{Peer, Reader};
use crate::site::Site;

const RETRY: &[u8] = b"retry: 2000\n";

/// Opens a bare stream, and waits until the hub has taken its socket over.
async fn open(site: &Site, query: &str) -> Peer {
    let before = site.passed.ended();
    let mut peer = Peer::connect(site.addr).await;
    peer.get(&format!("/events?topic=t&bare{query}")).await;
    let head = peer.reader.head().await;
    assert_eq!((head.status.as_str(), head.header("connection")), ("HTTP/1.1 200 OK", "close"));
    assert_eq!(chunk(&mut peer.reader).await, RETRY);
    site.taken(before + 1).await;
    peer
}

async fn chunk(reader: &mut Reader) -> Vec<u8> {
    reader.chunk().await.unwrap().expect("a proper end")
}

#[tokio::test]
async fn events_have_their_ids_at_each_place() {
    let site = Site::start(Hub::builder()).await;
    for (query, expected) in
        [("", "data: x\nid: ID\n\n"), ("&ids=first", "id: ID\ndata: x\n\n"), ("&ids=none", "data: x\n\n")]
    {
        let mut peer = open(&site, query).await;
        site.publish("t", "x").await;
        let expected = expected.replace("ID", &site.hub.position().to_string());
        assert_eq!(String::from_utf8(chunk(&mut peer.reader).await).unwrap(), expected, "{query}");
    }
    assert_eq!(site.passed.frames(), 3, "the retry lines");
}

#[tokio::test]
async fn heartbeats_are_comment_lines_also_if_they_are_visible() {
    let site = Site::start(Hub::builder().heartbeat(Duration::from_millis(30)).visible_heartbeat()).await;
    let mut peer = open(&site, "").await;
    for _ in 0..20 {
        assert_eq!(chunk(&mut peer.reader).await, b":\n");
    }
    assert_eq!(site.passed.frames(), 1);
}

#[tokio::test]
async fn ends_are_breaks_after_a_whole_event() {
    for (end, reconnects) in [("drain", true), ("disconnect", true), ("ban", false), ("expiry", false)] {
        let site = Site::start(Hub::builder()).await;
        let query = if end == "expiry" { "&expires_ms=1000" } else { "&user=ada" };
        let mut peer = open(&site, query).await;
        site.publish("t", "x").await;
        assert!(chunk(&mut peer.reader).await.starts_with(b"data: x\n"));
        match end {
            "drain" => assert_eq!(site.hub.drain(Duration::ZERO).await.ended, 1),
            "disconnect" => drop(site.hub.user("ada").disconnect(Disconnect::now()).await.unwrap()),
            "ban" => {
                drop(site.hub.user("ada").disconnect(Disconnect::block_for(Duration::from_secs(60))).await.unwrap())
            }
            _ => {}
        }
        let (rest, is_proper) = peer.reader.text().await;
        assert!(!is_proper, "{end}");
        assert_eq!(rest.starts_with("retry: ") && rest.lines().count() == 1, reconnects, "{end}: {rest:?}");
        assert!(reconnects || rest.is_empty(), "{end}: {rest:?}");
        assert_eq!(site.passed.frames(), 1, "{end}");
    }
}
