//! Clients that read runs: the answer of a model, in the protocol of each client.
//!
//! Every client goes through the same cases, on several routes to the server. The observed outcomes
//! must match `expected.rs`, from which `docs/compatibility.md` has its tables.
//!
//! `INTEROP_CLIENT=openai cargo test --test interop runs` runs one package, and shows what it
//! reports.

mod cases;
mod clients;
pub mod document;
mod driver;
mod expected;
mod gate;
mod protocol;
mod site;

use std::fmt::Write;
use std::sync::Arc;
use std::time::Instant;

use futures::future::join_all;
use tokio::sync::Semaphore;

pub use cases::Case;
use cases::{Route, Scene};
pub use clients::{CLIENTS, Client};
pub use driver::{Driver, Job};
pub use gate::Gate;
pub use protocol::{HALF, PARTS, TEXT};
use site::Transport;

use crate::kit;
use crate::kit::certificate::Certificate;
use crate::nginx::{self, Nginx};

/// The clients that run at the same time.
const CLIENTS_AT_ONCE: usize = 4;

/// Runs the cases of all clients on a route, and compares the outcomes with the expected ones.
async fn check(name: &str, route: Route, leaves_out: impl Fn(&Client, Case) -> bool) {
    let only = std::env::var("INTEROP_CLIENT").ok();
    let mut clients: Vec<&'static Client> =
        CLIENTS.iter().filter(|client| only.as_ref().is_none_or(|only| client.package == only)).collect();
    // The slow ones begin first, so that the others need no time of their own.
    clients.sort_by_key(|client| !client.is_slow);
    if let Some(only) = &only {
        kit::skip::skipped(&format!("INTEROP_CLIENT leaves out all clients but {only}"));
    }
    let (route, places) = (Arc::new(route), Arc::new(Semaphore::new(CLIENTS_AT_ONCE)));
    let outcomes = join_all(clients.iter().map(|&client| {
        let cases: Vec<Case> = Case::ALL.into_iter().filter(|case| !leaves_out(client, *case)).collect();
        let (route, places) = (Arc::clone(&route), Arc::clone(&places));
        tokio::spawn(async move {
            if cases.is_empty() {
                return Vec::new();
            }
            let _place = places.acquire().await.unwrap();
            let begun = Instant::now();
            let driver = Driver::start(client, matches!(route.transport, Transport::Http2(_)));
            let scene = Scene { client, driver: &driver, route: &route };
            let outcomes = join_all(cases.iter().map(|case| scene.perform(*case))).await;
            if std::env::var_os("INTEROP_CLIENT").is_some() {
                eprintln!("{}: {:?}", client.title(), begun.elapsed());
            }
            cases.into_iter().zip(outcomes).collect::<Vec<_>>()
        })
    }))
    .await;
    let mut surprises = String::new();
    for (client, outcomes) in clients.iter().zip(outcomes) {
        for (case, seen) in outcomes.unwrap() {
            let expected = expected::of(client, case);
            if seen != expected {
                writeln!(surprises, "{}: {case:?}: expected `{expected}`, seen `{seen}`", client.title()).unwrap();
            }
        }
    }
    assert!(
        surprises.is_empty(),
        "{name}: clients behave differently from tests/interop/runs/expected.rs:\n{surprises}"
    );
}

/// Whether the cases of a variant leave out the breaks at every byte, which only the first variant
/// has.
fn no_breaks(_: &Client, case: Case) -> bool {
    case == Case::Break
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_read_runs_as_documented() {
    if crate::client::installed().is_none() {
        return;
    }
    check("HTTP/1.1", Route { transport: Transport::Http1, nginx: None }, |_, _| false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_read_runs_as_documented_when_sockets_are_taken_over() {
    if crate::client::installed().is_none() {
        return;
    }
    check("takeover", Route { transport: Transport::Takeover, nginx: None }, no_breaks).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_read_runs_as_documented_over_http2() {
    if crate::client::installed().is_none() {
        return;
    }
    let Some(certificate) = Certificate::make() else { return };
    let route = Route { transport: Transport::Http2(certificate.acceptor(&["h2"])), nginx: None };
    check("HTTP/2", route, no_breaks).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_read_runs_as_documented_through_nginx() {
    if crate::client::installed().is_none() || !nginx::is_installed() {
        return;
    }
    // HTTP/1.0, the default of nginx, has no way to break a response.
    let location = "location ~ ^/(?<port>[0-9]+)(?<path>/.*)$ { proxy_http_version 1.1; \
                    proxy_pass http://127.0.0.1:$port$path$is_args$args; }";
    let nginx = Nginx::start(|listen| format!("server {{ listen {listen}; {location} }}"));
    check("nginx", Route { transport: Transport::Http1, nginx: Some(nginx.addr) }, no_breaks).await;
}
