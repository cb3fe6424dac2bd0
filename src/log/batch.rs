//! The result of one read, within bounds that keep a read short. A caller reuses its batch for the
//! next read.

use std::sync::Arc;

use smallvec::SmallVec;

use super::backfill::Block;
use super::channel::Channel;
use super::store::Record;
#[cfg(feature = "metrics")]
use super::time::Millis;
use crate::types::{Address, GapReason};
use crate::wire::Chunk;

/// The maximum number of records in one batch.
pub(super) const MAX_RECORDS: usize = 64;

/// The maximum number of bytes in one batch of more than one record.
pub(super) const MAX_BYTES: usize = 64 * 1024;

/// The options and the result of one read. The gap is to be reported before the records.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    /// Option: return the address by which each record was read.
    pub(crate) wants_addresses: bool,
    /// Option: report changed topics. If a change is due, the ordered read reports it and reads no
    /// records.
    pub(crate) wants_changes: bool,
    /// Option: the caller can provide blocks of records that the channels have dropped.
    pub(crate) can_backfill: bool,
    /// The block that the last read requested with `needs_block_after`, set by the caller.
    pub(crate) block: Option<Arc<Block>>,
    /// Set if the read returned nothing because it needs a block with the records after this
    /// number.
    pub(crate) needs_block_after: Option<u64>,
    /// Whether more records may be due, also if this batch has none.
    pub(crate) has_more: bool,
    /// Whether everything was read. Until the connection is woken, there is no record to read, and
    /// no gap or change of topics to report.
    pub(crate) settled: bool,
    /// Option: return records joined into one piece where possible.
    pub(crate) allows_pieces: bool,
    /// Records in the order of the cursor, in place of `records`.
    pub(crate) piece: Option<Piece>,
    /// The addresses for which this read reports a gap.
    pub(crate) gap: SmallVec<[Address; 1]>,
    /// The reason of the gap. `None` if there is no gap, or if the bounds of a channel dropped the
    /// records before the reader had read them.
    pub(crate) gap_reason: Option<GapReason>,
    /// Whether the policy of an address in `gap` disconnects slow readers.
    pub(crate) disconnects: bool,
    pub(crate) records: SmallVec<[Picked; 1]>,
    /// Whether the records come in the order of the cursor, so that their ids may be sent.
    pub(crate) ordered: bool,
    /// Whether changed topics are to be reported now. The batch then has no records and no gap.
    pub(crate) changed: bool,
}

impl Batch {
    /// Returns the number of records, including those of a piece.
    pub(crate) fn count(&self) -> usize {
        self.records.len() + self.piece.as_ref().map_or(0, |piece| piece.count as usize)
    }

    /// Returns the milliseconds from the time of the first record until `now`. Returns zero if
    /// there is no record.
    #[cfg(feature = "metrics")]
    pub(crate) fn age(&self, now: Millis) -> Millis {
        let at = match (&self.piece, self.records.first()) {
            (Some(piece), _) => piece.at,
            (None, Some(picked)) => low_bits(picked.record.at),
            (None, None) => return 0,
        };
        // A record of the future has no age.
        let age = low_bits(now).wrapping_sub(at);
        if age > u32::MAX / 2 { 0 } else { Millis::from(age) }
    }

    /// Returns the numbers of the records. The numbers of a piece come from the ids in its bytes.
    #[cfg(test)]
    pub(super) fn numbers(&self) -> Vec<u64> {
        let piece =
            self.piece.as_ref().map(|piece| String::from_utf8(piece.chunk.clone().into_inside().to_vec()).unwrap());
        let lines = piece.iter().flat_map(|text| text.lines().filter(|line| line.starts_with("id: ")));
        let of_piece: Vec<u64> = lines.map(|line| line.rsplit('.').next().unwrap().parse().unwrap()).collect();
        assert_eq!(of_piece.len(), self.piece.as_ref().map_or(0, |piece| piece.count as usize));
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
        // Most batches are new. `SmallVec::clear` costs 25 instructions even if the vector is
        // empty.
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

/// Returns the low bits of a time, which are enough for differences of up to 24 days.
#[cfg(feature = "metrics")]
#[expect(clippy::cast_possible_truncation, reason = "the low bits are wanted")]
pub(super) fn low_bits(at: Millis) -> u32 {
    at as u32
}

/// Consecutive records of one channel, with their ids, as one chunk.
#[derive(Clone, Debug)]
pub(crate) struct Piece {
    pub(crate) chunk: Chunk,
    pub(crate) count: u32,
    /// The low bits of the time of the first record. With 64 bits, every delivery would copy eight
    /// bytes more.
    #[cfg(feature = "metrics")]
    pub(super) at: u32,
    /// The piece ends with the last record of the channel up to and including this number.
    pub(super) upto: u64,
}
