//! Runs under load while instances and the broker are killed. Instances are processes of their own.
//! Writers begin one run after the other, and readers resume on any instance. For each run, every
//! reader receives each event once and in order, and then the right end.
//!
//! `SEED=7 cargo test --test brokers run_faults` repeats a run of the test, and `RUN_SEEDS=5` runs
//! five seeds. A seed repeats the plan of the faults, and not the timing of the processes.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use bytes::Bytes;
use fastrand::Rng;
use http::{Request, Response};
use http_body_util::{BodyDataStream, Full};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};
use tower_sse::{Event, EventStream, Hub, RunError, RunWriter, StreamRequest, Subscription};

use crate::kit::broker::{BrokerServer, NatsBroker, for_each_broker};
use crate::kit::postgres::PostgresServer;
use crate::kit::{Events, until};
use crate::redis_server::RedisServer;

const INSTANCES: usize = 4;
const WRITERS: usize = 30;
const READERS: usize = 60;
/// The time for which faults are injected.
const LOAD: Duration = Duration::from_secs(10);
/// The time within which the last runs have to end.
const REST: Duration = Duration::from_secs(40);
/// Longer than the longest pause between two attempts of an instance to reach the broker.
const PEER_TIMEOUT: Duration = Duration::from_secs(6);
/// Tells a process of this test program that it is an instance: the kind and the port of its
/// broker.
const INSTANCE: &str = "TOWER_SSE_TEST_INSTANCE";
/// The test that is the program of an instance.
const PROGRAM: &str = "run_faults::program_of_an_instance";

/// The kind of a broker, as an instance is told it.
trait Kind {
    const KIND: &'static str;
}

impl Kind for RedisServer {
    const KIND: &'static str = "redis";
}

impl Kind for NatsBroker {
    const KIND: &'static str = "nats";
}

impl Kind for PostgresServer {
    const KIND: &'static str = "postgres";
}

// The instance.

/// What a writer does.
#[derive(Clone, Copy, serde::Serialize, serde::Deserialize)]
struct Plan {
    events: u64,
    pace: u64,
    fails: bool,
}

/// Serves runs until the process is killed, or until the test that has started it ends. Does
/// nothing as a test.
#[test]
fn program_of_an_instance() {
    let Ok(broker) = std::env::var(INSTANCE) else { return };
    let (kind, port) = broker.split_once(' ').unwrap();
    let port: u16 = port.parse().unwrap();
    std::thread::spawn(|| {
        // The test holds the other end.
        drop(std::io::stdin().read(&mut [0]));
        std::process::exit(0);
    });
    let builder = Hub::builder().peer_timeout(PEER_TIMEOUT).publish_timeout(Duration::from_secs(1));
    let limit = Duration::from_millis(500);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let hub = match kind {
            "redis" => builder.backplane(RedisServer::log_at(port, "runs", limit)).build().unwrap(),
            "postgres" => builder.backplane(PostgresServer::log_at(port, "runs", limit)).build().unwrap(),
            _ => builder.backplane(NatsBroker::log_at(port, "runs", limit)).build().unwrap(),
        };
        let app = Router::new()
            .route("/runs/{name}", post(begin).get(follow))
            .route("/stop/{name}", post(stop))
            .route("/ready", get(async |State(hub): State<Hub>| hub.is_ready().to_string()))
            .with_state(hub.clone());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        say(&format!("port {}", listener.local_addr().unwrap().port()));
        axum::serve(hub.listener(listener), app).await.unwrap();
    });
}

/// Reports to the test. One write of a short line is not torn when the process is killed.
fn say(line: &str) {
    use std::io::Write;
    std::io::stdout().write_all(format!("\n@{line}\n").as_bytes()).unwrap();
    std::io::stdout().flush().unwrap();
}

fn text(data: impl Into<String>) -> Event {
    Event::unnamed(data.into())
}

async fn begin(
    State(hub): State<Hub>,
    Path(name): Path<String>,
    Query(plan): Query<Plan>,
) -> Result<StatusCode, RunError> {
    let writer = hub.run(&*name).begin().last_will(text("will")).await?;
    tokio::spawn(write(writer, name, plan));
    Ok(StatusCode::CREATED)
}

async fn follow(
    State(hub): State<Hub>,
    Path(name): Path<String>,
    request: StreamRequest,
) -> Result<EventStream, RunError> {
    let reader = hub.run(name).reader_within(Duration::from_millis(200)).await?;
    Ok(hub.respond(request, Subscription::run(reader)))
}

