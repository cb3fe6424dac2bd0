//! HTTP: the page, the streams that it reads, and the requests that it sends.
//!
//! A page reads and writes every chat whose id it knows, and creates ids that cannot be guessed. An
//! application with users checks in each handler that the chat belongs to the user.

use std::time::Duration;

use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use tower_sse::{EventStream, RunError, StreamRequest, Subscription};

use crate::chats::{AnswerState, Chats, Error, Message, topic};

/// The time for which a request waits for its answer to begin, for example because another instance
/// has just received the question.
const WAIT: Duration = Duration::from_secs(2);

pub(crate) fn router(chats: Chats) -> Router {
    let css = ([(header::CONTENT_TYPE, "text/css; charset=utf-8")], include_str!("page.css"));
    let js = ([(header::CONTENT_TYPE, "text/javascript; charset=utf-8")], include_str!("page.js"));
    Router::new()
        .route("/", get(Html(include_str!("page.html"))))
        .route("/page.css", get(css))
        .route("/page.js", get(js))
        .route("/readyz", get(ready))
        .route("/chats/{chat}", get(history))
        .route("/chats/{chat}/events", get(messages))
        .route("/chats/{chat}/messages", post(ask))
        .route("/chats/{chat}/answers/{number}/stream", get(answer))
        .route("/chats/{chat}/answers/{number}/stop", post(stop))
        .with_state(chats)
}

async fn ready(State(chats): State<Chats>) -> StatusCode {
    if chats.hub.is_ready() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
}

/// A chat without a stream.
#[derive(Serialize)]
struct History {
    messages: Vec<Message>,
    /// The number of the answer that is growing.
    active: Option<u32>,
}

async fn history(State(chats): State<Chats>, Path(chat): Path<String>) -> Result<Json<History>, Error> {
    let messages = chats.messages(&chat).await?;
    let active = messages.iter().find(|message| message.state == AnswerState::Growing).map(|message| message.number);
    Ok(Json(History { messages, active }))
}

/// Streams the messages of a chat: first all that exist, then each change.
async fn messages(State(chats): State<Chats>, Path(chat): Path<String>, request: StreamRequest) -> EventStream {
    chats.hub.respond(request, Subscription::anonymous().topic(topic(&chat)))
}

#[derive(Deserialize)]
struct Question {
    text: String,
}

/// Begins an answer. The response names the stream of the answer, which every tab reads alike.
async fn ask(
    State(chats): State<Chats>,
    Path(chat): Path<String>,
    Json(question): Json<Question>,
) -> Result<impl IntoResponse, Error> {
    let number = chats.ask(&chat, &question.text).await?;
    // Relative to the address of this request, because a header cannot contain every id.
    let stream = format!("answers/{number}/stream");
    Ok((StatusCode::ACCEPTED, [(header::LOCATION, stream)], Json(number)))
}

/// Streams an answer from its first word. A request with the id of an event gets the words after
/// it: `EventSource` sends this id by itself when it reconnects.
async fn answer(
    State(chats): State<Chats>,
    Path((chat, number)): Path<(String, u32)>,
    request: StreamRequest,
) -> Result<EventStream, RunError> {
    let reader = chats.answer(&chat, number).reader_within(WAIT).await?;
    Ok(chats.hub.respond(request, Subscription::run(reader)))
}

/// Asks the writer of an answer to stop, on any instance.
async fn stop(State(chats): State<Chats>, Path((chat, number)): Path<(String, u32)>) -> Result<StatusCode, RunError> {
    let is_active = chats.answer(&chat, number).stop().await?;
    Ok(if is_active { StatusCode::ACCEPTED } else { StatusCode::NOT_FOUND })
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        match self {
            Self::Invalid => (StatusCode::BAD_REQUEST, "Enter a question of at most 500 characters.").into_response(),
            Self::Growing => (StatusCode::CONFLICT, "Wait for the end of the answer, or stop it.").into_response(),
            Self::Busy => {
                (StatusCode::SERVICE_UNAVAILABLE, "The server is busy. Try again in a moment.").into_response()
            }
            Self::Subscribe(error) => error.into_response(),
            Self::Publish(error) => error.into_response(),
            Self::Run(error) => error.into_response(),
        }
    }
}
