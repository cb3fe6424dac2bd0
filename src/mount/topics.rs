//! Topic changes without a reconnect: `POST /events/{connection}/topics?join=a&leave=b&since=…`.

use std::sync::Arc;

use http::{Method, Response, StatusCode, Uri};

use super::respond::{plain, retry_later, short, wrong_method};
use super::{Access, EventBody, StreamRequest};
use crate::hub::{Hub, Redemption};
use crate::types::refusal::Kind;
use crate::types::{
    Change, ConnectionId, Cursor, History, InvalidName, Refusal, RefusalReason, Scoped, Subscription,
    SubscriptionError, Topic,
};
use crate::wire::hub_events;

/// Splits the path of a topic change into the path of the stream and the id of the connection.
pub(super) fn split_path(path: &str) -> Option<(&str, &str)> {
    path.strip_suffix("/topics")?.rsplit_once('/')
}

impl Hub {
    /// Answers a request that changes the topics of a stream.
    pub(super) async fn change<A: Access>(
        self,
        access: Arc<A>,
        mut request: Box<StreamRequest>,
    ) -> Response<EventBody> {
        if request.method() != Method::POST {
            return wrong_method("use POST\n", "POST");
        }
        if let Err(text) = self.check_host_and_origin(&request) {
            return plain(StatusCode::FORBIDDEN, text);
        }
        if self.is_draining() {
            return self.no_change(&Refusal::retry_later(RefusalReason::Draining));
        }
        let redemption = request.start_redemption();
        let Some(hook_request) = hook_request(&request) else { return plain(StatusCode::BAD_REQUEST, "bad request\n") };
        // Without other instances, a request for an unknown connection costs a lookup and does not
        // count for the rate limit.
        let id = split_path(request.uri().path()).and_then(|(_, id)| id.parse::<ConnectionId>().ok());
        let Some(id) = id.filter(|id| self.may_have_connection(*id)) else { return no_such_connection() };
        if let Err(refusal) = self.check_rate() {
            return self.no_change(&refusal);
        }
        // With other instances, the lookup may wait for another instance. The rate limit bounds the
        // number of waiting requests.
        if !self.has_connection(id).await {
            return no_such_connection();
        }
        let granted = match self.authorize(&*access, Box::new(hook_request)).await {
            Ok(granted) => granted,
            Err(refusal) => return self.no_change(&refusal),
        };
        // The same response for a connection of another user or of another scope as for an unknown
        // connection.
        let Some(connection) = self.connection_of(id, &granted).await else { return no_such_connection() };
        let change = match self.requested_change(&request, &granted) {
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

    /// Returns the change that a client requests, if the grants of the access hook allow the
    /// change.
    fn requested_change(&self, request: &StreamRequest, granted: &Subscription) -> Result<Change, Refusal> {
        // The topics of a page are those of its scope. A name in a request has no scope.
        let topic = |name| Topic::try_from(name)?.placed_in(&granted.scope);
        let topics = |field| request.query_values(field).map(topic).collect::<Result<Vec<_>, InvalidName>>();
        // The same refusal for an invalid name as for a topic that is not granted.
        let (Ok(join), Ok(leave)) = (topics("join"), topics("leave")) else { return Err(Refusal::forbidden()) };
        granted.validity().map_err(Refusal::invalid)?;
        // Check the count first, because the following checks take time for each topic.
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

    /// Returns the response to a refused change of topics.
    fn no_change(&self, refusal: &Refusal) -> Response<EventBody> {
        match refusal.0 {
            Kind::Unauthorized => plain(StatusCode::UNAUTHORIZED, "sign in first\n"),
            Kind::Forbidden | Kind::Gone | Kind::NoRun | Kind::Unresumable => {
                plain(StatusCode::FORBIDDEN, "forbidden\n")
            }
            Kind::RetryLater { retry, .. } => retry_later(retry.unwrap_or(self.settings().retry)),
            Kind::Invalid(ref invalid) if *invalid == SubscriptionError::TOO_MANY_TOPICS => {
                plain(StatusCode::BAD_REQUEST, "too many topics\n")
            }
            Kind::Invalid(_) => plain(StatusCode::BAD_REQUEST, "bad subscription\n"),
            Kind::Panicked => plain(StatusCode::INTERNAL_SERVER_ERROR, "internal error\n"),
        }
    }
}

/// Creates the request for the access hook: a request that would open a stream with the joined
/// topics. The field `join` becomes `topic`.
fn hook_request(request: &StreamRequest) -> Option<StreamRequest> {
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
    let mut hook_request = request.clone();
    hook_request.head.method = Method::GET;
    hook_request.head.uri = Uri::from_parts(parts).ok()?;
    Some(hook_request)
}

fn no_such_connection() -> Response<EventBody> {
    plain(StatusCode::NOT_FOUND, "no such connection\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Request;

    #[test]
    fn hook_request_has_the_joined_topics_and_no_others() {
        let uri_of = |target: &str| {
            let request = StreamRequest::from_request(&Request::post(target).body(()).unwrap());
            let stream = hook_request(&request).unwrap();
            assert_eq!(stream.method(), Method::GET);
            stream.uri().to_string()
        };
        assert_eq!(uri_of("/events/ab/topics?join=a%26b&tenant=7&leave=c&since=1.2.3"), "/events?topic=a%26b&tenant=7");
        assert_eq!(uri_of("/events/ab/topics"), "/events");
        // Only `join` becomes `topic`. A client cannot pass its own `topic` or `last_event_id` to
        // the access hook.
        assert_eq!(uri_of("/events/ab/topics?topic=x&join=y&last_event_id=z"), "/events?topic=y");
        assert_eq!(uri_of("https://host/a/events/ab/topics?join=a"), "https://host/a/events?topic=a");
        assert_eq!(uri_of("/ab/topics?join=a"), "/?topic=a");
    }
}
