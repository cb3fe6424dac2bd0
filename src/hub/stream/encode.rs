//! Turns each step of a stream into bytes, for a body or for the hub's own writer.

use std::fmt;
use std::task::{Context, Poll, ready};
use std::time::SystemTime;

use bytes::Bytes;

use super::driver::{Step, StreamDriver};
use crate::hub::Settings;
use crate::log::Batch;
use crate::wire::{HEARTBEAT, close_chunk, hub_events, open_chunk};

impl StreamDriver {
    /// The next bytes, for a body. `None` at the end.
    pub(crate) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Aborted>>> {
        let mut batch = Batch { wants_pieces: true, ..Batch::default() };
        let step = ready!(self.poll_step(cx, &mut batch));
        Poll::Ready(step.map(|step| encode(step, &mut batch, self.hub().settings()).ok_or(Aborted)))
    }

    /// The same as one HTTP/1.1 chunk, for a writer that has the socket to itself: shared bytes where
    /// there are any, else in the scratch space, which is empty.
    pub(crate) fn poll_chunk(&mut self, cx: &mut Context<'_>, scratch: &mut Vec<u8>) -> Poll<Option<Encoded>> {
        let mut batch = Batch { wants_pieces: true, ..Batch::default() };
        let Some(step) = ready!(self.poll_step(cx, &mut batch)) else { return Poll::Ready(None) };
        if matches!(step, Step::Records)
            && let Some(piece) = batch.piece.take()
        {
            return Poll::Ready(Some(Encoded::Shared(piece.chunk.into_whole())));
        }
        let at = open_chunk(scratch);
        match step {
            Step::Records => write(&batch, scratch),
            step => match encode(step, &mut batch, self.hub().settings()) {
                Some(bytes) => scratch.extend_from_slice(&bytes),
                None => return Poll::Ready(Some(Encoded::Abort)),
            },
        }
        close_chunk(scratch, at);
        Poll::Ready(Some(Encoded::Scratch))
    }
}

/// The stream was to end with an error: [`StreamEnd::Abort`](crate::StreamEnd::Abort).
#[derive(Debug)]
pub(crate) struct Aborted;

impl fmt::Display for Aborted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the event stream was ended by the hub")
    }
}

impl std::error::Error for Aborted {}

/// The bytes of one step; none for an end with an error.
fn encode(step: Step, batch: &mut Batch, settings: &Settings) -> Option<Bytes> {
    let bytes = match step {
        Step::Records => match batch.piece.take() {
            // Shared with every other stream that reads the same.
            Some(piece) => piece.chunk.into_inside(),
            None => records(batch, &[]),
        },
        Step::Gap { reason, topics } => records(batch, &hub_events::gap(reason, &topics)),
        Step::Heartbeat => Bytes::from_static(HEARTBEAT),
        Step::Stale => hub_events::stale(),
        Step::Live(position, topics) => hub_events::live(position, topics.as_deref()),
        Step::Hello { connection, cursor, topics } => {
            hub_events::hello(connection, cursor, &topics, settings.instance_name.as_deref(), settings.retry)
        }
        Step::Expiring(remaining) => hub_events::expiring(remaining),
        Step::Bye(ending) => {
            hub_events::bye(ending.reason, ending.reconnect, ending.retry, ending.note.as_deref(), SystemTime::now())
        }
        Step::Abort => return None,
    };
    Some(bytes)
}

/// Several become one piece, so that they are written as one.
fn records(batch: &Batch, before: &[u8]) -> Bytes {
    let size: usize = batch.records.iter().map(|picked| picked.record.frame.len()).sum();
    let mut out = Vec::with_capacity(before.len() + size);
    out.extend_from_slice(before);
    write(batch, &mut out);
    out.into()
}

fn write(batch: &Batch, out: &mut Vec<u8>) {
    batch.records.iter().for_each(|picked| picked.record.frame.write(out, batch.ordered));
}

/// Where the bytes of [`StreamDriver::poll_chunk`] are.
pub(crate) enum Encoded {
    Shared(Bytes),
    Scratch,
    /// There are none: it ends with an error.
    Abort,
}
