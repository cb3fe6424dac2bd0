//! Pages in a real browser: Chromium, without a window, against the workspace example and against small sites of our own.
//!
//! `tests/run` installs Chromium, node and the Playwright that `package.json` names. What a page does is asked here, in Rust,
//! where the servers are too; a failure says where, and what the page had seen.

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

mod driver;
mod history;
mod http2;
mod origins;
mod reconnect;
mod site;
mod source;
mod standard;
mod workspace;

use kit::{example, proxy, redis as redis_server};
