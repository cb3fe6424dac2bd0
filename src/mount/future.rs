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
    /// service, or of the hub.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use http::{Request, Response};
    /// use tower::{Layer, Service, service_fn};
    /// use tower_sse::{Hub, Public, ResponseFuture, TopicFilter};
    ///
    /// let app = service_fn(|_: Request<()>| async {
    ///     Ok::<_, std::convert::Infallible>(Response::new(String::from("documents")))
    /// });
    /// let hub = Hub::builder().build()?;
    /// let mut service = hub.layer("/events", Public::topics(TopicFilter::any())).layer(app);
    /// let future: ResponseFuture<_> = service.call(Request::get("/documents").body(())?);
    /// assert_eq!(future.await?.status(), 200);
    /// # Ok(()) }
    /// ```
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

/// The future of a response of [`SseEndpoint`](crate::SseEndpoint).
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use tower::Service;
/// use tower_sse::{EndpointFuture, Hub, Public, TopicFilter};
///
/// let hub = Hub::builder().build()?;
/// let mut endpoint = hub.endpoint(Public::topics(TopicFilter::exact("news")));
/// let future: EndpointFuture = endpoint.call(http::Request::get("/events?topic=news").body(())?);
/// assert_eq!(future.await?.status(), 200);
/// # Ok(()) }
/// ```
pub struct EndpointFuture(pub(super) BoxFuture<'static, Response<EventBody>>);

impl Future for EndpointFuture {
    type Output = Result<Response<EventBody>, Infallible>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.as_mut().poll(cx).map(Ok)
    }
}

opaque_debug!(|_future: EndpointFuture| {});
