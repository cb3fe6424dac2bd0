//! A page that changes its topics without reconnecting: `POST /events/{connection}/topics?join=a&leave=b&since=…`.

use std::sync::Arc;
use std::time::Duration;

use http::header::RETRY_AFTER;
use http::{HeaderValue, Method, Response, StatusCode, Uri};

use super::respond::{plain, short, wrong_method};
use super::{Access, EventBody, StreamRequest};
use crate::hub::{Hub, Redemption};
use crate::types::refusal::Kind;
use crate::types::{
    Change, ConnectionId, Cursor, History, Refusal, RefusalReason, Subscription, SubscriptionError, Topic,
};
use crate::wire::hub_events;

/// The path of the stream, and the connection, of a path that is about a connection's topics.
pub(super) fn split_path(path: &str) -> Option<(&str, &str)> {
    path.strip_suffix("/topics")?.rsplit_once('/')
}

impl Hub {
    pub(super) async fn change<A: Access>(
        self,
        access: Arc<A>,
        mut request: Box<StreamRequest>,
    ) -> Response<EventBody> {
        if request.method() != Method::POST {
            return wrong_method("use POST\n", "POST");
        }
        if let Err(text) = self.may_ask(&request) {
            return plain(StatusCode::FORBIDDEN, text);
        }
        if self.is_draining() {
            return self.no_change(&Refusal::retry_later(RefusalReason::Draining));
        }
        let redemption = request.redeems();
        let Some(asked) = as_stream(&request) else { return plain(StatusCode::BAD_REQUEST, "bad request\n") };
        // Without other instances a request about no connection costs a look-up, and takes no turn from others.
        let id = split_path(request.uri().path()).and_then(|(_, id)| id.parse::<ConnectionId>().ok());
        let Some(id) = id.filter(|id| self.may_have_connection(*id)) else { return not_there() };
        if let Err(refusal) = self.take_turn() {
            return self.no_change(&refusal);
        }
        // With other instances it may be waited for. The turn bounds how many requests wait.
        if !self.has_connection(id).await {
            return not_there();
        }
        let granted = match self.ask(&*access, Box::new(asked)).await {
            Ok(granted) => granted,
            Err(refusal) => return self.no_change(&refusal),
        };
        // The connection of another user has the same answer as one that is not there.
        let Some(connection) = self.connection_of(id, granted.user.as_ref()).await else { return not_there() };
        let change = match self.asked_change(&request, &granted) {
            Ok(change) => connection.change(change, request.asked_at).await,
            Err(refusal) => Err(refusal),
        };
        match change {
            Ok(topics) => {
                redemption.into_iter().for_each(Redemption::spend);
                short(StatusCode::OK, "application/json", hub_events::topics(&topics))
            }
            Err(refusal) => self.no_change(&refusal),
        }
    }

    /// The change that a page asks for, if it is granted.
    fn asked_change(&self, request: &StreamRequest, granted: &Subscription) -> Result<Change, Refusal> {
        let topics = |field| request.query_values(field).map(Topic::try_from).collect::<Result<Vec<_>, _>>();
        // A name that is none: the same answer as for one that is not granted.
        let (Ok(join), Ok(leave)) = (topics("join"), topics("leave")) else { return Err(Refusal::forbidden()) };
        if let Some(invalid) = &granted.invalid {
            return Err(Refusal::invalid(invalid.clone()));
        }
        // Before what takes longer the more there are.
        if join.len() > self.settings().max_topics {
            return Err(Refusal::invalid(SubscriptionError::TOO_MANY_TOPICS));
        }
        if !join.iter().all(|topic| granted.grants(topic)) {
            return Err(Refusal::forbidden());
        }
        let since = request.query_values("since").next();
        let since = match granted.history {
            History::None => Cursor::Absent,
            History::Within => since.map_or(Cursor::Absent, |since| Cursor::parse(since.as_bytes())),
        };
        let bounds = granted.topics.bounds().filter(|(topic, _)| join.contains(topic));
        let bounds = bounds.map(|(topic, position)| (topic.clone(), position)).collect();
        Ok(Change { leave, join, since, bounds })
    }

    /// The answer to a page whose topics stay as they are.
    fn no_change(&self, refusal: &Refusal) -> Response<EventBody> {
        match refusal.0 {
            Kind::Unauthorized => plain(StatusCode::UNAUTHORIZED, "sign in first\n"),
            Kind::Forbidden | Kind::Gone => plain(StatusCode::FORBIDDEN, "forbidden\n"),
            Kind::RetryLater { retry, .. } => later(retry.unwrap_or(self.settings().retry)),
            Kind::Invalid(ref invalid) if *invalid == SubscriptionError::TOO_MANY_TOPICS => {
                plain(StatusCode::BAD_REQUEST, "too many topics\n")
            }
            Kind::Invalid(_) => plain(StatusCode::BAD_REQUEST, "bad subscription\n"),
            Kind::Panicked => plain(StatusCode::INTERNAL_SERVER_ERROR, "internal error\n"),
        }
    }
}

/// The request that would open a stream with the topics to be joined, for the hook to decide by:
/// `join` becomes `topic`.
fn as_stream(request: &StreamRequest) -> Option<StreamRequest> {
    let (path, _) = split_path(request.uri().path())?;
    let mut query = form_urlencoded::Serializer::new(String::new());
    for (name, value) in form_urlencoded::parse(request.query().unwrap_or_default().as_bytes()) {
        match &*name {
            "join" => drop(query.append_pair("topic", &value)),
            "leave" | "since" | "topic" | "last_event_id" => {}
            _ => drop(query.append_pair(&name, &value)),
        }
    }
    let query = query.finish();
    let mut parts = request.uri().clone().into_parts();
    let path = if path.is_empty() { "/" } else { path };
    let target = if query.is_empty() { path.to_owned() } else { format!("{path}?{query}") };
    parts.path_and_query = Some(target.parse().ok()?);
    let mut asked = request.clone();
    asked.head.method = Method::GET;
    asked.head.uri = Uri::from_parts(parts).ok()?;
    Some(asked)
}

fn not_there() -> Response<EventBody> {
    plain(StatusCode::NOT_FOUND, "no such connection\n")
}

fn later(after: Duration) -> Response<EventBody> {
    let mut response = plain(StatusCode::SERVICE_UNAVAILABLE, "not now\n");
    // Rounded up, so that the client does not come too early.
    let seconds = after.as_secs().saturating_add(u64::from(after.subsec_nanos() > 0)).max(1);
    response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Request;

    #[test]
    fn the_hook_is_asked_as_for_a_stream_with_these_topics() {
        let asked = |target: &str| {
            let request = StreamRequest::from_request(&Request::post(target).body(()).unwrap());
            let stream = as_stream(&request).unwrap();
            assert_eq!(stream.method(), Method::GET);
            stream.uri().to_string()
        };
        assert_eq!(asked("/events/ab/topics?join=a%26b&tenant=7&leave=c&since=1.2.3"), "/events?topic=a%26b&tenant=7");
        assert_eq!(asked("/events/ab/topics"), "/events");
        // What a page may not smuggle in.
        assert_eq!(asked("/events/ab/topics?topic=x&join=y&last_event_id=z"), "/events?topic=y");
        assert_eq!(asked("https://host/a/events/ab/topics?join=a"), "https://host/a/events?topic=a");
        assert_eq!(asked("/ab/topics?join=a"), "/?topic=a");
    }
}
