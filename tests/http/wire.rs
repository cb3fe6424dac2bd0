//! An independent parser reads the published events from the bytes on the wire.

use axum::Router;
use bytes::Bytes;
use futures::{StreamExt, stream};
use proptest::prelude::*;
use tower_sse::{Event, Hub, Public, TopicFilter};

use crate::kit::{self, Events, Server, get, resume, send, subscribe};

/// Returns data as a client reads it: each CRLF, CR and LF is one line break.
fn as_read(data: &str) -> String {
    data.replace("\r\n", "\n").replace('\r', "\n")
}

/// Publishes an event to a stream of the tower service, and returns the stream's bytes.
async fn body_of(hub: &Hub, publish: Event) -> Vec<u8> {
    use http_body_util::BodyExt;
    use tower::ServiceExt;
    let endpoint = hub.endpoint(Public::topics(TopicFilter::any()));
    let request = http::Request::get("/?topic=t").body(()).unwrap();
    let mut body = Box::pin(endpoint.oneshot(request).await.unwrap().into_body());
    hub.topic("t").publish(publish).await.unwrap();
    let mut bytes = Vec::new();
    for _ in 0..3 {
        bytes.extend_from_slice(&body.frame().await.unwrap().unwrap().into_data().unwrap());
    }
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn event_that_is_parsed_byte_by_byte_is_the_published_event(
        name in "[^\u{0}-\u{1f}\u{7f}-\u{9f}\u{202a}-\u{202e}\u{2066}-\u{2069}]{0,30}",
        data in prop_oneof!["[\\PC\r\n:]{0,80}", any::<String>()],
    ) {
        prop_assume!(!name.starts_with("hub.") && name != "open" && name != "error" && name.len() <= 128);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let read = runtime.block_on(async {
            let hub = Hub::builder().build().unwrap();
            let bytes = body_of(&hub, Event::new(name.clone(), data.clone())).await;
            let single = stream::iter(bytes.into_iter().map(|byte| Ok::<_, std::io::Error>(Bytes::from(vec![byte]))));
            let mut events = Events::parse(single.boxed());
            let read = events.next_own().await;
            assert_eq!(events.next().await.event, "hub.live");
            assert!(events.try_next().await.is_none());
            read
        });
        prop_assert_eq!(&read.event, if name.is_empty() { "message" } else { &name });
        prop_assert_eq!(read.data, as_read(&data));
    }
}

async fn start() -> (Hub, Server) {
    let hub = Hub::builder().build().unwrap();
    let app = Router::new().route_service("/events", hub.endpoint(Public::topics(TopicFilter::any())));
    let server = Server::start(&hub, app).await;
    (hub, server)
}

#[tokio::test]
async fn response_head_has_the_headers_that_proxies_need() {
    let (_hub, server) = start().await;
    let reply = get(server.addr, "/events?topic=silent").await;
    assert_eq!(reply.status, 200);
    assert_eq!(reply.header("content-type"), "text/event-stream");
    assert_eq!(reply.header("cache-control"), "no-cache, no-store, no-transform");
    assert_eq!(reply.header("incremental"), "?1");
    assert_eq!(reply.header("x-accel-buffering"), "no");
    assert_eq!(reply.header("x-content-type-options"), "nosniff");
    assert_eq!(reply.header("content-encoding"), "");
    assert_eq!(reply.header("content-length"), "");
    assert_eq!(reply.header("connection"), if kit::takeover() { "close" } else { "" });
}

#[tokio::test]
async fn stream_begins_with_hello_and_a_first_id() {
    let (hub, server) = start().await;
    let mut events = get(server.addr, "/events?topic=a&topic=b&topic=a").await.events();
    let hello = events.next().await;
    assert_eq!(hello.event, "hub.hello");
    assert_eq!(hello.id, "");
    assert_eq!(hello.retry, Some(std::time::Duration::from_secs(2)));
    let data: serde_json::Value = serde_json::from_str(&hello.data).unwrap();
    assert_eq!(data["cursor"], "fresh");
    assert_eq!(data["topics"], serde_json::json!(["a", "b"]));
    let live = events.next().await;
    assert_eq!((live.event.as_str(), live.data.as_str()), ("hub.live", "{}"));
    assert_eq!(live.id, hub.position().to_string());
}

#[tokio::test]
async fn reconnecting_client_receives_every_event_once_and_in_order() {
    let (hub, server) = start().await;
    let mut events = subscribe(server.addr, "/events?topic=t").await;
    let id = events.last_id.clone();
    let mut received = Vec::new();
    for n in 0..50 {
        hub.topic("t").publish(Event::unnamed(n.to_string())).await.unwrap();
        hub.topic("other").publish(Event::unnamed("not subscribed")).await.unwrap();
        if n % 7 == 3 {
            let id = events.last_id.clone();
            drop(events);
            events = resume(server.addr, "/events?topic=t", &id).await;
        }
        if n % 2 == 0 {
            received.push(events.next_own().await.data);
        }
    }
    while received.len() < 50 {
        received.push(events.next_own().await.data);
    }
    assert_eq!(received, (0..50).map(|n| n.to_string()).collect::<Vec<_>>());
    // The id can be in the query too. This one is that of the first stream's start.
    let mut again = get(server.addr, &format!("/events?topic=t&last_event_id={id}")).await.events();
    let hello = again.next().await;
    assert!(hello.data.contains(r#""cursor":"resuming""#), "{}", hello.data);
    for n in 0..50 {
        assert_eq!(again.next().await.data, n.to_string());
    }
    assert_eq!(again.next().await.event, "hub.live");
}

#[tokio::test]
async fn head_request_opens_no_stream() {
    let (hub, server) = start().await;
    let reply = send(server.addr, http::Request::head("/events?topic=t").body("").unwrap()).await;
    assert_eq!(reply.status, 200);
    assert_eq!(reply.header("content-type"), "text/event-stream");
    assert_eq!(reply.text().await, "");
    assert_eq!(hub.stats().connected, 0);
}
