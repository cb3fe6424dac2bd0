//! Three NATS servers with three replicas of each stream.
//!
//! The server of a distribution may be too old for a cluster. `tests/run nats` runs these tests
//! with a current server. A soak of any length, with its ledger on standard error:
//! `TOWER_SSE_NATS_SERVER=target/nats/bin/nats-server SOAK_SECONDS=600 cargo test --test brokers
//! nats_cluster -- --nocapture`.

use std::time::Duration;

use fastrand::Rng;
use tokio::time::sleep;
use tower_sse::backplane::{Backplane, LogPosition, LogState, Nats, NewRecord};
use tower_sse::test_kit::check_clustered_backplane;
use tower_sse::{Cursor, Event, Hub, Subscriber, SubscriberItem, Subscription};

use crate::instances::builder;
use crate::kit::broker::REQUEST_LIMIT;
use crate::kit::failover::{soon, until};
use crate::kit::nats_cluster::NatsCluster;
use crate::kit::processes::FAILOVER_PATIENCE;
use crate::ledger::Loss;
use crate::nats_access::use_everything;
use crate::proxy::{Mode, Proxy};
use crate::soak::{TestBroker, is_temporary, millis, seconds, seed, soak};

const LOG: &str = "tower-sse-log_n";

/// The streams of a namespace that needs no encoding.
fn streams(namespace: &str) -> [String; 7] {
    [
        "tower-sse-log",
        "tower-sse-values",
        "tower-sse-control",
        "tower-sse-shared",
        "tower-sse-deposits",
        "tower-sse-journals",
        "KV_tower-sse",
    ]
    .map(|name| format!("{name}_{namespace}"))
}

fn record(text: &str) -> NewRecord {
    NewRecord::new(text.to_owned().into())
}

async fn append(log: &Nats, texts: impl IntoIterator<Item = String>) -> Vec<LogPosition> {
    let records = texts.into_iter().map(|text| record(&text)).collect();
    soon(log.append(records, None)).await.into_iter().map(Result::unwrap).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_stream_gets_the_required_replicas_and_keeps_them() {
    let Some(cluster) = NatsCluster::start().await else { return };
    let replicas = async || {
        let mut replicas = Vec::new();
        for stream in streams("r") {
            let request = format!("STREAM.INFO.{stream}");
            let number = async {
                loop {
                    // There is no answer while the stream has no leader.
                    let info = cluster.servers[0].try_api(&request).await.unwrap_or_default();
                    if let Some(number) = info["config"]["num_replicas"].as_u64() {
                        return number;
                    }
                    sleep(Duration::from_millis(20)).await;
                }
            };
            replicas.push(soon(number).await);
        }
        replicas
    };
    let one = Nats::new(&cluster.url(), "r").unwrap().timeout(REQUEST_LIMIT);
    let position = append(&one, ["1".to_owned()]).await[0];
    assert_eq!(replicas().await, [1; 7]);
    let three = Nats::new(&cluster.url(), "r").unwrap().replicas(3).unwrap().timeout(Duration::from_secs(4));
    // Until the new replicas are ready, the streams may have no leader.
    let state = available_state(&three, None).await;
    assert_eq!((state.epoch, state.last), (position.epoch, 1));
    assert_eq!(replicas().await, [3; 7]);
    let errors = use_everything(&three, Duration::from_secs(10)).await;
    assert!(errors.is_empty(), "{errors:?}");
    // An adapter with fewer replicas lowers nothing.
    available_state(&Nats::new(&cluster.url(), "r").unwrap(), None).await;
    assert_eq!(replicas().await, [3; 7]);
}

/// Creates 217 streams with three replicas, which takes one or two minutes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn adapter_of_a_cluster_keeps_the_contract() {
    let Some(cluster) = NatsCluster::start().await else { return };
    let url = cluster.url();
    // The adapter needs up to four times its time limit to open a log.
    let limit = Duration::from_secs(3);
    check_clustered_backplane(|name| Nats::new(&url, name).unwrap().replicas(3).unwrap().timeout(limit)).await;
}

/// The faults of three servers. Never more than one server is away.
struct Cluster {
    cluster: NatsCluster,
    /// How often each server was killed.
    kills: [u32; 3],
}

