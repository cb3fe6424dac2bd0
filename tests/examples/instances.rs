//! Two standalone hubs with a real broker: each delivers the events of the other, and clients move
//! between them.
#![cfg(unix)]

use std::net::SocketAddr;
use std::time::Duration;

use http::Request;
use serde_json::Value;

use crate::kit::certificate::Certificate;
use crate::kit::postgres::PostgresServer;
use crate::kit::{Events, get, port, resume, send, soon, subscribe};
use crate::nats_server::NatsServer;
use crate::process::{Process, start_in, start_with};
use crate::redis_server::{DURABLE, FORGETFUL, RedisServer};

/// Waits until the instance is ready.
pub async fn ready(addr: SocketAddr) {
    soon(async {
        while get(addr, "/readyz").await.status != 200 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

async fn start(server: &RedisServer, namespace: &str) -> (Process, SocketAddr) {
    start_on(&server.url(), namespace).await
}

async fn start_on(url: &str, namespace: &str) -> (Process, SocketAddr) {
    let args = ["--listen", "127.0.0.1:0", "--backplane", url, "--namespace", namespace, "--replay-events", "100000"];
    let (process, addr) = start_with(args.map(str::to_owned).to_vec()).await;
    ready(addr).await;
    (process, addr)
}

async fn post(addr: SocketAddr, number: u64) -> u16 {
    let request = Request::post("/topics/t").body(&*number.to_string().leak()).unwrap();
    send(addr, request).await.status.as_u16()
}

async fn numbers(events: &mut Events, numbers: std::ops::Range<u64>) {
    for number in numbers {
        let event = loop {
            let event = events.next().await;
            assert_ne!(event.event, "hub.gap", "{}", event.data);
            if event.event == "message" {
                break event;
            }
        };
        assert_eq!(event.data, number.to_string());
    }
}

#[tokio::test]
async fn client_resumes_at_either_instance_also_when_one_is_killed() {
    let Some(server) = RedisServer::start(FORGETFUL) else { return };
    let (one, at_one) = start(&server, "n").await;
    let (_two, at_two) = start(&server, "n").await;
    let (_stranger, elsewhere) = start(&server, "other").await;
    let mut stranger = subscribe(elsewhere, "/events?topic=t").await;

    let mut last_id = subscribe(at_two, "/events?topic=t").await.last_id;
    for round in 0..10 {
        let (there, from) = if round % 2 == 0 { (at_one, at_two) } else { (at_two, at_one) };
        let first = round * 5;
        // Two events before the client resumes, and three after.
        assert_eq!((post(from, first).await, post(there, first + 1).await), (202, 202));
        let mut events = resume(there, "/events?topic=t", &last_id).await;
        for number in first + 2..first + 5 {
            assert_eq!(post(from, number).await, 202);
        }
        numbers(&mut events, first..first + 5).await;
        last_id = events.last_id;
    }

    // The instance is killed in the middle of a stream.
    let mut events = resume(at_one, "/events?topic=t", &last_id).await;
    for number in 50..60 {
        assert_eq!(post(at_two, number).await, 202);
    }
    numbers(&mut events, 50..55).await;
    one.signal("-KILL");
    assert_eq!(post(at_two, 60).await, 202);
    let (mut seen, mut last_id) = (55, events.last_id.clone());
    while let Some(Ok(event)) = events.try_next().await {
        if event.event == "message" {
            assert_eq!(event.data, seen.to_string());
            seen += 1;
        }
        last_id.clone_from(&events.last_id);
    }
    let mut events = resume(at_two, "/events?topic=t", &last_id).await;
    numbers(&mut events, seen..61).await;

    assert_eq!(post(elsewhere, 7).await, 202);
    assert_eq!(stranger.next_own().await.data, "7");
}

#[tokio::test]
async fn instance_without_its_broker_is_healthy_but_not_ready() {
    let Some(mut server) = RedisServer::start(DURABLE) else { return };
    let (_one, addr) = start(&server, "n").await;
    let mut events = subscribe(addr, "/events?topic=t").await;
    server.kill();
    assert_eq!(post(addr, 0).await, 503);
    soon(async { while get(addr, "/readyz").await.status != 503 {} }).await;
    assert_eq!(get(addr, "/healthz").await.status, 200);
    assert_eq!(events.next().await.event, "hub.stale");
    server.restart();
    ready(addr).await;
    assert_eq!(post(addr, 1).await, 202);
    assert_eq!(events.next_own().await.data, "1");
    let stats: Value = serde_json::from_str(&get(addr, "/stats").await.text().await).unwrap();
    assert_eq!(stats["gaps"]["epoch"], 0);
}

/// A service in any language publishes in a transaction, and the hub delivers the event.
#[tokio::test]
async fn events_of_transactions_in_postgres_arrive_at_both_instances() {
    let Some(server) = PostgresServer::start(&[]) else { return };
    let (_one, at_one) = start_on(&server.url(), "n").await;
    let (_two, at_two) = start_on(&server.url(), "n").await;
    let mut pages = [subscribe(at_one, "/events?topic=t").await, subscribe(at_two, "/events?topic=t").await];
    let publish = "SELECT tower_sse.publish('n', topic => 't', data => '";
    server.psql(&format!("BEGIN; {publish}rolled back'); ROLLBACK; BEGIN; {publish}0'); COMMIT"));
    for page in &mut pages {
        numbers(page, 0..1).await;
    }
    assert_eq!(post(at_one, 1).await, 202);
    for page in &mut pages {
        numbers(page, 1..2).await;
    }
}

/// Asserts that an instance connects to the broker only if the environment trusts its certificate.
async fn only_a_trusted_certificate_is_accepted(url: &str, certificate: String) {
    let args = || ["--listen", "127.0.0.1:0", "--backplane", url].map(str::to_owned).to_vec();
    let trusting: &[_] = vec![("SSL_CERT_FILE", certificate)].leak();
    let (one, addr) = start_in(args(), trusting).await;
    ready(addr).await;
    assert_eq!(post(addr, 1).await, 202);
    one.signal("-TERM");
    let (code, _, log) = one.output().await;
    assert!(code == Some(0) && !log.contains("s3cret"), "{log}");

    let (distrusting, addr) = start_with(args()).await;
    assert_eq!(post(addr, 1).await, 503);
    assert_eq!(get(addr, "/readyz").await.status, 503);
    distrusting.signal("-TERM");
    let (_, _, log) = distrusting.output().await;
    assert!(log.contains("certificate") && !log.contains("s3cret"), "{log}");
}

#[tokio::test]
async fn redis_works_over_tls_with_a_password_that_no_log_contains() {
    let Some(made) = Certificate::make() else { return };
    let (key, certificate) = (made.key(), made.certificate());
    let port = port::free_port().to_string();
    let arguments = [
        &[
            "--save",
            "",
            "--appendonly",
            "no",
            "--tls-auth-clients",
            "no",
            "--user",
            "hub",
            "on",
            ">s3cret",
            "~*",
            "+@all",
        ][..],
        &["--tls-port", &port, "--tls-key-file", &key, "--tls-cert-file", &certificate],
    ];
    let arguments: Vec<&'static str> = arguments.concat().into_iter().map(|text| &*text.to_owned().leak()).collect();
    let Some(_server) = RedisServer::start(arguments.leak()) else { return };
    let url = format!("rediss://hub:s3cret@127.0.0.1:{port}");
    only_a_trusted_certificate_is_accepted(&url, certificate).await;
}

#[tokio::test]
async fn nats_works_over_tls_with_a_password_that_no_log_contains() {
    let Some(made) = Certificate::make() else { return };
    let (key, certificate) = (made.key(), made.certificate());
    let arguments = ["--tls", "--tlscert", &certificate, "--tlskey", &key, "--user", "hub", "--pass", "s3cret"];
    let Some(server) = NatsServer::start_with(&arguments) else { return };
    let url = format!("tls://hub:s3cret@127.0.0.1:{}", server.port);
    only_a_trusted_certificate_is_accepted(&url, certificate).await;
}
