//! Responses to requests for streams, for layer, endpoint and handler mount.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, CACHE_CONTROL, CONNECTION, CONTENT_TYPE, HeaderName, RETRY_AFTER, X_CONTENT_TYPE_OPTIONS};
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, Version};

use super::{Access, EventBody, StreamRequest, negotiate};
use crate::hub::{Hub, Redemption, Request, Taken, Transport};
use crate::types::refusal::{Kind, Refusal};
use crate::types::{Authority, Cursor, DisconnectClock, RefusalReason, StreamEnd, Subscription};
use crate::wire::hub_events;

/// The response of a handler: a stream, or a refusal.
///
/// With the feature `axum`, this type implements axum's `IntoResponse`, so a handler can return it.
/// Without that feature, call [`into_response`](Self::into_response).
///
/// The response has the status `200` and the hub's headers, and the handler can add headers. With
/// axum, a tuple does so:
///
/// ```
/// # #[cfg(feature = "axum")] fn main() {
/// use axum::extract::State;
/// use axum::response::IntoResponse;
/// use tower_sse::{Hub, StreamRequest, Subscription};
///
/// async fn chat(State(hub): State<Hub>, request: StreamRequest) -> impl IntoResponse {
///     let subscription = Subscription::anonymous().topic("chats/7").bare();
///     ([("x-vercel-ai-ui-message-stream", "v1")], hub.respond(request, subscription))
/// }
/// # let _: axum::Router<Hub> = axum::Router::new().route("/chat", axum::routing::post(chat));
/// # }
/// # #[cfg(not(feature = "axum"))] fn main() {}
/// ```
///
/// Otherwise, change the headers of the [`http::Response`]:
///
/// ```
/// use http::Request;
/// use tower_sse::{EventBody, Hub, StreamRequest, Subscription};
///
/// fn events(hub: &Hub, request: &Request<()>) -> http::Response<EventBody> {
///     let subscription = Subscription::anonymous().topic("news");
///     let mut response = hub.respond(StreamRequest::from_request(request), subscription).into_response();
///     response.headers_mut().insert("location", http::HeaderValue::from_static("/threads/7/runs/9"));
///     response
/// }
/// # let _ = events;
/// ```
#[derive(Debug)]
#[must_use = "a stream that is not returned ends at once"]
pub struct EventStream(Response<EventBody>);

impl EventStream {
    /// Converts the stream into an HTTP response.
    #[must_use]
    pub fn into_response(self) -> Response<EventBody> {
        self.0
    }
}

impl Hub {
    /// Opens a stream from within a handler, for applications that authenticate with extractors.
    ///
    /// The router has chosen the method of the request, so this method responds to any method, for
    /// example to `POST`, and ignores the `Accept` header. A `HEAD` request receives only the head
    /// of the response and opens no stream. Otherwise the same rules apply as for the layer. The
    /// hub checks the host and the origin, and a hub that is draining sends a retryable refusal.
    ///
    /// The [`EventStream`] has the hub's headers. The handler can add others.
    ///
    /// Extract the [`StreamRequest`] before the user, because it records the time at which it was
    /// extracted. Otherwise a [disconnect](crate::Target::disconnect) during the lookup of the user
    /// does not stop this request.
    ///
    /// ```
    /// # #[cfg(feature = "axum")] fn main() {
    /// use axum::{Router, extract::State, routing::get};
    /// use tower_sse::{EventStream, Hub, StreamRequest, Subscription};
    /// # struct AuthUser { id: u64 }
    /// # impl<S: Sync> axum::extract::FromRequestParts<S> for AuthUser {
    /// #     type Rejection = std::convert::Infallible;
    /// #     async fn from_request_parts(_: &mut http::request::Parts, _: &S) -> Result<Self, Self::Rejection> {
    /// #         Ok(AuthUser { id: 1 })
    /// #     }
    /// # }
    ///
    /// async fn events(State(hub): State<Hub>, request: StreamRequest, user: AuthUser) -> EventStream {
    ///     hub.respond(request, Subscription::for_user(user.id))
    /// }
    ///
    /// let hub = Hub::builder().build().unwrap();
    /// let app: Router = Router::new().route("/events", get(events)).with_state(hub);
    /// # let _ = app; }
    /// # #[cfg(not(feature = "axum"))] fn main() {}
    /// ```
    #[doc(alias = "connect")]
    #[expect(clippy::needless_pass_by_value, reason = "a request is used for one stream")]
    pub fn respond(&self, request: StreamRequest, subscription: Subscription) -> EventStream {
        self.log_start();
        let ticket = Taken::of(self, &subscription);
        let spend = || drop(ticket.and_then(Taken::spend));
        let head = RequestHead::of(&request);
        let response = self.refuse_site(&request).unwrap_or_else(|| {
            let accepted = self.check_rate().and_then(|()| self.accept(&head, &subscription, None, spend));
            accepted.unwrap_or_else(|refusal| self.refusal_of(&head, &subscription, &refusal))
        });
        EventStream(without_body_for_head(&head.method, response))
    }

