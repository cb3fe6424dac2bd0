//! A log on the primary that Redis Sentinel names.

use std::time::Duration;

use tower_sse::backplane::{Backplane, NewRecord, Redis};
use tower_sse::test_kit::check_clustered_backplane;
use tower_sse::{Cursor, Event, Hub, Publisher, SubscriberItem, Subscription};

use crate::instances::builder;
use crate::kit::broker::REQUEST_LIMIT;
use crate::kit::failover::{soon, until};
use crate::redis_server::{FORGETFUL, PASSWORD, RedisServer, Replicated, SENTINEL_PASSWORD};

fn servers() -> String {
    format!("redis://:{PASSWORD}@any")
}

/// Publishes an event once. The demoted primary has closed the idle connection of the worker, so
/// the first outcome after a failover is unknown.
async fn publish(worker: &Publisher, text: String) {
    let event = || Event::unnamed(text.clone()).idempotency_key(text.clone());
    soon(async { while worker.topic("t").publish(event()).await.is_err() {} }).await;
}

/// All replicas have acknowledged the records before the failover, so nothing is lost. The Redis
/// users have the permissions that the guide lists.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_of_sentinel_keeps_the_contract_and_a_planned_failover_causes_no_gap() {
    let Some(redis) = Replicated::start().await else { return };
    let (user, sentinels) = redis.create_documented_users();
    let log = |name: &str| Redis::sentinel(sentinels.clone(), "main", &*user, name).unwrap().acknowledged_by(2);
    check_clustered_backplane(|name| log(name).timeout(REQUEST_LIMIT)).await;

    let hub: Hub = builder().probe_interval(Duration::from_millis(200)).backplane(log("n")).build().unwrap();
    until(|| hub.is_ready()).await;
    let worker = builder().backplane(log("n")).publisher().unwrap();
    let mut page = hub.subscribe(Subscription::anonymous().topic("t"), Cursor::Absent).unwrap();
    for failover in 0..2 {
        for number in 0..20 {
            publish(&worker, format!("{failover}.{number}")).await;
        }
        redis.wait_until_connected().await;
        let old = redis.primary();
        redis.fail_over(old).await;
        redis.wait_until_connected().await;
        until(|| hub.is_ready()).await;
    }
    publish(&worker, "end".to_owned()).await;
    let mut received = Vec::new();
    while received.last().is_none_or(|last| last != "end") {
        match soon(page.next()).await.unwrap() {
            SubscriberItem::Event(event) => received.push(event.data),
            SubscriberItem::Gap { reason, .. } => panic!("a gap without loss: {reason}"),
            _ => {}
        }
    }
    assert_eq!(received.len(), 41, "{received:?}");

    // One of the Sentinels is enough, and the others do not exist.
    let mut sentinels = vec!["redis://127.0.0.1:1".to_owned(), "redis://127.0.0.1:2".to_owned()];
    sentinels.push(redis.sentinel_urls()[2].clone());
    soon(Redis::sentinel(sentinels, "main", servers(), "n").unwrap().state(None)).await.unwrap();

    let unknown_name = Redis::sentinel(redis.sentinel_urls(), "other", servers(), "n").unwrap();
    let error = soon(unknown_name.state(None)).await.unwrap_err();
    assert!(!error.is_unknown() && !error.is_rejected() && error.to_string().contains("other"), "{error}");

    let no_password = Redis::sentinel(redis.sentinel_urls(), "main", "redis://any", "n").unwrap();
    let error = soon(no_password.state(None)).await.unwrap_err();
    assert!(error.is_rejected() && error.to_string().contains("NOAUTH"), "{error}");
}

