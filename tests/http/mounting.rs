//! The mounts of a hub: all of them follow the same rules, over every version of HTTP.

use std::any::Any;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{FromRef, State};
use axum::routing::{get, post};
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio_util::io::ReaderStream;
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_sse::{
    Access, EndReason, Event, EventStream, Hub, HubBuilder, IntoAccess, Public, Refusal, RefusalReason, SseLayer,
    StreamRequest, Subscription, TopicFilter,
};

use crate::kit::{self, Events, Reply, Server, http2, reply, send, soon, subscribe, until};

// ---------------------------------------------------------------------------------------------------------------------
// The mounts

/// The decision of all mounts in this file: `?as=…` selects a refusal, otherwise `Public` decides.
fn decide(request: &StreamRequest) -> Result<Subscription, Refusal> {
    match request.query_values("as").next().as_deref() {
        Some("anonymous") => Err(Refusal::unauthorized()),
        Some("stranger") => Err(Refusal::forbidden()),
        Some("busy") => Err(Refusal::retry_later(RefusalReason::Busy)),
        Some("busy-10s") => Err(Refusal::retry_later(RefusalReason::Busy).retry(Duration::from_secs(10))),
        Some("banned") => Err(Refusal::gone()),
        _ => Public::topics(TopicFilter::prefix("public/")).subscription(request),
    }
}

async fn access(request: StreamRequest) -> Result<Subscription, Refusal> {
    decide(&request)
}

async fn handler(State(hub): State<Hub>, request: StreamRequest) -> EventStream {
    match decide(&request) {
        Ok(subscription) => hub.respond(request, subscription),
        Err(refusal) => hub.refuse(refusal),
    }
}

/// A hub that serves `/events` by one of the mounts, and its server. All mounts but the endpoint on
/// hyper have `/other` too.
struct Mounted {
    name: &'static str,
    hub: Hub,
    addr: SocketAddr,
    _server: Box<dyn Any + Send>,
}

/// A tower service on hyper alone, HTTP/1 and HTTP/2.
struct Plain {
    addr: SocketAddr,
    task: JoinHandle<()>,
}

impl Plain {
    async fn start<S, B>(hub: &Hub, service: S) -> Self
    where
        S: hyper::service::Service<Request<Incoming>, Response = Response<B>> + Clone + Send + 'static,
        S::Future: Send,
        S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let hub = hub.clone();
        let task = tokio::spawn(async move {
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                let io = if kit::takeover() { hub.io(tcp).take_over() } else { hub.io(tcp) };
                let (io, service) = (TokioIo::new(io), service.clone());
                tokio::spawn(async move {
                    let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                    drop(builder.serve_connection(io, service).await);
                });
            }
        });
        Self { addr, task }
    }
}

impl Drop for Plain {
    fn drop(&mut self) {
        self.task.abort();
    }
}

const LAYERS: [&str; 2] = ["layer on axum", "layer on hyper"];
const WITH_HOOK: [&str; 4] = ["layer on axum", "layer on hyper", "endpoint on axum", "endpoint on hyper"];
const ALL: [&str; 5] = ["layer on axum", "layer on hyper", "endpoint on axum", "endpoint on hyper", "handler"];

async fn mount<M, A: IntoAccess<M>>(name: &'static str, hub: Hub, access: A) -> Mounted {
    let other = Router::new().route("/other", get(async || "other"));
    let (addr, server): (_, Box<dyn Any + Send>) = match name {
        "layer on axum" => {
            let inner =
                async |method: Method| if method == Method::OPTIONS { Ok("inner") } else { Err(StatusCode::NOT_FOUND) };
            let app = other.fallback(inner).layer(hub.layer("/events", access));
            let server = Server::start(&hub, app).await;
            (server.addr, Box::new(server))
        }
        "layer on hyper" => {
            let inner = service_fn(async |request: Request<Incoming>| {
                let text = if request.method() == Method::OPTIONS { "inner" } else { "other" };
                Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(text))))
            });
            let server = Plain::start(&hub, TowerToHyperService::new(hub.layer("/events", access).layer(inner))).await;
            (server.addr, Box::new(server))
        }
        "endpoint on axum" => {
            let server = Server::start(&hub, other.route_service("/events", hub.endpoint(access))).await;
            (server.addr, Box::new(server))
        }
        "endpoint on hyper" => {
            let server = Plain::start(&hub, TowerToHyperService::new(hub.endpoint(access))).await;
            (server.addr, Box::new(server))
        }
        "handler" => {
            let events = Router::new().route("/events", get(handler)).with_state(hub.clone());
            let server = Server::start(&hub, other.merge(events)).await;
            (server.addr, Box::new(server))
        }
        unknown => panic!("no such mount: {unknown}"),
    };
    Mounted { name, hub, addr, _server: server }
}

async fn everywhere(builder: HubBuilder) -> Vec<Mounted> {
    let mut all = Vec::new();
    for name in ALL {
        all.push(mount(name, builder.clone().build().unwrap(), access).await);
    }
    all
}

impl Mounted {
    async fn get(&self, query: &str) -> Reply {
        kit::get(self.addr, &format!("/events{query}")).await
    }

    async fn send(&self, method: &str, query: &str, headers: &[(&str, &str)]) -> Reply {
        let mut request = Request::builder().method(method).uri(format!("/events{query}"));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        send(self.addr, request.body("").unwrap()).await
    }
}

/// Returns the headers without those that depend on the time or on the framing of the connection.
fn headers(reply: &Reply) -> BTreeMap<String, String> {
    let excluded = ["date", "transfer-encoding", "content-length", "connection"];
    let pairs = reply.headers.iter().map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned()));
    pairs.filter(|(name, _)| !excluded.contains(&name.as_str())).collect()
}

fn json(data: &str) -> serde_json::Value {
    serde_json::from_str(data).unwrap()
}

/// Asserts that the response is one `hub.refused` with a `retry`, and ends properly. Returns the
/// `retry`.
async fn retryable_refusal(reply: Reply, reason: &str, name: &str) -> Duration {
    assert_eq!(reply.status, 200, "{name}");
    let events = reply.events().rest().await;
    let [refused] = &events[..] else { panic!("{name}: {events:?}") };
    assert_eq!(refused.event, "hub.refused", "{name}");
    assert_eq!(refused.id, "", "{name}");
    let data = json(&refused.data);
    assert_eq!(data["reason"], reason, "{name}");
    let retry = refused.retry.expect("no retry for browsers");
    assert_eq!(u128::from(data["retry_ms"].as_u64().unwrap()), retry.as_millis(), "{name}");
    retry
}

