//! The load generator: one thread with thousands of connections. It verifies every event, without
//! an allocation for each.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Registry, Token};
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use crate::parse::{Found, Parser, Stamp};
use crate::process::{Server, own_cpu};
use crate::publisher::Publisher;
use crate::stats::{Histogram, Spread};

/// The token of the publisher's connection.
const PUBLISHER: Token = Token(usize::MAX);
/// The number of counters for events in flight, which is more than are ever in flight.
const WINDOW: usize = 1 << 14;
/// The maximum number of connections that wait for their response head at the same time.
const CONNECTING: usize = 256;
/// The number of connections that are opened before other connections are read again.
const OPENED_IN_A_TURN: usize = 8;
/// The time after which events, heads and responses that have not arrived count as lost.
const PATIENCE: Duration = Duration::from_secs(20);
/// The maximum number of POSTs that wait for their response.
const UNANSWERED: u64 = 256;
/// The error of Linux for a nonblocking connect.
const EINPROGRESS: i32 = 115;

/// The request of a stream.
#[derive(Clone, Debug)]
pub struct Request {
    /// The query of `GET /events`.
    pub query: String,
    pub last_event_id: Option<String>,
    /// The size of the socket's receive buffer, if not the default.
    pub receive_buffer: Option<usize>,
    /// Whether the events of this stream count for the window, the latency and the deliveries. The
    /// events of other streams are only verified.
    pub counts: bool,
    /// The sequence number of the first event, if it is not the next one to be published.
    pub first: Option<u64>,
}

impl Request {
    pub fn topic(topic: &str) -> Self {
        Self { query: format!("topic={topic}"), last_event_id: None, receive_buffer: None, counts: true, first: None }
    }

    fn write(&self, out: &mut Vec<u8>) {
        out.clear();
        let host = "Host: bench\r\nAccept: text/event-stream\r\n";
        out.extend_from_slice(format!("GET /events?{} HTTP/1.1\r\n{host}", self.query).as_bytes());
        if let Some(id) = &self.last_event_id {
            out.extend_from_slice(format!("Last-Event-ID: {id}\r\n").as_bytes());
        }
        out.extend_from_slice(b"\r\n");
    }
}

struct Connection {
    socket: TcpStream,
    parser: Parser,
    /// The expected sequence number of the next event.
    next: u64,
    /// The number of events that were published to this connection alone.
    published: u64,
    counts: bool,
    /// The rest of the request.
    unsent: Vec<u8>,
    /// With `latest_per_key`: the last sequence number of each key. Such a stream may skip numbers.
    latest: Option<Vec<u64>>,
}

/// The target of the published events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum To {
    /// One topic, to which all connections are subscribed.
    Topic,
    /// One topic, with this number of events in one POST.
    TopicBatched(u64),
    /// This number of topics, of one connection.
    Topics(u64),
    /// This number of topics, each with one connection.
    TopicEach(u64),
    /// This number of users, each with one connection.
    UserEach(u64),
    /// This number of users, each with one connection; this number of events in one POST.
    UserEachBatched(u64, u64),
    /// One topic with this number of keys and `latest_per_key`; this number of events in one POST.
    Keys(u64, u64),
}

/// The pace of the publisher.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pace {
    /// Publishes the next event after all clients have received the last one.
    Sequential,
    /// Publishes up to this number of events ahead of the slowest reader.
    Window(u64),
    /// Publishes this number of events a second, independently of the readers.
    Rate(f64),
}

/// The figures of one phase of publishing.
#[derive(Clone, Debug)]
pub struct Phase {
    pub events: u64,
    pub deliveries: u64,
    pub bytes: u64,
    /// The number of reads by the clients.
    pub reads: u64,
    pub elapsed: Duration,
    /// The CPU time of the server, in nanoseconds.
    pub cpu: u64,
    /// The CPU time of the load generator as a part of the elapsed time.
    pub busy: f64,
    pub p50: Option<f64>,
    pub p99: Option<f64>,
    /// The median duration of the server's publish call, in nanoseconds.
    pub publish: Option<f64>,
}

