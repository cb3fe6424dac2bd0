//! Who is there, and who has to go.

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

/// When those come back who are told to come back later, unless `time` says so.
const LATER: Duration = Duration::from_secs(30);
/// For how long those stay away who are told never to come back, unless `time` says so.
const NEVER: Duration = Duration::from_secs(3600);

/// What became of a `DELETE`.
#[derive(Serialize)]
pub(crate) struct Disconnected {
    disconnected: usize,
}

/// How clients are parted with.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Parting {
    reconnect: Option<String>,
    time: Option<String>,
    note: Option<String>,
}

impl Parting {
    fn disconnect(self) -> Result<Disconnect, Problem> {
        let bad = |line| Err(Problem::new(StatusCode::BAD_REQUEST, line));
        let time = match self.time.as_deref().map(duration) {
            None => None,
            Some(Some(time)) => Some(time),
            Some(None) => return bad("time: not a time like 500ms, 5s or 2m"),
        };
        let disconnect = match (self.reconnect.as_deref(), time) {
            (None | Some("now"), None) => Disconnect::now(),
            (None | Some("now"), Some(_)) => return bad("time: only with reconnect=later or reconnect=never"),
            (Some("later"), time) => Disconnect::reconnect_after(time.unwrap_or(LATER)),
            (Some("never"), time) => Disconnect::block_for(time.unwrap_or(NEVER)),
            (Some(_), _) => return bad("reconnect: neither now, later nor never"),
        };
        Ok(match self.note {
            Some(note) => disconnect.note(note),
            None => disconnect,
        })
    }
}

/// `DELETE /users/{user}/connections`. A user may hold slashes, so the path is cut at its end.
pub(crate) async fn disconnect(
    State(app): State<Arc<App>>,
    _: Permitted,
    Name(path): Name,
    parting: Result<Query<Parting>, QueryRejection>,
) -> Result<Json<Disconnected>, Problem> {
    let user = path.strip_suffix("/connections").ok_or_else(|| Problem::new(StatusCode::NOT_FOUND, "no such path"))?;
    let disconnected = app.hub.user(user).disconnect(parting?.0.disconnect()?).await?.connections;
    Ok(Json(Disconnected { disconnected }))
}

/// `GET /topics/{topic}/presence`.
pub(crate) async fn presence(
    State(app): State<Arc<App>>,
    _: Permitted,
    Name(path): Name,
) -> Result<Json<Presence>, Response> {
    let Some(topic) = path.strip_suffix("/presence") else {
        // As any other path that only takes what is published.
        let mut refused = Problem::new(StatusCode::METHOD_NOT_ALLOWED, "not with this method").into_response();
        refused.headers_mut().insert(header::ALLOW, HeaderValue::from_static("POST"));
        return Err(refused);
    };
    // A name that no topic has: else it would look like a topic where nobody is.
    let bad = |error: InvalidName| Problem::new(StatusCode::BAD_REQUEST, error.to_string()).into_response();
    Ok(Json(app.hub.topic(Topic::try_from(topic).map_err(bad)?).presence()))
}

impl From<CommandError> for Problem {
    fn from(error: CommandError) -> Self {
        Self::new(error.status_code(), error.to_string())
    }
}
