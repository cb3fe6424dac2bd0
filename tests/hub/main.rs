//! The guarantees of one hub: targets, authorization, retention, limits and presence. `tests/run`
//! runs these tests with and without takeover.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests and their helpers may panic")]

#[path = "../kit/mod.rs"]
mod kit;

mod authority;
mod identity;
mod limits;
mod membership;
mod next_event;
mod overdue;
mod presence;
mod retention;
mod runs;
mod scopes;
