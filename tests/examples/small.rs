//! The small examples, as processes with real requests.
#![cfg(unix)]

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use http::Request;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::task::spawn_blocking;

use crate::kit::port;
use crate::kit::{Events, get, parsed, resume, send, soon, subscribe};
use crate::process::{Process, example};

/// An example that runs on free ports.
struct Program {
    process: Process,
    at: Vec<SocketAddr>,
}

impl Program {
    /// Starts an example, and waits until it accepts connections on all ports.
    async fn start(name: &'static str, ports: usize) -> Self {
        // The build comes first, because another process could take a free port during it.
        let program = spawn_blocking(move || example(name)).await.unwrap();
        let free = std::iter::repeat_with(port::free_port).take(ports);
        let at: Vec<_> = free.map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port))).collect();
        let addresses: Vec<_> = at.iter().map(ToString::to_string).collect();
        let spawn = move || Process::spawn(program, &addresses.iter().map(String::as_str).collect::<Vec<_>>());
        let process = spawn_blocking(spawn).await.unwrap();
        soon(async {
            for addr in &at {
                while TcpStream::connect(addr).await.is_err() {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            }
        })
        .await;
        Self { process, at }
    }

    /// Asserts that the page opens a stream and loads no foreign resource, and returns it.
    async fn page(&self) -> String {
        let page = get(self.at[0], "/").await;
        assert_eq!((page.status.as_u16(), page.header("content-type")), (200, "text/html; charset=utf-8"));
        let page = page.text().await;
        assert!(page.contains("new EventSource("));
        for foreign in ["https:", "src=", "@import", "innerHTML"] {
            assert!(!page.contains(foreign), "{foreign}");
        }
        page
    }
}

async fn post(addr: SocketAddr, path: &str, body: &'static str) -> (u16, String) {
    let reply = send(addr, Request::post(path).body(body).unwrap()).await;
    (reply.status.as_u16(), reply.text().await)
}

#[tokio::test]
async fn progress_example_streams_a_computation_from_its_start_to_its_result() {
    let program = Program::start("progress", 1).await;
    program.page().await;
    let addr = program.at[0];
    let (status, job) = post(addr, "/jobs", "").await;
    assert_eq!(status, 202);
    let path = format!("/jobs/{job}");
    let mut early = get(addr, &path).await.events();
    for percent in 1..=25 {
        assert_eq!(early.next_own().await.data, (percent * 2).to_string());
    }
    let during = get(addr, &path).await.events();
    let (early, during) = (early.rest().await, during.rest().await);
    let after = get(addr, &path).await.events().rest().await;
    let last = &early[early.len() - 2..];
    assert_eq!((last[0].event.as_str(), last[0].data.as_str()), ("result", "78498 primes below 1000000"));
    assert_eq!(parsed(&last[1]), json!({ "reason": "finished", "reconnect": "never" }));
    for events in [&during, &after] {
        let percents = events.iter().filter(|event| event.event == "progress").map(|event| event.data.as_str());
        assert!(percents.eq((1..=50).map(|percent| (percent * 2).to_string())), "{events:?}");
        assert_eq!(events[events.len() - 2].data, last[0].data);
    }
    assert_eq!(get(addr, "/jobs/unknown").await.status, 204);
    let late = Request::get("/jobs/unknown").header("last-event-id", &last[0].id).body("").unwrap();
    assert_eq!(send(addr, late).await.status, 404);
}

/// Reads figures until one of them has the expected value, and returns all that were read.
async fn figures(events: &mut Events, until: (&str, &str)) -> BTreeMap<String, String> {
    let mut figures = BTreeMap::new();
    while figures.get(until.0).map(String::as_str) != Some(until.1) {
        let figure: Value = serde_json::from_str(&events.next_own().await.data).unwrap();
        let [name, value] = ["name", "value"].map(|field| figure[field].as_str().unwrap().to_owned());
        figures.insert(name, value);
    }
    figures
}

#[tokio::test]
async fn dashboard_that_opens_late_receives_all_current_figures() {
    let program = Program::start("dashboard", 1).await;
    program.page().await;
    let addr = program.at[0];
    let mut first = get(addr, "/events").await.events();
    let seen = figures(&mut first, ("pages open", "1")).await;
    assert!(seen["process"].parse::<u32>().unwrap() > 0);
    let mut second = get(addr, "/events").await.events();
    let all = figures(&mut second, ("pages open", "2")).await;
    assert_eq!(all["process"], seen["process"], "the figure was sent once, before the second page");
    let changed = figures(&mut first, ("pages open", "2")).await;
    assert!(!changed.contains_key("process"), "a figure was sent without a change: {changed:?}");
    drop(second);
    figures(&mut first, ("pages open", "1")).await;
}