pub struct Load {
    poll: Poll,
    ready: Events,
    address: SocketAddr,
    begun: Instant,
    connections: Vec<Connection>,
    /// The requests of the connections that are not open yet.
    to_connect: VecDeque<Request>,
    /// The number of connections that wait for their response head.
    connecting: usize,
    /// The maximum of `connecting`.
    at_once: usize,
    publisher: Publisher,
    buffer: Vec<u8>,
    /// The number of the last event to all connections.
    sequence: u64,
    tally: Tally,
}

/// Counts of the received events, and the problems found.
struct Tally {
    now: u64,
    deliveries: u64,
    bytes: u64,
    reads: u64,
    latency: Histogram,
    /// For each event of the window, the number of connections that have received it.
    have: Vec<u32>,
    audience: u32,
    /// The last event that all connections have received.
    complete: u64,
    heads: usize,
    /// The sequence number of the event that `reached` counts.
    goal: u64,
    /// The number of connections without `counts` that have received the event `goal`.
    reached: usize,
    last_id: Vec<u8>,
    keeps_id: bool,
    problems: Vec<String>,
    problem_count: u64,
}

impl Tally {
    fn new() -> Self {
        Self {
            now: 0,
            deliveries: 0,
            bytes: 0,
            reads: 0,
            latency: Histogram::new(),
            have: vec![0; WINDOW],
            audience: 0,
            complete: 0,
            heads: 0,
            goal: u64::MAX,
            reached: 0,
            last_id: Vec::new(),
            keeps_id: false,
            problems: Vec::new(),
            problem_count: 0,
        }
    }

    fn problem(&mut self, problem: String) {
        self.problem_count += 1;
        if self.problems.len() < 5 {
            self.problems.push(problem);
        }
    }
}

impl Load {
    pub fn new(address: SocketAddr) -> Self {
        let poll = Poll::new().unwrap();
        let mut socket = open(address, None);
        poll.registry().register(&mut socket, PUBLISHER, Interest::READABLE | Interest::WRITABLE).unwrap();
        Self {
            poll,
            ready: Events::with_capacity(256),
            address,
            begun: Instant::now(),
            connections: Vec::new(),
            to_connect: VecDeque::new(),
            connecting: 0,
            at_once: CONNECTING,
            publisher: Publisher::new(socket),
            buffer: vec![0; 256 * 1024],
            sequence: 0,
            tally: Tally::new(),
        }
    }

    /// Returns the number of problems and some of them: losses, duplicates, disorder, ended
    /// streams.
    pub fn problems(&self) -> (u64, &[String]) {
        (self.tally.problem_count, &self.tally.problems)
    }

    /// Returns the id of the last event that any connection received. Ids are kept only after the
    /// first call.
    pub fn last_id(&mut self) -> String {
        self.tally.keeps_id = true;
        String::from_utf8_lossy(&self.tally.last_id).into_owned()
    }

    /// Returns the number of the last event to all connections.
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// Opens connections, waits until all have received their response head, and returns the
    /// duration.
    pub fn connect(&mut self, requests: impl IntoIterator<Item = Request>) -> Duration {
        let begun = Instant::now();
        self.enqueue(requests, CONNECTING);
        while self.is_connecting() {
            self.turn(Some(Duration::from_millis(100)));
            if begun.elapsed() > self.patience() {
                let without = self.to_connect.len() + self.connecting;
                self.tally.problem(format!("{without} connections have no response head after {PATIENCE:?}"));
                break;
            }
        }
        begun.elapsed()
    }

    /// Queues connections, which are opened while events are published.
    pub fn enqueue(&mut self, requests: impl IntoIterator<Item = Request>, at_once: usize) {
        self.to_connect.extend(requests);
        self.at_once = at_once;
    }

    /// Returns the time to wait for missing events. After a problem, there is no reason to wait.
    fn patience(&self) -> Duration {
        if self.tally.problem_count > 0 { Duration::ZERO } else { PATIENCE }
    }

