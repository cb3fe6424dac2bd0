//! What the channels of this process keep no more, and a log that several instances share still has: blocks of it, each
//! read once for all who come back from so long ago.

use std::collections::hash_map::HashMap;
use std::collections::hash_set::HashSet;
use std::sync::Arc;

use super::channel::Channel;
use super::entry::{Effect, Entry};
use super::epochs::Life;
use super::store::Record;
use super::time::Millis;
use crate::types::{Address, Audience};

/// A block ends after the record with which it has more bytes than this.
const LARGE: usize = 1 << 20;
/// What an address of a record costs: its place in a table that may be new.
const ADDRESS_OVERHEAD: usize = 100;
/// What a block without records costs.
const OVERHEAD: usize = 500;

/// All records of some consecutive numbers.
#[derive(Debug)]
pub(crate) struct Block {
    /// Where the numbers of its life begin: of another one it says nothing.
    pub(crate) base: u64,
    pub(crate) after: u64,
    pub(crate) upto: u64,
    /// Records up to here are not to be had, not even there.
    gone: u64,
    by_address: HashMap<Address, Vec<Arc<Record>>>,
    /// Those with more than one address.
    unions: HashSet<u64>,
    /// Records that cannot be read, in order, and whose they were, if that is known.
    lost: Vec<(u64, Option<Audience>)>,
    /// About how much memory it takes.
    pub(crate) bytes: usize,
}

/// A record as it was read again, or whose it was, if that is known.
pub(crate) type Read = Result<Entry, Option<Box<Audience>>>;

impl Block {
    /// What was read of a life after a place, in order and each with its place; it ends where one
    /// is missing, or when it is large. If there was none, nothing is left up to where this log was
    /// before they were read: `known`.
    pub(super) fn new(
        life: &Life,
        after: u64,
        known: u64,
        records: impl IntoIterator<Item = (u64, Read)>,
        now: Millis,
    ) -> Self {
        let start = life.number(after);
        let mut block = Self {
            base: life.base,
            after: start,
            upto: start,
            gone: start,
            by_address: HashMap::new(),
            unions: HashSet::new(),
            lost: Vec::new(),
            bytes: OVERHEAD,
        };
        for (sequence, read) in records {
            let number = life.number(sequence);
            if number <= block.upto {
                continue;
            }
            if block.bytes > LARGE {
                break;
            }
            if number > block.upto + 1 {
                if block.upto > start {
                    break;
                }
                block.gone = number - 1;
            }
            block.upto = number;
            match read {
                Err(audience) => block.lost.push((number, audience.map(|audience| *audience))),
                Ok(Entry { audience, draft, .. }) => {
                    let record = Arc::new(Record {
                        sequence: number,
                        frame: draft.finish(&life.prefix, sequence),
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
            block.gone = block.upto;
        }
        block
    }

    /// Whether it ends early because of its size.
    pub(crate) fn is_large(&self) -> bool {
        self.bytes > LARGE
    }

    /// Whether it has what comes after a number of the life that begins at `base`.
    pub(crate) fn covers(&self, base: u64, number: u64) -> bool {
        self.base == base && (self.after..self.upto).contains(&number)
    }

    /// Up to which number it has nothing for a channel, if `lost` is the next record that is missing to somebody.
    pub(super) fn missing(&self, channel: &Channel, lost: Option<u64>) -> u64 {
        let is_its = |lost: &u64| self.first_lost(*lost - 1, |address| *address == channel.address) == Some(*lost);
        self.gone.max(lost.filter(is_its).unwrap_or(0))
    }

    /// The records for a channel of `after < number <= upto`.
    pub(super) fn between(&self, channel: &Channel, after: u64, upto: u64) -> impl Iterator<Item = &Arc<Record>> {
        let records = self.by_address.get(&channel.address).map_or(&[][..], Vec::as_slice);
        let start = records.partition_point(|record| record.sequence <= after);
        records[start..].iter().take_while(move |record| record.sequence <= upto)
    }

    /// Whether a record of several addresses is for this channel too.
    pub(super) fn is_also_for(&self, number: u64, channel: &Channel) -> bool {
        let find = |records: &Vec<Arc<Record>>| records.binary_search_by_key(&number, |record| record.sequence).is_ok();
        self.unions.contains(&number) && self.by_address.get(&channel.address).is_some_and(find)
    }

    /// The first record after a number that is missing to some of these.
    pub(super) fn first_lost(&self, after: u64, is_of: impl Fn(&Address) -> bool) -> Option<u64> {
        let concerns = |audience: &Option<Audience>| {
            audience.as_ref().is_none_or(|audience| audience.addresses().iter().any(&is_of))
        };
        self.lost.iter().find(|(number, audience)| *number > after && concerns(audience)).map(|(number, _)| *number)
    }
}
