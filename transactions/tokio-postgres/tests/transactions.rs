//! Events that are published in transactions of `tokio-postgres`, with a real server.

#![cfg(unix)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    unreachable_pub,
    reason = "these are tests, helpers and all"
)]

#[path = "../../../tests/kit/port.rs"]
mod port;
#[path = "../../../tests/kit/postgres.rs"]
mod postgres;
#[path = "../../../tests/kit/processes.rs"]
mod processes;
#[path = "../../scenarios.rs"]
mod scenarios;
#[path = "../../../tests/kit/skip.rs"]
mod skip;

use tokio_postgres::{Client, NoTls};
use tower_sse::backplane::{NewRecord, Postgres};
use tower_sse_tokio_postgres::publish;

use scenarios::{Driver, End, Shop, next};

impl Driver for Client {
    async fn connect(url: &str) -> Self {
        let (client, connection) = tokio_postgres::connect(url, NoTls).await.unwrap();
        tokio::spawn(connection);
        client
    }

    async fn run(&mut self, sql: &'static str, log: &Postgres, records: &[NewRecord], end: End) -> Result<(), String> {
        let text = |error: tokio_postgres::Error| error.to_string();
        let transaction = self.transaction().await.map_err(text)?;
        // The statement and the first record at the same time, as the documentation recommends.
        let [first, rest @ ..] = records else { panic!("no records") };
        tokio::try_join!(transaction.execute(sql, &[]), publish(&transaction, log, first)).map_err(text)?;
        for record in rest {
            publish(&transaction, log, record).await.map_err(text)?;
        }
        match end {
            End::Commit => transaction.commit().await,
            End::RollBack => transaction.rollback().await,
        }
        .map_err(text)
    }
}

#[tokio::test]
async fn committed_events_reach_every_stream_in_their_order() {
    scenarios::commit::<Client>().await;
}

#[tokio::test]
async fn event_of_a_transaction_that_was_rolled_back_reaches_no_stream() {
    scenarios::roll_back::<Client>().await;
}

#[tokio::test]
async fn record_that_the_server_rejects_fails_the_transaction() {
    scenarios::rejected_record::<Client>().await;
}

#[tokio::test]
async fn hub_that_starts_later_has_the_current_values() {
    scenarios::values::<Client>().await;
}

#[tokio::test]
async fn two_records_with_the_same_idempotency_key_are_one_event() {
    scenarios::idempotency_key::<Client>().await;
}

#[tokio::test]
async fn event_of_a_savepoint_that_was_rolled_back_reaches_no_stream() {
    let Some(mut shop) = Shop::<Client>::start().await else { return };
    let [mut stream, _] = shop.streams("orders").await;
    let [first, second, third] = ["7 paid", "7 sent", "8 paid"].map(|data| shop.order(data));
    let mut transaction = shop.connection.transaction().await.unwrap();
    publish(&transaction, &shop.log, &first).await.unwrap();
    let savepoint = transaction.savepoint("attempt").await.unwrap();
    publish(&savepoint, &shop.log, &second).await.unwrap();
    savepoint.rollback().await.unwrap();
    publish(&transaction, &shop.log, &third).await.unwrap();
    transaction.commit().await.unwrap();
    shop.log.wake();
    assert_eq!(next(&mut stream).await, ["7 paid", "8 paid"]);
}

#[tokio::test]
async fn calls_at_the_same_time_publish_in_their_order() {
    let Some(mut shop) = Shop::<Client>::start().await else { return };
    let [mut stream, _] = shop.streams("orders").await;
    let [first, second, third] = ["7 paid", "7 sent", "8 paid"].map(|data| shop.order(data));
    let transaction = shop.connection.transaction().await.unwrap();
    let call = async |record| publish(&transaction, &shop.log, record).await;
    tokio::try_join!(call(&first), call(&second), call(&third)).unwrap();
    transaction.commit().await.unwrap();
    shop.log.wake();
    assert_eq!(next(&mut stream).await, ["7 paid", "7 sent", "8 paid"]);
}
