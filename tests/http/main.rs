//! A hub inside an application: how it is mounted, which layers lie outside, what its bytes look like on the wire, and what
//! bad input gets. `tests/run` runs it with sockets that the hub takes over, too.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "these are tests, helpers and all")]

#[path = "../kit/mod.rs"]
mod kit;

mod bad_input;
mod composition;
mod embedding;
mod extract;
mod mounting;
mod pass_through;
mod wire;
