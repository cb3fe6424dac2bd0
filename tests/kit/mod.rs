//! Shared helpers of the tests: a server on a free loopback port, and a client with an independent
//! event-stream parser.
//!
//! Every wait has a time limit far above the expected time, so that a regression fails the test
//! instead of blocking it.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of it")]

pub mod access;
pub mod broker;
pub mod certificate;
pub mod example;
pub mod failover;
pub mod nats;
pub mod nats_cluster;
pub mod page;
pub mod pgbouncer;
pub mod port;
pub mod postgres;
pub mod postgres_client;
pub mod processes;
pub mod proxy;
pub mod redis;
pub mod skip;
pub mod sockets;

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::time::Duration;

use axum::Router;
use bytes::Bytes;
use eventsource_stream::Eventsource;
use futures::{Stream, StreamExt};
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyDataStream, BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::Value;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tower_sse::Hub;

/// The time limit of most waits, far above the expected time.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Waits for a future, and panics with the place of the caller after [`PATIENCE`].
#[track_caller]
pub fn soon<F: Future>(future: F) -> impl Future<Output = F::Output> {
    within(PATIENCE, future)
}

/// Waits for a future, and panics with the place of the caller after `limit`.
#[track_caller]
pub fn within<F: Future>(limit: Duration, future: F) -> impl Future<Output = F::Output> {
    let caller = std::panic::Location::caller();
    async move {
        match tokio::time::timeout(limit, future).await {
            Ok(output) => output,
            Err(_) => panic!("waited too long at {caller}"),
        }
    }
}

/// Polls a condition every millisecond until it holds, for state that cannot be awaited, such as a
/// counter of the hub.
#[track_caller]
pub fn until(holds: impl FnMut() -> bool) -> impl Future<Output = ()> {
    soon(eventually(holds))
}

