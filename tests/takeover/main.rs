//! Streams whose sockets the hub takes over: taken where that may be, left alone where not, and the same to their readers.
//!
//! The hub always takes sockets over here, whatever the environment says. What other suites say of streams holds with it too:
//! `tests/run` runs them in both ways.

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
