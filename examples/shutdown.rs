//! Graceful shutdown: every stream ends with `hub.bye`, and browsers reconnect spread over a
//! window.
//!
//! `cargo run --example shutdown`, open <http://127.0.0.1:3000> in some tabs, press Ctrl-C, and
//! start the program again: each tab reports the goodbye and reconnects within the window. The
//! process also ends while another request never does: `curl http://127.0.0.1:3000/slow`.

#![allow(clippy::print_stdout, reason = "a program with a console")]

use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Html;
use axum::routing::get;
use tower_sse::{Hub, Refusal, StreamRequest, Subscription};

#[path = "shared/shutdown.rs"]
mod shutdown;

/// The time over which browsers reconnect. It is long enough if the next process, or the other
/// instances, can serve that many requests in it.
const WINDOW: Duration = Duration::from_secs(5);
/// The time that requests other than streams have to end after the drain.
const LAST_REQUESTS: Duration = Duration::from_secs(2);

/// Readiness for the load balancer. The hub is not ready from the start of the drain on.
async fn readyz(State(hub): State<Hub>) -> StatusCode {
    if hub.is_ready() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
}

async fn access(_: StreamRequest) -> Result<Subscription, Refusal> {
    Ok(Subscription::anonymous())
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
    let signal = shutdown::shutdown_signal()?;
    println!("open http://{}", listener.local_addr()?);

    let (drain_ended, drain_end) = tokio::sync::oneshot::channel();
    let serve = axum::serve(hub.listener(listener), app).with_graceful_shutdown(async move {
        signal.await;
        // Drain in this future: `serve` does not return while streams are open.
        let drained = hub.drain(WINDOW).await;
        println!("{} streams ended, {} were cut", drained.ended, drained.cut);
        drain_ended.send(()).ok();
    });
    tokio::select! {
        served = serve => served?,
        // Ends the process although another request is still open.
        () = async { drain_end.await.ok(); tokio::time::sleep(LAST_REQUESTS).await } => {}
    }
    Ok(())
}
