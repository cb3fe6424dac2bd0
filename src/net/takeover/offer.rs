//! A stream that waits to be taken over by the hub's writer, together with its socket.
//!
//! The body of a response makes the offer when it has handed out its first frame. The socket below the
//! server accepts it when exactly that frame has gone out and the server has nothing more to write; or
//! declines, when something else goes out, since some layer between changed the bytes. Then the body goes on by itself.

use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use tokio::net::TcpStream;

use super::writer;
use crate::hub::{StreamDriver, Takeover, Transport};
use crate::macros::opaque_debug;
use crate::sync::{Mutex, WakerCell};

pub(crate) struct Offer {
    transport: Arc<Transport>,
    /// What the server makes of the first frame.
    chunk: Bytes,
    state: Mutex<State>,
    body: WakerCell,
}

struct State {
    /// None once it was taken: by the socket, or back by the body.
    connection: Option<StreamDriver>,
    declined: bool,
}

impl Offer {
    /// Where the socket of `transport` sees it. `chunk` is the first frame as it comes out of the server.
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

    /// Returns the stream if the body must write it on, or `None` if the socket was taken over.
    pub(crate) fn poll_outcome(&self, cx: &Context<'_>) -> Poll<Option<StreamDriver>> {
        self.body.register(cx.waker());
        let mut state = self.state.lock();
        if state.connection.is_some() && !state.declined {
            return Poll::Pending;
        }
        Poll::Ready(state.connection.take())
    }

    /// For the body: takes its stream back, or lets it go, if nobody has accepted.
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
        let Some(writer) = writer::here() else {
            self.decline();
            return Err(tcp);
        };
        let connection = self.take_connection();
        self.wake_body();
        // Without a connection its body is gone: an end like any other.
        let Some(connection) = connection else { return Err(tcp) };
        writer.take_over(tcp, connection);
        Ok(())
    }
}

opaque_debug!(|_offer: Offer| {});
