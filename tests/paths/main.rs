//! The guarantees behind real proxies, and the limits that a proxy sets to them.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    unreachable_pub,
    reason = "tests and their helpers may panic"
)]

mod documented;
#[path = "../kit/mod.rs"]
mod kit;
mod nginx;
mod other;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::kit::{Events, Reply, Server, get, http2, reply, resume, send, soon, subscribe, until};
use axum::Router;
use axum::extract::{ConnectInfo, Request};
use documented::replaced;
use http::header;
use http_body_util::BodyExt;
use nginx::{Nginx, free_port, plain};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_util::io::ReaderStream;
use tower_http::compression::CompressionLayer;
use tower_sse::backplane::Memory;
use tower_sse::{Disconnect, EndReason, Event, Hub, Public, TopicFilter};

/// The time to the first byte, and from a publish to the event at the client.
const PROMPT: Duration = Duration::from_secs(1);
/// The time until the hub removes a disconnected client.
const REMOVED: Duration = Duration::from_millis(100);
const PATH: &str = "/events?topic=t";

/// Waits for a future, which may take up to ten times `expected`, because test machines are shared.
async fn within<F: Future>(expected: Duration, step: &str, future: F) -> F::Output {
    let begun = Instant::now();
    let output = soon(future).await;
    let took = begun.elapsed();
    eprintln!("{step}: {took:?}");
    assert!(took < expected * 10, "{step}: {took:?}");
    output
}

fn app(hub: &Hub) -> Router {
    let seen = async |ConnectInfo(peer): ConnectInfo<SocketAddr>, request: Request| {
        let host = request.headers().get("host").unwrap().to_str().unwrap();
        format!("{:?} {host} {peer}", request.version())
    };
    Router::new()
        .route_service("/events", hub.endpoint(Public::topics(TopicFilter::any())))
        .route("/readyz", axum::routing::get(async || ()))
        .route("/seen", axum::routing::get(seen))
}

async fn publish(hub: &Hub, text: impl Into<String>) {
    hub.topic("t").publish(Event::unnamed(text.into())).await.unwrap();
}

/// Returns the HTTP version, the host and the peer address that the application sees.
async fn seen(nginx: &Nginx) -> [String; 3] {
    let text = get(nginx.addr, "/seen").await.text().await;
    text.split(' ').map(str::to_owned).collect::<Vec<_>>().try_into().unwrap()
}

struct Behind {
    hub: Hub,
    server: Server,
    nginx: Nginx,
}

impl Behind {
    async fn start(site: impl FnOnce(SocketAddr, SocketAddr) -> String) -> Self {
        Self::of(Hub::builder().build().unwrap(), site).await
    }

    async fn of(hub: Hub, site: impl FnOnce(SocketAddr, SocketAddr) -> String) -> Self {
        let server = Server::start(&hub, app(&hub)).await;
        let nginx = Nginx::start(|listen| site(listen, server.addr));
        Self { hub, server, nginx }
    }

    async fn wait_until_removed(&self) {
        until(|| self.hub.stats().connections == 0).await;
    }

    async fn check_guarantees(self, open: impl AsyncFn(SocketAddr, &str) -> Reply) {
        check_guarantees(&self.hub, self.server, self.nginx.addr, open).await;
    }
}

/// Checks the guarantees of a stream, from its first byte to its end.
async fn check_guarantees(hub: &Hub, server: Server, addr: SocketAddr, open: impl AsyncFn(SocketAddr, &str) -> Reply) {
    let mut events = within(PROMPT, "first byte", async {
        let mut events = open(addr, "").await.events();
        let hello = events.next().await;
        assert!(hello.event == "hub.hello" && hello.data.contains("fresh"), "{hello:?}");
        events
    })
    .await;
    events.caught_up().await;
    for text in ["one", "two", "three", &"large".repeat(40_000)] {
        publish(hub, text).await;
        let event = within(PROMPT, &format!("an event of {} bytes", text.len()), events.next()).await;
        assert!(event.data == text);
    }

    let id = events.last_id.clone();
    drop(events);
    within(REMOVED, "removed", until(|| hub.stats().connections == 0)).await;
    publish(hub, "while away").await;
    let mut events = within(PROMPT, "reconnected", open(addr, &id)).await.events();
    let hello = events.next().await;
    assert!(hello.event == "hub.hello" && hello.data.contains("resuming"), "{hello:?}");
    assert_eq!(events.next().await.data, "while away");
    events.caught_up().await;

    let drained = tokio::spawn({
        let hub = hub.clone();
        async move { hub.drain(Duration::from_secs(1)).await }
    });
    let bye = within(PROMPT, "end", events.rest()).await.pop().unwrap();
    assert!(bye.event == "hub.bye" && bye.retry.is_some(), "{bye:?}");
    assert_eq!(soon(drained).await.unwrap().cut, 0);
    within(PROMPT, "the application stops", server.stop()).await;
}

