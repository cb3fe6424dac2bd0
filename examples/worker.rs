//! A worker without HTTP. It publishes its progress through the broker, and every open page at any
//! instance shows it.
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

    /// The duration of one step of the work.
    const STEP: Duration = Duration::from_millis(200);
    /// The pause before the worker publishes again, while the broker is unavailable.
    const PAUSE: Duration = Duration::from_secs(1);

    /// The settings that instances and workers have to share. In an application both call this
    /// function. Here the instance has the same settings by `--latest reports/`.
    fn settings(log: Redis) -> HubBuilder {
        Hub::builder().retention_for(TopicFilter::prefix("reports/"), Retention::latest_per_key()).backplane(log)
    }

    pub(crate) async fn write_report(url: &str) -> Result<(), Box<dyn Error>> {
        // The same namespace as the instances.
        let publisher = settings(Redis::new(url, "default")?).publisher()?;
        let report = 7;
        // The id of this job in a job queue. It stays the same when the queue runs the job again.
        let job = std::process::id();
        for percent in (0..=100).step_by(10) {
            // The hub retains the newest value of the key, for pages that open later.
            let event = Event::new("progress", percent.to_string()).key("progress");
            publish_report(&publisher, report, event.idempotency_key(format!("job {job}: {percent} %"))).await?;
            println!("{percent} %");
            tokio::time::sleep(STEP).await;
        }
        // The report is ready: remove its progress, so that new pages do not receive it.
        publish_report(&publisher, report, Event::removal("progress").name("done")).await?;
        println!("done");
        Ok(())
    }

    /// Publishes an event, and retries until the log has it. A lost answer of the broker may have
    /// been a success. The idempotency key makes a second publish of the same event harmless. A
    /// removal needs no such key, since removing a value twice has the same result.
    async fn publish_report(publisher: &Publisher, report: u64, event: Event) -> Result<(), PublishError> {
        loop {
            match publisher.topic(format!("reports/{report}")).publish(event.clone()).await {
                Ok(_) => return Ok(()),
                Err(error) if error.is_unavailable() => {
                    eprintln!("{error}; retrying");
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
        eprintln!("a broker URL is required: worker redis://127.0.0.1:6379");
        return ExitCode::from(2);
    };
    match report::write_report(&url).await {
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
