//! Figures that change at different times. The program publishes a figure when it changes, and a
//! new page receives the current value of every figure.
//!
//! `cargo run --example dashboard`, then open <http://127.0.0.1:3000> in several tabs and close
//! some. The program published "process" once, when it started, and every tab shows it. "memory"
//! and "threads" are available on Linux.

#![allow(clippy::print_stdout, reason = "a program with a console")]

use std::collections::BTreeMap;
use std::time::Duration;

use axum::Router;
use axum::response::Html;
use axum::routing::get;
use serde::Serialize;
use tokio::time::{MissedTickBehavior, interval};
use tower_sse::{Event, Hub, PublishError, Refusal, Retention, StreamRequest, Subscription, TopicFilter};

const EVERY: Duration = Duration::from_millis(500);

#[derive(Serialize)]
struct Figure<'a> {
    name: &'a str,
    value: &'a str,
}

/// Returns the current figures of this process.
fn measure(hub: &Hub) -> BTreeMap<&'static str, String> {
    let stats = hub.stats();
    let mut figures = BTreeMap::from([
        ("process", std::process::id().to_string()),
        ("pages open", stats.connections.to_string()),
        ("pages opened since start", stats.connected.to_string()),
    ]);
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    for (name, field) in [("memory", "VmRSS:"), ("threads", "Threads:")] {
        if let Some(value) = status.lines().find_map(|line| line.strip_prefix(field)) {
            figures.insert(name, value.trim().to_owned());
        }
    }
    figures
}

async fn sample(hub: Hub) {
    let mut published = BTreeMap::new();
    let mut ticks = interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        ticks.tick().await;
        for (name, value) in measure(&hub) {
            if published.get(name) == Some(&value) {
                continue;
            }
            match publish_figure(&hub, name, &value).await {
                Ok(()) => {
                    published.insert(name, value);
                }
                // The figure stays out of `published`, so the next tick tries again.
                Err(error) => println!("publishing {name} failed: {error}"),
            }
        }
    }
}

async fn publish_figure(hub: &Hub, name: &'static str, value: &str) -> Result<(), PublishError> {
    // The event replaces the earlier event with the same key.
    let figure = Event::json("figure", &Figure { name, value })?.key(name);
    hub.topic("dashboard").publish(figure).await?;
    Ok(())
}

async fn access(_: StreamRequest) -> Result<Subscription, Refusal> {
    Ok(Subscription::anonymous().topic("dashboard"))
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let hub = Hub::builder().retention_for(TopicFilter::exact("dashboard"), Retention::latest_per_key()).build()?;
    tokio::spawn(sample(hub.clone()));
    let app = Router::new()
        .route("/", get(async || Html(include_str!("dashboard.html"))))
        .layer(hub.layer("/events", access));
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:3000".to_owned());
    let listener = tokio::net::TcpListener::bind(address).await?;
    println!("open http://{}", listener.local_addr()?);
    axum::serve(hub.listener(listener), app).await?;
    Ok(())
}