async fn stop(State(hub): State<Hub>, Path(name): Path<String>) -> Result<String, RunError> {
    Ok(hub.run(name).stop().await?.to_string())
}

/// Publishes the numbers from 0, and ends the run. Reports each acknowledged number.
async fn write(writer: RunWriter, name: String, plan: Plan) {
    let mut next = 0;
    while next < plan.events {
        tokio::select! {
            () = writer.stopped() => break,
            () = sleep(Duration::from_millis(plan.pace)) => {}
        }
        let count = if next % 7 == 3 { 3 } else { 1 };
        let events = (next..next + count).map(|n| text(n.to_string()));
        match writer.publish_many(events).await {
            Ok(first) if first == next => {
                next += count;
                say(&format!("has {name} {next}"));
            }
            Ok(first) => return say(&format!("wrong {name}: {next} became number {first}")),
            // The next call completes these events.
            Err(error) if error.is_unknown() => next += count,
            Err(error) if error.is_ended() => return say(&format!("ended {name}")),
            Err(error) if error.is_unavailable() => continue,
            Err(error) => return say(&format!("wrong {name}: {error}")),
        }
    }
    let is_stopped = writer.is_stopped();
    let ended = if is_stopped {
        writer.finish_with(text("stopped")).await
    } else if next < plan.events {
        return say(&format!("ended {name}"));
    } else if plan.fails {
        writer.fail_with(text("failed"), "as planned").await
    } else {
        writer.finish_with(text("finished")).await
    };
    match ended {
        Ok(()) => say(&format!("end {name}")),
        Err(error) if error.is_ended() => say(&format!("ended {name}")),
        // The hub completes the end.
        Err(error) if error.is_unavailable() => {}
        Err(error) => say(&format!("wrong {name}: {error}")),
    }
}

// The test.

/// A process that serves runs.
struct Instance {
    child: Child,
    addr: SocketAddr,
}

impl Instance {
    fn start(broker: &str, ledger: &Arc<Ledger>) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args([PROGRAM, "--exact", "--nocapture", "--test-threads=1"]).env(INSTANCE, broker);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let port = loop {
            let line = lines.next().expect("the instance has ended").unwrap();
            if let Some(port) = line.strip_prefix("@port ") {
                break port.parse().unwrap();
            }
        };
        let ledger = Arc::clone(ledger);
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                if let Some(line) = line.strip_prefix('@') {
                    ledger.note(line);
                }
            }
        });
        Self { child, addr: SocketAddr::from(([127, 0, 0, 1], port)) }
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// What the test knows about one run.
#[derive(Clone, Debug, Default)]
struct Known {
    instance: usize,
    events: u64,
    fails: bool,
    /// The number of acknowledged events.
    acknowledged: u64,
    /// Whether the end was acknowledged.
    has_ended: bool,
    /// Whether the writer was told that others have ended its run.
    was_told: bool,
    was_asked_to_stop: bool,
    /// Whether the process of the writer was killed, or the run may not have begun.
    may_be_aborted: bool,
    /// The last events that readers have received: one of them.
    ends: BTreeSet<String>,
    readers: usize,
}

#[derive(Default)]
struct Ledger {
    runs: Mutex<BTreeMap<String, Known>>,
    wrong: Mutex<Vec<String>>,
}

impl Ledger {
    fn with<T>(&self, name: &str, change: impl FnOnce(&mut Known) -> T) -> T {
        change(self.runs.lock().unwrap().entry(name.to_owned()).or_default())
    }

    fn note(&self, line: &str) {
        let (word, rest) = line.split_once(' ').unwrap();
        match (word, rest.split_once(' ')) {
            ("has", Some((name, count))) => self.with(name, |run| run.acknowledged = count.parse().unwrap()),
            ("end", _) => self.with(rest, |run| run.has_ended = true),
            ("ended", _) => self.with(rest, |run| run.was_told = true),
            _ => self.wrong.lock().unwrap().push(line.to_owned()),
        }
    }

