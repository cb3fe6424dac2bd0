//! What is particular to Redis: its connections, its bounds, and what lies on the server.

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

/// A server that takes connections and never answers: all callers learn that from one attempt to connect.
#[tokio::test]
async fn many_callers_of_a_server_that_does_not_answer_wait_once() {
    let mute = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let log = log_at(mute.local_addr().unwrap().port()).timeout(Duration::from_millis(300));
    let begun = Instant::now();
    let asked = (0..40).map(|_| log.state(None));
    let answers = soon(futures::future::join_all(asked)).await;
    assert!(answers.iter().all(Result::is_err));
    // One after the other they would take twelve seconds.
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
}

/// A large batch is under way over a slow line, and the instance goes on asking where the log is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_batch_does_not_keep_an_instance_from_being_ready() {
    let Some(server) = RedisServer::start(FORGETFUL) else { return };
    // The way to the server is slow; the way on which the instance hears of the batch is the same.
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
            assert!(hub.is_ready(), "not ready while a batch is under way");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let published = tokio::select! {
        published = soon(hub.publish_many(batch)) => published,
        () = watched => Vec::new(),
    };
    assert!(published.iter().all(Result::is_ok));
    assert!(begun.elapsed() > Duration::from_millis(1_500), "it was too fast to show anything: {:?}", begun.elapsed());
}

/// Control messages name users, so they do not stay on the server: neither old ones, nor the last ones when all instances are
/// gone.
#[tokio::test]
async fn control_messages_do_not_stay_on_the_server() {
    let Some(server) = RedisServer::start(FORGETFUL) else { return };
    let control = "tower-sse:{n}:control";
    let id = server.cli(&["XADD", control, "1000-0", "d", "of long ago"]);
    assert_eq!(id, "1000-0");
    soon(log_at(server.port).broadcast(Bytes::from_static(b"x"))).await.unwrap();
    assert_eq!(server.cli(&["XLEN", control]), "1");
    let left: i64 = server.cli(&["PTTL", control]).parse().unwrap();
    assert!((1..=300_000).contains(&left), "{left}");
}

/// Records without a bound on their number.
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

/// 400 MB of events would otherwise lie on the server.
#[tokio::test]
async fn a_log_is_bounded_in_bytes_by_default() {
    let Some(server) = RedisServer::start(FORGETFUL) else { return };
    let log = unbounded(server.port).timeout(Duration::from_secs(15));
    append(&log, 400, 1 << 20).await;
    let (first, last) = range_of(&log).await;
    assert_eq!(last, 400);
    // 256 MiB, or up to a sixteenth less.
    assert!((last - 256 + 1..=last - 240 + 1).contains(&first), "{first}");
}

/// A server, or a proxy before it, that accepts a connection and then answers no request on it.
#[tokio::test]
async fn a_control_stream_ends_with_an_error_when_its_first_request_gets_no_answer() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let mute = tokio::spawn(async move {
        let (mut tcp, _) = listener.accept().await.unwrap();
        let (mut read, mut asked) = ([0; 4096], 0);
        loop {
            let count = tcp.read(&mut read).await.unwrap();
            let text = String::from_utf8_lossy(&read[..count]).to_uppercase();
            // What the client says of itself when it connects.
            for _ in text.matches("SETINFO") {
                tcp.write_all(b"+OK\r\n").await.unwrap();
            }
            asked += text.matches("XREVRANGE").count();
            if count == 0 {
                return asked;
            }
        }
    });
    let log = Redis::new(&format!("redis://127.0.0.1:{port}"), "n").unwrap().timeout(Duration::from_millis(500));
    let mut heard = log.listen(Some("1-0".into()));
    let error = soon(heard.next()).await.unwrap().unwrap_err();
    assert!(error.is_unknown(), "{error}");
    drop(heard);
    assert_eq!(soon(mute).await.unwrap(), 1);
}
