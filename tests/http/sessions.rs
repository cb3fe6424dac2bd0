//! The code of `docs/guide/sessions.md`: a sign-out ends the streams of one session, or of all
//! sessions of a user, and no others.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::routing::post;
use http::{Request, StatusCode, header};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tower_sessions::session::Id;
use tower_sessions::{MemoryStore, Session, SessionManagerLayer, SessionStore};
use tower_sse::{Access, Disconnect, Event, Hub, Recheck, Refusal, StreamRequest, Subscription};

use crate::kit::{Events, Reply, Server, parsed, send, topics_of};

const LOGIN: &str = "login";

#[derive(Clone, Serialize, Deserialize)]
struct Login {
    user: String,
    topic: String,
    generation: u64,
}

#[derive(Clone)]
struct App {
    hub: Hub,
    /// The number that a sign-out everywhere increases. All users of a test share it.
    generation: Arc<AtomicU64>,
}

impl App {
    fn generation(&self) -> u64 {
        self.generation.load(Ordering::SeqCst)
    }
}

async fn sign_in(State(app): State<App>, session: Session, user: String) {
    session.cycle_id().await.unwrap();
    let login = Login { user, topic: format!("sessions/{}", Id::default()), generation: app.generation() };
    session.insert(LOGIN, login).await.unwrap();
}

async fn sign_out(State(app): State<App>, session: Session) {
    let login: Login = session.get(LOGIN).await.unwrap().unwrap();
    session.flush().await.unwrap();
    app.hub.topic(login.topic).disconnect(Disconnect::now().note("signed out")).await.unwrap();
}

async fn sign_out_everywhere(State(app): State<App>, session: Session) {
    let login: Login = session.get(LOGIN).await.unwrap().unwrap();
    app.generation.fetch_add(1, Ordering::SeqCst);
    session.flush().await.unwrap();
    app.hub.user(login.user).disconnect(Disconnect::now().note("signed out")).await.unwrap();
}

struct SessionAccess {
    store: MemoryStore,
    app: App,
}

impl Access for SessionAccess {
    async fn authorize(&self, request: StreamRequest) -> Result<Subscription, Refusal> {
        let session = request.extensions().get::<Session>().ok_or(Refusal::forbidden())?;
        let login = session.get::<Login>(LOGIN).await.map_err(|_| Refusal::gone())?;
        let (Some(login), Some(id)) = (login, session.id()) else { return Err(Refusal::unauthorized()) };
        if login.generation != self.app.generation() {
            return Err(Refusal::unauthorized());
        }
        Ok(Subscription::for_user(&*login.user).topic(&*login.topic).extension(id))
    }

    async fn recheck(&self, subscription: Subscription) -> Recheck {
        let id = subscription.extensions().get::<Id>().unwrap();
        match self.store.load(id).await {
            Ok(None) => Recheck::End(Refusal::unauthorized()),
            _ => Recheck::Keep,
        }
    }
}

struct Site {
    hub: Hub,
    store: MemoryStore,
    server: Server,
}

impl Site {
    async fn start() -> Self {
        let hub = Hub::builder().recheck_every(Duration::from_millis(50)).build().unwrap();
        let store = MemoryStore::default();
        let app = App { hub: hub.clone(), generation: Arc::default() };
        let router = Router::new()
            .route("/sign-in", post(sign_in))
            .route("/sign-out", post(sign_out))
            .route("/sign-out-everywhere", post(sign_out_everywhere))
            .with_state(app.clone())
            .layer(hub.layer("/events", SessionAccess { store: store.clone(), app }))
            .layer(SessionManagerLayer::new(store.clone()).with_secure(false));
        let server = Server::start(&hub, router).await;
        Self { hub, store, server }
    }

    /// Returns the cookie of a new session.
    async fn sign_in(&self, user: &'static str) -> String {
        let reply = send(self.server.addr, Request::post("/sign-in").body(user).unwrap()).await;
        assert_eq!(reply.status, 200);
        reply.header("set-cookie").split(';').next().unwrap().to_owned()
    }

    async fn request(&self, request: http::request::Builder, cookie: &str) -> Reply {
        send(self.server.addr, request.header(header::COOKIE, cookie).body("").unwrap()).await
    }

    async fn open(&self, cookie: &str) -> Events {
        let mut events = self.request(Request::get("/events"), cookie).await.events();
        events.caught_up().await;
        events
    }

    async fn status_of_stream(&self, cookie: &str) -> StatusCode {
        self.request(Request::get("/events"), cookie).await.status
    }
}

/// Reads to the end, and returns the data of `hub.bye`.
async fn bye(events: Events) -> serde_json::Value {
    let last = events.rest().await.pop().expect("no event before the end");
    assert_eq!(last.event, "hub.bye");
    parsed(&last)
}

#[tokio::test]
async fn sign_out_ends_every_stream_of_the_session_and_no_stream_of_another() {
    let site = Site::start().await;
    let (laptop, phone) = (site.sign_in("ada").await, site.sign_in("ada").await);
    let (tab, other_tab) = (site.open(&laptop).await, site.open(&laptop).await);
    let mut on_phone = site.open(&phone).await;
    assert_eq!(site.hub.user("ada").count(), 3);

    assert_eq!(site.request(Request::post("/sign-out"), &laptop).await.status, 200);
    for events in [tab, other_tab] {
        assert_eq!(bye(events).await, json!({ "reason": "disconnected", "reconnect": "now", "note": "signed out" }));
    }
    assert_eq!(site.status_of_stream(&laptop).await, 401);

    assert_eq!(site.hub.user("ada").count(), 1);
    site.hub.user("ada").publish(Event::new("document.deleted", "7")).await.unwrap();
    assert_eq!(on_phone.next().await.data, "7");
    assert_eq!(site.status_of_stream(&phone).await, 200);
}

#[tokio::test]
async fn sign_out_everywhere_ends_every_session_of_the_user() {
    let site = Site::start().await;
    let (laptop, phone) = (site.sign_in("ada").await, site.sign_in("ada").await);
    let (on_laptop, on_phone) = (site.open(&laptop).await, site.open(&phone).await);
    assert_eq!(site.request(Request::post("/sign-out-everywhere"), &laptop).await.status, 200);
    for (events, cookie) in [(on_laptop, &laptop), (on_phone, &phone)] {
        assert_eq!(bye(events).await["reason"], "disconnected");
        assert_eq!(site.status_of_stream(cookie).await, 401);
    }
}

#[tokio::test]
async fn recheck_ends_the_stream_of_a_session_that_was_deleted_without_a_disconnect() {
    let site = Site::start().await;
    let cookie = site.sign_in("ada").await;
    let events = site.open(&cookie).await;
    let id: Id = cookie.split_once('=').unwrap().1.parse().unwrap();
    site.store.delete(&id).await.unwrap();
    assert_eq!(bye(events).await["reason"], "revoked");
}

#[tokio::test]
async fn hello_does_not_show_the_id_of_the_session() {
    let site = Site::start().await;
    let cookie = site.sign_in("ada").await;
    let hello = site.request(Request::get("/events"), &cookie).await.events().next().await;
    assert_eq!(topics_of(&hello).len(), 1);
    assert!(!hello.data.contains(cookie.split_once('=').unwrap().1));
}
