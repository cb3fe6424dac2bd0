//! The bare profile: the bytes of its streams, its ends and its refusals.

use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::response::IntoResponse;
use axum::routing::any;
use bytes::Bytes;
use futures::stream;
use http::{Method, Request};
use http_body_util::BodyExt;
use tower_sse::{
    Disconnect, EndReason, Event, GapReason, Hub, HubBuilder, Ids, LagPolicy, OverLimit, RefusalReason, Retention,
    Start, StreamRequest, SubscriberItem, Subscription, TopicFilter,
};

use crate::kit::access::from_query;
use crate::kit::{self, Events, Reply, Server, http2, reply, send, soon, until};
use crate::raw::{End, Raw};

/// The `retry` line of a hub with the default settings.
const RETRY: &str = "retry: 2000\n";
const SECOND: Duration = Duration::from_secs(1);

/// Responds to any method with a bare stream for the query: `?topic=t&ids=first&start=oldest`.
async fn handler(State(hub): State<Hub>, request: StreamRequest) -> impl IntoResponse {
    let mut subscription = from_query(&request).bare();
    match request.query_values("start").next().as_deref() {
        Some("oldest") => subscription = subscription.start(Start::Oldest),
        Some("none") => subscription = subscription.without_history(),
        _ => {}
    }
    ([("x-vercel-ai-ui-message-stream", "v1")], hub.respond(request, subscription))
}

async fn serve(builder: HubBuilder) -> (Hub, Server) {
    let hub = builder.build().unwrap();
    let app = Router::new().route("/events", any(handler)).with_state(hub.clone());
    let server = Server::start(&hub, app).await;
    (hub, server)
}

/// Publishes an event without a name, and returns its id.
async fn publish(hub: &Hub, data: impl Into<String>) -> String {
    hub.topic("t").publish(Event::unnamed(data.into())).await.unwrap().position.to_string()
}

/// Opens a stream, and reads its head and its `retry` line.
async fn open(server: &Server, query: &str) -> Raw {
    let mut raw = Raw::get(server.addr, &format!("/events?topic=t{query}")).await;
    assert_eq!(raw.head().await[0], "http/1.1 200 ok");
    assert_eq!(raw.chunk().await.as_deref(), Ok(RETRY));
    raw
}

async fn request(server: &Server, method: Method, query: &str, headers: &[(&str, &str)]) -> Reply {
    let mut request = Request::builder().method(method).uri(format!("/events?topic=t{query}"));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    send(server.addr, request.body("").unwrap()).await
}

// ---------------------------------------------------------------------------------------------------------------------
// Bytes

#[tokio::test]
async fn head_and_retry_line_of_a_silent_stream_arrive_at_once() {
    let (_hub, server) = serve(Hub::builder()).await;
    let mut raw = Raw::get(server.addr, "/events?topic=t").await;
    let head = raw.head().await;
    assert!(head.contains(&"content-type: text/event-stream".to_owned()), "{head:?}");
    assert!(head.contains(&"x-vercel-ai-ui-message-stream: v1".to_owned()), "{head:?}");
    assert_eq!(head.contains(&"connection: close".to_owned()), kit::takeover(), "{head:?}");
    assert_eq!(raw.chunk().await.as_deref(), Ok(RETRY));
}

#[tokio::test]
async fn stream_has_only_the_retry_line_and_the_published_events() {
    let (hub, server) = serve(Hub::builder()).await;
    let mut raw = Raw::get(server.addr, "/events?topic=t").await;
    raw.head().await;
    until(|| hub.stats().connections == 1).await;
    let first = hub.topic("t").publish(Event::new("open", "1")).await;
    assert!(first.is_err(), "a reserved name");
    let one = hub.topic("t").publish(Event::new("delta", "a\nb")).await.unwrap().position;
    let two = publish(&hub, "c").await;
    let expected = format!("{RETRY}event: delta\ndata: a\ndata: b\nid: {one}\n\ndata: c\nid: {two}\n\n");
    assert_eq!(raw.bytes(expected.len()).await, expected);
}