    /// Creates the response of a refusal, for a handler.
    ///
    /// ```
    /// use tower_sse::{EventStream, Hub, Refusal, StreamRequest, Subscription};
    ///
    /// fn events(hub: &Hub, user: Option<u64>, request: StreamRequest) -> Result<EventStream, EventStream> {
    ///     let user = user.ok_or_else(|| hub.refuse(Refusal::unauthorized()))?;
    ///     Ok(hub.respond(request, Subscription::for_user(user)))
    /// }
    /// # let _ = events;
    /// ```
    #[expect(clippy::needless_pass_by_value, reason = "the twin of `respond`, which takes the subscription over")]
    pub fn refuse(&self, refusal: Refusal) -> EventStream {
        EventStream(self.refusal(&refusal))
    }

    /// Answers a request for a stream, with an access hook.
    pub(super) async fn answer<A: Access>(
        self,
        access: Arc<A>,
        mut request: Box<StreamRequest>,
    ) -> Response<EventBody> {
        let draining = || self.is_draining().then(|| self.refusal(&Refusal::retry_later(RefusalReason::Draining)));
        if let Some(refused) = self.early_refusal(&request).or_else(draining) {
            return without_body_for_head(request.method(), refused);
        }
        let head = RequestHead::of(&request);
        let redemption = request.start_redemption();
        let response = match self.authorize(&*access, request).await {
            Err(refusal) => self.refusal(&refusal),
            Ok(subscription) => {
                let authority = A::RECHECKS.then_some(access as Arc<dyn Authority>);
                let spend = || redemption.into_iter().for_each(Redemption::spend);
                let accepted = self.accept(&head, &subscription, authority, spend);
                accepted.unwrap_or_else(|refusal| self.refusal_of(&head, &subscription, &refusal))
            }
        };
        without_body_for_head(&head.method, response)
    }

    /// Returns the response to a request that the hub refuses before it calls the access hook.
    fn early_refusal(&self, request: &StreamRequest) -> Option<Response<EventBody>> {
        match negotiate::check(request.method(), request.headers()) {
            Ok(()) => {}
            Err(StatusCode::METHOD_NOT_ALLOWED) => return Some(wrong_method("use GET\n", "GET, HEAD")),
            Err(status) => return Some(plain(status, "this is an event stream: text/event-stream\n")),
        }
        if let Some(refused) = self.refuse_site(request) {
            return Some(refused);
        }
        // The rate limit protects the access hook from a rush of reconnects. It includes `HEAD`,
        // which also calls the hook.
        self.check_rate().err().map(|refusal| self.refusal(&refusal))
    }

    /// Returns the response to a request that names another host or comes from another origin.
    fn refuse_site(&self, request: &StreamRequest) -> Option<Response<EventBody>> {
        self.check_host_and_origin(request).err().map(|text| plain(StatusCode::FORBIDDEN, text))
    }

    /// Opens the stream and creates its response. Spends the ticket if a stream opens, and not for
    /// a refusal or a `HEAD` request.
    fn accept(
        &self,
        head: &RequestHead,
        subscription: &Subscription,
        authority: Option<Arc<dyn Authority>>,
        spend_ticket: impl FnOnce(),
    ) -> Result<Response<EventBody>, Refusal> {
        if head.method == Method::HEAD {
            self.admit(subscription, head.cursor, head.asked_at)?;
            self.check_run(subscription, head.cursor, head.from_event_source)?;
            self.check_cursor(subscription, head.cursor)?;
            return Ok(stream(EventBody::inert()));
        }
        let from_event_source = head.from_event_source;
        let request = Request { to_network: true, asked_at: head.asked_at, authority, from_event_source };
        let connection = self.open(subscription, head.cursor, request)?;
        spend_ticket();
        let by_task = || self.transports().find_by_task();
        // The socket of another hub does not count: settings, drain and takeover of that hub do not
        // apply here.
        let carried = head.transport.clone().filter(|transport| self.transports().contains(transport));
        let Some(transport) = carried.or_else(by_task) else {
            self.counters().unwatched(head.version == Version::HTTP_2 && !self.transports().is_empty());
            return Ok(stream(EventBody::events(connection)));
        };
        let offers_takeover = transport.offers_takeover();
        connection.set_transport(transport);
        if !offers_takeover || head.version != Version::HTTP_11 {
            return Ok(stream(EventBody::events(connection)));
        }
        let mut response = stream(EventBody::offered(connection));
        // The server must release the socket after the response, and the client must not send
        // another request on it.
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        Ok(response)
    }

