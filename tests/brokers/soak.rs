//! Random faults with a printed seed: three instances, a publisher on each, and clients that move
//! between them with their cursor. Each client receives every permitted event or a gap, and no
//! other event. `SOAK_SECONDS=3600 SEED=7 cargo test --test brokers soak` runs longer, or repeats a
//! run.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use fastrand::Rng;
use futures::FutureExt;
use tokio::time::sleep;
use tower_sse::backplane::Backplane;
use tower_sse::test_kit::{Fault, FaultyLog, Operation};
use tower_sse::{Cursor, Event, GapReason, Hub, Position, Retention, Subscriber, SubscriberItem, Subscription, Target};

use crate::faulty::Faulty;
use crate::kit::broker::{self, BrokerServer, for_each_broker};
use crate::kit::{soon, until};
use crate::proxy::{Mode, Proxy};

const INSTANCES: usize = 3;
/// Topics and users. Each has one bit in a set of names.
const NAMES: [&str; 5] = ["t0", "t1", "t2", "u0", "u1"];
/// The audiences of records: a topic, a union of two topics, a user, and a topic with a user.
const AUDIENCES: [u8; 9] = [0b00001, 0b00010, 0b00100, 0b00011, 0b00110, 0b01000, 0b10000, 0b01001, 0b10100];
/// The subscriptions of clients, with at most one user each.
const CLIENTS: [u8; 8] = [0b00001, 0b00010, 0b00100, 0b00011, 0b01110, 0b01000, 0b10001, 0b10111];
/// The data of the last event.
const END: &str = "end";

/// Returns the number in an environment variable. Panics if the text is not a number.
fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} is not a number: {text}")))
}

/// Returns `SOAK_SECONDS`, or `usual`.
pub fn seconds(usual: u64) -> Duration {
    Duration::from_secs(number("SOAK_SECONDS").unwrap_or(usual))
}

pub fn seed(name: &str) -> u64 {
    let seed = number("SEED").unwrap_or_else(|| fastrand::u64(..100_000));
    eprintln!("soak, {name}: SEED={seed}");
    seed
}

pub fn millis(random: &mut Rng, range: Range<u64>) -> Duration {
    Duration::from_millis(random.u64(range))
}

/// An epoch and a number in it.
type LogPosition = (u64, u64);

fn place(position: Position) -> LogPosition {
    let text = position.to_string();
    let mut parts = text.split('.').skip(1);
    (u64::from_str_radix(parts.next().unwrap(), 16).unwrap(), parts.next().unwrap().parse().unwrap())
}

fn instance(log: impl Backplane) -> Hub {
    let much = Retention::replay().count(200_000).bytes(64 << 20);
    Hub::builder()
        .topic_retention(much.clone())
        .user_retention(much)
        .probe_interval(Duration::from_millis(40))
        .publish_timeout(Duration::from_secs(1))
        .backplane(log)
        .build()
        .unwrap()
}

fn subscription(names: u8) -> Subscription {
    let mut subscription = Subscription::anonymous();
    for (bit, name) in NAMES.into_iter().enumerate().filter(|(bit, _)| names & (1 << bit) != 0) {
        subscription = if bit < 3 { subscription.topic(name) } else { subscription.with_user(name) };
    }
    subscription
}

fn target(hub: &Hub, names: u8) -> Target<'_> {
    let each = NAMES.into_iter().enumerate().filter(|(bit, _)| names & (1 << bit) != 0);
    let targets = each.map(|(bit, name)| if bit < 3 { hub.topic(name) } else { hub.user(name) });
    targets.reduce(Target::and).unwrap()
}

/// The broker that the instances share, and its faults.
pub trait TestBroker {
    type Log: Backplane;
    /// Whether a new instance becomes ready in reasonable time.
    const CAN_REPLACE_INSTANCES: bool;
    /// The pause between two publishes of one publisher.
    const PACE: Duration;
    /// The minimum number of acknowledged events of a run.
    const ACKNOWLEDGED: usize = 500;

    fn log(&self, instance: usize) -> Self::Log;
    /// Injects one fault, and returns when it is over. Returns whether acknowledged records were
    /// lost.
    async fn inject_fault(&mut self, random: &mut Rng) -> bool;
    /// Describes the faults for the last line of a run.
    fn describe_faults(&self) -> String {
        String::new()
    }
}

/// This broker has faults by itself. From time to time it is away as well.
impl TestBroker for Faulty {
    type Log = Self;
    /// A new instance reads the log in small pieces, and one of the many pieces of a long log
    /// always fails.
    const CAN_REPLACE_INSTANCES: bool = false;
    /// An instance keeps up with this pace although its reads of the log fail all the time.
    const PACE: Duration = Duration::from_millis(20);

