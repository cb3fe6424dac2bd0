//! How far a body may be ahead of its socket.
//!
//! A server polls a body until its own buffers are full: hyper takes 400 KiB for each HTTP/1.1 connection and each
//! HTTP/2 stream. With many topics these bytes belong to one stream alone, so each slow reader would cost that much.
//! Where the hub knows the socket, a body hands out nothing while bytes wait for the peer, and at most
//! [`MOST_AHEAD`] and one more frame before the server has flushed.
//!
//! A body may be read by a task that writes elsewhere, or outlive its socket. It stops waiting for
//! that socket then, and goes on like a body without one.
//!
//! Where the hub does not know the socket, it sees only how often a body is polled. Then large frames go out in pieces,
//! so that an HTTP/2 server, which polls whenever a stream's window is open, polls often for a slow but steady reader.

use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;

use crate::hub::{StreamDriver, Transport};

/// How many bytes a body hands out at most before it makes the server write and flush.
const MOST_AHEAD: u32 = 32 * 1024;
/// How many bytes a body hands out at once at most where the socket is unknown.
const PIECE: usize = 16 * 1024;
/// How often the task of the socket polls a body that waits, without a write or a flush in between, before the body
/// stops waiting. A server flushes in the poll in which the body waits; layers between may poll the body a few times.
const MOST_IDLE_POLLS: u8 = 8;

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
    /// Set while it waits for the server to flush.
    waits: Option<Waits>,
}

/// What was true when a body began to wait.
#[derive(Clone, Copy, Debug)]
struct Waits {
    flushes: u64,
    written: u64,
    releases: u64,
    /// How often it was polled in vain since.
    idle_polls: u8,
}

impl Waits {
    /// Nothing was written or flushed since, although the socket would take it.
    fn is_idle(&self, transport: &Transport) -> bool {
        !transport.has_waiting_bytes() && transport.flushes() == self.flushes && transport.written() == self.written
    }

    fn is_released(&self, transport: &Transport) -> bool {
        transport.releases() != self.releases
    }
}

/// The socket does not carry the body.
struct WrittenElsewhere;

impl Pace {
    /// Waits until the socket has taken what was handed out. Returns the next piece of a frame, if one is left.
    pub(super) fn poll(&mut self, connection: &mut StreamDriver, cx: &Context<'_>) -> Poll<Option<Bytes>> {
        if let Self::New = self {
            *self = match connection.find_socket() {
                Some(transport) => Self::Known(Box::new(Known { transport, ahead: 0, written: 0, waits: None })),
                None => Self::Unknown(None),
            };
        }
        match self {
            Self::Known(known) => {
                if let Err(WrittenElsewhere) = ready!(known.poll(cx)) {
                    *self = Self::Unknown(None);
                }
                Poll::Ready(None)
            }
            Self::Unknown(rest) => Poll::Ready(next_piece(rest, connection, cx)),
            Self::New => Poll::Ready(None),
        }
    }

    /// Whether a frame has gone out in part.
    pub(super) fn has_rest(&self) -> bool {
        matches!(self, Self::Unknown(Some(_)))
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
}

/// Takes a piece from the rest of a frame, if there is one.
fn next_piece(rest: &mut Option<Box<Bytes>>, connection: &mut StreamDriver, cx: &Context<'_>) -> Option<Bytes> {
    let mut bytes = rest.take()?;
    connection.goes_on(cx);
    let piece = bytes.split_to(bytes.len().min(PIECE));
    if !bytes.is_empty() {
        *rest = Some(bytes);
    }
    Some(piece)
}

impl Known {
    fn poll(&mut self, cx: &Context<'_>) -> Poll<Result<(), WrittenElsewhere>> {
        let transport = &self.transport;
        if self.waits.is_some_and(|waits| waits.is_released(transport) && waits.is_idle(transport)) {
            return Poll::Ready(Err(WrittenElsewhere));
        }
        if self.may_go_on() {
            return Poll::Ready(Ok(()));
        }
        let transport = &self.transport;
        let mut waits = self.waits.unwrap_or_else(|| Waits {
            flushes: transport.flushes(),
            written: transport.written(),
            releases: transport.releases(),
            idle_polls: 0,
        });
        let is_new = self.waits.is_none();
        transport.await_move(cx.waker());
        // Behind the registration, so that a close that comes later wakes the body.
        if transport.is_closed() {
            return Poll::Ready(Err(WrittenElsewhere));
        }
        let is_polled_with_socket = waits.is_idle(transport) && transport.nudges(cx.waker());
        if is_polled_with_socket {
            waits.idle_polls += 1;
            if waits.idle_polls > MOST_IDLE_POLLS {
                return Poll::Ready(Err(WrittenElsewhere));
            }
        }
        if is_new || is_polled_with_socket {
            // The server flushes when it is polled. With HTTP/2 that is another task, which may have nothing to write.
            transport.nudge();
        }
        self.waits = Some(waits);
        if self.may_go_on() { Poll::Ready(Ok(())) } else { Poll::Pending }
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
            let is_flushed = self
                .waits
                .is_some_and(|waits| waits.flushes != self.transport.flushes() || waits.is_released(&self.transport));
            if !is_flushed && self.transport.written() - self.written < u64::from(self.ahead) {
                return false;
            }
            self.ahead = 0;
        }
        self.waits = None;
        true
    }
}
