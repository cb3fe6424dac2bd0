//! Random faults with a printed seed: three instances, a publisher on each, and clients that move
//! between them with their cursor. Each client receives every permitted event or a gap, and no
//! other event. `SOAK_SECONDS=3600 SEED=7 cargo test --test brokers soak` runs longer, or repeats a
//! run.

use std::collections::{BTreeMap, HashSet};
use std::error::Error as _;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use fastrand::Rng;
use futures::FutureExt;
use tokio::time::sleep;
use tower_sse::backplane::{Backplane, BackplaneError, Redis};
use tower_sse::test_kit::{Fault, FaultyLog, Operation};
use tower_sse::{
    Cursor, Event, GapReason, Hub, Position, PublishError, Retention, Subscriber, SubscriberItem, Subscription, Target,
};

use crate::faulty::Faulty;
use crate::kit::broker::{self, BrokerServer, for_each_broker, range};
use crate::kit::processes::FAILOVER_PATIENCE;
use crate::kit::{self, eventually, soon, until, within};
use crate::ledger::{Epoch, Ledger, Loss, Totals, Written, place};
use crate::proxy::{Mode, Proxy};
use crate::redis_server::{PASSWORD, Replicated};

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

/// Whether the broker may accept the event later. It has not rejected the event.
pub fn is_temporary(error: &PublishError) -> bool {
    let cause = error.source().and_then(|cause| cause.downcast_ref::<BackplaneError>());
    error.is_unavailable() && cause.is_none_or(|cause| !cause.is_rejected())
}

