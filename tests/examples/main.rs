//! The examples behave as documented: their applications over real sockets, and some as processes.

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

mod chat;
mod example;
mod hyper_service;
mod instances;
mod postgres_scripts;
mod process;
mod quickstart;
mod small;
mod standalone;
mod two_instances;
mod worker;
mod workspace;

/// Takes the place of the modules that need Unix signals.
#[cfg(not(unix))]
#[test]
fn examples_run_as_processes() {
    kit::skip::skipped(
        "`chat`, `instances`, `postgres_scripts`, `process`, `small`, `worker` and `workspace` need Unix signals",
    );
}

use kit::{example as program, nats as nats_server, redis as redis_server};
