//! A Redis Cluster that promotes a replica by itself, because the primary has died.

use std::time::Duration;

use tokio::time::sleep;
use tower_sse::backplane::Redis;
use tower_sse::{Event, Publisher};

use crate::instances::builder;
use crate::kit::failover::{soon, until};
use crate::proxy::{Mode, Proxy};
use crate::redis_server::RedisCluster;
use crate::rolled_back::{gaps_before, open, read_events};

/// The time after which a server counts as failed.
const NODE_TIMEOUT: Duration = Duration::from_secs(2);

/// Publishes an event once, however many attempts a failover needs.
async fn publish(worker: &Publisher, text: &str) {
    let event = || Event::unnamed(text.to_owned()).idempotency_key(text.to_owned());
    soon(async {
        while worker.topic("t").publish(event()).await.is_err() {
            sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}

/// The first replica that is promoted lacks acknowledged records, and the second one has all of
/// them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failover_inside_a_cluster_is_a_gap_only_if_the_replica_lacks_records() {
    let Some(mut cluster) = RedisCluster::start_with_timeout(NODE_TIMEOUT).await else { return };
    let (_, first) = cluster.owner("n");
    // The replica reaches the primary through a proxy, and the instance reaches it directly.
    let proxy = Proxy::start(cluster.servers[first].port).await;
    cluster.servers[first].cli(&["CONFIG", "SET", "cluster-announce-port", &proxy.port.to_string()]);
    let second = cluster.add_replica(first, NODE_TIMEOUT).await;
    let url = cluster.url(first);
    let log = || Redis::cluster([&*url], "n").unwrap().timeout(Duration::from_millis(1_000));
    let hub = builder().probe_interval(Duration::from_millis(200)).backplane(log()).build().unwrap();
    until(|| hub.is_ready()).await;
    let mut page = open(&hub);
    let worker = builder().backplane(log()).publisher().unwrap();
    for number in 0..10 {
        publish(&worker, &number.to_string()).await;
    }
    cluster.servers[first].wait_for_replica().await;
    proxy.set(Mode::StallsAnswers);
    for number in 10..20 {
        publish(&worker, &number.to_string()).await;
    }
    read_events(&mut page, 20).await;
    cluster.servers[first].kill();
    publish(&worker, "after the loss").await;
    assert_eq!(gaps_before(&mut page, "after the loss").await, ["epoch"]);

    // The old primary returns as a replica. A publish waits for it.
    proxy.set(Mode::Passes);
    cluster.servers[first].restart();
    cluster.wait_for_replica(second, first).await;
    let seeds = [first, second].map(|server| cluster.url(server));
    let worker = Redis::cluster(seeds, "n").unwrap().timeout(Duration::from_millis(1_000)).acknowledged_by(1);
    let worker = builder().backplane(worker).publisher().unwrap();
    for number in 20..40 {
        publish(&worker, &number.to_string()).await;
    }
    cluster.servers[second].kill();
    // No replica is left to acknowledge a record.
    let worker = builder().backplane(log()).publisher().unwrap();
    for number in 40..60 {
        publish(&worker, &number.to_string()).await;
    }
    let mut received = Vec::new();
    for _ in 20..60 {
        received.push(soon(page.next_event()).await.unwrap().data);
    }
    assert_eq!(received, (20..60).map(|number: u32| number.to_string()).collect::<Vec<_>>());
}