#[tokio::test]
async fn feed_sends_the_newest_entries_to_a_new_page_and_missed_ones_to_a_resuming_page() {
    let program = Program::start("feed", 1).await;
    program.page().await;
    let addr = program.at[0];
    for number in 0..25 {
        assert_eq!(post(addr, "/entries", number.to_string().leak()).await.0, 201);
    }
    let mut page = get(addr, "/events").await.events();
    let entries: Vec<_> = page.caught_up().await.into_iter().filter(|event| event.event == "entry").collect();
    let texts: Vec<u32> = entries.iter().map(|entry| entry.data.parse().unwrap()).collect();
    assert_eq!(texts, (5..25).collect::<Vec<_>>());
    let id = page.last_id.clone();
    drop(page);
    assert_eq!(post(addr, "/entries", "one").await.0, 201);
    assert_eq!(post(addr, "/entries", "two").await.0, 201);
    let mut page = resume(addr, "/events", &id).await;
    let missed = page.caught_up().await;
    assert!(missed[0].data.contains(r#""cursor":"resuming""#), "{}", missed[0].data);
    let missed: Vec<_> = missed[1..].iter().map(|event| event.data.as_str()).collect();
    assert_eq!(missed, ["one", "two"]);
}

#[tokio::test]
async fn handler_authorizes_by_its_extractor_and_its_path() {
    let program = Program::start("handler", 1).await;
    program.page().await;
    let addr = program.at[0];
    let open = async |user: &str, room: &str| {
        let request = Request::get(format!("/rooms/{room}/events")).header("cookie", format!("user={user}"));
        send(addr, request.body("").unwrap()).await
    };
    let signed_in = get(addr, "/as/ada").await;
    assert!(signed_in.header("set-cookie").starts_with("user=ada;"));
    assert_eq!(get(addr, "/as/stranger").await.status, 404);
    assert_eq!(get(addr, "/rooms/lobby/events").await.status, 401);
    assert_eq!(open("ben", "office").await.status, 403);
    let mut office = open("ada", "office").await.events();
    let mut lobby = open("ben", "lobby").await.events();
    office.caught_up().await;
    lobby.caught_up().await;
    // The server resets the connection if the body of a refused request arrives after the response.
    // So that request has no body.
    for (user, room, text, status) in
        [("ada", "office", "hello", 202), ("ada", "lobby", "hello", 202), ("ben", "office", "", 403)]
    {
        let request = Request::post(format!("/rooms/{room}")).header("cookie", format!("user={user}"));
        assert_eq!(send(addr, request.body(text).unwrap()).await.status, status);
    }
    assert_eq!(office.next_own().await.data, "ada: hello");
    assert_eq!(lobby.next_own().await.data, "ada: hello");
}

#[tokio::test]
async fn shutdown_sends_a_bye_and_waits_a_limited_time_for_requests() {
    let program = Program::start("shutdown", 1).await;
    program.page().await;
    let addr = program.at[0];
    assert_eq!(get(addr, "/readyz").await.status, 200);
    let mut slow = TcpStream::connect(addr).await.unwrap();
    slow.write_all(b"GET /slow HTTP/1.1\r\nhost: test\r\n\r\n").await.unwrap();
    let events = subscribe(addr, "/events").await;
    let signalled = Instant::now();
    program.process.signal("-TERM");
    let bye = events.rest().await.pop().unwrap();
    assert!(bye.event == "hub.bye" && bye.data.contains(r#""reason":"draining""#), "{bye:?}");
    assert!(bye.retry.unwrap() <= Duration::from_secs(5));
    let (code, out, _) = program.process.output().await;
    assert_eq!((code, out.lines().last()), (Some(0), Some("1 streams ended, 0 were cut")));
    assert!(signalled.elapsed() >= Duration::from_secs(2), "the shutdown did not wait for the request");
    drop(slow);
}

#[tokio::test]
async fn ticket_opens_one_stream_for_a_page_of_another_origin() {
    let program = Program::start("tickets", 2).await;
    let (front_end, api) = (program.at[0], program.at[1]);
    let page = program.page().await;
    assert!(
        page.contains(&format!(r#"const API = "http://{api}";"#)) && page.contains("new EventSource(`${API}/events?")
    );
    let origin = format!("http://{front_end}");
    let from_page = |request: http::request::Builder, origin: &str| {
        request.header("origin", origin).header("sec-fetch-site", "same-site").body("").unwrap()
    };

    let preflight = Request::options("/ticket")
        .header("access-control-request-method", "POST")
        .header("access-control-request-headers", "authorization");
    let allowed = send(api, from_page(preflight, &origin)).await;
    assert_eq!(allowed.header("access-control-allow-origin"), origin);
    assert_eq!(allowed.header("access-control-allow-headers"), "authorization");

    for forged in ["", "Bearer forged"] {
        let request = Request::post("/ticket").header("authorization", forged);
        assert_eq!(send(api, from_page(request, &origin)).await.status, 401);
    }
    let authorized = |path: &str| Request::post(path).header("authorization", "Bearer token-of-ada");
    let ticket = send(api, from_page(authorized("/ticket"), &origin)).await.text().await;
    let path = format!("/events?ticket={}", ticket.trim_matches('"'));
    assert_eq!(send(api, from_page(Request::get(&path), "http://evil.example")).await.status, 403);
    let reply = send(api, from_page(Request::get(&path), &origin)).await;
    assert_eq!(reply.header("access-control-allow-origin"), origin);
    let mut events = reply.events();
    events.caught_up().await;
    assert_eq!(send(api, from_page(Request::get(&path), &origin)).await.status, 401, "a ticket is valid once");
    assert_eq!(get(api, "/events").await.status, 401);
    assert_eq!(send(api, from_page(authorized("/greet"), &origin)).await.status, 202);
    assert_eq!(events.next_own().await.data, "Hello, ada!");
}
