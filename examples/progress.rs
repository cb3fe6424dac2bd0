//! How far a long computation is: only the newest matters, and who opens the page half way sees it at once.
//!
//! `cargo run --example progress`, open <http://127.0.0.1:3000>, start a computation, and open the page's address, which
//! now names it, in a second tab: both bars are where the computation is. Reload when it is done: the result is there.

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
/// Computers are too fast to watch.
const PAUSE: Duration = Duration::from_millis(100);
/// For how long a result is there.
const KEPT_FOR: Duration = Duration::from_secs(3600);

/// Knows nothing of pages: it computes, and says how far it is.
async fn count_primes(hub: &Hub, job: &str) -> Result<(), Box<dyn Error + Send + Sync>> {
    let mut primes = 0;
    for step in 0..STEPS {
        let numbers = step * NUMBERS_IN_A_STEP..(step + 1) * NUMBERS_IN_A_STEP;
        primes += tokio::task::spawn_blocking(|| numbers.filter(|number| is_prime(*number)).count()).await?;
        say(hub, job, Event::new("progress", ((step + 1) * 100 / STEPS).to_string())).await?;
        tokio::time::sleep(PAUSE).await;
    }
    say(hub, job, Event::new("result", format!("{primes} primes below {}", STEPS * NUMBERS_IN_A_STEP))).await?;
    Ok(())
}

/// One key for all that is said of a job: each event takes the place of the one before, and the result stays.
async fn say(hub: &Hub, job: &str, event: Event) -> Result<(), PublishError> {
    hub.topic(format!("jobs/{job}")).publish(event.key("state")).await?;
    Ok(())
}

fn is_prime(number: u32) -> bool {
    number > 1 && (2..).take_while(|divisor| divisor * divisor <= number).all(|divisor| !number.is_multiple_of(divisor))
}

async fn start(State(hub): State<Hub>) -> (StatusCode, String) {
    // Counted from 1 it would name another computation after a restart, to a page that is still open.
    let job = format!("{:016x}", fastrand::u64(..));
    let name = job.clone();
    tokio::spawn(async move {
        if let Err(error) = count_primes(&hub, &name).await {
            println!("computation {name} has ended without a result: {error}");
        }
    });
    (StatusCode::ACCEPTED, job)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let jobs = TopicFilter::prefix("jobs/");
    let hub = Hub::builder().retention_for(jobs.clone(), Retention::latest_per_key().age(KEPT_FOR)).build()?;
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
