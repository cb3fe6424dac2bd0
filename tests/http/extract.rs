//! Extractors and responses of axum handlers.

use std::collections::HashMap;

use axum::Router;
use axum::extract::State;
use axum::response::IntoResponse;
use axum::routing::post;
use http::{Request, StatusCode};
use tower_sse::{CommandError, ConnectionId, Disconnect, Event, Hub, PublishError, Receipt, Subscription};

use crate::kit::page::Page;
use crate::kit::{Server, send};

async fn rename_document(State(hub): State<Hub>, page: Option<ConnectionId>) -> Result<(), PublishError> {
    let mut readers = hub.topic("t");
    if let Some(page) = page {
        readers = readers.except(page);
    }
    readers.publish(Event::unnamed("renamed")).await.map(drop)
}

async fn close_page(State(hub): State<Hub>, page: ConnectionId) -> Result<String, CommandError> {
    let Receipt { connections, .. } = hub.connection(page).disconnect(Disconnect::now()).await?;
    Ok(connections.to_string())
}

async fn start() -> (Hub, Server) {
    let hub = Hub::builder().build().unwrap();
    let access = async |_| Ok(Subscription::anonymous().topic("t"));
    let app = Router::new().route("/rename", post(rename_document)).route("/close", post(close_page));
    let server = Server::start(&hub, app.with_state(hub.clone()).layer(hub.layer("/events", access))).await;
    (hub, server)
}

async fn post_as(server: &Server, path: &str, page: Option<&str>) -> (StatusCode, String) {
    let mut request = Request::post(path);
    if let Some(page) = page {
        request = request.header(ConnectionId::HEADER, page);
    }
    let reply = send(server.addr, request.body("").unwrap()).await;
    (reply.status, reply.text().await)
}

#[tokio::test]
async fn request_names_the_connection_of_its_page() {
    let (hub, server) = start().await;
    let (mut author, mut reader) = (Page::open(server.addr, "/events").await, Page::open(server.addr, "/events").await);
    assert_eq!(post_as(&server, "/rename", Some(&author.connection)).await.0, StatusCode::OK);
    assert_eq!(post_as(&server, "/rename", None).await.0, StatusCode::OK);
    hub.everyone().publish(Event::unnamed("after")).await.unwrap();
    assert_eq!([author.reads().await, author.reads().await], ["renamed", "after"]);
    assert_eq!([reader.reads().await, reader.reads().await, reader.reads().await], ["renamed", "renamed", "after"]);
    assert_eq!(post_as(&server, "/close", Some(&author.connection)).await, (StatusCode::OK, "1".into()));
}

#[tokio::test]
async fn request_whose_connection_is_missing_or_malformed_is_a_bad_request() {
    let (_hub, server) = start().await;
    let rejected = |text: &str| (StatusCode::BAD_REQUEST, text.to_owned());
    assert_eq!(post_as(&server, "/close", None).await, rejected("header sse-connection is missing"));
    for path in ["/close", "/rename"] {
        assert_eq!(
            post_as(&server, path, Some("nonsense")).await,
            rejected("header sse-connection is malformed"),
            "{path}"
        );
    }
}

#[tokio::test]
async fn error_becomes_a_response_with_its_status() {
    let hub = Hub::builder().max_payload(100).build().unwrap();
    let publish = async |topic: &str, event: Event| hub.topic(topic).publish(event).await.unwrap_err().into_response();
    let invalid = publish("", Event::unnamed("x")).await;
    assert_eq!(invalid.status(), StatusCode::BAD_REQUEST);
    let body = axum::body::to_bytes(invalid.into_body(), 1_000).await.unwrap();
    assert_eq!(body, "topic is empty");
    assert_eq!(publish("t", Event::unnamed("x".repeat(101))).await.status(), StatusCode::PAYLOAD_TOO_LARGE);
    let not_json = Event::json("x", &HashMap::from([((1, 2), 3)])).unwrap_err();
    assert_eq!(not_json.into_response().status(), StatusCode::INTERNAL_SERVER_ERROR);
    let note = hub.everyone().disconnect(Disconnect::now().note("x".repeat(10_000))).await.unwrap_err();
    assert_eq!(note.into_response().status(), StatusCode::BAD_REQUEST);
    let subscription = hub.subscribe(Subscription::for_user(""), None).unwrap_err();
    assert_eq!(subscription.into_response().status(), StatusCode::BAD_REQUEST);
    hub.drain(std::time::Duration::ZERO).await;
    assert_eq!(publish("t", Event::unnamed("x")).await.status(), StatusCode::SERVICE_UNAVAILABLE);
    let closed = hub.subscribe(Subscription::anonymous(), None).unwrap_err();
    assert_eq!(closed.into_response().status(), StatusCode::SERVICE_UNAVAILABLE);
}
