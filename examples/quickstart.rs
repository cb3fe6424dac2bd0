//! What one tab does, every tab of that user shows.
//!
//! `cargo run --example quickstart`, then open <http://127.0.0.1:3000> in two tabs.

#![allow(clippy::print_stdout, reason = "a program with a console")]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::extract::{FromRef, Path, State};
use axum::http::{HeaderMap, HeaderName, StatusCode, header};
use axum::response::{Html, IntoResponse, Redirect};
use axum::routing::{delete, get};
use axum::{Json, Router};
use serde::Serialize;
use tower_sse::{Event, Hub, PublishError, Refusal, StreamRequest, Subscription};

/// A service that knows nothing of HTTP. It has a `Hub`, and says what happened.
struct Documents {
    hub: Hub,
    by_owner: Mutex<BTreeMap<String, BTreeMap<u64, Document>>>,
}

#[derive(Clone, Serialize)]
struct Document {
    id: u64,
    title: String,
}

impl Documents {
    fn new(hub: Hub) -> Self {
        Self { hub, by_owner: Mutex::default() }
    }

    fn of(&self, owner: &str) -> Vec<Document> {
        let mut by_owner = self.by_owner.lock().unwrap_or_else(PoisonError::into_inner);
        by_owner.entry(owner.to_owned()).or_default().values().cloned().collect()
    }

    async fn create(&self, owner: &str, title: String) -> Result<(), PublishError> {
        let document = {
            let mut by_owner = self.by_owner.lock().unwrap_or_else(PoisonError::into_inner);
            let documents = by_owner.entry(owner.to_owned()).or_default();
            let id = documents.keys().last().map_or(1, |last| last + 1);
            let document = Document { id, title };
            documents.insert(id, document.clone());
            document
        };
        self.hub.user(owner).publish(Event::json("document.created", &document)?).await?;
        Ok(())
    }

    /// Says whether there was one.
    async fn delete(&self, owner: &str, id: u64) -> Result<bool, PublishError> {
        let deleted = {
            let mut by_owner = self.by_owner.lock().unwrap_or_else(PoisonError::into_inner);
            by_owner.entry(owner.to_owned()).or_default().remove(&id)
        };
        let Some(document) = deleted else { return Ok(false) };
        self.hub.user(owner).publish(Event::json("document.deleted", &document)?).await?;
        Ok(true)
    }
}

#[derive(Clone, FromRef)]
struct AppState {
    hub: Hub,
    documents: Arc<Documents>,
}

/// Who asks. A real application looks up a session here.
fn user(headers: &HeaderMap) -> Option<String> {
    let cookies = headers.get(header::COOKIE)?.to_str().ok()?;
    let user = cookies.split("; ").find_map(|cookie| cookie.strip_prefix("user="))?;
    Some(user.to_owned())
}

pub(crate) fn app(hub: &Hub) -> Router {
    let documents = Arc::new(Documents::new(hub.clone()));
    let access = |request: StreamRequest| async move {
        let user = user(request.headers()).ok_or(Refusal::unauthorized())?;
        Ok(Subscription::for_user(user))
    };
    Router::new()
        .route("/", get(page))
        .route("/as/{user}", get(sign_in))
        .route("/documents", get(list).post(create))
        .route("/documents/{id}", delete(remove))
        .with_state(AppState { hub: hub.clone(), documents })
        .layer(hub.layer("/events", access))
}

async fn page(headers: HeaderMap) -> impl IntoResponse {
    match user(&headers) {
        Some(_) => Html(PAGE).into_response(),
        None => (be("ada"), Html(PAGE)).into_response(),
    }
}

async fn sign_in(Path(user): Path<String>) -> impl IntoResponse {
    (be(&user), Redirect::to("/"))
}

/// Names have no way to break out of a cookie here.
fn be(user: &str) -> [(HeaderName, String); 1] {
    let safe: String = user.chars().filter(char::is_ascii_alphanumeric).collect();
    [(header::SET_COOKIE, format!("user={safe}; Path=/; HttpOnly; SameSite=Lax"))]
}

/// The position comes first, then the query: what happens in between is shown twice rather than not at all.
async fn list(
    State(hub): State<Hub>,
    State(documents): State<Arc<Documents>>,
    headers: HeaderMap,
) -> impl IntoResponse {
    let position = hub.position().to_string();
    let user = user(&headers).ok_or(StatusCode::UNAUTHORIZED)?;
    let documents = documents.of(&user);
    Ok::<_, StatusCode>(Json(serde_json::json!({ "user": user, "position": position, "documents": documents })))
}

async fn create(
    State(documents): State<Arc<Documents>>,
    headers: HeaderMap,
    title: String,
) -> Result<StatusCode, PublishError> {
    let Some(user) = user(&headers) else { return Ok(StatusCode::UNAUTHORIZED) };
    documents.create(&user, title).await?;
    Ok(StatusCode::CREATED)
}

async fn remove(
    State(documents): State<Arc<Documents>>,
    headers: HeaderMap,
    Path(id): Path<u64>,
) -> Result<StatusCode, PublishError> {
    let Some(user) = user(&headers) else { return Ok(StatusCode::UNAUTHORIZED) };
    let was_there = documents.delete(&user, id).await?;
    Ok(if was_there { StatusCode::NO_CONTENT } else { StatusCode::NOT_FOUND })
}

/// Ctrl-C, or what containers and service managers send.
async fn told_to_leave() {
    #[cfg(unix)]
    if let Ok(mut terminate) = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) {
        tokio::select! {
            _ = tokio::signal::ctrl_c() => {}
            _ = terminate.recv() => {}
        }
        return;
    }
    tokio::signal::ctrl_c().await.ok();
}

const PAGE: &str = include_str!("quickstart.html");

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let hub = Hub::builder().build()?;
    let app = app(&hub);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:3000").await?;
    println!("open http://127.0.0.1:3000 in two tabs");
    axum::serve(hub.listener(listener), app)
        .with_graceful_shutdown(async move {
            told_to_leave().await;
            hub.drain(Duration::from_secs(2)).await;
        })
        .await?;
    Ok(())
}
