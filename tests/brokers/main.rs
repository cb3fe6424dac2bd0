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

#[path = "../kit/mod.rs"]
mod kit;
#[path = "../kit/nats.rs"]
mod nats_server;
#[path = "../kit/proxy.rs"]
mod proxy;
#[path = "../kit/redis.rs"]
mod redis_server;

mod acknowledged;
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