/// Several events that are read at once, and then a single event.
#[tokio::test]
async fn ids_are_last_first_or_absent() {
    for query in ["", "&ids=first", "&ids=none"] {
        let (hub, server) = serve(Hub::builder()).await;
        let start = hub.position().to_string();
        let (one, two) = (publish(&hub, "1").await, publish(&hub, "2").await);
        let expected = match query {
            "" => format!("data: 1\nid: {one}\n\ndata: 2\nid: {two}\n\n"),
            "&ids=first" => format!("id: {one}\ndata: 1\n\nid: {two}\ndata: 2\n\n"),
            _ => "data: 1\n\ndata: 2\n\n".to_owned(),
        };
        let mut raw = open(&server, &format!("{query}&last_event_id={start}")).await;
        assert_eq!(raw.bytes(expected.len()).await, expected, "{query}");
        let three = publish(&hub, "3").await;
        let expected = match query {
            "" => format!("data: 3\nid: {three}\n\n"),
            "&ids=first" => format!("id: {three}\ndata: 3\n\n"),
            _ => "data: 3\n\n".to_owned(),
        };
        assert_eq!(raw.bytes(expected.len()).await, expected, "{query}");
    }
}

#[tokio::test]
async fn current_values_have_no_ids() {
    let (hub, server) = serve(Hub::builder().topic_retention(Retention::latest_per_key())).await;
    let value = |n: &'static str| hub.topic("t").publish(Event::unnamed(n).key("k"));
    value("1").await.unwrap();
    for query in ["", "&ids=first"] {
        let mut raw = open(&server, query).await;
        assert_eq!(raw.chunk().await.as_deref(), Ok("data: 1\n\n"), "{query}");
    }
}

#[tokio::test]
async fn presence_events_of_a_topic_are_left_out() {
    let (hub, server) = serve(Hub::builder().presence_for(TopicFilter::any())).await;
    let mut raw = open(&server, "").await;
    let _other = kit::get(server.addr, "/events?topic=t&user=ada").await;
    until(|| hub.stats().connections == 2).await;
    let one = publish(&hub, "1").await;
    assert_eq!(raw.chunk().await, Ok(format!("data: 1\nid: {one}\n\n")));
}

