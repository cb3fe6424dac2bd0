//! The cases. Each starts a server of one kind, connects, publishes, and records figures.

use std::time::Duration;

use crate::load::{Load, Pace, Phase, Request, To};
use crate::process::Server;
use crate::servers::{Kind, Options};

use Kind::{Axum, AxumFloor, Hyper, HyperFloor, Naive, Nchan, Raw, RawCoalescing, TakenOver};

/// The number of events that a publisher is ahead of the slowest reader in the pipelined cases.
const WINDOW: u64 = 64;
/// The number of events in flight when each event is for a single user.
const UNICAST: u64 = 256;
/// The number of events in one POST, for users and keys.
const BATCH: u64 = 64;
/// The number of events in one POST, for a topic.
const TOPIC_BATCH: u64 = 16;
/// Deliveries a second at the fixed rate: less than half of the slowest server's maximum.
const RATE: f64 = 50_000.0;
/// The number of keys of the fast producer.
const KEYS: u64 = 100;

/// The numbers of clients and the duration of a phase.
#[derive(Clone, Copy, Debug)]
pub struct Scale {
    pub ten: u64,
    pub hundred: u64,
    pub thousand: u64,
    pub ten_thousand: u64,
    pub resuming: u64,
    pub missed: u64,
    /// The duration of one phase.
    pub time: Duration,
}

impl Scale {
    pub const FULL: Self = Self {
        ten: 10,
        hundred: 100,
        thousand: 1_000,
        ten_thousand: 10_000,
        resuming: 5_000,
        missed: 100,
        time: Duration::from_millis(700),
    };
    pub const SMOKE: Self = Self {
        ten: 2,
        hundred: 8,
        thousand: 40,
        ten_thousand: 100,
        resuming: 50,
        missed: 20,
        time: Duration::from_millis(30),
    };
}

/// The figures of one kind in one round, by name.
#[derive(Clone, Debug)]
pub struct Sample {
    pub case: &'static str,
    pub kind: Kind,
    pub figures: Vec<(&'static str, f64)>,
}

/// One case with one kind in one round.
pub struct Run {
    pub kind: Kind,
    pub scale: Scale,
    pub pinned: bool,
    pub samples: Vec<Sample>,
    /// Losses, duplicates and disorder. With any of them the run has failed.
    pub problems: Vec<String>,
    /// Cases in which the load generator was the bottleneck.
    pub warnings: Vec<String>,
}

pub struct Case {
    pub name: &'static str,
    pub kinds: &'static [Kind],
    pub run: fn(&mut Run),
}

/// All kinds on one thread.
const ALL: &[Kind] = &[Axum, Hyper, TakenOver, AxumFloor, HyperFloor, Raw, RawCoalescing, Naive, Nchan];
/// All kinds, with the two on several threads.
const WITH_THREADS: &[Kind] = &Kind::ALL;
/// The crate and the minimal event streams, on axum and on hyper.
const BODIES: &[Kind] = &[Axum, Hyper, AxumFloor, HyperFloor];

pub const CASES: &[Case] = &[
    Case { name: "fan-out-10", kinds: BODIES, run: |run| fan_out(run, &TEN) },
    Case { name: "fan-out-100", kinds: ALL, run: |run| fan_out(run, &HUNDRED) },
    Case { name: "fan-out-1000", kinds: WITH_THREADS, run: |run| fan_out(run, &THOUSAND) },
    Case { name: "fan-out-10000", kinds: ALL, run: |run| fan_out(run, &TEN_THOUSAND) },
    Case { name: "unicast", kinds: WITH_THREADS, run: unicast },
    Case { name: "many-topics", kinds: &[Axum, Hyper, TakenOver, Naive], run: many_topics },
    Case { name: "topic-each", kinds: ALL, run: topic_each },
    Case { name: "stalled", kinds: &[Axum, Hyper, TakenOver, AxumFloor, Naive, Nchan], run: stalled },
    Case { name: "resume", kinds: BODIES, run: resume },
    Case { name: "latest-per-key", kinds: &[Axum, Hyper, TakenOver], run: latest_per_key },
];

impl Run {
    fn record(&mut self, case: &'static str, figures: Vec<(&'static str, f64)>) {
        self.samples.push(Sample { case, kind: self.kind, figures });
    }

