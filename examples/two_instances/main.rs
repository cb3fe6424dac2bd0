//! Two instances that share one log. A page at either instance receives the messages that are
//! posted at both, and resumes at the other instance when its own stops.
//!
//! ```sh
//! cargo run --example two_instances          # both in one process; open http://127.0.0.1:3001
//! ```
//!
//! Or with one process for each instance. Kill one, and its pages resume at the other:
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

#[path = "../shared/shutdown.rs"]
mod shutdown;

use shutdown::shutdown_signal;

const BOTH: [SocketAddr; 2] = [address(3001), address(3002)];
const USAGE: &str = "two_instances [--backplane redis://127.0.0.1:6379] [127.0.0.1:3001] [127.0.0.1:3002]";
/// The time over which pages reconnect when an instance drains.
const WINDOW: Duration = Duration::from_secs(1);
/// The pause between the drain and the new start of an instance that restarts.
const RESTART_PAUSE: Duration = Duration::from_secs(3);

const fn address(port: u16) -> SocketAddr {
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), port)
}

/// The log that the instances share.
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

    fn configure(self, builder: HubBuilder) -> HubBuilder {
        match self {
            Self::Memory(log) => builder.backplane(log),
            #[cfg(feature = "redis")]
            Self::Redis(log) => builder.backplane(log),
        }
    }
}

/// An instance: its name, and the addresses of all instances for its pages.
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
        // A page of one instance opens streams at the other. In production both have one origin,
        // behind a load balancer.
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
            .route("/messages", post(post_message))
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

/// A chat message, with the name of the instance that published it.
#[derive(Serialize)]
struct Message {
    text: String,
    instance: String,
}

async fn post_message(State((hub, instance)): State<(Hub, String)>, text: String) -> Result<String, PublishError> {
    let event = Event::json("chat", &Message { text, instance })?;
    let receipt = hub.topic("talk").publish(event).await?;
    Ok(receipt.position.to_string())
}

/// Serves until Ctrl-C or SIGTERM, then drains. After `POST /restart`, the function drains, pauses
/// and starts a new instance at the same address.
async fn serve(listen: SocketAddr, instance: Instance, log: Log) -> Result<(), Box<dyn Error + Send + Sync>> {
    loop {
        let hub = log.clone().configure(instance.settings()).build()?;
        let app = instance.app(&hub);
        let listener = TcpListener::bind(listen).await.map_err(|error| format!("{listen}: {error}"))?;
        let (restart, signal) = (Arc::clone(&instance.restart), shutdown_signal()?);
        println!("{}: http://{listen}", instance.name);
        let (sender, restarts) = tokio::sync::oneshot::channel();
        axum::serve(hub.listener(listener), app)
            .with_graceful_shutdown(async move {
                let is_restart = tokio::select! {
                    () = signal => false,
                    () = restart.notified() => true,
                };
                hub.drain(WINDOW).await;
                let _ = sender.send(is_restart);
            })
            .await?;
        if !restarts.await.unwrap_or(false) {
            return Ok(());
        }
        let signal = shutdown_signal()?;
        tokio::select! {
            () = signal => return Ok(()),
            () = tokio::time::sleep(RESTART_PAUSE) => {}
        }
    }
}

/// Parses the arguments. An error contains no value, since a value may be a URL with a password.
fn parse(mut args: impl Iterator<Item = String>) -> Result<(Log, Vec<SocketAddr>), &'static str> {
    let (mut log, mut addresses) = (Log::Memory(Memory::new()), Vec::new());
    while let Some(arg) = args.next() {
        if arg == "--backplane" {
            log = Log::open(&args.next().ok_or("--backplane needs a URL")?)?;
        } else {
            addresses.push(arg.parse().map_err(|_| "an argument is neither --backplane nor an address")?);
        }
    }
    if addresses.is_empty() {
        addresses.extend(BOTH);
    }
    Ok((log, addresses))
}

#[tokio::main]
async fn main() -> ExitCode {
    let (log, addresses) = match parse(std::env::args().skip(1)) {
        Ok(parsed) => parsed,
        Err(problem) => {
            eprintln!("{problem}\n\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    let mut all = BOTH.to_vec();
    all.extend(addresses.iter().filter(|address| !BOTH.contains(address)));
    let instance = |listen: &SocketAddr| {
        let number = all.iter().position(|address| address == listen).unwrap_or_default();
        let name = ["A", "B", "C", "D"].get(number).copied().unwrap_or("another");
        serve(*listen, Instance::new(name, &all), log.clone())
    };
    match futures::future::try_join_all(addresses.iter().map(instance)).await {
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