impl TestBroker for Cluster {
    type Log = Nats;
    const CAN_REPLACE_INSTANCES: bool = true;
    const PACE: Duration = Duration::from_millis(3);
    /// Publishing fails while the servers elect a leader, which takes some seconds.
    const EXPECTED: usize = 200;
    const PATIENCE: Duration = FAILOVER_PATIENCE;

    fn log(&self, _: usize) -> Nats {
        Nats::new(&self.cluster.url(), "n").unwrap().replicas(3).unwrap().timeout(Duration::from_secs(1))
    }

    /// Kills the server that was killed least often.
    async fn inject_fault(&mut self, random: &mut Rng) -> (bool, &'static str) {
        let least = self.kills.iter().min().copied();
        let server = (0..3).filter(|&server| Some(self.kills[server]) == least).min().unwrap_or(0);
        self.kills[server] += 1;
        self.cluster.servers[server].kill();
        sleep(millis(random, 20..1_500)).await;
        self.cluster.servers[server].restart();
        let alive = (server + 1) % 3;
        self.cluster.wait_until_current_at(LOG, alive).await;
        sleep(millis(random, 1..1_000)).await;
        (false, ["kills of the first server", "kills of the second server", "kills of the third server"][server])
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kills_of_each_server_under_load_lose_no_acknowledged_event_and_cause_no_gap() {
    let Some(cluster) = NatsCluster::start().await else { return };
    available_state(&Nats::new(&cluster.url(), "n").unwrap().replicas(3).unwrap(), None).await;
    soak(Cluster { cluster, kills: [0; 3] }, seed("three NATS servers"), seconds(15), Loss::Never).await;
}

/// A leader that is cut off from the other servers answers its clients until it steps down. An
/// instance that has seen more records then begins no epoch and reports no gap.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_is_cut_off_proves_no_loss_and_its_clients_miss_nothing_afterwards() {
    for _ in 0..3 {
        let Some(cluster) = NatsCluster::start().await else { return };
        if a_leader_is_cut_off(&cluster).await {
            return;
        }
    }
    panic!("three times, the leader had stepped down before it was asked");
}

/// Returns false if the others needed several elections, so that the leader has stepped down before
/// it was asked.
async fn a_leader_is_cut_off(cluster: &NatsCluster) -> bool {
    let log = Nats::new(&cluster.url(), "n").unwrap().replicas(3).unwrap().timeout(REQUEST_LIMIT);
    let first = append(&log, (0..50).map(|n| n.to_string())).await[49];
    let leader = cluster.leader(LOG).await;
    let other = (leader + 1) % 3;
    cluster.wait_until_current(LOG).await;

    // One instance stays connected to the leader. The other one moves there later.
    let [proxy, moving] =
        [Proxy::start(cluster.servers[leader].port).await, Proxy::start(cluster.servers[other].port).await];
    let hub_at = |port: u16| {
        let log = Nats::new(&format!("nats://127.0.0.1:{port}"), "n").unwrap().replicas(3).unwrap();
        builder().backplane(log.timeout(Duration::from_millis(500))).build().unwrap()
    };
    let hubs = [hub_at(proxy.port), hub_at(moving.port)];
    let majority = hub_at(cluster.servers[other].port);
    until(|| majority.is_ready() && hubs.iter().all(Hub::is_ready)).await;
    let mut pages: Vec<_> =
        hubs.iter().map(|hub| hub.subscribe(Subscription::anonymous().topic("t"), Cursor::Absent).unwrap()).collect();

    cluster.cut_off(leader, true);
    // The others elect a leader and acknowledge events, which the old leader does not have.
    let mut acknowledged = Vec::new();
    soon(publish(&majority, 1, &mut acknowledged)).await;
    until(|| number(&majority) > first.sequence).await;
    // The old leader still answers, with a number that is too low. It steps down soon, so ask now.
    let newest = number(&majority);
    let info = cluster.servers[leader].try_api(&format!("STREAM.INFO.{LOG}")).await;
    let described = info.and_then(|info| info["state"]["last_seq"].as_u64());
    let Some(described) = described else { return false };
    assert!(described < newest, "the leader that is cut off answered {described}");
    soon(publish(&majority, 99, &mut acknowledged)).await;
    until(|| hubs[1].position() == majority.position()).await;
    let seen = LogPosition::new(first.epoch, number(&majority));
    moving.set(Mode::Resets);
    until(|| !hubs[1].is_ready()).await;
    moving.set_target(cluster.servers[leader].port);
    moving.set(Mode::Passes);

    let old = Nats::new(&cluster.servers[leader].url(), "n").unwrap().replicas(3).unwrap();
    for _ in 0..3 {
        let error = old.clone().timeout(Duration::from_millis(300)).state(Some(seen)).await.unwrap_err();
        assert!(!error.is_rejected(), "{error}");
    }
    assert!(!hubs[0].is_ready() || number(&hubs[0]) < seen.sequence);
    let refused = hubs[0].topic("t").publish(Event::unnamed("cut off")).await.unwrap_err();
    assert!(is_temporary(&refused), "{refused}");

    cluster.cut_off(leader, false);
    cluster.wait_until_current(LOG).await;
    until(|| hubs.iter().all(Hub::is_ready)).await;
    soon(publish_end(&majority)).await;
    for page in &mut pages {
        assert_delivered(page, &acknowledged).await;
    }
    assert_eq!(available_state(&old, Some(seen)).await.epoch, first.epoch);
    true
}

/// The machine of the leader is lost with its disk. An empty machine replaces it, and a majority
/// depends on this machine when a second one is lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn machines_that_are_lost_one_after_the_other_lose_no_acknowledged_event_and_cause_no_gap() {
    let Some(mut cluster) = NatsCluster::start().await else { return };
    let log = Nats::new(&cluster.url(), "n").unwrap().replicas(3).unwrap();
    let hub = builder().backplane(log.timeout(Duration::from_secs(1))).build().unwrap();
    until(|| hub.is_ready()).await;
    let mut page = hub.subscribe(Subscription::anonymous().topic("t"), Cursor::Absent).unwrap();
    let mut acknowledged = Vec::new();
    soon(publish(&hub, 50, &mut acknowledged)).await;
    let lose = async |cluster: &mut NatsCluster| {
        let lost = cluster.leader(LOG).await;
        cluster.servers[lost].kill();
        cluster.servers[lost].delete_data();
        lost
    };
    let lost = lose(&mut cluster).await;
    // From the first of these events on, both other servers have all acknowledged events.
    soon(publish(&hub, 50, &mut acknowledged)).await;
    cluster.servers[lost].restart();
    for stream in streams("n") {
        cluster.wait_until_current_at(&stream, (lost + 1) % 3).await;
    }
    soon(publish(&hub, 50, &mut acknowledged)).await;
    lose(&mut cluster).await;
    soon(publish(&hub, 50, &mut acknowledged)).await;
    soon(publish_end(&hub)).await;
    assert_delivered(&mut page, &acknowledged).await;
}

