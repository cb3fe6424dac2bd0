//! The cost of the hub without sockets: `cargo bench --bench hub`. Compare ratios within one run;
//! absolute times belong to one machine.
//!
//! The public API cannot encode an event alone, so `encode` publishes to a topic without listeners.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a benchmark")]

#[path = "../tests/kit/bodies.rs"]
mod bodies;

use std::sync::Arc;
use std::time::{Duration, Instant};

use bodies::{Floor, Woken, drain, endpoint, open, request, sleeper, sleepers};
use bytes::Bytes;
use criterion::{Bencher, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use futures::{StreamExt, TryFutureExt, TryStreamExt, stream};
use tower_sse::{Event, Hub, Retention, Topic};

/// Returns a runtime that runs the task that wakes many listeners, and only when the benchmark
/// drives it. If that task ran on another thread, the kernel could run it first, and the measured
/// time of a publish would include it.
fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

async fn turns(count: usize) {
    for _ in 0..count {
        tokio::task::yield_now().await;
    }
}

fn tick() -> Event {
    Event::new("tick", "0123456789")
}

fn encode(c: &mut Criterion) {
    let mut group = c.benchmark_group("encode");
    let lines = "a line of thirty-one characters\n".repeat(32);
    for (name, data) in [("10 bytes", "0123456789".into()), ("1 kB", "x".repeat(1_024)), ("1 kB in 32 lines", lines)] {
        let hub = Hub::builder().build().unwrap();
        let topic = Topic::try_from("t").unwrap();
        let event = Event::from_utf8("tick", Bytes::from(data)).unwrap();
        group.bench_function(name, |b| {
            b.iter_batched(
                || event.clone(),
                |event| hub.topic(&topic).publish_now(event).unwrap(),
                criterion::BatchSize::SmallInput,
            );
        });
    }
    group.finish();
}

/// The call of `publish_now` alone, while all streams sleep. Waking more than 32 listeners, and
/// reading the events, are not measured.
///
/// When many streams read between two calls, they fill the processor's caches. So the cost by the
/// number of listeners is compared among 10,000 streams, which all read between two calls, whether
/// they listen to this topic or to another.
fn publish(c: &mut Criterion) {
    let mut group = c.benchmark_group("publish");
    for count in [0, 1, 10] {
        group.bench_function(BenchmarkId::new("alone", count), |b| publish_among(b, count, 0));
    }
    // The measured time is short, compared to the work between two calls.
    group.sample_size(10).measurement_time(Duration::from_millis(200)).warm_up_time(Duration::from_millis(50));
    for count in [0, 1, 10, 1_000, 10_000, 100_000] {
        let name = if count > 10_000 { "alone" } else { "among 10000" };
        group.bench_function(BenchmarkId::new(name, count), |b| publish_among(b, count, 10_000));
    }
    group.finish();
}

fn publish_among(b: &mut Bencher<'_>, count: usize, total: usize) {
    let runtime = runtime();
    let _entered = runtime.enter();
    let hub = Hub::builder().build().unwrap();
    let mut endpoint = endpoint(&hub);
    let topics = (0..count).map(|_| "topic=t").chain((count..total).map(|_| "topic=other"));
    let mut sleepers: Vec<_> = topics.map(|query| sleeper(&mut endpoint, request(query, None))).collect();
    b.iter_custom(|rounds| {
        let mut took = Duration::ZERO;
        for _ in 0..rounds {
            let event = tick();
            let begun = Instant::now();
            hub.topic("t").publish_now(event).unwrap();
            took += begun.elapsed();
            if count < total {
                hub.topic("other").publish_now(tick()).unwrap();
            }
            runtime.block_on(turns(1 + count.max(total) / 128));
            for sleeper in &mut sleepers {
                drain(&mut sleeper.body, &sleeper.waker);
            }
        }
        took
    });
}

/// One event or ten, read by each of a thousand bodies: the poll that returns the bytes, and the
/// poll after it.
fn deliver(c: &mut Criterion) {
    const LISTENERS: usize = 1_000;
    let runtime = runtime();
    let _entered = runtime.enter();
    let mut group = c.benchmark_group("deliver to 1000");
    group.throughput(Throughput::Elements(LISTENERS as u64));
    let hub = Hub::builder().build().unwrap();
    let mut sleepers = sleepers(&hub, LISTENERS);
    for events in [1, 10] {
        group.bench_function(BenchmarkId::new("events at once", events), |b| {
            b.iter_custom(|rounds| {
                let mut took = Duration::ZERO;
                for _ in 0..rounds {
                    for _ in 0..events {
                        hub.topic("t").publish_now(tick()).unwrap();
                    }
                    runtime.block_on(turns(16));
                    let begun = Instant::now();
                    for sleeper in &mut sleepers {
                        drain(&mut sleeper.body, &sleeper.waker);
                    }
                    took += begun.elapsed();
                }
                took
            });
        });
    }
    let floor = Arc::new(Floor::default());
    let waker = std::task::Waker::from(Arc::new(Woken::default()));
    let mut floors: Vec<_> = (0..LISTENERS).map(|_| Box::pin(floor.body())).collect();
    group.bench_function("minimal body", |b| {
        b.iter_custom(|rounds| {
            let mut took = Duration::ZERO;
            for _ in 0..rounds {
                floor.publish(Bytes::from_static(b"event: tick\ndata: 0123456789\n\n"));
                let begun = Instant::now();
                for body in &mut floors {
                    drain(body, &waker);
                }
                took += begun.elapsed();
            }
            took
        });
    });
    group.finish();
}

/// From a request to a body that sleeps: without an id, and with a hundred records to replay.
fn connect(c: &mut Criterion) {
    let runtime = runtime();
    let _entered = runtime.enter();
    let hub = Hub::builder().topic_retention(Retention::replay()).build().unwrap();
    let from = hub.topic("t").publish_now(tick()).unwrap().position.to_string();
    for _ in 0..100 {
        hub.topic("t").publish_now(tick()).unwrap();
    }
    let mut endpoint = endpoint(&hub);
    c.bench_function("connect", |b| {
        b.iter_batched(
            || request("topic=t", None),
            |request| sleeper(&mut endpoint, request),
            criterion::BatchSize::LargeInput,
        );
    });
    let waker = std::task::Waker::from(Arc::new(Woken::default()));
    c.bench_function("resume 100 records", |b| {
        b.iter_batched(
            || Box::pin(open(&mut endpoint, request("topic=t", Some(&from)))),
            |mut body| {
                drain(&mut body, &waker);
                body
            },
            criterion::BatchSize::SmallInput,
        );
    });
}

/// Ten thousand active runs: their beginnings, ten events of each, and their ends. On one instance,
/// and on one of two instances that share a `Memory`.
fn runs(c: &mut Criterion) {
    const RUNS: usize = 10_000;
    const EVENTS: usize = 10;
    // With all at once, the benchmark would measure tokio's budget, which lets 128 of them proceed at
    // each poll, and polls all of them.
    const AT_ONCE: usize = 64;
    let runtime = runtime();
    let _entered = runtime.enter();
    let mut group = c.benchmark_group("10000 runs with 10 events");
    group.sample_size(10);
    let all = async |hub: &Hub, round: u64| {
        let begin = |n| hub.run(format!("answers/{round}/{n}")).begin().into_future();
        let writers: Vec<_> = stream::iter((0..RUNS).map(begin)).buffered(AT_ONCE).try_collect().await.unwrap();
        for _ in 0..EVENTS {
            let publish = writers.iter().map(|writer| writer.publish(tick()).map_ok(drop));
            stream::iter(publish).buffered(AT_ONCE).try_collect::<()>().await.unwrap();
        }
        let finish = writers.into_iter().map(tower_sse::RunWriter::finish);
        stream::iter(finish).buffered(AT_ONCE).try_collect::<()>().await.unwrap();
    };
    let builder = || Hub::builder().run_keep_for(Duration::from_secs(1));
    let alone = builder().build().unwrap();
    let log = tower_sse::backplane::Memory::new();
    let shared = [(); 2].map(|()| builder().backplane(log.clone()).build().unwrap());
    for (name, hub) in [("one instance", &alone), ("memory, two instances", &shared[0])] {
        let mut round = 0;
        group.bench_function(name, |b| {
            b.iter(|| {
                round += 1;
                runtime.block_on(all(hub, round));
            });
        });
    }
    group.finish();
}

criterion_group!(benches, encode, publish, deliver, connect, runs);
criterion_main!(benches);
