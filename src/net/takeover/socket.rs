//! The socket below a server, which may be handed over together with its stream.
//!
//! A stream is recognised by its own bytes: the head of a response that ends its connection, followed
//! by exactly the first frame that a body has offered, and by nothing else. So TLS, compression,
//! HTTP/2 and layers that change the body keep their streams without being asked.

use std::any::Any;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use pin_project_lite::pin_project;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::hub::{Takeover, Transport};

/// A head that is longer is not looked through.
const LONGEST_HEAD: usize = 16 * 1024;

pin_project! {
    #[project = SocketProjection]
    pub(crate) enum Socket<S> {
        Fixed { #[pin] stream: S },
        Movable { tcp: Movable },
    }
}

/// A TCP stream that can be taken out.
pub(crate) enum Movable {
    Here(TcpStream),
    /// The offered first frame is going out.
    Going(TcpStream, Box<Going>),
    /// The server may go on with it as it likes: nothing reaches the peer any more.
    Gone,
}

pub(crate) struct Going {
    offer: Arc<dyn Takeover>,
    /// So many bytes of the write are left.
    left: usize,
}

impl<S: 'static> Socket<S> {
    pub(crate) fn new(stream: S) -> Self {
        Self::Fixed { stream }
    }

    /// Nothing changes if it is anything but TCP.
    pub(crate) fn movable(self) -> Self {
        let Self::Fixed { stream } = self else { return self };
        if !cfg!(unix) {
            return Self::Fixed { stream };
        }
        let mut stream = Some(stream);
        let tcp = (&mut stream as &mut dyn Any).downcast_mut::<Option<TcpStream>>().and_then(Option::take);
        match (tcp, stream) {
            (Some(tcp), _) => Self::Movable { tcp: Movable::Here(tcp) },
            (None, Some(stream)) => Self::Fixed { stream },
            (None, None) => Self::Movable { tcp: Movable::Gone },
        }
    }

    pub(crate) fn is_movable(&self) -> bool {
        matches!(self, Self::Movable { .. })
    }
}

impl<S> Socket<S> {
    pub(crate) fn is_gone(&self) -> bool {
        matches!(self, Self::Movable { tcp: Movable::Gone })
    }

    /// Before a write: whether this is what was offered.
    pub(crate) fn look(self: Pin<&mut Self>, slices: &[IoSlice<'_>], transport: &Transport) {
        if let SocketProjection::Movable { tcp } = self.project() {
            tcp.look(slices, transport);
        }
    }

    /// After a write.
    pub(crate) fn wrote(self: Pin<&mut Self>, count: usize) {
        if let SocketProjection::Movable { tcp: Movable::Going(_, going) } = self.project() {
            going.left = going.left.saturating_sub(count);
        }
    }

    /// The server has nothing more to write: the stream goes, if it is to go. Returns whether it went.
    pub(crate) fn let_go(self: Pin<&mut Self>, transport: &Transport) -> bool {
        match self.project() {
            SocketProjection::Movable { tcp } => tcp.let_go(transport),
            SocketProjection::Fixed { .. } => false,
        }
    }
}

impl Movable {
    fn look(&mut self, slices: &[IoSlice<'_>], transport: &Transport) {
        *self = match std::mem::replace(self, Self::Gone) {
            Self::Here(tcp) => match transport.take_offer() {
                Some(offer) => match length_if_offered(slices, offer.chunk()) {
                    Some(left) => Self::Going(tcp, Box::new(Going { offer, left })),
                    _ => {
                        offer.decline();
                        Self::Here(tcp)
                    }
                },
                None => Self::Here(tcp),
            },
            Self::Going(tcp, going) => {
                let count: usize = slices.iter().map(|slice| slice.len()).sum();
                if count > going.left {
                    // Something follows that is not the stream's.
                    going.offer.decline();
                    Self::Here(tcp)
                } else {
                    Self::Going(tcp, going)
                }
            }
            Self::Gone => Self::Gone,
        };
    }

    fn let_go(&mut self, transport: &Transport) -> bool {
        match std::mem::replace(self, Self::Gone) {
            Self::Going(tcp, going) if going.left == 0 => match going.offer.take(tcp) {
                Ok(()) => true,
                Err(tcp) => {
                    *self = Self::Here(tcp);
                    false
                }
            },
            Self::Here(tcp) => {
                *self = Self::Here(tcp);
                // All is out, and the first frame was not among it.
                if let Some(offer) = transport.take_offer() {
                    offer.decline();
                }
                false
            }
            other => {
                *self = other;
                false
            }
        }
    }

    fn tcp(&mut self) -> Option<Pin<&mut TcpStream>> {
        match self {
            Self::Here(tcp) | Self::Going(tcp, _) => Some(Pin::new(tcp)),
            Self::Gone => None,
        }
    }
}

/// How long these bytes are, if they are the head of a response that ends its connection and then this chunk.
fn length_if_offered(slices: &[IoSlice<'_>], chunk: &[u8]) -> Option<usize> {
    let length: usize = slices.iter().map(|slice| slice.len()).sum();
    if !(chunk.len()..=chunk.len() + LONGEST_HEAD).contains(&length) {
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
    // A blank line before: then it is the body that ends like a head.
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

impl<S: AsyncRead> AsyncRead for Socket<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.project() {
            SocketProjection::Fixed { stream } => stream.poll_read(cx, buffer),
            SocketProjection::Movable { tcp } => match tcp.tcp() {
                Some(tcp) => tcp.poll_read(cx, buffer),
                // Nothing comes, not even an end: a server that saw one would still answer a request that it has read.
                None => Poll::Pending,
            },
        }
    }
}

impl<S: AsyncWrite> AsyncWrite for Socket<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.project() {
            SocketProjection::Fixed { stream } => stream.poll_write(cx, bytes),
            SocketProjection::Movable { tcp } => match tcp.tcp() {
                Some(tcp) => tcp.poll_write(cx, bytes),
                None => Poll::Ready(Ok(bytes.len())),
            },
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.project() {
            SocketProjection::Fixed { stream } => stream.poll_write_vectored(cx, slices),
            SocketProjection::Movable { tcp } => match tcp.tcp() {
                Some(tcp) => tcp.poll_write_vectored(cx, slices),
                None => Poll::Ready(Ok(slices.iter().map(|slice| slice.len()).sum())),
            },
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Fixed { stream } => stream.is_write_vectored(),
            Self::Movable { .. } => true,
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.project() {
            SocketProjection::Fixed { stream } => stream.poll_flush(cx),
            SocketProjection::Movable { tcp } => tcp.tcp().map_or(Poll::Ready(Ok(())), |tcp| tcp.poll_flush(cx)),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.project() {
            SocketProjection::Fixed { stream } => stream.poll_shutdown(cx),
            SocketProjection::Movable { tcp } => tcp.tcp().map_or(Poll::Ready(Ok(())), |tcp| tcp.poll_shutdown(cx)),
        }
    }
}