async fn over_http_1(addr: SocketAddr, id: &str) -> Reply {
    send(addr, http::Request::get(PATH).header("last-event-id", id).body("").unwrap()).await
}

async fn over_http_2(addr: SocketAddr, id: &str) -> Reply {
    let request = http::Request::get(format!("http://test{PATH}")).header("last-event-id", id);
    let mut sender = http2(addr).await;
    reply(soon(sender.send_request(request.body(http_body_util::Full::default()).unwrap())).await.unwrap())
}

#[tokio::test]
async fn guarantees_hold_with_the_default_configuration() {
    if !nginx::is_installed() {
        return;
    }
    let behind = Behind::start(|listen, to| plain(listen, to, "")).await;
    let [version, host, _] = seen(&behind.nginx).await;
    eprintln!("default version to the application: {version}");
    assert_eq!(host, behind.server.addr.to_string(), "the default passes the address of the application as host");
    behind.check_guarantees(over_http_1).await;
}

#[tokio::test]
async fn guarantees_hold_over_http_1_0_to_the_application() {
    if !nginx::is_installed() {
        return;
    }
    let behind = Behind::start(|listen, to| plain(listen, to, "proxy_http_version 1.0;")).await;
    assert_eq!(seen(&behind.nginx).await[0], "HTTP/1.0");
    behind.check_guarantees(over_http_1).await;
}

#[tokio::test]
async fn guarantees_hold_with_the_documented_configuration() {
    if !nginx::is_installed() {
        return;
    }
    let behind = Behind::start(documented::nginx).await;
    let [first, second] = [seen(&behind.nginx).await, seen(&behind.nginx).await];
    assert_eq!([&first[0], &first[1]], ["HTTP/1.1", "test"]);
    assert_eq!(first[2], second[2], "nginx keeps the connection to the application open");
    behind.check_guarantees(over_http_1).await;
}

#[tokio::test]
async fn guarantees_hold_over_http_2_from_the_client() {
    if !nginx::is_installed() {
        return;
    }
    let site = |listen, to| {
        replaced(&documented::nginx(listen, to), 1, &format!("listen {listen}"), &format!("listen {listen} http2"))
    };
    Behind::start(site).await.check_guarantees(over_http_2).await;
}

// -------------------------------------------------------------------------------------------------
// Idle streams

#[tokio::test]
async fn an_idle_stream_stays_open_when_heartbeats_are_shorter_than_the_timeout() {
    if !nginx::is_installed() {
        return;
    }
    let hub = Hub::builder().heartbeat(Duration::from_millis(200)).build().unwrap();
    let short =
        |listen, to| replaced(&documented::nginx(listen, to), 1, "proxy_read_timeout 60s", "proxy_read_timeout 1s");
    let behind = Behind::of(hub, short).await;
    let mut body = get(behind.nginx.addr, PATH).await.body;
    let begun = Instant::now();
    let mut read = String::new();
    let mut next = async || {
        let frame = soon(body.frame()).await.expect("the stream ended").expect("the stream broke");
        String::from_utf8(frame.into_data().unwrap().to_vec()).unwrap()
    };
    while begun.elapsed() < Duration::from_secs(3) {
        read.push_str(&next().await);
    }
    let beats = read.lines().filter(|line| *line == ":").count();
    assert!(beats >= 3, "{read}");
    publish(&behind.hub, "headline").await;
    while !next().await.contains("data: headline\n") {}
}

