//! The numbers of records that transactions publish at the same time.

use std::time::Duration;

use tokio_postgres::Client;
use tower_sse::backplane::{Backplane, LogLimits, NewRecord};

use crate::kit::broker::{Broker, range};
use crate::kit::postgres::PostgresServer;
use crate::kit::postgres_client::connect_to;
use crate::kit::{soon, until};

const MOVE: &str = "SELECT tower_sse.sequence('n')";

async fn run(client: &Client, sql: &str) {
    soon(client.batch_execute(sql)).await.unwrap();
}

fn publish(data: &str) -> String {
    format!("SELECT tower_sse.publish('n', data => '{data}', topic => 't')")
}

/// Returns the data of all records, in their order.
async fn published(server: &PostgresServer) -> Vec<String> {
    let data = |payload: &[u8]| {
        let record: serde_json::Value = serde_json::from_slice(payload).unwrap();
        record["data"].as_str().unwrap().to_owned()
    };
    range(&Broker::log(server, "n"), 0, 100_000).await.iter().map(|stored| data(&stored.payload)).collect()
}

#[tokio::test]
async fn a_log_with_the_largest_limits_accepts_and_moves_records() {
    let Some(server) = PostgresServer::start(&[]) else { return };
    let largest =
        LogLimits::new().max_records(usize::MAX).max_bytes(u64::MAX).max_age(Duration::MAX).max_values(usize::MAX);
    let log = Broker::log(&server, "n").limits(largest);
    let record = || NewRecord::new(r#"{"v":1,"to":{"topics":["t"]},"data":"appended"}"#.into());
    for appended in soon(log.append(vec![record(), record()], None)).await {
        appended.unwrap();
    }
    server.psql(&publish("published"));
    let mut tail = log.tail(2);
    let batch = soon(futures::StreamExt::next(&mut tail)).await.unwrap().unwrap();
    assert_eq!(batch[0].sequence, 3);
    assert_eq!(published(&server).await, ["appended", "appended", "published"]);
}

/// The transaction gets its id in the function, while another transaction with a higher id ends.
#[tokio::test]
async fn a_transaction_that_moves_records_and_then_publishes_is_published() {
    let Some(server) = PostgresServer::start(&[]) else { return };
    let url = server.url_as("postgres");
    let [mover, holder, other] = [connect_to(&url).await, connect_to(&url).await, connect_to(&url).await];
    // An instance creates the log, and something waits in the inbox.
    soon(Broker::log(&server, "n").state(None)).await.unwrap();
    run(&other, &publish("first")).await;
    run(&holder, "BEGIN; SELECT FROM tower_sse.head FOR UPDATE").await;
    let sql = format!("BEGIN; {MOVE}; {}; COMMIT", publish("second"));
    let moving = tokio::spawn(async move { mover.batch_execute(&sql).await });
    until(|| server.psql("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'") == "1").await;
    run(&other, "SELECT pg_current_xact_id()").await;
    run(&holder, "COMMIT").await;
    soon(moving).await.unwrap().unwrap();
    run(&other, MOVE).await;
    assert_eq!(published(&server).await, ["first", "second"]);
}

#[tokio::test]
async fn a_transaction_with_many_records_does_not_change_the_order_of_others() {
    let Some(server) = PostgresServer::start(&[]) else { return };
    let url = server.url_as("postgres");
    let [large, early, late] = [connect_to(&url).await, connect_to(&url).await, connect_to(&url).await];
    run(&large, "BEGIN; SELECT pg_current_xact_id()").await;
    run(&early, "BEGIN; SELECT pg_current_xact_id()").await;
    run(&late, &publish("before")).await;
    run(&late, MOVE).await;
    run(&early, &format!("{}; COMMIT", publish("early"))).await;
    run(&late, &publish("late")).await;
    let many = "SELECT tower_sse.publish_record('n', '{\"v\":1,\"to\":{\"topics\":[\"t\"]},\"data\":\"many\"}') \
                FROM generate_series(1, 20500)";
    run(&large, &format!("{many}; COMMIT")).await;
    let mut has_more = true;
    while has_more {
        has_more = soon(late.query_one(MOVE, &[])).await.unwrap().get(0);
    }
    let published = published(&server).await;
    assert_eq!(published.len(), 20_503);
    let at = |data: &str| published.iter().position(|published| published == data);
    assert!(at("early").is_some() && at("early") < at("late"), "{:?} {:?}", at("early"), at("late"));
}

#[tokio::test]
async fn many_values_above_the_limit_are_removed_by_several_calls() {
    let Some(server) = PostgresServer::start(&[]) else { return };
    let log = Broker::log(&server, "n").limits(LogLimits::new().max_values(1_600));
    soon(log.state(None)).await.unwrap();
    server.psql(
        "INSERT INTO tower_sse.current (ns, hash, id, number, at, payload)
           SELECT 'n', sha256(n::text::bytea), n, 1, now(), '' FROM generate_series(1, 45000) n",
    );
    let values = || server.psql("SELECT count(*) FROM tower_sse.current").parse::<u32>().unwrap();
    let append = async |count: usize| {
        for appended in soon(log.append(vec![NewRecord::new("x".into()); count], None)).await {
            appended.unwrap();
        }
    };
    // The values are counted after each sixteenth of the limit.
    append(100).await;
    assert_eq!(values(), 15_000);
    append(1).await;
    assert_eq!(values(), 1_600);
    assert_eq!(server.psql("SELECT has_surplus FROM tower_sse.head"), "f");
}
