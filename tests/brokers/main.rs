//! Several instances, one hub: the adapters against one contract, and hubs through real brokers.

#![allow(
    clippy::duplicate_mod,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    unreachable_pub,
    reason = "these are tests, helpers and all"
)]

#[path = "../support/nats.rs"]
mod nats_server;
#[path = "../support/proxy.rs"]
mod proxy;
#[path = "../support/redis.rs"]
mod redis_server;
#[path = "../support/mod.rs"]
mod support;

mod apart;
mod contract;
mod control;
mod fake;
mod faulty;
mod holes;
mod instances;
mod listening;
mod nats;
mod odd;
mod past;
mod publisher;
mod reached;
mod redis;
mod rolled_back;
mod runtimes;
mod soak;
mod storm;
