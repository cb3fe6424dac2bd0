//! The rules of the SSE standard that concern a server. The first part checks how browsers read the
//! streams of a hub. The second part uses hand-written streams, and checks the behavior of browsers
//! that the hub relies on.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Path;
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::get;
use bytes::Bytes;
use futures::{StreamExt, stream};
use http::{StatusCode, header};
use serde_json::json;
use tower_sse::{Disconnect, Event, Hub, HubBuilder, StreamEnd, StreamRequest, Subscription};

use crate::driver::browser;
use crate::kit::until;
use crate::site::{Site, public_stream};
use crate::source::{CLOSED, CONNECTING, OPEN};

fn quick() -> HubBuilder {
    Hub::builder().retry(Duration::from_millis(100))
}

// ---------------------------------------------------------------------------------------------------------------------
// Streams of the hub

#[tokio::test]
async fn text_arrives_as_it_was_published() {
    let Some(browser) = browser() else { return };
    let hub = quick().build().unwrap();
    let site = Site::start(&hub, public_stream(&hub)).await;
    let context = browser.context(json!({})).await;
    let page = context.page(&site.url()).await;
    let source = page.listen("/events", &["text"]).await;
    source.saw("hub.live", 1).await;

    let long = "é".repeat(100_000);
    let texts = [
        // Every kind of line break arrives as LF, and none is lost at either end.
        ("a\nb\rc\r\nd", "a\nb\nc\nd"),
        ("\n", "\n"),
        ("\n\n x \n", "\n\n x \n"),
        ("\r\n\r", "\n\n"),
        ("", ""),
        // Data that looks like a field stays data, and spaces stay.
        (" one space", " one space"),
        ("  two", "  two"),
        (":", ":"),
        ("id: 7", "id: 7"),
        ("retry: 1", "retry: 1"),
        ("a\nid: 7\n\ndata: b", "a\nid: 7\n\ndata: b"),
        ("\tand a tab\t", "\tand a tab\t"),
        // UTF-8, also with a byte order mark, and with characters at which some languages split
        // lines.
        ("\u{feff}mark", "\u{feff}mark"),
        ("a\u{feff}", "a\u{feff}"),
        ("żółw 木 🐢 \u{1f469}\u{200d}\u{1f680}", "żółw 木 🐢 \u{1f469}\u{200d}\u{1f680}"),
        ("\u{0}\u{b}\u{c}\u{85}\u{2028}\u{2029}", "\u{0}\u{b}\u{c}\u{85}\u{2028}\u{2029}"),
        (&*long, &*long),
    ];
    for (sent, _) in texts {
        hub.topic("news").publish(Event::new("text", sent.to_owned())).await.unwrap();
    }
    source.saw("text", texts.len()).await;
    for (event, (_, expected)) in source.all("text").await.into_iter().zip(texts) {
        assert!(event.data.as_deref() == Some(expected), "{:.80?} and not {expected:.80?}", event.data);
    }
    assert_eq!(source.state().await, OPEN);
}

#[tokio::test]
async fn named_events_reach_only_listeners_of_that_name() {
    let Some(browser) = browser() else { return };
    let hub = quick().build().unwrap();
    let site = Site::start(&hub, public_stream(&hub)).await;
    let context = browser.context(json!({})).await;
    let page = context.page(&site.url()).await;
    let source = page.listen("/events", &["a b:c", "имя", "document.deleted"]).await;
    source.saw("hub.live", 1).await;
    page.eval("streams[0].source.onmessage = event => { globalThis.unnamed = event.data; }").await;
    let publish = async |event| hub.topic("news").publish(event).await.unwrap().connections;
    publish(Event::new("a b:c", "1")).await;
    publish(Event::new("no.listener", "2")).await;
    publish(Event::new("имя", "3")).await;
    publish(Event::unnamed("4")).await;
    publish(Event::new("message", "5")).await;
    publish(Event::new("document.deleted", "6")).await;
    source.saw("document.deleted", 1).await;
    let log = source.log().await;
    let own: Vec<_> = log.iter().skip(3).map(|event| (&*event.name, event.data.as_deref().unwrap())).collect();
    assert_eq!(own, [("a b:c", "1"), ("имя", "3"), ("message", "4"), ("message", "5"), ("document.deleted", "6")]);
    assert_eq!(page.eval("unnamed").await, "5");
}

