//! The result of one read, within the bounds that keep a read short. A caller uses one batch for all of its reads.

use std::sync::Arc;

use smallvec::SmallVec;

use super::backfill::Block;
use super::channel::Channel;
use super::store::Record;
use crate::types::{Address, GapReason};
use crate::wire::Chunk;

/// How many records one read hands out at most.
pub(super) const MAX_RECORDS: usize = 64;

/// How many bytes it hands out at most, if that is more than one record.
pub(super) const MAX_BYTES: usize = 64 * 1024;

/// What one read found; a gap comes before the records.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    /// Set by who wants to know by which audience each record came.
    pub(crate) wants_addresses: bool,
    /// Set by who would now tell of changed topics.
    pub(crate) wants_changes: bool,
    /// Set by who can provide blocks of what the channels have dropped.
    pub(crate) looks_back: bool,
    /// The block that was asked for by `needs`.
    pub(crate) past: Option<Arc<Block>>,
    /// Nothing was read: a block that has what comes after this number is needed first.
    pub(crate) needs: Option<u64>,
    /// There may be more to read although there are no records here.
    pub(crate) goes_on: bool,
    /// Everything was read that there was. Until it is woken there is nothing to read, and nothing to be told.
    pub(crate) settled: bool,
    /// Set by who can take records joined together.
    pub(crate) wants_pieces: bool,
    /// Records in the order of the cursor, instead of those below.
    pub(crate) piece: Option<Piece>,
    /// The audiences of which records were dropped unread.
    pub(crate) gap: SmallVec<[Address; 1]>,
    /// Why, if it is about what was asked for when joining: the reader was not too slow for it.
    pub(crate) gap_reason: Option<GapReason>,
    /// One of those wants its slow readers disconnected.
    pub(crate) disconnects: bool,
    pub(crate) records: SmallVec<[Picked; 1]>,
    /// Whether the records come in the order of the cursor, so that their ids may be sent.
    pub(crate) ordered: bool,
    /// The topics have changed, and nothing was read: it is time to say so.
    pub(crate) changed: bool,
}

impl Batch {
    /// How many records it has.
    pub(crate) fn count(&self) -> usize {
        self.records.len() + self.piece.as_ref().map_or(0, |piece| piece.count)
    }

    /// The numbers of its records, those of a piece as its ids say.
    #[cfg(test)]
    pub(super) fn numbers(&self) -> Vec<u64> {
        let piece =
            self.piece.as_ref().map(|piece| String::from_utf8(piece.chunk.clone().into_inside().to_vec()).unwrap());
        let lines = piece.iter().flat_map(|text| text.lines().filter(|line| line.starts_with("id: ")));
        let of_piece: Vec<u64> = lines.map(|line| line.rsplit('.').next().unwrap().parse().unwrap()).collect();
        assert_eq!(of_piece.len(), self.piece.as_ref().map_or(0, |piece| piece.count));
        of_piece.into_iter().chain(self.records.iter().map(|picked| picked.record.sequence)).collect()
    }

    /// Takes back what the last read found. The wishes of the caller stay.
    pub(super) fn clear(&mut self) {
        let Self { needs, goes_on, settled, piece, gap, gap_reason, disconnects, records, ordered, changed, .. } = self;
        (*needs, *piece, *gap_reason) = (None, None, None);
        (*goes_on, *settled, *disconnects, *ordered, *changed) = (false, false, false, false, false);
        // Most batches are new. `SmallVec::clear` costs 25 instructions for an empty one.
        if !gap.is_empty() {
            gap.clear();
        }
        if !records.is_empty() {
            records.clear();
        }
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Picked {
    pub(crate) record: Arc<Record>,
    pub(super) via: Option<Arc<Channel>>,
}

impl Picked {
    /// The audience by which it came, if the batch wants to know.
    pub(crate) fn address(&self) -> Option<&Address> {
        self.via.as_deref().map(|channel| &channel.address)
    }
}

/// Records of one channel, in order and with their ids, as one chunk.
#[derive(Clone, Debug)]
pub(crate) struct Piece {
    pub(crate) chunk: Chunk,
    pub(crate) count: usize,
    /// All that the channel has up to here is in it.
    pub(super) upto: u64,
}
