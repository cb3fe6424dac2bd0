//! A stream that waits to be taken over by the hub's writer, together with its socket.
//!
//! The body of a response makes the offer when it has handed out its first frame. The socket below the
//! server accepts it when exactly that frame has gone out and the server has nothing more to write; or
//! declines, when something else goes out, since some layer between changed the bytes. Then the body goes on by itself.

use std::fmt;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use tokio::net::TcpStream;

use super::writer;
use crate::hub::{StreamDriver, Takeover, Transport};
use crate::sync::{Mutex, WakerCell};

pub(crate) struct Offer {
    transport: Arc<Transport>,
    /// What the server makes of the first frame.
    chunk: Bytes,
    state: Mutex<State>,
    body: WakerCell,
}

enum State {
    Open(StreamDriver),
    Declined(StreamDriver),
    /// By the socket, or back by the body.
    Taken,
}

/// What became of an offer.
pub(crate) enum Outcome {
    /// The body is to end: another writes on.
    Accepted,
    /// The body goes on itself.
    Declined(StreamDriver),
}

impl Offer {
    /// Where the socket of `transport` sees it. `chunk` is the first frame as it comes out of the server.
    pub(crate) fn make(connection: StreamDriver, transport: Arc<Transport>, chunk: Bytes) -> Arc<Self> {
        let state = Mutex::new(State::Open(connection));
        let offer = Arc::new(Self { transport, chunk, state, body: WakerCell::new() });
        offer.transport.offer(Arc::clone(&offer) as _);
        offer
    }

    /// The stream, for the writer. None if the body has gone.
    fn accept(&self) -> Option<StreamDriver> {
        let connection = match std::mem::replace(&mut *self.state.lock(), State::Taken) {
            State::Open(connection) | State::Declined(connection) => Some(connection),
            State::Taken => None,
        };
        self.wake_body();
        connection
    }

    fn wake_body(&self) {
        if let Some(waker) = self.body.take() {
            waker.wake();
        }
    }

    /// For the body.
    pub(crate) fn poll_outcome(&self, cx: &Context<'_>) -> Poll<Outcome> {
        self.body.register(cx.waker());
        let mut state = self.state.lock();
        match std::mem::replace(&mut *state, State::Taken) {
            State::Declined(connection) => Poll::Ready(Outcome::Declined(connection)),
            State::Taken => Poll::Ready(Outcome::Accepted),
            open @ State::Open(_) => {
                *state = open;
                Poll::Pending
            }
        }
    }

    /// For the body: takes its stream back, or lets it go, if nobody has accepted.
    pub(crate) fn withdraw(&self) -> Option<StreamDriver> {
        self.transport.withdraw_offer();
        match std::mem::replace(&mut *self.state.lock(), State::Taken) {
            State::Open(connection) | State::Declined(connection) => Some(connection),
            State::Taken => None,
        }
    }
}

impl Takeover for Offer {
    fn chunk(&self) -> &[u8] {
        &self.chunk
    }

    fn decline(&self) {
        let mut state = self.state.lock();
        *state = match std::mem::replace(&mut *state, State::Taken) {
            State::Open(connection) | State::Declined(connection) => State::Declined(connection),
            State::Taken => State::Taken,
        };
        drop(state);
        self.wake_body();
    }

    fn take(&self, tcp: TcpStream) -> Result<(), TcpStream> {
        let Some(writer) = writer::here() else {
            self.decline();
            return Err(tcp);
        };
        // Without a connection its body is gone: an end like any other.
        let Some(connection) = self.accept() else { return Err(tcp) };
        writer.take_over(tcp, connection);
        Ok(())
    }
}

impl fmt::Debug for Offer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Offer").finish_non_exhaustive()
    }
}
