//! How many instructions things take: `cargo bench --bench instructions`. It runs itself under callgrind, so it needs
//! valgrind. Such counts hardly depend on what else the machine does; they say nothing of caches, locks that are
//! fought for, or the kernel.
//!
//! `cargo bench --bench instructions -- profile FOLDER` leaves callgrind's files there, for `callgrind_annotate`. With
//! `CARGO_PROFILE_BENCH_DEBUG=line-tables-only` they say lines too.

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

use bodies::{Floor, Woken, drain, endpoint, open, request, sleepers, take};
use bytes::Bytes;
use tokio::runtime::Runtime;
use tower_sse::{Event, Hub, Retention};

/// Only what runs in a function of this name is counted.
const COUNTED: &str = "counted_from_here";
/// How often things are done that are counted one by one.
const TIMES: usize = 1_000;

/// A case, what it counts, and how many of these it does.
struct Case {
    name: &'static str,
    unit: &'static str,
    times: usize,
    run: fn(&Runtime),
}

impl Case {
    fn run(&self) {
        // What is woken in a task is woken when this is driven, and not before.
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
    Case { name: "poll for nothing", unit: "poll", times: 20 * 1_000, run: poll_for_nothing },
    Case { name: "deliver, floor body", unit: "delivery", times: 20 * 1_000, run: deliver_floor },
    Case {
        name: "deliver 10 at once",
        unit: "delivery",
        times: 20 * 10 * 100,
        run: |runtime| deliver(runtime, 10, 100),
    },
    Case { name: "connect", unit: "connect", times: TIMES, run: connect },
    Case { name: "disconnect", unit: "disconnect", times: TIMES, run: disconnect },
    Case { name: "resume 100 records", unit: "resume", times: 100, run: resume },
];

/// Callgrind switches counting on and off where this is entered and left.
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

/// The call, not the wake-ups that it leaves to a task. What is read meanwhile is not counted.
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

/// The task that wakes.
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

/// The poll that returns so many events at once, and the one after it that finds nothing.
fn deliver(runtime: &Runtime, events: usize, listeners: usize) {
    let hub = Hub::builder().build().unwrap();
    let mut sleepers = sleepers(&hub, listeners);
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

/// The second of the two polls alone.
fn poll_for_nothing(_: &Runtime) {
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

/// From a request to a body that sleeps.
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

/// From a request with an id to a body that has handed on a hundred records and sleeps.
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

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [flag, name] = &arguments[..]
        && flag == "--case"
    {
        CASES.iter().find(|case| case.name == name).expect("a case").run();
        return;
    }
    // `cargo test` runs benchmarks too, without this argument: only to see that they run.
    if !arguments.iter().any(|argument| argument == "--bench") {
        CASES.iter().filter(|case| !case.name.contains("10000")).for_each(Case::run);
        return;
    }
    if Command::new("valgrind").arg("--version").output().is_err() {
        return skip::skipped("valgrind is not installed");
    }
    let kept = arguments.iter().skip_while(|argument| *argument != "profile").nth(1);
    println!("| | instructions | for each |\n|---|---|---|");
    for case in CASES {
        let file = match kept {
            Some(folder) => Path::new(folder).join(format!("{}.callgrind", case.name.replace(' ', "-"))),
            None => "/dev/null".into(),
        };
        println!("| {} | {:.0} | {} |", case.name, count(case, &file) as f64 / case.times as f64, case.unit);
    }
}

/// The instructions of a case, as callgrind says at its end.
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
    let said = String::from_utf8_lossy(&output.stderr);
    let counted = said.lines().find_map(|line| line.split("Collected :").nth(1));
    counted.and_then(|count| count.trim().parse().ok()).unwrap_or_else(|| panic!("valgrind: {said}"))
}
