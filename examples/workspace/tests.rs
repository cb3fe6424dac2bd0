//! Tests in this process, without a socket: `cargo test --example workspace`.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests may panic")]

use std::sync::OnceLock;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{Request, StatusCode, header};
use tower::ServiceExt;
use tower_sse::Message;
use tower_sse::test_kit::{FaultyLog, LogConnection, TestClient};

use crate::documents::Storage;
use crate::events::{DocumentDeleted, Notification, Post};
use crate::exporter::Exporter;
use crate::options::Options;
use crate::{App, settings, web};

type Page = TestClient<Router, Body>;

/// The secret of all instances, so that a session is valid on each of them.
const ARGUMENTS: [&str; 2] = ["--secret", "a secret of the tests"];

/// An instance, after it has the first documents.
struct Workspace {
    router: Router,
}

impl Workspace {
    async fn start(log: LogConnection) -> Self {
        static EXPORTER: OnceLock<Exporter> = OnceLock::new();
        let exporter = EXPORTER.get_or_init(|| Exporter::install().unwrap()).clone();
        let options = Options::parse(ARGUMENTS.into_iter().map(str::to_owned)).unwrap();
        let hub = settings().backplane(log).build().unwrap();
        let storage = Storage::open(&options).await.unwrap();
        let app = App::new(&hub, exporter, &options, storage).unwrap();
        let replica = app.replica.clone();
        let router = web::router(&hub, app);
        replica.ready().await;
        Self { router }
    }

    async fn send(&self, user: &str, method: &str, path: &str, body: &str) -> StatusCode {
        let request = Request::builder().method(method).uri(path).header(header::COOKIE, self.sign_in(user).await);
        let request = request.header(header::CONTENT_TYPE, "application/json");
        self.router.clone().oneshot(request.body(Body::from(body.to_owned())).unwrap()).await.unwrap().status()
    }

    async fn sign_in(&self, user: &str) -> String {
        let request = Request::post("/sign-in").header(header::CONTENT_TYPE, "application/x-www-form-urlencoded");
        let request = request.body(Body::from(format!("user={user}"))).unwrap();
        let response = self.router.clone().oneshot(request).await.unwrap();
        let cookie = response.headers()[header::SET_COOKIE].to_str().unwrap();
        cookie.split(';').next().unwrap().to_owned()
    }

    /// Returns the id of a document of a user.
    async fn document_of(&self, user: &str) -> String {
        let request = Request::get("/state/documents").header(header::COOKIE, self.sign_in(user).await);
        let response = self.router.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
        let bytes = axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap();
        let state: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
        let documents = state["content"].as_array().unwrap();
        documents.iter().find(|document| document["owner"] == user).unwrap()["id"].as_str().unwrap().to_owned()
    }

    /// Opens the stream of a page, and reads until it has caught up.
    async fn open(&self, user: &str, topic: &str) -> Page {
        let request = Request::get(format!("/events?topic={topic}")).header(header::COOKIE, self.sign_in(user).await);
        let mut page = TestClient::open(&self.router, request.body(Body::empty()).unwrap()).await.unwrap();
        while page.next().await.unwrap().name != "hub.live" {}
        page
    }
}

/// Returns the next event of a type, and skips other events.
async fn next<M: Message + serde::de::DeserializeOwned>(page: &mut Page) -> M {
    loop {
        let event = page.next().await.unwrap();
        if let Some(message) = event.message().unwrap() {
            return message;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn owner_of_a_deleted_document_is_notified_in_all_tabs_and_on_all_instances() {
    let log = FaultyLog::new();
    let (blue, green) = (Workspace::start(log.connect()).await, Workspace::start(log.connect()).await);
    let mut tabs = [blue.open("ada", "documents").await, green.open("ada", "feed").await];
    let mut other = blue.open("cem", "feed").await;
    let document = blue.document_of("ada").await;
    assert_eq!(green.send("ben", "DELETE", &format!("/documents/{document}"), "").await, StatusCode::NO_CONTENT);

    for tab in &mut tabs {
        let notification: Notification = next(tab).await;
        assert!(notification.text.contains("Ben"), "{}", notification.text);
    }
    assert_eq!(tabs[0].expect::<DocumentDeleted>().await.id, document);
    other.expect_nothing(Duration::from_secs(10)).await;
}

#[tokio::test(start_paused = true)]
async fn post_during_an_outage_of_the_broker_is_refused_and_leaves_the_page_alone() {
    let log = FaultyLog::new();
    let workspace = Workspace::start(log.connect()).await;
    let mut page = workspace.open("ada", "feed").await;
    log.faults().cut();
    let post = |text: &str| format!(r#"{{"text":"{text}"}}"#);
    assert_eq!(workspace.send("ben", "POST", "/feed", &post("lost")).await, StatusCode::SERVICE_UNAVAILABLE);
    log.faults().heal();
    while workspace.send("ben", "POST", "/feed", &post("Bridge open again")).await != StatusCode::CREATED {}
    assert_eq!(next::<Post>(&mut page).await.text, "Bridge open again");
}

#[tokio::test(start_paused = true)]
async fn page_that_reconnects_at_another_instance_gets_the_post_that_it_missed() {
    let log = FaultyLog::new();
    let (blue, green) = (Workspace::start(log.connect()).await, Workspace::start(log.connect()).await);
    let page = blue.open("ada", "feed").await;
    let last_id = page.last_id().to_owned();
    page.close();
    assert_eq!(blue.send("ben", "POST", "/feed", r#"{"text":"Bridge closed"}"#).await, StatusCode::CREATED);

    let request = Request::get("/events?topic=feed").header(header::COOKIE, green.sign_in("ada").await);
    let request = request.header("last-event-id", last_id).body(Body::empty()).unwrap();
    let mut page = TestClient::open(&green.router, request).await.unwrap();
    assert_eq!(next::<Post>(&mut page).await.text, "Bridge closed");
}