    fn refusal(&self, refusal: &Refusal) -> Response<EventBody> {
        tracing::debug!(name: "sse.request.rejected", ?refusal, "an event stream was refused");
        match &refusal.0 {
            Kind::Unauthorized => plain(StatusCode::UNAUTHORIZED, "sign in first\n"),
            Kind::Forbidden => plain(StatusCode::FORBIDDEN, "forbidden\n"),
            Kind::Invalid(error) => {
                self.counters().subscription_invalid(error, self.now());
                plain(StatusCode::BAD_REQUEST, "bad subscription\n")
            }
            Kind::Panicked => plain(StatusCode::INTERNAL_SERVER_ERROR, "internal error\n"),
            Kind::Gone | Kind::NoRun => {
                // The next answer may differ, and a cache may store `204`.
                let mut response = with_status(StatusCode::NO_CONTENT, EventBody::empty());
                response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
                response
            }
            Kind::Unresumable => plain(StatusCode::NOT_FOUND, "the stream cannot resume from this id\n"),
            Kind::RetryLater { reason, retry } => {
                let reason = *reason;
                let retry = self.refuse_for_now(reason, *retry);
                let frame = hub_events::refused(reason, retry);
                stream(match self.settings().end {
                    StreamEnd::Clean => EventBody::once(frame),
                    StreamEnd::Abort => EventBody::once_aborted(frame),
                })
            }
        }
    }
}

impl Hub {
    /// Creates the response of a refusal of a request whose subscription is known.
    fn refusal_of(&self, head: &RequestHead, subscription: &Subscription, refusal: &Refusal) -> Response<EventBody> {
        let Kind::RetryLater { reason, retry } = refusal.0 else { return self.refusal(refusal) };
        if !subscription.bare {
            return self.refusal(refusal);
        }
        tracing::debug!(name: "sse.request.rejected", ?refusal, "an event stream was refused");
        let retry = self.refuse_for_now(reason, retry);
        if head.cursor == Cursor::Absent && !head.from_event_source {
            return retry_later(retry);
        }
        // A client that resumes, and a browser's `EventSource`, would not retry after a `503`.
        stream(EventBody::once_aborted(hub_events::retry_line(retry)))
    }

    /// Counts a retryable refusal, and returns the time after which the client should retry.
    fn refuse_for_now(&self, reason: RefusalReason, retry: Option<Duration>) -> Duration {
        self.refused(reason);
        match retry {
            Some(retry) => self.jittered_retry(retry, 1.0..=1.5),
            None => self.jittered_retry(self.settings().retry, 1.0..=3.0),
        }
    }
}

/// The parts of a request that the hub still needs after the access hook has taken the request.
struct RequestHead {
    method: Method,
    version: Version,
    cursor: Cursor,
    asked_at: DisconnectClock,
    from_event_source: bool,
    transport: Option<Arc<Transport>>,
}

impl RequestHead {
    fn of(request: &StreamRequest) -> Self {
        Self {
            method: request.method().clone(),
            version: request.head.version,
            cursor: request.cursor(),
            asked_at: request.asked_at,
            from_event_source: negotiate::is_event_source(request.method(), request.headers()),
            transport: request.transport.clone(),
        }
    }
}

/// Replaces the body of a `200` response to `HEAD` by an empty body of unknown length, so that the
/// head has no `Content-Length`, like the head of a stream.
fn without_body_for_head(method: &Method, response: Response<EventBody>) -> Response<EventBody> {
    if method == Method::HEAD && response.status() == StatusCode::OK {
        return response.map(|_| EventBody::inert());
    }
    response
}

/// The headers of every event stream.
///
/// `no-transform` prevents compressors from delaying events. `Incremental` (RFC 10036) asks proxies
/// to forward each part at once, and `X-Accel-Buffering` does the same for nginx. Copying this map
/// takes a third of the instructions of filling a new map.
static STREAM_HEADERS: LazyLock<HeaderMap> = LazyLock::new(|| {
    HeaderMap::from_iter([
        (CONTENT_TYPE, HeaderValue::from_static("text/event-stream")),
        (CACHE_CONTROL, HeaderValue::from_static("no-cache, no-store, no-transform")),
        (HeaderName::from_static("incremental"), HeaderValue::from_static("?1")),
        (HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no")),
        (X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    ])
});

fn stream(body: EventBody) -> Response<EventBody> {
    let mut response = Response::new(body);
    response.headers_mut().clone_from(&STREAM_HEADERS);
    response
}

fn with_status(status: StatusCode, body: EventBody) -> Response<EventBody> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response
}

pub(super) fn wrong_method(text: &'static str, allowed: &'static str) -> Response<EventBody> {
    let mut response = plain(StatusCode::METHOD_NOT_ALLOWED, text);
    response.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
    response
}

pub(super) fn retry_later(after: Duration) -> Response<EventBody> {
    let mut response = plain(StatusCode::SERVICE_UNAVAILABLE, "not now\n");
    // Round up, so that the client does not retry too early.
    let seconds = after.as_secs().saturating_add(u64::from(after.subsec_nanos() > 0)).max(1);
    response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
    response
}

pub(super) fn plain(status: StatusCode, text: &'static str) -> Response<EventBody> {
    short(status, "text/plain; charset=utf-8", text)
}

pub(super) fn short(status: StatusCode, content_type: &'static str, text: impl Into<Bytes>) -> Response<EventBody> {
    let mut response = with_status(status, EventBody::once(text.into()));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
