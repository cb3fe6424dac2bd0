//! What the tests share: a server on a free loopback port, and a client whose parser is not ours.
//!
//! Everything that waits has a time limit far above what it waits for, so that a broken promise fails instead of hangs.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of it")]

pub mod access;
pub mod broker;
pub mod certificate;
pub mod example;
pub mod nats;
pub mod page;
pub mod port;
pub mod proxy;
pub mod redis;
pub mod skip;

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

/// Far above anything that is waited for.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Waits, but not for ever.
#[track_caller]
pub fn soon<F: Future>(future: F) -> impl Future<Output = F::Output> {
    let caller = std::panic::Location::caller();
    async move {
        match tokio::time::timeout(PATIENCE, future).await {
            Ok(output) => output,
            Err(_) => panic!("waited too long at {caller}"),
        }
    }
}

/// Looks again and again until it holds; for what cannot be awaited, such as a counter of somebody else's.
#[track_caller]
pub fn until(mut holds: impl FnMut() -> bool) -> impl Future<Output = ()> {
    soon(async move {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
}

/// Whether the hub takes the sockets of servers over. `tests/run` runs what uses sockets in both ways.
pub fn takeover() -> bool {
    std::env::var_os("TOWER_SSE_TAKEOVER").is_some()
}

/// The hub's listener.
pub fn watched(
    hub: &Hub,
    listener: TcpListener,
) -> axum::serve::TapIo<tower_sse::SseListener<TcpListener>, fn(&mut tower_sse::SseIo<TcpStream>)> {
    if takeover() { hub.listener_with_takeover(listener) } else { hub.listener(listener) }
}

/// An axum application on the hub's listener.
pub struct Server {
    pub addr: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<()>,
}

impl Server {
    /// With `ConnectInfo`, as applications have it.
    pub async fn start(hub: &Hub, app: Router) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel();
        let serve = axum::serve(watched(hub, listener), app.into_make_service_with_connect_info::<SocketAddr>())
            .with_graceful_shutdown(async { drop(stopped.await) });
        let task = tokio::spawn(async move { serve.await.unwrap() });
        Self { addr, stop: Some(stop), task }
    }

    /// Begins the graceful shutdown and waits for its end.
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

/// One event as an independent parser read it.
pub type Sse = eventsource_stream::Event;

/// The data of an event, which is JSON.
pub fn parsed(event: &Sse) -> Value {
    serde_json::from_str(&event.data).unwrap()
}

/// The topics in the data of an event, sorted.
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

    /// The whole of a body that ends.
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

/// A stream of events, parsed.
pub struct Events {
    inner: Pin<Box<dyn Stream<Item = Result<Sse, String>> + Send>>,
    /// The last id that was seen: what a browser would send back.
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

    /// The next event of any kind; `None` at a clean end, an error at another one.
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

    /// The next event of any kind.
    #[track_caller]
    pub fn next(&mut self) -> impl Future<Output = Sse> {
        let next = self.try_next();
        async { next.await.expect("the stream ended").expect("the stream broke") }
    }

    /// The next event that is not the hub's own.
    pub async fn next_own(&mut self) -> Sse {
        loop {
            let event = self.next().await;
            if !event.event.starts_with("hub.") {
                return event;
            }
        }
    }

    /// Reads on until it has caught up; returns what came before.
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

    /// Reads to the clean end.
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

/// A request on a connection of its own, HTTP/1.1.
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

/// Comes back with an id, as a browser does.
pub async fn resume(addr: SocketAddr, path: &str, id: &str) -> Events {
    send(addr, Request::get(path).header("last-event-id", id).body("").unwrap()).await.events()
}

/// A connection that speaks HTTP/2 from the first byte.
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
