//! A simulation of many instances with the real code, on virtual time: the control messages that
//! they exchange while sessions begin and end, and during a rolling restart.
//!
//! The usual run has few instances. `docs/performance.md` has the figures of a large one:
//!
//! ```text
//! TOWER_SSE_SIMULATION=100x5000x600x100 cargo test --release --test simulation -- --nocapture
//! ```
//!
//! The numbers are the instances, the connections of each, the seconds, and the restarts after them.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr, reason = "this is a test")]

#[path = "brokers/pass_journals.rs"]
mod pass_journals;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt};
use tokio::time::{Instant, sleep, sleep_until};
use tower_sse::backplane::{
    Backplane, BackplaneError, ControlMessage, ControlStream, CurrentValue, LogPosition, LogState, Memory, NewRecord,
    Range, ReadLimit, Seen, Stored,
};
use tower_sse::{Cursor, Disconnect, Hub, Subscriber, SubscriberItem, Subscription, TopicFilter};

use crate::pass_journals::pass_journals;

/// The time for which a session lasts.
const SESSION: Duration = Duration::from_secs(600);
/// The time within which the first connections open.
const RAMP: Duration = Duration::from_secs(30);
/// The longest time after which a client of an ended instance connects to another one.
const RECONNECT: Duration = Duration::from_secs(3);
const GRACE: Duration = Duration::from_secs(10);
/// The bytes that an instance may hear in a second, if it has 100 instances with 5,000 connections.
const MAX_HEARD: u64 = 200_000;
/// The memory of a connection of another instance.
const MAX_BYTES: usize = 100;

/// The log as one instance reaches it, which counts what the instance hears.
#[derive(Clone)]
struct Heard {
    log: Memory,
    counts: Arc<Counts>,
}

#[derive(Default)]
struct Counts {
    messages: AtomicU64,
    bytes: AtomicU64,
    /// The bytes of the lists that the instance has read.
    lists: AtomicU64,
    /// The bytes of the lists that the instance has stored.
    stored: AtomicU64,
}

impl Heard {
    async fn journals(&self) -> Result<&Memory, BackplaneError> {
        Ok(&self.log)
    }
}

pass_journals!(Heard);

impl Backplane for Heard {
    fn append(
        &self,
        records: Vec<NewRecord>,
        seen: Option<Seen>,
    ) -> BoxFuture<'_, Vec<Result<LogPosition, BackplaneError>>> {
        self.log.append(records, seen)
    }

    fn state(&self, seen: Option<Seen>) -> BoxFuture<'_, Result<LogState, BackplaneError>> {
        self.log.state(seen)
    }

    fn range(&self, after: u64, limit: ReadLimit) -> BoxFuture<'_, Result<Range, BackplaneError>> {
        self.log.range(after, limit)
    }

    fn tail(&self, after: u64) -> BoxStream<'static, Result<Vec<Stored>, BackplaneError>> {
        self.log.tail(after)
    }

    fn values(&self) -> BoxFuture<'_, Result<Vec<CurrentValue>, BackplaneError>> {
        self.log.values()
    }

    fn broadcast(&self, stream: ControlStream, message: Bytes) -> BoxFuture<'_, Result<(), BackplaneError>> {
        self.log.broadcast(stream, message)
    }

    fn listen(&self, after: Option<Box<str>>) -> BoxStream<'static, Result<ControlMessage, BackplaneError>> {
        let counts = Arc::clone(&self.counts);
        let count = move |received: &Result<ControlMessage, _>| {
            let bytes = received.as_ref().map_or(0, |control| control.message.len());
            counts.messages.fetch_add(1, Ordering::Relaxed);
            counts.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        };
        self.log.listen(after).inspect(count).boxed()
    }

    fn put_once(&self, key: &str, payload: Bytes, time: Duration) -> BoxFuture<'_, Result<(), BackplaneError>> {
        self.log.put_once(key, payload, time)
    }

    fn take(&self, key: &str) -> BoxFuture<'_, Result<Option<Bytes>, BackplaneError>> {
        self.log.take(key)
    }

    fn put_shared(&self, key: &str, payload: Bytes, time: Duration) -> BoxFuture<'_, Result<(), BackplaneError>> {
        self.counts.stored.fetch_add(payload.len() as u64, Ordering::Relaxed);
        self.log.put_shared(key, payload, time)
    }

    fn get_shared(&self, key: &str) -> BoxFuture<'_, Result<Option<Bytes>, BackplaneError>> {
        let value = self.log.get_shared(key);
        async move {
            let value = value.await?;
            let bytes = value.as_ref().map_or(0, Bytes::len);
            self.counts.lists.fetch_add(bytes as u64, Ordering::Relaxed);
            Ok(value)
        }
        .boxed()
    }

    fn describe(&self) -> String {
        self.log.describe()
    }
}

