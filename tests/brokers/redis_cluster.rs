//! A log in a Redis Cluster: the contract of the adapter, and instances while the log's slot is
//! moved to another server.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tower_sse::backplane::{Backplane, NewRecord, Redis};
use tower_sse::test_kit::check_backplane;
use tower_sse::{Cursor, Disconnect, Event, Hub, SubscriberItem, Subscription};

use crate::instances::builder;
use crate::kit::broker::{REQUEST_LIMIT, range};
use crate::kit::{soon, until};
use crate::redis_server::{FORGETFUL, RedisCluster, RedisServer};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn adapter_of_a_cluster_keeps_the_contract() {
    let Some(cluster) = RedisCluster::start().await else { return };
    let urls = cluster.create_documented_user();
    // Most namespaces of the contract are in slots of the other servers.
    check_backplane(|name| Redis::cluster([&*urls[0]], name).unwrap().timeout(REQUEST_LIMIT)).await;
}

async fn start(log: Redis) -> Hub {
    let hub = builder().probe_interval(Duration::from_millis(200)).backplane(log).build().unwrap();
    until(|| hub.is_ready()).await;
    hub
}

/// The results of publishes of unique numbers.
#[derive(Default)]
struct Published {
    acknowledged: Vec<u64>,
    unavailable: usize,
}