fn instance(log: impl Backplane) -> Hub {
    let hours = Duration::from_secs(10 * 3_600);
    let much = Retention::replay().count(200_000).bytes(64 << 20).age(hours);
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
    /// The number of acknowledged events below which a run tests too little.
    const EXPECTED: usize = 500;
    /// The time limit of the waits for the broker.
    const PATIENCE: Duration = kit::PATIENCE;

    fn log(&self, instance: usize) -> Self::Log;
    /// Injects one fault, and returns when it is over. Returns whether all records were lost, and
    /// the kind of the fault.
    async fn inject_fault(&mut self, random: &mut Rng) -> (bool, &'static str);
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

    async fn inject_fault(&mut self, random: &mut Rng) -> (bool, &'static str) {
        self.set_away(true);
        sleep(millis(random, 50..300)).await;
        self.set_away(false);
        (false, "interruptions")
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

    async fn inject_fault(&mut self, random: &mut Rng) -> (bool, &'static str) {
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
        (is_killed && !self.durable, if is_killed { "restarts" } else { "network faults" })
    }
}

/// A primary with two replicas and three Sentinels. Publishers wait for both replicas, so that no
/// acknowledged record is lost.
struct FailingOver {
    redis: Replicated,
    failovers: usize,
}

impl TestBroker for FailingOver {
    type Log = Redis;
    const CAN_REPLACE_INSTANCES: bool = true;
    /// After a new epoch every client reads the whole log again, so the log is short.
    const PACE: Duration = Duration::from_millis(60);
    const EXPECTED: usize = 10;
    const PATIENCE: Duration = FAILOVER_PATIENCE;

    fn log(&self, _: usize) -> Redis {
        let servers = format!("redis://:{PASSWORD}@any");
        let log = Redis::sentinel(self.redis.sentinel_urls(), "main", servers, "soak").unwrap();
        log.acknowledged_by(2).timeout(Duration::from_millis(1_000))
    }

    async fn inject_fault(&mut self, random: &mut Rng) -> (bool, &'static str) {
        self.redis.wait_until_connected().await;
        let old = self.redis.primary();
        // The first two failovers are one of each kind.
        self.failovers += 1;
        let is_forced = if self.failovers <= 2 { self.failovers == 1 } else { random.bool() };
        if is_forced {
            self.redis.servers[old].kill();
            self.redis.wait_for_another_primary(old).await;
            sleep(millis(random, 1..500)).await;
            self.redis.servers[old].restart();
        } else {
            self.redis.fail_over(old).await;
        }
        self.redis.wait_until_connected().await;
        (false, if is_forced { "forced failovers" } else { "planned failovers" })
    }
}

/// The state that all tasks of a soak test share.
struct Fleet {
    hubs: [Mutex<Hub>; INSTANCES],
    /// Whether the publishers should stop.
    over: AtomicBool,
    /// The current epoch of each client.
    epochs: [AtomicU64; CLIENTS.len()],
    loss: Loss,
    /// The time limit of the waits for the broker.
    patience: Duration,
    gaps: Mutex<BTreeMap<String, usize>>,
}

impl Fleet {
    fn hub(&self, instance: usize) -> Hub {
        self.hubs[instance].lock().unwrap().clone()
    }

    /// Whether every client has left this epoch and all are in the same one.
    fn are_past(&self, epoch: u64) -> bool {
        self.epochs[0].load(Ordering::SeqCst) != epoch && self.are_together()
    }

    /// Whether all clients and all instances are in the same epoch.
    fn are_together(&self) -> bool {
        let now = self.epochs[0].load(Ordering::SeqCst);
        let mut hubs = (0..INSTANCES).map(|instance| self.hub(instance));
        self.epochs.iter().all(|epoch| epoch.load(Ordering::SeqCst) == now)
            && hubs.all(|hub| hub.is_ready() && place(hub.position()).0 == now)
    }

    /// Replaces an instance, with or without a drain of the old one.
    async fn replace(&self, instance: usize, new: Hub, drains: bool) {
        let old = std::mem::replace(&mut *self.hubs[instance].lock().unwrap(), new);
        if drains {
            soon(old.drain(Duration::ZERO)).await;
        }
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
                Err(error) => {
                    assert!(is_temporary(&error) || error.is_closed(), "{error}: {:?}", error.source());
                    written.failed += 1;
                }
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
                Some(_) => Ok(within(self.fleet.patience, stream.next()).await),
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
                    let may_lose = self.fleet.loss != Loss::Never;
                    assert!(may_lose && reason == GapReason::Epoch, "a gap without loss: {reason}");
                    *self.fleet.gaps.lock().unwrap().entry(reason.to_string()).or_default() += 1;
                    // A second gap is right only if the stream ended and the client reconnected
                    // with the same cursor, or if the new primary has lost records too.
                    let is_second = !is_first && self.gap.is_some();
                    assert!(!is_second || self.fleet.loss == Loss::Newest, "a second gap for one loss");
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

pub async fn soak<G: TestBroker>(mut broker: G, seed: u64, time: Duration, loss: Loss) {
    let mut random = Rng::with_seed(seed);
    let hubs: Vec<Hub> = (0..INSTANCES).map(|n| instance(broker.log(n))).collect();
    within(G::PATIENCE, eventually(|| hubs.iter().all(Hub::is_ready))).await;
    let begin = hubs[0].position();
    let mut hubs = hubs.into_iter().map(Mutex::new);
    let fleet = Arc::new(Fleet {
        hubs: std::array::from_fn(|_| hubs.next().unwrap()),
        over: AtomicBool::new(false),
        epochs: std::array::from_fn(|_| AtomicU64::new(place(begin).0)),
        loss,
        patience: G::PATIENCE,
        gaps: Mutex::default(),
    });
    let clients: Vec<_> = (0..CLIENTS.len())
        .map(|n| tokio::spawn(Client::new(Arc::clone(&fleet), n, begin).run(random.fork())))
        .collect();
    let publishers: Vec<_> =
        (0..INSTANCES).map(|n| tokio::spawn(publish(Arc::clone(&fleet), n, G::PACE, random.fork()))).collect();

    let (begun, mut faults, mut losses) = (Instant::now(), BTreeMap::new(), 0);
    // A client that stops before the last event has failed.
    let has_failed = || clients.iter().any(tokio::task::JoinHandle::is_finished);
    let is_enough = |faults: &BTreeMap<_, usize>, losses| match loss {
        Loss::Never => true,
        Loss::All => losses >= 3,
        Loss::Newest => faults.values().sum::<usize>() >= 2,
    };
    while (begun.elapsed() < time || !is_enough(&faults, losses)) && !has_failed() {
        sleep(millis(&mut random, 50..700)).await;
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
        let ((loses, kind), ()) = tokio::join!(broker.inject_fault(&mut random), replace);
        *faults.entry(kind).or_default() += 1;
        if loses {
            losses += 1;
            // Wait for every client, so that two losses do not become one gap.
            within(G::PATIENCE, eventually(|| fleet.are_past(epoch) || has_failed())).await;
        } else if loss == Loss::Newest {
            within(G::PATIENCE, eventually(|| fleet.are_together() || has_failed())).await;
        }
    }
    fleet.over.store(true, Ordering::SeqCst);
    let mut written = Vec::new();
    for publisher in publishers {
        written.push(within(G::PATIENCE, publisher).await.unwrap());
    }
    let end = || async { fleet.hub(0).everyone().publish(Event::unnamed(END)).await };
    within(G::PATIENCE, async {
        while end().await.is_err() {
            sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
    let mut ended = Vec::new();
    for client in clients {
        ended.push(within(G::PATIENCE, client).await.unwrap());
    }
    let histories: Vec<&[Epoch]> = ended.iter().map(|client| &client.history[..]).collect();
    let last = histories[0].last().unwrap().epoch;
    let log = if loss == Loss::Newest { read_log(&broker.log(0)).await } else { BTreeMap::new() };
    let ledger = Ledger::new(&written, &histories, loss, last, &log);
    for client in &ended {
        assert!(loss == Loss::Newest || client.history.len() == losses + 1, "one gap for each loss");
        ledger.settle(&client.history, client.names);
    }
    let mut totals = Totals::new(seed, &written, &histories);
    totals.faults = faults;
    totals.gaps.clone_from(&fleet.gaps.lock().unwrap());
    if loss == Loss::Newest {
        let present: HashSet<u64> = log.values().copied().collect();
        let acknowledged = written.iter().flat_map(|written| &written.acknowledged);
        totals.lost = Some(acknowledged.filter(|(_, number, _)| !present.contains(number)).count());
        totals.unexplained = ledger.unexplained(&histories);
    }
    eprintln!("{totals}");
    assert_eq!(totals.lost.unwrap_or(0), 0, "acknowledged records were lost");
    assert!(totals.acknowledged > G::EXPECTED, "too few events were published");
}

/// Reads the number of every record of a log, by its position, without the last event.
async fn read_log(log: &impl Backplane) -> BTreeMap<u64, u64> {
    let (mut records, mut after) = (BTreeMap::new(), 0);
    loop {
        let page = range(log, after, 1_000).await;
        let Some(last) = page.last() else { return records };
        after = last.sequence;
        for stored in page {
            let record: serde_json::Value = serde_json::from_slice(&stored.payload).unwrap();
            if let Ok(number) = record["data"].as_str().unwrap().parse() {
                records.insert(stored.sequence, number);
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_faults_lose_no_acknowledged_event_and_cause_no_gap() {
    let seed = seed("a faulty memory");
    soak(Faulty::new(seed, 15), seed, seconds(10), Loss::Never).await;
}

/// The proxies and the broker process fail.
async fn random_faults_of_a_broker_lose_no_acknowledged_event_and_cause_no_gap(broker: impl BrokerServer + Sync) {
    soak(Real::start(broker, true).await, seed("a broker"), seconds(30), Loss::Never).await;
}

for_each_broker!(
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    random_faults_of_a_broker_lose_no_acknowledged_event_and_cause_no_gap(durable): redis, nats, postgres
);

/// The broker restarts empty. Each cursor gets one gap for each loss.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_faults_of_a_redis_without_persistence_are_one_gap_for_each_loss() {
    if let Some(broker) = broker::redis(false) {
        soak(Real::start(broker, false).await, seed("a Redis without persistence"), seconds(10), Loss::All).await;
    }
}

/// Sentinel promotes a replica: on request, or because the primary was killed. A record that a
/// client received and that the replicas did not have is reported by a gap.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failovers_lose_no_event_that_all_replicas_have_acknowledged() {
    if let Some(redis) = Replicated::start().await {
        soak(FailingOver { redis, failovers: 0 }, seed("failovers"), seconds(8), Loss::Newest).await;
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
