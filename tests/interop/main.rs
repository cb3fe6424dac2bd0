//! The hub against clients that people use: every client goes through the same scenes, on a real server, and what it saw is
//! compared with what was sent. `docs/compatibility.md` is written from the outcome.
//!
//! What a client does otherwise is expected in `deviations.rs`, beside its explanation: the test fails when a deviation
//! appears, changes or is gone, and when the document is not what follows from it.
//!
//! `INTEROP_CLIENT=undici cargo test --test interop` runs one client, and shows what it writes to its standard error.

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

mod case;
mod client;
mod deviation;
mod document;
mod run;
mod scenes;
mod sent;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;

use case::Case;
use client::{CLIENTS, Client};
use deviation::DEVIATIONS;
use futures::future::join_all;

/// What a client did in each case: `ok`, or what else.
pub type Outcome = BTreeMap<Case, String>;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_do_what_the_document_says() {
    let Some(installed) = client::installed() else { return };
    let installed = Arc::new(installed);
    let mut clients: Vec<&Client> = CLIENTS.iter().collect();
    if let Ok(only) = std::env::var("INTEROP_CLIENT") {
        clients.retain(|client| client.name == only);
        assert!(!clients.is_empty(), "INTEROP_CLIENT: no client is called {only}");
        kit::skip::skipped(&format!("INTEROP_CLIENT leaves out all clients but {only}"));
    }
    // Side by side, each on a task of its own.
    let outcomes =
        join_all(clients.iter().map(|client| tokio::spawn(scenes::all(client, Arc::clone(&installed))))).await;

    let mut surprises = String::new();
    for (client, outcome) in clients.iter().zip(outcomes) {
        let outcome = outcome.unwrap();
        assert_eq!(outcome.len(), Case::ALL.len(), "{}: a case was left out", client.title());
        for (case, seen) in outcome {
            let expected = deviation::of(client, case).map_or("ok", |deviation| deviation.seen);
            if seen != expected {
                writeln!(surprises, "{}: {case:?}: expected `{expected}`, seen `{seen}`", client.title()).unwrap();
            }
        }
    }
    assert!(surprises.is_empty(), "clients do other things than tests/interop/deviation.rs expects:\n{surprises}");
}

#[test]
fn the_document_is_what_follows_from_the_expectations() {
    for deviation in DEVIATIONS {
        let known = deviation.clients.iter().all(|title| CLIENTS.iter().any(|client| client.title() == *title));
        assert!(known, "{:?}: one of them is no client", deviation.clients);
    }
    document::check();
}
