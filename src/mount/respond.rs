//! Responses to requests for streams, for layer, endpoint and handler mount.

use std::sync::{Arc, LazyLock};

use bytes::Bytes;
use http::header::{ALLOW, CACHE_CONTROL, CONNECTION, CONTENT_TYPE, HeaderName, X_CONTENT_TYPE_OPTIONS};
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
/// ```
/// use http::Request;
/// use tower_sse::{EventBody, Hub, StreamRequest, Subscription};
///
/// fn events(hub: &Hub, request: &Request<()>) -> http::Response<EventBody> {
///     let subscription = Subscription::anonymous().topic("news");
///     hub.respond(StreamRequest::from_request(request), subscription).into_response()
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
    /// The same rules apply as for the layer. A `HEAD` request receives only the head of the
    /// response and opens no stream. A request whose `Accept` header excludes event streams
    /// receives `406`. A hub that is draining sends a retryable refusal.
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
        let response = self.early_refusal(&request).unwrap_or_else(|| {
            let accepted = self.accept(&RequestHead::of(&request), &subscription, None, spend);
            accepted.unwrap_or_else(|refusal| self.refusal(&refusal))
        });
        EventStream(without_body_for_head(request.method(), response))
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
        let accepted = self.authorize(&*access, request).await.and_then(|subscription| {
            let authority = A::RECHECKS.then_some(access as Arc<dyn Authority>);
            self.accept(&head, &subscription, authority, || redemption.into_iter().for_each(Redemption::spend))
        });
        let response = accepted.unwrap_or_else(|refusal| self.refusal(&refusal));
        without_body_for_head(&head.method, response)
    }

    /// Returns the response to a request that the hub refuses before it calls the access hook.
    fn early_refusal(&self, request: &StreamRequest) -> Option<Response<EventBody>> {
        match negotiate::check(request.method(), request.headers()) {
            Ok(()) => {}
            Err(StatusCode::METHOD_NOT_ALLOWED) => return Some(wrong_method("use GET\n", "GET, HEAD")),
            Err(status) => return Some(plain(status, "this is an event stream: text/event-stream\n")),
        }
        if let Err(text) = self.check_host_and_origin(request) {
            return Some(plain(StatusCode::FORBIDDEN, text));
        }
        // The rate limit protects the access hook from a rush of reconnects. It includes `HEAD`,
        // which also calls the hook.
        self.check_rate().err().map(|refusal| self.refusal(&refusal))
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
        tracing::debug!(?refusal, "an event stream was refused");
        match &refusal.0 {
            Kind::Unauthorized => plain(StatusCode::UNAUTHORIZED, "sign in first\n"),
            Kind::Forbidden => plain(StatusCode::FORBIDDEN, "forbidden\n"),
            Kind::Invalid(error) => {
                self.counters().subscription_invalid(error, self.now());
                plain(StatusCode::BAD_REQUEST, "bad subscription\n")
            }
            Kind::Panicked => plain(StatusCode::INTERNAL_SERVER_ERROR, "internal error\n"),
            Kind::Gone | Kind::NoRun => with_status(StatusCode::NO_CONTENT, EventBody::empty()),
            Kind::ForgottenRun => plain(StatusCode::NOT_FOUND, "no such run\n"),
            Kind::RetryLater { reason, retry } => {
                let reason = *reason;
                self.counters().refused(reason, self.now());
                let retry = match retry {
                    Some(retry) => self.jittered_retry(*retry, 1.0..=1.5),
                    None => self.jittered_retry(self.settings().retry, 1.0..=3.0),
                };
                let frame = hub_events::refused(reason, retry);
                stream(match self.settings().end {
                    StreamEnd::Clean => EventBody::once(frame),
                    StreamEnd::Abort => EventBody::once_aborted(frame),
                })
            }
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
