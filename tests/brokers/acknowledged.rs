//! Publishes that wait for replicas of a Redis server: `Redis::acknowledged_by`.

use std::time::Duration;

use bytes::Bytes;
use tower_sse::backplane::{Backplane, NewRecord, Redis};
use tower_sse::{Event, Hub};

use crate::kit::broker::{Broker, REQUEST_LIMIT};
use crate::kit::soon;
use crate::proxy::{Mode, Proxy};
use crate::redis_server::{FORGETFUL, RedisServer};

const LOG: &str = "tower-sse:{n}:log";

fn log_at(port: u16) -> Redis {
    Redis::new(&format!("redis://127.0.0.1:{port}"), "n").unwrap().acknowledged_by(1)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_publish_waits_until_a_replica_has_the_record() {
    let Some(primary) = RedisServer::start(FORGETFUL) else { return };
    let Some(replica) = RedisServer::start(FORGETFUL) else { return };
    let proxy = Proxy::start(primary.port).await;
    replica.follow(&primary, proxy.port).await;
    let publisher = Hub::builder()
        .publish_timeout(Duration::from_secs(60))
        .backplane(log_at(primary.port).timeout(Duration::from_secs(60)))
        .publisher()
        .unwrap();
    for n in 1..=20 {
        publisher.topic("t").publish(Event::unnamed("x")).await.unwrap();
        assert_eq!(replica.cli(&["XLEN", LOG]), n.to_string());
    }
    proxy.set(Mode::StallsAnswers);
    let mut publish = std::pin::pin!(publisher.topic("t").publish(Event::unnamed("x")));
    let early = tokio::time::timeout(Duration::from_millis(300), &mut publish).await;
    assert!(early.is_err(), "{early:?}");
    assert_eq!([primary.cli(&["XLEN", LOG]), replica.cli(&["XLEN", LOG])], ["21", "20"]);
    proxy.set(Mode::Passes);
    soon(publish).await.unwrap();
    assert_eq!(replica.cli(&["XLEN", LOG]), "21");
}

#[tokio::test]
async fn a_publish_that_waits_for_a_replica_fails_when_there_is_none() {
    let Some(server) = RedisServer::start(FORGETFUL) else { return };
    // Half of the timeout is for the server's answer. A busy machine needs that much.
    let log = log_at(server.port).timeout(Duration::from_secs(4));
    let record = NewRecord::new(Bytes::from_static(b"x"));
    let error = soon(log.append(vec![record], None)).await.pop().unwrap().unwrap_err();
    assert!(error.is_unknown(), "{error}");
    assert!(error.to_string().ends_with("0 of 1 replicas acknowledged the records in time"), "{error}");
    // The primary has stored the record, so the outcome is unknown.
    assert_eq!(server.cli(&["XLEN", LOG]), "1");
    let publisher = Hub::builder().backplane(log).publisher().unwrap();
    let error = soon(publisher.topic("t").publish(Event::unnamed("x"))).await.unwrap_err();
    assert!(error.is_unknown(), "{error}");
}

/// The Redis user has every permission except that for `WAIT`.
#[tokio::test]
async fn a_publish_whose_wait_is_rejected_has_an_unknown_outcome() {
    let Some(server) = RedisServer::start(FORGETFUL) else { return };
    server.cli(&["ACL", "SETUSER", "writer", "on", ">secret", "~*", "&*", "+@all", "-wait"]);
    let log = Redis::new(&format!("redis://writer:secret@127.0.0.1:{}", server.port), "n")
        .unwrap()
        .timeout(REQUEST_LIMIT)
        .acknowledged_by(1);
    let record = NewRecord::new(Bytes::from_static(b"x"));
    let error = soon(log.append(vec![record], None)).await.pop().unwrap().unwrap_err();
    assert!(error.is_unknown() && !error.to_string().contains("secret"), "{error}");
    assert_eq!(server.cli(&["XLEN", LOG]), "1");
}

/// The server rejects the record before it stores it, so the outcome is known.
#[tokio::test]
async fn a_publish_to_a_primary_with_fewer_replicas_than_it_requires_is_unavailable() {
    let Some(server) = RedisServer::start(&["--save", "", "--min-replicas-to-write", "1"]) else { return };
    let log = server.log("n");
    let record = NewRecord::new(Bytes::from_static(b"x"));
    let error = soon(log.append(vec![record], None)).await.pop().unwrap().unwrap_err();
    assert!(!error.is_unknown() && !error.is_rejected() && error.to_string().contains("NOREPLICAS"), "{error}");
    assert_eq!(server.cli(&["EXISTS", LOG]), "0");
}
