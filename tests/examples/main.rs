//! The examples do what they say: their applications over real sockets, and the standalone hub as a process.

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
#[path = "../kit/example.rs"]
mod program;
#[path = "../kit/redis.rs"]
mod redis_server;

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
