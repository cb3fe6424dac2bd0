//! The examples do what they say: their applications over real sockets, and the standalone hub as a process.

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

mod example;
mod hyper_service;
mod instances;
mod process;
mod quickstart;
mod small;
mod standalone;
mod two_instances;
mod worker;
mod workspace;

/// The files of these examples are empty on systems without Unix signals.
#[cfg(not(unix))]
#[test]
fn the_examples_as_processes() {
    kit::skip::skipped(
        "this system has no signals that end a process: `instances`, `process`, `small`, `worker`, `workspace`",
    );
}

use kit::{example as program, nats as nats_server, redis as redis_server};
