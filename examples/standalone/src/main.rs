//! A hub as a program. Publishers in any language send events over HTTP.
//!
//! ```sh
//! cargo run --release -p standalone -- --listen 127.0.0.1:8080 --latest sensors/
//! curl -N 'http://127.0.0.1:8080/events?topic=news&topic=sensors/boiler'
//! curl -d 'Bridge closed' 'http://127.0.0.1:8080/topics/news?event=headline'
//! curl -d '21.5' 'http://127.0.0.1:8080/topics/sensors/boiler?event=temperature&key=boiler'
//! ```
//!
//! | request | response |
//! |---|---|
//! | `GET /` | a page that shows the events and publishes |
//! | `GET /events?topic=a&topic=b[&user=u]` | the stream; `user` is not authenticated |
//! | `POST /topics/{topic}?event=name&key=k`, `/users/{user}`, `/everyone`, the data as body | `202 {"id":"…","receivers":n}` |
//! | `POST /publish`, lines of `{"topic"\|"user":"…","event":"…","key":"…","data":…}` | `202 {"published":n,"last":"…"}`; an error has the number of published events |
//! | `POST /events/{connection}/topics?join=c&leave=a[&user=u]` | `200 {"topics":["b","c"]}`, the topics of the stream after the change |
//! | `DELETE /users/{user}/connections[?reconnect=later\|never&time=30s&note=why]` | `200 {"disconnected":n}` |
//! | `GET /topics/{topic}/presence` | `200 {"position":"…","members":[{"user":"…","connections":n}],"anonymous":n}` |
//! | `GET /stats`, `/healthz`, `/readyz` | counters; liveness; readiness for new streams |
//!
//! A request to publish or disconnect that a page of another origin sends receives `403`. With
//! `--allow-host`, requests that name any other host receive `403`, except for `/`, `/stats` and
//! the health checks.
//!
//! Several instances share one log through a broker, and a client resumes at any of them. While the
//! broker is unavailable, a request to publish or disconnect receives `503`. If the broker rejects
//! some events of a batch, the response is also `503` and begins with the number of published
//! events.
//!
//! ```sh
//! cargo run --release -p standalone -- --backplane redis://127.0.0.1:6379 --listen 127.0.0.1:8081
//! ```
//!
//! With Postgres as the log, a program in any language can also publish in a transaction:
//! `docs/postgres.md` describes the schema and its functions.

mod options;
mod people;
mod publish;
mod shared;
#[path = "../../shared/shutdown.rs"]
mod shutdown;

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
use shutdown::drain_on_signal;

/// The maximum size of a batch, in bytes. The hub limits the size of each event.
const MAX_BODY: usize = 4 << 20;
/// The time that requests other than streams have to end after the drain.
const LAST_REQUESTS: Duration = Duration::from_secs(2);

/// Builds the hub from the command line.
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
        builder = shared.configure(builder);
    }
    builder.build()
}

/// The state of the handlers.
pub(crate) struct App {
    pub(crate) hub: Hub,
    pub(crate) token: Option<Token>,
    /// The hosts that requests may name. Empty for any host.
    pub(crate) allow_host: Vec<String>,
}

pub(crate) fn app(hub: &Hub, options: &Options) -> Router {
    // A route and not a layer: `Router::layer` would box the service of every other route.
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
        .method_not_allowed_fallback(async || Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method not allowed"))
        .fallback(async || Problem::new(StatusCode::NOT_FOUND, "no such path"))
        .with_state(Arc::new(App {
            hub: hub.clone(),
            token: options.token.clone(),
            allow_host: options.allow_host.clone(),
        }))
}

/// Grants every topic that the request names, and the user that it names, without authentication.
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
            write_to(io::stderr(), &format!("{problem}\n\n{}", options::USAGE));
            return ExitCode::from(2);
        }
        Ok(options) if options.help => {
            write_to(io::stdout(), options::USAGE);
            return ExitCode::SUCCESS;
        }
        Ok(options) => run(&options).await,
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            write_to(io::stderr(), &format!("{error}\n"));
            ExitCode::FAILURE
        }
    }
}

async fn run(options: &Options) -> Result<(), Box<dyn std::error::Error>> {
    let _ = tracing_subscriber::fmt().with_writer(io::stderr).try_init();
    let hub = hub(options)?;
    // Before the address is printed: a service manager may stop the program as soon as it has read
    // the line.
    let drained = drain_on_signal(hub.clone(), options.drain_window)?.shared();
    let app = app(&hub, options);
    let listener = TcpListener::bind(options.listen).await.map_err(|error| format!("{}: {error}", options.listen))?;
    let address = listener.local_addr()?;
    warn(address, options);
    write_to(io::stdout(), &format!("listening on http://{address}\n"));

    let listener = if options.takeover { hub.listener_with_takeover(listener) } else { hub.listener(listener) };
    // `SseMakeService` identifies the sockets of HTTP/2 clients that connect without a proxy.
    let serve = axum::serve(listener, SseMakeService::new(app)).with_graceful_shutdown(drained.clone());
    tokio::select! {
        served = serve.into_future() => served?,
        // Ends the process although another request is still open.
        () = drained.then(|()| tokio::time::sleep(LAST_REQUESTS)) => {}
    }
    Ok(())
}

/// Prints a warning if other machines can reach the address.
fn warn(address: SocketAddr, options: &Options) {
    if address.ip().to_canonical().is_loopback() {
        return;
    }
    write_to(
        io::stderr(),
        &format!(
            "WARNING: {address} is not a loopback address. Every client that reaches it can read every topic, and the\n\
             WARNING: events of every user: `user` in /events?user=… is not authenticated.\n"
        ),
    );
    if options.token.is_none() {
        write_to(io::stderr(), "WARNING: Without --token every client that reaches it can also publish.\n");
    }
}

/// Writes to a console, and ignores an error: the program continues after its console was closed.
fn write_to(mut console: impl Write, text: &str) {
    let _ = console.write_all(text.as_bytes()).and_then(|()| console.flush());
}