// ---------------------------------------------------------------------------------------------------------------------
// The rules

#[tokio::test]
async fn stream_opens_and_an_event_arrives() {
    for mounted in everywhere(Hub::builder()).await {
        let name = mounted.name;
        let mut events = mounted.get("?topic=public/a").await.events();
        let hello = events.next().await;
        assert_eq!(hello.event, "hub.hello", "{name}");
        assert_eq!(json(&hello.data)["topics"], serde_json::json!(["public/a"]), "{name}");
        events.caught_up().await;
        let published = mounted.hub.topic("public/a").publish(Event::new("news", "Bridge closed")).await.unwrap();
        assert_eq!(published.connections, 1, "{name}");
        let event = events.next().await;
        assert_eq!((event.event.as_str(), event.data.as_str()), ("news", "Bridge closed"), "{name}");
        assert_eq!(event.id, published.position.to_string(), "{name}");
        drop(events);
        until(|| mounted.hub.stats().connections == 0).await;
        assert_eq!(mounted.hub.stats().ended(EndReason::Client), 1, "{name}");
    }
}

#[tokio::test]
async fn other_routes_answer_beside_the_stream() {
    for mounted in everywhere(Hub::builder()).await {
        if mounted.name != "endpoint on hyper" {
            let reply = kit::get(mounted.addr, "/other").await;
            assert_eq!((reply.status.as_u16(), reply.text().await.as_str()), (200, "other"), "{}", mounted.name);
        }
    }
}

#[tokio::test]
async fn every_mount_sends_the_same_head() {
    let mut heads = Vec::new();
    for mounted in everywhere(Hub::builder()).await {
        heads.push((mounted.name, headers(&mounted.get("").await)));
    }
    for (name, head) in &heads {
        assert_eq!(*head, heads[0].1, "{name}");
    }
}

#[tokio::test]
async fn head_request_gets_the_head_of_a_stream_and_opens_none() {
    for mounted in everywhere(Hub::builder()).await {
        let name = mounted.name;
        let head = mounted.send("HEAD", "?topic=public/a", &[]).await;
        assert_eq!(head.status, 200, "{name}");
        assert_eq!(head.header("content-length"), "", "{name}: a stream has no length");
        assert_eq!(mounted.hub.topic("public/a").publish(Event::unnamed("")).await.unwrap().connections, 0, "{name}");
        let streaming = mounted.get("?topic=public/a").await;
        assert_eq!(headers(&head), headers(&streaming), "{name}");
        assert_eq!(head.text().await, "", "{name}");
        assert_eq!(mounted.hub.stats().connected, 1, "{name}: only the GET");
    }
}

#[tokio::test]
async fn head_request_is_refused_like_get() {
    for mounted in everywhere(Hub::builder()).await {
        for (query, status) in
            [("?as=anonymous", 401), ("?as=stranger", 403), ("?as=banned", 204), ("?topic=secret", 403)]
        {
            assert_eq!(mounted.send("HEAD", query, &[]).await.status, status, "{}: {query}", mounted.name);
        }
    }
}

#[tokio::test]
async fn endpoint_and_handler_answer_other_methods_with_405_and_allow() {
    for mounted in everywhere(Hub::builder()).await.iter().filter(|mounted| !LAYERS.contains(&mounted.name)) {
        for method in ["POST", "PUT", "DELETE", "PATCH"] {
            let reply = mounted.send(method, "?topic=public/a", &[]).await;
            let name = format!("{method}, {}", mounted.name);
            assert_eq!(reply.status, 405, "{name}");
            let mut allowed: Vec<_> = reply.header("allow").split(',').map(str::trim).collect();
            allowed.sort_unstable();
            assert_eq!(allowed, ["GET", "HEAD"], "{name}");
        }
        assert_eq!(mounted.hub.stats().connected, 0, "{}", mounted.name);
    }
}

/// An application that handles `POST /events` itself, for example to publish.
#[tokio::test]
async fn layer_passes_other_methods_on_its_path_to_the_inner_service() {
    let hub = Hub::builder().build().unwrap();
    let inner = Router::new()
        .route("/events", post(async |body: String| format!("posted {body}")))
        .route("/other", get(async || "other"));
    for layer in [events_layer(&hub), events_layer(&hub).allow_topic_changes()] {
        let server = Server::start(&hub, inner.clone().layer(layer)).await;
        let posted = send(server.addr, Request::post("/events").body("Bridge closed").unwrap()).await;
        assert_eq!((posted.status.as_u16(), posted.text().await.as_str()), (200, "posted Bridge closed"));
        let put = send(server.addr, Request::put("/events").body("").unwrap()).await;
        assert_eq!((put.status.as_u16(), put.header("allow")), (405, "POST"), "the application's response");
        subscribe(server.addr, "/events").await;
        let head = send(server.addr, Request::head("/events").body("").unwrap()).await;
        assert_eq!(head.header("content-type"), "text/event-stream");
    }
}

#[tokio::test]
async fn layer_passes_options_to_the_inner_service() {
    for mounted in everywhere(Hub::builder()).await {
        let reply = mounted.send("OPTIONS", "", &[]).await;
        if LAYERS.contains(&mounted.name) {
            assert_eq!((reply.status.as_u16(), reply.text().await.as_str()), (200, "inner"), "{}", mounted.name);
        } else {
            assert_eq!(reply.status, 405, "{}", mounted.name);
            assert!(reply.header("allow").contains("GET"), "{}", mounted.name);
        }
    }
}

#[tokio::test]
async fn accept_header_that_excludes_event_streams_gets_406() {
    for mounted in everywhere(Hub::builder()).await.iter().filter(|mounted| WITH_HOOK.contains(&mounted.name)) {
        for accept in ["application/json", "text/html, application/xml", "text/event-stream;q=0"] {
            for method in ["GET", "HEAD"] {
                let reply = mounted.send(method, "?topic=public/a", &[("accept", accept)]).await;
                assert_eq!(reply.status, 406, "{}: {accept}", mounted.name);
            }
        }
        assert_eq!(mounted.hub.stats().connected, 0, "{}", mounted.name);
        for accept in [&[("accept", "*/*")][..], &[("accept", "text/*")], &[("accept", "text/event-stream")], &[]] {
            mounted.send("GET", "?topic=public/a", accept).await.events().caught_up().await;
        }
    }
}

