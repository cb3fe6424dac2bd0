//! From what a connection says is next to the bytes of the event stream.

use std::time::SystemTime;

use bytes::Bytes;

use crate::hub::{Batch, Settings, Step};
use crate::wire::{HEARTBEAT, close_chunk, hub_events, open_chunk};

/// The bytes of one step; none for an end with an error.
pub(crate) fn encode(step: Step, batch: &mut Batch, settings: &Settings) -> Option<Bytes> {
    let bytes = match step {
        Step::Records => match batch.piece.take() {
            // Shared with every other stream that reads the same.
            Some(piece) => piece.chunk.into_inside(),
            None => records(batch, &[]),
        },
        Step::Gap { reason, topics } => {
            records(batch, &hub_events::gap(reason, topics.iter().map(crate::types::name::Topic::as_str)))
        }
        Step::Heartbeat => Bytes::from_static(HEARTBEAT),
        Step::Stale => hub_events::stale(),
        Step::Live(position, topics) => hub_events::live(position, topics.as_deref()),
        Step::Hello { connection, cursor, topics } => {
            hub_events::hello(connection, cursor, topics.iter(), settings.instance.as_deref(), settings.retry)
        }
        Step::Expiring(remaining) => hub_events::expiring(remaining),
        Step::Bye(ending) => {
            hub_events::bye(ending.reason, ending.returns, ending.retry, ending.note.as_deref(), SystemTime::now())
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

/// The same as one HTTP/1.1 chunk, for a writer that has the socket to itself: shared bytes where there are any, else in the
/// scratch space.
#[cfg_attr(not(unix), allow(dead_code, reason = "sockets are handed over on Unix only"))]
pub(crate) fn encode_chunk(step: Step, batch: &mut Batch, settings: &Settings, scratch: &mut Vec<u8>) -> Encoded {
    match step {
        Step::Records => match batch.piece.take() {
            Some(piece) => return Encoded::Shared(piece.chunk.into_whole()),
            None => {
                let at = open_chunk(scratch);
                write(batch, scratch);
                close_chunk(scratch, at);
            }
        },
        step => match encode(step, batch, settings) {
            Some(bytes) => chunk(&bytes, scratch),
            None => return Encoded::Abort,
        },
    }
    Encoded::Scratch
}

/// Where the bytes of [`encode_chunk`] are.
#[cfg_attr(not(unix), allow(dead_code, reason = "sockets are handed over on Unix only"))]
pub(crate) enum Encoded {
    Shared(Bytes),
    Scratch,
    /// There are none: it ends with an error.
    Abort,
}

#[cfg_attr(not(unix), allow(dead_code, reason = "sockets are handed over on Unix only"))]
fn chunk(bytes: &[u8], out: &mut Vec<u8>) {
    let at = open_chunk(out);
    out.extend_from_slice(bytes);
    close_chunk(out, at);
}
