//! The requests of publishers, and the responses.

use std::fmt::Write;
use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, PathRejection, QueryRejection};
use axum::extract::{FromRequestParts, Path, Query, State};
use axum::http::header::{CONTENT_TYPE, HOST, ORIGIN, WWW_AUTHENTICATE};
use axum::http::request::Parts;
use axum::http::uri::Authority;
use axum::http::{HeaderValue, Method, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tower_sse::{Event, Hub, PublishError, Receipt, Target};

use super::App;

/// The response to a batch. `last` is the id of the last event.
#[derive(Serialize)]
pub(crate) struct PublishedAll {
    published: usize,
    last: Option<String>,
}

/// An extractor that admits only permitted requests.
///
/// A request must name an allowed host and have the token, if one is set. A request with a method
/// other than `GET` must not come from a page of another origin. Otherwise such a page could
/// publish through the browser of each visitor, also to a hub that only this browser reaches.
pub(crate) struct Permitted;

impl FromRequestParts<Arc<App>> for Permitted {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, Response> {
        if !app.allow_host.is_empty() && !names_only(&app.allow_host, parts) {
            return Err(Problem::new(StatusCode::FORBIDDEN, "this host is not allowed").into_response());
        }
        if app.token.as_ref().is_some_and(|token| !token.is_in(&parts.headers)) {
            let mut response = Problem::new(StatusCode::UNAUTHORIZED, "the token is missing or wrong").into_response();
            response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            return Err(response);
        }
        if parts.method != Method::GET && !is_of_own_origin(parts) {
            let refused = Problem::new(StatusCode::FORBIDDEN, "a page of another origin may not do this");
            return Err(refused.into_response());
        }
        Ok(Self)
    }
}

/// Returns whether every host that the request names is in the list. The hub applies the same rule
/// to streams.
fn names_only(allowed: &[String], parts: &Parts) -> bool {
    let named = parts.headers.get_all(HOST).iter().map(|host| host.to_str().unwrap_or_default());
    let mut named = named.chain(parts.uri.authority().map(Authority::as_str)).peekable();
    let is_allowed = |named: &str| {
        let host = named.rsplit_once(':').filter(|(_, port)| port.bytes().all(|byte| byte.is_ascii_digit()));
        let host = host.map_or(named, |(host, _)| host);
        allowed.iter().any(|allowed| allowed.eq_ignore_ascii_case(named) || allowed.eq_ignore_ascii_case(host))
    };
    named.peek().is_some() && named.all(is_allowed)
}

/// Returns whether a request comes from a page of this origin, or from a program other than a
/// browser. Such programs send neither header.
fn is_of_own_origin(parts: &Parts) -> bool {
    match (parts.headers.get("sec-fetch-site"), parts.headers.get(ORIGIN)) {
        (Some(site), _) => site == "same-origin" || site == "none",
        (None, None) => true,
        (None, Some(origin)) => {
            let host = parts.headers.get(HOST).and_then(|host| host.to_str().ok());
            let host = host.or_else(|| parts.uri.authority().map(Authority::as_str));
            let origin = origin.to_str().ok().and_then(|origin| origin.split_once("://"));
            // A proxy may have changed the scheme.
            matches!((origin, host), (Some((_, origin)), Some(host)) if origin.eq_ignore_ascii_case(host))
        }
    }
}

/// The topic or the user in the path.
pub(crate) struct Name(pub(crate) String);

impl FromRequestParts<Arc<App>> for Name {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, Problem> {
        let Path(name) = Path::from_request_parts(parts, app).await?;
        Ok(Self(name))
    }
}

/// The query of a request that publishes one event. The body has the data.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Labels {
    event: Option<String>,
    key: Option<String>,
}

impl FromRequestParts<Arc<App>> for Labels {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &Arc<App>) -> Result<Self, Problem> {
        if parts.uri.query().is_none() {
            return Ok(Self::default());
        }
        let Query(labels) = Query::try_from_uri(&parts.uri)?;
        Ok(labels)
    }
}

type Body = Result<Bytes, BytesRejection>;

/// Handles `POST /topics/{topic}`.
pub(crate) async fn to_topic(
    State(app): State<Arc<App>>,
    _: Permitted,
    Name(topic): Name,
    labels: Labels,
    body: Body,
) -> Result<Accepted, Problem> {
    publish_one(app.hub.topic(topic), labels, body?).await
}

/// Handles `POST /users/{user}`.
pub(crate) async fn to_user(
    State(app): State<Arc<App>>,
    _: Permitted,
    Name(user): Name,
    labels: Labels,
    body: Body,
) -> Result<Accepted, Problem> {
    publish_one(app.hub.user(user), labels, body?).await
}