#[tokio::test]
async fn an_idle_stream_without_heartbeats_is_cut_by_the_proxy_and_resumes() {
    if !nginx::is_installed() {
        return;
    }
    let hub = Hub::builder().heartbeat(Duration::from_secs(100)).build().unwrap();
    let behind = Behind::of(hub, |listen, to| plain(listen, to, "proxy_read_timeout 1s;")).await;
    let mut events = subscribe(behind.nginx.addr, PATH).await;
    let cut = within(Duration::from_secs(1), "cut", events.try_next()).await;
    assert!(matches!(cut, Some(Err(_))), "the stream has to end with an error: {cut:?}");
    within(REMOVED, "removed", behind.wait_until_removed()).await;
    publish(&behind.hub, "meanwhile").await;
    let mut events = resume(behind.nginx.addr, PATH, &events.last_id).await;
    assert_eq!(events.next().await.event, "hub.hello");
    assert_eq!(events.next().await.data, "meanwhile");
}

// -------------------------------------------------------------------------------------------------
// Compression and buffering

/// Starts curl, which decompresses the stream.
fn decompressing(addr: SocketAddr) -> (tokio::process::Child, Events) {
    let mut curl = tokio::process::Command::new("curl");
    curl.args(["-sN", "--compressed", &format!("http://{addr}{PATH}")]).stdout(std::process::Stdio::piped());
    let mut child = curl.kill_on_drop(true).spawn().unwrap();
    let events = Events::parse(ReaderStream::new(child.stdout.take().unwrap()));
    (child, events)
}

#[tokio::test]
async fn a_stream_that_nginx_compresses_is_delivered_promptly() {
    if !nginx::is_installed() {
        return;
    }
    let hub = Hub::builder().build().unwrap();
    // The compression layer of the application does not compress streams.
    let server = Server::start(&hub, app(&hub).layer(CompressionLayer::new())).await;
    let nginx = Nginx::start(|listen| {
        format!("gzip on; gzip_types text/event-stream; gzip_min_length 0; {}", documented::nginx(listen, server.addr))
    });
    let request = http::Request::get(PATH).header(header::ACCEPT_ENCODING, "gzip").body("").unwrap();
    assert_eq!(send(nginx.addr, request).await.header("content-encoding"), "gzip", "nginx has to compress the stream");
    let (curl, mut events) = decompressing(nginx.addr);
    assert_eq!(within(PROMPT, "first byte", events.next()).await.event, "hub.hello");
    events.caught_up().await;
    for text in ["one", "two", &"large".repeat(40_000)] {
        publish(&hub, text).await;
        assert!(within(PROMPT, "event", events.next()).await.data == text);
    }
    drop((events, curl));
    within(REMOVED, "removed", until(|| hub.stats().connections == 0)).await;
}

#[tokio::test]
async fn a_proxy_that_buffers_by_configuration_holds_back_even_the_response_head() {
    if !nginx::is_installed() {
        return;
    }
    let buffers = "proxy_buffering on; proxy_ignore_headers X-Accel-Buffering;";
    let behind = Behind::start(|listen, to| plain(listen, to, buffers)).await;
    let mut tcp = tokio::net::TcpStream::connect(behind.nginx.addr).await.unwrap();
    tcp.write_all(format!("GET {PATH} HTTP/1.1\r\nhost: test\r\n\r\n").as_bytes()).await.unwrap();
    until(|| behind.hub.stats().connections == 1).await;
    publish(&behind.hub, "small").await;
    let mut byte = [0];
    let nothing = tokio::time::timeout(Duration::from_secs(2), tcp.read_exact(&mut byte)).await;
    assert!(nothing.is_err(), "{byte:?}");
    // nginx sends only when its buffers are full.
    publish(&behind.hub, "x".repeat(100_000)).await;
    soon(tcp.read_exact(&mut byte)).await.unwrap();
    assert_eq!(&byte, b"H");
}

// -------------------------------------------------------------------------------------------------
// Stalled readers and ends of streams

