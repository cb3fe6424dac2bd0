//! The load generator: one thread, thousands of connections, no allocation for an event. Verifies while it measures.

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

/// The token of the connection that publishes.
const PUBLISHER: Token = Token(usize::MAX);
/// More events than are ever on their way.
const WINDOW: usize = 1 << 14;
/// How many connections wait for their head at the same time, and how many are opened before the others are read again.
const CONNECTING: usize = 256;
const OPENED_IN_A_TURN: usize = 8;
/// How long a run may take to end.
const PATIENCE: Duration = Duration::from_secs(20);
/// How many POSTs wait for their answer at most.
const UNANSWERED: u64 = 256;
/// What Linux says of a connection that is being made.
const EINPROGRESS: i32 = 115;

/// What a connection asks for.
#[derive(Clone, Debug)]
pub struct Request {
    /// Of `GET /events`.
    pub query: String,
    pub last_event_id: Option<String>,
    /// Of the kernel, for what it does not read.
    pub receive_buffer: Option<usize>,
    /// Each event to it counts, for the window, for latency and for deliveries. Others are only verified.
    pub counts: bool,
    /// The sequence number that comes first, if it is not the next that is published.
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
    /// What comes next.
    next: u64,
    /// Of those to it alone: the last that was published.
    published: u64,
    counts: bool,
    /// The rest of its request.
    unsent: Vec<u8>,
    /// For `latest_per_key`: the last sequence number of each key. Then numbers may be left out.
    latest: Option<Vec<u64>>,
}

/// To whom events go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum To {
    /// All of them are on this one.
    Topic,
    /// The same, with so many events in one POST.
    TopicBatched(u64),
    /// One connection is on so many.
    Topics(u64),
    /// So many connections, each on one of its own.
    TopicEach(u64),
    /// So many users, each with a connection.
    UserEach(u64),
    /// The same, with so many events in one POST.
    UserEachBatched(u64, u64),
    /// The topic with so many keys, of which the newest is kept; so many events in one POST.
    Keys(u64, u64),
}

/// How fast.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pace {
    /// The next when all have the last.
    OneAtATime,
    /// So many ahead of the slowest reader.
    Window(u64),
    /// So many a second, whatever the readers do.
    Rate(f64),
}

/// What was measured while events were published.
#[derive(Clone, Debug)]
pub struct Phase {
    pub events: u64,
    pub deliveries: u64,
    pub bytes: u64,
    /// How often something was read that the deliveries were in.
    pub reads: u64,
    pub elapsed: Duration,
    /// Of the server, in nanoseconds.
    pub cpu: u64,
    /// The part of the time in which the load generator had a CPU.
    pub busy: f64,
    pub p50: Option<f64>,
    pub p99: Option<f64>,
    /// Of the server's publish call, in nanoseconds.
    pub publish: Option<f64>,
}

pub struct Load {
    poll: Poll,
    ready: Events,
    address: SocketAddr,
    begun: Instant,
    connections: Vec<Connection>,
    /// That are to be opened, and how many wait for their head.
    to_connect: VecDeque<Request>,
    connecting: usize,
    at_once: usize,
    publisher: Publisher,
    buffer: Vec<u8>,
    /// Of the events to all: the number of the last.
    sequence: u64,
    tally: Tally,
}

/// What has come.
struct Tally {
    now: u64,
    deliveries: u64,
    bytes: u64,
    reads: u64,
    latency: Histogram,
    /// How many have each event of the window.
    have: Vec<u32>,
    audience: u32,
    /// The last event that all have.
    complete: u64,
    heads: usize,
    /// How many of those that do not count have come to this number.
    goal: u64,
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

    /// What went wrong: losses, duplicates, disorder, ends.
    pub fn problems(&self) -> (u64, &[String]) {
        (self.tally.problem_count, &self.tally.problems)
    }

    /// The id of the last event that any connection got; from now on, if it was not asked for before.
    pub fn last_id(&mut self) -> String {
        self.tally.keeps_id = true;
        String::from_utf8_lossy(&self.tally.last_id).into_owned()
    }

    /// The number of the last event to all.
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// Opens connections and waits until all have their head; returns how long that took.
    pub fn connect(&mut self, requests: impl IntoIterator<Item = Request>) -> Duration {
        let begun = Instant::now();
        self.enqueue(requests, CONNECTING);
        while self.is_connecting() {
            self.turn(Some(Duration::from_millis(100)));
            if begun.elapsed() > self.patience() {
                let without = self.to_connect.len() + self.connecting;
                self.tally.problem(format!("{without} connections have no head after {PATIENCE:?}"));
                break;
            }
        }
        begun.elapsed()
    }

