//! A hub that programs in any language publish to.
//!
//! ```sh
//! cargo run --release -p standalone -- --listen 127.0.0.1:8080 --latest sensors/
//! curl -N 'http://127.0.0.1:8080/events?topic=news&topic=sensors/boiler'
//! curl -d 'It rains.' 'http://127.0.0.1:8080/topics/news?event=headline'
//! curl -d '21.5' 'http://127.0.0.1:8080/topics/sensors/boiler?event=temperature&key=boiler'
//! ```
//!
//! | request | answer |
//! |---|---|
//! | `GET /` | a page that shows it live |
//! | `GET /events?topic=a&topic=b[&user=u]` | the stream; `user` is taken at its word |
//! | `POST /topics/{topic}?event=name&key=k`, `/users/{user}`, `/everyone`, the data as body | `202 {"id":"…","receivers":n}` |
//! | `POST /publish`, lines of `{"topic"\|"user":"…","event":"…","key":"…","data":…}` | `202 {"published":n,"last":"…"}`; an error says how many were published |
//! | `POST /events/{connection}/topics?join=c&leave=a[&user=u]` | `200 {"topics":["b","c"]}`: what this stream has now |
//! | `DELETE /users/{user}/connections[?reconnect=later\|never&time=30s&note=why]` | `200 {"disconnected":n}` |
//! | `GET /topics/{topic}/presence` | `200 {"position":"…","members":[{"user":"…","connections":n}],"anonymous":n}` |
//! | `GET /stats`, `/healthz`, `/readyz` | counts; liveness; whether it takes new streams |
//!
//! A request that writes is `403` if a page of another origin sends it. With `--allow-host`, all but `/`, `/stats` and the
//! health checks are `403` for every other host.
//!
//! Several share one log through a broker, and a client goes on at any of them. A publish or a disconnect while the broker is
//! away is `503`. So is a batch of which the broker did not take every event; its answer begins with how many were published.
//!
//! ```sh
//! cargo run --release -p standalone -- --backplane redis://127.0.0.1:6379 --listen 127.0.0.1:8081
//! ```

mod options;
mod people;
mod publish;
mod shared;

use std::future::Future;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{DefaultBodyLimit, State};
use axum::http::StatusCode;
use axum::response::Html;
use axum::routing::{get, post};
use axum::{Json, Router};
use futures::FutureExt;
use tokio::net::TcpListener;
use tower_sse::{
    BuildError, Hub, Public, Refusal, Retention, SseMakeService, Stats, StreamRequest, Subscription, TopicFilter,
};

pub(crate) use options::Options;
use options::Token;
use publish::Problem;

/// The longest batch, in bytes. One event has its own limit, the hub's.
const MAX_BODY: usize = 4 << 20;
/// How long requests of other kinds may take to end when the process leaves.
const LAST_REQUESTS: Duration = Duration::from_secs(2);

pub(crate) fn hub(options: &Options) -> Result<Hub, BuildError> {
    let mut builder = Hub::builder();
    for prefix in &options.latest {
        builder = builder.retention_for(TopicFilter::prefix(prefix.as_str()), Retention::latest_per_key());
    }
    for prefix in &options.presence {
        builder = builder.presence_for(TopicFilter::prefix(prefix.as_str()));
    }
    for host in &options.allow_host {
        builder = builder.allow_host(host.as_str());
    }
    if let Some(count) = options.replay_events {
        builder = builder.topic_retention(Retention::replay().count(count));
    }
    if let Some(shared) = options.shared.clone() {
        builder = shared.give_to(builder);
    }
    builder.build()
}

/// What the handlers share.
pub(crate) struct App {
    pub(crate) hub: Hub,
    pub(crate) token: Option<Token>,
    /// The hosts that requests may name. Empty for any host.
    pub(crate) allow_host: Vec<String>,
}

