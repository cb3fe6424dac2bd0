//! Pages in headless Chromium, against the examples `workspace` and `chat`, and against small test
//! sites.
//!
//! `tests/run` installs Chromium, node and the version of Playwright in `package.json`. The tests
//! control the pages from Rust, where the servers also run. A failure reports its place in the test
//! and the events of the page.

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

mod chat;
mod driver;
mod history;
mod http2;
mod hypermedia;
mod origins;
mod progress;
mod reconnect;
mod site;
mod source;
mod standard;
mod workspace;

#[path = "../../examples/progress.rs"]
#[allow(dead_code, reason = "no test calls its `main`")]
mod progress_example;

use kit::{example, proxy, redis as redis_server};
