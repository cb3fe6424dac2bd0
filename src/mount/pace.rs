//! The limit on the bytes that a body is ahead of its socket.
//!
//! A server polls a body until its own buffers are full: hyper buffers up to 400 KiB for each
//! HTTP/1.1 connection and each HTTP/2 stream. Streams with different topics cannot share these
//! bytes, so each slow reader would cost that much memory. If the hub knows the socket, a body
//! returns no bytes while bytes wait for the client, and at most [`MAX_AHEAD`] bytes and one more
//! frame before the server has flushed.
//!
//! The bytes of a body may go elsewhere than to the socket that the hub has found, and a body may
//! outlive its socket. In both cases the body stops waiting for that socket, and continues like a
//! body whose socket is unknown.
//!
//! If the hub does not know the socket, it sees only the polls of the body. So the body splits
//! large frames into pieces: an HTTP/2 server polls a body whenever the window of the stream is
//! open, and with small pieces the server also polls often for a slow but steady reader.

use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;

use crate::hub::{StreamDriver, Transport};

/// The number of bytes after which a body makes the server write and flush.
const MAX_AHEAD: u32 = 32 * 1024;
/// The maximum number of bytes that a body returns at once if its socket is unknown.
const MAX_PIECE: usize = 16 * 1024;
/// The number of polls by the task of the socket, without a write or a flush in between, after
/// which a body stops waiting for the socket. A server usually flushes in the same poll, but layers
/// between body and server may poll the body a few times.
const MAX_IDLE_POLLS: u8 = 8;

/// The limit on the bytes that a body returns.
#[derive(Debug, Default)]
pub(super) enum Pace {
    /// Not polled yet.
    #[default]
    New,
    /// The socket is known.
    Known(Box<Known>),
    /// The socket is unknown. The field has the rest of a frame that was split, if any.
    Unknown(Option<Box<Bytes>>),
}

/// The state of a body whose socket is known.
#[derive(Debug)]
pub(super) struct Known {
    transport: Arc<Transport>,
    /// The number of bytes that the body has returned since `written`.
    ahead: u32,
    /// The number of bytes that the socket had accepted when `ahead` was zero.
    written: u64,
    /// Set while the body waits for the server to flush.
    waits: Option<Waits>,
}

/// The counters of a transport when a body began to wait.
#[derive(Clone, Copy, Debug)]
struct Waits {
    flushes: u64,
    written: u64,
    releases: u64,
    /// The number of polls by the task of the socket since then, without a write or a flush.
    idle_polls: u8,
}

impl Waits {
    /// Returns whether the server has neither written nor flushed since the body began to wait,
    /// although no bytes wait for the client.
    fn is_idle(&self, transport: &Transport) -> bool {
        !transport.has_waiting_bytes() && transport.flushes() == self.flushes && transport.written() == self.written
    }

    fn is_released(&self, transport: &Transport) -> bool {
        transport.releases() != self.releases
    }
}

/// The error when the body stops waiting for its socket, because the socket is closed or does not
/// carry the body.
struct WrittenElsewhere;

impl Pace {
    /// Waits until the socket has accepted enough of the returned bytes. Returns the next piece of
    /// a split frame, if one is left.
    #[inline]
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

    /// Returns whether a part of a split frame is left.
    #[inline]
    pub(super) fn has_rest(&self) -> bool {
        matches!(self, Self::Unknown(Some(_)))
    }

    /// Counts the bytes of a frame, and returns the bytes that the body may return now.
    #[inline]
    pub(super) fn take(&mut self, mut bytes: Bytes) -> Bytes {
        match self {
            Self::Known(known) => known.count(bytes.len()),
            Self::Unknown(rest) if bytes.len() > MAX_PIECE => *rest = Some(Box::new(bytes.split_off(MAX_PIECE))),
            Self::New | Self::Unknown(_) => {}
        }
        bytes
    }
}

/// Takes the next piece of a split frame.
fn next_piece(rest: &mut Option<Box<Bytes>>, connection: &mut StreamDriver, cx: &Context<'_>) -> Option<Bytes> {
    let mut bytes = rest.take()?;
    connection.note_progress(cx);
    let piece = bytes.split_to(bytes.len().min(MAX_PIECE));
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
        if self.may_continue() {
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
        // Checked after the registration, so that a later close wakes the body.
        if transport.is_closed() {
            return Poll::Ready(Err(WrittenElsewhere));
        }
        let is_polled_with_socket = waits.is_idle(transport) && transport.nudges(cx.waker());
        if is_polled_with_socket {
            waits.idle_polls += 1;
            if waits.idle_polls > MAX_IDLE_POLLS {
                return Poll::Ready(Err(WrittenElsewhere));
            }
        }
        if is_new || is_polled_with_socket {
            // Wakes the task of the server, which then flushes. With HTTP/2, this is not the task
            // of the body, and without a wake-up it would not be polled while it has nothing to
            // write.
            transport.nudge();
        }
        self.waits = Some(waits);
        if self.may_continue() { Poll::Ready(Ok(())) } else { Poll::Pending }
    }

    fn count(&mut self, count: usize) {
        if self.ahead == 0 {
            self.written = self.transport.written();
        }
        self.ahead = self.ahead.saturating_add(u32::try_from(count).unwrap_or(u32::MAX));
    }

    fn may_continue(&mut self) -> bool {
        if self.transport.has_waiting_bytes() {
            return false;
        }
        if self.ahead >= MAX_AHEAD {
            // A flush or enough written bytes suffice, because a layer between body and socket may
            // discard flushes or compress the bytes.
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
