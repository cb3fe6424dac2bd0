//! The layer to mount, and the service that it makes.

use std::fmt;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::future::Either;
use http::{Method, Request, Response};
use tower_layer::Layer;
use tower_service::Service;

use super::{Access, ResponseBody, ResponseFuture, SseEndpoint};
use crate::hub::Hub;
use crate::macros::opaque_debug;

/// Answers `GET` and `HEAD` for one path with event streams and passes everything else through
/// untouched: [`Hub::layer`].
pub struct SseLayer<A> {
    endpoint: SseEndpoint<A>,
    path: Arc<str>,
    provides: bool,
}

impl Hub {
    /// A layer that answers `GET` and `HEAD` for exactly `path`, which starts with `/`, and passes
    /// everything else through untouched: one comparison, no allocation, the inner service's error and its own body.
    ///
    /// Other methods on the path go to the inner service too, so an application may have a `POST` of its own there, and
    /// a CORS layer inside sees its `OPTIONS`. In an axum router the layer comes after all routes, and the
    /// layers that know the user come after it, that is outside. `docs/mounting.md` says which router
    /// operations hide a layer.
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
    pub fn layer<A: Access>(&self, path: &str, access: A) -> SseLayer<A> {
        if !path.starts_with('/') {
            tracing::warn!(path, "this path is never requested: paths start with a slash");
        }
        SseLayer { endpoint: self.endpoint(access), path: path.into(), provides: false }
    }
}

impl<A> SseLayer<A> {
    /// Also answers `POST {path}/{connection}/topics`, by which a page changes its topics without reconnecting. The
    /// `connection` is that of its `hub.hello`; the query has any number of `join=` and `leave=`, and
    /// perhaps `since=` with an id, as [`Join::since`](crate::Join::since). The answer is
    /// `{"topics":[…]}`: those in force. On the stream a `hub.live` with `topics` says that from its id on
    /// they are accounted for.
    ///
    /// The access hook is asked as for a stream with each topic to be joined as `topic=` in the query, and with the
    /// cookies, headers and extensions of this request; what it would subscribe to, or lets
    /// [join](crate::Subscription::may_join), is granted. One topic that is not refuses the whole request with `403`. A
    /// connection of another user is answered like one that is not there: `404`. Topics may always be left.
    ///
    /// Defaults to not.
    #[doc(alias = "changeable")]
    #[must_use]
    pub fn allow_topic_changes(mut self) -> Self {
        self.endpoint = self.endpoint.allow_topic_changes();
        self
    }

    /// Also puts the `Hub` into the extensions of every request that passes through, for handlers that take it from
    /// there. This allocates. Defaults to not.
    #[must_use]
    pub fn provide(mut self) -> Self {
        self.provides = true;
        self
    }
}

impl<S, A> Layer<S> for SseLayer<A> {
    type Service = SseService<S, A>;
    fn layer(&self, inner: S) -> SseService<S, A> {
        SseService { inner, layer: self.clone() }
    }
}

impl<A> Clone for SseLayer<A> {
    fn clone(&self) -> Self {
        Self { endpoint: self.endpoint.clone(), path: Arc::clone(&self.path), provides: self.provides }
    }
}

opaque_debug!(<A> |layer: SseLayer| { path: layer.path });

/// What [`SseLayer`](crate::SseLayer) makes of a service.
pub struct SseService<S, A> {
    inner: S,
    layer: SseLayer<A>,
}

impl<S, A, ReqBody, ResBody> Service<Request<ReqBody>> for SseService<S, A>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>>,
    A: Access,
{
    type Response = Response<ResponseBody<ResBody>>;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future>;

    /// The inner service's: it is the one that may be busy.
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<ReqBody>) -> Self::Future {
        if self.is_ours(request.method(), request.uri().path()) {
            return ResponseFuture { kind: Either::Right(self.layer.endpoint.call(request)) };
        }
        if self.layer.provides {
            request.extensions_mut().insert(self.layer.endpoint.hub.clone());
        }
        ResponseFuture { kind: Either::Left(self.inner.call(request)) }
    }
}

impl<S, A> SseService<S, A> {
    /// Whether a request is for a stream, or about the topics of one. The path may be the application's too, with other
    /// methods, and `OPTIONS` always is, for CORS.
    fn is_ours(&self, method: &Method, path: &str) -> bool {
        let layer = &self.layer;
        if path == &*layer.path {
            return method == Method::GET || method == Method::HEAD;
        }
        if method == Method::OPTIONS {
            return false;
        }
        match path.strip_prefix(layer.path.trim_end_matches('/')) {
            // Only `/{connection}/topics`: one segment between.
            Some(rest) if rest.starts_with('/') => {
                layer.endpoint.is_change(method, path) && rest.bytes().filter(|&byte| byte == b'/').count() == 2
            }
            _ => false,
        }
    }
}

impl<S: Clone, A> Clone for SseService<S, A> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), layer: self.layer.clone() }
    }
}

opaque_debug!(<S: fmt::Debug, A> |service: SseService| { inner: service.inner, path: service.layer.path });
