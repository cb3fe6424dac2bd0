//! The service that the layer makes.

use std::fmt;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::{Method, Request, Response};
use tower_service::Service;

use super::{Access, ResponseBody, ResponseFuture, SseEndpoint};

/// What [`SseLayer`](crate::SseLayer) makes of a service.
pub struct SseService<S, A> {
    pub(super) inner: S,
    pub(super) endpoint: SseEndpoint<A>,
    pub(super) path: Arc<str>,
    pub(super) provides: bool,
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
            return ResponseFuture::events(self.endpoint.answer(request));
        }
        if self.provides {
            request.extensions_mut().insert(self.endpoint.hub().clone());
        }
        ResponseFuture::inner(self.inner.call(request))
    }
}

impl<S, A> SseService<S, A> {
    /// Whether a request is for a stream, or about the topics of one. The path may be the application's too, with other
    /// methods, and `OPTIONS` always is, for CORS.
    fn is_ours(&self, method: &Method, path: &str) -> bool {
        if path == &*self.path {
            return method == Method::GET || method == Method::HEAD;
        }
        if method == Method::OPTIONS {
            return false;
        }
        match path.strip_prefix(self.path.trim_end_matches('/')) {
            // Only `/{connection}/topics`: one segment between.
            Some(rest) if rest.starts_with('/') => {
                self.endpoint.is_change(method, path) && rest.bytes().filter(|&byte| byte == b'/').count() == 2
            }
            _ => false,
        }
    }
}

impl<S: Clone, A> Clone for SseService<S, A> {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
            endpoint: self.endpoint.clone(),
            path: Arc::clone(&self.path),
            provides: self.provides,
        }
    }
}

impl<S: fmt::Debug, A> fmt::Debug for SseService<S, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SseService").field("inner", &self.inner).field("path", &self.path).finish_non_exhaustive()
    }
}