    /// Opens connections while events are published.
    pub fn enqueue(&mut self, requests: impl IntoIterator<Item = Request>, at_once: usize) {
        self.to_connect.extend(requests);
        self.at_once = at_once;
    }

    /// After this much longer than it was to take, what has not come is lost. What is broken already is not waited for.
    fn patience(&self) -> Duration {
        if self.tally.problem_count > 0 { Duration::ZERO } else { PATIENCE }
    }

    fn is_connecting(&self) -> bool {
        !self.to_connect.is_empty() || self.connecting > 0
    }

    /// From now on: how many of those that do not count have got the event with this number.
    pub fn set_goal(&mut self, goal: u64) {
        (self.tally.goal, self.tally.reached) = (goal, 0);
    }

    pub fn reached(&self) -> usize {
        self.tally.reached
    }

    /// Makes connections expect `latest_per_key`.
    pub fn expect_latest(&mut self, keys: u64) {
        for connection in &mut self.connections {
            connection.latest = Some(vec![0; keys as usize]);
        }
    }

    /// How many connections do not have the newest value of each key after so many events. Waits a while for them.
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

    /// Never reads from the last so many connections again.
    pub fn stall(&mut self, count: usize) {
        let from = self.connections.len() - count;
        for connection in &mut self.connections[from..] {
            assert!(!connection.counts, "those that stall are not waited for");
            self.poll.registry().deregister(&mut connection.socket).unwrap();
        }
    }

    /// Publishes for a while and until all have all of it.
    pub fn run(&mut self, server: &Server, to: To, pace: Pace, duration: Duration) -> Phase {
        self.run_until(server, to, pace, duration, |_| true)
    }

    /// Publishes a number of events, and waits until all have them.
    pub fn run_count(&mut self, to: To, pace: Pace, count: u64) {
        let last = self.publisher.posts() + count;
        self.go(to, pace, move |load, _| load.publisher.posts() < last);
    }