    fn log(&self, _: usize) -> Self {
        self.clone()
    }

    async fn inject_fault(&mut self, random: &mut Rng) -> bool {
        self.set_away(true);
        sleep(millis(random, 50..300)).await;
        self.set_away(false);
        false
    }
}

/// A broker process, with a proxy in front of it for each instance.
struct Real<B> {
    broker: B,
    proxies: Vec<Proxy>,
    durable: bool,
}

impl<B: BrokerServer> Real<B> {
    async fn start(broker: B, durable: bool) -> Self {
        let mut proxies = Vec::new();
        for _ in 0..INSTANCES {
            proxies.push(Proxy::start(broker.port()).await);
        }
        Self { broker, proxies, durable }
    }
}

impl<B: BrokerServer> TestBroker for Real<B> {
    type Log = B::Log;
    const CAN_REPLACE_INSTANCES: bool = true;
    const PACE: Duration = Duration::from_millis(3);

    fn log(&self, instance: usize) -> B::Log {
        B::log_at(self.proxies[instance].port, "soak", Duration::from_millis(400))
    }

    async fn inject_fault(&mut self, random: &mut Rng) -> bool {
        let is_killed = random.u8(..10) < if self.durable { 3 } else { 7 };
        if !is_killed || random.bool() {
            for proxy in &self.proxies {
                if random.bool() {
                    proxy.set(match random.u8(..4) {
                        0 => Mode::StallsAnswers,
                        1 => Mode::StallsRequests,
                        2 => Mode::Resets,
                        _ => Mode::Delays(millis(random, 2..40)),
                    });
                }
            }
            sleep(millis(random, 20..1_200)).await;
        }
        if is_killed {
            self.broker.kill();
            sleep(millis(random, 20..600)).await;
            self.broker.restart();
            sleep(millis(random, 1..300)).await;
        }
        self.proxies.iter().for_each(|proxy| proxy.set(Mode::Passes));
        is_killed && !self.durable
    }
}

/// The state that all tasks of a soak test share.
struct Fleet {
    hubs: [Mutex<Hub>; INSTANCES],
    /// Whether the publishers should stop.
    over: AtomicBool,
    /// The current epoch of each client.
    epochs: [AtomicU64; CLIENTS.len()],
    may_lose: bool,
}

impl Fleet {
    fn hub(&self, instance: usize) -> Hub {
        self.hubs[instance].lock().unwrap().clone()
    }

    /// Whether every client has left this epoch and all are in the same one.
    fn are_past(&self, epoch: u64) -> bool {
        let now = self.epochs[0].load(Ordering::SeqCst);
        now != epoch && self.epochs.iter().all(|epoch| epoch.load(Ordering::SeqCst) == now)
    }

    /// Replaces an instance, with or without a drain of the old one.
    async fn replace(&self, instance: usize, new: Hub, drains: bool) {
        let old = std::mem::replace(&mut *self.hubs[instance].lock().unwrap(), new);
        if drains {
            soon(old.drain(Duration::ZERO)).await;
        }
    }
}

/// The records of one publisher, each with a unique number.
#[derive(Default)]
struct Written {
    /// The number of events.
    published: usize,
    acknowledged: Vec<(LogPosition, u64, u8)>,
    unknown: HashMap<u64, u8>,
}

impl Written {
    fn acknowledge(&mut self, position: Position, number: u64, audience: u8) {
        let place = place(position);
        if let Some((before, ..)) = self.acknowledged.last() {
            assert!(before.0 != place.0 || before.1 < place.1, "{place:?} was acknowledged after {before:?}");
        }
        self.acknowledged.push((place, number, audience));
    }
}