    fn is_connecting(&self) -> bool {
        !self.to_connect.is_empty() || self.connecting > 0
    }

    /// Sets the event that [`reached`](Self::reached) counts, and resets the count.
    pub fn set_goal(&mut self, goal: u64) {
        (self.tally.goal, self.tally.reached) = (goal, 0);
    }

    /// Returns the number of connections without `counts` that have received the goal.
    pub fn reached(&self) -> usize {
        self.tally.reached
    }

    /// Makes the open connections expect `latest_per_key`.
    pub fn expect_latest(&mut self, keys: u64) {
        for connection in &mut self.connections {
            connection.latest = Some(vec![0; keys as usize]);
        }
    }

    /// Waits until all connections have the newest value of each key. Returns the number of those
    /// that lack one when the time is over.
    pub fn without_newest(&mut self, keys: u64, patience: Duration) -> usize {
        let begun = Instant::now();
        loop {
            let newest = |key: u64| self.sequence - (self.sequence + keys - key) % keys;
            let lacks = |connection: &&Connection| {
                let latest = connection.latest.as_ref().unwrap();
                latest.iter().zip(0..).any(|(latest, key)| *latest != newest(key))
            };
            let without = self.connections.iter().filter(lacks).count();
            if without == 0 || begun.elapsed() > patience {
                return without;
            }
            self.turn(Some(Duration::from_millis(5)));
        }
    }

    /// Stops reading from the last `count` connections.
    pub fn stall(&mut self, count: usize) {
        let from = self.connections.len() - count;
        for connection in &mut self.connections[from..] {
            assert!(!connection.counts, "a stalled connection must not count");
            self.poll.registry().deregister(&mut connection.socket).unwrap();
        }
    }

    /// Publishes for a duration, and waits until all connections have received all events.
    pub fn run(&mut self, server: &Server, to: To, pace: Pace, duration: Duration) -> Phase {
        self.run_until(server, to, pace, duration, |_| true)
    }

    /// Publishes a number of events, and waits until all connections have received them.
    pub fn run_count(&mut self, to: To, pace: Pace, count: u64) {
        let last = self.publisher.posts() + count;
        self.publish_while(to, pace, move |load, _| load.publisher.posts() < last);
    }

    /// Publishes for a duration, and longer until `done` returns true.
    pub fn run_until(
        &mut self,
        server: &Server,
        to: To,
        pace: Pace,
        duration: Duration,
        done: impl Fn(&Self) -> bool,
    ) -> Phase {
        let settled = server.settle();
        self.publisher.forget_times();
        self.tally.latency.clear();
        let (deliveries, bytes, reads) = (self.tally.deliveries, self.tally.bytes, self.tally.reads);
        let (cpu, begun) = (own_cpu(), Instant::now());
        let events = self.publish_while(to, pace, move |load, elapsed| {
            elapsed < duration || (!done(load) && elapsed < duration + load.patience())
        });
        let elapsed = begun.elapsed();
        let busy = (own_cpu() - cpu) as f64 / elapsed.as_nanos() as f64;
        Phase {
            events,
            deliveries: self.tally.deliveries - deliveries,
            bytes: self.tally.bytes - bytes,
            reads: self.tally.reads - reads,
            elapsed,
            cpu: server.settle() - settled,
            busy,
            p50: self.tally.latency.percentile(0.5),
            p99: self.tally.latency.percentile(0.99),
            publish: Spread::of(self.publisher.times()).map(|times| times.median),
        }
    }

