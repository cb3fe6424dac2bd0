//! Pieces: the records of one channel after one number, joined into one chunk for all readers that
//! are at this number.
//!
//! Readers of one channel at the same number need the same bytes, for example a thousand readers
//! during a burst, or five thousand readers that reconnect at once. The log keeps a few pieces for
//! all channels together. A newer piece may replace a kept piece at any time.

use std::sync::Arc;

#[cfg(feature = "metrics")]
use super::batch::low_bits;
use super::batch::{MAX_BYTES, MAX_RECORDS, Piece};
use super::channel::Channel;
use super::store::{Record, Store};
use crate::sync::Mutex;
use crate::wire::Chunk;

/// The maximum number of pieces that are kept. Each has at most [`MAX_BYTES`] of events, so all of
/// them have at most 1 MiB.
const MAX_PIECES: usize = if cfg!(tower_sse_loom) { 1 } else { 16 };

#[derive(Debug, Default)]
pub(super) struct Pieces([Mutex<Option<Kept>>; MAX_PIECES]);

#[derive(Debug)]
struct Kept {
    unique: u64,
    after: u64,
    /// The `upto` with which the piece was requested.
    asked: u64,
    piece: Piece,
}

impl Pieces {
    /// Returns the records of `channel` with `after < number <= upto`, or the first part of them,
    /// as one piece. `store` is the locked store of the channel. Returns `None` if no record is
    /// due, or if a record excludes a connection, because then the bytes differ between readers.
    pub(super) fn piece(&self, channel: &Channel, store: &Store, after: u64, upto: u64) -> Option<Piece> {
        let mut records = store.ring_between(after, upto);
        let first = records.next()?;
        if !first.except.is_empty() {
            return None;
        }
        let Some(second) = records.next() else {
            return Some(Piece {
                chunk: first.frame.chunk().clone(),
                count: 1,
                #[cfg(feature = "metrics")]
                at: low_bits(first.at),
                upto,
            });
        };
        let slot = (channel.unique.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ after) as usize % MAX_PIECES;
        let is_shared = channel.listening() > 1;
        if is_shared
            && let Some(kept) = &*self.0[slot].lock()
            && kept.serves(channel.unique, after, upto)
        {
            return Some(kept.piece.clone());
        }
        let piece = join([first, second].into_iter().chain(records), upto)?;
        if is_shared && piece.count > 1 {
            *self.0[slot].lock() = Some(Kept { unique: channel.unique, after, asked: upto, piece: piece.clone() });
        }
        Some(piece)
    }
}

impl Kept {
    /// Returns whether the piece is also the result for this request.
    fn serves(&self, unique: u64, after: u64, upto: u64) -> bool {
        let is_full = self.piece.upto < self.asked;
        self.unique == unique && self.after == after && (self.asked == upto || (is_full && self.piece.upto <= upto))
    }
}

/// Joins records, within the bounds of one read. Returns `None` if a record among them excludes a
/// connection.
fn join<'a>(records: impl Iterator<Item = &'a Arc<Record>> + Clone, upto: u64) -> Option<Piece> {
    let (mut count, mut bytes, mut last) = (0, 0, 0);
    let mut is_cut = false;
    for record in records.clone() {
        if count == MAX_RECORDS || (count > 0 && bytes + record.frame.len() > MAX_BYTES) {
            is_cut = true;
            break;
        }
        if !record.except.is_empty() {
            return None;
        }
        (count, bytes, last) = (count + 1, bytes + record.frame.len(), record.sequence);
    }
    #[cfg(feature = "metrics")]
    let at = low_bits(records.clone().next()?.at);
    let mut chunks = records.take(count).map(|record| record.frame.chunk());
    let chunk = match count {
        1 => chunks.next()?.clone(),
        _ => Chunk::of(chunks, bytes),
    };
    Some(Piece {
        chunk,
        // At most `MAX_RECORDS`.
        count: u32::try_from(count).ok()?,
        #[cfg(feature = "metrics")]
        at,
        upto: if is_cut { last } else { upto },
    })
}
