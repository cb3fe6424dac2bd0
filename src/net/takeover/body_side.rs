//! The body's side of an offer for takeover.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use tokio::time::{Duration, Sleep};

use super::offer::Offer;
use crate::hub::{StreamDriver, Transport};

/// The maximum time that the body waits for the socket to accept or decline the offer. The socket
/// decides when the server writes the first frame, which happens at once unless a layer delays the
/// frame.
const MAX_WAIT: Duration = Duration::from_secs(1);

/// The offer of a body. Dropping this value withdraws the offer.
#[derive(Debug)]
pub(crate) struct Offered {
    offer: Arc<Offer>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Offered {
    pub(crate) fn new(connection: StreamDriver, transport: Arc<Transport>, first: &Bytes) -> Self {
        // The format in which hyper writes a chunk.
        let mut chunk = format!("{:X}\r\n", first.len()).into_bytes();
        chunk.extend_from_slice(first);
        chunk.extend_from_slice(b"\r\n");
        Self { offer: Offer::make(connection, transport, chunk.into()), timer: None }
    }

    /// Returns the stream if the body must continue it, or `None` if the hub has taken it over.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<StreamDriver>> {
        if let Poll::Ready(outcome) = self.offer.poll_outcome(cx) {
            return Poll::Ready(outcome);
        }
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(MAX_WAIT)));
        timer.as_mut().poll(cx).map(|()| self.offer.withdraw())
    }
}

impl Drop for Offered {
    fn drop(&mut self) {
        drop(self.offer.withdraw());
    }
}
