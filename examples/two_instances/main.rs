//! Two instances, one hub: a page at either hears what is said at both, and goes on at the other when its own leaves.
//!
//! ```sh
//! cargo run --example two_instances          # both in one process; open http://127.0.0.1:3001
//! ```
//!
//! Or in a process each, to kill one and see its pages go on at the other:
//!
//! ```sh
//! cargo run --features redis --example two_instances -- --backplane redis://127.0.0.1:6379 127.0.0.1:3001
//! cargo run --features redis --example two_instances -- --backplane redis://127.0.0.1:6379 127.0.0.1:3002
//! ```

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program with a console")]

use std::error::Error;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::{HeaderValue, Method, StatusCode};
use axum::response::Html;
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Serialize;
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tower_http::cors::CorsLayer;
use tower_sse::backplane::Memory;
#[cfg(feature = "redis")]
use tower_sse::backplane::Redis;
use tower_sse::{Event, Hub, HubBuilder, Public, PublishError, TopicFilter};

const BOTH: [SocketAddr; 2] = [address(3001), address(3002)];
const USAGE: &str = "two_instances [--backplane redis://127.0.0.1:6379] [127.0.0.1:3001] [127.0.0.1:3002]";
/// Over how long pages come back when an instance leaves.
const WINDOW: Duration = Duration::from_secs(1);
/// For how long an instance that restarts is away.
const AWAY: Duration = Duration::from_secs(3);

const fn address(port: u16) -> SocketAddr {
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), port)
}

/// Where the log is.
#[derive(Clone)]
enum Log {
    Memory(Memory),
    #[cfg(feature = "redis")]
    Redis(Redis),
}

impl Log {
    #[cfg(feature = "redis")]
    fn open(url: &str) -> Result<Self, &'static str> {
        Redis::new(url, "two_instances").map(Self::Redis).map_err(|_| "--backplane: not a Redis URL")
    }

    #[cfg(not(feature = "redis"))]
    fn open(_: &str) -> Result<Self, &'static str> {
        Err("--backplane: built without the feature `redis`: cargo run --features redis --example two_instances")
    }

    fn share(self, builder: HubBuilder) -> HubBuilder {
        match self {
            Self::Memory(log) => builder.backplane(log),
            #[cfg(feature = "redis")]
            Self::Redis(log) => builder.backplane(log),
        }
    }
}

/// What one instance is called, and where its pages find both.
#[derive(Clone)]
pub(crate) struct Instance {
    pub(crate) name: String,
    pub(crate) all: Vec<SocketAddr>,
    restart: Arc<Notify>,
}

impl Instance {
    pub(crate) fn new(name: &str, all: &[SocketAddr]) -> Self {
        Self { name: name.to_owned(), all: all.to_vec(), restart: Arc::default() }
    }

    pub(crate) fn settings(&self) -> HubBuilder {
        let builder = Hub::builder().instance_name(self.name.as_str()).retry(Duration::from_secs(1));
        // A page of one listens at the other. In production both are one origin, behind a load balancer.
        self.all.iter().fold(builder, |builder, address| builder.allow_cross_origin(format!("http://{address}")))
    }

    pub(crate) fn app(&self, hub: &Hub) -> Router {
        let all: Vec<_> = self.all.iter().map(|address| format!("http://{address}")).collect();
        let origins = all.iter().filter_map(|origin| HeaderValue::from_str(origin).ok());
        let cors =
            CorsLayer::new().allow_origin(origins.collect::<Vec<_>>()).allow_methods([Method::GET, Method::POST]);
        let restart = Arc::clone(&self.restart);
        Router::new()
            .route("/", get(Html(include_str!("page.html"))))
            .route("/instances", get(Json(all)))
            .route("/ready", get(ready))
            .route("/say", post(say))
            .route("/restart", post(async move || restart.notify_one()))
            .with_state((hub.clone(), self.name.clone()))
            .layer(hub.layer("/events", Public::topics(TopicFilter::any())))
            .layer(cors)
    }
}

async fn ready(State((hub, name)): State<(Hub, String)>) -> (StatusCode, String) {
    let ready = hub.is_ready();
    (if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, name)
}

#[derive(Serialize)]
struct Said {
    text: String,
    through: String,
}

async fn say(State((hub, through)): State<(Hub, String)>, text: String) -> Result<String, PublishError> {
    let event = Event::json("said", &Said { text, through })?;
    let published = hub.topic("talk").publish(event).await?;
    Ok(published.position.to_string())
}

/// Serves until it is told to leave; told to restart it drains, is away for a moment, and comes back as a new instance.
async fn serve(listen: SocketAddr, instance: Instance, log: Log) -> Result<(), Box<dyn Error + Send + Sync>> {
    loop {
        let hub = log.clone().share(instance.settings()).build()?;
        let app = instance.app(&hub);
        let listener = TcpListener::bind(listen).await.map_err(|error| format!("{listen}: {error}"))?;
        println!("{}: http://{listen}", instance.name);
        let (draining, restart) = (hub.clone(), Arc::clone(&instance.restart));
        let (tell, told) = tokio::sync::oneshot::channel();
        axum::serve(hub.listener(listener), app)
            .with_graceful_shutdown(async move {
                let again = tokio::select! {
                    () = told_to_leave() => false,
                    () = restart.notified() => true,
                };
                draining.drain(WINDOW).await;
                // The loop may be gone only with this task.
                let _ = tell.send(again);
            })
            .await?;
        if !told.await.unwrap_or(false) {
            return Ok(());
        }
        tokio::select! {
            () = told_to_leave() => return Ok(()),
            () = tokio::time::sleep(AWAY) => {}
        }
    }
}

/// Ctrl-C, or what containers and service managers send.
async fn told_to_leave() {
    #[cfg(unix)]
    if let Ok(mut terminate) = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) {
        tokio::select! {
            _ = tokio::signal::ctrl_c() => {}
            _ = terminate.recv() => {}
        }
        return;
    }
    tokio::signal::ctrl_c().await.ok();
}

/// A problem does not repeat a value, which may hold a password.
fn parse(mut args: impl Iterator<Item = String>) -> Result<(Log, Vec<SocketAddr>), &'static str> {
    let (mut log, mut here) = (Log::Memory(Memory::new()), Vec::new());
    while let Some(arg) = args.next() {
        if arg == "--backplane" {
            log = Log::open(&args.next().ok_or("--backplane needs a URL")?)?;
        } else {
            here.push(arg.parse().map_err(|_| "neither --backplane nor an address")?);
        }
    }
    if here.is_empty() {
        here.extend(BOTH);
    }
    Ok((log, here))
}

#[tokio::main]
async fn main() -> ExitCode {
    let (log, here) = match parse(std::env::args().skip(1)) {
        Ok(parsed) => parsed,
        Err(problem) => {
            eprintln!("{problem}\n\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    let mut all = BOTH.to_vec();
    all.extend(here.iter().filter(|address| !BOTH.contains(address)));
    let instance = |listen: &SocketAddr| {
        let number = all.iter().position(|address| address == listen).unwrap_or_default();
        let name = ["A", "B", "C", "D"].get(number).copied().unwrap_or("another");
        serve(*listen, Instance::new(name, &all), log.clone())
    };
    match futures::future::try_join_all(here.iter().map(instance)).await {
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