    /// Publishes as long as `continues` returns true, and waits until all connections have received
    /// all events. Returns the number of events.
    fn publish_while(&mut self, to: To, pace: Pace, continues: impl Fn(&Self, Duration) -> bool) -> u64 {
        let counting = self.connections.iter().filter(|connection| connection.counts).count();
        self.tally.audience = match to {
            To::Topic | To::TopicBatched(_) => counting as u32,
            _ => 1,
        };
        self.tally.complete = self.sequence;
        let begun = Instant::now();
        let mut progress = Progress { to, published: 0, deliveries: self.tally.deliveries, first: self.now(), turn: 0 };
        let mut ended = None;
        loop {
            let timeout = if ended.is_none() && continues(self, begun.elapsed()) {
                self.publish(pace, &mut progress)
            } else {
                let ended = ended.get_or_insert_with(Instant::now);
                let missing = if matches!(to, To::Keys(..)) { 0 } else { self.outstanding(&progress) };
                if missing == 0 && self.publisher.is_answered() && !self.is_connecting() {
                    break;
                }
                if ended.elapsed() > self.patience() {
                    let unanswered = self.publisher.unanswered();
                    self.tally
                        .problem(format!("loss: {missing} events are missing, {unanswered} POSTs have no response"));
                    break;
                }
                Some(Duration::from_millis(100))
            };
            self.publisher.flush();
            self.turn(timeout);
        }
        progress.published
    }

    /// Publishes the events that the pace permits now. Returns the time to wait for I/O.
    fn publish(&mut self, pace: Pace, progress: &mut Progress) -> Option<Duration> {
        let timeout = Some(Duration::from_millis(100));
        match pace {
            Pace::Sequential => {
                if self.outstanding(progress) == 0 && self.publisher.is_answered() {
                    self.post(progress, self.now());
                }
                timeout
            }
            Pace::Window(window) => {
                let counted = !matches!(progress.to, To::Keys(..));
                while self.publisher.unanswered() < UNANSWERED.min(window)
                    && !(counted && self.outstanding(progress) + progress.batch() > window)
                {
                    self.post(progress, self.now());
                }
                timeout
            }
            Pace::Rate(rate) => {
                let due = |published: u64| progress.first + (published as f64 * 1e9 / rate) as u64;
                let mut next = due(progress.published);
                if next <= self.now() {
                    self.post(progress, next);
                    next += (1e9 / rate) as u64;
                }
                // The kernel may sleep a millisecond longer than the timeout.
                let left = Duration::from_nanos(next.saturating_sub(self.now()));
                Some(left.saturating_sub(Duration::from_millis(1)).min(Duration::from_millis(100)))
            }
        }
    }

    /// Returns the number of events or deliveries in flight.
    fn outstanding(&self, progress: &Progress) -> u64 {
        match progress.to {
            To::Topic | To::TopicBatched(_) | To::Topics(_) => self.sequence - self.tally.complete,
            To::TopicEach(_) | To::UserEach(_) | To::UserEachBatched(..) => {
                (progress.published + progress.deliveries).saturating_sub(self.tally.deliveries)
            }
            To::Keys(..) => 0,
        }
    }

    fn post(&mut self, progress: &mut Progress, scheduled: u64) {
        let batch = progress.batch();
        match progress.to {
            To::Topic => {
                self.sequence += 1;
                let stamp = Stamp { sequence: self.sequence, scheduled, key: 0 };
                self.publisher.post(format_args!("topic=t"), |body| stamp.write(body));
            }
            To::Topics(count) => {
                self.sequence += 1;
                let stamp = Stamp { sequence: self.sequence, scheduled, key: 0 };
                self.publisher.post(format_args!("topic=t{}", self.sequence % count), |body| stamp.write(body));
            }
            To::TopicEach(count) | To::UserEach(count) => {
                let index = progress.turn % count;
                let stamp = Stamp { sequence: self.connections[index as usize].publish(), scheduled, key: 0 };
                if matches!(progress.to, To::UserEach(_)) {
                    self.publisher.post(format_args!("user=u{index}"), |body| stamp.write(body));
                } else {
                    self.publisher.post(format_args!("topic=t{index}"), |body| stamp.write(body));
                }
            }
            To::UserEachBatched(count, size) => {
                let (connections, sent) = (&mut self.connections, progress.turn);
                self.publisher.post(format_args!("user=*&n={size}"), |body| {
                    for index in (sent..sent + size).map(|turn| turn % count) {
                        let sequence = connections[index as usize].publish();
                        write!(body, "u{index} ").unwrap();
                        Stamp { sequence, scheduled, key: 0 }.write(body);
                        body.push(b'\n');
                    }
                });
            }
            To::TopicBatched(_) | To::Keys(..) => {
                let (topic, keys) = if let To::Keys(keys, _) = progress.to { ("latest&keyed", keys) } else { ("t", 1) };
                let numbers = self.sequence + 1..=self.sequence + batch;
                self.publisher.post(format_args!("topic={topic}&n={batch}"), |body| {
                    for sequence in numbers {
                        Stamp { sequence, scheduled, key: sequence % keys }.write(body);
                        body.push(b'\n');
                    }
                });
                self.sequence += batch;
            }
        }
        progress.turn += batch;
        progress.published += batch;
    }