    /// Checks what one reader has received of a run.
    fn settle(&self, name: &str, received: &[String], reason: Option<&str>) {
        let run = self.with(name, |run| run.clone());
        let context = || format!("{name}: {received:?}, {reason:?}, {run:?}");
        let (last, numbers) = received.split_last().unwrap_or_else(|| panic!("{}", context()));
        let count = numbers.len() as u64;
        for (expected, number) in numbers.iter().enumerate() {
            assert_eq!(*number, expected.to_string(), "{}", context());
        }
        let is_whole = count >= run.events && count <= run.events + 2;
        let (expected, holds) = match last.as_str() {
            "finished" => ("finished", is_whole && !run.fails),
            "failed" => ("failed", is_whole && run.fails),
            "stopped" => ("stopped", run.was_asked_to_stop),
            "will" => ("aborted", !run.has_ended),
            _ => panic!("the last event is missing: {}", context()),
        };
        assert!(holds, "the end is wrong: {}", context());
        assert!(reason.is_none_or(|reason| reason == expected), "{}", context());
        assert!(count >= run.acknowledged, "an acknowledged event is missing: {}", context());
        let ends = self.with(name, |run| {
            run.readers += 1;
            run.ends.insert(format!("{count} {last}"));
            run.ends.len()
        });
        assert_eq!(ends, 1, "readers have received different runs: {}", context());
    }
}

struct Fleet {
    instances: [Mutex<Option<Instance>>; INSTANCES],
    /// The name of the newest run of each writer.
    names: [Mutex<String>; WRITERS],
    ledger: Arc<Ledger>,
    /// Makes the names of this run of the test unique.
    seed: u64,
    over: AtomicBool,
    begun: Instant,
    /// The faults so far, for the message of a failure.
    faults: Mutex<Vec<String>>,
    /// What each reader waits for, for the message of a failure.
    waits: Mutex<BTreeMap<usize, String>>,
    resumes: AtomicUsize,
    honest: AtomicUsize,
}

impl Fleet {
    fn addr(&self, instance: usize) -> Option<SocketAddr> {
        self.instances[instance].lock().unwrap().as_ref().map(|instance| instance.addr)
    }

    fn is_over(&self) -> bool {
        self.over.load(Ordering::SeqCst)
    }

    fn note_fault(&self, fault: &str) {
        self.faults.lock().unwrap().push(format!("{:.2} s: {fault}", self.begun.elapsed().as_secs_f64()));
    }

    /// Kills an instance. Returns after its reports have been noted.
    async fn kill(&self, instance: usize) {
        // From now on, the runs of this instance may be aborted.
        let ledger = &self.ledger;
        let killed = self.instances[instance].lock().unwrap().take();
        drop(killed);
        for run in ledger.runs.lock().unwrap().values_mut().filter(|run| run.instance == instance) {
            run.may_be_aborted |= !run.has_ended;
        }
    }
}

/// Sends a request. `None` if the instance does not answer.
async fn send(
    addr: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
) -> Option<Response<hyper::body::Incoming>> {
    let exchange = async {
        let tcp = TcpStream::connect(addr).await.ok()?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(tcp)).await.ok()?;
        tokio::spawn(connection);
        let mut request = Request::builder().method(method).uri(path).header("host", "test");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        sender.send_request(request.body(Full::new(Bytes::new())).unwrap()).await.ok()
    };
    timeout(Duration::from_secs(10), exchange).await.ok().flatten()
}

/// Begins one run after the other, each under a new name.
async fn begin_runs(fleet: Arc<Fleet>, writer: usize, mut random: Rng) {
    for generation in 0.. {
        if fleet.is_over() {
            return;
        }
        let instance = random.usize(..INSTANCES);
        let Some(addr) = fleet.addr(instance) else {
            sleep(Duration::from_millis(50)).await;
            continue;
        };
        let name = format!("{}-{writer}-{generation}", fleet.seed);
        let (events, pace, fails) = (random.u64(5..60), random.u64(3..30), random.u8(..5) == 0);
        fleet.ledger.with(&name, |run| *run = Known { instance, events, fails, ..Known::default() });
        fleet.names[writer].lock().unwrap().clone_from(&name);
        let path = format!("/runs/{name}?events={events}&pace={pace}&fails={fails}");
        let begun = send(addr, "POST", &path, &[]).await.is_some_and(|answer| answer.status() == 201);
        if !begun || fleet.addr(instance) != Some(addr) {
            // The instance was killed, or the broker was away: the run may have begun.
            fleet.ledger.with(&name, |run| run.may_be_aborted = true);
        }
        if !begun {
            sleep(Duration::from_millis(20)).await;
            continue;
        }
        if random.u8(..6) == 0 {
            sleep(Duration::from_millis(random.u64(..200))).await;
            if let Some(addr) = fleet.addr(random.usize(..INSTANCES)) {
                fleet.ledger.with(&name, |run| run.was_asked_to_stop = true);
                send(addr, "POST", &format!("/stop/{name}"), &[]).await;
            }
        }
        // Until about the end of the run. Runs of one writer may overlap.
        sleep(Duration::from_millis(events * pace + random.u64(50..300))).await;
    }
}

