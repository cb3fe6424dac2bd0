//! Instruction counts: `cargo bench --bench instructions`. The benchmark runs itself under
//! callgrind, so it needs valgrind. Other processes hardly change the counts. The counts do not
//! include caches, contended locks and the kernel.
//!
//! `cargo bench --bench instructions -- profile FOLDER` writes callgrind's files into an existing
//! folder, for `callgrind_annotate`. With `CARGO_PROFILE_BENCH_DEBUG=line-tables-only` they include
//! line numbers.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a benchmark"
)]

#[path = "../tests/kit/bodies.rs"]
mod bodies;
#[path = "../tests/kit/skip.rs"]
mod skip;

use std::hint::black_box;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use bodies::{Floor, Woken, drain, endpoint, open, reader, request, sleepers, take};
use bytes::Bytes;
use futures::FutureExt;
use tokio::runtime::Runtime;
use tower_sse::backplane::Memory;
use tower_sse::{Event, Hub, Position, Publisher, Retention, Subscription};

/// The name of the function within which instructions are counted.
const COUNTED: &str = "counted_from_here";
/// The number of operations in cases that count single operations.
const TIMES: usize = 1_000;

/// The number of topics of a busy shared log.
const TOPICS: usize = 10_000;

/// A benchmark case.
struct Case {
    name: &'static str,
    /// The name of one operation.
    unit: &'static str,
    /// The number of operations.
    times: usize,
    run: fn(&Runtime),
}

impl Case {
    fn run(&self) {
        // A runtime that runs tasks only when the case drives it, so that the wake-ups in a task
        // are not counted as a part of a publish.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let _entered = runtime.enter();
        (self.run)(&runtime);
    }
}

const CASES: &[Case] = &[
    Case { name: "publish to 0", unit: "publish", times: TIMES, run: |runtime| publish(runtime, 0, TIMES) },
    Case { name: "publish to 10", unit: "publish", times: TIMES, run: |runtime| publish(runtime, 10, TIMES) },
    Case { name: "publish to 1000", unit: "publish", times: TIMES, run: |runtime| publish(runtime, 1_000, TIMES) },
    Case { name: "publish to 10000", unit: "publish", times: 100, run: |runtime| publish(runtime, 10_000, 100) },
    Case { name: "wake 1000", unit: "listener", times: 20 * 1_000, run: wake },
    Case { name: "deliver", unit: "delivery", times: 20 * 1_000, run: |runtime| deliver(runtime, 1, 1_000) },
    Case { name: "deliver, with metrics", unit: "delivery", times: 20 * 1_000, run: deliver_with_metrics },
    Case { name: "poll without events", unit: "poll", times: 20 * 1_000, run: poll_without_events },
    Case { name: "deliver, minimal body", unit: "delivery", times: 20 * 1_000, run: deliver_floor },
    Case {
        name: "deliver 10 at once",
        unit: "delivery",
        times: 20 * 10 * 100,
        run: |runtime| deliver(runtime, 10, 100),
    },
    Case { name: "event of a topic", unit: "event", times: TIMES, run: topic_event },
    Case { name: "event of a run", unit: "event", times: TIMES, run: run_event },
    Case { name: "connect", unit: "connect", times: TIMES, run: connect },
    Case { name: "disconnect", unit: "disconnect", times: TIMES, run: disconnect },
    Case { name: "resume 100 records", unit: "resume", times: 100, run: resume },
    Case { name: "follow, all topics kept", unit: "record", times: TOPICS, run: |runtime| follow(runtime, TOPICS) },
    Case { name: "follow, 1 % of topics", unit: "record", times: TOPICS, run: |runtime| follow(runtime, TOPICS / 100) },
];

/// Runs the work with counting on. Callgrind toggles counting at the entry and the exit of this
/// function.
#[inline(never)]
fn counted_from_here<T>(work: impl FnOnce() -> T) -> T {
    black_box(work())
}

fn event() -> Event {
    Event::new("tick", "x".repeat(100))
}

async fn turns(count: usize) {
    for _ in 0..count {
        tokio::task::yield_now().await;
    }
}

/// Counts the publish call alone, without the wake-ups in a task and without the reads.
fn publish(runtime: &Runtime, listeners: usize, times: usize) {
    let hub = Hub::builder().build().unwrap();
    let mut sleepers = sleepers(&hub, listeners);
    for _ in 0..times {
        let event = event();
        counted_from_here(|| hub.topic("t").publish_now(event).unwrap());
        runtime.block_on(turns(1 + listeners / 128));
        for sleeper in &mut sleepers {
            drain(&mut sleeper.body, &sleeper.waker);
        }
    }
}

