//! The socket below a server, which the hub may take over together with its stream.
//!
//! The socket recognizes a stream by its bytes: the head of a response with `Connection: close`,
//! followed by exactly the first frame that a body has offered. So streams with TLS, compression,
//! HTTP/2 or a layer that changes the body stay with the server, without any setting.

use std::any::Any;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use pin_project_lite::pin_project;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::hub::{Takeover, Transport};

/// The maximum length of a head that the socket searches.
const MAX_HEAD: usize = 16 * 1024;

pin_project! {
    #[project = SocketProjection]
    pub(crate) enum Socket<S> {
        Fixed {
            #[pin]
            stream: S,
        },
        Movable {
            // `None` after the takeover. Bytes that the server still writes do not reach the peer.
            tcp: Option<TcpStream>,
            // Set while the server writes the first frame of an offered stream.
            accepted: Option<Box<Accepted>>,
        },
    }
}

/// An offer whose bytes the server is writing.
pub(crate) struct Accepted {
    offer: Arc<dyn Takeover>,
    /// The number of bytes of the head and the first frame that the socket has not accepted yet.
    left: usize,
}

impl<S: 'static> Socket<S> {
    pub(crate) fn new(stream: S) -> Self {
        Self::Fixed { stream }
    }

    /// Prepares a TCP stream on Unix for takeover. Other streams do not change.
    pub(crate) fn movable(self) -> Self {
        let Self::Fixed { stream } = self else { return self };
        if !cfg!(unix) {
            return Self::Fixed { stream };
        }
        let mut stream = Some(stream);
        let tcp = (&mut stream as &mut dyn Any).downcast_mut::<Option<TcpStream>>().and_then(Option::take);
        match stream {
            Some(stream) => Self::Fixed { stream },
            None => Self::Movable { tcp, accepted: None },
        }
    }

    pub(crate) fn is_movable(&self) -> bool {
        matches!(self, Self::Movable { .. })
    }
}

impl<S> Socket<S> {
    pub(crate) fn is_taken_over(&self) -> bool {
        matches!(self, Self::Movable { tcp: None, .. })
    }

    /// Compares the bytes of the next write with the offered stream, and accepts or declines the
    /// offer.
    pub(crate) fn match_offer(self: Pin<&mut Self>, slices: &[IoSlice<'_>], transport: &Transport) {
        let SocketProjection::Movable { tcp: Some(_), accepted } = self.project() else { return };
        match accepted {
            None => {
                let Some(offer) = transport.take_offer() else { return };
                match length_if_offered(slices, offer.chunk()) {
                    Some(left) => *accepted = Some(Box::new(Accepted { offer, left })),
                    None => offer.decline(),
                }
            }
            Some(current) if length(slices) > current.left => {
                // The server writes more than the head and the first frame.
                current.offer.decline();
                *accepted = None;
            }
            Some(_) => {}
        }
    }

    /// Counts the bytes of a write.
    pub(crate) fn wrote(self: Pin<&mut Self>, count: usize) {
        if let SocketProjection::Movable { accepted: Some(accepted), .. } = self.project() {
            accepted.left = accepted.left.saturating_sub(count);
        }
    }

    /// Passes the socket of an accepted offer to a writer, after the server has flushed. Returns
    /// whether the hub has taken the socket over.
    pub(crate) fn try_takeover(self: Pin<&mut Self>, transport: &Transport) -> bool {
        let SocketProjection::Movable { tcp: current @ Some(_), accepted } = self.project() else { return false };
        match accepted.take_if(|accepted| accepted.left == 0) {
            Some(accepted) => *current = current.take().and_then(|tcp| accepted.offer.take(tcp).err()),
            // The server has flushed without writing the first frame.
            None if accepted.is_none() => transport.take_offer().iter().for_each(|offer| offer.decline()),
            None => {}
        }
        current.is_none()
    }
}

fn length(slices: &[IoSlice<'_>]) -> usize {
    slices.iter().map(|slice| slice.len()).sum()
}

/// Returns the length of the bytes if they are the head of a response with `Connection: close`,
/// followed by exactly this chunk.
fn length_if_offered(slices: &[IoSlice<'_>], chunk: &[u8]) -> Option<usize> {
    let length = length(slices);
    if !(chunk.len()..=chunk.len() + MAX_HEAD).contains(&length) {
        return None;
    }
    let gathered: Vec<u8>;
    let bytes = match slices {
        [only] => &**only,
        several => {
            gathered = several.iter().flat_map(|slice| slice.iter().copied()).collect();
            &gathered
        }
    };
    let head = bytes.strip_suffix(chunk)?.strip_suffix(b"\r\n\r\n")?;
    let lines = head.strip_prefix(b"HTTP/1.1 200 ")?;
    // With an earlier blank line, the head ends there, and the bytes up to the chunk are a part of
    // the body.
    if memchr::memmem::find(lines, b"\r\n\r\n").is_some() {
        return None;
    }
    let has = |name: &str, value: &str| {
        lines.split(|&byte| byte == b'\n').any(|line| {
            line.split_at_checked(name.len()).is_some_and(|(field, rest)| {
                field.eq_ignore_ascii_case(name.as_bytes())
                    && rest
                        .strip_prefix(b":")
                        .is_some_and(|rest| rest.trim_ascii().eq_ignore_ascii_case(value.as_bytes()))
            })
        })
    };
    (has("connection", "close") && has("transfer-encoding", "chunked")).then_some(length)
}

/// Calls a method of the stream, or returns `$taken` after the takeover.
macro_rules! forward {
    ($socket:expr, $taken:expr, |$stream:ident| $call:expr) => {
        match $socket.project() {
            SocketProjection::Fixed { stream: $stream } => $call,
            SocketProjection::Movable { tcp, .. } => match tcp.as_mut().map(Pin::new) {
                Some($stream) => $call,
                None => $taken,
            },
        }
    };
}

impl<S: AsyncRead> AsyncRead for Socket<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        // After the takeover, reads stay pending. If the server read the end of the input, it would
        // still answer a pipelined request that it has read already.
        forward!(self, Poll::Pending, |stream| stream.poll_read(cx, buffer))
    }
}

impl<S: AsyncWrite> AsyncWrite for Socket<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        forward!(self, Poll::Ready(Ok(bytes.len())), |stream| stream.poll_write(cx, bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        forward!(self, Poll::Ready(Ok(length(slices))), |stream| stream.poll_write_vectored(cx, slices))
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Fixed { stream } => stream.is_write_vectored(),
            Self::Movable { .. } => true,
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        forward!(self, Poll::Ready(Ok(())), |stream| stream.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        forward!(self, Poll::Ready(Ok(())), |stream| stream.poll_shutdown(cx))
    }
}