/// Reads one run after the other to its end.
async fn read_runs(fleet: Arc<Fleet>, reader: usize, mut random: Rng) {
    let mut done = String::new();
    loop {
        let name = fleet.names[reader % WRITERS].lock().unwrap().clone();
        if name == done || name.is_empty() {
            if fleet.is_over() {
                return;
            }
            sleep(Duration::from_millis(5)).await;
            continue;
        }
        read_run(&fleet, reader, &name, &mut random).await;
        fleet.waits.lock().unwrap().remove(&reader);
        done = name;
    }
}

/// Reads one run to its end, over as many connections as it takes.
async fn read_run(fleet: &Fleet, reader: usize, name: &str, random: &mut Rng) {
    let begun = Instant::now();
    let (mut received, mut cursor) = (Vec::new(), String::new());
    // As a browser's `EventSource`, or as another client.
    let accept = if reader.is_multiple_of(2) { "text/event-stream" } else { "*/*" };
    loop {
        let is_late = begun.elapsed() > LOAD + REST;
        assert!(!is_late, "{name} has no end: {received:?}, {:?}", fleet.ledger.with(name, |run| run.clone()));
        let Some(addr) = fleet.addr(random.usize(..INSTANCES)) else {
            sleep(Duration::from_millis(20)).await;
            continue;
        };
        let mut headers = vec![("accept", accept)];
        if !cursor.is_empty() {
            headers.push(("last-event-id", &cursor));
            fleet.resumes.fetch_add(1, Ordering::Relaxed);
        }
        let answer = send(addr, "GET", &format!("/runs/{name}"), &headers).await;
        let status = answer.as_ref().map(|answer| answer.status().as_u16());
        let wait = format!("{name}: {status:?} for {cursor:?} after {} events", received.len());
        fleet.waits.lock().unwrap().insert(reader, wait);
        let Some(answer) = answer else {
            sleep(Duration::from_millis(20)).await;
            continue;
        };
        match answer.status().as_u16() {
            200 => {}
            503 => {
                sleep(Duration::from_millis(50)).await;
                continue;
            }
            // The run has not begun. Perhaps it never will.
            204 if cursor.is_empty() => {
                let may_not_begin = fleet.ledger.with(name, |run| run.may_be_aborted && run.acknowledged == 0);
                let is_newest = fleet.names[reader % WRITERS].lock().unwrap().as_str() == name;
                if may_not_begin && (fleet.is_over() || !is_newest) {
                    return;
                }
                sleep(Duration::from_millis(20)).await;
                continue;
            }
            // The client has the last event, and so the whole run.
            204 => {
                fleet.honest.fetch_add(1, Ordering::Relaxed);
                return fleet.ledger.settle(name, &received, None);
            }
            // A run whose beginning was not acknowledged is not kept for long.
            404 if fleet.ledger.with(name, |run| run.may_be_aborted && run.acknowledged == 0)
                && received.iter().all(|event| event == "will") =>
            {
                fleet.honest.fetch_add(1, Ordering::Relaxed);
                return;
            }
            status => panic!(
                "{name}: status {status} for {cursor:?} after {received:?} at {:?}; {:?}",
                fleet.begun.elapsed(),
                fleet.faults.lock().unwrap()
            ),
        }
        let mut events = Events::parse(BodyDataStream::new(answer.into_body()));
        let most = if random.u8(..3) == 0 { random.usize(1..20) } else { usize::MAX };
        let mut count = 0;
        while count < most {
            // Heartbeats are too rare for a test, so a stream of a frozen instance would not end.
            let next = timeout(Duration::from_secs(15), events.try_next()).await;
            let Ok(Some(Ok(event))) = next else { break };
            if event.event == "hub.bye" {
                let bye = crate::kit::parsed(&event);
                if bye["reconnect"] == "never" {
                    return fleet.ledger.settle(name, &received, bye["reason"].as_str());
                }
                break;
            }
            if !event.event.starts_with("hub.") {
                received.push(event.data);
                count += 1;
            }
        }
        if !events.last_id.is_empty() {
            cursor.clone_from(&events.last_id);
        }
    }
}