#[tokio::test]
async fn scripts_do_not_see_heartbeats() {
    let Some(browser) = browser() else { return };
    let hub = quick().heartbeat(Duration::from_millis(50)).build().unwrap();
    let site = Site::start(&hub, public_stream(&hub)).await;
    let context = browser.context(json!({})).await;
    let page = context.page(&site.url()).await;
    let source = page.listen("/events", &["news"]).await;
    source.saw("hub.live", 1).await;
    // The same stream as bytes, until three heartbeats have arrived.
    let comments = "(async () => {
        const reader = (await fetch('/events')).body.pipeThrough(new TextDecoderStream()).getReader();
        let text = '';
        while (text.split('\\n').filter(line => line.startsWith(':')).length < 3) text += (await reader.read()).value;
        await reader.cancel();
        return text;
    })()";
    let text = page.eval(comments).await;
    assert!(text.as_str().unwrap().ends_with(":\n"), "{text}");
    hub.topic("news").publish(Event::new("news", "after heartbeats")).await.unwrap();
    source.saw("news", 1).await;
    // On a slow machine another `hub.live` brings a fresh id after ten heartbeats, before or after
    // the event.
    let mut names: Vec<String> = Vec::new();
    for name in source.names().await {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    assert_eq!(names, ["open", "hub.hello", "hub.live", "news"]);
    assert_eq!(source.data("news").await, ["after heartbeats"]);
}

#[tokio::test]
async fn an_end_of_either_kind_makes_an_event_source_reconnect_with_its_last_id() {
    let Some(browser) = browser() else { return };
    for end in [StreamEnd::Clean, StreamEnd::Abort] {
        let hub = quick().stream_end(end).build().unwrap();
        let site = Site::start(&hub, public_stream(&hub)).await;
        let context = browser.context(json!({})).await;
        let page = context.page(&site.url()).await;
        let source = page.listen("/events", &["news"]).await;
        source.saw("hub.live", 1).await;
        hub.topic("news").publish(Event::new("news", "one")).await.unwrap();
        source.saw("news", 1).await;
        hub.user("ada").disconnect(Disconnect::now()).await.unwrap();
        source.saw("hub.live", 2).await;
        // After an error, a browser may discard bytes that it has not read yet: here `hub.bye`.
        let log: Vec<_> = source.log().await.into_iter().filter(|seen| seen.name != "hub.bye").collect();
        let names: Vec<_> = log.iter().map(|seen| &*seen.name).collect();
        assert_eq!(
            names,
            ["open", "hub.hello", "hub.live", "news", "error", "open", "hub.hello", "hub.live"],
            "{end:?}"
        );
        assert_eq!((log[4].state, log[5].state), (CONNECTING, OPEN));
        let goodbyes = source.all("hub.bye").await;
        assert!(end == StreamEnd::Abort || goodbyes.len() == 1);
        // Events without an id keep the id of the event before.
        assert!(goodbyes.iter().all(|goodbye| goodbye.id == log[3].id));
        let requests = site.requests();
        assert_eq!(requests[0].header("last-event-id"), None);
        assert_eq!(requests[1].header("last-event-id"), log[3].id.as_deref());
        for request in requests {
            assert_eq!(request.header("accept"), Some("text/event-stream"));
            assert_eq!(request.header("cache-control"), Some("no-cache"));
        }
    }
}

#[tokio::test]
async fn the_last_id_takes_precedence_over_the_id_in_the_address() {
    let Some(browser) = browser() else { return };
    let hub = quick().build().unwrap();
    let site = Site::start(&hub, public_stream(&hub)).await;
    let context = browser.context(json!({})).await;
    let page = context.page(&site.url()).await;
    let from = hub.position();
    hub.topic("news").publish(Event::new("news", "one")).await.unwrap();
    let source = page.listen(&format!("/events?last_event_id={from}"), &["news"]).await;
    source.saw("hub.live", 1).await;
    hub.user("ada").disconnect(Disconnect::now()).await.unwrap();
    source.saw("hub.live", 2).await;
    assert_eq!(source.data("news").await, ["one"]);
    let hellos = source.all("hub.hello").await;
    assert!(hellos.iter().all(|hello| hello.json()["cursor"] == "resuming"));
}

#[tokio::test]
async fn a_browser_accepts_the_response_head_and_rejects_a_wrong_address() {
    let Some(browser) = browser() else { return };
    let hub = quick().build().unwrap();
    let site = Site::start(&hub, public_stream(&hub)).await;
    let context = browser.context(json!({})).await;
    let page = context.page(&site.url()).await;
    let head = page.eval("fetch('/events', { method: 'HEAD' }).then(r => [r.status, r.headers.get('content-type')])");
    assert_eq!(head.await, json!([200, "text/event-stream"]));
    // An HTML page, as from an application that answers every path with its page.
    let source = page.listen("/other", &[]).await;
    source.reaches(CLOSED).await;
    assert_eq!(source.names().await, ["error"]);
    // A request that accepts only another content type gets `406`.
    let by_fetch = "fetch('/events', { headers: { accept: 'application/json' } }).then(r => r.status)";
    assert_eq!(page.eval(by_fetch).await, 406);
}

