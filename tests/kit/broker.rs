//! The brokers that can hold a shared log, and a macro that runs one test body against each of
//! them.

#![allow(dead_code, unreachable_pub, unused_imports, unused_macros, reason = "each test binary uses a part of it")]

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use tower_sse::backplane::{Backplane, LogLimits, Memory, Nats, Postgres, ReadLimit, Redis, Stored};

use super::nats::NatsServer;
use super::postgres::PostgresServer;
use super::redis::{DURABLE, FORGETFUL, RedisServer};
use super::soon;

/// Returns the records of a log after `after`, at most this number. The server must not be behind.
pub async fn range(log: &impl Backplane, after: u64, records: usize) -> Vec<Stored> {
    soon(log.range(after, ReadLimit::records(records))).await.unwrap().into_records().unwrap()
}

/// Generates a test of one body for each broker. The tests are called `body::memory`, `body::redis`
/// and `body::nats`, so that a failure names the broker. The test of a broker that is not installed
/// is reported as skipped.
///
/// - `for_each_broker!(body(log): memory, redis, nats, postgres)` passes a log on a new broker.
/// - `for_each_broker!(body(broker): redis, nats, postgres)` passes the broker. It is empty after a restart.
/// - `for_each_broker!(body(durable): redis, nats, postgres)` passes a broker that keeps its data across a
///   restart.
///
/// An attribute before the body replaces `#[tokio::test]`.
macro_rules! for_each_broker {
    (@is_durable durable) => { true };
    (@is_durable $passed:ident) => { false };
    (@pass log $broker:ident) => { crate::kit::broker::Broker::log(&$broker, "n") };
    (@pass $passed:ident $broker:ident) => { $broker };
    ($body:ident($passed:ident): $($name:ident),+) => {
        for_each_broker!(#[tokio::test] $body($passed): $($name),+);
    };
    (#[$test:meta] $body:ident($passed:ident): $($name:ident),+) => {
        mod $body {
            $(
                #[$test]
                async fn $name() {
                    use crate::kit::broker::{self, for_each_broker};

                    if let Some(broker) = broker::$name(for_each_broker!(@is_durable $passed)) {
                        super::$body(for_each_broker!(@pass $passed broker)).await;
                    }
                }
            )+
        }
    };
}
pub(crate) use for_each_broker;

pub fn memory(_: bool) -> Option<InMemory> {
    Some(InMemory::default())
}

pub fn redis(durable: bool) -> Option<RedisServer> {
    RedisServer::start(if durable { DURABLE } else { FORGETFUL })
}

pub fn postgres(durable: bool) -> Option<PostgresServer> {
    let mut server = PostgresServer::start(&[])?;
    server.is_durable = durable;
    Some(server)
}

pub fn nats(durable: bool) -> Option<NatsBroker> {
    Some(NatsBroker { server: NatsServer::start()?, durable })
}

/// The time limit of a request to a broker that runs. The default of the adapters is too short if
/// the machine stalls.
pub const REQUEST_LIMIT: Duration = Duration::from_secs(10);

/// A broker that serves one test.
pub trait Broker {
    type Log: Backplane + Clone;

    /// Returns the log of a namespace. Its requests have the time limit [`REQUEST_LIMIT`].
    fn log(&self, namespace: &str) -> Self::Log;
}

/// A broker that runs as a separate process.
pub trait BrokerServer: Broker {
    fn port(&self) -> u16;
    /// Returns the log of a namespace on a port, which may be the port of a proxy.
    fn log_at(port: u16, namespace: &str, timeout: Duration) -> Self::Log;
    /// Limits the log to this number of records.
    fn with_max_records(log: Self::Log, records: usize) -> Self::Log;
    /// Waits until the broker has copied the values of `count` records out of the log.
    fn wait_until_copied(&self, namespace: &str, count: u64) -> impl Future<Output = ()>;
    fn kill(&mut self);
    fn restart(&mut self);
    /// Copies the data of the broker. This may restart the broker.
    fn save(&mut self) -> PathBuf;
    /// Replaces the data of the killed broker with a saved copy.
    fn roll_back(&mut self, saved: &Path);
}

/// The logs of this process, by namespace.
#[derive(Default)]
pub struct InMemory(Mutex<HashMap<String, Memory>>);

impl Broker for InMemory {
    type Log = Memory;

    fn log(&self, namespace: &str) -> Memory {
        self.0.lock().unwrap().entry(namespace.to_owned()).or_default().clone()
    }
}

impl Broker for RedisServer {
    type Log = Redis;

    fn log(&self, namespace: &str) -> Redis {
        Redis::new(&self.url(), namespace).unwrap().timeout(REQUEST_LIMIT)
    }
}

impl BrokerServer for RedisServer {
    fn port(&self) -> u16 {
        self.port
    }

    fn log_at(port: u16, namespace: &str, timeout: Duration) -> Redis {
        Redis::new(&format!("redis://127.0.0.1:{port}"), namespace).unwrap().timeout(timeout)
    }

    fn with_max_records(log: Redis, records: usize) -> Redis {
        log.limits(LogLimits::new().max_records(records))
    }

    /// Returns at once: on Redis, the script that appends a record also copies its value.
    async fn wait_until_copied(&self, _: &str, _: u64) {}

    fn kill(&mut self) {
        self.kill();
    }

    fn restart(&mut self) {
        self.restart();
    }

    fn save(&mut self) -> PathBuf {
        self.copy()
    }

    fn roll_back(&mut self, saved: &Path) {
        self.restore(saved);
    }
}

/// Returns the log of a namespace, as [`Broker::log`].
pub fn nats_log(server: &NatsServer, namespace: &str) -> Nats {
    Nats::new(&server.url(), namespace).unwrap().timeout(REQUEST_LIMIT)
}

pub struct NatsBroker {
    server: NatsServer,
    durable: bool,
}

impl Broker for NatsBroker {
    type Log = Nats;

    fn log(&self, namespace: &str) -> Nats {
        nats_log(&self.server, namespace)
    }
}

impl BrokerServer for NatsBroker {
    fn port(&self) -> u16 {
        self.server.port
    }

    fn log_at(port: u16, namespace: &str, timeout: Duration) -> Nats {
        Nats::new(&format!("nats://127.0.0.1:{port}"), namespace).unwrap().timeout(timeout)
    }

    fn with_max_records(log: Nats, records: usize) -> Nats {
        log.limits(LogLimits::new().max_records(records))
    }

    async fn wait_until_copied(&self, namespace: &str, count: u64) {
        self.server.wait_until_copied(namespace, count).await;
    }

    fn kill(&mut self) {
        self.server.kill();
    }

    fn restart(&mut self) {
        if !self.durable {
            self.server.delete_data();
        }
        self.server.restart();
    }

    fn save(&mut self) -> PathBuf {
        self.server.kill();
        let saved = self.server.save();
        self.server.restart();
        saved
    }

    fn roll_back(&mut self, saved: &Path) {
        self.server.restore(saved);
    }
}

impl Broker for PostgresServer {
    type Log = Postgres;

    fn log(&self, namespace: &str) -> Postgres {
        Postgres::new(&self.url(), namespace).unwrap().timeout(REQUEST_LIMIT)
    }
}

impl BrokerServer for PostgresServer {
    fn port(&self) -> u16 {
        self.port
    }

    fn log_at(port: u16, namespace: &str, timeout: Duration) -> Postgres {
        Postgres::new(&format!("postgres://hub@127.0.0.1:{port}/postgres"), namespace).unwrap().timeout(timeout)
    }

    fn with_max_records(log: Postgres, records: usize) -> Postgres {
        log.limits(LogLimits::new().max_records(records))
    }

    /// Returns at once: the transaction that appends a record also stores its value.
    async fn wait_until_copied(&self, _: &str, _: u64) {}

    fn kill(&mut self) {
        self.kill();
    }

    fn restart(&mut self) {
        self.restart();
    }

    fn save(&mut self) -> PathBuf {
        PostgresServer::save(self)
    }

    fn roll_back(&mut self, saved: &Path) {
        PostgresServer::roll_back(self, saved);
    }
}
