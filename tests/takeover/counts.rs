//! Counts, limits and topics of streams whose sockets were taken over.

use std::time::Duration;

use serde_json::Value;
use tower_sse::{EndReason, Hub, OverLimit, RefusalReason, TopicFilter};

use crate::kit::{get, until};
use crate::peer::Peer;
use crate::site::Site;

#[tokio::test]
async fn stats_presence_and_lists_include_a_stream_that_was_taken_over_until_it_ends() {
    let brief = Duration::from_millis(50);
    let site = Site::start(Hub::builder().presence_for(TopicFilter::any()).presence_grace(brief)).await;
    let hub = &site.hub;
    let (mut watcher, _watcher) = Peer::connect(site.addr).await.open("/events?topic=t&user=ada").await;
    watcher.caught_up().await;
    let mut tabs = Vec::new();
    for _ in 0..3 {
        tabs.push(Peer::connect(site.addr).await.open("/events?topic=t&user=ben").await);
    }
    site.taken(4).await;
    assert_eq!(watcher.next().await.event, "hub.joined");
    assert_eq!((hub.stats().connections, hub.stats().connected, hub.stats().users), (4, 4, 2));
    assert_eq!((hub.user("ben").count(), hub.topic("t").count(), hub.connections().len()), (3, 4, 4));
    let presence = hub.topic("t").presence();
    assert_eq!(presence.members.iter().map(|member| member.connections).collect::<Vec<_>>(), [1, 3]);
    site.publish("t", "x").await;
    for (events, _) in &mut tabs {
        assert_eq!(events.next_own().await.data, "x");
    }
    until(|| hub.connections().iter().all(|connection| connection.delivered >= 1)).await;
    assert_eq!((hub.stats().stalled, hub.stats().lag), (0, 0));

    tabs.pop();
    until(|| hub.user("ben").count() == 2).await;
    drop(tabs);
    until(|| hub.stats().connections == 1).await;
    until(|| hub.stats().users == 1).await;
    assert_eq!(watcher.next_own().await.data, "x");
    assert_eq!(watcher.next().await.event, "hub.left");
    assert_eq!(hub.stats().ended(EndReason::Client), 3);
    assert_eq!(hub.topic("t").presence().members.len(), 1);
}

#[tokio::test]
async fn limits_on_connections_hold_for_streams_that_were_taken_over() {
    let site = Site::start(Hub::builder().max_connections(3, OverLimit::Refuse)).await;
    let mut open = Vec::new();
    for _ in 0..3 {
        open.push(Peer::connect(site.addr).await.open("/events?topic=t").await);
    }
    site.taken(3).await;
    for _ in 0..3 {
        assert_eq!(get(site.addr, "/events?topic=t").await.events().next().await.event, "hub.refused");
    }
    open.pop();
    until(|| site.hub.stats().connections == 2).await;
    open.push(Peer::connect(site.addr).await.open("/events?topic=t").await);
    assert_eq!((site.hub.stats().connections, site.hub.stats().refused(RefusalReason::Limit)), (3, 3));
}

#[tokio::test]
async fn the_oldest_stream_of_a_user_ends_when_a_new_one_exceeds_the_limit() {
    let site = Site::start(Hub::builder().max_connections_per_user(1, OverLimit::CloseOldest)).await;
    let mut before = Peer::connect(site.addr).await.open("/events?topic=t&user=ada").await;
    for n in 1..4 {
        site.taken(n).await;
        let after = Peer::connect(site.addr).await.open("/events?topic=t&user=ada").await;
        let (events, _writer) = std::mem::replace(&mut before, after);
        let goodbye = events.rest().await.pop().unwrap();
        assert!(goodbye.event == "hub.bye" && goodbye.data.contains("limit"), "{goodbye:?}");
        assert_eq!((site.hub.stats().connections, site.hub.user("ada").count()), (1, 1));
    }
}

#[tokio::test]
async fn a_stream_that_was_taken_over_joins_and_leaves_topics() {
    let site = Site::start(Hub::builder()).await;
    let mut peer = Peer::connect(site.addr).await;
    peer.get("/events?topic=a").await;
    peer.reader.head().await;
    let mut events = peer.reader.events();
    let hello: Value = serde_json::from_str(&events.next().await.data).unwrap();
    let id = hello["connection"].as_str().unwrap().to_owned();
    events.caught_up().await;
    site.taken(1).await;
    site.publish("b", "before").await;
    site.hub.connection(&*id).join("b").await.unwrap();
    let live = events.next().await;
    assert!(live.event == "hub.live" && live.data.contains("\"b\""), "{live:?}");
    site.publish("b", "between").await;
    assert_eq!(events.next().await.data, "between");
    site.hub.connection(&*id).leave("b").await.unwrap();
    assert_eq!(events.next().await.event, "hub.live");
    site.publish("b", "after").await;
    site.publish("a", "still").await;
    assert_eq!(events.next().await.data, "still");
    assert_eq!(site.passed.frames(), 1);
}