struct Instance {
    hub: Hub,
    counts: Arc<Counts>,
}

impl Instance {
    fn start(log: &Memory) -> Self {
        let counts = Arc::<Counts>::default();
        let heard = Heard { log: log.clone(), counts: Arc::clone(&counts) };
        let hub = Hub::builder()
            .presence_for(TopicFilter::prefix("room/"))
            .presence_grace(GRACE)
            .retention_budget(1 << 20)
            .backplane(heard)
            .build()
            .unwrap();
        Self { hub, counts }
    }
}

/// Something that happens at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Due {
    /// The session of this client ends, and another client begins a session.
    End(usize),
    /// This client connects.
    Connect(usize),
}

/// A client with its session: the number of its user, its instance and its stream.
struct Client {
    user: usize,
    instance: usize,
    stream: Option<Subscriber>,
}

struct Simulation {
    log: Memory,
    instances: Vec<Instance>,
    clients: Vec<Client>,
    due: BinaryHeap<Reverse<(Instant, Due)>>,
    users: usize,
    /// The users with a session who are in a room.
    in_rooms: Arc<Mutex<HashSet<usize>>>,
    /// The users in rooms whose session has ended, with the time.
    gone: HashMap<usize, Instant>,
}

/// Every fiftieth user is in a room with presence events.
fn is_in_room(user: usize) -> bool {
    user.is_multiple_of(50)
}

impl Simulation {
    async fn start(instances: usize, clients: usize) -> Self {
        let log = Memory::new();
        let instances: Vec<_> = (0..instances).map(|_| Instance::start(&log)).collect();
        let mut this = Self {
            log,
            instances,
            clients: Vec::new(),
            due: BinaryHeap::new(),
            users: 0,
            in_rooms: Arc::default(),
            gone: HashMap::new(),
        };
        let now = Instant::now();
        for client in 0..clients {
            this.clients.push(Client { user: 0, instance: 0, stream: None });
            this.new_user(client);
            let begin = now + RAMP.mul_f64(fastrand::f64());
            this.due.push(Reverse((begin, Due::Connect(client))));
            this.due.push(Reverse((now + RAMP + SESSION.mul_f64(fastrand::f64()), Due::End(client))));
        }
        this
    }

    fn new_user(&mut self, client: usize) {
        self.users += 1;
        self.clients[client].user = self.users;
        if is_in_room(self.users) {
            self.in_rooms.lock().unwrap().insert(self.users);
        }
    }

    fn connect(&mut self, client: usize) {
        // An instance that has just started is not ready.
        let random = std::iter::repeat_with(|| fastrand::usize(..self.instances.len()));
        let instance = random.take(10_000).find(|at| self.instances[*at].hub.is_ready()).unwrap();
        let user = self.clients[client].user;
        let mut subscription =
            Subscription::for_user(format!("user-{user:08}")).topic("news").topic(format!("team/{}", user % 10_000));
        if is_in_room(user) {
            subscription = subscription.topic(format!("room/{}", user / 500));
        }
        let stream = self.instances[instance].hub.subscribe(subscription, Cursor::Absent).unwrap();
        let of = &mut self.clients[client];
        (of.instance, of.stream) = (instance, Some(stream));
    }

    /// Runs the sessions until a time.
    async fn run_until(&mut self, end: Instant) {
        while let Some(Reverse((at, due))) = self.due.peek().copied().filter(|Reverse((at, _))| *at <= end) {
            self.due.pop();
            sleep_until(at).await;
            match due {
                // A client may have been disconnected since.
                Due::Connect(client) if self.clients[client].stream.is_none() => self.connect(client),
                Due::Connect(_) => {}
                Due::End(client) => {
                    let user = self.clients[client].user;
                    if self.in_rooms.lock().unwrap().remove(&user) {
                        self.gone.insert(user, Instant::now());
                    }
                    self.clients[client].stream = None;
                    self.new_user(client);
                    self.connect(client);
                    self.due.push(Reverse((Instant::now() + SESSION, Due::End(client))));
                }
            }
        }
        sleep_until(end).await;
    }

