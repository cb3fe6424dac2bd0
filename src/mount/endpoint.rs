//! The endpoint: a service that answers every request with a stream or a refusal.

use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::FutureExt;
use futures::future::BoxFuture;
use http::{Method, Request, Response};
use tower_service::Service;

use super::{Access, EndpointFuture, EventBody, IntoAccess, StreamRequest, topics};
use crate::hub::Hub;
use crate::macros::opaque_debug;
use crate::types::ConnectionId;

/// A service that answers every request with an event stream or a refusal: [`Hub::endpoint`].
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use http::Request;
/// use tower::ServiceExt;
/// use tower_sse::{Hub, Public, SseEndpoint, TopicFilter};
///
/// let hub = Hub::builder().build()?;
/// let endpoint: SseEndpoint = hub.endpoint(Public::topics(TopicFilter::exact("news")));
/// let response = endpoint.clone().oneshot(Request::get("/events?topic=news").body(())?).await?;
/// assert_eq!(response.headers()["content-type"], "text/event-stream");
/// let response = endpoint.oneshot(Request::get("/events?topic=drafts").body(())?).await?;
/// assert_eq!(response.status(), 403);
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct SseEndpoint {
    pub(super) hub: Hub,
    access: Arc<dyn Hook>,
    allow_topic_changes: bool,
}

impl Hub {
    /// Returns a service for one route, for example axum's `route_service("/events", …)`. Unlike a
    /// layer, a route is not hidden by operations on the router, such as `merge` and `fallback`.
    ///
    /// ```
    /// # #[cfg(feature = "axum-listener")] fn main() {
    /// use axum::Router;
    /// use tower_sse::{Hub, Public, TopicFilter};
    ///
    /// let hub = Hub::builder().build().unwrap();
    /// let endpoint = hub.endpoint(Public::topics(TopicFilter::exact("news")));
    /// let app: Router = Router::new().route_service("/events", endpoint);
    /// # let _ = app; }
    /// # #[cfg(not(feature = "axum-listener"))] fn main() {}
    /// ```
    #[must_use]
    pub fn endpoint<M, A: IntoAccess<M>>(&self, access: A) -> SseEndpoint {
        SseEndpoint { hub: self.clone(), access: Arc::new(access.into_access()), allow_topic_changes: false }
    }
}

impl SseEndpoint {
    /// Also answers `POST …/{connection}/topics`, if the router routes it to this service. Off by
    /// default.
    ///
    /// [`SseLayer::allow_topic_changes`](crate::SseLayer::allow_topic_changes) describes the
    /// request. With axum, add both routes: `.route_service("/events",
    /// e.clone()).route_service("/events/{connection}/topics", e)`.
    #[doc(alias = "changeable")]
    #[must_use]
    pub fn allow_topic_changes(mut self) -> Self {
        self.allow_topic_changes = true;
        self
    }

    /// Returns whether a request changes the topics of a connection. A stream may have a path that
    /// ends in `/topics` too. So a request with a method other than `POST` counts only if the
    /// segment before `topics` is the id of a connection.
    pub(super) fn is_change(&self, method: &Method, path: &str) -> bool {
        self.allow_topic_changes
            && topics::split_path(path)
                .is_some_and(|(_, id)| method == Method::POST || id.parse::<ConnectionId>().is_ok())
    }
}

impl<B> Service<Request<B>> for SseEndpoint {
    type Response = Response<EventBody>;
    type Error = Infallible;
    type Future = EndpointFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        self.hub.log_start();
        let stream_request = Box::new(StreamRequest::with_socket(&self.hub, request));
        let (hub, access) = (self.hub.clone(), Arc::clone(&self.access));
        let is_change = self.is_change(stream_request.method(), stream_request.uri().path());
        EndpointFuture(if is_change { access.change(hub, stream_request) } else { access.answer(hub, stream_request) })
    }
}

/// An access hook with its type erased. One future covers the whole response, so that a request
/// needs only one allocation.
trait Hook: Send + Sync {
    /// Answers a request for a stream.
    fn answer(self: Arc<Self>, hub: Hub, request: Box<StreamRequest>) -> BoxFuture<'static, Response<EventBody>>;

    /// Answers a request that changes the topics of a stream.
    fn change(self: Arc<Self>, hub: Hub, request: Box<StreamRequest>) -> BoxFuture<'static, Response<EventBody>>;
}

impl<A: Access> Hook for A {
    fn answer(self: Arc<Self>, hub: Hub, request: Box<StreamRequest>) -> BoxFuture<'static, Response<EventBody>> {
        hub.answer(self, request).boxed()
    }

    fn change(self: Arc<Self>, hub: Hub, request: Box<StreamRequest>) -> BoxFuture<'static, Response<EventBody>> {
        hub.change(self, request).boxed()
    }
}

opaque_debug!(|endpoint: SseEndpoint| { hub: endpoint.hub });