/// One Sentinel is cut off from the others and names the old primary, which still accepts writes.
#[tokio::test]
async fn a_primary_of_an_older_configuration_is_not_used() {
    let Some(old) = RedisServer::start(FORGETFUL) else { return };
    let Some(mut new) = RedisServer::start(FORGETFUL) else { return };
    let sentinel = |primary: &RedisServer, version: u32| {
        let settings =
            format!("sentinel monitor main 127.0.0.1 {} 2\nsentinel config-epoch main {version}", primary.port);
        RedisServer::start_with(|folder| {
            let file = folder.join("sentinel.conf");
            std::fs::write(&file, settings).unwrap();
            vec![file.to_str().unwrap().to_owned(), "--sentinel".to_owned()]
        })
        .unwrap()
    };
    let sentinels = [sentinel(&old, 3), sentinel(&new, 4), sentinel(&new, 4)];
    let log_of = |user: &str| {
        let urls = sentinels.each_ref().map(|sentinel| format!("redis://{user}127.0.0.1:{}", sentinel.port));
        Redis::sentinel(urls, "main", "redis://any", "n").unwrap().timeout(Duration::from_secs(10))
    };
    let append = async |user: &str| {
        let record = NewRecord::new("x".into());
        soon(log_of(user).append(vec![record], None)).await.pop().unwrap().unwrap().sequence
    };
    for expected in 1..=20 {
        assert_eq!(append("").await, expected);
    }

    // The user may not ask for the version of the configuration. More than half of the Sentinels
    // name the new primary.
    for sentinel in &sentinels {
        let user = ["ACL", "SETUSER", "ada", "on", ">secret", "-@all", "+sentinel|get-master-addr-by-name"];
        assert_eq!(sentinel.cli(&user), "OK");
    }
    for expected in 21..=30 {
        assert_eq!(append("ada:secret@").await, expected);
    }
    // The user learns only the version of the old configuration.
    assert_eq!(sentinels[0].cli(&["ACL", "SETUSER", "ada", "+sentinel|master"]), "OK");
    for expected in 31..=40 {
        assert_eq!(append("ada:secret@").await, expected);
    }
    assert_eq!(old.cli(&["DBSIZE"]), "0");

    // The old primary is no substitute for the new one.
    new.kill();
    soon(log_of("").state(None)).await.unwrap_err();
    // If no other Sentinel answers, the answer of one counts.
    let [isolated, mut others @ ..] = sentinels;
    others.iter_mut().for_each(RedisServer::kill);
    let urls = [&isolated, &others[0], &others[1]].map(RedisServer::url);
    let log = Redis::sentinel(urls, "main", "redis://any", "n").unwrap().timeout(Duration::from_secs(10));
    soon(log.state(None)).await.unwrap();
}

#[tokio::test]
async fn errors_and_descriptions_of_sentinel_contain_no_password() {
    let sentinels =
        [format!("redis://:{SENTINEL_PASSWORD}@127.0.0.1:1"), format!("redis://a:{SENTINEL_PASSWORD}@[::1]:1")];
    let log = Redis::sentinel(sentinels, "main", servers(), "n").unwrap();
    let error = soon(log.state(None)).await.unwrap_err();
    assert!(!error.is_unknown() && !error.is_rejected(), "{error}");
    for text in [format!("{error} {error:?}"), log.describe(), format!("{log:?}")] {
        assert!(!text.contains(SENTINEL_PASSWORD) && !text.contains(PASSWORD), "{text}");
    }
    assert!(log.describe().contains("main"), "{}", log.describe());

    let good = ["redis://:s3ntinel@127.0.0.1:1"];
    let wrong = [
        Redis::sentinel([""; 0], "main", servers(), "n"),
        Redis::sentinel(good, "", servers(), "n"),
        Redis::sentinel(["http://:s3ntinel@host"], "main", servers(), "n"),
        Redis::sentinel(["unix:///tmp/s3ntinel"], "main", servers(), "n"),
        Redis::sentinel(good, "main", "http://:s3rver@host", "n"),
    ];
    for error in wrong.map(Result::unwrap_err) {
        let text = format!("{error} {error:?}");
        assert!(error.is_rejected() && !text.contains(SENTINEL_PASSWORD) && !text.contains(PASSWORD), "{text}");
    }
}
