//! Reads of the current values from Redis while the server of the log changes.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tower_sse::backplane::{Backplane, NewRecord, Redis, Value};

use crate::kit::broker::{Broker, REQUEST_LIMIT};
use crate::kit::soon;
use crate::redis_server::{FORGETFUL, RedisCluster, RedisServer};

/// The number of values, which is several pages.
const VALUES: usize = 2_000;

async fn append_values(log: &Redis, count: usize) {
    let records = (0..count).map(|number| {
        let mut record = NewRecord::new("x".into());
        record.values = vec![Value::new(number.to_string(), false)];
        record
    });
    assert!(soon(log.append(records.collect(), None)).await.iter().all(Result::is_ok));
}

/// A proxy that holds back the request for the second page of a scan.
struct Gate {
    port: u16,
    is_reached: Arc<Notify>,
    is_open: Arc<Notify>,
}

impl Gate {
    async fn start(target: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (is_reached, is_open) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let pages = Arc::new(AtomicUsize::new(0));
        tokio::spawn({
            let (is_reached, is_open) = (Arc::clone(&is_reached), Arc::clone(&is_open));
            async move {
                loop {
                    let (client, _) = listener.accept().await.unwrap();
                    let server = TcpStream::connect(("127.0.0.1", target)).await.unwrap();
                    let ((mut requests, mut to_client), (mut answers, mut to_server)) =
                        (client.into_split(), server.into_split());
                    tokio::spawn(async move { tokio::io::copy(&mut answers, &mut to_client).await });
                    let (is_reached, is_open, pages) =
                        (Arc::clone(&is_reached), Arc::clone(&is_open), Arc::clone(&pages));
                    tokio::spawn(async move {
                        let mut buffer = vec![0; 4096];
                        while let Ok(count @ 1..) = requests.read(&mut buffer).await {
                            let is_page = String::from_utf8_lossy(&buffer[..count]).contains("HSCAN");
                            if is_page && pages.fetch_add(1, Ordering::SeqCst) == 1 {
                                is_reached.notify_one();
                                is_open.notified().await;
                            }
                            if to_server.write_all(&buffer[..count]).await.is_err() {
                                return;
                            }
                        }
                    });
                }
            }
        });
        Self { port, is_reached, is_open }
    }
}

/// The cursor of the first page is invalid at the server that has the values then.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn values_are_complete_when_their_slot_is_moved_between_two_pages() {
    let Some(cluster) = RedisCluster::start().await else { return };
    let (slot, first) = cluster.owner("n");
    let second = (first + 1) % 3;
    append_values(&Redis::cluster([cluster.url(first)], "n").unwrap().timeout(REQUEST_LIMIT), VALUES).await;
    // `ASK` redirects the second page, and then `MOVED`.
    for (from, to, is_finished) in [(first, second, false), (second, first, true)] {
        let gate = Gate::start(cluster.servers[from].port).await;
        let url = format!("redis://127.0.0.1:{}", gate.port);
        let log = Redis::cluster([url], "n").unwrap().timeout(Duration::from_secs(15));
        let values = tokio::spawn(async move { log.values().await });
        soon(gate.is_reached.notified()).await;
        cluster.begin_to_move(&slot, from, to);
        for key in cluster.keys(&slot, from) {
            cluster.move_key(&key, from, to);
        }
        if is_finished {
            cluster.finish_move(&slot, from, to);
        }
        gate.is_open.notify_one();
        assert_eq!(soon(values).await.unwrap().unwrap().len(), VALUES);
        cluster.finish_move(&slot, from, to);
    }
}

/// The demoted primary has copied the data of its successor, which lacks the value, while a
/// connection to it stayed open.
#[tokio::test]
async fn values_of_a_demoted_primary_are_unavailable() {
    let Some(old) = RedisServer::start(FORGETFUL) else { return };
    let Some(new) = RedisServer::start(FORGETFUL) else { return };
    let log = old.log("n");
    append_values(&log, 1).await;
    assert_eq!(soon(log.values()).await.unwrap().len(), 1);
    old.follow(&new, new.port).await;
    let error = soon(log.values()).await.unwrap_err();
    assert!(!error.is_unknown() && !error.is_rejected(), "{error}");
}
