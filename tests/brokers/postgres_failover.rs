//! Servers that crash, that return with an older backup, and that are replaced by a standby.

use std::time::Duration;

use tokio::time::sleep;
use tower_sse::backplane::{Backplane, Postgres};
use tower_sse::{Event, GapReason, Hub, NextEventError, Publisher, Subscriber};

use crate::instances::builder;
use crate::kit::broker::REQUEST_LIMIT;
use crate::kit::postgres::PostgresServer;
use crate::kit::postgres_client::{call, connect, log, publish, read_to};
use crate::kit::{soon, until};
use crate::proxy::{Mode, Proxy};
use crate::rolled_back::{gaps_before, open, read_events};

async fn start(log: impl Backplane) -> Hub {
    let hub = builder().backplane(log).build().unwrap();
    until(|| hub.is_ready()).await;
    hub
}

fn worker(log: Postgres) -> Publisher {
    builder().backplane(log).publisher().unwrap()
}

async fn send_many(worker: &Publisher, prefix: &str, count: usize) {
    let events = (0..count).map(|n| (worker.topic("t"), Event::unnamed(format!("{prefix}{n}"))));
    assert!(worker.publish_many(events).await.iter().all(Result::is_ok));
}

/// Publishes an event once, however many attempts that needs.
async fn send_at_last(worker: &Publisher, data: &str) {
    let event = || Event::unnamed(data.to_owned()).idempotency_key(data.to_owned());
    soon(async {
        while worker.topic("t").publish(event()).await.is_err() {
            // Only another attempt shows whether a server accepts events again.
            sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}

/// The server gives ids of transactions that it has forgotten to later transactions.
#[tokio::test]
async fn events_of_committed_transactions_survive_crashes_and_no_later_one_is_skipped() {
    let Some(mut server) = PostgresServer::start(&["max_prepared_transactions=10"]) else { return };
    let own = log(&server).poll_interval(Duration::from_millis(20));
    let hub = start(own.clone()).await;
    let mut page = open(&hub);
    for round in 0..4 {
        let mut idle = Vec::new();
        for n in 0..3 {
            // Transactions that are open at the crash, of which one has published.
            let client = connect(&server).await;
            client.batch_execute("BEGIN; SELECT pg_current_xact_id()").await.unwrap();
            if n == 1 {
                publish(&client, "never committed").await;
            }
            idle.push(client);
        }
        let mut client = connect(&server).await;
        let mut expected = Vec::new();
        for n in 0..10 {
            let transaction = client.transaction().await.unwrap();
            let data = format!("{round}.{n}");
            publish(&transaction, &data).await;
            if n % 3 == 2 {
                transaction.rollback().await.unwrap();
            } else {
                transaction.commit().await.unwrap();
                expected.push(data);
            }
            if n == 4 {
                own.wake();
                assert_eq!(read_to(&mut page, &format!("{round}.4")).await, std::mem::take(&mut expected));
            }
        }
        server.kill();
        server.restart();
        let end = format!("{round} after");
        publish(&connect(&server).await, &end).await;
        expected.push(end.clone());
        assert_eq!(read_to(&mut page, &end).await, expected);
    }
}

/// The backup has records of the inbox that have no number yet.
#[tokio::test]
async fn records_that_waited_at_the_time_of_a_backup_are_published_once_after_its_restore() {
    let Some(mut server) = PostgresServer::start(&[]) else { return };
    let logs = || log(&server).poll_interval(Duration::from_millis(20));
    let (one, two) = (start(logs()).await, start(logs()).await);
    let mut pages = [open(&one), open(&two)];
    let early = worker(logs());
    send_many(&early, "before ", 10).await;
    for page in &mut pages {
        read_events(page, 10).await;
    }
    let lock = connect(&server).await;
    call(&lock, "SELECT pg_advisory_lock(tower_sse.lock_key('log', 'n'))", &[]).await;
    publish(&connect(&server).await, "waiting").await;
    let saved = server.save();
    drop(lock);
    for page in &mut pages {
        read_to(page, "waiting").await;
    }
    send_many(&early, "lost ", 10).await;
    for page in &mut pages {
        read_events(page, 10).await;
    }
    server.kill();
    server.roll_back(&saved);
    server.restart();
    send_at_last(&early, "end").await;
    for page in &mut pages {
        let mut gaps = 0;
        let mut received = Vec::new();
        while received.last().is_none_or(|last| last != "end") {
            match soon(page.next_event()).await {
                Ok(event) => received.push(event.data),
                Err(gap) => {
                    let is_epoch = matches!(gap, NextEventError::Gap { reason: GapReason::Epoch, .. });
                    assert!(is_epoch && received.is_empty(), "{gap:?} after {received:?}");
                    gaps += 1;
                }
            }
        }
        assert_eq!(gaps, 1);
        assert_eq!(received.iter().filter(|data| *data == "waiting").count(), 1, "{received:?}");
        assert!(!received.iter().any(|data| data.starts_with("lost")), "{received:?}");
    }
}

/// Returns the log at whichever of two ports leads to a primary.
fn log_at_both(ports: [u16; 2]) -> Postgres {
    let [one, two] = ports;
    let url = format!("postgres://hub@127.0.0.1:{one},127.0.0.1:{two}/postgres?target_session_attrs=read-write");
    Postgres::new(&url, "n").unwrap().timeout(REQUEST_LIMIT).poll_interval(Duration::from_millis(20))
}

/// Two instances that reach the first server directly, and the second one through a proxy.
struct Pair {
    primary: PostgresServer,
    standby: PostgresServer,
    proxy: Proxy,
    hubs: [Hub; 2],
    pages: [Subscriber; 2],
}

impl Pair {
    async fn start() -> Option<Self> {
        let primary = PostgresServer::start(&[])?;
        let standby = primary.standby();
        let proxy = Proxy::start(standby.port).await;
        let log = || log_at_both([primary.port, proxy.port]);
        let hubs = [start(log()).await, start(log()).await];
        let pages = [open(&hubs[0]), open(&hubs[1])];
        Some(Self { primary, standby, proxy, hubs, pages })
    }

    fn worker(&self) -> Publisher {
        worker(log_at_both([self.primary.port, self.standby.port]))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failover_to_a_standby_that_has_caught_up_loses_nothing() {
    let Some(mut pair) = Pair::start().await else { return };
    let worker = pair.worker();
    send_many(&worker, "before ", 20).await;
    let lock = connect(&pair.primary).await;
    call(&lock, "SELECT pg_advisory_lock(tower_sse.lock_key('log', 'n'))", &[]).await;
    publish(&connect(&pair.primary).await, "waiting").await;
    pair.standby.wait_until_caught_up(&pair.primary).await;
    pair.primary.kill();
    pair.standby.promote();
    send_at_last(&worker, "end").await;
    for page in &mut pair.pages {
        // A gap would be an error.
        assert_eq!(read_to(page, "end").await[20..], ["waiting", "end"]);
    }
    until(|| pair.hubs.iter().all(Hub::is_ready)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failover_to_a_standby_that_is_behind_is_one_gap() {
    for has_grown in [false, true] {
        let Some(mut pair) = Pair::start().await else { return };
        let early = pair.worker();
        send_many(&early, "before ", 20).await;
        pair.standby.wait_until_caught_up(&pair.primary).await;
        pair.standby.stop_receiving();
        send_many(&early, "lost ", 10).await;
        publish(&connect(&pair.primary).await, "lost in a transaction").await;
        for page in &mut pair.pages {
            read_to(page, "lost in a transaction").await;
        }
        pair.proxy.set(Mode::Resets);
        pair.primary.kill();
        pair.standby.promote();
        if has_grown {
            // This worker has not seen the lost events.
            send_many(&worker(log_at_both([pair.standby.port; 2])), "after ", 30).await;
        }
        pair.proxy.set(Mode::Passes);
        // An instance detects the loss by itself.
        until(|| pair.hubs.iter().all(Hub::is_ready)).await;
        send_at_last(&worker(log_at_both([pair.standby.port; 2])), "end").await;
        for page in &mut pair.pages {
            assert_eq!(gaps_before(page, "end").await, ["epoch"], "has grown: {has_grown}");
        }
    }
}
