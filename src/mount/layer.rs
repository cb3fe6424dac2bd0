//! The layer, and the service that the layer creates.

use std::fmt;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::future::Either;
use http::{Method, Request, Response};
use tower_layer::Layer;
use tower_service::Service;

use super::{IntoAccess, ResponseBody, ResponseFuture, SseEndpoint};
use crate::hub::Hub;
use crate::macros::opaque_debug;

/// A layer that answers `GET` and `HEAD` for one path with event streams, and passes every other
/// request through unchanged: [`Hub::layer`].
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use http::{Request, Response};
/// use tower::{Layer, ServiceExt, service_fn};
/// use tower_sse::{Hub, Public, SseLayer, TopicFilter};
///
/// let app = service_fn(|_: Request<()>| async {
///     Ok::<_, std::convert::Infallible>(Response::new(String::from("documents")))
/// });
/// let hub = Hub::builder().build()?;
/// let layer: SseLayer = hub.layer("/events", Public::topics(TopicFilter::any()));
/// let stream = layer.layer(app).oneshot(Request::get("/events").body(())?).await?;
/// assert_eq!(stream.headers()["content-type"], "text/event-stream");
/// let document = layer.layer(app).oneshot(Request::get("/documents").body(())?).await?;
/// assert!(document.headers().is_empty());
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct SseLayer {
    endpoint: SseEndpoint,
    path: Arc<str>,
    provides: bool,
}

impl Hub {
    /// Returns a layer that answers `GET` and `HEAD` for exactly `path`, which starts with `/`.
    ///
    /// Every other request passes through unchanged. Such a request costs a few comparisons and no
    /// allocation, and the layer keeps the errors and the body of the inner service. Other methods
    /// on the path also go to the inner service. So an application can handle `POST` on the same
    /// path, and an inner CORS layer receives the `OPTIONS` requests.
    ///
    /// In an axum router, call `.layer(…)` with this layer after all routes have been added. Add
    /// the layers that authenticate the user after this layer, so that they run before it.
    /// `docs/mounting.md` lists the router operations that hide a layer.
    ///
    /// ```
    /// use tower::{ServiceBuilder, service_fn};
    /// use tower_sse::{Hub, Public, TopicFilter};
    /// # let app = service_fn(|_: http::Request<()>| async { Ok::<_, std::convert::Infallible>(http::Response::new(())) });
    ///
    /// let hub = Hub::builder().build().unwrap();
    /// let service = ServiceBuilder::new()
    ///     .layer(hub.layer("/events", Public::topics(TopicFilter::any())))
    ///     .service(app);
    /// # let _ = service;
    /// ```
    #[must_use]
    pub fn layer<M, A: IntoAccess<M>>(&self, path: &str, access: A) -> SseLayer {
        SseLayer::new(self, path, access)
    }
}

impl SseLayer {
    /// Creates the layer of a hub. [`Hub::layer`] has the description.
    #[must_use]
    pub fn new<M, A: IntoAccess<M>>(hub: &Hub, path: &str, access: A) -> Self {
        // Warn only once for each path, because a program may create a layer for each connection.
        let is_new = hub.note_mount(path);
        if is_new && !path.starts_with('/') {
            tracing::warn!(name: "sse.layer.path_relative", path, "the path of a layer must start with a slash: no request matches this path");
        }
        if is_new && path.contains('{') {
            tracing::warn!(name: "sse.layer.path_parameters",
                path,
                "the path of a layer cannot have parameters: use `Hub::endpoint` or `Hub::respond` in a route"
            );
        }
        Self { endpoint: hub.endpoint(access), path: path.into(), provides: false }
    }

