//! The test kit, which is public for the tests of applications.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    unreachable_pub,
    reason = "these are tests, helpers and all"
)]

#[path = "../kit/mod.rs"]
mod kit;

mod adapter;
mod client;
mod contract;
mod faulty_log;
mod leaks;

use std::panic::AssertUnwindSafe;

use futures::FutureExt;

/// Returns the text with which a future panics.
async fn failure(future: impl Future) -> String {
    let Err(panic) = AssertUnwindSafe(future).catch_unwind().await else { panic!("no failure") };
    *panic.downcast::<String>().unwrap()
}
