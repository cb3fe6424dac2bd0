//! The service that answers every request with a stream.

use std::convert::Infallible;
use std::fmt;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::FutureExt;
use futures::future::BoxFuture;
use http::{Request, Response};
use tower_service::Service;

use super::{Access, Connect, EndpointFuture, EventBody};
use crate::hub::Hub;

/// A service that answers every request with an event stream or a refusal: [`Hub::endpoint`].
pub struct SseEndpoint<A> {
    hub: Hub,
    access: Arc<A>,
}

impl Hub {
    /// A service for one route, for example axum's `route_service("/events", …)`, which survives every router operation.
    #[must_use]
    pub fn endpoint<A: Access>(&self, access: A) -> SseEndpoint<A> {
        SseEndpoint { hub: self.clone(), access: Arc::new(access) }
    }
}

impl<A> SseEndpoint<A> {
    pub(super) fn hub(&self) -> &Hub {
        &self.hub
    }
}

impl<A: Access> SseEndpoint<A> {
    pub(super) fn answer<B>(&self, request: Request<B>) -> BoxFuture<'static, Response<EventBody>> {
        let connect = Connect::arriving(&self.hub, request);
        let (hub, access) = (self.hub.clone(), Arc::clone(&self.access));
        async move { hub.answer(&*access, connect).await }.boxed()
    }
}

impl<A: Access, B> Service<Request<B>> for SseEndpoint<A> {
    type Response = Response<EventBody>;
    type Error = Infallible;
    type Future = EndpointFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        EndpointFuture(self.answer(request))
    }
}

impl<A> Clone for SseEndpoint<A> {
    fn clone(&self) -> Self {
        Self { hub: self.hub.clone(), access: Arc::clone(&self.access) }
    }
}

impl<A> fmt::Debug for SseEndpoint<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SseEndpoint").field("hub", &self.hub).finish_non_exhaustive()
    }
}
