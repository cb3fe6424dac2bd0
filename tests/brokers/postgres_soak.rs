//! Publishing in transactions under faults: writers with random pauses and rollbacks, instances that
//! are replaced, a server that is killed, and clients that resume at any instance.
//!
//! `SOAK_SECONDS` sets the time and `SEED` the random numbers. The random pauses are part of the load
//! and of the faults.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use fastrand::Rng;
use tokio::time::{sleep, timeout};
use tokio_postgres::{Client, NoTls};
use tower_sse::backplane::{LogLimits, Postgres, Stored};
use tower_sse::{Cursor, Hub, Position, Retention, Subscriber, SubscriberItem, Subscription};

use crate::kit::broker::{Broker, range};
use crate::kit::postgres::PostgresServer;
use crate::kit::{soon, until};
use crate::ledger::{LogPosition, place};
use crate::soak::{millis, seconds, seed};

const INSTANCES: usize = 3;
const WRITERS: usize = 32;
const CLIENTS: usize = 6;
const TOPICS: [&str; 3] = ["a", "b", "c"];
/// The data of the last event of each topic.
const END: &str = "end";

/// What became of the records of all writers. A record is the number of its writer and its own
/// number.
#[derive(Default)]
struct Written {
    committed: HashMap<String, &'static str>,
    rolled_back: HashSet<String>,
    /// The connection broke during the commit.
    unknown: HashMap<String, &'static str>,
}

struct Fleet {
    url: String,
    log: Postgres,
    hubs: [Mutex<Hub>; INSTANCES],
    over: AtomicBool,
    resumed: AtomicUsize,
}

impl Fleet {
    fn hub(&self, instance: usize) -> Hub {
        self.hubs[instance].lock().unwrap().clone()
    }

    fn is_over(&self) -> bool {
        self.over.load(Ordering::SeqCst)
    }
}

fn instance(log: Postgres) -> Hub {
    let much = Retention::replay().count(1_000_000).bytes(256 << 20).age(Duration::from_secs(36_000));
    Hub::builder().topic_retention(much).probe_interval(Duration::from_millis(100)).backplane(log).build().unwrap()
}

async fn connect(fleet: &Fleet) -> Option<Client> {
    let connect = timeout(Duration::from_secs(2), tokio_postgres::connect(&fleet.url, NoTls)).await;
    let (client, connection) = connect.ok()?.ok()?;
    tokio::spawn(connection);
    Some(client)
}