/// Publishes single events, batches, and events that are repeated on other instances until they are
/// acknowledged.
async fn publish(fleet: Arc<Fleet>, instance: usize, pace: Duration, mut random: Rng) -> Written {
    let mut written = Written::default();
    let mut next = (instance as u64) << 40;
    while !fleet.over.load(Ordering::SeqCst) {
        let hub = fleet.hub(instance);
        let repeats = random.u8(..10) == 0;
        let count = if !repeats && random.u8(..10) == 0 { 10 } else { 1 };
        let records: Vec<_> = (next..next + count).map(|n| (n, AUDIENCES[random.usize(..AUDIENCES.len())])).collect();
        next += count;
        written.published += records.len();
        let event = |number: u64| {
            let event = Event::unnamed(number.to_string());
            if repeats { event.idempotency_key(number.to_string()) } else { event }
        };
        let events = records.iter().map(|(number, audience)| (target(&hub, *audience), event(*number)));
        let outcomes = hub.publish_many(events).await;
        for ((number, audience), outcome) in records.into_iter().zip(outcomes) {
            match outcome {
                Ok(published) => written.acknowledge(published.position, number, audience),
                Err(error) if error.is_unknown() => {
                    written.unknown.insert(number, audience);
                }
                Err(error) => assert!(error.is_unavailable() || error.is_closed(), "{error}"),
            }
        }
        // The record also stays unknown, because a broker that loses its data may have had it in
        // two epochs.
        let again = next - 1;
        let mut repeats = written.unknown.get(&again).copied().filter(|_| repeats);
        while let Some(audience) = repeats.filter(|_| !fleet.over.load(Ordering::SeqCst)) {
            let hub = fleet.hub(random.usize(..INSTANCES));
            if let Ok(published) = target(&hub, audience).publish(event(again)).await {
                written.acknowledge(published.position, again, audience);
                repeats = None;
            }
            sleep(pace).await;
        }
        sleep(pace).await;
    }
    written
}

/// One client, and its events in each epoch of the log.
struct Client {
    fleet: Arc<Fleet>,
    number: usize,
    names: u8,
    cursor: Cursor,
    history: Vec<Epoch>,
    /// The gap after which the client has not received a position yet.
    gap: Option<Gap>,
}

struct Epoch {
    epoch: u64,
    /// The gap covers the records of this epoch up to this number.
    begins: u64,
    at: u64,
    received: Vec<(u64, u64)>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Gap {
    /// The cursor was invalid, so the stream began at the end of the log.
    OfTheCursor,
    /// The epoch changed under the open stream, which receives all of the new epoch.
    OfTheStream,
}

impl Client {
    fn new(fleet: Arc<Fleet>, number: usize, begin: Position) -> Self {
        let (epoch, at) = place(begin);
        let history = vec![Epoch { epoch, begins: at, at, received: Vec::new() }];
        Self { fleet, number, names: CLIENTS[number], cursor: Cursor::At(begin), history, gap: None }
    }

    fn now(&mut self) -> &mut Epoch {
        self.history.last_mut().unwrap()
    }

    fn is_past(&self, epoch: u64) -> bool {
        self.history.iter().rev().skip(1).any(|entry| entry.epoch == epoch)
    }

    /// Moves to a position of the current epoch, or of the next epoch after exactly one gap.
    fn move_to(&mut self, position: Position, is_event: bool) {
        let (epoch, at) = place(position);
        let gap = self.gap.take();
        if self.now().epoch == epoch {
            assert!(gap.is_none(), "a gap without loss");
        } else {
            assert!(gap.is_some(), "from {:?} to {position} without a gap", self.cursor);
            assert!(!self.is_past(epoch), "back to {position}");
            let begins = if gap == Some(Gap::OfTheStream) { 0 } else { at - u64::from(is_event) };
            self.history.push(Epoch { epoch, begins, at: begins, received: Vec::new() });
            self.fleet.epochs[self.number].store(epoch, Ordering::SeqCst);
        }
        let now = self.now();
        assert!(now.at < at || !is_event && now.at == at, "{position} after {}", now.at);
        now.at = at;
        self.cursor = Cursor::At(position);
    }

    /// Reads from an instance for a while. Returns whether the last event has arrived.
    async fn read(&mut self, stream: &mut Subscriber, time: Duration) -> bool {
        let until = tokio::time::Instant::now() + time;
        let mut is_first = true;
        loop {
            // After a gap the client reads on until it has a new cursor: with the old one it would
            // receive the gap again.
            let next = match self.gap {
                None => tokio::time::timeout_at(until, stream.next()).await,
                Some(_) => Ok(soon(stream.next()).await),
            };
            let Ok(Some(item)) = next else { return false };
            match item {
                SubscriberItem::Event(event) => {
                    self.move_to(event.position, true);
                    if event.data == END {
                        return true;
                    }
                    let at = self.now().at;
                    self.now().received.push((at, event.data.parse().unwrap()));
                }
                SubscriberItem::Live(position) => self.move_to(position, false),
                SubscriberItem::Gap { reason, .. } => {
                    assert!(self.fleet.may_lose && reason == GapReason::Epoch, "a gap without loss: {reason}");
                    // A second gap is right only if the stream ended and the client reconnected
                    // with the same cursor.
                    assert!(is_first || self.gap.is_none(), "a second gap for one loss");
                    self.gap = Some(if is_first { Gap::OfTheCursor } else { Gap::OfTheStream });
                }
                _ => {}
            }
            is_first = false;
        }
    }

