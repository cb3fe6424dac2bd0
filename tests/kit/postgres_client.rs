//! An application that uses the same PostgreSQL server as the instances, and publishes there.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of it")]

use std::error::Error;

use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, GenericClient, NoTls};
use tower_sse::backplane::Postgres;
use tower_sse::{PublishError, Subscriber};

use super::broker::Broker;
use super::postgres::PostgresServer;
use super::soon;

/// Connects as the role `hub`.
pub async fn connect(server: &PostgresServer) -> Client {
    connect_to(&server.url()).await
}

pub async fn connect_to(url: &str) -> Client {
    let (client, connection) = soon(tokio_postgres::connect(url, NoTls)).await.unwrap();
    tokio::spawn(connection);
    client
}

/// Returns the log of the namespace `n`.
pub fn log(server: &PostgresServer) -> Postgres {
    Broker::log(server, "n")
}

/// Publishes an unnamed event to the topic `t`, in the transaction of the client.
pub async fn publish(client: &(impl GenericClient + Sync), data: &str) {
    call(client, "SELECT tower_sse.publish('n', topic => 't', data => $1)", &[&data]).await;
}

/// Executes a statement.
pub async fn call(client: &(impl GenericClient + Sync), sql: &str, parameters: &[&(dyn ToSql + Sync)]) {
    soon(client.execute(sql, parameters)).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
}

/// Reads the events of a stream up to one with the data `last`, and returns their data. Panics if
/// the stream has a gap.
pub async fn read_to(page: &mut Subscriber, last: &str) -> Vec<String> {
    let mut all = Vec::new();
    while all.last().is_none_or(|data| data != last) {
        all.push(soon(page.next_event()).await.unwrap().data);
    }
    all
}

/// Returns the text of the error of the broker.
pub fn cause(error: &PublishError) -> String {
    error.source().unwrap_or(error).to_string()
}