    /// Records the figures of a phase.
    fn phase(&mut self, case: &'static str, pace: Pace, phase: &Phase) {
        let deliveries = phase.deliveries as f64;
        let mut figures = vec![
            ("deliveries_per_s", deliveries / phase.elapsed.as_secs_f64()),
            ("cpu_ns_per_delivery", phase.cpu as f64 / deliveries),
            ("bytes_per_delivery", phase.bytes as f64 / deliveries),
            ("deliveries_per_read", deliveries / phase.reads as f64),
            ("events", phase.events as f64),
            ("load_busy", phase.busy),
        ];
        let latency = if matches!(pace, Pace::Window(_)) { [None; 2] } else { [phase.p50, phase.p99] };
        for (name, value) in [("p50_ns", latency[0]), ("p99_ns", latency[1]), ("publish_ns", phase.publish)] {
            figures.extend(value.map(|value| (name, value)));
        }
        // At a fixed rate the load generator spins before each event, so it is always busy.
        if phase.busy > 0.9 && !matches!(pace, Pace::Rate(_)) {
            let kind = self.kind.name();
            self.warnings.push(format!("{case}, {kind}: the load generator was {:.0} % busy", phase.busy * 100.0));
        }
        self.record(case, figures);
    }

    fn server(&self, options: Options) -> Server {
        Server::start(self.kind, options, self.pinned)
    }

    /// Starts a server and serves it one stream and one event, so that later figures do not include
    /// the memory that a server allocates once.
    fn warmed(&self, options: Options, query: &str) -> (Server, Load) {
        let server = self.server(options);
        let mut first = Load::new(server.address);
        let request = Request { query: query.to_owned(), ..Request::topic("") };
        first.connect([request]);
        first.run_count(To::Topic, Pace::Sequential, 1);
        drop(first);
        let load = Load::new(server.address);
        server.settle();
        (server, load)
    }

    /// Opens connections, and records their cost.
    fn connect(&mut self, case: &'static str, server: &Server, load: &mut Load, requests: Vec<Request>) {
        let count = requests.len() as f64;
        let (memory, cpu) = (server.resident(), server.cpu());
        let time = load.connect(requests);
        let cpu = (server.settle() - cpu) as f64 / count;
        let memory = (server.resident() - memory) / count;
        self.record(
            case,
            vec![
                ("memory_per_connection", memory),
                ("connects_per_s", count / time.as_secs_f64()),
                ("cpu_ns_per_connect", cpu),
            ],
        );
    }

    fn check(&mut self, case: &str, load: &Load) {
        let (count, problems) = load.problems();
        if count > 0 {
            self.problems.push(format!("{case}, {}: {count} problems, such as {problems:?}", self.kind.name()));
        }
    }
}

/// The size of a fan-out, and the names of its phases.
struct FanOut {
    listeners: fn(&Scale) -> u64,
    connect: &'static str,
    sequential: &'static str,
    pipelined: &'static str,
    fixed_rate: &'static str,
}

const TEN: FanOut = FanOut {
    listeners: |scale| scale.ten,
    connect: "10 listeners: connect",
    sequential: "10 listeners: sequential",
    pipelined: "10 listeners: pipelined",
    fixed_rate: "10 listeners: fixed rate",
};
const HUNDRED: FanOut = FanOut {
    listeners: |scale| scale.hundred,
    connect: "100 listeners: connect",
    sequential: "100 listeners: sequential",
    pipelined: "100 listeners: pipelined",
    fixed_rate: "100 listeners: fixed rate",
};
const THOUSAND: FanOut = FanOut {
    listeners: |scale| scale.thousand,
    connect: "1,000 listeners: connect",
    sequential: "1,000 listeners: sequential",
    pipelined: "1,000 listeners: pipelined",
    fixed_rate: "1,000 listeners: fixed rate",
};
const TEN_THOUSAND: FanOut = FanOut {
    listeners: |scale| scale.ten_thousand,
    connect: "10,000 listeners: connect",
    sequential: "10,000 listeners: sequential",
    pipelined: "10,000 listeners: pipelined",
    fixed_rate: "10,000 listeners: fixed rate",
};

