//! What a hub promises to its clients and its application: who gets what, who may read, how long events are kept, how many
//! connections there may be, and who is present. `tests/run` runs it with sockets that the hub takes over, too.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "these are tests, helpers and all")]

#[path = "../kit/mod.rs"]
mod kit;

mod authority;
mod identity;
mod limits;
mod membership;
mod overdue;
mod presence;
mod retention;
