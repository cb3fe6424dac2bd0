//! A stream that an axum handler opens: the user comes from an extractor, and the room from the
//! path.
//!
//! `cargo run --example handler`, then open <http://127.0.0.1:3000> in two tabs. Every user may
//! enter the lobby. Only Ada may enter the office: Ben's stream of the office is refused.

#![allow(clippy::print_stdout, reason = "a program with a console")]

use axum::Router;
use axum::extract::{FromRef, FromRequestParts, Path, State};
use axum::http::request::Parts;
use axum::http::{StatusCode, header};
use axum::response::{Html, IntoResponse, Redirect};
use axum::routing::{get, post};
use tower_sse::{Event, EventStream, Hub, PublishError, Refusal, StreamRequest, Subscription};

#[derive(Clone, FromRef)]
struct AppState {
    hub: Hub,
}

/// The user, from the cookie `user=…`. The extractor of a real application looks up a session.
struct User(String);

impl<S: Sync> FromRequestParts<S> for User {
    type Rejection = StatusCode;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, StatusCode> {
        let cookies = parts.headers.get(header::COOKIE).and_then(|cookies| cookies.to_str().ok());
        let name = cookies.and_then(|cookies| cookies.split("; ").find_map(|cookie| cookie.strip_prefix("user=")));
        name.map(|name| Self(name.to_owned())).ok_or(StatusCode::UNAUTHORIZED)
    }
}

impl User {
    fn may_enter(&self, room: &str) -> bool {
        room == "lobby" || (room == "office" && self.0 == "ada")
    }
}

/// Opens the stream of a room. `StreamRequest` comes before `User`: the request records when it
/// arrived, so a `disconnect` during the lookup of the user also stops this request.
async fn events(
    State(hub): State<Hub>,
    request: StreamRequest,
    user: User,
    Path(room): Path<String>,
) -> Result<EventStream, EventStream> {
    if !user.may_enter(&room) {
        return Err(hub.refuse(Refusal::forbidden()));
    }
    Ok(hub.respond(request, Subscription::for_user(user.0).topic(format!("rooms/{room}"))))
}

async fn post_message(
    State(hub): State<Hub>,
    user: User,
    Path(room): Path<String>,
    text: String,
) -> Result<StatusCode, PublishError> {
    if !user.may_enter(&room) {
        return Ok(StatusCode::FORBIDDEN);
    }
    let message = Event::new("chat", format!("{}: {text}", user.0));
    hub.topic(format!("rooms/{room}")).publish(message).await?;
    Ok(StatusCode::ACCEPTED)
}

/// Signs Ada or Ben in. A real application checks a password.
async fn sign_in(Path(user): Path<String>) -> Result<impl IntoResponse, StatusCode> {
    let user = ["ada", "ben"].into_iter().find(|known| *known == user).ok_or(StatusCode::NOT_FOUND)?;
    let cookie = format!("user={user}; Path=/; HttpOnly; SameSite=Lax");
    Ok(([(header::SET_COOKIE, cookie)], Redirect::to("/")))
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let hub = Hub::builder().build()?;
    let app = Router::new()
        .route("/", get(async || Html(include_str!("handler.html"))))
        .route("/as/{user}", get(sign_in))
        .route("/rooms/{room}/events", get(events))
        .route("/rooms/{room}", post(post_message))
        .with_state(AppState { hub: hub.clone() });
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:3000".to_owned());
    let listener = tokio::net::TcpListener::bind(address).await?;
    println!("open http://{}", listener.local_addr()?);
    axum::serve(hub.listener(listener), app).await?;
    Ok(())
}