    async fn run(mut self, mut random: Rng) -> Self {
        loop {
            let hub = self.fleet.hub(random.usize(..INSTANCES));
            let is_behind = self.is_past(place(hub.position()).0);
            let stream = hub.subscribe(subscription(self.names), self.cursor);
            drop(hub);
            // An instance that has not read the log yet, or that drains, refuses clients. An
            // instance that has not detected the new epoch yet would take the client back to the
            // old one.
            let (false, Ok(mut stream)) = (is_behind, stream) else {
                sleep(Duration::from_millis(1)).await;
                continue;
            };
            let time = if random.u8(..8) == 0 { millis(&mut random, 500..3_000) } else { millis(&mut random, 5..400) };
            if self.read(&mut stream, time).await {
                return self;
            }
        }
    }
}

/// The records of the log, from the results of publishers and the events of clients.
struct Ledger(BTreeMap<LogPosition, (u64, u8)>);

impl Ledger {
    fn new(written: &[Written], clients: &[Client]) -> Self {
        let mut records = BTreeMap::new();
        for (place, number, audience) in written.iter().flat_map(|written| &written.acknowledged) {
            let other = records.insert(*place, (*number, *audience));
            assert!(other.is_none(), "{place:?} means {number} and {other:?}");
        }
        let unknown: HashMap<u64, u8> = written.iter().flat_map(|written| written.unknown.clone()).collect();
        for entry in clients.iter().flat_map(|client| &client.history) {
            for &(at, number) in &entry.received {
                let (known, _) = *records.entry((entry.epoch, at)).or_insert_with(|| {
                    let audience = unknown.get(&number);
                    (number, *audience.unwrap_or_else(|| panic!("{number} was received although its publish failed")))
                });
                assert_eq!(known, number, "number {at} of epoch {:x} means two records", entry.epoch);
            }
        }
        let mut once = HashSet::new();
        for ((epoch, _), (number, _)) in &records {
            assert!(once.insert((epoch, number)), "{number} was appended twice");
        }
        Self(records)
    }