/// One transaction: some records, with pauses, and then a commit or a rollback. Returns `None` if
/// the connection broke during the commit.
async fn transaction(
    client: &mut Client,
    records: &[(String, &'static str)],
    random: &mut Rng,
) -> Result<Option<bool>, tokio_postgres::Error> {
    let isolation = ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"][random.usize(..3)];
    client.batch_execute(&format!("BEGIN ISOLATION LEVEL {isolation}")).await?;
    for (record, topic) in records {
        let sql = "SELECT tower_sse.publish('0', data => $1, topic => $2)";
        client
            .query_typed(
                sql,
                &[(record, tokio_postgres::types::Type::TEXT), (topic, tokio_postgres::types::Type::TEXT)],
            )
            .await?;
        if random.u8(..3) == 0 {
            sleep(millis(random, 0..60)).await;
        }
    }
    if random.u8(..4) == 0 {
        client.batch_execute("ROLLBACK").await?;
        return Ok(Some(false));
    }
    // The server may commit although the connection breaks.
    Ok(client.batch_execute("COMMIT").await.is_ok().then_some(true))
}

async fn write(fleet: Arc<Fleet>, writer: usize, mut random: Rng) -> Written {
    let mut written = Written::default();
    let (mut client, mut next) = (None, 0);
    let wakes = writer.is_multiple_of(2);
    while !fleet.is_over() {
        let Some(connected) = &mut client else {
            client = connect(&fleet).await;
            // The server refuses connections until it runs again.
            sleep(Duration::from_millis(20)).await;
            continue;
        };
        let count = random.u32(1..4);
        let records: Vec<(String, &'static str)> = (next..next + count)
            .map(|number| (format!("{writer} {number}"), TOPICS[random.usize(..TOPICS.len())]))
            .collect();
        next += count;
        match timeout(Duration::from_secs(20), transaction(connected, &records, &mut random)).await {
            Ok(Ok(Some(true))) => {
                written.committed.extend(records);
                if wakes {
                    fleet.log.wake();
                }
            }
            Ok(Ok(None)) => {
                written.unknown.extend(records);
                client = None;
            }
            Ok(Ok(Some(false)) | Err(_)) => {
                written.rolled_back.extend(records.into_iter().map(|(record, _)| record));
                client = client.take_if(|client| !client.is_closed());
            }
            Err(_) => panic!("a transaction of writer {writer} does not end"),
        }
        sleep(millis(&mut random, 0..40)).await;
    }
    written
}

/// A client, and the events that it received, with their positions.
struct Page {
    fleet: Arc<Fleet>,
    topics: Vec<&'static str>,
    cursor: Cursor,
    received: Vec<(LogPosition, String)>,
    ended: HashSet<&'static str>,
}

impl Page {
    async fn read(&mut self, stream: &mut Subscriber, time: Duration) {
        let until = tokio::time::Instant::now() + time;
        while let Ok(Some(item)) = tokio::time::timeout_at(until, stream.next()).await {
            match item {
                SubscriberItem::Event(event) => {
                    self.cursor = Cursor::At(event.position);
                    match event.data.strip_prefix("end ") {
                        Some(topic) => self.ended.extend(TOPICS.iter().find(|name| **name == topic)),
                        None => self.received.push((place(event.position), event.data.clone())),
                    }
                }
                SubscriberItem::Live(position) => self.cursor = Cursor::At(position),
                SubscriberItem::Gap { reason, .. } => panic!("a gap without loss: {reason}"),
                _ => {}
            }
        }
    }

    async fn run(mut self, mut random: Rng) -> Self {
        while self.ended.len() < self.topics.len() {
            let hub = self.fleet.hub(random.usize(..INSTANCES));
            let subscription = self.topics.iter().fold(Subscription::anonymous(), |all, topic| all.topic(*topic));
            // An instance that is not ready refuses clients.
            let Ok(mut stream) = hub.subscribe(subscription, self.cursor) else {
                sleep(Duration::from_millis(5)).await;
                continue;
            };
            drop(hub);
            self.read(&mut stream, millis(&mut random, 20..600)).await;
            self.fleet.resumed.fetch_add(1, Ordering::Relaxed);
        }
        self
    }
}

/// Injects one fault. Returns its kind.
async fn inject_fault(server: &mut PostgresServer, fleet: &Fleet, random: &mut Rng) -> &'static str {
    match random.u8(..6) {
        0 => {
            server.kill();
            sleep(millis(random, 0..600)).await;
            server.restart();
            "killed"
        }
        1 => {
            server.pause();
            sleep(millis(random, 10..1_500)).await;
            server.resume();
            "paused"
        }
        2 => {
            let others = "pid <> pg_backend_pid() AND backend_type = 'client backend'";
            server.psql(&format!(
                "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE {others} AND random() < 0.4"
            ));
            "disconnected"
        }
        3 => {
            let instance = random.usize(..INSTANCES);
            let new = self::instance(fleet.log.clone());
            sleep(millis(random, 1..400)).await;
            let old = std::mem::replace(&mut *fleet.hubs[instance].lock().unwrap(), new);
            if random.bool() {
                old.drain(Duration::ZERO).await;
            }
            "replaced instance"
        }
        4 => {
            // Somebody else's transaction, which has an id and a snapshot.
            let Some(client) = connect(fleet).await else { return "no connection" };
            let begin = "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT pg_current_xact_id(), count(*) FROM pg_class";
            if client.batch_execute(begin).await.is_ok() {
                sleep(millis(random, 100..1_500)).await;
            }
            "idle transaction"
        }
        _ => {
            sleep(millis(random, 0..300)).await;
            "none"
        }
    }
}

/// The figures of a run.
struct Totals {
    seed: u64,
    seconds: u64,
    committed: usize,
    rolled_back: usize,
    unknown: (usize, usize),
    received: usize,
    resumed: usize,
    faults: BTreeMap<&'static str, usize>,
}

impl fmt::Display for Totals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seed, seconds, committed, rolled_back, unknown, received, resumed, faults } = self;
        write!(
            f,
            "SEED={seed}, {seconds} s: {committed} committed, {rolled_back} rolled back, {} unknown ({} of them committed), \
             {received} received, {resumed} streams, 0 missing, 0 repeated, 0 of a rolled back transaction; faults: {faults:?}",
            unknown.0, unknown.1
        )
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_committed_event_arrives_once_and_no_event_of_a_rolled_back_transaction() {
    let Some(mut server) = PostgresServer::start(&["max_connections=120", "max_pred_locks_per_transaction=256"]) else {
        return;
    };
    let seed = seed("transactions");
    let mut random = Rng::with_seed(seed);
    let much = LogLimits::new().max_records(10_000_000).max_bytes(8 << 30).max_age(Duration::from_secs(36_000));
    let log = Broker::log(&server, "0").limits(much);
    let hubs: Vec<Hub> = (0..INSTANCES).map(|_| instance(log.clone())).collect();
    until(|| hubs.iter().all(Hub::is_ready)).await;
    let begin: Position = hubs[0].position();
    let mut hubs = hubs.into_iter().map(Mutex::new);
    let fleet = Arc::new(Fleet {
        url: server.url(),
        log,
        hubs: std::array::from_fn(|_| hubs.next().unwrap()),
        over: AtomicBool::new(false),
        resumed: AtomicUsize::new(0),
    });
    let pages: Vec<_> = (0..CLIENTS)
        .map(|number| {
            let topics = if number % 2 == 0 { TOPICS.to_vec() } else { vec![TOPICS[number / 2]] };
            let page = Page {
                fleet: Arc::clone(&fleet),
                topics,
                cursor: Cursor::At(begin),
                received: Vec::new(),
                ended: HashSet::new(),
            };
            tokio::spawn(page.run(random.fork()))
        })
        .collect();
    let writers: Vec<_> =
        (0..WRITERS).map(|writer| tokio::spawn(write(Arc::clone(&fleet), writer, random.fork()))).collect();

    let (begun, time, mut faults) = (Instant::now(), seconds(10), BTreeMap::new());
    while begun.elapsed() < time && !pages.iter().any(tokio::task::JoinHandle::is_finished) {
        sleep(millis(&mut random, 50..700)).await;
        *faults.entry(inject_fault(&mut server, &fleet, &mut random).await).or_default() += 1;
    }
    fleet.over.store(true, Ordering::SeqCst);
    let mut written = Written::default();
    for writer in writers {
        let of_writer = soon(writer).await.unwrap();
        written.committed.extend(of_writer.committed);
        written.rolled_back.extend(of_writer.rolled_back);
        written.unknown.extend(of_writer.unknown);
    }
    for topic in TOPICS {
        server.psql(&format!("SELECT tower_sse.publish('0', data => '{END} {topic}', topic => '{topic}')"));
    }
    let mut ended = Vec::new();
    for page in pages {
        ended.push(soon(page).await.unwrap());
    }

    // The log: contiguous numbers, every committed record once, and the records of each writer in
    // their order.
    let mut stored: Vec<Stored> = Vec::new();
    loop {
        let page = range(&fleet.log, stored.len() as u64, 5_000).await;
        if page.is_empty() {
            break;
        }
        stored.extend(page);
    }
    let mut in_log: BTreeMap<u64, (String, String)> = BTreeMap::new();
    for (number, stored) in (1..).zip(&stored) {
        assert_eq!(stored.sequence, number, "a hole");
        let record: serde_json::Value = serde_json::from_slice(&stored.payload).unwrap();
        let topic = record["to"]["topics"][0].as_str().unwrap().to_owned();
        in_log.insert(number, (record["data"].as_str().unwrap().to_owned(), topic));
    }
    let mut newest: HashMap<&str, u32> = HashMap::new();
    let mut found = HashMap::new();
    for (number, (record, topic)) in &in_log {
        if record.starts_with(END) {
            continue;
        }
        assert!(found.insert(record.as_str(), *number).is_none(), "{record} twice");
        assert!(!written.rolled_back.contains(record), "{record} of a rolled back transaction");
        let expected = written.committed.get(record).or_else(|| written.unknown.get(record));
        assert_eq!(expected, Some(&topic.as_str()), "{record}");
        let (writer, own) = record.split_once(' ').unwrap();
        let own: u32 = own.parse().unwrap();
        assert!(newest.insert(writer, own).is_none_or(|before| before < own), "{record} out of order");
    }
    for record in written.committed.keys() {
        assert!(found.contains_key(record.as_str()), "{record} was committed and is not in the log");
    }
    // The pages: exactly the records of their topics, in the order of the log.
    for page in &ended {
        let expected: Vec<(u64, &str)> = in_log
            .iter()
            .filter(|(_, (record, topic))| page.topics.contains(&topic.as_str()) && !record.starts_with(END))
            .map(|(number, (record, _))| (*number, record.as_str()))
            .collect();
        let received: Vec<(u64, &str)> =
            page.received.iter().map(|((_, number), record)| (*number, record.as_str())).collect();
        assert_eq!(received, expected, "{:?}", page.topics);
    }
    let totals = Totals {
        seed,
        seconds: begun.elapsed().as_secs(),
        committed: written.committed.len(),
        rolled_back: written.rolled_back.len(),
        unknown: (
            written.unknown.len(),
            written.unknown.keys().filter(|record| found.contains_key(record.as_str())).count(),
        ),
        received: ended.iter().map(|page| page.received.len()).sum(),
        resumed: fleet.resumed.load(Ordering::Relaxed),
        faults,
    };
    eprintln!("{totals}");
    assert!(written.committed.len() > 500, "too few transactions were committed");
}
