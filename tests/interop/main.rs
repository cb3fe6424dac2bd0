//! Common clients against a real server with a hub. Every client goes through the same scenes, and
//! the test compares the events that the client delivers with the published events.
//! `docs/compatibility.md` lists the expected outcome.
//!
//! `deviation.rs` has the expected deviations of clients with their explanations. The test fails
//! when a deviation appears, changes or disappears, and when the document does not match the
//! expectations.
//!
//! `INTEROP_CLIENT=undici cargo test --test interop` runs one client, and shows its standard error.

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
#[path = "../paths/nginx.rs"]
#[allow(dead_code, reason = "each test binary uses a part of it")]
mod nginx;

mod case;
mod client;
mod deviation;
mod document;
mod recipes;
mod run;
mod runs;
mod scenes;
mod sent;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;

use case::Case;
use client::{CLIENTS, Client};
use deviation::DEVIATIONS;
use futures::future::join_all;

/// The outcome of each case: `ok`, or a description of the deviation.
pub type Outcome = BTreeMap<Case, String>;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_behave_as_documented() {
    let Some(installed) = client::installed() else { return };
    let installed = Arc::new(installed);
    let mut clients: Vec<&Client> = CLIENTS.iter().collect();
    if let Ok(only) = std::env::var("INTEROP_CLIENT") {
        clients.retain(|client| client.name == only);
        assert!(!clients.is_empty(), "INTEROP_CLIENT: no client is called {only}");
        kit::skip::skipped(&format!("INTEROP_CLIENT leaves out all clients but {only}"));
    }
    // The clients run at the same time, each in a separate task.
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
    assert!(surprises.is_empty(), "clients behave differently from tests/interop/deviation.rs:\n{surprises}");
}

#[test]
fn the_document_matches_the_expected_deviations() {
    for deviation in DEVIATIONS {
        let known = deviation.clients.iter().all(|title| CLIENTS.iter().any(|client| client.title() == *title));
        assert!(known, "{:?}: one of them is not in CLIENTS", deviation.clients);
    }
    document::check();
}
