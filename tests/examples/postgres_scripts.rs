//! The scripts of `docs` that publish in a transaction of Postgres.
#![cfg(unix)]

use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use axum::Router;
use tokio::task::spawn_blocking;
use tower_sse::backplane::Postgres;
use tower_sse::{Hub, Public, TopicFilter};

use crate::kit::postgres::PostgresServer;
use crate::kit::{Server, skip, subscribe, until};

/// A table whose order 8 cannot be paid, and a role with the least rights.
const TABLE: &str = "
    CREATE TABLE orders (id integer PRIMARY KEY, paid boolean NOT NULL DEFAULT false);
    INSERT INTO orders VALUES (7), (8), (9);
    CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'not permitted'; END $$;
    CREATE CONSTRAINT TRIGGER refuse AFTER UPDATE ON orders DEFERRABLE INITIALLY DEFERRED
      FOR EACH ROW WHEN (NEW.id = 8) EXECUTE FUNCTION refuse();
    CREATE ROLE app LOGIN;
    GRANT SELECT, UPDATE ON orders TO app;
    GRANT USAGE ON SCHEMA tower_sse TO app;
    GRANT EXECUTE ON FUNCTION tower_sse.publish, tower_sse.sequence TO app";

/// Runs a script for three orders, of which the second fails at the commit. The stream receives the
/// events of the others, although no instance polls.
async fn script_publishes_committed_changes_only(script: impl Fn(&str, u32) -> Command) {
    let Some(server) = PostgresServer::start(&[]) else { return };
    server.psql(TABLE);
    let log = Postgres::new(&server.url(), "shop").unwrap().poll_interval(Duration::from_secs(3600));
    let hub = Hub::builder().backplane(log).build().unwrap();
    let access = Public::topics(TopicFilter::any());
    let web = Server::start(&hub, Router::new().route_service("/events", hub.endpoint(access))).await;
    until(|| hub.is_ready()).await;
    let mut page = subscribe(web.addr, "/events?topic=orders/7&topic=orders/8&topic=orders/9").await;
    for order in [7, 8, 9] {
        let mut command = script(&server.url_as("app"), order);
        let Output { status, stderr, .. } = spawn_blocking(move || command.output().unwrap()).await.unwrap();
        let stderr = String::from_utf8_lossy(&stderr);
        assert_eq!((status.success(), stderr.contains("not permitted")), (order != 8, order == 8), "{stderr}");
    }
    for order in [7, 9] {
        let event = page.next_own().await;
        let data: serde_json::Value = serde_json::from_str(&event.data).unwrap();
        assert_eq!((&*event.event, data), ("order.paid", serde_json::json!({ "id": order })));
    }
    assert_eq!(server.psql("SELECT id FROM orders WHERE paid ORDER BY id"), "7\n9");
}

#[tokio::test]
async fn psql_script_publishes_committed_changes_only() {
    if !skip::has("psql", "--version") {
        return;
    }
    script_publishes_committed_changes_only(|url, order| {
        let mut command = Command::new("psql");
        command.args([url, "-X", "-v", "ON_ERROR_STOP=1", "-v", "namespace=shop", "-v", &format!("order={order}")]);
        command.args(["-f", concat!(env!("CARGO_MANIFEST_DIR"), "/docs/publish.sql")]);
        command
    })
    .await;
}

#[tokio::test]
async fn python_script_publishes_committed_changes_only() {
    let python = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/postgres/python/bin/python");
    if !python.exists() {
        return skip::not_installed("psycopg");
    }
    script_publishes_committed_changes_only(|url, order| {
        let mut command = Command::new(&python);
        command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/publish_postgres.py"));
        command.args([url, "shop", &order.to_string()]);
        command
    })
    .await;
}