    /// Publishes for a while, and longer if something is not done by then.
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
        let events = self.go(to, pace, move |load, elapsed| {
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

    /// Publishes as long as it goes on, and waits until all have all of it; returns how many events that were.
    fn go(&mut self, to: To, pace: Pace, goes_on: impl Fn(&Self, Duration) -> bool) -> u64 {
        let counting = self.connections.iter().filter(|connection| connection.counts).count();
        self.tally.audience = match to {
            To::Topic | To::TopicBatched(_) => counting as u32,
            _ => 1,
        };
        self.tally.complete = self.sequence;
        let begun = Instant::now();
        let mut mine = Mine { to, published: 0, deliveries: self.tally.deliveries, first: self.now(), turn: 0 };
        let mut over = None;
        loop {
            let timeout = if over.is_none() && goes_on(self, begun.elapsed()) {
                self.publish(pace, &mut mine)
            } else {
                let over = over.get_or_insert_with(Instant::now);
                let waits_for = if matches!(to, To::Keys(..)) { 0 } else { self.outstanding(&mine) };
                if waits_for == 0 && self.publisher.is_answered() && !self.is_connecting() {
                    break;
                }
                if over.elapsed() > self.patience() {
                    let unanswered = self.publisher.unanswered();
                    self.tally
                        .problem(format!("lost: {waits_for} events did not come, {unanswered} POSTs have no answer"));
                    break;
                }
                Some(Duration::from_millis(100))
            };
            self.publisher.flush();
            self.turn(timeout);
        }
        mine.published
    }

    /// Publishes what may be published now; returns how long to wait for what comes.
    fn publish(&mut self, pace: Pace, mine: &mut Mine) -> Option<Duration> {
        let whenever = Some(Duration::from_millis(100));
        match pace {
            Pace::OneAtATime => {
                if self.outstanding(mine) == 0 && self.publisher.is_answered() {
                    self.post(mine, self.now());
                }
                whenever
            }
            Pace::Window(window) => {
                let counted = !matches!(mine.to, To::Keys(..));
                while self.publisher.unanswered() < UNANSWERED.min(window)
                    && !(counted && self.outstanding(mine) + mine.batch() > window)
                {
                    self.post(mine, self.now());
                }
                whenever
            }
            Pace::Rate(rate) => {
                let due = |published: u64| mine.first + (published as f64 * 1e9 / rate) as u64;
                let mut next = due(mine.published);
                if next <= self.now() {
                    self.post(mine, next);
                    next += (1e9 / rate) as u64;
                }
                // The kernel sleeps up to a millisecond longer.
                let left = Duration::from_nanos(next.saturating_sub(self.now()));
                Some(left.saturating_sub(Duration::from_millis(1)).min(Duration::from_millis(100)))
            }
        }
    }

    /// How many events or deliveries are on their way.
    fn outstanding(&self, mine: &Mine) -> u64 {
        match mine.to {
            To::Topic | To::TopicBatched(_) | To::Topics(_) => self.sequence - self.tally.complete,
            To::TopicEach(_) | To::UserEach(_) | To::UserEachBatched(..) => {
                (mine.published + mine.deliveries).saturating_sub(self.tally.deliveries)
            }
            To::Keys(..) => 0,
        }
    }

    fn post(&mut self, mine: &mut Mine, scheduled: u64) {
        let batch = mine.batch();
        match mine.to {
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
                let index = mine.turn % count;
                let stamp = Stamp { sequence: self.connections[index as usize].publish(), scheduled, key: 0 };
                if matches!(mine.to, To::UserEach(_)) {
                    self.publisher.post(format_args!("user=u{index}"), |body| stamp.write(body));
                } else {
                    self.publisher.post(format_args!("topic=t{index}"), |body| stamp.write(body));
                }
            }
            To::UserEachBatched(count, size) => {
                let (connections, sent) = (&mut self.connections, mine.turn);
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
                let (topic, keys) = if let To::Keys(keys, _) = mine.to { ("latest&keyed", keys) } else { ("t", 1) };
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
        mine.turn += batch;
        mine.published += batch;
    }

    fn now(&self) -> u64 {
        self.begun.elapsed().as_nanos() as u64
    }

    /// Waits for what comes, and takes it.
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

/// Of the events of one phase.
struct Mine {
    to: To,
    published: u64,
    /// How many had come before.
    deliveries: u64,
    /// When the first was due.
    first: u64,
    /// Whose turn it is.
    turn: u64,
}

impl Mine {
    fn batch(&self) -> u64 {
        match self.to {
            To::TopicBatched(size) | To::UserEachBatched(_, size) | To::Keys(_, size) => size,
            _ => 1,
        }
    }
}

impl Connection {
    /// The number of the next event to it alone.
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
                Err(error) => return tally.problem(format!("a request was not taken: {error}")),
            }
        }
    }

    fn read(&mut self, buffer: &mut [u8], tally: &mut Tally) -> Result<(), String> {
        loop {
            let count = match self.socket.read(buffer) {
                Ok(0) => return Err("the connection has ended".into()),
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
            // Less than there was room for: there is no more.
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
            tally.problem(format!("{sequence} came again or late: after {}", *next - 1));
        }
        latest[stamp.key as usize] = sequence;
    } else if sequence != *next {
        let what = if sequence < *next { "duplicate or disorder" } else { "loss" };
        tally.problem(format!("{what}: {sequence} instead of {next}"));
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
    // Closed by a reset, so that thousands of ports do not wait for a minute.
    SockRef::from(&socket).set_linger(Some(Duration::ZERO)).unwrap();
    match socket.connect(&address.into()) {
        Err(error) if !matches!(error.raw_os_error(), Some(EINPROGRESS)) && error.kind() != ErrorKind::WouldBlock => {
            panic!("connect: {error}")
        }
        _ => TcpStream::from_std(socket.into()),
    }
}

/// Whether what is wrong is noticed: a benchmark that verifies nothing would print the same.
pub fn check_itself() {
    crate::parse::check_itself();
    let numbers = |numbers: &[u64], latest: bool| {
        let (mut tally, mut next, mut latest) = (Tally::new(), 1, latest.then(|| vec![0; 1]));
        for sequence in numbers {
            deliver(&mut tally, Stamp { sequence: *sequence, scheduled: 0, key: 0 }, &mut next, true, &mut latest);
        }
        tally.problem_count > 0
    };
    assert!(!numbers(&[1, 2, 3], false) && !numbers(&[1, 3], true), "what is right is right");
    assert!(numbers(&[1, 3], false) && numbers(&[2], false), "a loss is noticed");
    assert!(numbers(&[1, 1], false) && numbers(&[1, 1], true), "a duplicate is noticed");
    assert!(numbers(&[1, 3, 2], false) && numbers(&[1, 3, 2], true), "disorder is noticed");
}
