//! The throughput of records through a broker: `cargo bench --bench backplane`.
//!
//! The benchmark starts brokers on free ports, prints a table, and stops the brokers. They are a
//! `redis-server` without persistence, one that syncs each write to the disk, a `nats-server` with
//! its defaults, one that syncs each write, if its version supports that, and a PostgreSQL server
//! with its defaults, which syncs each transaction. Compare the ratios of rows; the rates belong to
//! one machine. `cargo bench --bench transactions` measures publishing in transactions.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a benchmark"
)]

#[path = "../tests/kit/nats.rs"]
mod nats_server;
#[path = "../tests/kit/port.rs"]
mod port;
#[path = "../tests/kit/postgres.rs"]
mod postgres_server;
#[path = "../tests/kit/processes.rs"]
mod processes;
#[path = "../tests/kit/redis.rs"]
mod redis_server;
#[path = "../tests/kit/skip.rs"]
mod skip;

use std::process::Command;
use std::time::{Duration, Instant};

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use nats_server::NatsServer;
use postgres_server::PostgresServer;
use redis_server::{DURABLE, FORGETFUL, RedisServer};
use tower_sse::backplane::{Backplane, Memory, Nats, Postgres, Redis};
use tower_sse::{Cursor, Event, Hub, Publisher, Retention, SubscriberItem, Subscription, TopicFilter};

/// Returns the duration of the measurement of each row.
fn duration() -> Duration {
    if is_measured() { Duration::from_secs(2) } else { Duration::from_millis(20) }
}

/// Whether `cargo bench` runs this program. `cargo test` runs it too, without this argument and
/// only to check that it works.
fn is_measured() -> bool {
    std::env::args().any(|argument| argument == "--bench")
}

/// The number of concurrent publishes in the row "64 concurrent".
const CONCURRENT: usize = 64;

/// Returns an event of the size of a small notification.
fn event() -> Event {
    Event::new("tick", "x".repeat(100))
}

fn builder(log: impl Backplane) -> tower_sse::HubBuilder {
    Hub::builder()
        .retention_for(TopicFilter::prefix("latest/"), Retention::latest_per_key())
        .topic_retention(Retention::replay().count(1_000_000).bytes(64 << 20))
        .backplane(log)
}

/// Publishes round after round, and returns the number of events a second.
async fn rate(mut round: impl AsyncFnMut() -> usize) -> f64 {
    // The first round connects and loads the script, which is not measured.
    round().await;
    let (begun, mut count) = (Instant::now(), 0);
    while begun.elapsed() < duration() {
        count += round().await;
    }
    count as f64 / begun.elapsed().as_secs_f64()
}

async fn many(publisher: &Publisher, size: usize) -> usize {
    let outcomes = publisher.publish_many((0..size).map(|_| (publisher.topic("t"), event()))).await;
    outcomes.into_iter().filter(|outcome| outcome.as_ref().inspect_err(|error| eprintln!("{error}")).is_ok()).count()
}

/// Publishes batches from a `Publisher`, and returns the events a second until a stream of a hub
/// has received the last one.
async fn end_to_end(log: impl Backplane + Clone, count: usize) -> f64 {
    let hub = builder(log.clone()).build().unwrap();
    let publisher = builder(log).publisher().unwrap();
    while !hub.is_ready() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let mut stream = hub.subscribe(Subscription::anonymous().topic("e"), Cursor::Absent).unwrap();
    let begun = Instant::now();
    let publish = async {
        for _ in 0..count / 1_000 {
            let outcomes = publisher.publish_many((0..1_000).map(|_| (publisher.topic("e"), event()))).await;
            assert!(outcomes.iter().all(Result::is_ok));
        }
    };
    let read = async {
        let mut received = 0;
        while received < count {
            match stream.next().await.expect("the stream ended") {
                SubscriberItem::Event(_) => received += 1,
                SubscriberItem::Gap { .. } => panic!("a gap"),
                _ => {}
            }
        }
    };
    futures::join!(publish, read);
    count as f64 / begun.elapsed().as_secs_f64()
}

async fn table(name: &str, log: impl Backplane + Clone) {
    let publisher = builder(log.clone()).publisher().unwrap();
    let one = async || usize::from(publisher.topic("t").publish(event()).await.is_ok());
    let keyed = async || {
        let target = publisher.topic("latest/t");
        usize::from(target.publish(event().key(fastrand::u64(..1_000).to_string())).await.is_ok())
    };
    let concurrent = async || {
        let all: FuturesUnordered<_> = (0..CONCURRENT).map(|_| one()).collect();
        all.collect::<Vec<_>>().await.into_iter().sum()
    };
    let base = rate(one).await;
    let rows = [
        ("`publish`, sequential", base),
        ("`publish` with a key, `latest_per_key`", rate(keyed).await),
        ("`publish`, 64 concurrent", rate(concurrent).await),
        ("`publish_many` of 10", rate(async || many(&publisher, 10).await).await),
        ("`publish_many` of 100", rate(async || many(&publisher, 100).await).await),
        ("`publish_many` of 1,000", rate(async || many(&publisher, 1_000).await).await),
        (
            "`publish_many` of 1,000, until a stream of a hub has received them",
            end_to_end(log, if is_measured() { 50_000 } else { 1_000 }).await,
        ),
    ];
    for (row, rate) in rows {
        println!("| {name} | {row} | {rate:.0} | {:.1} |", rate / base);
    }
}

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    println!("| log | | events a second | ratio |\n|---|---|---|---|");
    runtime.block_on(table("memory", Memory::new()));
    for (name, arguments) in [("Redis, no persistence", FORGETFUL), ("Redis, `appendfsync always`", DURABLE)] {
        if let Some(server) = RedisServer::start(arguments) {
            runtime.block_on(table(name, Redis::new(&server.url(), "bench").unwrap()));
        }
    }
    if let Some(server) = PostgresServer::start_on_disk(&[]) {
        runtime.block_on(table("Postgres", Postgres::new(&server.url(), "bench").unwrap()));
    }
    if let Some(server) = NatsServer::start() {
        runtime.block_on(table("NATS", Nats::new(&server.url(), "bench").unwrap()));
        drop(server);
        synced_nats(|server| {
            runtime.block_on(table("NATS, `sync_interval: always`", Nats::new(&server.url(), "bench").unwrap()));
        });
    }
}

/// Runs a NATS server that syncs each write to the disk, which version 2.10 and later support.
fn synced_nats(measure: impl FnOnce(&NatsServer)) {
    let config = std::env::temp_dir().join(format!("tower-sse-bench-{}.conf", std::process::id()));
    std::fs::write(&config, "jetstream { sync_interval: always }\n").unwrap();
    let path = config.to_str().unwrap();
    if Command::new("nats-server").args(["-t", "-c", path]).output().unwrap().status.success() {
        measure(&NatsServer::start_with(&["-c", path]).unwrap());
    } else {
        skip::skipped("this nats-server does not support `sync_interval: always`");
    }
    std::fs::remove_file(&config).unwrap();
}