fn fan_out(run: &mut Run, part: &FanOut) {
    let listeners = (part.listeners)(&run.scale);
    let (server, mut load) = run.warmed(Options::default(), "topic=t");
    run.connect(part.connect, &server, &mut load, vec![Request::topic("t"); listeners as usize]);
    // Ten listeners get events at the rate of ten thousand, so that the processor's caches are as
    // cold at each publish.
    let count = if listeners == run.scale.ten { run.scale.ten_thousand } else { listeners };
    let rate = RATE / count as f64;
    let time = run.scale.time;
    for (case, pace, time) in [
        (part.sequential, Pace::Sequential, time),
        (part.pipelined, Pace::Window(WINDOW), time),
        (part.fixed_rate, Pace::Rate(rate), time * 2),
    ] {
        // Warms the caches up.
        load.run_count(To::Topic, Pace::Sequential, 3);
        let phase = load.run(&server, To::Topic, pace, time);
        run.phase(case, pace, &phase);
    }
    // nchan accepts only one event in a request.
    if listeners == run.scale.thousand && run.kind != Nchan {
        let pace = Pace::Window(WINDOW);
        let phase = load.run(&server, To::TopicBatched(TOPIC_BATCH), pace, time);
        run.phase("1,000 listeners: pipelined, 16 events per publish", pace, &phase);
    }
    drop(server);
    run.check(part.connect, &load);
}

fn unicast(run: &mut Run) {
    let users = run.scale.ten_thousand;
    let (server, mut load) = run.warmed(Options::default(), "topic=t");
    let requests = (0..users).map(|user| Request { query: format!("user=u{user}"), ..Request::topic("") });
    run.connect("10,000 users: connect", &server, &mut load, requests.collect());
    let pace = Pace::Window(UNICAST.min(users));
    let time = run.scale.time;
    let single = To::UserEach(users);
    load.run_count(single, pace, 100);
    let phase = load.run(&server, single, pace, time);
    run.phase("10,000 users: one event per publish", pace, &phase);
    // nchan accepts only one event in a request.
    if run.kind != Nchan {
        let batched = To::UserEachBatched(users, BATCH);
        let phase = load.run(&server, batched, pace, time);
        run.phase("10,000 users: 64 events per publish", pace, &phase);
    }
    drop(server);
    run.check("unicast", &load);
}

fn many_topics(run: &mut Run) {
    let topics = run.scale.thousand;
    let (server, mut load) = run.warmed(Options::default(), "topic=t");
    let query = (0..topics).map(|topic| format!("topic=t{topic}")).collect::<Vec<_>>().join("&");
    let request = Request { query, ..Request::topic("") };
    run.connect("one connection on 1,000 topics: connect", &server, &mut load, vec![request]);
    let pace = Pace::Window(WINDOW);
    let phase = load.run(&server, To::Topics(topics), pace, run.scale.time);
    run.phase("one connection on 1,000 topics", pace, &phase);
    drop(server);
    run.check("many-topics", &load);
}

fn topic_each(run: &mut Run) {
    let topics = run.scale.ten_thousand;
    let (server, mut load) = run.warmed(Options::default(), "topic=t");
    let before = server.resident();
    let requests = (0..topics).map(|topic| Request::topic(&format!("t{topic}"))).collect();
    run.connect("10,000 topics: connect", &server, &mut load, requests);
    let pace = Pace::Window(UNICAST.min(topics));
    let phase = load.run(&server, To::TopicEach(topics), pace, run.scale.time);
    run.phase("10,000 topics: one event per publish", pace, &phase);
    let after = (server.resident() - before) / topics as f64;
    run.record("10,000 topics: after traffic", vec![("memory_per_connection", after)]);
    drop(server);
    run.check("topic-each", &load);
}