#[tokio::test]
async fn a_page_that_closes_its_stream_or_is_closed_is_disconnected() {
    let Some(browser) = browser() else { return };
    let hub = quick().build().unwrap();
    let site = Site::start(&hub, public_stream(&hub)).await;
    let context = browser.context(json!({})).await;
    let (first, second) = (context.page(&site.url()).await, context.page(&site.url()).await);
    let source = first.listen("/events", &["news"]).await;
    source.saw("hub.live", 1).await;
    second.listen("/events", &[]).await.saw("hub.live", 1).await;
    assert_eq!(hub.stats().connections, 2);
    source.close().await;
    until(|| hub.stats().connections == 1).await;
    assert_eq!(source.state().await, CLOSED);
    // The page gets no error event, because it closed the stream itself.
    assert_eq!(source.names().await, ["open", "hub.hello", "hub.live"]);
    second.call("close", json!([])).await;
    until(|| hub.stats().connections == 0).await;
    assert_eq!(site.requests().len(), 2);
}

#[tokio::test]
async fn no_event_arrives_after_a_listener_has_closed_the_stream() {
    let Some(browser) = browser() else { return };
    let hub = quick().build().unwrap();
    let site = Site::start(&hub, public_stream(&hub)).await;
    let context = browser.context(json!({})).await;
    let page = context.page(&site.url()).await;
    let source = page.listen("/events", &["news"]).await;
    source.saw("hub.live", 1).await;
    page.eval("streams[0].source.addEventListener('news', event => event.target.close())").await;
    // In one batch, so that the events arrive together.
    let news = ["one", "two", "three"].map(|data| (hub.topic("news"), Event::new("news", data)));
    for published in hub.publish_many(news).await {
        published.unwrap();
    }
    source.reaches(CLOSED).await;
    until(|| hub.stats().connections == 0).await;
    assert_eq!(source.data("news").await, ["one"]);
}

// ---------------------------------------------------------------------------------------------------------------------
// Behavior of browsers that the hub relies on

/// Returns a stream of these pieces, each in a separate write.
fn raw(pieces: &'static [&'static [u8]]) -> Response {
    let pieces = stream::iter(pieces).then(async |piece| {
        // Otherwise the server might write it together with the next.
        tokio::time::sleep(Duration::from_millis(1)).await;
        Ok::<_, Infallible>(Bytes::from_static(piece))
    });
    ([(header::CONTENT_TYPE, "text/event-stream")], Body::from_stream(pieces)).into_response()
}

/// Answers the first request with such a stream, and later requests with `then`.
fn first_raw(
    pieces: &'static [&'static [u8]],
    then: impl Fn(StreamRequest) -> Response + Clone + Send + Sync + 'static,
) -> Router {
    let turns = Arc::new(AtomicUsize::new(0));
    let serve = move |request: StreamRequest| {
        let is_first = turns.fetch_add(1, Ordering::Relaxed) == 0;
        std::future::ready(if is_first { raw(pieces) } else { then(request) })
    };
    Router::new().route("/events", get(serve))
}

fn stop(_: StreamRequest) -> Response {
    StatusCode::NO_CONTENT.into_response()
}

#[tokio::test]
async fn lines_fields_and_ids_are_read_as_in_the_standard() {
    let Some(browser) = browser() else { return };
    const PIECES: &[&[u8]] = &[
        "\u{feff}data: after a mark\n\n".as_bytes(),
        ":comment\n:\ndata:no space\r\rdata:  one of two\r\n\r\n".as_bytes(),
        // A CRLF and a character that are split into two pieces.
        b"data: split\r",
        b"\ndata: \xc3",
        b"\xa9\n\n",
        b"data\n\ndata\ndata\n\n",
        b"event: named\ndata: x\n\ndata: not any more\n\n",
        // Without data there is no event, but the id counts.
        b"event: named\n\nid: 7\n\ndata: seven\n\n",
        b"id: a\0b\ndata: still seven\n\n",
        b"unknown: y\nDATA: no\n data: no\ndata: known\n\n",
        // This event is not dispatched, and its id does not count, because the stream ends within
        // it.
        b"id: 8\ndata: cut off\n",
    ];
    let hub = quick().build().unwrap();
    let site = Site::start(&hub, first_raw(PIECES, stop)).await;
    let context = browser.context(json!({})).await;
    let page = context.page(&site.url()).await;
    let source = page.listen("/events", &["named"]).await;
    source.reaches(CLOSED).await;
    let log = source.log().await;
    let own: Vec<_> =
        log.iter().filter_map(|event| Some((&*event.name, event.data.as_deref()?, event.id.as_deref()?))).collect();
    assert_eq!(
        own,
        [
            ("message", "after a mark", ""),
            ("message", "no space", ""),
            ("message", " one of two", ""),
            ("message", "split\né", ""),
            ("message", "", ""),
            ("message", "\n", ""),
            ("named", "x", ""),
            ("message", "not any more", ""),
            ("message", "seven", "7"),
            ("message", "still seven", "7"),
            ("message", "known", "7"),
        ]
    );
    assert_eq!(site.requests()[1].header("last-event-id"), Some("7"));
}

