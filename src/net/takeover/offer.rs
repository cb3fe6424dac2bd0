//! The offer of a stream for takeover by a writer of the hub, together with its socket.
//!
//! The body of a response makes the offer when it returns its first frame. The socket below the
//! server accepts the offer if the server has sent exactly that frame and has no more bytes to
//! write. The socket declines the offer if the server sends other bytes, for example because a
//! layer has changed the body. Then the body continues the stream.

use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use tokio::net::TcpStream;

use super::writer;
use crate::hub::{StreamDriver, Takeover, Transport};
use crate::macros::opaque_debug;
use crate::sync::{Mutex, WakerCell};

/// The offer of a stream, which body and socket share.
pub(crate) struct Offer {
    transport: Arc<Transport>,
    /// The first frame as the server writes it.
    chunk: Bytes,
    state: Mutex<State>,
    body: WakerCell,
}

struct State {
    /// `None` after the socket has taken the stream, or the body has taken it back.
    connection: Option<StreamDriver>,
    declined: bool,
}

impl Offer {
    /// Offers a stream to the socket of `transport`. `chunk` is the first frame as the server
    /// writes it.
    pub(crate) fn make(connection: StreamDriver, transport: Arc<Transport>, chunk: Bytes) -> Arc<Self> {
        let state = Mutex::new(State { connection: Some(connection), declined: false });
        let offer = Arc::new(Self { transport, chunk, state, body: WakerCell::new() });
        offer.transport.offer(Arc::clone(&offer) as _);
        offer
    }

    fn take_connection(&self) -> Option<StreamDriver> {
        self.state.lock().connection.take()
    }

    fn wake_body(&self) {
        if let Some(waker) = self.body.take() {
            waker.wake();
        }
    }

    /// Returns the stream if the body must continue it, or `None` if the hub has taken it over.
    pub(crate) fn poll_outcome(&self, cx: &Context<'_>) -> Poll<Option<StreamDriver>> {
        self.body.register(cx.waker());
        let mut state = self.state.lock();
        if state.connection.is_some() && !state.declined {
            return Poll::Pending;
        }
        Poll::Ready(state.connection.take())
    }

    /// Withdraws the offer and returns its stream to the body, unless the hub has taken it over.
    pub(crate) fn withdraw(&self) -> Option<StreamDriver> {
        self.transport.withdraw_offer();
        self.take_connection()
    }
}

impl Takeover for Offer {
    fn chunk(&self) -> &[u8] {
        &self.chunk
    }

    fn decline(&self) {
        self.state.lock().declined = true;
        self.wake_body();
    }

    fn take(&self, tcp: TcpStream) -> Result<(), TcpStream> {
        let Some(writer) = writer::of_this_runtime() else {
            self.decline();
            return Err(tcp);
        };
        let connection = self.take_connection();
        self.wake_body();
        // The body was dropped or has taken its stream back, so the socket stays with the server.
        let Some(connection) = connection else { return Err(tcp) };
        writer.take_over(tcp, connection);
        Ok(())
    }
}

opaque_debug!(|_offer: Offer| {});
