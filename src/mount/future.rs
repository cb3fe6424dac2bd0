//! The futures of the layer and of the endpoint.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures::future::{BoxFuture, Either};
use http::Response;
use pin_project_lite::pin_project;

use super::{EventBody, ResponseBody};
use crate::macros::opaque_debug;

pin_project! {
    /// The future of a response of [`SseService`](crate::SseService): the future of the inner
    /// service, or of a stream. [`SseLayer`](crate::SseLayer) has an example.
    pub struct ResponseFuture<F> {
        #[pin]
        pub(super) kind: Either<F, EndpointFuture>,
    }
}

impl<F, B, E> Future for ResponseFuture<F>
where
    F: Future<Output = Result<Response<B>, E>>,
{
    type Output = Result<Response<ResponseBody<B>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().kind.as_pin_mut() {
            Either::Left(inner) => inner.poll(cx).map_ok(|response| response.map(ResponseBody::inner)),
            Either::Right(mut events) => {
                events.0.as_mut().poll(cx).map(|response| Ok(response.map(ResponseBody::events)))
            }
        }
    }
}

opaque_debug!(<F> |_future: ResponseFuture| {});

/// The future of a response of [`SseEndpoint`](crate::SseEndpoint), which has an example.
pub struct EndpointFuture(pub(super) BoxFuture<'static, Response<EventBody>>);

impl Future for EndpointFuture {
    type Output = Result<Response<EventBody>, Infallible>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.as_mut().poll(cx).map(Ok)
    }
}

opaque_debug!(|_future: EndpointFuture| {});