    /// Disconnects a client from another instance. Returns the time after which its stream ends.
    async fn disconnect(&mut self) -> Duration {
        let client = loop {
            let client = fastrand::usize(..self.clients.len());
            if self.clients[client].stream.is_some() {
                break client;
            }
        };
        let Client { user, instance, ref mut stream } = self.clients[client];
        let mut stream = stream.take().unwrap();
        let other = (instance + 1 + fastrand::usize(..self.instances.len() - 1)) % self.instances.len();
        let begun = Instant::now();
        let target = self.instances[other].hub.user(format!("user-{user:08}"));
        target.disconnect(Disconnect::now()).await.unwrap();
        while !matches!(stream.next().await, Some(SubscriberItem::End(_)) | None) {}
        let took = begun.elapsed();
        self.due.push(Reverse((Instant::now() + RECONNECT.mul_f64(fastrand::f64()), Due::Connect(client))));
        took
    }

    /// Restarts an instance. Its clients connect to others.
    async fn restart(&mut self, instance: usize) -> Arc<Counts> {
        let hub = self.instances[instance].hub.clone();
        let drained = tokio::spawn(async move { hub.drain(Duration::from_millis(100)).await });
        sleep(Duration::from_millis(50)).await;
        let now = Instant::now();
        for (client, of) in self.clients.iter_mut().enumerate() {
            if of.instance == instance && of.stream.take().is_some() {
                self.due.push(Reverse((now + RECONNECT.mul_f64(fastrand::f64()), Due::Connect(client))));
            }
        }
        drained.await.unwrap();
        self.instances[instance] = Instance::start(&self.log);
        Arc::clone(&self.instances[instance].counts)
    }

    fn heard(&self) -> Vec<u64> {
        self.instances.iter().map(|instance| instance.counts.bytes.load(Ordering::Relaxed)).collect()
    }

    /// Checks that each instance knows all connections, a second after the last change.
    async fn check_counts(&self) {
        sleep(Duration::from_secs(1)).await;
        let connected = self.clients.iter().filter(|client| client.stream.is_some()).count();
        for instance in &self.instances {
            assert_eq!(instance.hub.everyone().count(), connected);
            assert_eq!(instance.hub.topic("news").count(), connected);
        }
    }
}

/// Collects the users of `hub.left`, each with the time and whether the user has a session.
fn watch_left(log: &Memory, in_rooms: Arc<Mutex<HashSet<usize>>>) -> Arc<Mutex<Vec<(usize, bool)>>> {
    let left = Arc::<Mutex<Vec<_>>>::default();
    let (collected, mut tail) = (Arc::clone(&left), log.tail(0));
    tokio::spawn(async move {
        while let Some(Ok(records)) = tail.next().await {
            for record in records {
                let text = String::from_utf8_lossy(&record.payload).into_owned();
                if let Some((_, user)) = text.split_once("user-").filter(|_| text.contains("hub.left")) {
                    let user = user[..8].parse().unwrap();
                    collected.lock().unwrap().push((user, in_rooms.lock().unwrap().contains(&user)));
                }
            }
        }
    });
    left
}

