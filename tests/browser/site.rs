//! A site with `page.html` and the streams of a test, which records its requests.

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

/// The window over which a drain spreads the reconnects.
const WINDOW: Duration = Duration::from_millis(200);

pub struct Site {
    pub addr: SocketAddr,
    hub: Hub,
    pub record: Record,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

#[derive(Clone)]
pub struct Recorded {
    pub method: Method,
    pub path: String,
    pub headers: HeaderMap,
    pub version: Version,
}

impl Recorded {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }
}

/// The requests so far.
#[derive(Clone, Default)]
pub struct Record(Arc<Mutex<Vec<Recorded>>>);

impl Record {
    /// The requests for a path.
    pub fn of(&self, path: &str) -> Vec<Recorded> {
        self.0.lock().unwrap().iter().filter(|request| request.path == path).cloned().collect()
    }

    /// Adds the page at `/` to `routes`, and records every request.
    pub fn around(&self, routes: Router) -> Router {
        let page = async || Html(include_str!("page.html"));
        routes.route("/", get(page)).route("/other", get(page)).layer(from_fn_with_state(self.clone(), record_request))
    }
}

async fn record_request(State(record): State<Record>, request: Request, next: Next) -> Response {
    let recorded = Recorded {
        method: request.method().clone(),
        path: request.uri().path().to_owned(),
        headers: request.headers().clone(),
        version: request.version(),
    };
    record.0.lock().unwrap().push(recorded);
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
        let draining = hub.clone();
        let serve = axum::serve(crate::kit::hub_listener(hub, listener), record.around(routes)).with_graceful_shutdown(
            async move {
                drop(stopped.await);
                draining.drain(WINDOW).await;
            },
        );
        let task = tokio::spawn(async move { serve.await.unwrap() });
        Self { addr, hub: hub.clone(), record, stop, task }
    }

    pub fn url(&self) -> String {
        format!("http://{}/", self.addr)
    }

    /// The requests for `/events`.
    pub fn requests(&self) -> Vec<Recorded> {
        self.record.of("/events")
    }

    /// Shuts the site down as a deploy does: drains the hub, and closes idle connections.
    pub async fn shut_down(self) -> SocketAddr {
        drop(self.stop);
        soon(self.task).await.unwrap();
        assert_eq!(self.hub.stats().connections, 0);
        self.addr
    }
}

/// Routes with a stream for every request: the topic `news`, as the user `ada`.
pub fn public_stream(hub: &Hub) -> Router {
    Router::new().route_service(
        "/events",
        hub.endpoint(async |_: StreamRequest| Ok(Subscription::for_user("ada").topic("news"))),
    )
}
