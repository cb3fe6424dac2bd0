//! The body that writes a stream: it asks the connection what is next and hands on bytes.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::SystemTime;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tower::BoxError;

use crate::hub::{Batch, Connection, Step};
use crate::wire::{HEARTBEAT, control};

pin_project! {
    /// The body of every answer of the hub: a stream of events, or the short text of a refusal.
    #[derive(Debug)]
    pub struct EventBody {
        #[pin]
        kind: Kind,
    }
}

pin_project! {
    #[derive(Debug)]
    #[project = KindProjection]
    enum Kind {
        Events {
            #[pin]
            connection: Connection,
            // It has been looked for the socket, which can be found in the task that polls it.
            found: bool,
        },
        Once { bytes: Option<Bytes> },
        // Ends with an error after its bytes, when the server has written them.
        OnceAborted { bytes: Option<Bytes>, written: bool },
        // Ends without a byte, but does not say so beforehand: the head of an answer to `HEAD` is that of a stream.
        Inert,
    }
}

impl EventBody {
    pub(super) fn events(connection: Connection) -> Self {
        Self { kind: Kind::Events { connection, found: false } }
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

/// An empty body, for layers that answer in the hub's place.
impl Default for EventBody {
    fn default() -> Self {
        Self::empty()
    }
}

impl Body for EventBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let bytes = match self.project().kind.project() {
            KindProjection::Inert => None,
            KindProjection::Once { bytes } => bytes.take(),
            KindProjection::OnceAborted { bytes, written } => match bytes.take() {
                Some(bytes) => Some(bytes),
                None if *written => return Poll::Ready(Some(Err(Aborted.into()))),
                // A server throws away what it has not written when a body fails. Pending makes it write first.
                None => {
                    *written = true;
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
            },
            KindProjection::Events { connection, found } => {
                if !std::mem::replace(found, true)
                    && let Some(transport) = connection.hub().transports().of_this_task()
                {
                    connection.carried_by(transport);
                }
                match ready!(poll_bytes(connection, cx)) {
                    Some(Ok(bytes)) => Some(bytes),
                    Some(Err(aborted)) => return Poll::Ready(Some(Err(aborted.into()))),
                    None => None,
                }
            }
        };
        Poll::Ready(bytes.map(|bytes| Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.kind, Kind::Once { bytes: None })
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Once { bytes } => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Kind::Events { .. } | Kind::OnceAborted { .. } | Kind::Inert => SizeHint::default(),
        }
    }
}

/// The stream was to end with an error: [`End::Abort`](crate::End::Abort).
#[derive(Debug)]
struct Aborted;

impl std::fmt::Display for Aborted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the event stream was ended by the hub")
    }
}

impl std::error::Error for Aborted {}

fn poll_bytes(mut connection: Pin<&mut Connection>, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Aborted>>> {
    let mut batch = Batch::default();
    let Some(step) = ready!(connection.as_mut().poll_step(cx, &mut batch)) else {
        return Poll::Ready(None);
    };
    let settings = connection.hub().settings();
    let bytes = match step {
        Step::Records => records(&batch, Bytes::new()),
        Step::Gap { reason, topics } => {
            records(&batch, control::gap(reason, topics.iter().map(crate::name::Topic::as_str)))
        }
        Step::Heartbeat => Bytes::from_static(HEARTBEAT),
        Step::Stale => control::stale(),
        Step::Live(position, topics) => control::live(position, topics.as_deref()),
        Step::Hello { connection, cursor, topics } => {
            control::hello(connection, cursor, topics.iter(), settings.instance.as_deref(), settings.retry)
        }
        Step::Expiring(remaining) => control::expiring(remaining),
        Step::Bye(ending) => {
            control::bye(ending.reason, ending.returns, ending.retry, ending.note.as_deref(), SystemTime::now())
        }
        Step::Abort => return Poll::Ready(Some(Err(Aborted))),
    };
    Poll::Ready(Some(Ok(bytes)))
}

/// One event shares its bytes with every other stream; several become one piece, so that they are written as one.
fn records(batch: &Batch, before: Bytes) -> Bytes {
    match &batch.records[..] {
        [] => before,
        [only] if batch.ordered && before.is_empty() => only.record.frame.with_id(),
        several => {
            let size: usize = several.iter().map(|picked| picked.record.frame.len()).sum();
            let mut out = Vec::with_capacity(before.len() + size);
            out.extend_from_slice(&before);
            several.iter().for_each(|picked| picked.record.frame.write(&mut out, batch.ordered));
            out.into()
        }
    }
}

pin_project! {
    /// The body behind the layer: the inner service's, or a stream of events.
    #[derive(Debug)]
    pub struct ResponseBody<B> {
        #[pin]
        kind: Either<B>,
    }
}

pin_project! {
    #[derive(Debug)]
    #[project = EitherProjection]
    enum Either<B> {
        Inner { #[pin] body: B },
        Events { #[pin] body: EventBody },
    }
}

impl<B> ResponseBody<B> {
    pub(super) fn inner(body: B) -> Self {
        Self { kind: Either::Inner { body } }
    }

    pub(super) fn events(body: EventBody) -> Self {
        Self { kind: Either::Events { body } }
    }
}

/// An empty body, for layers that answer in the inner service's place.
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
        match self.project().kind.project() {
            EitherProjection::Inner { body } => body.poll_frame(cx).map_err(Into::into),
            EitherProjection::Events { body } => body.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Either::Inner { body } => body.is_end_stream(),
            Either::Events { body } => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Either::Inner { body } => body.size_hint(),
            Either::Events { body } => body.size_hint(),
        }
    }
}
