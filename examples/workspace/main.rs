//! A small workspace of several pages, in which what one person does, the others see.
//!
//! ```sh
//! cargo run --example workspace       # then open http://127.0.0.1:3000, and http://localhost:3000 as a second person
//! ```
//!
//! `README.md` beside this file says what to try, and where to look in the code.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program with a console")]

mod documents;
mod error;
mod feed;
mod metrics;
mod notifications;
mod options;
mod replica;
mod reports;
mod sessions;
mod web;

use std::error::Error;
use std::process::ExitCode;
use std::time::Duration;

use axum::extract::FromRef;
use tokio::net::TcpListener;
use tokio::time::{sleep, timeout};
use tower_sse::{Hub, HubBuilder, Retention, TopicFilter};

use documents::Documents;
use feed::Feed;
use metrics::Metrics;
use notifications::Notifications;
use options::Options;
use replica::Replica;
use reports::Reports;
use sessions::Sessions;

/// How long reports may take to say that they were stopped. They cannot where a broker hangs, which is no reason to stay.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// Over how long pages come back when the process leaves.
const WINDOW: Duration = Duration::from_secs(1);
/// How long other requests may take to end then.
const LAST_REQUESTS: Duration = Duration::from_secs(2);

/// All that handlers need. Each service has the hub; only `Sessions` knows of HTTP, for its cookies.
#[derive(Clone, FromRef)]
struct App {
    sessions: Sessions,
    documents: Documents,
    reports: Reports,
    metrics: Metrics,
    feed: Feed,
    notifications: Notifications,
    replica: Replica,
}

impl App {
    fn new(hub: &Hub, options: &Options) -> Result<Self, Box<dyn Error>> {
        let (sessions, documents) =
            (Sessions::new(hub.clone(), options.secret.as_deref())?, Documents::new(hub.clone()));
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
        let (first, read) = (documents.clone(), replica.clone());
        tokio::spawn(async move {
            read.ready().await;
            if let Err(error) = first.welcome().await {
                tracing::warn!(%error, "there are no first documents");
            }
        });
        Ok(Self { sessions, documents, reports, metrics, feed, notifications, replica })
    }
}

/// What is kept of each topic. Instances that share a log share this.
fn settings() -> HubBuilder {
    let current = Retention::latest_per_key;
    Hub::builder()
        .retry(Duration::from_secs(1))
        .retention_for(TopicFilter::exact(documents::TOPIC), current())
        .retention_for(TopicFilter::exact(notifications::TOPIC), current())
        .retention_for(TopicFilter::exact(metrics::TOPIC), current())
        // One that is forgotten before its cookie has expired would be good again, so these are many.
        .retention_for(
            TopicFilter::exact(sessions::TOPIC),
            current().age(sessions::LIFETIME).count(sessions::REMEMBERED).bytes(32 << 20),
        )
        .retention_for(TopicFilter::prefix(reports::TOPICS), current())
        .retention_for(TopicFilter::exact(feed::TOPIC), Retention::replay().count(feed::KEPT).age(feed::KEPT_FOR))
}

async fn run(mut options: Options) -> Result<(), Box<dyn Error>> {
    let _ = tracing_subscriber::fmt().with_writer(std::io::stderr).try_init();
    let leave = told_to_leave()?;
    let listener = TcpListener::bind(options.listen).await.map_err(|error| format!("{}: {error}", options.listen))?;
    options.listen = listener.local_addr()?;

    let hub = options.share(settings().instance_name(options.name())).build()?;
    let app = App::new(&hub, &options)?;
    println!("open http://{}", options.listen);
    if !options.listen.ip().is_loopback() {
        eprintln!("WARNING: without passwords, whoever reaches this address can be anybody");
    }

    let reports = app.reports.clone();
    let router = web::router(&hub, app);
    let (tell, told) = tokio::sync::oneshot::channel();
    let serve = axum::serve(hub.listener(listener), router).with_graceful_shutdown(async move {
        leave.await;
        let _ = timeout(LAST_WORDS, reports.stop()).await;
        hub.drain(WINDOW).await;
        let _ = tell.send(());
    });
    tokio::select! {
        served = serve => served?,
        () = async { if told.await.is_ok() { sleep(LAST_REQUESTS).await } } => {}
    }
    Ok(())
}

/// Ctrl-C, or what containers and service managers send. Both are listened for when this returns.
fn told_to_leave() -> std::io::Result<impl Future<Output = ()>> {
    #[cfg(unix)]
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    #[cfg(unix)]
    let mut interrupt = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::interrupt())?;
    Ok(async move {
        #[cfg(unix)]
        tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
        #[cfg(not(unix))]
        tokio::signal::ctrl_c().await.ok();
    })
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
