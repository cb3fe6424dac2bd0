//! Reconnects with an id, with and without takeover.

use http::Request;
use tokio::net::TcpListener;
use tower_sse::{Event, Hub, Retention};

use crate::deadline::Seeded;
use crate::kit::access::by_query;
use crate::kit::{Events, resume, send, soon};
use crate::peer::Peer;
use crate::site::Site;

#[tokio::test]
async fn a_client_that_reconnects_receives_missed_and_then_new_events() {
    let site = Site::start(Hub::builder()).await;
    let (mut events, _writer) = Peer::connect(site.addr).await.open("/events?topic=t").await;
    site.taken(1).await;
    site.delivers_as_taken(&mut events).await;
    let id = events.last_id.clone();
    drop((events, _writer));
    for n in 10..20 {
        site.publish("t", n.to_string()).await;
    }
    let mut events = resume(site.addr, "/events?topic=t", &id).await;
    let before = events.caught_up().await;
    assert_eq!(before[0].event, "hub.hello");
    let missed: Vec<_> = before[1..].iter().map(|event| event.data.as_str()).collect();
    assert_eq!(missed, ["10", "11", "12", "13", "14", "15", "16", "17", "18", "19"]);
    site.taken(2).await;
    site.delivers_as_taken(&mut events).await;
}

#[tokio::test]
async fn an_invalid_id_is_a_gap() {
    let site = Site::start(Hub::builder()).await;
    let mut events = resume(site.addr, "/events?topic=t", "nonsense").await;
    let before = events.caught_up().await;
    assert_eq!((before.len(), before[1].event.as_str()), (2, "hub.gap"));
    site.taken(1).await;
    site.delivers_as_taken(&mut events).await;
}

/// One hub behind two servers, one with takeover and one without. A reader alternates between them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_alternates_between_servers_with_and_without_takeover_misses_nothing() {
    const EVENTS: usize = 2000;
    let wide = Retention::replay().count(EVENTS).bytes(64 << 20);
    let site = Site::start(Hub::builder().topic_retention(wide)).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let other = listener.local_addr().unwrap();
    let app = axum::Router::new().route_service("/events", site.hub.endpoint(by_query));
    let serve = axum::serve(site.hub.listener(listener), app);
    let serve = tokio::spawn(async move { serve.await.unwrap() });
    let publisher = tokio::spawn({
        let hub = site.hub.clone();
        async move {
            for n in 0..EVENTS {
                hub.topic("t").publish(Event::unnamed(n.to_string())).await.unwrap();
                tokio::task::yield_now().await;
            }
        }
    });
    let mut random = Seeded(99);
    let mut id = "0".to_owned();
    let (mut next, mut rounds) = (0, 0);
    let from_the_start = |addr| async move {
        let request = Request::get("/events?topic=t").body("").unwrap();
        send(addr, request).await.events()
    };
    let mut events: Events = from_the_start(site.addr).await;
    let mut is_first = true;
    while next < EVENTS {
        for _ in 0..random.below(100) {
            if next == EVENTS {
                break;
            }
            let event = events.next().await;
            assert_ne!(event.event, "hub.gap");
            if event.event == "message" {
                // The first stream begins with the first event after its start.
                let number: usize = event.data.parse().unwrap();
                assert!(number == next || std::mem::take(&mut is_first), "{number} instead of {next}");
                is_first = false;
                next = number + 1;
            }
            if !events.last_id.is_empty() {
                id.clone_from(&events.last_id);
            }
        }
        rounds += 1;
        if id != "0" {
            is_first = false;
            events = resume(if rounds % 2 == 0 { site.addr } else { other }, "/events?topic=t", &id).await;
        }
    }
    soon(publisher).await.unwrap();
    assert!(rounds > 10 && site.passed.ended() > 5);
    serve.abort();
}
