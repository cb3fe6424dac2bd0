//! Socket takeover: the hub takes a socket over if it may, leaves it to the server otherwise, and
//! readers receive the same events in both cases.
//!
//! These tests take sockets over independently of the environment. `tests/run` runs the other
//! suites with and without takeover.

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

mod layers;
mod peer;
mod site;

mod alike;
mod bare;
mod behind;
mod by_hand;
mod counts;
mod deadline;
mod ends;
mod falls_back;
mod input;
mod lag;
mod resume;
mod runtimes;
mod taken;
mod tls;