/// Publishes numbers until 20 of them are acknowledged that were published after the move. No
/// outcome may be unknown, because a server that redirects a command has not carried it out.
async fn publish_until_after(is_moved: Arc<AtomicBool>, hub: Hub) -> Published {
    let (mut published, mut after) = (Published::default(), 0);
    for number in 0.. {
        if after == 20 {
            break;
        }
        let is_after = is_moved.load(Ordering::SeqCst);
        match hub.topic("t").publish(Event::unnamed(number.to_string())).await {
            Ok(_) => {
                published.acknowledged.push(number);
                after += usize::from(is_after);
            }
            Err(error) if error.is_unavailable() && !error.is_unknown() => published.unavailable += 1,
            Err(error) => panic!("{error}: {:?}", std::error::Error::source(&error)),
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    published
}

/// Every key of the log is moved on its own, with a pause, so that for a while each server has some
/// of the keys.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_that_is_moved_under_load_loses_no_event_and_causes_no_gap() {
    let Some(cluster) = RedisCluster::start().await else { return };
    let (slot, from) = cluster.owner("n");
    let to = (from + 1) % 3;
    // The instance knows only a server that never has the slot.
    let log = || Redis::cluster([cluster.url((from + 2) % 3)], "n").unwrap().timeout(REQUEST_LIMIT);
    let (one, two) = (start(log()).await, start(log()).await);
    until(|| one.stats().others == 1 && two.stats().others == 1).await;
    let mut page = two.subscribe(Subscription::for_user("ada").topic("t"), Cursor::Absent).unwrap();
    let is_moved = Arc::new(AtomicBool::new(false));
    let publisher = tokio::spawn(publish_until_after(Arc::clone(&is_moved), one.clone()));
    let pause = || tokio::time::sleep(Duration::from_millis(150));
    pause().await;
    cluster.begin_to_move(&slot, from, to);
    pause().await;
    // The log and its epoch come last, so that readers find them at both servers.
    let mut keys = cluster.keys(&slot, from);
    keys.sort_by_key(|key| key.ends_with(":log") || key.ends_with(":meta"));
    assert!(keys.len() >= 3, "{keys:?}");
    for key in keys {
        cluster.move_key(&key, from, to);
        pause().await;
    }
    // The control stream may have been created again in the meantime.
    for key in cluster.keys(&slot, from) {
        cluster.move_key(&key, from, to);
    }
    pause().await;
    cluster.finish_move(&slot, from, to);
    is_moved.store(true, Ordering::SeqCst);
    let published = soon(publisher).await.unwrap();
    until(|| one.is_ready() && two.is_ready()).await;
    one.topic("t").publish(Event::unnamed("end")).await.unwrap();
    let mut received: HashMap<u64, usize> = HashMap::new();
    loop {
        match soon(page.next()).await.unwrap() {
            SubscriberItem::Event(event) if event.data == "end" => break,
            SubscriberItem::Event(event) => *received.entry(event.data.parse().unwrap()).or_default() += 1,
            SubscriberItem::Gap { reason, .. } => panic!("a gap without loss: {reason}"),
            _ => {}
        }
    }
    assert_eq!(received.len(), published.acknowledged.len());
    assert!(published.acknowledged.iter().all(|number| received.get(number) == Some(&1)));
    // Control messages pass too.
    one.user("ada").disconnect(Disconnect::now()).await.unwrap();
    soon(async { while !matches!(page.next().await, Some(SubscriberItem::End(_)) | None) {} }).await;
    assert_eq!(cluster.owner("n").1, to);
    eprintln!("{} acknowledged, {} unavailable", published.acknowledged.len(), published.unavailable);
}

/// An adapter knows one server, and learns the others. The Redis user has the permissions that the
/// guide lists.
#[tokio::test]
async fn a_command_finds_the_server_that_has_the_slot() {
    let Some(mut cluster) = RedisCluster::start().await else { return };
    let (slot, from) = cluster.owner("n");
    let (to, seed) = ((from + 1) % 3, (from + 2) % 3);
    let urls = cluster.create_documented_user();
    let log = Redis::cluster([&*urls[seed]], "n").unwrap().timeout(Duration::from_millis(1_000));
    let append = async |text: &str| {
        let record = NewRecord::new(Bytes::from(text.to_owned()));
        soon(log.append(vec![record], None)).await.pop().unwrap().unwrap().sequence
    };
    assert_eq!(append("one").await, 1);
    soon(log.put_once("ticket", "ada".into(), Duration::from_secs(60))).await.unwrap();

    // The new owner has the keys and is not the owner yet: `ASK`.
    cluster.begin_to_move(&slot, from, to);
    for key in cluster.keys(&slot, from) {
        cluster.move_key(&key, from, to);
    }
    assert_eq!(soon(log.state(None)).await.unwrap().last, 1);
    assert_eq!(soon(log.take("ticket")).await.unwrap(), Some("ada".into()));
    assert_eq!(range(&log, 0, 10).await.len(), 1);
    // One connection serves all commands of this kind.
    let connections = || {
        let stats = cluster.servers[to].cli(&["INFO", "stats"]);
        let count = stats.lines().find_map(|line| line.strip_prefix("total_connections_received:")).unwrap();
        count.parse::<u64>().unwrap()
    };
    let before = connections();
    for _ in 0..20 {
        soon(log.state(None)).await.unwrap();
    }
    // The second reading of the counter has a connection too.
    assert_eq!(connections() - before, 1);
    // The slot has a new owner: `MOVED`. A batch of several chunks keeps its order.
    cluster.finish_move(&slot, from, to);
    let batch = (0..600).map(|n| NewRecord::new(Bytes::from(n.to_string()))).collect();
    let places: Vec<_> = soon(log.append(batch, None)).await.into_iter().map(|place| place.unwrap().sequence).collect();
    assert_eq!(places, (2..602).collect::<Vec<_>>());

    // An adapter of one server does not follow redirections.
    let error = soon(Redis::new(&cluster.url(seed), "n").unwrap().state(None)).await.unwrap_err();
    assert!(!error.is_rejected() && !error.is_unknown() && error.to_string().contains("Moved"), "{error}");

    // The only server that the application has named ends. Without the setting, the cluster would
    // accept no command without the slots of this server.
    for server in &cluster.servers {
        server.cli(&["CONFIG", "SET", "cluster-require-full-coverage", "no"]);
    }
    cluster.servers[seed].kill();
    // The connections of the adapter end, and the last owner does not accept new ones.
    cluster.begin_to_move(&slot, to, from);
    for key in cluster.keys(&slot, to) {
        cluster.move_key(&key, to, from);
    }
    for server in [from, to] {
        let id = cluster.servers[from].cli(&["CLUSTER", "MYID"]);
        assert_eq!(cluster.servers[server].cli(&["CLUSTER", "SETSLOT", &slot, "NODE", &id]), "OK");
    }
    cluster.servers[to].kill();
    soon(async { while log.state(None).await.is_err() {} }).await;
    // The first append may meet the connection that has ended.
    let record = || vec![NewRecord::new("last".into())];
    soon(async { while log.append(record(), None).await.iter().any(Result::is_err) {} }).await;
    assert_eq!(soon(log.state(None)).await.unwrap().last, 602);
}

#[tokio::test]
async fn a_cluster_needs_an_address_and_the_database_0() {
    assert!(Redis::cluster([""; 0], "n").unwrap_err().is_rejected());
    for url in ["http://s3cret@host", "unix:///tmp/s3cret", "redis://:s3cret@127.0.0.1/1"] {
        let error = Redis::cluster([url], "n").unwrap_err();
        assert!(error.is_rejected() && !format!("{error} {error:?}").contains("s3cret"), "{error}");
    }
    // A server that is in no cluster has every slot.
    let Some(server) = RedisServer::start(FORGETFUL) else { return };
    soon(Redis::cluster([server.url()], "n").unwrap().state(None)).await.unwrap();
    let log = Redis::cluster(["redis://ada:s3cret@127.0.0.1:1"], "n").unwrap();
    let error = soon(log.state(None)).await.unwrap_err();
    assert!(!error.is_unknown() && !error.is_rejected(), "{error}");
    for text in [format!("{error} {error:?}"), log.describe(), format!("{log:?}")] {
        assert!(!text.contains("s3cret"), "{text}");
    }
}