/// Counts the task that wakes many listeners.
fn wake(runtime: &Runtime) {
    let hub = Hub::builder().build().unwrap();
    let mut sleepers = sleepers(&hub, 1_000);
    for _ in 0..20 {
        hub.topic("t").publish_now(event()).unwrap();
        counted_from_here(|| runtime.block_on(turns(10)));
        for sleeper in &mut sleepers {
            drain(&mut sleeper.body, &sleeper.waker);
        }
    }
}

/// Counts the poll that returns all events at once, and the poll after it, which is pending.
fn deliver(runtime: &Runtime, events: usize, listeners: usize) {
    deliver_from(&Hub::builder().build().unwrap(), runtime, events, listeners);
}

/// Counts the same with a recorder for Prometheus.
fn deliver_with_metrics(runtime: &Runtime) {
    let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
    let hub = metrics::with_local_recorder(&recorder, || Hub::builder().build().unwrap());
    deliver_from(&hub, runtime, 1, 1_000);
}

fn deliver_from(hub: &Hub, runtime: &Runtime, events: usize, listeners: usize) {
    let mut sleepers = sleepers(hub, listeners);
    for _ in 0..20 {
        for _ in 0..events {
            hub.topic("t").publish_now(event()).unwrap();
        }
        runtime.block_on(turns(10));
        for sleeper in &mut sleepers {
            counted_from_here(|| assert_eq!(drain(&mut sleeper.body, &sleeper.waker), 1));
        }
    }
}

/// Counts the publish to a topic with one stream, and the polls of that stream.
fn topic_event(runtime: &Runtime) {
    let hub = Hub::builder().build().unwrap();
    let mut sleeper = sleepers(&hub, 1).remove(0);
    for _ in 0..TIMES {
        let event = event();
        counted_from_here(|| {
            hub.topic("t").publish(event).now_or_never().unwrap().unwrap();
            assert_eq!(drain(&mut sleeper.body, &sleeper.waker), 1);
        });
        runtime.block_on(turns(1));
    }
}

/// Counts the same for a run with one stream.
fn run_event(runtime: &Runtime) {
    let hub = Hub::builder().build().unwrap();
    let run = hub.run("t");
    let writer = run.begin().into_future().now_or_never().unwrap().unwrap();
    let mut sleeper = reader(&run, &hub);
    for _ in 0..TIMES {
        let event = event();
        counted_from_here(|| {
            writer.publish(event).now_or_never().unwrap().unwrap();
            assert_eq!(drain(&mut sleeper.body, &sleeper.waker), 1);
        });
        runtime.block_on(turns(1));
    }
}

/// Counts polls that are pending.
fn poll_without_events(_: &Runtime) {
    let hub = Hub::builder().build().unwrap();
    let mut sleepers = sleepers(&hub, 1_000);
    for _ in 0..20 {
        for sleeper in &mut sleepers {
            counted_from_here(|| assert_eq!(drain(&mut sleeper.body, &sleeper.waker), 0));
        }
    }
}

fn deliver_floor(_: &Runtime) {
    let floor = Arc::new(Floor::default());
    let waker = std::task::Waker::from(Arc::new(Woken::default()));
    let mut bodies: Vec<_> = (0..1_000).map(|_| Box::pin(floor.body())).collect();
    bodies.iter_mut().for_each(|body| assert_eq!(drain(body, &waker), 0));
    for _ in 0..20 {
        floor.publish(Bytes::from(vec![b'x'; 130]));
        for body in &mut bodies {
            counted_from_here(|| assert_eq!(drain(body, &waker), 1));
        }
    }
}

/// Counts from the request to a body that sleeps.
fn connect(_: &Runtime) {
    let hub = Hub::builder().build().unwrap();
    let mut endpoint = endpoint(&hub);
    let mut kept = sleepers(&hub, TIMES);
    for _ in 0..TIMES {
        let request = request("topic=t", None);
        let waker = std::task::Waker::from(Arc::new(Woken::default()));
        kept.push(counted_from_here(|| {
            let mut body = Box::pin(open(&mut endpoint, request));
            drain(&mut body, &waker);
            bodies::Sleeper { body, waker }
        }));
    }
}

