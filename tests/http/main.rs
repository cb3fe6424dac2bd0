//! A hub in an application: its mounts, the layers around it, its bytes on the wire, and its
//! answers to bad input. `tests/run` runs this suite with socket takeover too.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "these are tests, helpers and all")]

#[path = "../kit/mod.rs"]
mod kit;

mod bad_input;
mod composition;
mod embedding;
mod extract;
mod mounting;
mod pass_through;
mod sessions;
mod wire;
