//! Layers around the hub: under each of them a stream opens, events arrive at once, and other
//! routes work.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Duration;

use axum::extract::{ConnectInfo, State};
use axum::routing::{get, post};
use axum::{Extension, Router};
use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use tokio::net::TcpListener;
use tower::{Layer, ServiceBuilder, ServiceExt, service_fn};
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::compression::CompressionLayer;
use tower_http::cors::CorsLayer;
use tower_http::limit::RequestBodyLimitLayer;
use tower_http::timeout::TimeoutLayer;
use tower_http::trace::TraceLayer;
use tower_sessions::{MemoryStore, Session, SessionManagerLayer};
use tower_sse::{
    EndReason, Event, EventStream, Hub, Public, Refusal, Retention, SseConnectInfo, SseMakeService, StreamRequest,
    Subscription, TopicFilter,
};

use crate::kit::{self, Reply, Server, http2, send, soon, subscribe, until};

/// A text above the minimum size at which the compression layer compresses.
const LARGE: &str = concat!(
    "a text that compresses well, a text that compresses well, a text that compresses well, ",
    "a text that compresses well, a text that compresses well, a text that compresses well"
);

/// Returns the other routes of the application.
fn routes() -> Router {
    Router::new()
        .route("/other", get(async || LARGE))
        .route("/upload", post(async |body: String| body.len().to_string()))
        .route("/slow", get(async || -> &'static str { std::future::pending().await }))
        .route("/panics", get(async || -> &'static str { panic!("panic on request") }))
}

async fn handler(State(hub): State<Hub>, request: StreamRequest) -> EventStream {
    hub.respond(request, Subscription::anonymous().topic("t"))
}

/// Returns an application for each way to mount a hub, without layers around it.
fn mounts(hub: &Hub) -> [(&'static str, Router); 3] {
    let access = Public::topics(TopicFilter::any());
    let handled = Router::new().route("/events", get(handler)).with_state(hub.clone());
    [
        ("layer", routes().layer(hub.layer("/events", access.clone()))),
        ("endpoint", routes().route_service("/events", hub.endpoint(access))),
        ("handler", routes().merge(handled)),
    ]
}

/// Asserts for each mount that streams work under the layers that `outside` adds: each event
/// arrives before the next is published, and other routes answer.
async fn works_with(outside: impl Fn(Router) -> Router) {
    for (name, app) in mounts(&Hub::builder().build().unwrap()) {
        drop(app);
        let hub = Hub::builder().build().unwrap();
        let (_, app) = mounts(&hub).into_iter().find(|(other, _)| *other == name).unwrap();
        let server = Server::start(&hub, outside(app)).await;
        let mut events = subscribe(server.addr, "/events?topic=t").await;
        for n in 0..3 {
            hub.topic("t").publish(Event::unnamed(n.to_string())).await.unwrap();
            assert_eq!(events.next().await.data, n.to_string(), "{name}");
        }
        let reply = kit::get(server.addr, "/other").await;
        assert_eq!(reply.status, 200, "{name}");
        assert_eq!(reply.text().await, LARGE, "{name}");
        let reply = send(server.addr, Request::post("/upload").body("12345").unwrap()).await;
        assert_eq!(reply.text().await, "5", "{name}");
        drop(events);
        until(|| hub.stats().connections == 0).await;
    }
}

async fn get_with(server: &Server, path: &str, headers: &[(HeaderName, &str)]) -> Reply {
    let mut request = Request::get(path);
    for (name, value) in headers {
        request = request.header(name, *value);
    }
    send(server.addr, request.body("").unwrap()).await
}

// ---------------------------------------------------------------------------------------------------------------------
// Compression

#[tokio::test]
async fn streams_work_under_a_compression_layer() {
    works_with(|app| app.layer(CompressionLayer::new())).await;
}

#[tokio::test]
async fn compression_layer_compresses_other_responses_and_no_stream() {
    let hub = Hub::builder().build().unwrap();
    for (name, app) in mounts(&hub) {
        let server = Server::start(&hub, app.layer(CompressionLayer::new())).await;
        let gzip = [(header::ACCEPT_ENCODING, "gzip")];
        let reply = get_with(&server, "/other", &gzip).await;
        assert_eq!(reply.header("content-encoding"), "gzip", "{name}: other responses are compressed");
        let reply = get_with(&server, "/events?topic=t", &gzip).await;
        assert_eq!(reply.header("content-encoding"), "", "{name}");
        let mut events = reply.events();
        events.caught_up().await;
        for n in 0..3 {
            hub.topic("t").publish(Event::unnamed(LARGE)).await.unwrap();
            assert_eq!(events.next().await.data, LARGE, "{name}: event {n} at once");
        }
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Timeouts

fn timeout(time: Duration) -> TimeoutLayer {
    TimeoutLayer::with_status_code(StatusCode::REQUEST_TIMEOUT, time)
}

#[tokio::test]
async fn streams_work_under_a_timeout_layer() {
    works_with(|app| app.layer(timeout(Duration::from_secs(10)))).await;
}

#[tokio::test]
async fn stream_outlives_the_timeout_of_requests() {
    let hub = Hub::builder().build().unwrap();
    for (name, app) in mounts(&hub) {
        let server = Server::start(&hub, app.layer(timeout(Duration::from_millis(50)))).await;
        let mut events = subscribe(server.addr, "/events?topic=t").await;
        // A request that began after the stream has timed out before the event.
        assert_eq!(kit::get(server.addr, "/slow").await.status, 408, "{name}");
        hub.topic("t").publish(Event::unnamed("still here")).await.unwrap();
        assert_eq!(events.next().await.data, "still here", "{name}");
    }
}

#[tokio::test]
async fn timeout_layer_answers_with_its_status_when_the_hook_is_slower() {
    let hub = Hub::builder().build().unwrap();
    let app = routes().layer(hub.layer("/events", |_: StreamRequest| std::future::pending()));
    let server = Server::start(&hub, app.layer(timeout(Duration::from_millis(50)))).await;
    assert_eq!(kit::get(server.addr, "/events").await.status, 408);
    assert_eq!(hub.stats().connected, 0);
}

// ---------------------------------------------------------------------------------------------------------------------
// Tracing, panics, limits

#[tokio::test]
async fn streams_work_under_a_trace_layer() {
    works_with(|app| app.layer(TraceLayer::new_for_http())).await;
}

#[tokio::test]
async fn streams_survive_a_panic_under_a_catch_panic_layer() {
    works_with(|app| app.layer(CatchPanicLayer::new())).await;
    let hub = Hub::builder().build().unwrap();
    for (name, app) in mounts(&hub) {
        let server = Server::start(&hub, app.layer(CatchPanicLayer::new())).await;
        let mut events = subscribe(server.addr, "/events?topic=t").await;
        assert_eq!(kit::get(server.addr, "/panics").await.status, 500, "{name}");
        hub.topic("t").publish(Event::unnamed("still here")).await.unwrap();
        assert_eq!(events.next().await.data, "still here", "{name}");
    }
}

#[tokio::test]
async fn streams_work_under_a_limit_on_request_bodies() {
    works_with(|app| app.layer(RequestBodyLimitLayer::new(10))).await;
    let hub = Hub::builder().build().unwrap();
    for (name, app) in mounts(&hub) {
        let server = Server::start(&hub, app.layer(RequestBodyLimitLayer::new(10))).await;
        let reply = send(server.addr, Request::post("/upload").body(LARGE).unwrap()).await;
        assert_eq!(reply.status, 413, "{name}: the limit is in effect");
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Another origin

const PAGE: &str = "http://page.example";

fn cors() -> CorsLayer {
    CorsLayer::new()
        .allow_origin(HeaderValue::from_static(PAGE))
        .allow_methods([Method::GET, Method::POST])
        .allow_headers([HeaderName::from_static("last-event-id"), header::AUTHORIZATION])
        .allow_credentials(true)
}

#[tokio::test]
async fn streams_work_under_a_cors_layer() {
    works_with(|app| app.layer(cors())).await;
}

#[tokio::test]
async fn page_of_another_origin_reads_the_stream_with_its_credentials() {
    let hub = Hub::builder().allow_cross_origin(PAGE).build().unwrap();
    for (name, app) in mounts(&hub) {
        let server = Server::start(&hub, app.layer(cors())).await;
        let headers = [(header::ORIGIN, PAGE), (header::COOKIE, "session=1")];
        let reply = get_with(&server, "/events?topic=t", &headers).await;
        assert_eq!(reply.header("access-control-allow-origin"), PAGE, "{name}");
        assert_eq!(reply.header("access-control-allow-credentials"), "true", "{name}");
        let mut events = reply.events();
        events.caught_up().await;
        hub.topic("t").publish(Event::unnamed("Bridge closed")).await.unwrap();
        assert_eq!(events.next().await.data, "Bridge closed", "{name}");
    }
}

#[tokio::test]
async fn preflight_is_answered_by_the_cors_layer() {
    let hub = Hub::builder().build().unwrap();
    for (name, app) in mounts(&hub) {
        let server = Server::start(&hub, app.layer(cors())).await;
        let request = Request::options("/events?topic=t")
            .header(header::ORIGIN, PAGE)
            .header(header::ACCESS_CONTROL_REQUEST_METHOD, "GET")
            .header(header::ACCESS_CONTROL_REQUEST_HEADERS, "last-event-id");
        let reply = send(server.addr, request.body("").unwrap()).await;
        assert_eq!(reply.status, 200, "{name}");
        assert_eq!(reply.header("access-control-allow-origin"), PAGE, "{name}");
        assert_eq!(reply.header("access-control-allow-credentials"), "true", "{name}");
        assert!(reply.header("access-control-allow-headers").contains("last-event-id"), "{name}");
        assert_eq!(hub.stats().connected, 0, "{name}");
    }
}

#[tokio::test]
async fn preflight_is_answered_by_a_cors_layer_inside_the_hubs_layer() {
    // The stream lacks the CORS headers in this order, so the CORS layer has to be outside.
    let hub = Hub::builder().allow_any_origin().build().unwrap();
    let app = routes().layer(cors()).layer(hub.layer("/events", Public::topics(TopicFilter::any())));
    let server = Server::start(&hub, app).await;
    let request = Request::options("/events").header(header::ORIGIN, PAGE);
    let request = request.header(header::ACCESS_CONTROL_REQUEST_METHOD, "GET");
    let reply = send(server.addr, request.body("").unwrap()).await;
    assert_eq!((reply.status.as_u16(), reply.header("access-control-allow-origin")), (200, PAGE));
    let reply = get_with(&server, "/events", &[(header::ORIGIN, PAGE)]).await;
    assert_eq!((reply.status.as_u16(), reply.header("access-control-allow-origin")), (200, ""));
}

// ---------------------------------------------------------------------------------------------------------------------
// Sessions

const USER: &str = "user";

async fn user_of(session: Option<&Session>) -> Result<String, Refusal> {
    let session = session.ok_or(Refusal::forbidden())?;
    session.get(USER).await.ok().flatten().ok_or(Refusal::unauthorized())
}

/// Takes the session from the extension that a session layer outside the hub's layer sets.
async fn by_session(request: StreamRequest) -> Result<Subscription, Refusal> {
    Ok(Subscription::for_user(user_of(request.extensions().get()).await?))
}

async fn by_extractor(State(hub): State<Hub>, session: Session, request: StreamRequest) -> EventStream {
    match user_of(Some(&session)).await {
        Ok(user) => hub.respond(request, Subscription::for_user(user)),
        Err(refusal) => hub.refuse(refusal),
    }
}

async fn log_in(session: Session, user: String) {
    session.insert(USER, user).await.unwrap();
}

async fn log_out(session: Session) {
    session.flush().await.unwrap();
}

fn with_sessions(hub: &Hub, mount: &str) -> Router {
    let routes = Router::new().route("/login", post(log_in)).route("/logout", post(log_out));
    let app = match mount {
        "layer" => routes.layer(hub.layer("/events", by_session)),
        "endpoint" => routes.route_service("/events", hub.endpoint(by_session)),
        _ => routes.merge(Router::new().route("/events", get(by_extractor)).with_state(hub.clone())),
    };
    app.layer(SessionManagerLayer::new(MemoryStore::default()).with_secure(false))
}

/// Returns the cookie of a new session.
async fn sign_in(server: &Server, user: &'static str) -> String {
    let reply = send(server.addr, Request::post("/login").body(user).unwrap()).await;
    assert_eq!(reply.status, 200);
    reply.header("set-cookie").split(';').next().unwrap().to_owned()
}

#[tokio::test]
async fn session_receives_the_events_of_its_user_until_the_logout() {
    for mount in ["layer", "endpoint", "handler"] {
        let hub = Hub::builder().build().unwrap();
        let server = Server::start(&hub, with_sessions(&hub, mount)).await;
        assert_eq!(kit::get(server.addr, "/events").await.status, 401, "{mount}");

        let (ada, bob) = (sign_in(&server, "ada").await, sign_in(&server, "bob").await);
        let mut tabs = Vec::new();
        for cookie in [&ada, &ada, &bob] {
            let mut events = get_with(&server, "/events", &[(header::COOKIE, cookie)]).await.events();
            events.caught_up().await;
            tabs.push(events);
        }
        let published = hub.user("ada").publish(Event::unnamed("for ada")).await.unwrap();
        assert_eq!(published.connections, 2, "{mount}");
        hub.user("bob").publish(Event::unnamed("for bob")).await.unwrap();
        for (events, data) in tabs.iter_mut().zip(["for ada", "for ada", "for bob"]) {
            assert_eq!(events.next().await.data, data, "{mount}");
        }

        // A reconnect after the logout is refused, although its id belongs to a permitted stream.
        let request = Request::post("/logout").header(header::COOKIE, &ada).body("").unwrap();
        assert_eq!(send(server.addr, request).await.status, 200);
        let id = tabs[0].last_id.clone();
        let headers = [(header::COOKIE, ada.as_str()), (HeaderName::from_static("last-event-id"), &id)];
        assert_eq!(get_with(&server, "/events", &headers).await.status, 401, "{mount}");
    }
}

#[tokio::test]
async fn hook_does_not_see_a_session_layer_inside_the_hubs_layer() {
    let hub = Hub::builder().build().unwrap();
    let app = routes()
        .layer(SessionManagerLayer::new(MemoryStore::default()).with_secure(false))
        .layer(hub.layer("/events", by_session));
    let server = Server::start(&hub, app).await;
    assert_eq!(kit::get(server.addr, "/events").await.status, 403, "the hook has no session");
}

// ---------------------------------------------------------------------------------------------------------------------
// All of them

#[tokio::test]
async fn streams_work_under_all_layers_together() {
    works_with(|app| {
        app.layer(SessionManagerLayer::new(MemoryStore::default()))
            .layer(CatchPanicLayer::new())
            .layer(RequestBodyLimitLayer::new(1 << 20))
            .layer(CompressionLayer::new())
            .layer(timeout(Duration::from_secs(10)))
            .layer(cors())
            .layer(TraceLayer::new_for_http())
    })
    .await;
}

/// Without axum, because its `Router` boxes every body.
#[tokio::test]
async fn streams_work_in_a_stack_of_tower_services_without_axum() {
    let hub = Hub::builder().build().unwrap();
    let inner = service_fn(async |_: Request<_>| Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(LARGE)))));
    let service = ServiceBuilder::new()
        .layer(TraceLayer::new_for_http())
        .layer(CompressionLayer::new())
        .layer(CatchPanicLayer::new())
        .layer(RequestBodyLimitLayer::new(10))
        .service(hub.layer("/events", Public::topics(TopicFilter::any())).layer(inner));
    let request = |path| Request::get(path).header("accept-encoding", "gzip").body(Full::<Bytes>::default()).unwrap();
    let response = soon(service.clone().oneshot(request("/other"))).await.unwrap();
    assert_eq!(response.headers()["content-encoding"], "gzip");
    let response = soon(service.oneshot(request("/events?topic=t"))).await.unwrap();
    assert!(response.headers().get("content-encoding").is_none());
    let mut body = Box::pin(response.into_body());
    let mut next = async || soon(body.frame()).await.unwrap().unwrap().into_data().unwrap();
    assert!(next().await.starts_with(b"event: hub.hello"));
    assert!(next().await.starts_with(b"event: hub.live"));
    let published = hub.topic("t").publish(Event::unnamed("x")).await.unwrap();
    assert_eq!(next().await, format!("data: x\nid: {}\n\n", published.position));
}

/// Below a router, the endpoint is called in another task than the one that polls the socket. So
/// the hub finds the socket only through the `SseConnectInfo` of the request.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stalled_http2_stream_is_closed_with_its_socket_when_requests_carry_connect_info() {
    let deadline = Duration::from_millis(500);
    let wide = Retention::replay().bytes(64 << 20);
    let hub = Hub::builder().write_deadline(deadline).topic_retention(wide).build().unwrap();
    let ip = async |ConnectInfo(peer): ConnectInfo<SocketAddr>, Extension(info): Extension<SseConnectInfo>| {
        assert_eq!(info.peer_addr(), Some(peer));
        "same peer"
    };
    let endpoint = hub.endpoint(Public::topics(TopicFilter::any()));
    let app = Router::new().route_service("/events", endpoint).route("/ip", get(ip));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let serve = axum::serve(kit::hub_listener(&hub, listener), SseMakeService::new(app));
    tokio::spawn(async move { serve.await.unwrap() });
    assert_eq!(kit::get(addr, "/ip").await.text().await, "same peer");

    let mut sender = http2(addr).await;
    let request = Request::get("http://test/events?topic=t").body(Full::default()).unwrap();
    let _unread = soon(sender.send_request(request)).await.unwrap();
    until(|| hub.stats().connections == 1).await;
    // More bytes than the HTTP/2 windows and the socket buffers hold.
    for _ in 0..50 {
        hub.topic("t").publish(Event::unnamed("x".repeat(400_000))).await.unwrap();
    }
    until(|| hub.stats().ended(EndReason::Stalled) == 1).await;
    until(|| sender.is_closed()).await;
}

/// Two hubs in one process, where the listener of one serves the streams of the other.
#[tokio::test]
async fn socket_of_another_hubs_listener_is_not_taken_over() {
    let watching = Hub::builder().build().unwrap();
    let hub = Hub::builder().build().unwrap();
    let app = Router::new().route_service("/events", hub.endpoint(Public::topics(TopicFilter::any())));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let serve = axum::serve(watching.listener_with_takeover(listener), SseMakeService::new(app));
    tokio::spawn(async move { serve.await.unwrap() });
    let reply = kit::get(addr, "/events?topic=t").await;
    // The head of a stream whose socket is taken over has `connection: close`.
    assert!(!reply.headers.contains_key("connection"), "{:?}", reply.headers);
    let mut events = reply.events();
    events.caught_up().await;
    hub.topic("t").publish(Event::unnamed("x")).await.unwrap();
    assert_eq!(events.next_own().await.data, "x");
    let drained = soon(hub.drain(Duration::ZERO)).await;
    assert_eq!((drained.ended, drained.cut), (1, 0));
}
