//! Events that are published in transactions of `sqlx`, with a real server.

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

use sqlx::{Connection, PgConnection};
use tower_sse::backplane::{NewRecord, Postgres};
use tower_sse_sqlx::publish;

use scenarios::{Driver, End, Shop, next};

impl Driver for PgConnection {
    async fn connect(url: &str) -> Self {
        <Self as Connection>::connect(url).await.unwrap()
    }

    async fn run(&mut self, sql: &'static str, log: &Postgres, records: &[NewRecord], end: End) -> Result<(), String> {
        let text = |error: sqlx::Error| error.to_string();
        let mut transaction = self.begin().await.map_err(text)?;
        sqlx::query(sql).execute(&mut *transaction).await.map_err(text)?;
        for record in records {
            publish(&mut transaction, log, record).await.map_err(text)?;
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
    scenarios::commit::<PgConnection>().await;
}

#[tokio::test]
async fn event_of_a_transaction_that_was_rolled_back_reaches_no_stream() {
    scenarios::roll_back::<PgConnection>().await;
}

#[tokio::test]
async fn record_that_the_server_rejects_fails_the_transaction() {
    scenarios::rejected_record::<PgConnection>().await;
}

#[tokio::test]
async fn hub_that_starts_later_has_the_current_values() {
    scenarios::values::<PgConnection>().await;
}

#[tokio::test]
async fn two_records_with_the_same_idempotency_key_are_one_event() {
    scenarios::idempotency_key::<PgConnection>().await;
}

#[tokio::test]
async fn statement_publishes_only_if_it_changes_a_row() {
    let Some(mut shop) = Shop::<PgConnection>::start().await else { return };
    let [mut stream, _] = shop.streams("orders").await;
    shop.server.psql("GRANT DELETE ON orders TO shop; INSERT INTO orders VALUES (7), (8)");
    for (order, text) in [(7, "7 deleted"), (9, "9 deleted"), (8, "8 deleted")] {
        let sql = "WITH deleted AS (DELETE FROM orders WHERE id = $6 RETURNING id)
            SELECT tower_sse.publish_record($1, $2, $3, $4, $5) FROM deleted";
        let record = shop.order(text);
        let arguments = shop.log.publish_arguments(&record);
        let query = sqlx::query(sql).bind(arguments.namespace).bind(arguments.payload).bind(arguments.sets);
        let query = query.bind(arguments.removes).bind(arguments.idempotency_key).bind(order);
        query.execute(&mut shop.connection).await.unwrap();
    }
    shop.log.wake();
    assert_eq!(next(&mut stream).await, ["7 deleted", "8 deleted"]);
}
