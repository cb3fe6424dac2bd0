//! Blocks: records that were read from the shared log, because the channels of this process have
//! dropped some of them. Clients that need the same block share it.

use std::collections::hash_map::HashMap;
use std::collections::hash_set::HashSet;
use std::sync::Arc;

use super::channel::Channel;
use super::entry::{Effect, Entry};
use super::epochs::LogEpoch;
use super::store::Record;
use super::time::Millis;
use crate::types::{Address, Audience};

/// The number of bytes that each address of a record takes: an entry in a table that may be new.
const ADDRESS_OVERHEAD: usize = 100;
/// The number of bytes that a block without records takes.
const BLOCK_OVERHEAD: usize = 500;

/// The records of the shared log with the numbers `after < number <= upto`.
#[derive(Debug)]
pub(crate) struct Block {
    /// The base of the block's epoch. The block is useless for other epochs.
    pub(crate) base: u64,
    pub(crate) after: u64,
    pub(crate) upto: u64,
    /// The records of the block up to and including this number are no longer in the shared log.
    /// Equal to `after` if the block has all records.
    trimmed_through: u64,
    by_address: HashMap<Address, Vec<Arc<Record>>>,
    /// The numbers of the records with more than one address.
    unions: HashSet<u64>,
    /// The numbers of unreadable records, in order, with the audience if it is known.
    lost: Vec<(u64, Option<Audience>)>,
    /// The approximate memory of the block, in bytes.
    pub(crate) bytes: usize,
}

/// A record of the shared log. An error stands for an unreadable record, with its audience if that
/// is known.
pub(crate) type Read = Result<Entry, Option<Box<Audience>>>;

impl Block {
    /// Builds a block from the records of an epoch after the sequence `after`, in order and each
    /// with its sequence. Records that are missing at the start count as no longer available. The
    /// block ends before any later missing record.
    ///
    /// If the iterator has no record after `after`, all records up to and including `known` count
    /// as no longer available. `known` is the newest number of this log before the shared log was
    /// read, because the empty result is not valid for later records.
    pub(super) fn new(
        epoch: &LogEpoch,
        after: u64,
        known: u64,
        records: impl IntoIterator<Item = (u64, Read)>,
        now: Millis,
    ) -> Self {
        let start = epoch.number(after);
        let mut block = Self {
            base: epoch.base,
            after: start,
            upto: start,
            trimmed_through: start,
            by_address: HashMap::new(),
            unions: HashSet::new(),
            lost: Vec::new(),
            bytes: BLOCK_OVERHEAD,
        };
        for (sequence, read) in records {
            let number = epoch.number(sequence);
            if number <= block.upto {
                continue;
            }
            if number > block.upto + 1 {
                if block.upto > start {
                    break;
                }
                block.trimmed_through = number - 1;
            }
            block.upto = number;
            match read {
                Err(audience) => block.lost.push((number, audience.map(|audience| *audience))),
                Ok(Entry { audience, draft, .. }) => {
                    let record = Arc::new(Record {
                        sequence: number,
                        frame: draft.finish(&epoch.prefix, sequence),
                        at: now,
                        effect: Effect::Nothing,
                        except: audience.excluded().iter().copied().collect(),
                        union: Box::default(),
                    });
                    block.bytes += record.cost() + audience.addresses().len() * ADDRESS_OVERHEAD;
                    if audience.addresses().len() > 1 {
                        block.unions.insert(number);
                    }
                    for address in audience.addresses() {
                        block.by_address.entry(address.clone()).or_default().push(Arc::clone(&record));
                    }
                }
            }
        }
        if block.upto == start {
            block.upto = known.max(start + 1);
            block.trimmed_through = block.upto;
        }
        block
    }

    /// Returns whether the block covers the number `number + 1` of the epoch that begins at `base`.
    pub(crate) fn covers(&self, base: u64, number: u64) -> bool {
        self.base == base && (self.after..self.upto).contains(&number)
    }

    /// Returns the number up to and including which the records of a channel are missing in the
    /// block. `lost` is the lost record at the start of the read, if any.
    pub(super) fn missing(&self, channel: &Channel, lost: Option<u64>) -> u64 {
        let is_its = |lost: &u64| self.first_lost(*lost - 1, |address| *address == channel.address) == Some(*lost);
        self.trimmed_through.max(lost.filter(is_its).unwrap_or(0))
    }

    /// Returns the records for a channel with `after < number <= upto`.
    pub(super) fn between(&self, channel: &Channel, after: u64, upto: u64) -> impl Iterator<Item = &Arc<Record>> {
        let records = self.by_address.get(&channel.address).map_or(&[][..], Vec::as_slice);
        let start = records.partition_point(|record| record.sequence <= after);
        records[start..].iter().take_while(move |record| record.sequence <= upto)
    }

    /// Returns whether a record with several addresses is for this channel too.
    pub(super) fn is_also_for(&self, number: u64, channel: &Channel) -> bool {
        let find = |records: &Vec<Arc<Record>>| records.binary_search_by_key(&number, |record| record.sequence).is_ok();
        self.unions.contains(&number) && self.by_address.get(&channel.address).is_some_and(find)
    }

    /// Returns the first lost record after this number whose audience has an address for which
    /// `is_of` returns true, or is unknown.
    pub(super) fn first_lost(&self, after: u64, is_of: impl Fn(&Address) -> bool) -> Option<u64> {
        let concerns = |audience: &Option<Audience>| {
            audience.as_ref().is_none_or(|audience| audience.addresses().iter().any(&is_of))
        };
        self.lost.iter().find(|(number, audience)| *number > after && concerns(audience)).map(|(number, _)| *number)
    }
}