#[tokio::test]
async fn a_stalled_reader_behind_nginx_is_cut_and_does_not_delay_others() {
    if !nginx::is_installed() {
        return;
    }
    let hub = Hub::builder().write_deadline(Duration::from_millis(500)).build().unwrap();
    let behind = Behind::of(hub, documented::nginx).await;
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut stalled = socket.connect(behind.nginx.addr).await.unwrap();
    stalled.write_all(format!("GET {PATH} HTTP/1.1\r\nhost: test\r\n\r\n").as_bytes()).await.unwrap();
    let mut first = [0; 16];
    soon(stalled.read_exact(&mut first)).await.unwrap();
    let mut other = subscribe(behind.nginx.addr, PATH).await;

    let large = "x".repeat(100_000);
    let mut published = 0;
    while behind.hub.stats().ended(EndReason::Stalled) == 0 {
        publish(&behind.hub, large.as_str()).await;
        published += large.len();
        assert!(other.next().await.data == large);
        assert!(published < 500_000_000, "the stalled reader was not cut");
    }
    eprintln!("cut after {} kB", published / 1000);
    assert_eq!(behind.hub.stats().connections, 1);
}

#[tokio::test]
async fn an_abort_arrives_as_an_error_over_http_1_1_and_as_a_clean_end_over_http_1_0() {
    if !nginx::is_installed() {
        return;
    }
    for (version, is_error) in [("1.0", false), ("1.1", true)] {
        let hub = Hub::builder().stream_end(tower_sse::StreamEnd::Abort).build().unwrap();
        let to_application = format!("proxy_http_version {version};");
        let behind = Behind::of(hub, |listen, to| plain(listen, to, &to_application)).await;
        let mut events = subscribe(behind.nginx.addr, PATH).await;
        behind.hub.everyone().disconnect(Disconnect::now()).await.unwrap();
        assert_eq!(events.next().await.event, "hub.bye");
        let end = events.try_next().await;
        assert_eq!(matches!(end, Some(Err(_))), is_error, "{version}: {end:?}");
        assert_eq!(end.is_none(), !is_error, "{version}: {end:?}");
    }
}

#[tokio::test]
async fn a_crash_of_nginx_ends_the_stream_with_an_error_and_the_client_resumes() {
    if !nginx::is_installed() {
        return;
    }
    let mut behind = Behind::start(documented::nginx).await;
    let addr = behind.nginx.addr;
    let mut events = subscribe(addr, PATH).await;
    behind.nginx.kill_workers();
    let end = events.try_next().await;
    assert!(matches!(end, Some(Err(_))), "{end:?}");
    within(REMOVED, "removed", behind.wait_until_removed()).await;
    publish(&behind.hub, "one").await;
    // The listening socket stays open, so the client waits for the next worker.
    let mut events = within(PROMPT, "reconnected", resume(addr, PATH, &events.last_id)).await;
    assert_eq!(events.next().await.event, "hub.hello");
    assert_eq!(events.next().await.data, "one");
    events.caught_up().await;

    behind.nginx.stop();
    let end = events.try_next().await;
    assert!(matches!(end, Some(Err(_))), "{end:?}");
    within(REMOVED, "removed", behind.wait_until_removed()).await;
    publish(&behind.hub, "two").await;
    behind.nginx.restart();
    let mut events = resume(addr, PATH, &events.last_id).await;
    assert_eq!(events.next().await.event, "hub.hello");
    assert_eq!(events.next().await.data, "two");
}

#[tokio::test]
async fn a_reload_of_nginx_keeps_streams_until_the_shutdown_timeout() {
    if !nginx::is_installed() {
        return;
    }
    let hub = Hub::builder().build().unwrap();
    let server = Server::start(&hub, app(&hub)).await;
    let nginx = Nginx::start_with("worker_shutdown_timeout 2s;", |listen| documented::nginx(listen, server.addr));
    let mut events = subscribe(nginx.addr, PATH).await;
    let before = nginx.workers();
    nginx.reload();
    until(|| nginx.workers().iter().any(|worker| !before.contains(worker))).await;
    publish(&hub, "after the reload").await;
    assert_eq!(events.next().await.data, "after the reload");
    let end = within(Duration::from_secs(2), "the old worker exits", events.try_next()).await;
    assert!(matches!(end, Some(Err(_))), "{end:?}");
    publish(&hub, "meanwhile").await;
    let mut events = resume(nginx.addr, PATH, &events.last_id).await;
    assert_eq!(events.next().await.event, "hub.hello");
    assert_eq!(events.next().await.data, "meanwhile");
}

// -------------------------------------------------------------------------------------------------
// The application is down

