//! The socket below a server, which the hub may take over together with its stream.
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
        Fixed {
            #[pin]
            stream: S,
        },
        Movable {
            // None once it is taken out. The server may go on as it likes then: nothing reaches the peer any more.
            tcp: Option<TcpStream>,
            // The offered first frame that is going out.
            going: Option<Box<Going>>,
        },
    }
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
        match stream {
            Some(stream) => Self::Fixed { stream },
            None => Self::Movable { tcp, going: None },
        }
    }

    pub(crate) fn is_movable(&self) -> bool {
        matches!(self, Self::Movable { .. })
    }
}

impl<S> Socket<S> {
    pub(crate) fn is_gone(&self) -> bool {
        matches!(self, Self::Movable { tcp: None, .. })
    }

    /// Before a write: whether this is what was offered.
    pub(crate) fn look(self: Pin<&mut Self>, slices: &[IoSlice<'_>], transport: &Transport) {
        let SocketProjection::Movable { tcp: Some(_), going } = self.project() else { return };
        match going {
            None => {
                let Some(offer) = transport.take_offer() else { return };
                match length_if_offered(slices, offer.chunk()) {
                    Some(left) => *going = Some(Box::new(Going { offer, left })),
                    None => offer.decline(),
                }
            }
            Some(current) if length(slices) > current.left => {
                // Something follows that is not the stream's.
                current.offer.decline();
                *going = None;
            }
            Some(_) => {}
        }
    }

    /// After a write.
    pub(crate) fn wrote(self: Pin<&mut Self>, count: usize) {
        if let SocketProjection::Movable { going: Some(going), .. } = self.project() {
            going.left = going.left.saturating_sub(count);
        }
    }

    /// The server has nothing more to write: the stream goes, if it is to go. Returns whether it went.
    pub(crate) fn let_go(self: Pin<&mut Self>, transport: &Transport) -> bool {
        let SocketProjection::Movable { tcp: here @ Some(_), going } = self.project() else { return false };
        match going.take_if(|going| going.left == 0) {
            Some(going) => *here = here.take().and_then(|tcp| going.offer.take(tcp).err()),
            // All is out, and the first frame was not among it.
            None if going.is_none() => transport.take_offer().iter().for_each(|offer| offer.decline()),
            None => {}
        }
        here.is_none()
    }
}

fn length(slices: &[IoSlice<'_>]) -> usize {
    slices.iter().map(|slice| slice.len()).sum()
}

/// How long these bytes are, if they are the head of a response that ends its connection and then this chunk.
fn length_if_offered(slices: &[IoSlice<'_>], chunk: &[u8]) -> Option<usize> {
    let length = length(slices);
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

/// Calls a method of the stream that is here; without one, because the hub has taken it, the answer is `$gone`.
macro_rules! forward {
    ($socket:expr, $gone:expr, |$stream:ident| $call:expr) => {
        match $socket.project() {
            SocketProjection::Fixed { stream: $stream } => $call,
            SocketProjection::Movable { tcp, .. } => match tcp.as_mut().map(Pin::new) {
                Some($stream) => $call,
                None => $gone,
            },
        }
    };
}

impl<S: AsyncRead> AsyncRead for Socket<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        // Nothing comes, not even an end: a server that saw one would still answer a request that it has read.
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