/// One client of a hundred stops reading. Compares the latency of the others before and after.
fn stalled(run: &mut Run) {
    let healthy = run.scale.thousand;
    let stalled = (healthy / 100).max(1);
    // Small send buffers, so that those of the stalled clients are full soon.
    let server = run.server(Options { send_buffer: Some(16 * 1024), ..Options::default() });
    let mut load = Load::new(server.address);
    let slow = Request { counts: false, receive_buffer: Some(4 * 1024), ..Request::topic("t") };
    let requests = (0..healthy).map(|_| Request::topic("t")).chain((0..stalled).map(|_| slow.clone()));
    load.connect(requests);
    let pace = Pace::Rate(RATE / healthy as f64);
    let time = run.scale.time * 3 / 2;
    load.run_count(To::Topic, Pace::Window(WINDOW), 600);
    let none = load.run(&server, To::Topic, pace, time);
    run.phase("1,000 listeners: none stalled", pace, &none);
    load.stall(stalled as usize);
    // More bytes than the kernel buffers for the stalled clients.
    load.run_count(To::Topic, Pace::Window(WINDOW), 1_000);
    let some = load.run(&server, To::Topic, pace, time);
    run.phase("1,000 listeners: 1 % stalled", pace, &some);
    drop(server);
    run.check("stalled", &load);
}

/// Thousands of clients reconnect at once, each with missed records, while other clients listen.
fn resume(run: &mut Run) {
    let (listeners, resuming, missed) = (run.scale.hundred, run.scale.resuming, run.scale.missed);
    let (server, mut load) = run.warmed(Options { replay: true, ..Options::default() }, "topic=t");
    load.connect((0..listeners).map(|_| Request::topic("t")));
    let pace = Pace::Rate(200.0);
    load.last_id();
    let before = load.run(&server, To::Topic, pace, run.scale.time);
    run.phase("resume: other clients before", pace, &before);
    let (id, first) = (load.last_id(), load.sequence() + 1);
    load.run_count(To::Topic, Pace::Window(WINDOW), missed);
    let memory = (server.settle(), server.resident()).1;
    load.set_goal(load.sequence());
    let request = Request { last_event_id: Some(id), counts: false, first: Some(first), ..Request::topic("t") };
    load.enqueue((0..resuming).map(|_| request.clone()), resuming as usize);
    let meanwhile =
        load.run_until(&server, To::Topic, pace, Duration::ZERO, |load| load.reached() == resuming as usize);
    let time = meanwhile.elapsed.as_secs_f64();
    run.phase("resume: other clients meanwhile", pace, &meanwhile);
    let count = resuming as f64;
    run.record(
        "resume: 5,000 clients x 100 records",
        vec![
            ("resumes_per_s", count / time),
            ("cpu_ns_per_resume", meanwhile.cpu as f64 / count),
            ("memory_per_connection", (server.resident() - memory) / count),
            ("memory_at_most_per_connection", (server.resident_peak() - memory) / count),
        ],
    );
    drop(server);
    run.check("resume", &load);
}

fn latest_per_key(run: &mut Run) {
    let listeners = run.scale.hundred;
    let server = run.server(Options::default());
    let mut load = Load::new(server.address);
    load.connect((0..listeners).map(|_| Request::topic("latest")));
    load.expect_latest(KEYS);
    // For this target the window counts POSTs without a response.
    let pace = Pace::Window(8);
    let phase = load.run(&server, To::Keys(KEYS, BATCH), pace, run.scale.time);
    run.phase("latest per key: a fast producer", pace, &phase);
    run.record(
        "latest per key: a fast producer",
        vec![
            ("events_per_s", phase.events as f64 / phase.elapsed.as_secs_f64()),
            ("deliveries_per_event_and_listener", phase.deliveries as f64 / (phase.events * listeners) as f64),
        ],
    );
    let without = load.without_newest(KEYS, Duration::from_secs(5));
    if without > 0 {
        let kind = run.kind.name();
        run.problems.push(format!("latest-per-key, {kind}: {without} listeners lack the newest value of a key"));
    }
    drop(server);
    run.check("latest-per-key", &load);
}