fn disconnect(_: &Runtime) {
    let hub = Hub::builder().build().unwrap();
    let sleepers = sleepers(&hub, TIMES);
    for sleeper in sleepers {
        counted_from_here(|| drop(sleeper));
    }
}

/// Counts from a request with an id to a body that has returned a hundred records and sleeps.
fn resume(_: &Runtime) {
    let hub = Hub::builder().topic_retention(Retention::replay()).build().unwrap();
    let mut endpoint = endpoint(&hub);
    let from = hub.topic("t").publish_now(event()).unwrap().position.to_string();
    for _ in 0..100 {
        hub.topic("t").publish_now(event()).unwrap();
    }
    let waker = std::task::Waker::from(Arc::new(Woken::default()));
    for _ in 0..100 {
        let request = request("topic=t", Some(&from));
        let body = counted_from_here(|| {
            let mut body = Box::pin(open(&mut endpoint, request));
            while black_box(take(&mut body, &waker)).is_some() {}
            body
        });
        drop(body);
    }
}

/// Counts an instance that applies the records of a shared log, one for each topic, while one topic
/// of a hundred has a listener. The instance keeps the records of the first `kept` topics, because
/// they had a listener within the grace period.
fn follow(runtime: &Runtime, kept: usize) {
    let (log, hour) = (Memory::new(), Duration::from_secs(3_600));
    let builder = Hub::builder().max_topics(TOPICS).presence_grace(hour).probe_interval(hour);
    let hub = builder.backplane(log.clone()).build().unwrap();
    runtime.block_on(async {
        while !hub.is_ready() {
            tokio::task::yield_now().await;
        }
    });
    let topics: Vec<_> = (0..TOPICS).map(|n| format!("orders/{n}")).collect();
    let subscribe = |count: usize| {
        let topics = topics[..count].iter().map(String::as_str);
        hub.subscribe(Subscription::anonymous().with_topics(topics), None).unwrap()
    };
    let _listener = subscribe(TOPICS / 100);
    drop(subscribe(kept));
    let publisher = Publisher::new(log).unwrap();
    let publish = || {
        for some in topics.chunks(100) {
            let events = some.iter().map(|topic| (publisher.topic(topic.as_str()), event()));
            let appended = publisher.publish_many(events).now_or_never().unwrap();
            assert!(appended.iter().all(Result::is_ok));
        }
        publisher.topic("end").publish(event()).now_or_never().unwrap().unwrap().position
    };
    let follow = |last: Position| {
        runtime.block_on(async {
            while hub.position() != last {
                tokio::task::yield_now().await;
            }
        });
    };
    follow(publish());
    let last = publish();
    counted_from_here(|| follow(last));
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [flag, name] = &arguments[..]
        && flag == "--case"
    {
        CASES.iter().find(|case| case.name == name).expect("unknown case").run();
        return;
    }
    // `cargo test` runs benchmarks too, without this argument and only to check that they work.
    if !arguments.iter().any(|argument| argument == "--bench") {
        CASES.iter().filter(|case| !case.name.contains("10000")).for_each(Case::run);
        return;
    }
    if Command::new("valgrind").arg("--version").output().is_err() {
        return skip::skipped("valgrind is not installed");
    }
    let kept = arguments.iter().skip_while(|argument| *argument != "profile").nth(1);
    println!("| case | instructions | per |\n|---|---|---|");
    for case in CASES {
        let file = match kept {
            Some(folder) => Path::new(folder).join(format!("{}.callgrind", case.name.replace(' ', "-"))),
            None => "/dev/null".into(),
        };
        println!("| {} | {:.0} | {} |", case.name, count(case, &file) as f64 / case.times as f64, case.unit);
    }
}

/// Returns the number of instructions of a case, from callgrind's output.
fn count(case: &Case, file: &Path) -> u64 {
    let own = std::env::current_exe().unwrap();
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--collect-atstart=no", "--dump-instr=no"])
        .arg(format!("--toggle-collect=*{COUNTED}*"))
        .arg(format!("--callgrind-out-file={}", file.display()))
        .arg(own)
        .args(["--case", case.name])
        .output()
        .unwrap();
    let log = String::from_utf8_lossy(&output.stderr);
    let counted = log.lines().find_map(|line| line.split("Collected :").nth(1));
    counted.and_then(|count| count.trim().parse().ok()).unwrap_or_else(|| panic!("valgrind: {log}"))
}
