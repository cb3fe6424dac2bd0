//! Several instances over a shared log: the contract of the adapters, and hubs with real brokers.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    unreachable_pub,
    reason = "these are tests, helpers and all"
)]

#[path = "../kit/mod.rs"]
mod kit;

mod acknowledged;
mod apart;
mod bare;
mod contract;
mod control;
mod dormant;
mod faulty;
mod holes;
mod instances;
mod interrupted;
mod journal_faults;
mod journals;
mod listening;
mod nats;
mod pass_journals;
mod past;
mod publisher;
mod reached;
mod redis;
mod rolled_back;
mod run_faults;
mod run_races;
mod runtimes;
mod soak;
mod storm;

use kit::{nats as nats_server, proxy, redis as redis_server};
