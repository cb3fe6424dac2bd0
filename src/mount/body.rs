//! The response bodies. The body of a stream polls its [`StreamDriver`] for frames.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures::future::Either;
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tower::BoxError;

use super::pace::Pace;
use crate::hub::{Aborted, StreamDriver};
use crate::net::takeover::body_side::Offered;

/// The body of every response of the hub: a stream of events, or a short text, for example of a
/// refusal.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use http_body_util::BodyExt;
/// use tower_sse::{EventBody, Hub, StreamRequest, Subscription};
///
/// let hub = Hub::builder().build()?;
/// let request = StreamRequest::from_request(&http::Request::get("/events").body(())?);
/// let mut body: EventBody = hub.respond(request, Subscription::anonymous()).into_response().into_body();
/// let Some(Ok(frame)) = body.frame().await else { panic!("no frame") };
/// let first = frame.into_data().expect("data");
/// assert!(std::str::from_utf8(&first)?.contains("event: hub.hello"));
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct EventBody {
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Events(StreamDriver, Pace),
    /// A stream that offers itself for takeover after its first frame.
    Offering(StreamDriver),
    /// A stream that waits until its socket accepts or declines the offer.
    Offered(Offered),
    Once {
        bytes: Option<Bytes>,
    },
    /// Bytes, followed by an error. One pending poll comes before the error, so that the server
    /// writes the bytes first.
    OnceAborted {
        bytes: Option<Bytes>,
        written: bool,
    },
    /// An empty body, for the response to `HEAD` and for a stream that the hub has taken over. This
    /// body does not report its end in advance, so that the head has no `Content-Length`, like the
    /// head of a stream.
    Inert,
}

impl EventBody {
    pub(super) fn events(connection: StreamDriver) -> Self {
        Self { kind: Kind::Events(connection, Pace::default()) }
    }

    /// Creates the body of a stream that offers itself for takeover. The caller sends it only in an
    /// HTTP/1.1 response with `Connection: close`.
    pub(super) fn offered(connection: StreamDriver) -> Self {
        Self { kind: Kind::Offering(connection) }
    }

    pub(super) fn once(bytes: Bytes) -> Self {
        Self { kind: Kind::Once { bytes: Some(bytes) } }
    }

    pub(super) fn once_aborted(bytes: Bytes) -> Self {
        Self { kind: Kind::OnceAborted { bytes: Some(bytes), written: false } }
    }

    pub(super) fn empty() -> Self {
        Self { kind: Kind::Once { bytes: None } }
    }

    pub(super) fn inert() -> Self {
        Self { kind: Kind::Inert }
    }
}

/// Returns an empty body, for layers that answer in place of the hub.
impl Default for EventBody {
    fn default() -> Self {
        Self::empty()
    }
}

impl Body for EventBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        self.kind.settle_offer(cx);
        let polled = match &mut self.kind {
            Kind::Inert => None,
            Kind::Once { bytes } => bytes.take().map(Ok),
            Kind::OnceAborted { bytes, written } => match bytes.take() {
                Some(bytes) => Some(Ok(bytes)),
                None if *written => Some(Err(Aborted)),
                // When a body fails, a server discards the bytes that it has not written yet.
                // `Pending` makes the server write them first.
                None => {
                    *written = true;
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
            },
            Kind::Offered(_) => return Poll::Pending,
            Kind::Events(connection, pace) => {
                if !pace.has_rest() && connection.may_sleep(cx) {
                    return Poll::Pending;
                }
                match ready!(pace.poll(connection, cx)) {
                    Some(piece) => Some(Ok(piece)),
                    None => ready!(connection.poll_frame(cx)).map(|frame| frame.map(|bytes| pace.take(bytes))),
                }
            }
            Kind::Offering(connection) => {
                let first = ready!(connection.poll_frame(cx));
                if let Some(Ok(bytes)) = &first {
                    self.kind.offer(bytes);
                }
                first
            }
        };
        Poll::Ready(polled.map(|frame| frame.map(Frame::data).map_err(Into::into)))
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Once { bytes } => bytes.is_none(),
            // The server then writes the end of the body together with the last bytes.
            Kind::Events(connection, pace) => !pace.has_rest() && connection.is_complete(),
            _ => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Once { bytes } => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            _ => SizeHint::default(),
        }
    }
}

impl Kind {
    /// Offers the stream to its socket, when the body returns the first frame.
    fn offer(&mut self, first: &Bytes) {
        if let Self::Offering(connection) = std::mem::replace(self, Self::Inert) {
            *self = match connection.socket() {
                Some(transport) => Self::Offered(Offered::new(connection, transport, first)),
                None => Self::Events(connection, Pace::default()),
            };
        }
    }

    /// Ends the body if the hub has taken the stream over. Makes the body continue the stream if
    /// the offer was declined or withdrawn.
    fn settle_offer(&mut self, cx: &mut Context<'_>) {
        if let Self::Offered(offered) = self
            && let Poll::Ready(declined) = offered.poll(cx)
        {
            *self = declined.map_or(Self::Inert, |connection| Self::Events(connection, Pace::default()));
        }
    }
}

pin_project! {
    /// The body of the responses of an [`SseService`](crate::SseService): the body of the inner
    /// service, or a body of the hub.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use http::{Request, Response};
    /// use http_body_util::Full;
    /// use tower::{Layer, ServiceExt, service_fn};
    /// use tower_sse::{Hub, Public, ResponseBody, TopicFilter};
    ///
    /// let hub = Hub::builder().build()?;
    /// let app = service_fn(|_: Request<()>| async {
    ///     Ok::<_, std::convert::Infallible>(Response::new(Full::new(bytes::Bytes::from("documents"))))
    /// });
    /// let service = hub.layer("/events", Public::topics(TopicFilter::any())).layer(app);
    /// let response = service.oneshot(Request::get("/documents").body(())?).await?;
    /// let body: ResponseBody<Full<bytes::Bytes>> = response.into_body();
    /// # let _ = body;
    /// # Ok(()) }
    /// ```
    #[derive(Debug)]
    pub struct ResponseBody<B> {
        #[pin]
        kind: Either<B, EventBody>,
    }
}

impl<B> ResponseBody<B> {
    pub(super) fn inner(body: B) -> Self {
        Self { kind: Either::Left(body) }
    }

    pub(super) fn events(body: EventBody) -> Self {
        Self { kind: Either::Right(body) }
    }
}

/// Returns an empty body, for layers that answer in place of the inner service.
impl<B: Default> Default for ResponseBody<B> {
    fn default() -> Self {
        Self::inner(B::default())
    }
}

impl<B> Body for ResponseBody<B>
where
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match self.project().kind.as_pin_mut() {
            Either::Left(body) => body.poll_frame(cx).map_err(Into::into),
            Either::Right(body) => body.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Either::Left(body) => body.is_end_stream(),
            Either::Right(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Either::Left(body) => body.size_hint(),
            Either::Right(body) => body.size_hint(),
        }
    }
}