    fn now(&self) -> u64 {
        self.begun.elapsed().as_nanos() as u64
    }

    /// Opens queued connections, waits for I/O, and handles it.
    fn turn(&mut self, timeout: Option<Duration>) {
        for _ in 0..OPENED_IN_A_TURN.min(self.at_once - self.connecting) {
            let Some(request) = self.to_connect.pop_front() else { break };
            self.open(&request);
        }
        let opens_more = self.connecting < self.at_once && !self.to_connect.is_empty();
        let timeout = if opens_more { Some(Duration::ZERO) } else { timeout };
        match self.poll.poll(&mut self.ready, timeout) {
            Err(error) if error.kind() == ErrorKind::Interrupted => return,
            polled => polled.unwrap(),
        }
        for event in &self.ready {
            if event.token() == PUBLISHER {
                if let Err(problem) = self.publisher.ready(&mut self.buffer) {
                    self.tally.problem(problem);
                }
                continue;
            }
            let index = event.token().0;
            let connection = &mut self.connections[index];
            if event.is_writable() && !connection.unsent.is_empty() {
                connection.send(&mut self.tally);
            }
            if event.is_readable() {
                let before = self.tally.heads;
                self.tally.now = self.begun.elapsed().as_nanos() as u64;
                if let Err(problem) = connection.read(&mut self.buffer, &mut self.tally) {
                    self.tally.problem(format!("connection {index}: {problem}"));
                    drop(self.poll.registry().deregister(&mut connection.socket));
                }
                self.connecting -= self.tally.heads - before;
            }
        }
    }

    fn open(&mut self, request: &Request) {
        let mut socket = open(self.address, request.receive_buffer);
        let registry: &Registry = self.poll.registry();
        let interest = Interest::READABLE | Interest::WRITABLE;
        registry.register(&mut socket, Token(self.connections.len()), interest).unwrap();
        let mut unsent = Vec::new();
        request.write(&mut unsent);
        let mut connection = Connection {
            socket,
            parser: Parser::new(),
            next: request.first.unwrap_or(self.sequence + 1),
            published: 0,
            counts: request.counts,
            unsent,
            latest: None,
        };
        connection.send(&mut self.tally);
        self.connections.push(connection);
        self.connecting += 1;
    }
}

/// The progress of one phase.
struct Progress {
    to: To,
    /// The number of events published in this phase.
    published: u64,
    /// The number of deliveries before this phase.
    deliveries: u64,
    /// The time at which the first event was due.
    first: u64,
    /// The index of the next connection, where each event is for one connection.
    turn: u64,
}

impl Progress {
    fn batch(&self) -> u64 {
        match self.to {
            To::TopicBatched(size) | To::UserEachBatched(_, size) | To::Keys(_, size) => size,
            _ => 1,
        }
    }
}

impl Connection {
    /// Returns the number of the next event to this connection alone.
    fn publish(&mut self) -> u64 {
        self.published += 1;
        self.published
    }