#[tokio::test]
async fn nginx_refuses_streams_with_a_retry_time_while_the_application_is_down() {
    if !nginx::is_installed() {
        return;
    }
    let application = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let default = Nginx::start(|listen| plain(listen, application, ""));
    assert_eq!(get(default.addr, PATH).await.status, 502, "a browser does not reconnect after a 502");
    let nginx = Nginx::start(|listen| documented::nginx(listen, application));
    let refused = get(nginx.addr, PATH).await.events().rest().await;
    let [refused] = &refused[..] else { panic!("{refused:?}") };
    let retry = refused.retry.unwrap();
    assert!((Duration::from_secs(1)..=Duration::from_secs(4)).contains(&retry));
    let data = format!(r#"{{"reason":"busy","retry_ms":{}}}"#, retry.as_millis());
    assert_eq!((refused.event.as_str(), &refused.data), ("hub.refused", &data));
    assert_eq!(get(nginx.addr, "/other").await.status, 502, "only requests for a stream get the refusal");

    let hub = Hub::builder().build().unwrap();
    let listener = tokio::net::TcpListener::bind(application).await.unwrap();
    let service = app(&hub).into_make_service_with_connect_info::<SocketAddr>();
    let task = tokio::spawn(axum::serve(kit::hub_listener(&hub, listener), service).into_future());
    assert_eq!(get(nginx.addr, PATH).await.events().next().await.event, "hub.hello");
    task.abort();
}

#[tokio::test]
async fn streams_of_a_drained_instance_resume_on_the_other() {
    if !nginx::is_installed() {
        return;
    }
    let log = Memory::new();
    let mut instances = Vec::new();
    for name in ["A", "B"] {
        let hub = Hub::builder().backplane(log.clone()).instance_name(name).build().unwrap();
        until(|| hub.is_ready()).await;
        let server = Server::start(&hub, app(&hub)).await;
        instances.push((name, hub, server));
    }
    let both = format!("{}; server {}", instances[0].2.addr, instances[1].2.addr);
    let nginx = Nginx::start(|listen| {
        let one = documented::nginx(listen, instances[0].2.addr);
        replaced(&one, 1, &instances[0].2.addr.to_string(), &both)
    });
    let mut events = get(nginx.addr, PATH).await.events();
    let hello = events.next().await;
    events.caught_up().await;
    let here = instances.iter().position(|(name, ..)| hello.data.contains(&format!(r#""instance":"{name}""#))).unwrap();
    let (_, draining, draining_server) = instances.remove(here);
    let (other, remaining, _server) = &instances[0];

    publish(remaining, "one").await;
    assert_eq!(events.next().await.data, "one");
    soon(draining.drain(Duration::from_millis(200))).await;
    let id = events.last_id.clone();
    assert_eq!(events.rest().await.pop().unwrap().event, "hub.bye");
    draining_server.stop().await;
    publish(remaining, "two").await;
    // nginx may try the stopped instance first, and then passes the request on to the other.
    for _ in 0..4 {
        let mut events = resume(nginx.addr, PATH, &id).await;
        let hello = events.next().await;
        assert!(hello.data.contains(&format!(r#""instance":"{other}""#)), "{}", hello.data);
        assert_eq!(events.next().await.data, "two");
    }
}

// -------------------------------------------------------------------------------------------------
// Origins

#[tokio::test]
async fn browsers_without_fetch_metadata_need_the_host_header_from_the_proxy() {
    if !nginx::is_installed() {
        return;
    }
    let old = [("origin", "http://app.example")];
    let new = [("origin", "http://app.example"), ("sec-fetch-site", "same-origin")];
    let foreign = [("origin", "http://evil.example")];
    let good = Behind::start(documented::nginx).await;
    let default = Behind::start(|listen, to| plain(listen, to, "")).await;
    for (behind, headers, status) in [
        (&good, &old[..], 200),
        (&good, &new, 200),
        (&good, &foreign, 403),
        (&default, &old, 403),
        (&default, &new, 200),
        (&default, &foreign, 403),
    ] {
        let mut request = http::Request::get(PATH).header("host", "app.example");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        assert_eq!(send(behind.nginx.addr, request.body("").unwrap()).await.status, status, "{headers:?}");
    }
}
