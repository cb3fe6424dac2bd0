//! The layer to mount, and the service that it makes.

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

/// Answers `GET` and `HEAD` for one path with event streams and passes everything else through
/// untouched: [`Hub::layer`].
#[derive(Clone)]
pub struct SseLayer {
    endpoint: SseEndpoint,
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
    pub fn layer<M, A: IntoAccess<M>>(&self, path: &str, access: A) -> SseLayer {
        SseLayer::new(self, path, access)
    }
}

impl SseLayer {
    /// Creates the layer of a hub: the same as [`Hub::layer`], which describes it.
    #[must_use]
    pub fn new<M, A: IntoAccess<M>>(hub: &Hub, path: &str, access: A) -> Self {
        if !path.starts_with('/') {
            tracing::warn!(path, "this path is never requested: paths start with a slash");
        }
        if path.contains('{') {
            tracing::warn!(
                path,
                "the path of a layer has no parameters: use `Hub::endpoint` or `Hub::respond` in a route"
            );
        }
        hub.note_mount(path);
        Self { endpoint: hub.endpoint(access), path: path.into(), provides: false }
    }

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

impl<S> Layer<S> for SseLayer {
    type Service = SseService<S>;
    fn layer(&self, inner: S) -> SseService<S> {
        SseService { inner, layer: self.clone() }
    }
}

opaque_debug!(|layer: SseLayer| { path: layer.path });

/// What [`SseLayer`](crate::SseLayer) makes of a service.
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

impl<S> SseService<S> {
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

opaque_debug!(<S: fmt::Debug> |service: SseService| { inner: service.inner, path: service.layer.path });
