//! What writers send, and what they get back.

use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, PathRejection, QueryRejection};
use axum::extract::{Path, Query, Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tower_sse::{Event, Hub, PublishError, Target};

use super::options::Token;

/// What became of one event.
#[derive(Serialize)]
pub(crate) struct Published {
    id: String,
    receivers: usize,
}

/// What became of a batch; `last` is the id of its last event.
#[derive(Serialize)]
pub(crate) struct PublishedAll {
    published: usize,
    last: Option<String>,
}

type Accepted<T> = Result<(StatusCode, Json<T>), Problem>;

/// Lets those pass who know the token, if there is one.
pub(crate) async fn guard(State(token): State<Option<Token>>, request: Request, next: Next) -> Response {
    if token.is_none_or(|token| token.is_in(request.headers())) {
        return next.run(request).await;
    }
    let mut response = Problem::new(StatusCode::UNAUTHORIZED, "the token is missing or wrong").into_response();
    response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    response
}

/// The query of a single event, whose data is the body.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Labels {
    event: Option<String>,
    key: Option<String>,
}

type Name = Result<Path<String>, PathRejection>;
type LabelQuery = Result<Query<Labels>, QueryRejection>;
type Body = Result<Bytes, BytesRejection>;

/// `POST /topics/{topic}`
pub(crate) async fn to_topic(
    State(hub): State<Hub>,
    topic: Name,
    labels: LabelQuery,
    body: Body,
) -> Accepted<Published> {
    one(hub.topic(topic?.0), labels?.0, body?).await
}

/// `POST /users/{user}`
pub(crate) async fn to_user(State(hub): State<Hub>, user: Name, labels: LabelQuery, body: Body) -> Accepted<Published> {
    one(hub.user(user?.0), labels?.0, body?).await
}

/// `POST /everyone`
pub(crate) async fn to_everyone(State(hub): State<Hub>, labels: LabelQuery, body: Body) -> Accepted<Published> {
    one(hub.everyone(), labels?.0, body?).await
}

async fn one(target: Target<'_>, labels: Labels, data: Bytes) -> Accepted<Published> {
    let event = labelled(Event::utf8(labels.event.unwrap_or_default(), data)?, labels.key);
    let published = target.publish(event).await?;
    let published = Published { id: published.position.to_string(), receivers: published.receivers };
    Ok((StatusCode::ACCEPTED, Json(published)))
}

fn labelled(event: Event, key: Option<String>) -> Event {
    match key {
        Some(key) => event.key(key),
        None => event,
    }
}

/// One line of `POST /publish`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    topic: Option<String>,
    user: Option<String>,
    event: Option<String>,
    key: Option<String>,
    /// As it was written: no number loses a digit, no key moves.
    data: Box<RawValue>,
}

/// `POST /publish`: NDJSON, all of it in one step or nothing. Blank lines are skipped but counted.
pub(crate) async fn batch(State(hub): State<Hub>, body: Body) -> Accepted<PublishedAll> {
    let body = body?;
    let mut events = Vec::new();
    for (index, line) in body.split(|&byte| byte == b'\n').enumerate() {
        if !line.iter().all(u8::is_ascii_whitespace) {
            events.push(entry(&hub, line).map_err(|problem| problem.on_line(index + 1))?);
        }
    }
    let published = hub.publish_many(events).await.into_iter().collect::<Result<Vec<_>, _>>()?;
    let last = published.last().map(|last| last.position.to_string());
    Ok((StatusCode::ACCEPTED, Json(PublishedAll { published: published.len(), last })))
}

fn entry<'a>(hub: &'a Hub, line: &[u8]) -> Result<(Target<'a>, Event), Problem> {
    let Line { topic, user, event, key, data } = serde_json::from_slice(line)?;
    let target = match (topic, user) {
        (Some(topic), None) => hub.topic(topic),
        (None, Some(user)) => hub.user(user),
        _ => return Err(Problem::new(StatusCode::BAD_REQUEST, "exactly one of `topic` and `user` is needed")),
    };
    let name = event.unwrap_or_default();
    let event = if data.get().starts_with('"') {
        Event::text(name, serde_json::from_str::<String>(data.get())?)
    } else {
        Event::text(name, String::from(Box::<str>::from(data)))
    };
    let event = labelled(event, key);
    target.check(&event)?;
    Ok((target, event))
}

/// An answer of one plain line.
#[derive(Debug)]
pub(crate) struct Problem {
    status: StatusCode,
    line: String,
}

impl Problem {
    /// What a client sent may come back in `text`, so it is cut, and its line breaks are no line breaks any more.
    pub(crate) fn new(status: StatusCode, text: impl AsRef<str>) -> Self {
        let visible = |c: char| if c.is_control() { ' ' } else { c };
        Self { status, line: text.as_ref().chars().take(300).map(visible).collect() }
    }

    /// Of a batch: whatever is wrong with a line, the request is bad.
    fn on_line(self, number: usize) -> Self {
        Self { status: StatusCode::BAD_REQUEST, line: format!("line {number}: {}", self.line) }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        (self.status, format!("{}\n", self.line)).into_response()
    }
}

impl From<PublishError> for Problem {
    fn from(error: PublishError) -> Self {
        let status = if error.is_too_large() {
            StatusCode::PAYLOAD_TOO_LARGE
        } else if error.is_invalid() {
            StatusCode::BAD_REQUEST
        } else {
            StatusCode::SERVICE_UNAVAILABLE
        };
        Self::new(status, error.to_string())
    }
}

impl From<serde_json::Error> for Problem {
    fn from(error: serde_json::Error) -> Self {
        // It counts lines from the start of this one.
        let text = error.to_string();
        let text = text.rsplit_once(" at line ").map_or(text.as_str(), |(text, _)| text);
        Self::new(StatusCode::BAD_REQUEST, format!("column {}: {text}", error.column()))
    }
}

impl From<PathRejection> for Problem {
    fn from(rejection: PathRejection) -> Self {
        Self::new(rejection.status(), rejection.body_text())
    }
}

impl From<QueryRejection> for Problem {
    fn from(rejection: QueryRejection) -> Self {
        Self::new(rejection.status(), rejection.body_text())
    }
}

impl From<BytesRejection> for Problem {
    fn from(rejection: BytesRejection) -> Self {
        Self::new(rejection.status(), rejection.body_text())
    }
}
