//! A small workspace of several pages. Every page shows the changes of all users at once.
//!
//! ```sh
//! cargo run --example workspace       # then open http://127.0.0.1:3000, and http://localhost:3000 as a second person
//! ```
//!
//! `README.md` beside this file lists what to try and describes the source files.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program with a console")]

mod documents;
mod error;
mod events;
mod exporter;
mod feed;
mod metrics;
mod notifications;
mod options;
mod replica;
mod reports;
mod sessions;
#[path = "../shared/shutdown.rs"]
mod shutdown;
#[cfg(test)]
mod tests;
mod web;

use std::error::Error;
use std::process::ExitCode;
use std::time::Duration;

use axum::extract::FromRef;
use tokio::net::TcpListener;
use tokio::time::{sleep, timeout};
use tower_sse::{Hub, HubBuilder, Retention, TopicFilter};

use documents::{Documents, Storage};
use exporter::Exporter;
use feed::Feed;
use metrics::Metrics;
use notifications::Notifications;
use options::Options;
use replica::Replica;
use reports::Reports;
use sessions::Sessions;
use shutdown::shutdown_signal;

/// The time that reports have to publish that they were stopped. While a broker hangs, they cannot
/// publish, and the process must end nevertheless.
const STOP_REPORTS: Duration = Duration::from_secs(2);
/// The time over which browsers reconnect after the drain.
const WINDOW: Duration = Duration::from_secs(1);
/// The time that requests other than streams have to end after the drain.
const LAST_REQUESTS: Duration = Duration::from_secs(2);

/// The state of the handlers. Each service has the hub. Only `Sessions` depends on HTTP, for
/// cookies.
#[derive(Clone, FromRef)]
struct App {
    hub: Hub,
    sessions: Sessions,
    documents: Documents,
    reports: Reports,
    metrics: Metrics,
    feed: Feed,
    notifications: Notifications,
    replica: Replica,
    exporter: Exporter,
}

impl App {
    fn new(hub: &Hub, exporter: Exporter, options: &Options, storage: Storage) -> Result<Self, Box<dyn Error>> {
        let (sessions, documents) =
            (Sessions::new(hub.clone(), options.secret.as_deref())?, Documents::new(hub.clone(), storage));
        let (reports, feed) = (Reports::new(hub.clone()), Feed::new(hub.clone()));
        let metrics = Metrics::start(hub.clone(), options.name());
        let notifications = Notifications::new(hub.clone());
        let replica = Replica::follow(
            hub.clone(),
            vec![
                Box::new(sessions.clone()),
                Box::new(documents.clone()),
                Box::new(reports.clone()),
                Box::new(metrics.clone()),
                Box::new(feed.clone()),
                Box::new(notifications.clone()),
            ],
        );
        let (new_documents, new_replica) = (documents.clone(), replica.clone());
        tokio::spawn(async move {
            new_replica.ready().await;
            if let Err(error) = new_documents.create_welcome_documents().await {
                tracing::warn!(%error, "the welcome documents could not be created");
            }
        });
        Ok(Self { hub: hub.clone(), sessions, documents, reports, metrics, feed, notifications, replica, exporter })
    }
}

/// Returns the builder of the hub with the retention of each topic, which is the same on all
/// instances.
fn settings() -> HubBuilder {
    let current = Retention::latest_per_key;
    Hub::builder()
        .retry(Duration::from_secs(1))
        .retention_for(TopicFilter::exact(documents::TOPIC), current())
        .retention_for(TopicFilter::exact(notifications::TOPIC), current())
        .retention_for(TopicFilter::exact(metrics::TOPIC), current())
        // If the log forgot an ended session before its cookie expires, the cookie would be valid
        // again.
        .retention_for(
            TopicFilter::exact(sessions::TOPIC),
            current().age(sessions::LIFETIME).count(sessions::MAX_ENDED).bytes(32 << 20),
        )
        .retention_for(TopicFilter::prefix(reports::TOPICS), current())
        .retention_for(TopicFilter::exact(feed::TOPIC), Retention::replay().count(feed::MAX_POSTS).age(feed::MAX_AGE))
}

async fn run(mut options: Options) -> Result<(), Box<dyn Error>> {
    let _ = tracing_subscriber::fmt().with_writer(std::io::stderr).try_init();
    let signal = shutdown_signal()?;
    let listener = TcpListener::bind(options.listen).await.map_err(|error| format!("{}: {error}", options.listen))?;
    options.listen = listener.local_addr()?;

    // The exporter comes first, because a hub sends its metrics to the exporter that it finds.
    let exporter = Exporter::install()?;
    let storage = Storage::open(&options).await?;
    let hub = options.configure(settings().instance_name(options.name())).build()?;
    let app = App::new(&hub, exporter, &options, storage)?;
    println!("open http://{}", options.listen);
    if !options.listen.ip().is_loopback() {
        eprintln!("WARNING: there are no passwords, every client that reaches this address can sign in as any user");
    }

    let reports = app.reports.clone();
    let router = web::router(&hub, app);
    let (sender, drained) = tokio::sync::oneshot::channel();
    let serve = axum::serve(hub.listener(listener), router).with_graceful_shutdown(async move {
        signal.await;
        // Before the drain, because the drain ends the runs of this instance.
        let _ = timeout(STOP_REPORTS, reports.stop_all()).await;
        hub.drain(WINDOW).await;
        let _ = sender.send(());
    });
    tokio::select! {
        served = serve => served?,
        // Ends the process although another request is still open.
        () = async { if drained.await.is_ok() { sleep(LAST_REQUESTS).await } } => {}
    }
    Ok(())
}

#[tokio::main]
async fn main() -> ExitCode {
    let options = match Options::parse(options::from_environment().chain(std::env::args().skip(1))) {
        Ok(options) => options,
        Err(problem) => {
            eprintln!("{problem}\n\n{}", options::USAGE);
            return ExitCode::from(2);
        }
    };
    match run(options).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
