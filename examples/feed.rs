//! A feed. A new page receives the newest entries, and a page that reconnects receives the entries
//! that it missed.
//!
//! `cargo run --example feed`, then open <http://127.0.0.1:3000> in two tabs. In one press
//! "Disconnect", post entries in the other, and press "Reconnect": the missed entries arrive in
//! order and once, and the page marks them. Losing the network has the same effect.

#![allow(clippy::print_stdout, reason = "a program with a console")]

use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Html;
use axum::routing::{get, post};
use tower_sse::{Event, Hub, PublishError, Refusal, Retention, Start, StreamRequest, Subscription, TopicFilter};

/// The number of entries that a new page receives.
const NEWEST: usize = 20;

async fn post_entry(State(hub): State<Hub>, entry: String) -> Result<StatusCode, PublishError> {
    hub.topic("feed").publish(Event::new("entry", entry)).await?;
    Ok(StatusCode::CREATED)
}

async fn access(_: StreamRequest) -> Result<Subscription, Refusal> {
    // The start applies to new pages. A page that reconnects sends its last event id instead.
    Ok(Subscription::anonymous().topic("feed").start(Start::Last(NEWEST)))
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    // A page that was away for longer, or missed more entries, receives `hub.gap`.
    let retention = Retention::replay().count(200).age(Duration::from_secs(3600));
    let hub = Hub::builder().retention_for(TopicFilter::exact("feed"), retention).build()?;
    let app = Router::new()
        .route("/", get(async || Html(include_str!("feed.html"))))
        .route("/entries", post(post_entry))
        .with_state(hub.clone())
        .layer(hub.layer("/events", access));
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:3000".to_owned());
    let listener = tokio::net::TcpListener::bind(address).await?;
    println!("open http://{}", listener.local_addr()?);
    axum::serve(hub.listener(listener), app).await?;
    Ok(())
}