    fn send(&mut self, tally: &mut Tally) {
        while !self.unsent.is_empty() {
            match self.socket.write(&self.unsent) {
                Ok(count) if count == self.unsent.len() => self.unsent = Vec::new(),
                Ok(count) => drop(self.unsent.drain(..count)),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::NotConnected) => return,
                Err(error) => return tally.problem(format!("cannot write a request: {error}")),
            }
        }
    }

    fn read(&mut self, buffer: &mut [u8], tally: &mut Tally) -> Result<(), String> {
        loop {
            let count = match self.socket.read(buffer) {
                Ok(0) => return Err("the server closed the connection".into()),
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(error.to_string()),
            };
            if self.counts {
                tally.bytes += count as u64;
                tally.reads += 1;
            }
            let Self { parser, next, counts, latest, .. } = self;
            parser.feed(&buffer[..count], &mut |found| match found {
                Found::Head => tally.heads += 1,
                Found::Id(id) => {
                    if tally.keeps_id && *counts {
                        tally.last_id.clear();
                        tally.last_id.extend_from_slice(id);
                    }
                }
                Found::Event(stamp) => deliver(tally, stamp, next, *counts, latest),
            })?;
            // A read that does not fill the buffer has emptied the socket.
            if count < buffer.len() {
                return Ok(());
            }
        }
    }
}

fn deliver(tally: &mut Tally, stamp: Stamp, next: &mut u64, counts: bool, latest: &mut Option<Vec<u64>>) {
    let sequence = stamp.sequence;
    if let Some(latest) = latest {
        if sequence < *next {
            tally.problem(format!("duplicate or disorder: {sequence} after {}", *next - 1));
        }
        latest[stamp.key as usize] = sequence;
    } else if sequence != *next {
        let problem = if sequence < *next { "duplicate or disorder" } else { "loss" };
        tally.problem(format!("{problem}: {sequence} instead of {next}"));
    }
    *next = sequence + 1;
    if !counts {
        tally.reached += usize::from(sequence == tally.goal);
        return;
    }
    tally.deliveries += 1;
    tally.latency.add(tally.now.saturating_sub(stamp.scheduled));
    if latest.is_none() {
        let have = &mut tally.have[sequence as usize % WINDOW];
        *have += 1;
        if *have == tally.audience {
            *have = 0;
            tally.complete = sequence;
        }
    }
}

fn open(address: SocketAddr, receive_buffer: Option<usize>) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM.nonblocking(), Some(Protocol::TCP)).unwrap();
    if let Some(bytes) = receive_buffer {
        socket.set_recv_buffer_size(bytes).unwrap();
    }
    socket.set_tcp_nodelay(true).unwrap();
    // Closes the socket by a reset, so that thousands of ports do not stay in TIME_WAIT.
    SockRef::from(&socket).set_linger(Some(Duration::ZERO)).unwrap();
    match socket.connect(&address.into()) {
        Err(error) if !matches!(error.raw_os_error(), Some(EINPROGRESS)) && error.kind() != ErrorKind::WouldBlock => {
            panic!("connect: {error}")
        }
        _ => TcpStream::from_std(socket.into()),
    }
}

/// Asserts that the verification finds loss, duplicates and disorder. The output of a benchmark
/// whose verification fails to do so would look the same.
pub fn self_check() {
    crate::parse::self_check();
    let has_problem = |numbers: &[u64], latest: bool| {
        let (mut tally, mut next, mut latest) = (Tally::new(), 1, latest.then(|| vec![0; 1]));
        for sequence in numbers {
            deliver(&mut tally, Stamp { sequence: *sequence, scheduled: 0, key: 0 }, &mut next, true, &mut latest);
        }
        tally.problem_count > 0
    };
    assert!(!has_problem(&[1, 2, 3], false) && !has_problem(&[1, 3], true), "a problem is found in good numbers");
    assert!(has_problem(&[1, 3], false) && has_problem(&[2], false), "a loss is not found");
    assert!(has_problem(&[1, 1], false) && has_problem(&[1, 1], true), "a duplicate is not found");
    assert!(has_problem(&[1, 3, 2], false) && has_problem(&[1, 3, 2], true), "disorder is not found");
}
