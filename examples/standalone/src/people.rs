//! Presence, and forced disconnects.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use tower_sse::{CommandError, Disconnect, InvalidName, Presence, Topic};

use super::App;
use super::options::duration;
use super::publish::{Name, Permitted, Problem};

/// The default of `time` for `reconnect=later`.
const LATER: Duration = Duration::from_secs(30);
/// The default of `time` for `reconnect=never`.
const NEVER: Duration = Duration::from_secs(3600);

/// The response to a disconnect.
#[derive(Serialize)]
pub(crate) struct Disconnected {
    disconnected: usize,
}

/// The query of a disconnect.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct DisconnectQuery {
    reconnect: Option<String>,
    time: Option<String>,
    note: Option<String>,
}

impl DisconnectQuery {
    fn disconnect(self) -> Result<Disconnect, Problem> {
        let invalid = |line| Err(Problem::new(StatusCode::BAD_REQUEST, line));
        let time = match self.time.as_deref().map(duration) {
            None => None,
            Some(Some(time)) => Some(time),
            Some(None) => return invalid("time: not a time like 500ms, 5s or 2m"),
        };
        let disconnect = match (self.reconnect.as_deref(), time) {
            (None | Some("now"), None) => Disconnect::now(),
            (None | Some("now"), Some(_)) => return invalid("time: only with reconnect=later or reconnect=never"),
            (Some("later"), time) => Disconnect::reconnect_after(time.unwrap_or(LATER)),
            (Some("never"), time) => Disconnect::block_for(time.unwrap_or(NEVER)),
            (Some(_), _) => return invalid("reconnect: neither now, later nor never"),
        };
        Ok(match self.note {
            Some(note) => disconnect.note(note),
            None => disconnect,
        })
    }
}

/// Handles `DELETE /users/{user}/connections`. A user may contain slashes, so the handler cuts the
/// suffix off the path.
pub(crate) async fn disconnect(
    State(app): State<Arc<App>>,
    _: Permitted,
    Name(path): Name,
    query: Result<Query<DisconnectQuery>, QueryRejection>,
) -> Result<Json<Disconnected>, Problem> {
    let user = path.strip_suffix("/connections").ok_or_else(|| Problem::new(StatusCode::NOT_FOUND, "no such path"))?;
    let disconnected = app.hub.user(user).disconnect(query?.0.disconnect()?).await?.connections;
    Ok(Json(Disconnected { disconnected }))
}

/// Handles `GET /topics/{topic}/presence`.
pub(crate) async fn presence(
    State(app): State<Arc<App>>,
    _: Permitted,
    Name(path): Name,
) -> Result<Json<Presence>, Response> {
    let Some(topic) = path.strip_suffix("/presence") else {
        // The same response as for every other path that accepts only `POST`.
        let mut refused = Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method not allowed").into_response();
        refused.headers_mut().insert(header::ALLOW, HeaderValue::from_static("POST"));
        return Err(refused);
    };
    // `presence` of an invalid name is empty, like that of a topic without members. Report the name
    // instead.
    let invalid = |error: InvalidName| Problem::new(StatusCode::BAD_REQUEST, error.to_string()).into_response();
    Ok(Json(app.hub.topic(Topic::try_from(topic).map_err(invalid)?).presence()))
}

impl From<CommandError> for Problem {
    fn from(error: CommandError) -> Self {
        Self::new(error.status_code(), error.to_string())
    }
}