    /// Also answers `POST {path}/{connection}/topics`, with which a client changes the topics of
    /// its stream without reconnecting. Off by default.
    ///
    /// `connection` is the id in the `hub.hello` of the stream. The query has any number of `join=`
    /// and `leave=` fields, and optionally `since=` with an id, like
    /// [`Join::since`](crate::Join::since). The response is `{"topics":[…]}`, with all topics of
    /// the stream after the change. If topics have changed, the stream delivers a `hub.live` with
    /// `topics`. The ids of the stream cover the new topics from the id of that event on.
    ///
    /// The hub calls the access hook as for a request for a stream: each topic to be joined is a
    /// `topic=` field in the query, and the headers, cookies and extensions are those of this
    /// request. The hub grants the topics of the returned subscription, and the topics that it lets
    /// the client [join](crate::Subscription::may_join). If one topic is not granted, the hub
    /// refuses the whole request with `403`. A connection of another user gets the same response as
    /// an unknown connection: `404`. A client needs no grant to leave a topic.
    ///
    /// ```
    /// use tower_sse::{Hub, Refusal, StreamRequest, Subscription, TopicFilter};
    ///
    /// async fn access(_: StreamRequest) -> Result<Subscription, Refusal> {
    ///     Ok(Subscription::anonymous().topic("news").may_join(TopicFilter::prefix("documents/")))
    /// }
    /// let hub = Hub::builder().build().unwrap();
    /// let layer = hub.layer("/events", access).allow_topic_changes();
    /// // The page opens a document: POST /events/{connection}/topics?join=documents/7&leave=news
    /// # let _ = layer;
    /// ```
    #[doc(alias = "changeable")]
    #[must_use]
    pub fn allow_topic_changes(mut self) -> Self {
        self.endpoint = self.endpoint.allow_topic_changes();
        self
    }

    /// Also puts the `Hub` into the extensions of every request that passes to the inner service,
    /// for handlers that extract the hub. Off by default. Costs an allocation for each request.
    #[must_use]
    pub fn provide(mut self) -> Self {
        self.provides = true;
        self
    }
}

impl<S> Layer<S> for SseLayer {
    type Service = SseService<S>;
    fn layer(&self, inner: S) -> SseService<S> {
        SseService { inner, layer: self.clone() }
    }
}

opaque_debug!(|layer: SseLayer| { path: layer.path });

/// The service that [`SseLayer`] creates around an inner service.
///
/// ```
/// use tower::{Layer, service_fn};
/// use tower_sse::{Hub, Public, SseService, TopicFilter};
///
/// let app = service_fn(|_: http::Request<()>| async {
///     Ok::<_, std::convert::Infallible>(http::Response::new(()))
/// });
/// let hub = Hub::builder().build().unwrap();
/// let service: SseService<_> = hub.layer("/events", Public::topics(TopicFilter::any())).layer(app);
/// # let _ = service;
/// ```
#[derive(Clone)]
pub struct SseService<S> {
    inner: S,
    layer: SseLayer,
}

impl<S, ReqBody, ResBody> Service<Request<ReqBody>> for SseService<S>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>>,
{
    type Response = Response<ResponseBody<ResBody>>;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future>;

    /// Polls the inner service. The hub itself is always ready.
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<ReqBody>) -> Self::Future {
        if self.is_for_hub(request.method(), request.uri().path()) {
            return ResponseFuture { kind: Either::Right(self.layer.endpoint.call(request)) };
        }
        if self.layer.provides {
            request.extensions_mut().insert(self.layer.endpoint.hub.clone());
        }
        ResponseFuture { kind: Either::Left(self.inner.call(request)) }
    }
}

impl<S> SseService<S> {
    /// Returns whether the hub answers a request, because the request opens a stream or changes the
    /// topics of a stream.
    ///
    /// Methods other than `GET` and `HEAD` on the path of the layer go to the inner service.
    /// `OPTIONS` always does, for CORS layers.
    fn is_for_hub(&self, method: &Method, path: &str) -> bool {
        let layer = &self.layer;
        if path == &*layer.path {
            return method == Method::GET || method == Method::HEAD;
        }
        if method == Method::OPTIONS {
            return false;
        }
        match path.strip_prefix(layer.path.trim_end_matches('/')) {
            // Only `/{connection}/topics`, with exactly one segment before `topics`.
            Some(rest) if rest.starts_with('/') => {
                layer.endpoint.is_change(method, path) && rest.bytes().filter(|&byte| byte == b'/').count() == 2
            }
            _ => false,
        }
    }
}

opaque_debug!(<S: fmt::Debug> |service: SseService| { inner: service.inner, path: service.layer.path });
