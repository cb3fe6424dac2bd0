//! Behavior that is specific to Redis: connections, limits, and the data on the server.

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::StreamExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tower_sse::backplane::{Backplane, LogLimits, NewRecord, Redis};
use tower_sse::{Event, Hub};

use crate::instances::builder;
use crate::kit::{soon, until};
use crate::proxy::{Mode, Proxy};
use crate::redis_server::{FORGETFUL, RedisServer};

fn log_at(port: u16) -> Redis {
    Redis::new(&format!("redis://127.0.0.1:{port}"), "n").unwrap()
}

/// The server accepts connections and never answers. All callers share one attempt to connect.
#[tokio::test]
async fn callers_share_one_attempt_to_connect_to_a_server_that_does_not_answer() {
    let mute = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let log = log_at(mute.local_addr().unwrap().port()).timeout(Duration::from_millis(300));
    let begun = Instant::now();
    let requests = (0..40).map(|_| log.state(None));
    let answers = soon(futures::future::join_all(requests)).await;
    assert!(answers.iter().all(Result::is_err));
    // One attempt for each caller would take twelve seconds in all.
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
}

/// The instance sends a large batch over a slow network, and continues to query the state of the
/// log.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_batch_does_not_keep_an_instance_from_being_ready() {
    let Some(server) = RedisServer::start(FORGETFUL) else { return };
    // The instance sends the batch and reads the log over the same slow network.
    let proxy = Proxy::start(server.port).await;
    let log = log_at(proxy.port).timeout(Duration::from_secs(15));
    let builder = builder().probe_interval(Duration::from_millis(500)).publish_timeout(Duration::from_secs(15));
    let hub: Hub = builder.backplane(log).build().unwrap();
    until(|| hub.is_ready()).await;
    proxy.set(Mode::Delays(Duration::from_millis(8)));
    let large = "x".repeat(32 << 10);
    let batch: Vec<_> = (0..256).map(|_| (hub.topic("t"), Event::unnamed(large.clone()))).collect();
    let begun = Instant::now();
    let watched = async {
        loop {
            assert!(hub.is_ready(), "not ready while a batch is sent");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let published = tokio::select! {
        published = soon(hub.publish_many(batch)) => published,
        () = watched => Vec::new(),
    };
    assert!(published.iter().all(Result::is_ok));
    assert!(
        begun.elapsed() > Duration::from_millis(1_500),
        "the batch was too fast for this test: {:?}",
        begun.elapsed()
    );
}

/// Control messages contain user ids, so old messages are trimmed, and the last ones expire when
/// all instances have ended.
#[tokio::test]
async fn control_messages_do_not_stay_on_the_server() {
    let Some(server) = RedisServer::start(FORGETFUL) else { return };
    let control = "tower-sse:{n}:presence";
    let id = server.cli(&["XADD", control, "1000-0", "d", "old message"]);
    assert_eq!(id, "1000-0");
    soon(log_at(server.port).broadcast(tower_sse::backplane::ControlStream::Presence, Bytes::from_static(b"x")))
        .await
        .unwrap();
    assert_eq!(server.cli(&["XLEN", control]), "1");
    let left: i64 = server.cli(&["PTTL", control]).parse().unwrap();
    assert!((1..=300_000).contains(&left), "{left}");
}

/// A log with practically no limit on the number of records.
fn unbounded(port: u16) -> Redis {
    log_at(port).limits(LogLimits::new().max_records(1_000_000))
}

async fn append(log: &Redis, records: usize, size: usize) {
    for _ in 0..records / 50 {
        let record = || NewRecord::new(Bytes::from(vec![b'x'; size]));
        let places = soon(log.append((0..50).map(|_| record()).collect(), None)).await;
        assert!(places.iter().all(Result::is_ok));
    }
}

async fn range_of(log: &Redis) -> (u64, u64) {
    let state = soon(log.state(None)).await.unwrap();
    (state.first, state.last)
}

/// Otherwise the server would store 400 MB of events.
#[tokio::test]
async fn a_log_is_bounded_in_bytes_by_default() {
    let Some(server) = RedisServer::start(FORGETFUL) else { return };
    let log = unbounded(server.port).timeout(Duration::from_secs(15));
    append(&log, 400, 1 << 20).await;
    let (first, last) = range_of(&log).await;
    assert_eq!(last, 400);
    // The log keeps 256 MiB, or up to a sixteenth less.
    assert!((last - 256 + 1..=last - 240 + 1).contains(&first), "{first}");
}

/// The server, or a proxy in front of it, accepts a connection and answers no request on it.
#[tokio::test]
async fn a_control_stream_ends_with_an_error_when_its_first_request_gets_no_answer() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let mute = tokio::spawn(async move {
        let (mut tcp, _) = listener.accept().await.unwrap();
        let (mut read, mut requests) = ([0; 4096], 0);
        loop {
            let count = tcp.read(&mut read).await.unwrap();
            let text = String::from_utf8_lossy(&read[..count]).to_uppercase();
            // The client sends its name and version when it connects.
            for _ in text.matches("SETINFO") {
                tcp.write_all(b"+OK\r\n").await.unwrap();
            }
            requests += text.matches("XREVRANGE").count();
            if count == 0 {
                return requests;
            }
        }
    });
    let log = Redis::new(&format!("redis://127.0.0.1:{port}"), "n").unwrap().timeout(Duration::from_millis(500));
    let mut messages = log.listen(Some("1-0 1-0".into()));
    let error = soon(messages.next()).await.unwrap().unwrap_err();
    assert!(error.is_unknown(), "{error}");
    drop(messages);
    assert_eq!(soon(mute).await.unwrap(), 1);
}