pub(crate) fn app(hub: &Hub, options: &Options) -> Router {
    // A route of its own, because `Router::layer` would put a box around every other route.
    let events = hub.endpoint(access).allow_topic_changes();
    Router::new()
        .route_service("/events", events.clone())
        .route_service("/events/{connection}/topics", events)
        .route("/topics/{*topic}", post(publish::to_topic).get(people::presence))
        .route("/users/{*user}", post(publish::to_user).delete(people::disconnect))
        .route("/everyone", post(publish::to_everyone))
        .route("/publish", post(publish::batch).layer(DefaultBodyLimit::max(MAX_BODY)))
        .route("/", get(Html(include_str!("page.html"))))
        .route("/stats", get(stats))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .method_not_allowed_fallback(async || Problem::new(StatusCode::METHOD_NOT_ALLOWED, "not with this method"))
        .fallback(async || Problem::new(StatusCode::NOT_FOUND, "no such path"))
        .with_state(Arc::new(App {
            hub: hub.clone(),
            token: options.token.clone(),
            allow_host: options.allow_host.clone(),
        }))
}

/// Everybody may read everything.
async fn access(request: StreamRequest) -> Result<Subscription, Refusal> {
    let public = Public::topics(TopicFilter::any()).subscription(&request)?;
    Ok(match request.query_values("user").next() {
        Some(user) => public.with_user(user),
        None => public,
    })
}

async fn stats(State(app): State<Arc<App>>) -> Json<Stats> {
    Json(app.hub.stats())
}

async fn healthz() -> &'static str {
    "ok\n"
}

async fn readyz(State(app): State<Arc<App>>) -> (StatusCode, &'static str) {
    if app.hub.is_ready() { (StatusCode::OK, "ready\n") } else { (StatusCode::SERVICE_UNAVAILABLE, "not ready\n") }
}

#[tokio::main]
async fn main() -> ExitCode {
    let args: Result<Vec<String>, _> = std::env::args_os().skip(1).map(std::ffi::OsString::into_string).collect();
    let parsed = args.map_err(|_| "not UTF-8".to_owned()).and_then(|args| Options::parse(args.into_iter()));
    let outcome = match parsed {
        Err(problem) => {
            say(io::stderr(), &format!("{problem}\n\n{}", options::USAGE));
            return ExitCode::from(2);
        }
        Ok(options) if options.help => {
            say(io::stdout(), options::USAGE);
            return ExitCode::SUCCESS;
        }
        Ok(options) => run(&options).await,
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(io::stderr(), &format!("{error}\n"));
            ExitCode::FAILURE
        }
    }
}

async fn run(options: &Options) -> Result<(), Box<dyn std::error::Error>> {
    let _ = tracing_subscriber::fmt().with_writer(io::stderr).try_init();
    // Before anybody is told that it listens, so that nobody who knows of it can kill it untidily.
    let leave = leave()?;
    let hub = hub(options)?;
    let app = app(&hub, options);
    let listener = TcpListener::bind(options.listen).await.map_err(|error| format!("{}: {error}", options.listen))?;
    let address = listener.local_addr()?;
    warn(address, options);
    say(io::stdout(), &format!("listening on http://{address}\n"));

    let (draining, window) = (hub.clone(), options.drain_window);
    let drained = async move {
        leave.await;
        draining.drain(window).await;
    };
    let drained = drained.shared();
    let listener = if options.takeover { hub.listener_with_takeover(listener) } else { hub.listener(listener) };
    // Direct HTTP/2 clients, too, have a socket that the hub knows.
    let serve = axum::serve(listener, SseMakeService::new(app)).with_graceful_shutdown(drained.clone());
    tokio::select! {
        served = serve.into_future() => served?,
        () = drained.then(|()| tokio::time::sleep(LAST_REQUESTS)) => {}
    }
    Ok(())
}

fn warn(address: SocketAddr, options: &Options) {
    if address.ip().to_canonical().is_loopback() {
        return;
    }
    say(
        io::stderr(),
        &format!(
            "WARNING: {address} is not a loopback address. Whoever reaches it reads every topic and, since `user` in\n\
         WARNING: /events?user=… is taken at its word, what is meant for any user.\n"
        ),
    );
    if options.token.is_none() {
        say(io::stderr(), "WARNING: Without --token whoever reaches it also publishes.\n");
    }
}

/// A console that is gone is no reason to stop.
fn say(mut console: impl Write, text: &str) {
    let _ = console.write_all(text.as_bytes()).and_then(|()| console.flush());
}

/// Resolves when the process is told to leave. It listens from now on.
#[cfg(unix)]
fn leave() -> io::Result<impl Future<Output = ()> + Send> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

#[cfg(not(unix))]
fn leave() -> io::Result<impl Future<Output = ()> + Send> {
    Ok(async { drop(tokio::signal::ctrl_c().await) })
}
