//! How far a body may be ahead of its socket.
//!
//! A server polls a body until its own buffers are full: hyper takes 400 KiB for each HTTP/1.1 connection and each
//! HTTP/2 stream. With many topics these bytes belong to one stream alone, so each slow reader would cost that much.
//! Where the hub knows the socket, a body hands out nothing while bytes wait for the peer, and at most
//! [`MOST_AHEAD`] and one more frame before the server has flushed.
//!
//! Where it does not, the hub sees only how often a body is polled. Then large frames go out in pieces, so that an
//! HTTP/2 server, which polls whenever a stream's window is open, polls often for a slow but steady reader.

use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;

use crate::hub::{Connection, Transport};

/// How many bytes a body hands out at most before it makes the server write and flush.
const MOST_AHEAD: u32 = 32 * 1024;
/// How many bytes a body hands out at once at most where the socket is unknown.
const PIECE: usize = 16 * 1024;

#[derive(Debug, Default)]
pub(super) enum Pace {
    /// The body was not polled yet.
    #[default]
    New,
    Known(Box<Known>),
    /// With what is left of a frame that goes out in pieces.
    Unknown(Option<Box<Bytes>>),
}

/// The socket is known.
#[derive(Debug)]
pub(super) struct Known {
    transport: Arc<Transport>,
    /// The bytes that were handed out since `written`.
    ahead: u32,
    /// What the socket had taken then.
    written: u64,
    /// The flushes that were done when it began to wait for the next.
    flushes: Option<u64>,
}

impl Pace {
    /// Waits until the socket has taken what was handed out.
    pub(super) fn poll(&mut self, connection: &Connection, cx: &mut Context<'_>) -> Poll<()> {
        if let Self::New = self {
            *self = match connection.find_socket() {
                Some(transport) => Self::Known(Box::new(Known { transport, ahead: 0, written: 0, flushes: None })),
                None => Self::Unknown(None),
            };
        }
        match self {
            Self::Known(known) => known.poll(cx),
            Self::New | Self::Unknown(_) => Poll::Ready(()),
        }
    }

    /// Takes note of bytes that go out, and returns those of them that go out now.
    pub(super) fn hand_out(&mut self, mut bytes: Bytes) -> Bytes {
        match self {
            Self::Known(known) => known.hand_out(bytes.len()),
            Self::Unknown(rest) if bytes.len() > PIECE => *rest = Some(Box::new(bytes.split_off(PIECE))),
            Self::New | Self::Unknown(_) => {}
        }
        bytes
    }

    /// The next piece of a frame, if one is left.
    pub(super) fn next_piece(&mut self, connection: &mut Connection, cx: &Context<'_>) -> Option<Bytes> {
        let Self::Unknown(rest) = self else { return None };
        let mut bytes = rest.take()?;
        connection.goes_on(cx);
        let piece = bytes.split_to(bytes.len().min(PIECE));
        if !bytes.is_empty() {
            *rest = Some(bytes);
        }
        Some(piece)
    }
}

impl Known {
    fn poll(&mut self, cx: &Context<'_>) -> Poll<()> {
        if self.may_go_on() {
            return Poll::Ready(());
        }
        let is_new = self.flushes.is_none();
        self.flushes.get_or_insert_with(|| self.transport.flushes());
        self.transport.await_move(cx.waker());
        if self.may_go_on() {
            return Poll::Ready(());
        }
        if is_new {
            // The server flushes when it is polled. With HTTP/2 that is another task, which may have nothing to write.
            self.transport.nudge();
        }
        Poll::Pending
    }

    fn hand_out(&mut self, count: usize) {
        if self.ahead == 0 {
            self.written = self.transport.written();
        }
        self.ahead = self.ahead.saturating_add(u32::try_from(count).unwrap_or(u32::MAX));
    }

    fn may_go_on(&mut self) -> bool {
        if self.transport.has_waiting_bytes() {
            return false;
        }
        if self.ahead >= MOST_AHEAD {
            // A layer between may swallow flushes, or make less of the bytes. Either sign will do.
            let is_flushed = self.flushes.is_some_and(|flushes| flushes != self.transport.flushes());
            if !is_flushed && self.transport.written() - self.written < u64::from(self.ahead) {
                return false;
            }
            self.ahead = 0;
        }
        self.flushes = None;
        true
    }
}
