//! The brokers that instances can share a log through, and one form for a test that runs against each of them.

#![allow(dead_code, unreachable_pub, unused_imports, unused_macros, reason = "each test binary uses a part of it")]

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use tower_sse::backplane::{Backplane, LogLimits, Memory, Nats, Redis};

use super::nats::NatsServer;
use super::redis::{DURABLE, FORGETFUL, RedisServer};

/// Makes a test of one body for each broker. The tests are called `body::memory`, `body::redis` and `body::nats`, so that
/// a failure names the broker. The test of a broker that is not installed is reported as skipped.
///
/// - `for_each_broker!(body(log): memory, redis, nats)` passes a log at a fresh broker.
/// - `for_each_broker!(body(broker): redis, nats)` passes the broker. After a kill it comes back empty.
/// - `for_each_broker!(body(durable): redis, nats)` passes a broker that comes back with everything it had.
///
/// An attribute in front replaces `#[tokio::test]`.
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

pub fn nats(durable: bool) -> Option<NatsBroker> {
    Some(NatsBroker { server: NatsServer::start()?, durable })
}

/// A broker of a test's own.
pub trait Broker {
    type Log: Backplane + Clone;

    /// The log of a namespace.
    fn log(&self, namespace: &str) -> Self::Log;
}

/// A broker that is a process.
pub trait BrokerServer: Broker {
    fn port(&self) -> u16;
    /// Over this port, which may be a proxy's.
    fn log_at(port: u16, namespace: &str, timeout: Duration) -> Self::Log;
    /// With so many records at most.
    fn short(log: Self::Log, records: usize) -> Self::Log;
    /// Waits until the values of so many records are kept apart from the log.
    fn has_copied(&self, namespace: &str, count: u64) -> impl Future<Output = ()>;
    fn kill(&mut self);
    fn restart(&mut self);
    /// A copy of what it keeps. It may have to stop for a moment.
    fn save(&mut self) -> PathBuf;
    /// What it keeps is what was saved. It has to have been killed.
    fn roll_back(&mut self, saved: &Path);
}

/// The logs of this process.
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
        Redis::new(&self.url(), namespace).unwrap()
    }
}

impl BrokerServer for RedisServer {
    fn port(&self) -> u16 {
        self.port
    }

    fn log_at(port: u16, namespace: &str, timeout: Duration) -> Redis {
        Redis::new(&format!("redis://127.0.0.1:{port}"), namespace).unwrap().timeout(timeout)
    }

    fn short(log: Redis, records: usize) -> Redis {
        log.limits(LogLimits::new().max_records(records))
    }

    /// The script that appends a record copies its value.
    async fn has_copied(&self, _: &str, _: u64) {}

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

pub struct NatsBroker {
    server: NatsServer,
    durable: bool,
}

impl Broker for NatsBroker {
    type Log = Nats;

    fn log(&self, namespace: &str) -> Nats {
        Nats::new(&self.server.url(), namespace).unwrap()
    }
}

impl BrokerServer for NatsBroker {
    fn port(&self) -> u16 {
        self.server.port
    }

    fn log_at(port: u16, namespace: &str, timeout: Duration) -> Nats {
        Nats::new(&format!("nats://127.0.0.1:{port}"), namespace).unwrap().timeout(timeout)
    }

    fn short(log: Nats, records: usize) -> Nats {
        log.limits(LogLimits::new().max_records(records))
    }

    async fn has_copied(&self, namespace: &str, count: u64) {
        self.server.copied(namespace, count).await;
    }

    fn kill(&mut self) {
        self.server.kill();
    }

    fn restart(&mut self) {
        if !self.durable {
            self.server.empty();
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
        self.server.bring_back(saved);
    }
}
