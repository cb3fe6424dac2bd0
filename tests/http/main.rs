//! A hub in an application: its mounts, the layers around it, its bytes on the wire, and its
//! answers to bad input. `tests/run` runs this suite with socket takeover too.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    unreachable_pub,
    reason = "these are tests, helpers and all"
)]

#[path = "../kit/mod.rs"]
mod kit;

mod bad_input;
mod bare;
mod composition;
mod embedding;
mod extract;
mod mounting;
mod pass_through;
mod raw;
mod sessions;
mod wire;