#[tokio::test]
async fn an_empty_id_makes_an_event_source_reconnect_without_an_id() {
    let Some(browser) = browser() else { return };
    const PIECES: &[&[u8]] = &[b"id: 1.0000000000000001.7\ndata: x\n\nid\ndata: y\n\nretry: 100\n\n"];
    let hub = quick().build().unwrap();
    let then = hub.clone();
    let app = first_raw(PIECES, move |request| {
        then.respond(request, Subscription::anonymous()).into_response().map(Body::new)
    });
    let site = Site::start(&hub, app).await;
    let context = browser.context(json!({})).await;
    let page = context.page(&site.url()).await;
    let source = page.listen("/events", &[]).await;
    source.saw("hub.live", 1).await;
    assert_eq!(site.requests()[1].header("last-event-id"), None);
    assert_eq!(source.all("hub.hello").await[0].json()["cursor"], "fresh");
    assert!(source.all("hub.gap").await.is_empty());
}

#[tokio::test]
async fn a_retry_that_is_not_a_number_is_ignored() {
    let Some(browser) = browser() else { return };
    const PIECES: &[&[u8]] = &[b"retry: 3300\n\n", b"retry: soon\n\nretry: 1e9\n\nretry: -1\n\n"];
    let hub = quick().build().unwrap();
    let site = Site::start(&hub, first_raw(PIECES, stop)).await;
    let context = browser.context(json!({})).await;
    let page = context.page(&site.url()).await;
    let source = page.listen("/events", &[]).await;
    source.reaches(CLOSED).await;
    let errors = source.all("error").await;
    let waited = errors[1].at - errors[0].at;
    // The default delay is 3 s, and the timer starts before the `error` event.
    assert!(waited > 3280.0, "{waited}");
}

#[tokio::test]
async fn other_content_types_and_statuses_end_an_event_source() {
    let Some(browser) = browser() else { return };
    let hub = quick().build().unwrap();
    let served = async |Path((status, kind)): Path<(u16, String)>| {
        let status = StatusCode::from_u16(status).unwrap();
        (status, [(header::CONTENT_TYPE, kind)], "data: x\n\n").into_response()
    };
    let app = public_stream(&hub)
        .route("/as/{status}/{kind}", get(served))
        .route("/elsewhere", get(Redirect::temporary("/events")))
        .route("/sign-in", get(Redirect::to("/")));
    let site = Site::start(&hub, app).await;
    let context = browser.context(json!({})).await;
    let page = context.page(&site.url()).await;
    for (status, kind) in [
        (200, "text/html"),
        (200, "text/plain"),
        (200, "application/json"),
        (200, "text/event-streams"),
        (200, "text/event-stream;charset=iso-8859-1"),
        (205, "text/event-stream"),
        (404, "text/event-stream"),
        (429, "text/event-stream"),
        (502, "text/event-stream"),
        (503, "text/event-stream"),
    ] {
        let source = page.listen(&format!("/as/{status}/{}", kind.replace('/', "%2F")), &[]).await;
        source.reaches(CLOSED).await;
        assert_eq!(source.names().await, ["error"], "{status} {kind}");
    }
    for kind in ["text/event-stream", "text/event-stream;charset=utf-8", "TEXT/EVENT-STREAM;x=y"] {
        let source = page.listen(&format!("/as/200/{}", kind.replace('/', "%2F")), &[]).await;
        source.saw("message", 1).await;
        source.close().await;
    }

    // An application that redirects to a sign-in page.
    let source = page.listen("/sign-in", &[]).await;
    source.reaches(CLOSED).await;
    assert_eq!(source.names().await, ["error"]);
    // After a redirect to a stream, the reconnect has the last id, whichever of the two addresses
    // gets the request.
    let source = page.listen("/elsewhere", &[]).await;
    source.saw("hub.live", 1).await;
    hub.user("ada").disconnect(Disconnect::now()).await.unwrap();
    source.saw("hub.live", 2).await;
    let requests = site.requests();
    assert_eq!((requests.len(), requests[1].header("last-event-id").is_some()), (2, true));
}
