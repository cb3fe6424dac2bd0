//! The progress and the result of a long computation. Each computation is a run: a stream with one
//! writer, which ends with its job.
//!
//! `cargo run --example progress`, open <http://127.0.0.1:3000> and start a computation. The
//! address of the page then names the computation: open it in a second tab, and both bars show the
//! same progress. Reload a page after the end: it shows the result.

#![allow(clippy::print_stdout, reason = "a program with a console")]

use std::error::Error;
use std::time::Duration;

use axum::Router;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Html;
use axum::routing::{get, post};
use tower_sse::{Event, EventStream, Hub, RunError, RunWriter, StreamRequest, Subscription};

const STEPS: u32 = 50;
const NUMBERS_IN_A_STEP: u32 = 20_000;
/// A pause after each step, so that the bar is visible while it moves.
const PAUSE: Duration = Duration::from_millis(100);
/// The time for which a page can show the result.
const KEEP_RESULT: Duration = Duration::from_secs(3600);

/// Computes, and publishes the progress and the result. After an error, the writer is dropped, and
/// the run ends with its last will.
async fn count_primes(writer: RunWriter) -> Result<(), Box<dyn Error + Send + Sync>> {
    let mut primes = 0;
    for step in 0..STEPS {
        let numbers = step * NUMBERS_IN_A_STEP..(step + 1) * NUMBERS_IN_A_STEP;
        primes += tokio::task::spawn_blocking(|| numbers.filter(|number| is_prime(*number)).count()).await?;
        writer.publish(Event::new("progress", ((step + 1) * 100 / STEPS).to_string())).await?;
        tokio::time::sleep(PAUSE).await;
    }
    let result = format!("{primes} primes below {}", STEPS * NUMBERS_IN_A_STEP);
    writer.finish_with(Event::new("result", result)).await?;
    Ok(())
}

fn is_prime(number: u32) -> bool {
    number > 1 && (2..).take_while(|divisor| divisor * divisor <= number).all(|divisor| !number.is_multiple_of(divisor))
}

/// Begins a computation and returns its name. The run begins first, so that a page that knows the
/// name finds the run.
async fn start(State(hub): State<Hub>) -> Result<(StatusCode, String), RunError> {
    // A random name, which no other client can guess. After a restart, a counter would give the
    // name in an open page to another job.
    let job = uuid::Uuid::new_v4().simple().to_string();
    let interrupted = Event::new("failed", "The computation was interrupted.");
    let writer = hub.run(format!("jobs/{job}")).begin().last_will(interrupted).await?;
    tokio::spawn(async move {
        if let Err(error) = count_primes(writer).await {
            println!("a computation failed: {error}");
        }
    });
    Ok((StatusCode::ACCEPTED, job))
}

/// Opens a stream of a computation, from its first event to its end. A page that names an unknown
/// computation receives `204` or `404`, which ends its `EventSource`.
async fn events(
    State(hub): State<Hub>,
    Path(job): Path<String>,
    request: StreamRequest,
) -> Result<EventStream, RunError> {
    let reader = hub.run(format!("jobs/{job}")).reader().await?;
    Ok(hub.respond(request, Subscription::run(reader)))
}

pub(crate) fn app(hub: &Hub) -> Router {
    Router::new()
        .route("/", get(async || Html(include_str!("progress.html"))))
        .route("/jobs", post(start))
        .route("/jobs/{job}", get(events))
        .with_state(hub.clone())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let hub = Hub::builder().run_keep_for(KEEP_RESULT).build()?;
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:3000".to_owned());
    let listener = tokio::net::TcpListener::bind(address).await?;
    println!("open http://{}", listener.local_addr()?);
    axum::serve(hub.listener(listener), app(&hub)).await?;
    Ok(())
}
