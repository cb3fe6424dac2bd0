//! The result of one read, within bounds that keep a read short. A caller uses one batch for all of
//! its reads.

use std::sync::Arc;

use smallvec::SmallVec;

use super::backfill::Block;
use super::channel::Channel;
use super::store::Record;
use crate::types::{Address, GapReason};
use crate::wire::Chunk;

/// The maximum number of records in one batch.
pub(super) const MAX_RECORDS: usize = 64;

/// The maximum number of bytes in one batch of more than one record.
pub(super) const MAX_BYTES: usize = 64 * 1024;

/// The options and the result of one read. The gap comes before the records.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    /// Option: return the address by which each record was read.
    pub(crate) wants_addresses: bool,
    /// Option: report changed topics, which takes precedence over reading on.
    pub(crate) wants_changes: bool,
    /// Option: the caller can provide blocks of records that the channels have dropped.
    pub(crate) can_backfill: bool,
    /// The block that the last read asked for with `needs_block_after`.
    pub(crate) block: Option<Arc<Block>>,
    /// Set if nothing was read, because a block with the records after this number is needed first.
    pub(crate) needs_block_after: Option<u64>,
    /// Whether more records may be due, also if this batch has none.
    pub(crate) has_more: bool,
    /// Whether everything was read. Until the connection is woken, no record is due, no gap and no
    /// change of topics is to be reported.
    pub(crate) settled: bool,
    /// Option: return records joined into one piece where possible.
    pub(crate) allows_pieces: bool,
    /// Records in the order of the cursor, in place of `records`.
    pub(crate) piece: Option<Piece>,
    /// The addresses of which records were dropped unread.
    pub(crate) gap: SmallVec<[Address; 1]>,
    /// The reason of the gap. `None` if the reader was too slow.
    pub(crate) gap_reason: Option<GapReason>,
    /// Whether the policy of one of these addresses disconnects slow readers.
    pub(crate) disconnects: bool,
    pub(crate) records: SmallVec<[Picked; 1]>,
    /// Whether the records come in the order of the cursor, so that their ids may be sent.
    pub(crate) ordered: bool,
    /// Whether changed topics are to be reported now. Nothing was read then.
    pub(crate) changed: bool,
}

impl Batch {
    /// Returns the number of records, including those of a piece.
    pub(crate) fn count(&self) -> usize {
        self.records.len() + self.piece.as_ref().map_or(0, |piece| piece.count)
    }

    /// Returns the numbers of its records, for a piece from the ids in its bytes.
    #[cfg(test)]
    pub(super) fn numbers(&self) -> Vec<u64> {
        let piece =
            self.piece.as_ref().map(|piece| String::from_utf8(piece.chunk.clone().into_inside().to_vec()).unwrap());
        let lines = piece.iter().flat_map(|text| text.lines().filter(|line| line.starts_with("id: ")));
        let of_piece: Vec<u64> = lines.map(|line| line.rsplit('.').next().unwrap().parse().unwrap()).collect();
        assert_eq!(of_piece.len(), self.piece.as_ref().map_or(0, |piece| piece.count));
        of_piece.into_iter().chain(self.records.iter().map(|picked| picked.record.sequence)).collect()
    }

    /// Removes the result of the last read, and keeps the options.
    pub(super) fn clear(&mut self) {
        let Self {
            needs_block_after,
            has_more,
            settled,
            piece,
            gap,
            gap_reason,
            disconnects,
            records,
            ordered,
            changed,
            ..
        } = self;
        (*needs_block_after, *piece, *gap_reason) = (None, None, None);
        (*has_more, *settled, *disconnects, *ordered, *changed) = (false, false, false, false, false);
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
    /// Returns the address by which the record was read, if the batch has `wants_addresses`.
    pub(crate) fn address(&self) -> Option<&Address> {
        self.via.as_deref().map(|channel| &channel.address)
    }
}

/// Consecutive records of one channel, with their ids, as one chunk.
#[derive(Clone, Debug)]
pub(crate) struct Piece {
    pub(crate) chunk: Chunk,
    pub(crate) count: usize,
    /// The piece has all records of the channel up to this number.
    pub(super) upto: u64,
}