/// Polls a condition as [`until`], without a time limit.
pub async fn eventually(mut holds: impl FnMut() -> bool) {
    while !holds() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Whether the hub takes over the sockets of servers. `tests/run` runs the suites that use sockets
/// with and without takeover.
pub fn takeover() -> bool {
    std::env::var_os("TOWER_SSE_TAKEOVER").is_some()
}

/// Wraps a listener in the listener of the hub, with or without takeover.
pub fn hub_listener(
    hub: &Hub,
    listener: TcpListener,
) -> axum::serve::TapIo<tower_sse::SseListener<TcpListener>, fn(&mut tower_sse::SseIo<TcpStream>)> {
    if takeover() { hub.listener_with_takeover(listener) } else { hub.listener(listener) }
}

/// An axum application that is served through the listener of the hub.
pub struct Server {
    pub addr: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<()>,
}

impl Server {
    /// Starts a server with `ConnectInfo`, as most applications do.
    pub async fn start(hub: &Hub, app: Router) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel();
        let serve = axum::serve(hub_listener(hub, listener), app.into_make_service_with_connect_info::<SocketAddr>())
            .with_graceful_shutdown(async { drop(stopped.await) });
        let task = tokio::spawn(async move { serve.await.unwrap() });
        Self { addr, stop: Some(stop), task }
    }

    /// Shuts the server down gracefully and waits for its end.
    pub async fn stop(mut self) {
        drop(self.stop.take());
        soon(&mut self.task).await.unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// One event, as parsed by the `eventsource-stream` crate.
pub type Sse = eventsource_stream::Event;

/// Parses the data of an event as JSON.
pub fn parsed(event: &Sse) -> Value {
    serde_json::from_str(&event.data).unwrap()
}

/// Returns the topics in the data of an event, sorted.
pub fn topics_of(event: &Sse) -> Vec<String> {
    let mut topics: Vec<String> = serde_json::from_value(parsed(event)["topics"].take()).unwrap();
    topics.sort_unstable();
    topics
}

/// A response that may be a stream.
pub struct Reply {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Incoming,
}

impl Reply {
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    /// Reads the body to its end.
    pub async fn text(self) -> String {
        let bytes = soon(self.body.collect()).await.unwrap().to_bytes();
        String::from_utf8(bytes.to_vec()).unwrap()
    }

    pub fn events(self) -> Events {
        assert_eq!(self.status, StatusCode::OK);
        assert_eq!(self.header("content-type"), "text/event-stream");
        Events::parse(BodyDataStream::new(self.body))
    }
}

/// A stream of parsed events.
pub struct Events {
    inner: Pin<Box<dyn Stream<Item = Result<Sse, String>> + Send>>,
    /// The last event id, which a browser would send when it reconnects.
    pub last_id: String,
}

impl Events {
    pub fn parse<S, E>(bytes: S) -> Self
    where
        S: Stream<Item = Result<Bytes, E>> + Send + 'static,
        E: std::fmt::Display + std::fmt::Debug + Send + 'static,
    {
        let inner = Box::pin(bytes.eventsource().map(|event| event.map_err(|error| error.to_string())));
        Self { inner, last_id: String::new() }
    }

    /// Returns the next event of any kind, `None` at a clean end, or the error that ended the
    /// stream.
    #[track_caller]
    pub fn try_next(&mut self) -> impl Future<Output = Option<Result<Sse, String>>> {
        soon(async {
            let event = self.inner.next().await?;
            if let Ok(event) = &event
                && !event.id.is_empty()
            {
                self.last_id.clone_from(&event.id);
            }
            Some(event)
        })
    }

    /// Returns the next event of any kind.
    #[track_caller]
    pub fn next(&mut self) -> impl Future<Output = Sse> {
        let next = self.try_next();
        async { next.await.expect("the stream ended").expect("the stream broke") }
    }

    /// Returns the next event of the application. Skips the control events of the hub.
    pub async fn next_own(&mut self) -> Sse {
        loop {
            let event = self.next().await;
            if !event.event.starts_with("hub.") {
                return event;
            }
        }
    }

    /// Reads up to the next `hub.live` and returns the events before it.
    pub async fn caught_up(&mut self) -> Vec<Sse> {
        let mut before = Vec::new();
        loop {
            let event = self.next().await;
            if event.event == "hub.live" {
                return before;
            }
            before.push(event);
        }
    }

    /// Reads to the end, which has to be clean, and returns the events.
    pub async fn rest(mut self) -> Vec<Sse> {
        let mut rest = Vec::new();
        while let Some(event) = self.try_next().await {
            rest.push(event.expect("the stream broke"));
        }
        rest
    }
}

async fn connect(addr: SocketAddr) -> TcpStream {
    let tcp = TcpStream::connect(addr).await.unwrap();
    tcp.set_nodelay(true).unwrap();
    tcp
}

/// Sends a request over a new HTTP/1.1 connection.
pub async fn send(addr: SocketAddr, request: Request<&'static str>) -> Reply {
    let tcp = connect(addr).await;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(tcp)).await.unwrap();
    tokio::spawn(connection);
    let (mut parts, body) = request.into_parts();
    parts.headers.entry("host").or_insert(http::HeaderValue::from_static("test"));
    reply(soon(sender.send_request(Request::from_parts(parts, Full::new(Bytes::from(body))))).await.unwrap())
}

pub async fn get(addr: SocketAddr, path: &str) -> Reply {
    send(addr, Request::get(path).body("").unwrap()).await
}

/// Opens a stream and reads until it has caught up.
pub async fn subscribe(addr: SocketAddr, path: &str) -> Events {
    let mut events = get(addr, path).await.events();
    events.caught_up().await;
    events
}

/// Opens a stream with the last event id of an earlier one, as a browser does when it reconnects.
pub async fn resume(addr: SocketAddr, path: &str, id: &str) -> Events {
    send(addr, Request::get(path).header("last-event-id", id).body("").unwrap()).await.events()
}

/// Opens an HTTP/2 connection with prior knowledge.
pub async fn http2(addr: SocketAddr) -> hyper::client::conn::http2::SendRequest<Full<Bytes>> {
    let io = TokioIo::new(connect(addr).await);
    let (sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
    tokio::spawn(connection);
    sender
}

pub fn reply(response: Response<Incoming>) -> Reply {
    let (parts, body) = response.into_parts();
    Reply { status: parts.status, headers: parts.headers, body }
}