#[tokio::test]
async fn several_accept_headers_are_one_list() {
    for mounted in everywhere(Hub::builder()).await.iter().filter(|mounted| WITH_HOOK.contains(&mounted.name)) {
        let both = [("accept", "application/json"), ("accept", "text/event-stream")];
        mounted.send("GET", "", &both).await.events().caught_up().await;
        let neither = [("accept", "application/json"), ("accept", "text/html")];
        assert_eq!(mounted.send("GET", "", &neither).await.status, 406, "{}", mounted.name);
    }
}

#[tokio::test]
async fn rejected_credentials_get_a_status_that_browsers_do_not_retry() {
    for mounted in everywhere(Hub::builder()).await {
        for (query, status) in [("?as=anonymous", 401), ("?as=stranger", 403), ("?as=banned", 204)] {
            let reply = mounted.get(query).await;
            assert_eq!(reply.status, status, "{}: {query}", mounted.name);
            assert_ne!(reply.header("content-type"), "text/event-stream", "{}: {query}", mounted.name);
            assert_eq!(reply.text().await.is_empty(), status == 204, "{}: {query}", mounted.name);
        }
        assert_eq!(mounted.hub.stats().connected, 0, "{}", mounted.name);
    }
}

#[tokio::test]
async fn retryable_refusal_is_a_stream_of_one_event_that_ends_properly() {
    for mounted in everywhere(Hub::builder().retry(Duration::from_secs(4))).await {
        let seconds = |from, to| Duration::from_secs(from)..=Duration::from_secs(to);
        let retry = retryable_refusal(mounted.get("?as=busy").await, "busy", mounted.name).await;
        assert!(seconds(4, 12).contains(&retry), "not one to three times the hub's retry: {retry:?}");
        let retry = retryable_refusal(mounted.get("?as=busy-10s").await, "busy", mounted.name).await;
        assert!(seconds(10, 15).contains(&retry), "not 1 to 1.5 times the refusal's retry: {retry:?}");
        assert_eq!(mounted.hub.stats().refused(RefusalReason::Busy), 2, "{}", mounted.name);
        assert_eq!(mounted.hub.stats().connected, 0, "{}", mounted.name);
    }
}

#[tokio::test]
async fn retryable_refusals_spread_their_retries() {
    let mounted = mount("layer on axum", Hub::builder().build().unwrap(), access).await;
    let mut retries = std::collections::HashSet::new();
    for _ in 0..8 {
        retries.insert(retryable_refusal(mounted.get("?as=busy").await, "busy", mounted.name).await);
    }
    assert!(retries.len() > 1, "{retries:?}");
}

#[tokio::test]
async fn drained_hub_answers_with_a_retryable_refusal() {
    for mounted in everywhere(Hub::builder()).await {
        soon(mounted.hub.drain(Duration::ZERO)).await;
        assert!(!mounted.hub.is_ready());
        retryable_refusal(mounted.get("?topic=public/a").await, "draining", mounted.name).await;
        assert_eq!(mounted.hub.stats().refused(RefusalReason::Draining), 1, "{}", mounted.name);
        let is_layer = LAYERS.contains(&mounted.name);
        assert_eq!(mounted.send("POST", "", &[]).await.status == 405, !is_layer, "{}: POST", mounted.name);
    }
}

#[tokio::test]
async fn forbidden_and_unknown_topics_look_the_same() {
    for mounted in everywhere(Hub::builder()).await {
        mounted.hub.topic("secret/known").publish(Event::unnamed("x")).await.unwrap();
        let mut responses = Vec::new();
        for topic in ["secret/known", "no-such-topic", "%00", "x%0Ay", &"x".repeat(256), "public/a&topic=secret/known"]
        {
            let reply = mounted.get(&format!("?topic={topic}")).await;
            responses.push((reply.status, headers(&reply), reply.text().await));
        }
        for response in &responses {
            assert_eq!(*response, responses[0], "{}", mounted.name);
        }
        assert_eq!(responses[0].0, 403, "{}", mounted.name);
        assert_eq!(mounted.hub.stats().connected, 0, "{}: refused as a whole", mounted.name);
    }
}

#[tokio::test]
async fn request_for_too_many_topics_is_refused_as_a_whole() {
    for mounted in everywhere(Hub::builder().max_topics(2)).await {
        let reply = mounted.get("?topic=public/a&topic=public/b&topic=public/c").await;
        assert_eq!(reply.status, 400, "{}", mounted.name);
        assert_eq!(mounted.hub.stats().connected, 0, "{}", mounted.name);
        // A topic that is named twice counts once.
        let mut events = mounted.get("?topic=public/a&topic=public/b&topic=public/a").await.events();
        let topics = json(&events.next().await.data)["topics"].clone();
        assert_eq!(topics, serde_json::json!(["public/a", "public/b"]), "{}", mounted.name);
        events.caught_up().await;
        let published = mounted.hub.topic("public/a").publish(Event::unnamed("one")).await.unwrap();
        assert_eq!(published.connections, 1, "{}", mounted.name);
        mounted.hub.topic("public/b").publish(Event::unnamed("two")).await.unwrap();
        assert_eq!([events.next().await.data, events.next().await.data], ["one", "two"], "{}", mounted.name);
    }
}

#[tokio::test]
async fn stream_without_topics_receives_the_events_for_everyone() {
    for mounted in everywhere(Hub::builder()).await {
        let mut events = mounted.get("").await.events();
        assert_eq!(json(&events.next().await.data)["topics"], serde_json::json!([]), "{}", mounted.name);
        events.caught_up().await;
        mounted.hub.topic("public/a").publish(Event::unnamed("not subscribed")).await.unwrap();
        mounted.hub.everyone().publish(Event::unnamed("to all")).await.unwrap();
        assert_eq!(events.next().await.data, "to all", "{}", mounted.name);
    }
}

