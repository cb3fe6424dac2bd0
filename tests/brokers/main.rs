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
mod control_bytes;
mod dormant;
mod faulty;
mod holes;
mod instances;
mod interrupted;
mod journal_faults;
mod journals;
mod ledger;
mod listening;
mod nats;
mod nats_access;
mod nats_answers;
mod nats_cluster;
mod nats_rewrites;
mod next_version;
mod pass_journals;
mod past;
mod postgres_access;
mod postgres_batches;
mod postgres_failover;
mod postgres_idle;
mod postgres_numbering;
mod postgres_pooler;
mod postgres_publish;
mod postgres_rights;
mod postgres_rules;
mod postgres_schema;
mod postgres_soak;
mod postgres_unavailable;
mod publisher;
mod reached;
mod redis;
mod redis_cluster;
mod redis_failover;
mod redis_sentinel;
mod redis_tls;
mod redis_values;
mod rolled_back;
mod run_faults;
mod run_races;
mod runtimes;
mod scopes;
mod soak;
mod stored_bytes;
mod storm;
mod upgrade;

use kit::{nats as nats_server, proxy, redis as redis_server};
