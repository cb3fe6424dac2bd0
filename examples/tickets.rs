//! Streams without cookies. A front end on another origin authenticates with a token. `EventSource`
//! cannot send a token, so the page fetches a ticket and opens the stream with it.
//!
//! `cargo run --example tickets`, then open <http://127.0.0.1:3000>, the front end. The API listens
//! on port 3001. Restart the program: the ticket of the page is no longer valid, so the page
//! fetches a new one and resumes.

#![allow(clippy::print_stdout, reason = "a program with a console")]

use std::time::Duration;

use axum::extract::{FromRequestParts, State};
use axum::http::request::Parts;
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::response::Html;
use axum::routing::{get, post};
use axum::{Json, Router};
use tokio::net::TcpListener;
use tower_http::cors::CorsLayer;
use tower_sse::{Event, Hub, PublishError, StreamRequest, Subscription, SubscriptionError, Ticket};

/// The time for which a ticket is valid. It opens one stream.
const TICKET_LIFETIME: Duration = Duration::from_secs(30);

/// The user of a bearer token. A real application checks a signature.
struct Bearer(&'static str);

impl<S: Sync> FromRequestParts<S> for Bearer {
    type Rejection = StatusCode;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, StatusCode> {
        match parts.headers.get(header::AUTHORIZATION).map(HeaderValue::as_bytes) {
            Some(b"Bearer token-of-ada") => Ok(Self("ada")),
            Some(b"Bearer token-of-ben") => Ok(Self("ben")),
            _ => Err(StatusCode::UNAUTHORIZED),
        }
    }
}

async fn ticket(State(hub): State<Hub>, Bearer(user): Bearer) -> Result<Json<Ticket>, SubscriptionError> {
    hub.ticket(Subscription::for_user(user), TICKET_LIFETIME).await.map(Json)
}

async fn greet(State(hub): State<Hub>, Bearer(user): Bearer) -> Result<StatusCode, PublishError> {
    hub.user(user).publish(Event::new("greeting", format!("Hello, {user}!"))).await?;
    Ok(StatusCode::ACCEPTED)
}

fn api(hub: &Hub, front_end: HeaderValue) -> Router {
    // The page has another origin, so the browser sends a preflight request before the `POST`.
    let cors =
        CorsLayer::new().allow_origin(front_end).allow_methods([Method::POST]).allow_headers([header::AUTHORIZATION]);
    let access = {
        let hub = hub.clone();
        move |request: StreamRequest| {
            let hub = hub.clone();
            async move { hub.redeem(&request).await }
        }
    };
    Router::new()
        .route("/ticket", post(ticket))
        .route("/greet", post(greet))
        .with_state(hub.clone())
        .layer(hub.layer("/events", access))
        .layer(cors)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut addresses = std::env::args().skip(1);
    let front_end = TcpListener::bind(addresses.next().unwrap_or_else(|| "127.0.0.1:3000".to_owned())).await?;
    let listener = TcpListener::bind(addresses.next().unwrap_or_else(|| "127.0.0.1:3001".to_owned())).await?;
    let origin = format!("http://{}", front_end.local_addr()?);
    let url = format!("http://{}", listener.local_addr()?);
    // CORS decides which origins may read a response. This setting decides which may open a stream.
    let hub = Hub::builder().allow_cross_origin(origin.as_str()).build()?;
    let page = Html(include_str!("tickets.html").replace("__API__", &url));
    println!("open {origin}; the API is at {url}");
    tokio::try_join!(
        axum::serve(front_end, Router::new().route("/", get(async || page))).into_future(),
        axum::serve(hub.listener(listener), api(&hub, origin.parse()?)).into_future(),
    )?;
    Ok(())
}