#[tokio::test]
async fn id_in_the_query_resumes_when_the_header_is_absent_or_empty() {
    for mounted in everywhere(Hub::builder()).await {
        let before = mounted.hub.position();
        for data in ["one", "two"] {
            mounted.hub.topic("public/a").publish(Event::unnamed(data)).await.unwrap();
        }
        let query = format!("?topic=public/a&last_event_id={before}");
        for headers in [&[][..], &[("last-event-id", "")]] {
            let mut events = mounted.send("GET", &query, headers).await.events();
            assert_eq!(json(&events.next().await.data)["cursor"], "resuming", "{}", mounted.name);
            assert_eq!([events.next().await.data, events.next().await.data], ["one", "two"], "{}", mounted.name);
        }
        // A browser reconnects to the same URL, so the newer id in the header takes precedence.
        let seen = mounted.hub.position().to_string();
        let mut events = mounted.send("GET", &query, &[("last-event-id", &seen)]).await.events();
        assert_eq!(events.next().await.event, "hub.hello", "{}", mounted.name);
        assert_eq!(events.next().await.event, "hub.live", "{}", mounted.name);
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// The access hook

/// Panics if the query is `late` or `now`.
async fn panicking(request: StreamRequest) -> Result<Subscription, Refusal> {
    if request.query() == Some("late") {
        tokio::task::yield_now().await;
        panic!("panic on request, after an await");
    }
    assert_ne!(request.query(), Some("now"), "panic on request");
    Ok(Subscription::anonymous())
}

#[tokio::test]
async fn hook_that_panics_fails_only_its_request() {
    for name in WITH_HOOK {
        let mounted = mount(name, Hub::builder().build().unwrap(), panicking).await;
        let mut events = subscribe(mounted.addr, "/events").await;
        for query in ["?now", "?late"] {
            let reply = mounted.get(query).await;
            assert_eq!(reply.status, 500, "{name}: {query}");
            assert!(!reply.text().await.contains("on request"), "{name}: the response has the panic's message");
        }
        assert_eq!(mounted.hub.stats().connections, 1, "{name}");
        mounted.hub.everyone().publish(Event::unnamed("still here")).await.unwrap();
        assert_eq!(events.next().await.data, "still here", "{name}");
        subscribe(mounted.addr, "/events").await;
    }
}

#[tokio::test]
async fn hook_that_panics_before_it_returns_its_future_fails_only_its_request() {
    let panics = |request: StreamRequest| {
        assert!(request.query().is_none(), "panic on request, before the future");
        std::future::ready(Ok(Subscription::anonymous()))
    };
    let mounted = mount("endpoint on hyper", Hub::builder().build().unwrap(), panics).await;
    // Both requests use one connection, so the panic must not break it.
    let tcp = TokioIo::new(TcpStream::connect(mounted.addr).await.unwrap());
    let (mut sender, connection) = hyper::client::conn::http1::handshake(tcp).await.unwrap();
    tokio::spawn(connection);
    for (path, status) in [("/events?x", 500), ("/events", 200)] {
        let request = Request::get(path).header("host", "test").body(Full::<Bytes>::default()).unwrap();
        let mut response = soon(sender.send_request(request)).await.unwrap();
        assert_eq!(response.status(), status);
        if status == 500 {
            soon(response.body_mut().collect()).await.unwrap();
            soon(sender.ready()).await.unwrap();
        }
    }
}

struct Guard(Arc<AtomicBool>);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

#[tokio::test]
async fn hook_that_times_out_is_dropped_with_a_retryable_refusal() {
    for name in WITH_HOOK {
        let hub = Hub::builder().access_timeout(Duration::from_millis(30)).build().unwrap();
        let dropped = Arc::new(AtomicBool::new(false));
        let flag = dropped.clone();
        let pending = move |_: StreamRequest| {
            let guard = Guard(flag.clone());
            async move {
                let _guard = guard;
                std::future::pending().await
            }
        };
        let mounted = mount(name, hub, pending).await;
        retryable_refusal(mounted.get("").await, "timeout", name).await;
        assert!(dropped.load(Ordering::SeqCst), "{name}");
        assert_eq!(mounted.hub.stats().refused(RefusalReason::Timeout), 1, "{name}");
        assert_eq!(mounted.hub.stats().connected, 0, "{name}");
    }
}

#[tokio::test]
async fn hook_is_dropped_when_its_client_disconnects() {
    for name in WITH_HOOK {
        let (called, dropped) = (Arc::new(Notify::new()), Arc::new(AtomicBool::new(false)));
        let (calls, flag) = (called.clone(), dropped.clone());
        let pending = move |_: StreamRequest| {
            let (guard, calls) = (Guard(flag.clone()), calls.clone());
            async move {
                let _guard = guard;
                calls.notify_one();
                std::future::pending().await
            }
        };
        let mounted = mount(name, Hub::builder().build().unwrap(), pending).await;
        let mut tcp = TcpStream::connect(mounted.addr).await.unwrap();
        tcp.write_all(b"GET /events HTTP/1.1\r\nhost: test\r\n\r\n").await.unwrap();
        soon(called.notified()).await;
        assert!(!dropped.load(Ordering::SeqCst), "{name}");
        drop(tcp);
        until(|| dropped.load(Ordering::SeqCst)).await;
        assert_eq!(mounted.hub.stats().connected, 0, "{name}");
    }
}

/// A hook with state, for example the database pool of an application.
struct Tokens(BTreeMap<&'static str, &'static str>);

impl Access for Tokens {
    async fn authorize(&self, request: StreamRequest) -> Result<Subscription, Refusal> {
        let token = request.headers().get("authorization").and_then(|value| value.to_str().ok());
        let user = token.and_then(|token| self.0.get(token)).ok_or(Refusal::unauthorized())?;
        Ok(Subscription::for_user(*user))
    }
}

#[tokio::test]
async fn hook_is_a_closure_an_async_closure_a_function_or_a_struct() {
    fn authenticate(request: &StreamRequest) -> Result<Subscription, Refusal> {
        match request.headers().get("authorization") {
            Some(value) if value == "sesame" => Ok(Subscription::for_user("ada")),
            _ => Err(Refusal::unauthorized()),
        }
    }
    async fn hook(request: StreamRequest) -> Result<Subscription, Refusal> {
        authenticate(&request)
    }
    let hub = || Hub::builder().build().unwrap();
    for name in WITH_HOOK {
        for mounted in [
            mount(name, hub(), move |request: StreamRequest| async move { authenticate(&request) }).await,
            mount(name, hub(), async |request: StreamRequest| authenticate(&request)).await,
            mount(name, hub(), hook).await,
            mount(name, hub(), Tokens(BTreeMap::from([("sesame", "ada")]))).await,
        ] {
            assert_eq!(mounted.get("").await.status, 401, "{name}");
            let mut events = mounted.send("GET", "", &[("authorization", "sesame")]).await.events();
            events.caught_up().await;
            mounted.hub.user("ada").publish(Event::unnamed("for ada")).await.unwrap();
            assert_eq!(events.next().await.data, "for ada", "{name}");
        }
    }
}

#[tokio::test]
async fn hook_runs_again_when_a_client_reconnects() {
    let allowed = Arc::new(AtomicBool::new(true));
    let allows = allowed.clone();
    let hook = move |_: StreamRequest| {
        let allowed = allows.load(Ordering::SeqCst);
        async move { if allowed { Ok(Subscription::anonymous().topic("t")) } else { Err(Refusal::forbidden()) } }
    };
    let mounted = mount("layer on axum", Hub::builder().build().unwrap(), hook).await;
    let events = subscribe(mounted.addr, "/events").await;
    allowed.store(false, Ordering::SeqCst);
    let reply = mounted.send("GET", "", &[("last-event-id", &events.last_id)]).await;
    assert_eq!(reply.status, 403);
}

#[tokio::test]
async fn hook_sees_the_address_of_the_peer() {
    for name in WITH_HOOK {
        let seen = Arc::new(std::sync::Mutex::new(None));
        let sees = seen.clone();
        let hook = move |request: StreamRequest| {
            *sees.lock().unwrap() = request.peer_addr();
            async { Ok(Subscription::anonymous()) }
        };
        let mounted = mount(name, Hub::builder().build().unwrap(), hook).await;
        let mut tcp = TcpStream::connect(mounted.addr).await.unwrap();
        let local = tcp.local_addr().unwrap();
        tcp.write_all(b"GET /events HTTP/1.1\r\nhost: test\r\n\r\n").await.unwrap();
        until(|| mounted.hub.stats().connections == 1).await;
        assert_eq!(*seen.lock().unwrap(), Some(local), "{name}");
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// The effect of axum's router operations on a layer, for the table in docs/mounting.md (axum 0.8.9)

fn events_layer(hub: &Hub) -> SseLayer {
    hub.layer("/events", Public::topics(TopicFilter::any()))
}

/// Returns an application without a stream.
fn plain() -> Router {
    Router::new().route("/plain", get(async || "plain"))
}

/// Returns an application with the hub's layer on the outside.
fn layered(hub: &Hub) -> Router {
    Router::new().route("/other", get(async || "other")).layer(events_layer(hub))
}

/// Returns an application with the hub's endpoint as a route.
fn routed(hub: &Hub) -> Router {
    let endpoint = hub.endpoint(Public::topics(TopicFilter::any()));
    Router::new().route("/other", get(async || "other")).route_service("/events", endpoint)
}

/// Requests a path over a real socket. Returns `events` for a stream, otherwise the status.
async fn answer(hub: &Hub, app: Router, path: &str) -> String {
    let server = Server::start(hub, app).await;
    let reply = kit::get(server.addr, path).await;
    if reply.header("content-type") == "text/event-stream" {
        reply.events().caught_up().await;
        return "events".into();
    }
    reply.status.as_u16().to_string()
}

async fn teapot() -> StatusCode {
    StatusCode::IM_A_TEAPOT
}

#[tokio::test]
async fn operations_that_hide_a_layer() {
    let hub = &Hub::builder().build().unwrap();
    assert_eq!(answer(hub, layered(hub).merge(plain()), "/events").await, "404");
    assert_eq!(answer(hub, Router::new().nest("/api", layered(hub)), "/api/events").await, "404");
    assert_eq!(answer(hub, Router::new().nest("/api", layered(hub)), "/events").await, "404");
    assert_eq!(answer(hub, plain().route_layer(events_layer(hub)), "/events").await, "404");
    assert_eq!(answer(hub, layered(hub).fallback(teapot), "/events").await, "418");
    // A layer is added to the routes that exist. A later route of the same path is not layered.
    assert_eq!(answer(hub, layered(hub).route("/events", get(teapot)), "/events").await, "418");
}

#[tokio::test]
async fn operations_that_leave_a_layer_visible() {
    let hub = &Hub::builder().build().unwrap();
    assert_eq!(answer(hub, layered(hub), "/events").await, "events");
    assert_eq!(answer(hub, plain().merge(layered(hub)), "/events").await, "events");
    assert_eq!(answer(hub, Router::new().nest_service("/api", layered(hub)), "/api/events").await, "events");
    assert_eq!(answer(hub, plain().fallback(teapot).layer(events_layer(hub)), "/events").await, "events");
    assert_eq!(answer(hub, plain().fallback_service(layered(hub)), "/events").await, "events");
    assert_eq!(answer(hub, plain().route("/events", get(teapot)).layer(events_layer(hub)), "/events").await, "events");
    assert_eq!(answer(hub, plain().merge(layered(hub)).layer(events_layer(hub)), "/events").await, "events");
    assert_eq!(answer(hub, layered(hub).route("/late", get(teapot)), "/events").await, "events");
    assert_eq!(
        answer(hub, layered(hub).route_layer(tower::layer::layer_fn(|inner: axum::routing::Route| inner)), "/events")
            .await,
        "events"
    );
}

#[tokio::test]
async fn a_route_service_survives_every_operation() {
    let hub = &Hub::builder().build().unwrap();
    assert_eq!(answer(hub, routed(hub), "/events").await, "events");
    assert_eq!(answer(hub, routed(hub).merge(plain()), "/events").await, "events");
    assert_eq!(answer(hub, plain().merge(routed(hub)), "/events").await, "events");
    assert_eq!(answer(hub, Router::new().nest("/api", routed(hub)), "/api/events").await, "events");
    assert_eq!(answer(hub, Router::new().nest_service("/api", routed(hub)), "/api/events").await, "events");
    assert_eq!(answer(hub, routed(hub).fallback(teapot), "/events").await, "events");
    assert_eq!(answer(hub, plain().fallback(teapot).merge(routed(hub)), "/events").await, "events");
    let layer = tower::layer::layer_fn(|inner: axum::routing::Route| inner);
    assert_eq!(answer(hub, routed(hub).route_layer(layer), "/events").await, "events");
}

#[tokio::test]
async fn a_handler_survives_every_operation() {
    let hub = &Hub::builder().build().unwrap();
    let handled = || Router::new().route("/events", get(handler)).with_state(hub.clone());
    assert_eq!(answer(hub, handled().merge(plain()), "/events").await, "events");
    assert_eq!(answer(hub, Router::new().nest("/api", handled()), "/api/events").await, "events");
    assert_eq!(answer(hub, handled().fallback(teapot), "/events").await, "events");
}

#[tokio::test]
async fn a_layer_answers_exactly_its_path() {
    let hub = &Hub::builder().build().unwrap();
    for path in ["/events/", "/events/x", "/Events", "//events", "/event", "/%65vents"] {
        assert_eq!(answer(hub, layered(hub), path).await, "404", "{path}");
    }
    assert_eq!(answer(hub, layered(hub), "/events?").await, "events");
    assert_eq!(answer(hub, layered(hub), "/events?topic=a#fragment").await, "events");
}

// ---------------------------------------------------------------------------------------------------------------------
// The hub in handlers

async fn announce(hub: Hub) -> String {
    hub.everyone().publish(Event::unnamed("announced")).await.unwrap().connections.to_string()
}

#[tokio::test]
async fn layer_with_provide_gives_handlers_the_hub() {
    let hub = Hub::builder().build().unwrap();
    let app = Router::new().route("/announce", post(announce)).layer(events_layer(&hub).provide());
    let server = Server::start(&hub, app).await;
    let mut events = subscribe(server.addr, "/events").await;
    let reply = send(server.addr, Request::post("/announce").body("").unwrap()).await;
    assert_eq!(reply.text().await, "1");
    assert_eq!(events.next().await.data, "announced");
}

#[tokio::test]
async fn handler_without_a_hub_answers_with_an_error_that_names_provide() {
    let hub = Hub::builder().build().unwrap();
    for app in [
        Router::new().route("/announce", post(announce)),
        Router::new().route("/announce", post(announce)).layer(events_layer(&hub)),
    ] {
        let server = Server::start(&hub, app).await;
        let reply = send(server.addr, Request::post("/announce").body("").unwrap()).await;
        assert_eq!(reply.status, 500);
        let text = reply.text().await;
        assert!(text.contains("provide()"), "{text}");
    }
    assert_eq!(hub.position().to_string().rsplit('.').next(), Some("0"), "nothing was published");
}

#[derive(Clone, FromRef)]
struct AppState {
    hub: Hub,
    _pool: Arc<str>,
}

#[tokio::test]
async fn application_state_gives_handlers_the_hub_without_a_layer() {
    let hub = Hub::builder().build().unwrap();
    let app = Router::new()
        .route("/announce", post(|State(hub): State<Hub>| announce(hub)))
        .route("/events", get(handler))
        .with_state(AppState { hub: hub.clone(), _pool: "pool".into() });
    let server = Server::start(&hub, app).await;
    let mut events = subscribe(server.addr, "/events").await;
    assert_eq!(send(server.addr, Request::post("/announce").body("").unwrap()).await.text().await, "1");
    assert_eq!(events.next().await.data, "announced");
}

// ---------------------------------------------------------------------------------------------------------------------
// The contract of tower services

#[tokio::test]
async fn a_layer_applied_twice_answers_once() {
    let hub = Hub::builder().build().unwrap();
    let app = layered(&hub).layer(events_layer(&hub));
    let server = Server::start(&hub, app).await;
    let mut events = subscribe(server.addr, "/events").await;
    assert_eq!(hub.stats().connections, 1);
    hub.everyone().publish(Event::unnamed("once")).await.unwrap();
    hub.everyone().publish(Event::unnamed("then this")).await.unwrap();
    assert_eq!([events.next().await.data, events.next().await.data], ["once", "then this"]);
    assert_eq!(kit::get(server.addr, "/other").await.text().await, "other");
}

#[tokio::test]
async fn the_outer_of_two_layers_on_one_path_answers() {
    let hub = Hub::builder().build().unwrap();
    let inner = hub.layer("/events", |_: StreamRequest| async { Err(Refusal::forbidden()) });
    let server = Server::start(&hub, plain().layer(inner).layer(events_layer(&hub))).await;
    subscribe(server.addr, "/events").await;
}

#[tokio::test]
async fn two_layers_on_two_paths_both_answer() {
    let hub = Hub::builder().build().unwrap();
    let admin = hub.layer("/admin/events", |_: StreamRequest| async { Ok(Subscription::anonymous().topic("admin")) });
    let server = Server::start(&hub, plain().layer(events_layer(&hub)).layer(admin)).await;
    let mut public = subscribe(server.addr, "/events?topic=news").await;
    let mut admin = subscribe(server.addr, "/admin/events").await;
    hub.topic("admin").publish(Event::unnamed("for admins")).await.unwrap();
    hub.topic("news").publish(Event::unnamed("for all")).await.unwrap();
    assert_eq!(admin.next().await.data, "for admins");
    assert_eq!(public.next().await.data, "for all");
}

/// Asserts tower's contract: each call is on the same value that was ready. A clone is not ready.
#[derive(Debug, Default)]
struct Strict {
    ready: bool,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct StrictError;

impl Clone for Strict {
    fn clone(&self) -> Self {
        Self { ready: false }
    }
}

impl<B> Service<Request<B>> for Strict {
    type Response = Response<Body>;
    type Error = StrictError;
    type Future = std::future::Ready<Result<Response<Body>, StrictError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), StrictError>> {
        self.ready = true;
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        assert!(std::mem::take(&mut self.ready), "called before it was ready");
        std::future::ready(if request.uri().path() == "/err" { Err(StrictError) } else { Ok(Response::default()) })
    }
}

/// Calls the service. Compiles only if its error is that of the inner service.
async fn call<S, B>(service: &mut S, path: &str) -> Result<StatusCode, StrictError>
where
    S: Service<Request<()>, Response = Response<B>, Error = StrictError>,
{
    let request = Request::get(path).body(()).unwrap();
    Ok(service.ready().await?.call(request).await?.status())
}

#[tokio::test]
async fn layer_calls_the_same_inner_service_that_was_ready() {
    let hub = Hub::builder().build().unwrap();
    let mut service = events_layer(&hub).provide().layer(events_layer(&hub).layer(Strict::default()));
    for _ in 0..3 {
        assert_eq!(call(&mut service, "/other").await, Ok(StatusCode::OK));
        assert_eq!(call(&mut service, "/events").await, Ok(StatusCode::OK));
    }
    let mut clone = service.clone();
    assert_eq!(call(&mut clone, "/err").await, Err(StrictError));
}

/// A service that is never ready.
#[derive(Clone, Debug)]
struct Busy;

impl<B> Service<Request<B>> for Busy {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = std::future::Pending<Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Pending
    }

    fn call(&mut self, _: Request<B>) -> Self::Future {
        std::future::pending()
    }
}

#[tokio::test]
async fn layer_is_ready_with_its_inner_service_and_the_endpoint_always() {
    let hub = Hub::builder().build().unwrap();
    let mut layered = events_layer(&hub).layer(Busy);
    let ready = <_ as ServiceExt<Request<()>>>::ready(&mut layered);
    assert!(futures::poll!(std::pin::pin!(ready)).is_pending());
    let mut endpoint = hub.endpoint(access);
    let ready = <_ as ServiceExt<Request<()>>>::ready(&mut endpoint);
    assert!(futures::poll!(std::pin::pin!(ready)).is_ready());
}

#[tokio::test]
async fn response_of_the_inner_service_keeps_its_body_size_and_trailers() {
    use http_body::Body as _;
    let hub = Hub::builder().build().unwrap();
    let inner =
        service_fn(async |request: Request<Full<Bytes>>| Ok::<_, Infallible>(Response::new(request.into_body())));
    let request = Request::post("/other").body(Full::new(Bytes::from("12345"))).unwrap();
    let response = events_layer(&hub).layer(inner).oneshot(request).await.unwrap();
    assert_eq!(response.body().size_hint().exact(), Some(5));
    assert!(!response.body().is_end_stream());
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "12345");

    let inner = service_fn(async |_: Request<()>| {
        let trailers = http::HeaderMap::from_iter([(http::header::ETAG, http::HeaderValue::from_static("x"))]);
        let body = Full::<Bytes>::default().with_trailers(std::future::ready(Some(Ok(trailers))));
        Ok::<_, Infallible>(Response::new(body))
    });
    let response = events_layer(&hub).layer(inner).oneshot(Request::new(())).await.unwrap();
    assert_eq!(response.into_body().collect().await.unwrap().trailers().unwrap()["etag"], "x");
}

// ---------------------------------------------------------------------------------------------------------------------
// The versions of HTTP

/// Sends the text of a request. Returns the lines of the response's head, and the events.
async fn send_text(addr: SocketAddr, request: &str) -> (Vec<String>, Events) {
    let mut tcp = TcpStream::connect(addr).await.unwrap();
    tcp.write_all(request.as_bytes()).await.unwrap();
    let mut tcp = BufReader::new(tcp);
    let mut head = Vec::new();
    loop {
        let mut line = String::new();
        soon(tcp.read_line(&mut line)).await.unwrap();
        match line.trim_end() {
            "" => return (head, Events::parse(ReaderStream::new(tcp))),
            line => head.push(line.to_ascii_lowercase()),
        }
    }
}

/// Returns `hub.hello` without its connection, `hub.live`, and an event that it publishes.
async fn first_events(hub: &Hub, mut events: Events) -> Vec<(String, String, String)> {
    let mut seen = Vec::new();
    for n in 0..3 {
        if n == 2 {
            hub.topic("public/a").publish(Event::new("news", "a\nb")).await.unwrap();
        }
        let event = events.next().await;
        let mut data = serde_json::from_str(&event.data).unwrap_or(serde_json::Value::String(event.data));
        if let Some(object) = data.as_object_mut() {
            object.remove("connection");
        }
        seen.push((event.event, data.to_string(), format!("{:?}", event.retry)));
    }
    seen
}

#[tokio::test]
async fn every_version_of_http_gets_the_same_head_and_the_same_events() {
    let common: BTreeMap<String, String> = [
        ("content-type", "text/event-stream"),
        ("cache-control", "no-cache, no-store, no-transform"),
        ("incremental", "?1"),
        ("x-accel-buffering", "no"),
        ("x-content-type-options", "nosniff"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .into();
    for mounted in everywhere(Hub::builder()).await {
        let (name, path) = (mounted.name, "/events?topic=public/a");

        let one = kit::get(mounted.addr, path).await;
        let head = headers(&one);
        assert_eq!(head, common, "{name}: the router adds headers, for example `vary`");
        assert_eq!(one.header("transfer-encoding"), "chunked", "{name}");
        assert_eq!(one.header("connection"), if kit::takeover() { "close" } else { "" }, "{name}");
        let expected = first_events(&mounted.hub, one.events()).await;
        assert_eq!(expected[0].0, "hub.hello");
        assert_eq!(expected[2].1, r#""a\nb""#);

        // HTTP/1.0 has no chunks, so the end of the connection is the end of the stream.
        let (lines, events) = send_text(mounted.addr, &format!("GET {path} HTTP/1.0\r\n\r\n")).await;
        assert_eq!(lines[0], "http/1.0 200 ok", "{name}");
        for (field, value) in &common {
            assert!(lines.contains(&format!("{field}: {value}")), "{name}: {field}: {lines:?}");
        }
        assert!(!lines.iter().any(|line| line.starts_with("transfer-encoding")), "{name}: {lines:?}");
        assert_eq!(first_events(&mounted.hub, events).await, expected, "{name}, HTTP/1.0");

        let mut sender = http2(mounted.addr).await;
        let uri = format!("http://test{path}");
        let response = soon(sender.send_request(Request::get(uri).body(Full::default()).unwrap())).await.unwrap();
        let two = reply(response);
        for field in ["connection", "keep-alive", "transfer-encoding", "upgrade", "content-encoding"] {
            assert!(two.headers.get(field).is_none(), "{name}, HTTP/2: {field}");
        }
        assert_eq!(headers(&two), common, "{name}, HTTP/2");
        assert_eq!(first_events(&mounted.hub, two.events()).await, expected, "{name}, HTTP/2");
    }
}

#[tokio::test]
async fn http_1_0_client_with_keep_alive_receives_its_events() {
    let mounted = mount("layer on axum", Hub::builder().build().unwrap(), access).await;
    let request = "GET /events?topic=public/a HTTP/1.0\r\nhost: test\r\nconnection: keep-alive\r\n\r\n";
    let (lines, mut events) = send_text(mounted.addr, request).await;
    assert_eq!(lines[0], "http/1.0 200 ok");
    mounted.hub.topic("public/a").publish(Event::new("news", "")).await.unwrap();
    assert_eq!(events.next_own().await.event, "news");
    let ending = mounted.hub.clone();
    let ending = tokio::spawn(async move { ending.drain(Duration::ZERO).await });
    // The connection ends with the stream, although the client requested keep-alive.
    assert_eq!(events.rest().await.pop().unwrap().event, "hub.bye");
    soon(ending).await.unwrap();
}

#[tokio::test]
async fn many_streams_share_one_http2_connection() {
    for mounted in everywhere(Hub::builder()).await {
        let mut sender = http2(mounted.addr).await;
        let mut streams = Vec::new();
        for n in 0..20 {
            let request = Request::get(format!("http://test/events?topic=public/{n}")).body(Full::default()).unwrap();
            let mut events = reply(soon(sender.send_request(request)).await.unwrap()).events();
            events.caught_up().await;
            streams.push(events);
        }
        for n in 0..20 {
            mounted.hub.topic(format!("public/{n}")).publish(Event::unnamed(n.to_string())).await.unwrap();
        }
        for (n, events) in streams.iter_mut().enumerate() {
            assert_eq!(events.next().await.data, n.to_string(), "{}", mounted.name);
        }
        // A reset stream is removed, and the other streams of the connection stay open.
        streams.remove(0);
        until(|| mounted.hub.stats().connections == 19).await;
        mounted.hub.everyone().publish(Event::unnamed("to all")).await.unwrap();
        for events in &mut streams {
            assert_eq!(events.next().await.data, "to all", "{}", mounted.name);
        }
    }
}

/// Reads a body to its end, and returns its size.
async fn measure<B>(body: B) -> usize
where
    B: http_body::Body<Data = Bytes>,
    B::Error: std::fmt::Debug,
{
    body.collect().await.unwrap().to_bytes().len()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_beside_a_stream_on_one_http2_connection_arrives_whole() {
    const SIZE: usize = 4 << 20;
    let on_axum = |hub: &Hub| {
        let upload = post(async |body: Body| measure(body).await.to_string());
        Router::new().route("/upload", upload).layer(events_layer(hub))
    };
    let on_hyper = |hub: &Hub| {
        let upload = service_fn(async |request: Request<Incoming>| {
            let size = measure(request.into_body()).await;
            Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(size.to_string()))))
        });
        events_layer(hub).layer(upload)
    };
    for name in ["axum", "hyper", "hyper, called in the task of the connection"] {
        let hub = Hub::builder().build().unwrap();
        let (addr, _server): (_, Box<dyn Any>) = if name == "axum" {
            let server = Server::start(&hub, on_axum(&hub)).await;
            (server.addr, Box::new(server))
        } else if name == "hyper" {
            let server = Plain::start(&hub, TowerToHyperService::new(on_hyper(&hub))).await;
            (server.addr, Box::new(server))
        } else {
            // Without a task between, the hub finds the socket of the stream by itself.
            let service = on_hyper(&hub);
            let called = hyper::service::service_fn(move |request| service.clone().call(request));
            let server = Plain::start(&hub, called).await;
            (server.addr, Box::new(server))
        };
        let mut sender = http2(addr).await;
        let request = Request::get("http://test/events").body(Full::default()).unwrap();
        let mut events = reply(soon(sender.send_request(request)).await.unwrap()).events();
        events.caught_up().await;
        // The stream writes during the whole upload.
        let publisher = hub.clone();
        let publishing = tokio::spawn(async move {
            loop {
                publisher.everyone().publish(Event::unnamed("meanwhile")).await.unwrap();
                tokio::task::yield_now().await;
            }
        });
        let request = Request::post("http://test/upload").body(Full::new(Bytes::from(vec![b'x'; SIZE]))).unwrap();
        let mut uploading = std::pin::pin!(soon(sender.send_request(request)));
        let response = loop {
            tokio::select! {
                response = &mut uploading => break response.unwrap_or_else(|error| panic!("{name}: {error:?}")),
                event = events.next() => assert!(event.data == "meanwhile" || event.event == "hub.gap", "{name}: {event:?}"),
            }
        };
        publishing.abort();
        let size = soon(response.into_body().collect()).await.unwrap().to_bytes();
        assert_eq!(size, SIZE.to_string(), "{name}");
    }
}

#[tokio::test]
async fn a_request_with_a_body_gets_its_stream() {
    // HTTP allows a GET with a body. The hub ignores the body.
    let mounted = mount("layer on axum", Hub::builder().build().unwrap(), access).await;
    let request = Request::get("/events?topic=public/a").header("content-type", "text/plain").body("a body").unwrap();
    let events = send(mounted.addr, request).await.events();
    assert_eq!(first_events(&mounted.hub, events).await[2].0, "news");
}

/// Compiles only if the futures of the mounts are `Send` and `'static`.
#[allow(dead_code, reason = "a check at compile time")]
fn everything_is_send_and_static(hub: &Hub) {
    fn check<T: Send + 'static>(_: T) {}
    let mut layered = events_layer(hub).layer(Strict::default());
    check(<_ as Service<Request<Body>>>::call(&mut layered, Request::default()));
    check(<_ as Service<Request<Body>>>::call(&mut hub.endpoint(access), Request::default()));
    check::<Pin<Box<dyn Any + Send>>>(Box::pin(hub.refuse(Refusal::unauthorized())));
}
