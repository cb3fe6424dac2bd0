//! Transactions of other programs that stay open for long. The server keeps all row versions that
//! such a transaction may see.

use tokio_postgres::Client;
use tower_sse::Event;

use crate::instances::builder;
use crate::kit::postgres::PostgresServer;
use crate::kit::postgres_client::{call, connect, connect_to, log, publish, read_to};
use crate::kit::until;
use crate::postgres_batches::MOVE;
use crate::rolled_back::open;

/// A statement that opens a transaction and keeps it open.
const WITH_SNAPSHOT: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM pg_class";
const WITH_ID: &str = "BEGIN; SELECT tower_sse.publish('n', topic => 't', data => 'late')";

/// Publishes in a transaction, and moves the records into the log. No instance uses this namespace,
/// so that the costs are those of this client.
async fn publish_many(client: &Client, count: i32) {
    call(client, "SELECT tower_sse.publish('costs', topic => 't') FROM generate_series(1, $1)", &[&count]).await;
}

const SEQUENCE: &str = "SELECT tower_sse.sequence_and_trim('costs', 2000, 268435456, 3600000, 100000)";

/// Returns the number of pages that a statement reads.
async fn pages_read(client: &Client, sql: &str) -> u64 {
    let rows = client.query(&format!("EXPLAIN (ANALYZE, BUFFERS, TIMING OFF) {sql}"), &[]).await.unwrap();
    let plan: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    // Of the whole statement, for example "Buffers: shared hit=45 read=2".
    let line = plan.iter().find(|line| line.trim_start().starts_with("Buffers: ")).unwrap();
    line.split([' ', ',']).filter_map(|part| part.split_once('=')).map(|(_, count)| count.parse::<u64>().unwrap()).sum()
}

/// Returns the number of pages that a poll without records, a batch of ten records, and a read of
/// the newest records need.
async fn costs(client: &Client) -> [u64; 3] {
    let mut costs = [0; 3];
    // The first calls of a session also read the catalogs.
    for _ in 0..3 {
        let poll = pages_read(client, SEQUENCE).await;
        publish_many(client, 10).await;
        let batch = pages_read(client, SEQUENCE).await;
        let last = "(SELECT last FROM tower_sse.status WHERE namespace = 'costs')";
        let last: i64 = client.query_one(&format!("SELECT {last}"), &[]).await.unwrap().get(0);
        let read = format!("SELECT * FROM tower_sse.range('costs', {}, 100, 1000000)", last - 10);
        costs = [poll, batch, pages_read(client, &read).await];
    }
    costs
}

async fn delivery_goes_on_during(open_transaction: &str) {
    let Some(server) = PostgresServer::start(&["autovacuum=off"]) else { return };
    server.psql("GRANT SELECT ON tower_sse.status TO hub");
    let hub = builder().backplane(log(&server)).build().unwrap();
    until(|| hub.is_ready()).await;
    let mut page = open(&hub);
    let client = connect(&server).await;
    publish_many(&client, 100).await;
    call(&client, SEQUENCE, &[]).await;
    let before = costs(&client).await;
    let idle = connect(&server).await;
    idle.batch_execute(open_transaction).await.unwrap();
    for _ in 0..200 {
        publish_many(&client, 100).await;
        call(&client, SEQUENCE, &[]).await;
        publish(&client, "x").await;
    }
    let after = costs(&client).await;
    let is_slower = before.iter().zip(&after).any(|(before, after)| *after > 2 * before + 100);
    assert!(!is_slower, "{before:?} pages before, {after:?} after 20,000 records");
    hub.topic("t").publish(Event::unnamed("end")).await.unwrap();
    assert_eq!(read_to(&mut page, "end").await.len(), 200 + 1);
    idle.batch_execute("COMMIT").await.unwrap();
    hub.topic("t").publish(Event::unnamed("end")).await.unwrap();
    assert_eq!(read_to(&mut page, "end").await.contains(&"late".to_owned()), open_transaction == WITH_ID);
}

#[tokio::test]
async fn delivery_does_not_become_slow_while_another_transaction_keeps_its_snapshot() {
    delivery_goes_on_during(WITH_SNAPSHOT).await;
}

#[tokio::test]
async fn delivery_does_not_become_slow_while_another_transaction_that_has_published_stays_open() {
    delivery_goes_on_during(WITH_ID).await;
}

/// No batch reads the rows of the batches before it.
#[tokio::test]
async fn batches_of_a_backlog_do_not_become_slower_while_another_transaction_keeps_its_snapshot() {
    let Some(server) = PostgresServer::start(&["autovacuum=off"]) else { return };
    let client = connect_to(&server.url_as("postgres")).await;
    publish_many(&client, 1).await;
    call(&client, SEQUENCE, &[]).await;
    let idle = connect(&server).await;
    idle.batch_execute(WITH_SNAPSHOT).await.unwrap();
    // No instance runs for some time. The server itself commits faster than a client.
    let backlog = "DO $$ BEGIN
          FOR i IN 1..10000 LOOP PERFORM tower_sse.publish('costs', topic => 't'); COMMIT; END LOOP;
        END $$";
    client.batch_execute("SET synchronous_commit = off").await.unwrap();
    client.batch_execute(backlog).await.unwrap();
    // The functions that call `write` have the same settings.
    client.batch_execute("SET enable_seqscan = off; SET enable_bitmapscan = off").await.unwrap();
    let one = MOVE.replace("$1", "'costs'").replace("$2", "1").replace("$3", "'{}'");
    let mut pages = Vec::new();
    // The first calls of a session also read the catalogs.
    for _ in 0..3 {
        pages.push(pages_read(&client, &one).await);
    }
    for _ in 0..9 {
        call(&client, SEQUENCE, &[]).await;
    }
    pages.push(pages_read(&client, &one).await);
    assert!(pages[3] < pages[2] + 50, "{pages:?} pages");
}
