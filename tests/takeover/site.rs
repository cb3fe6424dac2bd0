//! Servers with socket takeover, and counters that show whether a socket was taken over.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::routing::{get, post};
use http::{Request, Response, header};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tower::util::MapResponseLayer;
use tower_sse::{Drained, Event, Hub, HubBuilder};

use crate::kit::access::by_query;
use crate::kit::{Events, soon, until};
use crate::layers::watch;
use crate::peer::Peer;

/// The frames and the ends of the bodies of streams. The body of a socket that was taken over has
/// only its first frame, and an end.
#[derive(Debug, Default)]
pub struct Passed {
    pub frames: AtomicUsize,
    pub ended: AtomicUsize,
    pub dropped: AtomicUsize,
}

impl Passed {
    pub fn frames(&self) -> usize {
        self.frames.load(Ordering::SeqCst)
    }

    pub fn ended(&self) -> usize {
        self.ended.load(Ordering::SeqCst)
    }
}

/// An axum application with `/events` and other routes.
pub struct Site {
    pub hub: Hub,
    pub addr: SocketAddr,
    pub passed: Arc<Passed>,
    /// The number of requests for `/count`.
    pub counted: Arc<AtomicUsize>,
    stop: Option<oneshot::Sender<()>>,
    pub task: JoinHandle<()>,
}

impl Site {
    pub async fn start(builder: HubBuilder) -> Self {
        Self::with(builder, |app| app).await
    }

    /// Starts a site whose application is wrapped by `outside`.
    pub async fn with(builder: HubBuilder, outside: impl FnOnce(Router) -> Router) -> Self {
        Self::on(builder.build().unwrap(), TcpListener::bind("127.0.0.1:0").await.unwrap(), outside).await
    }

    /// Starts a site with a send buffer so small that a response needs several writes.
    pub async fn narrow(builder: HubBuilder, outside: impl FnOnce(Router) -> Router) -> Self {
        Self::narrow_on(builder.build().unwrap(), outside).await
    }

    pub async fn narrow_on(hub: Hub, outside: impl FnOnce(Router) -> Router) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        // Accepted sockets inherit the size.
        socket.set_send_buffer_size(1).unwrap();
        socket.bind(([127, 0, 0, 1], 0).into()).unwrap();
        Self::on(hub, socket.listen(64).unwrap(), outside).await
    }

    pub async fn on(hub: Hub, listener: TcpListener, outside: impl FnOnce(Router) -> Router) -> Self {
        let addr = listener.local_addr().unwrap();
        let (passed, counted) = (Arc::<Passed>::default(), Arc::<AtomicUsize>::default());
        let app = outside(app(&hub, &passed, &counted));
        let (stop, stopped) = oneshot::channel();
        let serve = axum::serve(hub.listener_with_takeover(listener), app.into_make_service())
            .with_graceful_shutdown(async { drop(stopped.await) });
        let task = tokio::spawn(async move { serve.await.unwrap() });
        Self { hub, addr, passed, counted, stop: Some(stop), task }
    }

    /// Shuts the server down without a drain, and waits for it.
    pub async fn shut_down(&mut self) {
        drop(self.stop.take());
        soon(&mut self.task).await.unwrap();
    }

    /// Drains the hub and shuts the server down, as an application does.
    pub async fn drain_and_shut_down(mut self, window: Duration) -> Drained {
        let drained = soon(self.hub.drain(window)).await;
        self.shut_down().await;
        drained
    }

    pub async fn publish(&self, topic: &str, data: impl Into<String>) {
        self.hub.topic(topic).publish(Event::unnamed(data.into())).await.unwrap();
    }

    /// Waits until this many bodies have ended, although their streams have not.
    pub async fn taken(&self, count: usize) {
        until(|| self.passed.ended() == count).await;
    }

    /// Opens a stream with a small receive window, and waits until the hub has taken it over.
    pub async fn narrow_stream(&self) -> Peer {
        let before = self.passed.ended();
        let mut peer = Peer::narrow(self.addr).await;
        peer.get("/events?topic=t").await;
        peer.reader.head().await;
        self.taken(before + 1).await;
        peer
    }

    /// Checks that events arrive, and none through the body.
    pub async fn delivers_as_taken(&self, events: &mut Events) {
        let before = self.passed.frames();
        self.delivers(events).await;
        assert_eq!(self.passed.frames(), before, "the socket was not taken over");
    }

    /// Checks that events arrive, each before the next is published, and all through the body.
    pub async fn delivers_by_body(&self, events: &mut Events) {
        let before = self.passed.frames();
        self.delivers(events).await;
        assert!(self.passed.frames() >= before + 3, "the socket was taken over");
    }

    pub async fn delivers(&self, events: &mut Events) {
        for n in 0..3 {
            self.publish("t", n.to_string()).await;
            assert_eq!(events.next_own().await.data, n.to_string());
        }
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn app(hub: &Hub, passed: &Arc<Passed>, counted: &Arc<AtomicUsize>) -> Router {
    let (passed, counted) = (Arc::clone(passed), Arc::clone(counted));
    let streams = Router::new()
        .route_service("/events", hub.endpoint(by_query))
        .layer(MapResponseLayer::new(move |response| watch(response, &passed)));
    let count = async move || {
        counted.fetch_add(1, Ordering::SeqCst);
        "counted"
    };
    Router::new()
        .route("/", get(async || "hello"))
        .route("/count", get(count.clone()).post(count))
        .route("/echo", post(echo))
        .merge(streams)
}

/// Returns the body of the request, framed like a stream.
async fn echo(body: Bytes) -> Response<Body> {
    let body = Body::from_stream(futures::stream::iter([Ok::<_, Infallible>(body)]));
    Response::builder().header(header::CONNECTION, "close").body(body).unwrap()
}

/// A tower service on plain hyper. It counts the tasks that serve connections.
pub struct Bare {
    pub addr: SocketAddr,
    pub serving: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Bare {
    pub async fn start<S, B>(hub: &Hub, service: S) -> Self
    where
        S: tower::Service<Request<Incoming>, Response = Response<B>> + Clone + Send + 'static,
        S::Future: Send,
        S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (hub, serving) = (hub.clone(), Arc::<AtomicUsize>::default());
        let task = tokio::spawn({
            let serving = Arc::clone(&serving);
            async move {
                loop {
                    let (tcp, _) = listener.accept().await.unwrap();
                    let io = TokioIo::new(hub.io(tcp).take_over());
                    let (service, serving) = (TowerToHyperService::new(service.clone()), Arc::clone(&serving));
                    serving.fetch_add(1, Ordering::SeqCst);
                    tokio::spawn(async move {
                        let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                        drop(builder.serve_connection(io, service).await);
                        serving.fetch_sub(1, Ordering::SeqCst);
                    });
                }
            }
        });
        Self { addr, serving, task }
    }

    pub fn serving(&self) -> usize {
        self.serving.load(Ordering::SeqCst)
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        self.task.abort();
    }
}
