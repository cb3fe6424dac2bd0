//! The body's side of an offer to take its stream over.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use tokio::time::{Duration, Sleep};

use super::offer::Offer;
use crate::hub::{StreamDriver, Transport};

/// How long to wait for the socket. It decides when the server writes, which is at once, unless a
/// layer between holds the first frame back.
const PATIENCE: Duration = Duration::from_secs(1);

/// Withdraws the offer when it is dropped.
#[derive(Debug)]
pub(crate) struct Offered {
    offer: Arc<Offer>,
    patience: Option<Pin<Box<Sleep>>>,
}

impl Offered {
    pub(crate) fn new(connection: StreamDriver, transport: Arc<Transport>, first: &Bytes) -> Self {
        // As hyper writes it.
        let mut chunk = format!("{:X}\r\n", first.len()).into_bytes();
        chunk.extend_from_slice(first);
        chunk.extend_from_slice(b"\r\n");
        Self { offer: Offer::make(connection, transport, chunk.into()), patience: None }
    }

    /// Returns the stream if the body must write it on, or `None` if the socket was taken over.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<StreamDriver>> {
        if let Poll::Ready(outcome) = self.offer.poll_outcome(cx) {
            return Poll::Ready(outcome);
        }
        let patience = self.patience.get_or_insert_with(|| Box::pin(tokio::time::sleep(PATIENCE)));
        patience.as_mut().poll(cx).map(|()| self.offer.withdraw())
    }
}

impl Drop for Offered {
    fn drop(&mut self) {
        drop(self.offer.withdraw());
    }
}
