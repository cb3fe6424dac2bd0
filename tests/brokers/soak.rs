//! Random faults, by a seed that is printed: clients that move between three instances get everything that was acknowledged,
//! in order, and are told of no gap that is not owed. `SOAK_SECONDS=3600 SEED=7 cargo test --test brokers soak` for longer.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tower_sse::backplane::Backplane;
use tower_sse::{Cursor, Event, Hub, HubStream, Retention, StreamItem, Subscription};

use crate::faulty::Faulty;
use crate::support::until;

fn seconds() -> u64 {
    std::env::var("SOAK_SECONDS").ok().and_then(|seconds| seconds.parse().ok()).unwrap_or(10)
}

fn seed() -> u64 {
    let seed =
        std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(|| fastrand_seed() % 100_000);
    eprintln!("SEED={seed}");
    seed
}

fn fastrand_seed() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    std::collections::hash_map::RandomState::new().build_hasher().finish()
}

fn instance(log: impl Backplane) -> Hub {
    Hub::builder()
        .topic_retention(Retention::replay().count(200_000).bytes(64 << 20))
        .probe_interval(Duration::from_millis(40))
        .publish_timeout(Duration::from_secs(1))
        .backplane(log)
        .build()
        .unwrap()
}

/// One client's ledger.
struct Client {
    cursor: Cursor,
    received: Vec<u64>,
}

impl Client {
    /// Reads from an instance for a while; what came again after a change of instances is counted once.
    async fn read(&mut self, stream: &mut HubStream, time: Duration) {
        let until = tokio::time::Instant::now() + time;
        while let Ok(Some(item)) = tokio::time::timeout_at(until, stream.next()).await {
            match item {
                StreamItem::Event(event) => {
                    self.cursor = Cursor::At(event.position);
                    let number = event.data.parse().unwrap();
                    assert!(
                        self.received.last().is_none_or(|last| *last < number),
                        "{number} after {:?}",
                        self.received.last()
                    );
                    self.received.push(number);
                }
                StreamItem::Live(position) => self.cursor = Cursor::At(position),
                StreamItem::Gap { reason, .. } => panic!("a gap that was not owed: {reason}"),
                _ => {}
            }
        }
    }
}

/// Publishes ascending numbers; a number whose append is not known to have failed is not used again.
async fn publish(hub: &Hub, topic: &str, stop: &AtomicBool) -> (BTreeSet<u64>, BTreeSet<u64>) {
    let (mut acknowledged, mut unknown) = (BTreeSet::new(), BTreeSet::new());
    for number in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        match hub.topic(topic).publish(Event::message(number.to_string())).await {
            Ok(_) => drop(acknowledged.insert(number)),
            Err(error) if error.is_unknown() => drop(unknown.insert(number)),
            Err(error) => assert!(error.is_unavailable()),
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    (acknowledged, unknown)
}

/// A connection on which nothing comes although nothing broke.
#[tokio::test]
async fn a_mute_connection_is_noticed_ready_goes_red_and_nothing_is_lost() {
    let log = Faulty::new(1, 0);
    let hub = instance(log.clone());
    until(|| hub.health().ready).await;
    let mut client = Client { cursor: Cursor::At(hub.position()), received: Vec::new() };
    let mut stream = hub.stream(Subscription::anonymous().topic("t"), client.cursor).unwrap();
    for number in 0..20_u64 {
        log.set_mute(number % 5 == 4);
        hub.topic("t").publish(Event::message(number.to_string())).await.unwrap();
        if number % 5 == 4 {
            until(|| !hub.health().ready).await;
            log.set_mute(false);
        }
        while client.received.last() != Some(&number) {
            client.read(&mut stream, Duration::from_millis(20)).await;
        }
        until(|| hub.health().ready).await;
    }
    assert_eq!(client.received, (0..20).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_faults_lose_nothing_that_was_acknowledged_and_say_no_gap() {
    let seed = seed();
    let log = Faulty::new(seed, 15);
    let hubs: Vec<Hub> = (0..3).map(|_| instance(log.clone())).collect();
    until(|| hubs.iter().all(|hub| hub.health().ready)).await;
    let begin = hubs[0].position();
    let stop = Arc::new(AtomicBool::new(false));
    let publishers: Vec<_> = hubs
        .iter()
        .enumerate()
        .map(|(n, hub)| {
            let (hub, stop) = (hub.clone(), Arc::clone(&stop));
            tokio::spawn(async move { publish(&hub, &format!("t{n}"), &stop).await })
        })
        .collect();
    let clients: Vec<_> = (0..6_u64)
        .map(|n| {
            let (hubs, stop) = (hubs.clone(), Arc::clone(&stop));
            tokio::spawn(async move {
                let mut client = Client { cursor: Cursor::At(begin), received: Vec::new() };
                let topic = format!("t{}", n % 3);
                let mut at = n as usize;
                while !stop.load(Ordering::Relaxed) {
                    at = at.wrapping_mul(5).wrapping_add(3 + n as usize);
                    let hub = &hubs[at % 3];
                    // An instance whose log was not read yet lets nobody in.
                    let Ok(mut stream) = hub.stream(Subscription::anonymous().topic(topic.as_str()), client.cursor)
                    else {
                        continue;
                    };
                    client.read(&mut stream, Duration::from_millis(20 + 37 * (at as u64 % 11))).await;
                }
                (client, topic)
            })
        })
        .collect();
    // Now and then it is away altogether.
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(seconds()) {
        tokio::time::sleep(Duration::from_millis(900)).await;
        log.set_away(true);
        tokio::time::sleep(Duration::from_millis(150)).await;
        log.set_away(false);
    }
    stop.store(true, Ordering::Relaxed);
    let mut published = Vec::new();
    for publisher in publishers {
        published.push(publisher.await.unwrap());
    }
    for client in clients {
        let (mut client, topic) = client.await.unwrap();
        let n: usize = topic[1..].parse().unwrap();
        let (acknowledged, unknown) = &published[n];
        let mut stream = hubs[n].stream(Subscription::anonymous().topic(topic.as_str()), client.cursor).unwrap();
        let begun = Instant::now();
        while client.received.last() < acknowledged.last() {
            assert!(begun.elapsed() < Duration::from_secs(20), "SEED={seed}: it does not arrive");
            client.read(&mut stream, Duration::from_millis(100)).await;
        }
        let received: BTreeSet<u64> = client.received.iter().copied().collect();
        assert!(acknowledged.is_subset(&received), "SEED={seed}: {:?}", acknowledged.difference(&received).next());
        assert!(received.iter().all(|n| acknowledged.contains(n) || unknown.contains(n)), "SEED={seed}");
    }
    let total: usize = published.iter().map(|(acknowledged, _)| acknowledged.len()).sum();
    eprintln!("{total} acknowledged");
    assert!(total > 500, "SEED={seed}: hardly anything was published");
}