/// Reads up to the event `end`. Checks that the page receives every acknowledged event in order,
/// and no gap.
async fn assert_delivered(page: &mut Subscriber, acknowledged: &[String]) {
    let mut received = Vec::new();
    loop {
        match soon(page.next()).await.unwrap() {
            SubscriberItem::Event(event) if event.data == "end" => break,
            SubscriberItem::Event(event) => received.push(event.data.to_string()),
            SubscriberItem::Gap { reason, .. } => panic!("a gap without loss: {reason}"),
            _ => {}
        }
    }
    received.retain(|text| acknowledged.contains(text));
    assert_eq!(received, acknowledged);
}

/// Publishes events until `count` more are acknowledged. Each failure must be temporary.
async fn publish(hub: &Hub, count: usize, acknowledged: &mut Vec<String>) {
    let wanted = acknowledged.len() + count;
    while acknowledged.len() < wanted {
        let text = fastrand::u64(..).to_string();
        match hub.topic("t").publish(Event::unnamed(text.clone())).await {
            Ok(_) => acknowledged.push(text),
            Err(error) => assert!(is_temporary(&error), "{error}"),
        }
    }
}

/// Publishes the event `end` until it is acknowledged.
async fn publish_end(hub: &Hub) {
    while hub.topic("t").publish(Event::unnamed("end")).await.is_err() {}
}

/// Returns the state of the log when every stream has a leader.
async fn available_state(log: &Nats, seen: Option<LogPosition>) -> LogState {
    soon(async {
        loop {
            match log.state(seen).await {
                Ok(state) => return state,
                Err(error) => assert!(!error.is_rejected(), "{error}"),
            }
        }
    })
    .await
}

fn number(hub: &Hub) -> u64 {
    hub.position().to_string().rsplit('.').next().unwrap().parse().unwrap()
}
