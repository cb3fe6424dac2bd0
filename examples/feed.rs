//! A feed: a new page gets the newest entries, and one that was away gets what it missed.
//!
//! `cargo run --example feed`, then open <http://127.0.0.1:3000> in two tabs. In one press "Go away", write in the other,
//! and press "Come back": what was missed comes, marked, in order, once. Taking the network away does the same.

#![allow(clippy::print_stdout, reason = "a program with a console")]

use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Html;
use axum::routing::{get, post};
use tower_sse::{Event, Hub, PublishError, Refusal, Retention, Start, StreamRequest, Subscription, TopicFilter};

/// How many entries a new page gets.
const NEWEST: usize = 20;

async fn write(State(hub): State<Hub>, entry: String) -> Result<StatusCode, PublishError> {
    hub.topic("feed").publish(Event::new("entry", entry)).await?;
    Ok(StatusCode::CREATED)
}

async fn access(_: StreamRequest) -> Result<Subscription, Refusal> {
    // Where to start says a new page's stream. One that comes back says itself where it was.
    Ok(Subscription::anonymous().topic("feed").start(Start::Last(NEWEST)))
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    // Who is away for longer, or misses more, is told: `hub.gap`.
    let kept = Retention::replay().count(200).age(Duration::from_secs(3600));
    let hub = Hub::builder().retention_for(TopicFilter::exact("feed"), kept).build()?;
    let app = Router::new()
        .route("/", get(async || Html(include_str!("feed.html"))))
        .route("/entries", post(write))
        .with_state(hub.clone())
        .layer(hub.layer("/events", access));
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:3000".to_owned());
    let listener = tokio::net::TcpListener::bind(address).await?;
    println!("open http://{}", listener.local_addr()?);
    axum::serve(hub.listener(listener), app).await?;
    Ok(())
}
