//! A worker without HTTP: it says how far it is, and whoever has a page open at any instance sees it.
//!
//! ```sh
//! redis-server &
//! cargo run -p standalone -- --backplane redis://127.0.0.1:6379 --latest reports/
//! # open http://127.0.0.1:8080/?topic=reports/7, then
//! cargo run --features redis --example worker -- redis://127.0.0.1:6379
//! ```

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program with a console")]

use std::process::ExitCode;

#[cfg(feature = "redis")]
mod report {
    use std::error::Error;
    use std::time::Duration;

    use tower_sse::backplane::Redis;
    use tower_sse::{Event, Hub, HubBuilder, PublishError, Publisher, Retention, TopicFilter};

    /// How long a step of the work takes.
    const STEP: Duration = Duration::from_millis(200);
    /// How long a broker that is away is waited for between two tries.
    const PAUSE: Duration = Duration::from_secs(1);

    /// What instances and workers have to agree on. In an application both call this one function; here the instance has it
    /// as `--latest reports/`.
    fn settings(log: Redis) -> HubBuilder {
        Hub::builder().retention_for(TopicFilter::prefix("reports/"), Retention::latest_per_key()).backplane(log)
    }

    pub(crate) async fn write(url: &str) -> Result<(), Box<dyn Error>> {
        // The namespace of the instances.
        let publisher = settings(Redis::new(url, "default")?).publisher()?;
        let report = 7;
        // What a job queue would call this job, however often it runs it.
        let job = std::process::id();
        for percent in (0..=100).step_by(10) {
            // Whoever opens the page half way gets the newest at once.
            let event = Event::new("progress", percent.to_string()).key("progress");
            say(&publisher, report, event.idempotency_key(format!("job {job}: {percent} %"))).await?;
            println!("{percent} %");
            tokio::time::sleep(STEP).await;
        }
        // The report is there; its progress is nobody's any more.
        say(&publisher, report, Event::removal("progress").name("done")).await?;
        println!("done");
        Ok(())
    }

    /// Until the log has it. An answer that was lost may have been a yes, so the event has an idempotency key: said twice
    /// it is there once. The removal needs none, for twice gone is gone.
    async fn say(publisher: &Publisher, report: u64, event: Event) -> Result<(), PublishError> {
        loop {
            match publisher.topic(format!("reports/{report}")).publish(event.clone()).await {
                Ok(_) => return Ok(()),
                Err(error) if error.is_unavailable() => {
                    eprintln!("{error}; trying again");
                    tokio::time::sleep(PAUSE).await;
                }
                Err(error) => return Err(error),
            }
        }
    }
}

#[cfg(feature = "redis")]
#[tokio::main]
async fn main() -> ExitCode {
    let Some(url) = std::env::args().nth(1).filter(|url| url.starts_with("redis://") || url.starts_with("rediss://"))
    else {
        eprintln!("where is the broker? worker redis://127.0.0.1:6379");
        return ExitCode::from(2);
    };
    match report::write(&url).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(not(feature = "redis"))]
fn main() -> ExitCode {
    eprintln!("built without the feature `redis`: cargo run --features redis --example worker");
    ExitCode::from(2)
}