#[tokio::test]
async fn heartbeat_is_one_comment_line_also_if_heartbeats_are_visible() {
    for builder in [Hub::builder(), Hub::builder().visible_heartbeat()] {
        let (_hub, server) = serve(builder.heartbeat(Duration::from_millis(30))).await;
        let mut raw = open(&server, "").await;
        for _ in 0..30 {
            assert_eq!(raw.chunk().await.as_deref(), Ok(":\n"));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn heartbeat_comes_within_30_seconds_also_if_the_hub_has_a_longer_heartbeat() {
    let hub = Hub::builder().heartbeat(600 * SECOND).build().unwrap();
    let request = StreamRequest::from_request(&Request::get("/").body(()).unwrap());
    let mut body = hub.respond(request, Subscription::anonymous().topic("t").bare()).into_response().into_body();
    let mut read = async || body.frame().await.unwrap().unwrap().into_data().unwrap();
    assert_eq!(read().await, RETRY);
    for _ in 0..10 {
        let since = tokio::time::Instant::now();
        assert_eq!(read().await, ":\n");
        let took = since.elapsed();
        assert!((27 * SECOND..=30 * SECOND + Duration::from_millis(500)).contains(&took), "{took:?}");
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Torn streams

/// Returns the events of the bytes, as a browser delivers them: at each blank line, with the id of
/// the event. An incomplete event is discarded.
fn as_browser(bytes: &str) -> Vec<(String, String)> {
    let (mut delivered, mut data, mut id) = (Vec::new(), Vec::new(), String::new());
    for line in bytes.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')) {
        match line.split_once(": ") {
            _ if line.is_empty() => {
                assert!(!data.is_empty(), "a blank line without data");
                delivered.push((data.join("\n"), id.clone()));
                data.clear();
            }
            Some(("data", value)) => data.push(value.to_owned()),
            Some(("id", value)) => value.clone_into(&mut id),
            _ => assert!(line == ":" || line == "data:" || line.starts_with("retry: "), "{line}"),
        }
    }
    delivered
}

/// Returns the events of the bytes as a client delivers them that reads line by line: at each line
/// of data, with the id of the line before it.
fn line_by_line(bytes: &str) -> Vec<(String, String)> {
    let (mut delivered, mut id) = (Vec::new(), String::new());
    for line in bytes.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')) {
        match line.split_once(": ") {
            Some(("data", value)) => delivered.push((value.to_owned(), id.clone())),
            Some(("id", value)) => value.clone_into(&mut id),
            _ => {}
        }
    }
    delivered
}

/// Reads five events with a client that loses its connection after each possible byte and resumes.
async fn torn_at_every_byte(query: &str, client: fn(&str) -> Vec<(String, String)>) {
    let (hub, server) = serve(Hub::builder()).await;
    let start = hub.position().to_string();
    for n in 0..5 {
        publish(&hub, n.to_string()).await;
    }
    let read = async |id: &str| {
        let mut raw = open(&server, &format!("{query}&last_event_id={id}")).await;
        let mut text = RETRY.to_owned();
        while !client(&text).iter().any(|(data, _)| data == "4") || !text.ends_with("\n\n") {
            text.push_str(&raw.chunk().await.unwrap());
        }
        text
    };
    let whole = read(&start).await;
    for cut in 0..=whole.len() {
        let mut events = client(&whole[..cut]);
        let id = events.last().map_or(&start, |(_, id)| id).clone();
        if events.len() < 5 {
            events.extend(client(&read(&id).await));
        }
        let data: Vec<_> = events.iter().map(|(data, _)| data.as_str()).collect();
        assert_eq!(data, ["0", "1", "2", "3", "4"], "cut after {:?}", &whole[..cut]);
    }
}

#[tokio::test]
async fn torn_stream_with_ids_last_resumes_with_every_event_once() {
    torn_at_every_byte("", as_browser).await;
}

#[tokio::test]
async fn torn_stream_with_ids_first_resumes_with_every_event_once() {
    torn_at_every_byte("&ids=first", as_browser).await;
    torn_at_every_byte("&ids=first", line_by_line).await;
}

#[tokio::test]
async fn independent_parser_reads_the_events_of_each_torn_stream() {
    let (hub, server) = serve(Hub::builder()).await;
    for query in ["", "&ids=first", "&ids=none"] {
        let mut raw = open(&server, query).await;
        let one = publish(&hub, "1\n2").await;
        let text = format!("{RETRY}:\n{}", raw.chunk().await.unwrap());
        for cut in 0..=text.len() {
            let bytes = [Bytes::copy_from_slice(&text.as_bytes()[..cut])].map(Ok::<_, std::io::Error>);
            let events = Events::parse(stream::iter(bytes)).rest().await;
            let expected = if query == "&ids=none" { "" } else { &*one };
            let read: Vec<_> = events.iter().map(|event| (&*event.event, &*event.data, &*event.id)).collect();
            let whole = [("message", "1\n2", expected)];
            assert_eq!(read, if cut == text.len() { &whole[..] } else { &[] }, "{query}: {:?}", &text[..cut]);
        }
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Ends

/// The kinds of ends of an open stream that has read one event.
const ENDS: [&str; 9] =
    ["drain", "disconnect", "later", "ban", "expiry", "age", "limit", "lag with disconnect", "lag with gap"];

fn builder_for(end: &str) -> HubBuilder {
    let narrow = Retention::replay().count(4);
    // The setting has no effect on a bare stream.
    let builder = Hub::builder().stream_end(tower_sse::StreamEnd::Clean);
    match end {
        "age" => builder.max_connection_age(SECOND),
        "limit" => builder.max_connections(1, OverLimit::CloseOldest),
        "lag with disconnect" => builder.topic_retention(narrow.on_lag(LagPolicy::Disconnect)),
        "lag with gap" => builder.topic_retention(narrow),
        _ => builder,
    }
}

fn query_for(end: &str) -> &'static str {
    if end == "expiry" { "/events?topic=t&user=ada&expires_ms=1000" } else { "/events?topic=t&user=ada" }
}

/// Ends the stream. Returns the reason of the end, and whether a `retry` line comes before the
/// break.
async fn end_it(hub: &Hub, server: &Server, end: &str) -> (EndReason, bool) {
    let ada = hub.user("ada");
    match end {
        "drain" => {
            soon(hub.drain(Duration::ZERO)).await;
            (EndReason::Draining, true)
        }
        "disconnect" => {
            ada.disconnect(Disconnect::now()).await.unwrap();
            (EndReason::Disconnected, true)
        }
        "later" => {
            ada.disconnect(Disconnect::reconnect_after(10 * SECOND)).await.unwrap();
            (EndReason::Disconnected, true)
        }
        "ban" => {
            ada.disconnect(Disconnect::block_for(60 * SECOND).note("secret")).await.unwrap();
            (EndReason::Disconnected, false)
        }
        "expiry" => (EndReason::Expired, false),
        "age" => (EndReason::Age, true),
        "limit" => {
            drop(kit::get(server.addr, "/events?topic=t").await);
            (EndReason::Limit, true)
        }
        _ => {
            // The client reads slowly enough that its stream falls behind.
            for _ in 0..100 {
                publish(hub, "x".repeat(200_000)).await;
            }
            (EndReason::Lagged, false)
        }
    }
}

/// Checks that the text has whole events, each with its id, and then at most a `retry` line.
fn check_whole(text: &str, has_retry: bool, end: &str) {
    let (events, retry) = text.rsplit_once("\n\n").unwrap();
    assert_eq!(retry.starts_with("retry: ") && retry.ends_with('\n'), has_retry, "{end}: {retry:?}");
    assert!(has_retry || retry.is_empty(), "{end}: {retry:?}");
    let events = as_browser(&format!("{events}\n\n"));
    assert_eq!(events[0].0, "whole", "{end}");
    let numbers: Vec<u64> =
        events.iter().map(|(_, id)| id.rsplit('.').next().unwrap().parse::<u64>().unwrap()).collect();
    assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1), "{end}: an event after a gap: {numbers:?}");
    assert!(!text.contains("hub."), "{end}: {text}");
}

#[tokio::test]
async fn every_end_is_a_break_after_a_whole_event_over_http1() {
    for end in ENDS {
        let (hub, server) = serve(builder_for(end)).await;
        let mut raw = Raw::get(server.addr, query_for(end)).await;
        raw.head().await;
        assert_eq!(raw.chunk().await.as_deref(), Ok(RETRY));
        publish(&hub, "whole").await;
        let whole = raw.chunk().await.unwrap();
        let (reason, has_retry) = end_it(&hub, &server, end).await;
        let (rest, how) = raw.rest().await;
        assert_eq!(how, End::Break, "{end}");
        check_whole(&(whole + &rest), has_retry, end);
        until(|| hub.stats().ended(reason) == 1).await;
    }
}

#[tokio::test]
async fn every_end_is_a_reset_after_a_whole_event_over_http2() {
    for end in ENDS {
        let (hub, server) = serve(builder_for(end)).await;
        let mut sender = http2(server.addr).await;
        let request = Request::get(format!("http://test{}", query_for(end))).body(http_body_util::Full::default());
        let mut body = reply(soon(sender.send_request(request.unwrap())).await.unwrap()).body;
        publish(&hub, "whole").await;
        let mut text = String::new();
        let mut ended = None;
        let error = loop {
            if text.ends_with("\n\n") && ended.is_none() {
                ended = Some(end_it(&hub, &server, end).await);
            }
            match soon(body.frame()).await.unwrap_or_else(|| panic!("{end}: a proper end")) {
                Ok(frame) => text.push_str(std::str::from_utf8(&frame.into_data().unwrap()).unwrap()),
                Err(error) => break error,
            }
        };
        let (reason, has_retry) = ended.unwrap();
        let cause = std::error::Error::source(&error).unwrap().to_string();
        assert!(cause.contains("reset") || cause.contains("stream error"), "{end}: {cause}");
        // A server discards bytes for which the window of the stream is closed.
        if reason != EndReason::Lagged {
            check_whole(text.strip_prefix(RETRY).unwrap(), has_retry, end);
        }
        until(|| hub.stats().ended(reason) == 1).await;
    }
}

#[tokio::test]
async fn disconnect_with_a_delay_ends_with_that_retry() {
    let (hub, server) = serve(Hub::builder()).await;
    let raw = open(&server, "&user=ada").await;
    hub.user("ada").disconnect(Disconnect::reconnect_after(100 * SECOND)).await.unwrap();
    let (text, end) = raw.rest().await;
    let retry: u64 = text.strip_prefix("retry: ").and_then(|rest| rest.strip_suffix('\n')).unwrap().parse().unwrap();
    assert!((100_000..=200_000).contains(&retry) && end == End::Break, "{text:?}");
}

#[tokio::test]
async fn banned_user_gets_204() {
    let (hub, server) = serve(Hub::builder()).await;
    let raw = open(&server, "&user=ada").await;
    hub.user("ada").disconnect(Disconnect::block_for(60 * SECOND)).await.unwrap();
    assert_eq!(raw.rest().await, (String::new(), End::Break));
    assert_eq!(request(&server, Method::GET, "&user=ada", &[]).await.status, 204);
}

#[tokio::test]
async fn in_process_stream_of_a_bare_subscription_has_the_usual_items() {
    let hub = Hub::builder().topic_retention(Retention::replay().count(2)).build().unwrap();
    let bare = || Subscription::anonymous().topic("t").bare().ids(Ids::None);
    let mut page = hub.subscribe(bare(), None).unwrap();
    assert!(matches!(page.next().await, Some(SubscriberItem::Live(_))));
    for n in 0..3 {
        publish(&hub, n.to_string()).await;
    }
    assert!(matches!(page.next().await, Some(SubscriberItem::Gap { reason: GapReason::Lagged, .. })));
    assert!(matches!(page.next().await, Some(SubscriberItem::Event(event)) if event.data == "1"));
    assert!(matches!(page.next().await, Some(SubscriberItem::Event(event)) if event.data == "2"));
    hub.drain(Duration::ZERO).await;
    assert_eq!(page.next().await, Some(SubscriberItem::End(EndReason::Draining)));
    assert_eq!(page.next().await, None);
}

// ---------------------------------------------------------------------------------------------------------------------
// Cursors

#[tokio::test]
async fn cursor_from_which_the_hub_cannot_resume_gets_404() {
    let (hub, server) = serve(Hub::builder().topic_retention(Retention::replay().count(2))).await;
    let start = hub.position().to_string();
    for n in 0..4 {
        publish(&hub, n.to_string()).await;
    }
    let (epoch, sequence) = start.rsplit_once('.').unwrap();
    let ahead = format!("{epoch}.{}", sequence.parse::<u64>().unwrap() + 9);
    for cursor in ["garbage", "1.abc.3", "0.1", &ahead, &start] {
        for method in [Method::GET, Method::POST] {
            let by_header = request(&server, method.clone(), "", &[("last-event-id", cursor)]).await;
            assert_eq!(by_header.status, 404, "{cursor}");
            assert_eq!(by_header.header("content-type"), "text/plain; charset=utf-8");
            let by_query = request(&server, method, &format!("&last_event_id={cursor}"), &[]).await;
            assert_eq!(by_query.status, 404, "{cursor}");
        }
    }
    assert_eq!((hub.stats().connections, hub.connections().len()), (0, 0));
    assert_eq!(request(&server, Method::HEAD, "&last_event_id=garbage", &[]).await.status, 404);
    // Without a history, the subscription ignores the cursor.
    assert_eq!(request(&server, Method::GET, "&start=none&last_event_id=garbage", &[]).await.status, 200);
}

#[tokio::test]
async fn broken_client_that_lagged_gets_404_and_not_a_second_break() {
    let (hub, server) = serve(Hub::builder().topic_retention(Retention::replay().count(2))).await;
    let mut raw = open(&server, "").await;
    let id = publish(&hub, "0").await;
    raw.chunk().await.unwrap();
    for n in 1..4 {
        publish(&hub, n.to_string()).await;
    }
    assert_eq!(request(&server, Method::GET, "", &[("last-event-id", &id)]).await.status, 404);
}

#[tokio::test]
async fn start_without_a_cursor_begins_with_the_retained_events() {
    let (hub, server) = serve(Hub::builder().topic_retention(Retention::replay().count(2))).await;
    for n in 0..4 {
        publish(&hub, n.to_string()).await;
    }
    let mut raw = open(&server, "&start=oldest&ids=none").await;
    assert_eq!(raw.bytes(18).await, "data: 2\n\ndata: 3\n\n");
    publish(&hub, "4").await;
    assert_eq!(raw.chunk().await.as_deref(), Ok("data: 4\n\n"));
}

// ---------------------------------------------------------------------------------------------------------------------
// Refusals

#[tokio::test]
async fn refusal_for_now_without_a_cursor_is_503_with_retry_after() {
    for (builder, reason) in [
        (Hub::builder(), RefusalReason::Draining),
        (Hub::builder().max_connections(1, OverLimit::Refuse), RefusalReason::Limit),
        (Hub::builder().max_connects_per_second(1), RefusalReason::Limit),
    ] {
        for retry in [Duration::from_millis(100), 20 * SECOND] {
            let (hub, server) = serve(builder.clone().retry(retry)).await;
            let _first = kit::get(server.addr, "/events?topic=t").await;
            if reason == RefusalReason::Draining {
                soon(hub.drain(Duration::ZERO)).await;
            }
            for method in [Method::POST, Method::GET] {
                let reply = request(&server, method, "", &[("accept", "application/json")]).await;
                assert_eq!(reply.status, 503, "{reason}");
                let after: u64 = reply.header("retry-after").parse().unwrap();
                assert!((retry.as_secs().max(1)..=61).contains(&after), "{reason}: {after}");
                assert!(!reply.text().await.contains("hub."));
            }
            assert_eq!(hub.stats().refused(reason), 2);
        }
    }
}

#[tokio::test]
async fn refusal_for_now_of_a_resume_or_an_event_source_is_a_retry_line_and_a_break() {
    let (hub, server) = serve(Hub::builder()).await;
    let id = publish(&hub, "x").await;
    soon(hub.drain(Duration::ZERO)).await;
    for (method, headers) in [
        ("POST", format!("last-event-id: {id}\r\naccept: application/json\r\ncontent-length: 0\r\n")),
        ("GET", format!("last-event-id: {id}\r\n")),
        ("GET", "accept: text/event-stream\r\n".to_owned()),
    ] {
        let mut raw = Raw::open(server.addr, method, "/events?topic=t", &headers).await;
        let head = raw.head().await;
        assert_eq!(head[0], "http/1.1 200 ok", "{headers}");
        assert!(head.contains(&"content-type: text/event-stream".to_owned()), "{head:?}");
        let (text, end) = raw.rest().await;
        let retry = text.strip_prefix("retry: ").and_then(|rest| rest.strip_suffix('\n')).unwrap();
        assert!((2_000..=6_000).contains(&retry.parse::<u32>().unwrap()), "{retry}");
        assert_eq!(end, End::Break, "{headers}");
    }
}

#[tokio::test]
async fn final_refusals_have_the_usual_status() {
    let (_hub, server) = serve(Hub::builder().max_topics(1)).await;
    assert_eq!(request(&server, Method::POST, "&topic=u", &[]).await.status, 400);
}

// ---------------------------------------------------------------------------------------------------------------------
// Methods

#[tokio::test]
async fn handler_responds_to_any_method_and_ignores_accept() {
    let (hub, server) = serve(Hub::builder()).await;
    for method in ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "QUERY", "GET"] {
        let headers = "accept: application/json\r\ncontent-length: 0\r\n";
        let mut raw = Raw::open(server.addr, method, "/events?topic=t&ids=none", headers).await;
        assert_eq!(raw.head().await[0], "http/1.1 200 ok", "{method}");
        assert_eq!(raw.chunk().await.as_deref(), Ok(RETRY), "{method}");
        publish(&hub, method).await;
        assert_eq!(raw.chunk().await, Ok(format!("data: {method}\n\n")));
    }
}

#[tokio::test]
async fn handler_extracts_the_body_after_the_request() {
    let hub = Hub::builder().build().unwrap();
    let answer = async |State(hub): State<Hub>, request: StreamRequest, text: String| {
        hub.topic("t").publish(Event::unnamed(text)).await.unwrap();
        hub.respond(request, Subscription::anonymous().topic("t").start(Start::Last(1)).bare().ids(Ids::None))
    };
    let server =
        Server::start(&hub, Router::new().route("/", axum::routing::post(answer)).with_state(hub.clone())).await;
    let reply = send(server.addr, Request::post("/").body("Why?").unwrap()).await;
    assert_eq!(reply.events().next().await.data, "Why?");
}

#[tokio::test]
async fn head_request_opens_no_bare_stream() {
    let (hub, server) = serve(Hub::builder()).await;
    let reply = request(&server, Method::HEAD, "", &[]).await;
    assert_eq!((reply.status.as_u16(), reply.header("content-type")), (200, "text/event-stream"));
    assert_eq!(reply.text().await, "");
    assert_eq!(hub.stats().connected, 0);
}

#[tokio::test]
async fn post_from_another_origin_is_refused() {
    let (hub, server) = serve(Hub::builder()).await;
    let reply = request(&server, Method::POST, "", &[("origin", "https://other.example")]).await;
    assert_eq!(reply.status, 403);
    let reply = request(&server, Method::POST, "", &[("sec-fetch-site", "cross-site")]).await;
    assert_eq!((reply.status.as_u16(), hub.stats().connected), (403, 0));
}

/// Layer and endpoint know the subscription only after the access hook.
#[tokio::test]
async fn endpoint_serves_bare_streams_and_refuses_other_methods() {
    let hub = Hub::builder().max_connections(1, OverLimit::Refuse).build().unwrap();
    let app = Router::new().route_service("/events", hub.endpoint(kit::access::by_query));
    let server = Server::start(&hub, app).await;
    let mut raw = open(&server, "&bare").await;
    let id = publish(&hub, "1").await;
    assert_eq!(raw.chunk().await, Ok(format!("data: 1\nid: {id}\n\n")));
    assert_eq!(request(&server, Method::GET, "&bare", &[]).await.status, 503);
    assert_eq!(request(&server, Method::POST, "&bare", &[]).await.status, 405);
    assert_eq!(request(&server, Method::GET, "&bare", &[("accept", "application/json")]).await.status, 406);
}
