//! Turns each step of a stream into bytes, for a body or for the hub's own writer.

use std::fmt;
use std::task::{Context, Poll, ready};
use std::time::SystemTime;

use bytes::Bytes;

use super::driver::{Step, StreamDriver};
use crate::hub::Settings;
use crate::hub::connection::handle::Ending;
use crate::log::Batch;
use crate::types::Ids;
use crate::wire::{Frame, HEARTBEAT, LAST_CHUNK, close_chunk, hub_events, open_chunk};

impl StreamDriver {
    /// Returns the next bytes of the stream, for a body. `None` at the end.
    pub(crate) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Aborted>>> {
        let mut batch = self.batch();
        loop {
            let Some(step) = ready!(self.poll_step(cx, &mut batch)) else { return Poll::Ready(None) };
            match encode(step, &mut batch, self.hub().settings(), self.bare()) {
                // An empty frame would be the end of the stream for the hub's own writer.
                Some(bytes) if bytes.is_empty() => {}
                bytes => {
                    #[cfg(feature = "metrics")]
                    self.hub().counters().sent(self.id(), bytes.as_ref().map_or(0, Bytes::len));
                    return Poll::Ready(Some(bytes.ok_or(Aborted)));
                }
            }
        }
    }

    /// Returns the next bytes as one HTTP/1.1 chunk, for the hub's own writer. Bytes that several
    /// streams share are returned, and other bytes are written to `scratch`, which must be empty.
    pub(crate) fn poll_chunk(&mut self, cx: &mut Context<'_>, scratch: &mut Vec<u8>) -> Poll<Option<Encoded>> {
        let encoded = ready!(self.encode_chunk(cx, scratch));
        #[cfg(feature = "metrics")]
        match &encoded {
            Some(Encoded::Shared(bytes)) => self.hub().counters().sent(self.id(), bytes.len()),
            Some(Encoded::Scratch | Encoded::Last) => self.hub().counters().sent(self.id(), scratch.len()),
            Some(Encoded::Abort) | None => {}
        }
        Poll::Ready(encoded)
    }

    fn encode_chunk(&mut self, cx: &mut Context<'_>, scratch: &mut Vec<u8>) -> Poll<Option<Encoded>> {
        let mut batch = self.batch();
        loop {
            let Some(step) = ready!(self.poll_step(cx, &mut batch)) else { return Poll::Ready(None) };
            if matches!(step, Step::Records)
                && let Some(piece) = batch.piece.take()
            {
                return Poll::Ready(Some(Encoded::Shared(piece.chunk.into_whole())));
            }
            let at = open_chunk(scratch);
            match step {
                Step::Records => write(&batch, self.bare().unwrap_or_default(), scratch),
                step => match encode(step, &mut batch, self.hub().settings(), self.bare()) {
                    // An empty chunk would be the end of the response.
                    Some(bytes) if bytes.is_empty() => {
                        scratch.truncate(at);
                        continue;
                    }
                    Some(bytes) => scratch.extend_from_slice(&bytes),
                    None => return Poll::Ready(Some(Encoded::Abort)),
                },
            }
            close_chunk(scratch, at);
            if self.is_complete() {
                scratch.extend_from_slice(LAST_CHUNK);
                return Poll::Ready(Some(Encoded::Last));
            }
            return Poll::Ready(Some(Encoded::Scratch));
        }
    }

    /// Returns a batch with the options of this stream. Pieces have every record of a channel, each
    /// with its id at the end.
    fn batch(&self) -> Batch {
        let allows_pieces = self.bare().unwrap_or_default() == Ids::Last && !self.may_skip_records();
        Batch { allows_pieces, ..Batch::default() }
    }
}

/// The error of a body that ends by [`StreamEnd::Abort`](crate::StreamEnd::Abort).
#[derive(Debug)]
pub(crate) struct Aborted;

impl fmt::Display for Aborted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the event stream was ended by the hub")
    }
}

impl std::error::Error for Aborted {}

/// Returns the bytes of one step, or `None` for an end with an error. Returns no bytes for a step
/// for which a bare stream writes nothing. `bare` is the place of the ids in a bare stream.
fn encode(step: Step, batch: &mut Batch, settings: &Settings, bare: Option<Ids>) -> Option<Bytes> {
    let bytes = match step {
        Step::Records => match batch.piece.take() {
            // The same bytes go to every stream that reads these records.
            Some(piece) => piece.chunk.into_inside(),
            None => records(batch, bare.unwrap_or_default(), &[]),
        },
        Step::Heartbeat => Bytes::from_static(HEARTBEAT),
        Step::Run { mut frames, end: None } if frames.len() == 1 && bare.unwrap_or_default() == Ids::Last => {
            match frames.pop() {
                // The same bytes go to every stream of the run.
                Some(frame) => frame.chunk().clone().into_inside(),
                None => Bytes::new(),
            }
        }
        Step::Run { frames, end } => {
            let mut out = Vec::with_capacity(frames.iter().map(Frame::len).sum::<usize>() + 128);
            frames.iter().for_each(|frame| frame.write(&mut out, bare.unwrap_or_default()));
            if let Some(ending) = end.filter(|_| bare.is_none()) {
                out.extend_from_slice(&bye(&ending));
            }
            out.into()
        }
        Step::Abort => return None,
        step if bare.is_some() => bare_line(&step, settings),
        Step::Gap { reason, topics } => records(batch, Ids::Last, &hub_events::gap(reason, &topics)),
        Step::Stale => hub_events::stale(),
        Step::Live(position, topics) => hub_events::live(position, topics.as_deref()),
        Step::Hello { connection, cursor, topics } => {
            hub_events::hello(connection, cursor, &topics, settings.instance_name.as_deref(), settings.retry)
        }
        Step::Expiring(remaining) => hub_events::expiring(remaining),
        Step::Bye(ending) => bye(&ending),
    };
    Some(bytes)
}

fn bye(ending: &Ending) -> Bytes {
    let Ending { reason, reconnect, retry, note, scope, .. } = ending;
    hub_events::bye(*reason, *reconnect, *retry, note.as_deref(), SystemTime::now(), *scope)
}

/// Returns the bytes of a bare stream in place of one of the hub's own events: a `retry` line, or
/// nothing.
fn bare_line(step: &Step, settings: &Settings) -> Bytes {
    match step {
        Step::Hello { .. } => hub_events::retry_line(settings.retry),
        // The time spreads the reconnects of clients whose streams end together.
        Step::Bye(ending) => ending.retry.map_or_else(Bytes::new, hub_events::retry_line),
        _ => Bytes::new(),
    }
}

/// Joins `before` and the frames of all records, so that the body returns them at once.
fn records(batch: &Batch, ids: Ids, before: &[u8]) -> Bytes {
    let size: usize = batch.records.iter().map(|picked| picked.record.frame.len()).sum();
    let mut out = Vec::with_capacity(before.len() + size);
    out.extend_from_slice(before);
    write(batch, ids, &mut out);
    out.into()
}

fn write(batch: &Batch, ids: Ids, out: &mut Vec<u8>) {
    // A client that reconnected with the id of a replayed record would miss the rest of the replay.
    let ids = if batch.ordered { ids } else { Ids::None };
    batch.records.iter().for_each(|picked| picked.record.frame.write(out, ids));
}

/// The place of the bytes that [`StreamDriver::poll_chunk`] has encoded.
pub(crate) enum Encoded {
    Shared(Bytes),
    Scratch,
    /// The last bytes of the stream, with the end of the body, are in `scratch`. In one write, so
    /// that no break comes between the last event of a run and its end.
    Last,
    /// The stream ends with an error, without bytes.
    Abort,
}