    /// Checks that the client received each permitted record that no gap covers, and no record of
    /// others.
    fn settle(&self, client: &Client) {
        let last = client.history.last().unwrap().epoch;
        let mut received = HashSet::new();
        for entry in &client.history {
            for (at, number) in &entry.received {
                let (_, audience) = self.0[&(entry.epoch, *at)];
                assert!(audience & client.names != 0, "{number} was for others");
                received.insert((entry.epoch, *at));
            }
        }
        for (place, (number, audience)) in &self.0 {
            if audience & client.names == 0 || received.contains(place) {
                continue;
            }
            let entry = client.history.iter().find(|entry| entry.epoch == place.0).expect("no gap covers this epoch");
            // Covered by the gap at the start of this epoch, or by the gap at its end.
            let is_covered = place.1 <= entry.begins || entry.epoch != last && place.1 > entry.at;
            assert!(is_covered, "{number} at {place:?} is missing; read up to {} from {}", entry.at, entry.begins);
        }
    }
}

pub async fn soak<G: TestBroker>(mut broker: G, seed: u64, time: Duration, may_lose: bool) {
    let mut random = Rng::with_seed(seed);
    let hubs: Vec<Hub> = (0..INSTANCES).map(|n| instance(broker.log(n))).collect();
    until(|| hubs.iter().all(Hub::is_ready)).await;
    let begin = hubs[0].position();
    let mut hubs = hubs.into_iter().map(Mutex::new);
    let fleet = Arc::new(Fleet {
        hubs: std::array::from_fn(|_| hubs.next().unwrap()),
        over: AtomicBool::new(false),
        epochs: std::array::from_fn(|_| AtomicU64::new(place(begin).0)),
        may_lose,
    });
    let clients: Vec<_> = (0..CLIENTS.len())
        .map(|n| tokio::spawn(Client::new(Arc::clone(&fleet), n, begin).run(random.fork())))
        .collect();
    let publishers: Vec<_> =
        (0..INSTANCES).map(|n| tokio::spawn(publish(Arc::clone(&fleet), n, G::PACE, random.fork()))).collect();

    let (begun, mut faults, mut losses) = (Instant::now(), 0, 0);
    // A client that stops before the last event has failed.
    let has_failed = || clients.iter().any(tokio::task::JoinHandle::is_finished);
    while (begun.elapsed() < time || may_lose && losses < 3) && !has_failed() {
        sleep(millis(&mut random, 50..700)).await;
        faults += 1;
        // Replace an instance, perhaps during the fault.
        let mut replacement_random = random.fork();
        let replacement = (G::CAN_REPLACE_INSTANCES && random.u8(..4) == 0).then(|| {
            let n = replacement_random.usize(..INSTANCES);
            (n, instance(broker.log(n)))
        });
        let replace = async {
            if let Some((n, new)) = replacement {
                sleep(millis(&mut replacement_random, 1..800)).await;
                fleet.replace(n, new, replacement_random.bool()).await;
            }
        };
        let epoch = fleet.epochs[0].load(Ordering::SeqCst);
        let (loses, ()) = tokio::join!(broker.inject_fault(&mut random), replace);
        if loses {
            losses += 1;
            // Wait for every client, so that two losses do not become one gap.
            until(|| fleet.are_past(epoch) || has_failed()).await;
        }
    }
    fleet.over.store(true, Ordering::SeqCst);
    let mut written = Vec::new();
    for publisher in publishers {
        written.push(soon(publisher).await.unwrap());
    }
    let end = || async { fleet.hub(0).everyone().publish(Event::unnamed(END)).await };
    soon(async {
        while end().await.is_err() {
            sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
    let mut ended = Vec::new();
    for client in clients {
        ended.push(soon(client).await.unwrap());
    }
    let ledger = Ledger::new(&written, &ended);
    for client in &ended {
        assert_eq!(client.history.len(), losses + 1, "one gap for each loss");
        ledger.settle(client);
    }
    let acknowledged: usize = written.iter().map(|written| written.acknowledged.len()).sum();
    let unknown: usize = written.iter().map(|written| written.unknown.len()).sum();
    let published: usize = written.iter().map(|written| written.published).sum();
    let entries = || ended.iter().flat_map(|client| &client.history);
    let delivered: usize = entries().map(|entry| entry.received.len()).sum();
    // Each further epoch of a client began with a gap, and there were no other gaps.
    let gaps = entries().count() - ended.len();
    eprintln!(
        "SEED={seed}: {published} published, {acknowledged} acknowledged, {unknown} unknown, {delivered} delivered to \
         {} clients, {gaps} gaps of a new epoch, 0 other gaps, {faults} faults, {losses} losses {}",
        ended.len(),
        broker.describe_faults()
    );
    assert!(acknowledged > G::ACKNOWLEDGED, "too few events were published");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_faults_lose_no_acknowledged_event_and_cause_no_gap() {
    let seed = seed("a faulty memory");
    soak(Faulty::new(seed, 15), seed, seconds(10), false).await;
}

/// The proxies and the broker process fail.
async fn random_faults_of_a_broker_lose_no_acknowledged_event_and_cause_no_gap(broker: impl BrokerServer + Sync) {
    soak(Real::start(broker, true).await, seed("a broker"), seconds(30), false).await;
}

for_each_broker!(
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    random_faults_of_a_broker_lose_no_acknowledged_event_and_cause_no_gap(durable): redis, nats
);

/// The broker restarts empty. Each cursor gets one gap for each loss.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_faults_of_a_redis_without_persistence_are_one_gap_for_each_loss() {
    if let Some(broker) = broker::redis(false) {
        soak(Real::start(broker, false).await, seed("a Redis without persistence"), seconds(10), true).await;
    }
}

/// The connection stays open and delivers nothing.
#[tokio::test]
async fn a_silent_broker_connection_makes_the_instance_unready_and_loses_no_event() {
    let log = FaultyLog::new();
    let hub = instance(log.connect());
    until(|| hub.is_ready()).await;
    let mut stream = hub.subscribe(Subscription::anonymous().topic("t"), hub.position()).unwrap();
    for number in 0..20_u64 {
        let is_mute = number % 5 == 4;
        if is_mute {
            // A stream reports `Stale` after it has reported `Live`.
            while stream.next().now_or_never().is_some() {}
            log.faults().every(Operation::DeliverRecords, Fault::HoldAnswer);
        }
        hub.topic("t").publish(Event::unnamed(number.to_string())).await.unwrap();
        if is_mute {
            until(|| !hub.is_ready()).await;
            // An in-process subscriber receives `Stale` too.
            while soon(stream.next()).await.unwrap() != SubscriberItem::Stale {}
            log.faults().heal();
        }
        loop {
            match soon(stream.next()).await.unwrap() {
                SubscriberItem::Event(event) => break assert_eq!(event.data, number.to_string()),
                SubscriberItem::Live(_) => {}
                other => panic!("{other:?}"),
            }
        }
        until(|| hub.is_ready()).await;
    }
}
