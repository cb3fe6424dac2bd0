//! A site with a page of ours and whatever streams a test wants, that notes what it was asked.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{Html, Response};
use axum::routing::get;
use http::{HeaderMap, Method, Version};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tower_sse::{Hub, StreamRequest, Subscription};

use crate::kit::soon;

/// How long the streams of one that leaves are told to stay away, at most.
const WINDOW: Duration = Duration::from_millis(200);

pub struct Site {
    pub addr: SocketAddr,
    hub: Hub,
    pub record: Record,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

#[derive(Clone)]
pub struct Asked {
    pub method: Method,
    pub path: String,
    pub headers: HeaderMap,
    pub version: Version,
}

impl Asked {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }
}

/// What was asked so far.
#[derive(Clone, Default)]
pub struct Record(Arc<Mutex<Vec<Asked>>>);

impl Record {
    /// The requests for a path.
    pub fn of(&self, path: &str) -> Vec<Asked> {
        self.0.lock().unwrap().iter().filter(|asked| asked.path == path).cloned().collect()
    }

    /// `routes`, the page at `/`, and the notes.
    pub fn around(&self, routes: Router) -> Router {
        let page = async || Html(include_str!("page.html"));
        routes.route("/", get(page)).route("/other", get(page)).layer(from_fn_with_state(self.clone(), note))
    }
}

async fn note(State(record): State<Record>, request: Request, next: Next) -> Response {
    let asked = Asked {
        method: request.method().clone(),
        path: request.uri().path().to_owned(),
        headers: request.headers().clone(),
        version: request.version(),
    };
    record.0.lock().unwrap().push(asked);
    next.run(request).await
}

impl Site {
    pub async fn start(hub: &Hub, routes: Router) -> Self {
        Self::start_at(SocketAddr::from(([127, 0, 0, 1], 0)), hub, routes).await
    }

    pub async fn start_at(addr: SocketAddr, hub: &Hub, routes: Router) -> Self {
        let listener = TcpListener::bind(addr).await.unwrap();
        let addr = listener.local_addr().unwrap();
        let record = Record::default();
        let (stop, stopped) = oneshot::channel::<()>();
        let leaving = hub.clone();
        let serve = axum::serve(crate::kit::hub_listener(hub, listener), record.around(routes)).with_graceful_shutdown(
            async move {
                drop(stopped.await);
                leaving.drain(WINDOW).await;
            },
        );
        let task = tokio::spawn(async move { serve.await.unwrap() });
        Self { addr, hub: hub.clone(), record, stop, task }
    }

    pub fn url(&self) -> String {
        format!("http://{}/", self.addr)
    }

    /// The requests for `/events`.
    pub fn asked(&self) -> Vec<Asked> {
        self.record.of("/events")
    }

    /// As a deploy does: streams are told, and end. What connections are idle are closed.
    pub async fn leave(self) -> SocketAddr {
        drop(self.stop);
        soon(self.task).await.unwrap();
        assert_eq!(self.hub.stats().connections, 0);
        self.addr
    }
}

/// A stream for everybody: the topic `news`, as the user `ada`.
pub fn everybody(hub: &Hub) -> Router {
    Router::new().route_service(
        "/events",
        hub.endpoint(async |_: StreamRequest| Ok(Subscription::for_user("ada").topic("news"))),
    )
}
