//! What many readers read at the same place, joined once for all of them.
//!
//! Listeners of one channel who are at the same number want the same bytes: a thousand who are written to as fast as it
//! goes, five thousand who come back at once. A few pieces are kept, whoever's they are; each may be thrown away
//! at any time.

use std::sync::Arc;

use super::batch::{MAX_BYTES, MAX_RECORDS, Piece};
use super::channel::Channel;
use super::store::{Record, Store};
use crate::sync::Mutex;
use crate::wire::Chunk;

/// How many are kept, until others take their place: at most this times the bound of one read, so a megabyte.
const KEPT: usize = if cfg!(tower_sse_loom) { 1 } else { 16 };

#[derive(Debug, Default)]
pub(super) struct Pieces([Mutex<Option<Kept>>; KEPT]);

#[derive(Debug)]
struct Kept {
    unique: u64,
    after: u64,
    /// How far was asked for.
    asked: u64,
    piece: Piece,
}

impl Pieces {
    /// What `channel`, whose store this is, has of `after < number <= upto`, or the first part of
    /// it. None if that cannot be one piece for everybody.
    pub(super) fn piece(&self, channel: &Channel, store: &Store, after: u64, upto: u64) -> Option<Piece> {
        let mut records = store.ring_between(after, upto);
        let first = records.next()?;
        if !first.except.is_empty() {
            return None;
        }
        let Some(second) = records.next() else {
            return Some(Piece { chunk: first.frame.chunk().clone(), count: 1, upto });
        };
        let slot = (channel.unique.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ after) as usize % KEPT;
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
    fn serves(&self, unique: u64, after: u64, upto: u64) -> bool {
        let is_full = self.piece.upto < self.asked;
        self.unique == unique && self.after == after && (self.asked == upto || (is_full && self.piece.upto <= upto))
    }
}

/// None if somebody is not to get one of them.
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
    let mut chunks = records.take(count).map(|record| record.frame.chunk());
    let chunk = match count {
        1 => chunks.next()?.clone(),
        _ => Chunk::of(chunks, bytes),
    };
    Some(Piece { chunk, count, upto: if is_cut { last } else { upto } })
}
