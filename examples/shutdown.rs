//! Leaving in order: streams are told goodbye, the process ends in a moment, and the pages come back spread over time.
//!
//! `cargo run --example shutdown`, open <http://127.0.0.1:3000> in some tabs, then press Ctrl-C, and start it again: each
//! tab says goodbye, and is back within the window. Try it with a download that does not end, too: `curl http://127.0.0.1:3000/slow`.

#![allow(clippy::print_stdout, reason = "a program with a console")]

use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Html;
use axum::routing::get;
use tower_sse::{Hub, Refusal, StreamRequest, Subscription};

/// Over how long the pages come back. As long as the next process, or the others, need to take them.
const WINDOW: Duration = Duration::from_secs(5);
/// How long other requests may take to end. A stream is no request of this kind.
const LAST_REQUESTS: Duration = Duration::from_secs(2);

/// For the load balancer: not ready from the first moment of the drain.
async fn readyz(State(hub): State<Hub>) -> StatusCode {
    if hub.is_ready() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
}

async fn access(_: StreamRequest) -> Result<Subscription, Refusal> {
    Ok(Subscription::anonymous())
}

/// Ctrl-C, or SIGTERM, which is what containers and service managers send.
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

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let hub = Hub::builder().build()?;
    let app = Router::new()
        .route("/", get(async || Html(include_str!("shutdown.html"))))
        .route("/readyz", get(readyz))
        .route("/slow", get(async || std::future::pending::<()>().await))
        .with_state(hub.clone())
        .layer(hub.layer("/events", access));
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:3000".to_owned());
    let listener = tokio::net::TcpListener::bind(address).await?;
    println!("open http://{}", listener.local_addr()?);

    let (drained, told) = tokio::sync::oneshot::channel();
    let serve = axum::serve(hub.listener(listener), app).with_graceful_shutdown(async move {
        told_to_leave().await;
        // Inside of this future: `serve` does not return while streams are open, so afterwards is too late.
        let outcome = hub.drain(WINDOW).await;
        println!("{} streams have ended, {} were cut", outcome.ended, outcome.cut);
        drained.send(()).ok();
    });
    tokio::select! {
        served = serve => served?,
        // Requests that never end do not keep the process.
        () = async { told.await.ok(); tokio::time::sleep(LAST_REQUESTS).await } => {}
    }
    Ok(())
}