/// Injects the faults of a plan.
async fn inject<B: BrokerServer + Kind>(fleet: &Fleet, broker: &mut B, random: &mut Rng) -> (usize, usize) {
    let address = format!("{} {}", B::KIND, broker.port());
    let begun = Instant::now();
    let (mut kills, mut restarts) = (0, 0);
    while begun.elapsed() < LOAD {
        sleep(Duration::from_millis(random.u64(300..1_000))).await;
        if random.u8(..3) == 0 || kills > 1 && restarts == 0 {
            fleet.note_fault("broker killed");
            broker.kill();
            sleep(Duration::from_millis(random.u64(50..700))).await;
            broker.restart();
            fleet.note_fault("broker restarted");
            restarts += 1;
        } else {
            let instance = random.usize(..INSTANCES);
            fleet.note_fault(&format!("instance {instance} killed"));
            fleet.kill(instance).await;
            kills += 1;
            sleep(Duration::from_millis(random.u64(20..600))).await;
            let new = tokio::task::block_in_place(|| Instance::start(&address, &fleet.ledger));
            *fleet.instances[instance].lock().unwrap() = Some(new);
        }
    }
    (kills, restarts)
}

async fn load<B: BrokerServer + Kind>(broker: &mut B, seed: u64) {
    let mut random = Rng::with_seed(seed);
    let address = format!("{} {}", B::KIND, broker.port());
    let ledger = Arc::<Ledger>::default();
    let start = |_| Mutex::new(Some(Instance::start(&address, &ledger)));
    let fleet = Arc::new(Fleet {
        instances: std::array::from_fn(start),
        names: std::array::from_fn(|_| Mutex::default()),
        ledger: Arc::clone(&ledger),
        seed,
        over: AtomicBool::new(false),
        begun: Instant::now(),
        faults: Mutex::default(),
        waits: Mutex::default(),
        resumes: AtomicUsize::new(0),
        honest: AtomicUsize::new(0),
    });
    let mut tasks = tokio::task::JoinSet::new();
    for writer in 0..WRITERS {
        tasks.spawn(begin_runs(Arc::clone(&fleet), writer, random.fork()));
    }
    for reader in 0..READERS {
        tasks.spawn(read_runs(Arc::clone(&fleet), reader, random.fork()));
    }
    let (kills, restarts) = inject(&fleet, broker, &mut random).await;
    fleet.over.store(true, Ordering::SeqCst);
    let ended = timeout(REST, async {
        while let Some(task) = tasks.join_next().await {
            task.unwrap();
        }
    });
    if ended.await.is_err() {
        let (waits, faults) = (fleet.waits.lock().unwrap(), fleet.faults.lock().unwrap());
        panic!("runs have no end: {waits:#?}; {faults:#?}; {:#?}", ledger.runs.lock().unwrap());
    }
    let wrong = ledger.wrong.lock().unwrap().clone();
    assert!(wrong.is_empty(), "{wrong:?}");
    // A living writer whose run others have ended is told so.
    let is_told = |run: &Known| !run.ends.iter().any(|end| end.ends_with("will")) || run.may_be_aborted || run.was_told;
    until(|| ledger.runs.lock().unwrap().values().all(is_told)).await;
    let runs = ledger.runs.lock().unwrap();
    let read: Vec<_> = runs.values().filter(|run| run.readers > 0).collect();
    let ends = |end: &str| read.iter().filter(|run| run.ends.iter().any(|last| last.ends_with(end))).count();
    let told = read.iter().filter(|run| run.was_told && !run.may_be_aborted).count();
    eprintln!(
        "SEED={seed}: {kills} instances killed, {restarts} restarts of {}, {} runs, {} readings, {} resumes, {} by status; \
         {} finished, {} failed, {} stopped, {} aborted, {told} of living instances",
        B::KIND,
        read.len(),
        read.iter().map(|run| run.readers).sum::<usize>(),
        fleet.resumes.load(Ordering::Relaxed),
        fleet.honest.load(Ordering::Relaxed),
        ends("finished"),
        ends("failed"),
        ends("stopped"),
        ends("will"),
    );
    assert!(kills > 0 && restarts > 0 && read.len() > WRITERS && ends("will") > 0, "too little has happened");
}

async fn every_reader_receives_each_event_once_and_the_right_end<B: BrokerServer + Kind>(mut broker: B) {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    for _ in 0..number("RUN_SEEDS").unwrap_or(1) {
        let seed = number("SEED").unwrap_or_else(|| fastrand::u64(..100_000));
        eprintln!("runs with faults of {}: SEED={seed}", B::KIND);
        load(&mut broker, seed).await;
    }
}

for_each_broker!(
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    every_reader_receives_each_event_once_and_the_right_end(durable): redis, nats, postgres
);
