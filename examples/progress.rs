//! The progress of a long computation. Only the newest value counts, and a page that opens later
//! receives it at once.
//!
//! `cargo run --example progress`, open <http://127.0.0.1:3000> and start a computation. The
//! address of the page then names the computation: open it in a second tab, and both bars show the
//! same progress. Reload a page after the end: it shows the result.

#![allow(clippy::print_stdout, reason = "a program with a console")]

use std::error::Error;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Html;
use axum::routing::{get, post};
use tower_sse::{Event, Hub, Public, PublishError, Retention, TopicFilter};

const STEPS: u32 = 50;
const NUMBERS_IN_A_STEP: u32 = 20_000;
/// A pause after each step, so that the bar is visible while it moves.
const PAUSE: Duration = Duration::from_millis(100);
/// The time for which the hub retains a result.
const RESULT_AGE: Duration = Duration::from_secs(3600);

/// Computes, and publishes its progress and its result.
async fn count_primes(hub: &Hub, job: &str) -> Result<(), Box<dyn Error + Send + Sync>> {
    let mut primes = 0;
    for step in 0..STEPS {
        let numbers = step * NUMBERS_IN_A_STEP..(step + 1) * NUMBERS_IN_A_STEP;
        primes += tokio::task::spawn_blocking(|| numbers.filter(|number| is_prime(*number)).count()).await?;
        publish_state(hub, job, Event::new("progress", ((step + 1) * 100 / STEPS).to_string())).await?;
        tokio::time::sleep(PAUSE).await;
    }
    let result = format!("{primes} primes below {}", STEPS * NUMBERS_IN_A_STEP);
    publish_state(hub, job, Event::new("result", result)).await?;
    Ok(())
}

/// Publishes an event with the one key of a job. The event replaces the earlier one, so the hub
/// retains only the newest state.
async fn publish_state(hub: &Hub, job: &str, event: Event) -> Result<(), PublishError> {
    hub.topic(format!("jobs/{job}")).publish(event.key("state")).await?;
    Ok(())
}

fn is_prime(number: u32) -> bool {
    number > 1 && (2..).take_while(|divisor| divisor * divisor <= number).all(|divisor| !number.is_multiple_of(divisor))
}

async fn start(State(hub): State<Hub>) -> (StatusCode, String) {
    // A random name. After a restart, a counter would give the name in an open page to another job.
    let job = format!("{:016x}", fastrand::u64(..));
    let name = job.clone();
    tokio::spawn(async move {
        if let Err(error) = count_primes(&hub, &name).await {
            println!("computation {name} failed: {error}");
        }
    });
    (StatusCode::ACCEPTED, job)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let jobs = TopicFilter::prefix("jobs/");
    let hub = Hub::builder().retention_for(jobs.clone(), Retention::latest_per_key().age(RESULT_AGE)).build()?;
    let app = Router::new()
        .route("/", get(async || Html(include_str!("progress.html"))))
        .route("/jobs", post(start))
        .with_state(hub.clone())
        .layer(hub.layer("/events", Public::topics(jobs)));
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:3000".to_owned());
    let listener = tokio::net::TcpListener::bind(address).await?;
    println!("open http://{}", listener.local_addr()?);
    axum::serve(hub.listener(listener), app).await?;
    Ok(())
}