/// Handles `POST /everyone`.
pub(crate) async fn to_everyone(
    State(app): State<Arc<App>>,
    _: Permitted,
    labels: Labels,
    body: Body,
) -> Result<Accepted, Problem> {
    publish_one(app.hub.everyone(), labels, body?).await
}

async fn publish_one(target: Target<'_>, labels: Labels, data: Bytes) -> Result<Accepted, Problem> {
    let event = with_key(Event::from_utf8(labels.event.unwrap_or_default(), data)?, labels.key);
    Ok(Accepted(target.publish(event).await?))
}

/// The response `202 {"id":"…","receivers":n}`.
pub(crate) struct Accepted(Receipt);

impl IntoResponse for Accepted {
    fn into_response(self) -> Response {
        // Written without serde, since this is the response to every single event. A position needs
        // no escapes.
        let mut body = String::with_capacity(80);
        let _ = write!(body, "{{\"id\":\"{}\",\"receivers\":{}}}", self.0.position, self.0.connections);
        let mut response = Response::new(body.into());
        *response.status_mut() = StatusCode::ACCEPTED;
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        response
    }
}

fn with_key(event: Event, key: Option<String>) -> Event {
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
    /// The JSON text as the publisher wrote it, with the order of keys and all digits of numbers.
    data: Box<RawValue>,
}

/// Handles `POST /publish` with a body in NDJSON.
///
/// If a line is invalid, the handler publishes no event. If the hub or its broker rejects some
/// events, the response is an error with the number of published events. Blank lines are skipped,
/// but count in line numbers.
pub(crate) async fn batch(
    State(app): State<Arc<App>>,
    _: Permitted,
    body: Body,
) -> Result<(StatusCode, Json<PublishedAll>), Problem> {
    let body = body?;
    let mut events = Vec::new();
    for (index, line) in body.split(|&byte| byte == b'\n').enumerate() {
        if !line.iter().all(u8::is_ascii_whitespace) {
            events.push(parse_line(&app.hub, line).map_err(|problem| problem.on_line(index + 1))?);
        }
    }
    let results = app.hub.publish_many(events).await;
    let (count, published) = (results.len(), results.iter().flatten().count());
    let last = results.iter().rev().find_map(|result| result.as_ref().ok()).map(|last| last.position.to_string());
    match results.into_iter().find_map(Result::err) {
        None => Ok((StatusCode::ACCEPTED, Json(PublishedAll { published, last }))),
        Some(error) => Err(Problem::from(error).with_published(published, count)),
    }
}

/// Parses and checks one line of a batch.
fn parse_line<'a>(hub: &'a Hub, line: &[u8]) -> Result<(Target<'a>, Event), Problem> {
    let Line { topic, user, event, key, data } = serde_json::from_slice(line)?;
    let target = match (topic, user) {
        (Some(topic), None) => hub.topic(topic),
        (None, Some(user)) => hub.user(user),
        _ => return Err(Problem::new(StatusCode::BAD_REQUEST, "exactly one of `topic` and `user` is required")),
    };
    let name = event.unwrap_or_default();
    let event = if data.get().starts_with('"') {
        Event::new(name, serde_json::from_str::<String>(data.get())?)
    } else {
        Event::new(name, String::from(Box::<str>::from(data)))
    };
    let event = with_key(event, key);
    target.check(&event)?;
    Ok((target, event))
}

/// An error response: one line of plain text.
#[derive(Debug)]
pub(crate) struct Problem {
    status: StatusCode,
    line: String,
}

impl Problem {
    /// Creates an error response. `text` may contain input of the client, so it is cut to 300
    /// characters, and control characters such as line breaks become spaces.
    pub(crate) fn new(status: StatusCode, text: impl AsRef<str>) -> Self {
        let visible = |c: char| if c.is_control() { ' ' } else { c };
        Self { status, line: text.as_ref().chars().take(300).map(visible).collect() }
    }

    /// Adds the number of published events of a batch.
    fn with_published(self, published: usize, count: usize) -> Self {
        Self { line: format!("{published} of {count} events were published: {}", self.line), ..self }
    }

    /// Adds the number of the invalid line of a batch. The status is `400` for every problem.
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
        Self::new(error.status_code(), error.to_string())
    }
}

impl From<serde_json::Error> for Problem {
    fn from(error: serde_json::Error) -> Self {
        // Each line is parsed alone, so the line number in the text of serde is always 1.
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
