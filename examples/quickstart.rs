//! A service publishes to a user, and every open tab of that user shows the change.
//!
//! `cargo run --example quickstart`, then open <http://127.0.0.1:3000> in two tabs.
#![allow(clippy::print_stdout, reason = "a program with a console")]

use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{Html, Result};
use axum::routing::{delete, get};
use axum::{Json, Router};
use serde_json::{Value, json};
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tower_sse::{Event, Hub, PublishError, Refusal, StreamRequest, Subscription};

#[path = "shared/shutdown.rs"]
mod shutdown;

/// Stores documents and publishes each change to the owner. The service knows nothing of HTTP.
#[derive(Clone)]
struct Documents {
    hub: Hub,
    documents: Arc<tokio::sync::Mutex<BTreeMap<(String, u64), Value>>>, // by owner and id
}
impl Documents {
    async fn create_document(&self, owner: &str, title: &str) -> Result<(), PublishError> {
        let mut documents = self.documents.lock().await;
        let id = documents.keys().map(|(_, id)| id + 1).max().unwrap_or(1);
        let document = json!({ "id": id, "title": title });
        documents.insert((owner.to_owned(), id), document.clone());
        self.hub.user(owner).publish(Event::json("document.created", &document)?).await.map(drop)
    }
    async fn delete_document(&self, owner: &str, id: u64) -> Result<(), PublishError> {
        let Some(document) = self.documents.lock().await.remove(&(owner.to_owned(), id)) else { return Ok(()) };
        self.hub.user(owner).publish(Event::json("document.deleted", &document)?).await.map(drop)
    }
}

/// Returns the user in the cookie `user=…`. A real application looks up a session.
fn user(headers: &HeaderMap) -> Result<&str, StatusCode> {
    let cookies = headers.get(header::COOKIE).and_then(|cookies| cookies.to_str().ok()).unwrap_or_default();
    cookies.split("; ").find_map(|cookie| cookie.strip_prefix("user=")).ok_or(StatusCode::UNAUTHORIZED)
}
async fn access(request: StreamRequest) -> Result<Subscription, Refusal> {
    user(request.headers()).map(Subscription::for_user).map_err(|_| Refusal::unauthorized())
}

async fn list(State(service): State<Documents>, headers: HeaderMap) -> Result<Json<Value>> {
    let (user, position) = (user(&headers)?, service.hub.position().to_string()); // position before query
    let documents = service.documents.lock().await;
    let documents = documents.iter().filter(|((owner, _), _)| owner == user).map(|(_, document)| document);
    Ok(Json(json!({ "user": user, "position": position, "documents": documents.collect::<Vec<_>>() })))
}
async fn create(State(service): State<Documents>, headers: HeaderMap, title: String) -> Result<StatusCode> {
    service.create_document(user(&headers)?, &title).await?;
    Ok(StatusCode::CREATED)
}
async fn remove(State(service): State<Documents>, headers: HeaderMap, Path(id): Path<u64>) -> Result<StatusCode> {
    service.delete_document(user(&headers)?, id).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(crate) fn app(hub: &Hub) -> Router {
    let page = Html(include_str!("quickstart.html"));
    let sign_in = |user| [(header::SET_COOKIE, format!("user={user}; Path=/; HttpOnly; SameSite=Lax"))];
    Router::new()
        .route("/", get((sign_in("ada"), page)))
        .route("/as/ben", get((sign_in("ben"), page)))
        .route("/documents", get(list).post(create))
        .route("/documents/{id}", delete(remove))
        .with_state(Documents { hub: hub.clone(), documents: Arc::default() })
        .layer(hub.layer("/events", access)) // after all routes
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let hub = Hub::builder().build()?;
    let server = axum::serve(hub.listener(tokio::net::TcpListener::bind("127.0.0.1:3000").await?), app(&hub));
    println!("open http://127.0.0.1:3000 in two tabs");
    Ok(server.with_graceful_shutdown(shutdown::drain_on_signal(hub, Duration::from_secs(2))?).await?)
}
