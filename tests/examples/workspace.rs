//! The example `workspace` as a process: a change by one user reaches the others, on every page and
//! at every instance.
#![cfg(unix)]

use std::net::SocketAddr;
use std::time::Duration;

use http::Request;
use http_body_util::Full;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::task::spawn_blocking;

use crate::kit::port;
use crate::kit::postgres::PostgresServer;
use crate::kit::{Events, Reply, Sse, get, http2, parsed, send, soon};
use crate::process::{Process, example};
use crate::redis_server::{FORGETFUL, RedisServer};

const SECRET: &str = "a secret of the tests";

struct Workspace {
    process: Process,
    addr: SocketAddr,
}

impl Workspace {
    async fn start() -> Self {
        Self::start_with(Self::free_address(), &["--secret", SECRET]).await
    }

    /// Returns an address with an odd port, because the Redis servers of these tests take even
    /// ports.
    fn free_address() -> SocketAddr {
        let port = std::iter::repeat_with(port::free_port).find(|port| port % 2 == 1).unwrap();
        SocketAddr::from(([127, 0, 0, 1], port))
    }

    /// Starts an instance, and waits until it has read its log and has the first documents.
    async fn start_with(addr: SocketAddr, args: &[&str]) -> Self {
        let mut args: Vec<String> = args.iter().map(ToString::to_string).collect();
        args.extend(["--listen".to_owned(), addr.to_string()]);
        let spawn = move || Process::spawn(example("workspace"), &args.iter().map(String::as_str).collect::<Vec<_>>());
        let process = spawn_blocking(spawn).await.unwrap();
        let workspace = Self { process, addr };
        soon(async {
            while TcpStream::connect(addr).await.is_err() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            let cem = workspace.sign_in("cem").await;
            loop {
                let reply = cem.get("/state/documents").await;
                if reply.status == 200 && reply.text().await.contains("A document of Cem") {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
        workspace
    }

    async fn sign_in(&self, user: &str) -> Browser {
        let reply = form(self.addr, "/sign-in", format!("user={user}&next=feed")).await;
        assert_eq!((reply.status.as_u16(), reply.header("location")), (303, "/feed"));
        let cookie = reply.header("set-cookie");
        assert!(cookie.contains("; HttpOnly; SameSite=Lax; "), "{cookie}");
        Browser { addr: self.addr, cookie: cookie.split(';').next().unwrap().to_owned() }
    }

    /// Stops the instance by SIGTERM, and returns its log.
    async fn stop(self) -> String {
        self.process.signal("-TERM");
        let (code, _, log) = self.process.output().await;
        assert_eq!(code, Some(0), "{log}");
        log
    }
}

async fn form(addr: SocketAddr, path: &str, body: String) -> Reply {
    let request = Request::post(path).header("content-type", "application/x-www-form-urlencoded");
    send(addr, request.body(&*body.leak()).unwrap()).await
}

/// A client that is signed in.
#[derive(Clone)]
struct Browser {
    addr: SocketAddr,
    cookie: String,
}

impl Browser {
    async fn get(&self, path: &str) -> Reply {
        send(self.addr, Request::get(path).header("cookie", &self.cookie).body("").unwrap()).await
    }

    async fn state(&self, page: &str) -> Value {
        serde_json::from_str(&self.get(&format!("/state/{page}")).await.text().await).unwrap()
    }

    /// Loads the state of a page, and opens its stream from that position.
    async fn open(&self, page: &str, topic: &str) -> (Value, Events) {
        let state = self.state(page).await;
        let from = state["position"].as_str().unwrap();
        let mut events = self.get(&format!("/events?topic={topic}&last_event_id={from}")).await.events();
        assert_eq!(events.next().await.event, "hub.hello");
        (state, events)
    }

    async fn send(&self, method: &str, path: &str, body: Option<Value>) -> u16 {
        let request = Request::builder().method(method).uri(path).header("cookie", &self.cookie);
        let request = request.header("content-type", "application/json");
        let body = body.map_or(String::new(), |body| body.to_string());
        send(self.addr, request.body(&*body.leak()).unwrap()).await.status.as_u16()
    }

    /// Returns the id of the document with this title.
    async fn id_of(&self, title: &str) -> String {
        let state = self.state("documents").await;
        let documents = state["content"].as_array().unwrap();
        documents.iter().find(|each| each["title"] == title).unwrap()["id"].as_str().unwrap().to_owned()
    }
}

/// Reads until the next event of this name, and returns its data.
async fn next(events: &mut Events, name: &str) -> Value {
    loop {
        let Sse { event, data, .. } = events.next().await;
        if event == name {
            return serde_json::from_str(&data).unwrap();
        }
    }
}

#[tokio::test]
async fn owner_of_a_deleted_document_is_notified_on_every_page() {
    let workspace = Workspace::start().await;
    let (ada, ben) = (workspace.sign_in("ada").await, workspace.sign_in("ben").await);
    assert_eq!(ada.send("POST", "/documents", Some(json!({ "text": " Plans " }))).await, 201);
    let id = ben.id_of("Plans").await;

    let (_, mut dashboard) = ada.open("dashboard", "metrics").await;
    let (_, mut feed) = ada.open("feed", "feed").await;
    let (_, mut documents) = ben.open("documents", "documents").await;
    assert_eq!(ben.send("DELETE", &format!("/documents/{id}"), None).await, 204);
    for page in [&mut dashboard, &mut feed] {
        let notification = next(page, "notification").await;
        assert_eq!(notification["text"], "Ben deleted your document “Plans”");
        assert_eq!(notification["read"], false);
    }
    assert_eq!(next(&mut documents, "document.deleted").await, json!({ "id": id }));
    assert_eq!(ben.send("DELETE", &format!("/documents/{id}"), None).await, 404);

    // A notification that is read in one tab is read in the other tabs and on later pages.
    assert_eq!(ada.send("POST", "/notifications/read", None).await, 204);
    for page in [&mut dashboard, &mut feed] {
        assert_eq!(next(page, "notification").await["read"], true);
    }
    assert_eq!(ada.state("reports").await["notifications"][0]["read"], true);
    assert_eq!(ben.state("reports").await["notifications"], json!([]));

    // A user gets no notification of their own change.
    let id = ada.id_of("A document of Ada").await;
    assert_eq!(ada.send("DELETE", &format!("/documents/{id}"), None).await, 204);
    assert_eq!(ada.state("feed").await["notifications"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn report_sends_its_progress_and_the_right_result() {
    let workspace = Workspace::start().await;
    let (ada, ben) = (workspace.sign_in("ada").await, workspace.sign_in("ben").await);
    let (_, mut page) = ada.open("reports", "reports/ada").await;
    assert_eq!(ada.send("POST", "/reports", Some(json!({ "limit": 5_000_000 }))).await, 202);
    let started = next(&mut page, "report").await;
    assert_eq!((&started["state"], &started["percent"]), (&json!("running"), &json!(0)));
    let run = events_of(&started);
    let mut reports = reports(&ada, &run, "finished").await;
    let percents: Vec<_> = reports.iter().map(|report| report["percent"].as_u64().unwrap()).collect();
    assert!(percents.is_sorted(), "{percents:?}");
    let done = reports.pop().unwrap();
    assert!(reports.iter().all(|report| report["state"] == "running"));
    assert_eq!((&done["state"], &done["percent"], &done["primes"]), (&json!("done"), &json!(100), &json!(348_513)));
    assert_eq!(next(&mut page, "report").await, done);
    let notification = next(&mut page, "notification").await;
    assert_eq!(notification["text"], "Your report is ready: 348,513 primes below 5,000,000");

    // A stream that opens after the end has the whole run. Other users have no such run.
    assert_eq!(self::reports(&ada, &run, "finished").await.last(), Some(&done));
    assert_eq!(ben.get(&run).await.status, 204);
    assert_eq!(ben.send("DELETE", run.trim_end_matches("/events"), None).await, 404);
    // A page without a position receives the newest report at once. Other users receive none.
    let mut late = ada.get("/events?topic=reports/ada").await.events();
    assert_eq!(next(&mut late, "report").await, done);
    assert_eq!(ben.get("/events?topic=reports/ada").await.status, 403);
    assert_eq!(ben.state("reports").await["content"], json!([]));
    assert_eq!(ben.send("POST", "/reports", Some(json!({ "limit": 10 }))).await, 422);
}

/// Returns the path of the stream of a report.
fn events_of(report: &Value) -> String {
    format!("/reports/{}/events", report["id"].as_str().unwrap())
}

/// Reads the stream of a report to its end, and returns the states of the report.
async fn reports(user: &Browser, path: &str, end: &str) -> Vec<Value> {
    let mut events = user.get(path).await.events().rest().await;
    assert_eq!(parsed(&events.pop().unwrap())["reason"], end);
    events.iter().filter(|event| event.event == "report").map(parsed).collect()
}

#[tokio::test]
async fn user_stops_a_report() {
    let workspace = Workspace::start().await;
    let ada = workspace.sign_in("ada").await;
    let (_, mut page) = ada.open("reports", "reports/ada").await;
    assert_eq!(ada.send("POST", "/reports", Some(json!({ "limit": 1_000_000_000 }))).await, 202);
    let run = events_of(&next(&mut page, "report").await);
    let report = run.trim_end_matches("/events");
    assert_eq!(ada.send("DELETE", report, None).await, 202);
    assert_eq!(reports(&ada, &run, "stopped").await.pop().unwrap()["state"], "stopped");
    assert_eq!(next(&mut page, "report").await["state"], "stopped");
    assert_eq!(ada.send("DELETE", report, None).await, 404);
}

#[cfg(not(target_os = "linux"))]
#[test]
fn metrics_are_those_of_this_process_and_this_machine() {
    crate::kit::skip::skipped("the example reads the metrics of Linux");
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn metrics_are_those_of_this_process_and_this_machine() {
    let workspace = Workspace::start().await;
    let ada = workspace.sign_in("ada").await;
    let (_, mut page) = ada.open("dashboard", "metrics").await;
    // The first sample has no CPU figures, because they are differences between two samples.
    let sample = loop {
        let sample = next(&mut page, "sample").await;
        if sample["connections"] == 1 && !sample["machine_cpu"].is_null() {
            break sample;
        }
    };
    assert_eq!(sample["instance"], workspace.addr.to_string());
    let percent = |name: &str| sample[name].as_f64().unwrap();
    assert!((0.0..=100.0).contains(&percent("machine_cpu")) && percent("process_cpu") <= 100.0, "{sample}");
    let bytes = |name: &str| sample[name].as_u64().unwrap();
    assert!(bytes("process_memory") > 1 << 20 && bytes("machine_memory") > bytes("process_memory"), "{sample}");
    assert!(bytes("machine_memory_total") > bytes("machine_memory"), "{sample}");
    assert!(ada.state("dashboard").await["content"].as_array().unwrap().contains(&sample));
}

#[tokio::test]
async fn posts_during_a_disconnect_arrive_in_order() {
    let workspace = Workspace::start().await;
    let (ada, ben) = (workspace.sign_in("ada").await, workspace.sign_in("ben").await);
    let (_, mut page) = ada.open("feed", "feed").await;
    assert_eq!(ben.send("POST", "/feed", Some(json!({ "text": "one" }))).await, 201);
    assert_eq!(next(&mut page, "post").await["text"], "one");
    let id = page.last_id.clone();
    drop(page);
    for text in ["two", "<script>three</script>"] {
        assert_eq!(ben.send("POST", "/feed", Some(json!({ "text": text }))).await, 201);
    }
    let again = Request::get("/events?topic=feed").header("cookie", &ada.cookie).header("last-event-id", id);
    let mut page = send(ada.addr, again.body("").unwrap()).await.events();
    assert!(page.next().await.data.contains("resuming"));
    for text in ["two", "<script>three</script>"] {
        let post = next(&mut page, "post").await;
        assert_eq!((&post["text"], &post["author"]), (&json!(text), &json!("ben")));
    }
}

#[tokio::test]
async fn page_continues_with_one_gap_after_a_restart() {
    let workspace = Workspace::start().await;
    let addr = workspace.addr;
    let ada = workspace.sign_in("ada").await;
    assert_eq!(ada.send("POST", "/documents", Some(json!({ "text": "Lost" }))).await, 201);
    assert_eq!(ada.send("POST", "/reports", Some(json!({ "limit": 1_000_000_000 }))).await, 202);
    let (_, mut page) = ada.open("reports", "reports/ada").await;
    page.caught_up().await;
    let report = ada.state("reports").await["content"][0].clone();
    let mut run = ada.get(&events_of(&report)).await.events();
    run.caught_up().await;
    let begun = std::time::Instant::now();
    workspace.process.signal("-TERM");
    let run = run.rest().await;
    let [.., last, end] = &run[..] else { panic!("{run:?}") };
    assert_eq!((&parsed(last)["state"], &parsed(end)["reason"]), (&json!("interrupted"), &json!("failed")));
    while next(&mut page, "report").await["state"] != "interrupted" {}
    let id = page.last_id.clone();
    let bye = page.rest().await.pop().unwrap();
    assert!(bye.event == "hub.bye" && bye.data.contains(r#""reason":"draining""#), "{}", bye.data);
    workspace.stop().await;

    let workspace = Workspace::start_with(addr, &["--secret", SECRET]).await;
    // A generous limit for a busy machine. A restart takes 0.3 s on an idle one.
    assert!(begun.elapsed().as_secs() < 10);
    let again = Request::get("/events?topic=documents").header("cookie", &ada.cookie).header("last-event-id", id);
    let mut page = send(addr, again.body("").unwrap()).await.events();
    assert_eq!(next(&mut page, "hub.gap").await["reason"], "epoch");
    let (state, mut page) = ada.open("documents", "documents").await;
    assert_eq!((state["content"].as_array().unwrap().len(), &state["user"]), (3, &json!("ada")));
    assert!(page.caught_up().await.is_empty());
    workspace.stop().await;

    // An instance without the same secret rejects the cookie.
    let _workspace = Workspace::start_with(addr, &[]).await;
    assert_eq!(ada.get("/events?topic=documents").await.status, 401);
    assert_eq!(ada.get("/state/documents").await.status, 401);
    let page = ada.get("/documents").await;
    assert_eq!((page.status.as_u16(), page.header("location")), (303, "/sign-in?next=documents"));
}

#[tokio::test]
async fn sign_out_ends_every_tab_of_its_session_and_of_no_other() {
    let workspace = Workspace::start().await;
    let (here, there) = (workspace.sign_in("ada").await, workspace.sign_in("ada").await);
    let (_, first) = here.open("feed", "feed").await;
    let (_, second) = here.open("documents", "documents").await;
    let (_, mut other) = there.open("feed", "feed").await;
    let reply = send(here.addr, Request::post("/sign-out").header("cookie", &here.cookie).body("").unwrap()).await;
    assert!(reply.header("set-cookie").contains("Max-Age=0"));
    for page in [first, second] {
        let bye: Value = serde_json::from_str(&page.rest().await.pop().unwrap().data).unwrap();
        assert_eq!((&bye["reconnect"], &bye["note"]), (&json!("never"), &json!("signed out")));
    }
    assert_eq!(here.get("/state/feed").await.status, 401);
    assert_eq!(here.get("/events?topic=feed").await.status, 401);
    assert_eq!(there.send("POST", "/feed", Some(json!({ "text": "still here" }))).await, 201);
    assert_eq!(next(&mut other, "post").await["text"], "still here");
}

#[tokio::test]
async fn invalid_requests_are_refused_without_a_panic() {
    let workspace = Workspace::start().await;
    let addr = workspace.addr;
    let ada = workspace.sign_in("ada").await;

    let long = "x".repeat(81);
    for (text, status) in [(json!({ "text": "  " }), 422), (json!({ "text": long }), 422), (json!({ "text": 7 }), 422)]
    {
        assert_eq!(ada.send("POST", "/documents", Some(text)).await, status);
    }
    assert_eq!(ada.send("POST", "/feed", Some(json!({ "text": "x".repeat(20_000) }))).await, 413);
    assert_eq!(ada.send("POST", "/feed", None).await, 400);
    assert_eq!(ada.send("POST", "/reports", Some(json!({ "limit": -1 }))).await, 422);
    assert_eq!(ada.send("DELETE", "/documents/%00", None).await, 404);
    assert_eq!(ada.send("DELETE", "/documents/%ff", None).await, 400);
    for path in ["/state/secrets", "/assets/..%2fmain.rs", "/nothing"] {
        assert_eq!(ada.get(path).await.status, 404, "{path}");
    }
    for path in ["/events?topic=sessions", "/events?topic=notifications", "/events?topic=reports/ben", "/events?topic="]
    {
        assert_eq!(ada.get(path).await.status, 403, "{path}");
    }

    // Cookies with a forged signature.
    let (claim, signature) = ada.cookie.rsplit_once('.').unwrap();
    let forged = claim.replace("=ada.", "=ben.");
    let signatures = [signature, "", "zz", "é", &signature[..10]];
    for cookie in
        signatures.map(|signature| format!("{forged}.{signature}")).into_iter().chain(["workspace_session=".into()])
    {
        let request = Request::get("/state/feed").header("cookie", cookie.as_bytes()).body("").unwrap();
        assert_eq!(send(addr, request).await.status, 401, "{cookie}");
    }
    assert_eq!(form(addr, "/sign-in", "user=eve".into()).await.status, 422);
    let elsewhere = form(addr, "/sign-in", "user=ada&next=//evil.example".into()).await;
    assert_eq!(elsewhere.header("location"), "/documents");

    // Requests from pages of other sites.
    for (name, value, status) in [
        ("origin", "http://evil.example", 403),
        ("sec-fetch-site", "cross-site", 403),
        ("sec-fetch-site", "same-site", 403),
        ("sec-fetch-site", "same-origin", 204),
        ("origin", "http://test", 204),
        ("origin", "null", 403),
    ] {
        let request = Request::post("/notifications/read").header("cookie", &ada.cookie).header(name, value);
        assert_eq!(send(addr, request.body("").unwrap()).await.status, status, "{value}");
    }
    // HTTP/2 requests have no `Host` header.
    let mut connection = http2(addr).await;
    for (origin, status) in [("http://test", 204), ("http://evil.example", 403), ("null", 403)] {
        let request = Request::post("http://test/notifications/read").header("cookie", &ada.cookie);
        let request = request.header("origin", origin).body(Full::default()).unwrap();
        assert_eq!(connection.send_request(request).await.unwrap().status(), status, "{origin}");
    }
    assert_eq!(ada.state("feed").await["content"], json!([]));
    assert!(!workspace.stop().await.contains("panicked"));
}

#[tokio::test]
async fn pages_load_no_foreign_resource_and_never_insert_text_as_html() {
    let workspace = Workspace::start().await;
    let ada = workspace.sign_in("ada").await;
    let mut assets = vec!["/assets/events.js".to_owned(), "/assets/shell.js".to_owned()];
    for page in ["documents", "reports", "dashboard", "feed"] {
        let reply = ada.get(&format!("/{page}")).await;
        assert!(reply.header("content-security-policy").starts_with("default-src 'self';"));
        let html = reply.text().await;
        assert!(!html.contains("http:") && !html.contains("https:") && !html.contains("{main}"), "{page}");
        let links = html.split(['"', '\'']).filter(|link| link.starts_with("/assets/"));
        assets.extend(links.map(str::to_owned));
    }
    for asset in assets {
        let reply = get(workspace.addr, &asset).await;
        assert_eq!(reply.status, 200, "{asset}");
        let text = reply.text().await;
        for danger in ["innerHTML", "insertAdjacentHTML", "outerHTML", "document.write", "https:", "@import", "eval("] {
            assert!(!text.contains(danger), "{danger} in {asset}");
        }
    }
}

#[tokio::test]
async fn error_of_an_invalid_command_line_contains_no_secret() {
    for args in
        [&["--secret", "s3cret"][..], &["--backplane", "http://ada:s3cret@h"], &["--s3cret", "x"], &["--listen"]]
    {
        let process = spawn_blocking(move || Process::spawn(example("workspace"), args)).await.unwrap();
        let (code, _, error) = process.output().await;
        assert!(code == Some(2) && !error.contains("s3cret") && error.contains("workspace [--listen"), "{error}");
    }
    let environment = [("WORKSPACE_SECRET", "s3cret".to_owned())];
    let spawn = move || Process::spawn_in(example("workspace"), &[], &environment);
    let (code, _, error) = spawn_blocking(spawn).await.unwrap().output().await;
    assert!(code == Some(2) && !error.contains("s3cret") && error.contains("shorter than 16"), "{error}");
}

#[tokio::test]
async fn two_instances_with_a_shared_log_act_as_one() {
    let Some(redis) = RedisServer::start(FORGETFUL) else { return };
    let url = redis.url();
    let args = ["--secret", SECRET, "--backplane", &url];
    let a = Workspace::start_with(Workspace::free_address(), &args).await;
    let at_a = a.sign_in("ada").await;
    assert_eq!(at_a.send("POST", "/documents", Some(json!({ "text": "Plans" }))).await, 201);
    assert_eq!(at_a.send("POST", "/feed", Some(json!({ "text": "Hello" }))).await, 201);

    // An instance that starts later has all of the content, and accepts the session.
    let b = Workspace::start_with(Workspace::free_address(), &args).await;
    let at_b = Browser { addr: b.addr, ..at_a.clone() };
    let ben = b.sign_in("ben").await;
    assert_eq!(ben.state("feed").await["content"][0]["text"], "Hello");
    let id = ben.id_of("Plans").await;
    let (_, mut page_a) = at_a.open("feed", "feed").await;
    let (_, page_b) = at_b.open("reports", "reports/ada").await;
    assert_eq!(ben.send("DELETE", &format!("/documents/{id}"), None).await, 204);
    assert_eq!(next(&mut page_a, "notification").await["text"], "Ben deleted your document “Plans”");

    // A page that reconnects to the other instance resumes.
    let last = page_a.last_id.clone();
    assert_eq!(ben.send("POST", "/feed", Some(json!({ "text": "Bye" }))).await, 201);
    let again = Request::get("/events?topic=feed").header("cookie", &at_b.cookie).header("last-event-id", last);
    let mut moved = send(b.addr, again.body("").unwrap()).await.events();
    let before: Vec<_> = moved.caught_up().await.into_iter().map(|event| event.event).collect();
    assert_eq!(before, ["hub.hello", "post"]);

    // A report of one instance is read and stopped at the other.
    let (_, mut list) = at_b.open("reports", "reports/ada").await;
    assert_eq!(at_a.send("POST", "/reports", Some(json!({ "limit": 1_000_000_000 }))).await, 202);
    let run = events_of(&next(&mut list, "report").await);
    let mut progress = at_b.get(&run).await.events();
    assert_eq!(next(&mut progress, "report").await["state"], "running");
    assert_eq!(at_b.send("DELETE", run.trim_end_matches("/events"), None).await, 202);
    let end = progress.rest().await;
    assert_eq!(parsed(&end[end.len() - 2])["state"], "stopped");
    assert_eq!(reports(&at_a, &run, "stopped").await.last(), Some(&parsed(&end[end.len() - 2])));

    // A sign-out at one instance ends the session at both.
    let reply = send(a.addr, Request::post("/sign-out").header("cookie", &at_a.cookie).body("").unwrap()).await;
    assert_eq!(reply.status, 303);
    for page in [page_a, page_b, moved] {
        assert!(page.rest().await.pop().unwrap().data.contains("signed out"));
    }
    soon(async {
        while at_b.get("/state/feed").await.status != 401 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

/// Makes the commit of each transaction fail that deletes the document “Budget”.
const REFUSE: &str = "\\c workspace
    CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'not permitted'; END $$;
    CREATE CONSTRAINT TRIGGER refuse AFTER DELETE ON workspace.documents DEFERRABLE INITIALLY DEFERRED
      FOR EACH ROW WHEN (OLD.title = 'Budget') EXECUTE FUNCTION refuse()";

#[tokio::test]
async fn deletion_in_a_table_of_postgres_notifies_the_owner_only_if_it_is_committed() {
    let Some(server) = PostgresServer::start(&[]) else { return };
    let url = server.create_database("workspace");
    let args = ["--secret", SECRET, "--backplane", &url];
    let (a, b) = (Workspace::free_address(), Workspace::free_address());
    let (a, b) = tokio::join!(Workspace::start_with(a, &args), Workspace::start_with(b, &args));
    let (ada, ben) = (a.sign_in("ada").await, b.sign_in("ben").await);
    for title in ["Budget", "Plans"] {
        assert_eq!(ada.send("POST", "/documents", Some(json!({ "text": title }))).await, 201);
    }
    let (_, mut page) = ada.open("documents", "documents").await;
    server.psql(REFUSE);
    let (budget, plans) = (ben.id_of("Budget").await, ben.id_of("Plans").await);
    assert_eq!(ben.send("DELETE", &format!("/documents/{budget}"), None).await, 503);
    assert_eq!(ben.send("DELETE", &format!("/documents/{plans}"), None).await, 204);
    assert_eq!(ben.send("DELETE", &format!("/documents/{plans}"), None).await, 404);
    assert_eq!(next(&mut page, "notification").await["text"], "Ben deleted your document “Plans”");
    assert_eq!(next(&mut page, "document.deleted").await, json!({ "id": plans }));
    let documents = ada.state("documents").await["content"].clone();
    let titles: Vec<_> = documents.as_array().unwrap().iter().map(|each| each["title"].as_str().unwrap()).collect();
    assert_eq!((titles.len(), titles[0]), (4, "Budget"));
    assert_eq!(ada.state("feed").await["notifications"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn sign_out_fails_while_the_broker_is_down_and_can_be_repeated() {
    let Some(mut redis) = RedisServer::start(FORGETFUL) else { return };
    let args = ["--secret", SECRET, "--backplane", &redis.url()];
    let a = Workspace::start_with(Workspace::free_address(), &args).await;
    let b = Workspace::start_with(Workspace::free_address(), &args).await;
    let at_a = a.sign_in("ada").await;
    let at_b = Browser { addr: b.addr, ..at_a.clone() };
    let sign_out =
        async || send(a.addr, Request::post("/sign-out").header("cookie", &at_a.cookie).body("").unwrap()).await;
    redis.kill();
    let reply = sign_out().await;
    assert!(reply.status == 503 && !reply.headers.contains_key("set-cookie"));
    assert_eq!(reply.text().await, "The shared log is unavailable. Try again in a moment.");
    assert_eq!(at_a.get("/state/feed").await.status, 200);

    redis.restart();
    soon(async {
        while sign_out().await.status != 303 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        for browser in [&at_a, &at_b] {
            while browser.get("/state/feed").await.status != 401 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    })
    .await;
}

#[tokio::test]
async fn services_are_emptied_when_the_log_restarts_empty() {
    let Some(mut redis) = RedisServer::start(FORGETFUL) else { return };
    let args = ["--secret", SECRET, "--backplane", &redis.url()];
    let workspace = Workspace::start_with(Workspace::free_address(), &args).await;
    let ada = workspace.sign_in("ada").await;
    let (_, mut page) = ada.open("documents", "documents").await;
    redis.kill();
    next(&mut page, "hub.stale").await;
    assert_eq!(ada.send("POST", "/documents", Some(json!({ "text": "Not now" }))).await, 503);
    // The instance still serves the content that it has read, and a page can be opened from there.
    let (state, mut meanwhile) = ada.open("documents", "documents").await;
    assert_eq!(state["content"].as_array().unwrap().len(), 3);
    next(&mut meanwhile, "hub.stale").await;
    redis.restart();
    assert_eq!(next(&mut page, "hub.gap").await["reason"], "epoch");
    soon(async {
        while ada.send("POST", "/documents", Some(json!({ "text": "Again" }))).await != 201 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        loop {
            let reply = ada.get("/state/documents").await;
            if reply.status == 200 {
                let state: Value = serde_json::from_str(&reply.text().await).unwrap();
                let titles = state["content"].as_array().unwrap().iter().map(|each| &each["title"]);
                if titles.eq(["Again"]) {
                    break;
                }
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn metrics_count_the_open_pages_for_prometheus() {
    let workspace = Workspace::start().await;
    let ada = workspace.sign_in("ada").await;
    let (_, page) = ada.open("feed", "feed").await;
    let text = get(workspace.addr, "/metrics").await.text().await;
    let sample = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<f64>().ok());
    assert!(sample("sse_server_connections_total").is_some_and(|count| count >= 1.0), "{text}");
    assert!(sample("sse_server_active_connections").is_some_and(|count| count >= 1.0), "{text}");
    assert!(text.contains("# TYPE sse_server_publish_duration_seconds histogram"), "{text}");
    drop(page);
}