#[tokio::test(start_paused = true)]
async fn control_messages_stay_within_their_limits() {
    let size = std::env::var("TOWER_SSE_SIMULATION").unwrap_or_else(|_| "8x100x60x3".into());
    let size: Option<Vec<usize>> = size.split('x').map(|number| number.parse().ok()).collect();
    let [instances, each, seconds, restarts] = size.unwrap_or_default()[..] else {
        panic!("TOWER_SSE_SIMULATION is not like 100x5000x600x100");
    };
    let clients = instances * each;
    let real = std::time::Instant::now();
    let mut simulation = Simulation::start(instances, clients).await;
    let left = watch_left(&simulation.log, Arc::clone(&simulation.in_rooms));
    while !simulation.instances.iter().all(|instance| instance.hub.is_ready()) {
        sleep(Duration::from_millis(10)).await;
    }
    simulation.run_until(Instant::now() + RAMP + Duration::from_secs(2)).await;
    simulation.check_counts().await;
    eprintln!("{instances} instances with {each} connections each, connected after {:?}", real.elapsed());

    // Sessions begin and end.
    let (mut most, mut slowest, begin) = (0, Duration::ZERO, simulation.heard());
    for second in 0..seconds {
        let (before, start) = (simulation.heard(), Instant::now());
        slowest = slowest.max(simulation.disconnect().await);
        simulation.run_until(start + Duration::from_secs(1)).await;
        let heard = simulation.heard().into_iter().zip(before).map(|(now, before)| now - before);
        most = most.max(heard.max().unwrap());
        if second % 60 == 59 {
            eprintln!("{} s after {:?}", second + 1, real.elapsed());
        }
    }
    let heard: u64 = simulation.heard().into_iter().zip(begin).map(|(now, begin)| now - begin).sum();
    let mean = heard / (seconds * instances) as u64;
    let memory = simulation.instances.iter().map(|instance| instance.hub.memory_of_peers());
    let (foreign, bytes) = memory.max_by_key(|(_, bytes)| *bytes).unwrap();
    let stored: u64 = simulation.instances.iter().map(|one| one.counts.stored.load(Ordering::Relaxed)).sum();
    eprintln!("heard by each instance and second: {mean} bytes on average, at most {most} bytes");
    eprintln!("memory of {foreign} connections of others: {bytes} bytes, {} each", bytes / foreign);
    eprintln!("slowest disconnect: {slowest:?}; lists stored: {stored} bytes");

    // A rolling restart.
    let (mut most_restarting, mut read) = (0, 0);
    for instance in 0..restarts {
        let start = Instant::now();
        let counts = simulation.restart(instance).await;
        for _ in 0..2 {
            let before = simulation.heard();
            slowest = slowest.max(simulation.disconnect().await);
            simulation.run_until(Instant::now() + Duration::from_secs(1)).await;
            let heard = simulation.heard().into_iter().zip(before).map(|(now, before)| now - before);
            most_restarting = most_restarting.max(heard.max().unwrap());
        }
        read = read.max(counts.lists.load(Ordering::Relaxed));
        simulation.run_until(start + Duration::from_secs(4)).await;
        if instance % 10 == 9 {
            eprintln!("{} restarts after {:?}", instance + 1, real.elapsed());
        }
    }
    simulation.run_until(Instant::now() + Duration::from_secs(30)).await;
    simulation.check_counts().await;
    let left = std::mem::take(&mut *left.lock().unwrap());
    let false_ones = left.iter().filter(|(_, has_session)| *has_session).count();
    let reported: HashSet<_> = left.iter().map(|(user, _)| *user).collect();
    let must_be_reported = simulation.gone.iter().filter(|(_, at)| at.elapsed() > GRACE + Duration::from_secs(20));
    let missing = must_be_reported.filter(|(user, _)| !reported.contains(user)).count();
    let stored: u64 = simulation.instances.iter().map(|one| one.counts.stored.load(Ordering::Relaxed)).sum();
    eprintln!(
        "rolling restart of {restarts} instances: {} hub.left, {false_ones} of them false, {missing} missing",
        left.len()
    );
    eprintln!(
        "heard in one second of it: at most {most_restarting} bytes; read from lists by one instance: {read} bytes"
    );
    eprintln!("slowest disconnect: {slowest:?}; lists stored: {stored} bytes; took {:?}", real.elapsed());

    assert_eq!((false_ones, missing), (0, 0));
    assert!(left.len() > clients / 1_000);
    assert!(slowest < Duration::from_secs(1), "{slowest:?}");
    assert!(bytes / foreign <= MAX_BYTES || foreign < 100_000, "{bytes} bytes for {foreign} connections");
    // In proportion to the number of connections, and 50 bytes for each lease and each turn.
    let limit = MAX_HEARD * clients as u64 / 500_000 + 50 * 21 * instances as u64;
    assert!(mean <= limit.min(MAX_HEARD), "{mean} bytes, but at most {limit}");
}
