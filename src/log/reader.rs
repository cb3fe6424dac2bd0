//! A cursor over some channels, and the one way in which it reads.

use std::sync::Arc;

use smallvec::SmallVec;

use super::channel::Channel;
use super::store::Record;
use super::subscriber::Subscriber;
use super::{Begin, Log};
use crate::audience::Address;
use crate::name::ConnectionId;
use crate::retention::LagPolicy;
use crate::subscription::Start;

/// How many records one read hands out at most.
const MAX_RECORDS: usize = 64;
/// How many bytes it hands out at most, if that is more than one record.
const MAX_BYTES: usize = 64 * 1024;

/// Where a connection is. Everything up to `cursor` has been read, on all its channels.
#[derive(Debug, Default)]
pub(super) struct Reader {
    cursor: u64,
    /// Current values up to here have been sent to a fresh stream…
    values_after: u64,
    /// …and up to here they are due before anything else: this is where its cursor started.
    values_upto: u64,
    memberships: Vec<Membership>,
    closed: bool,
}

#[derive(Debug)]
struct Membership {
    channel: Arc<Channel>,
    slot: u32,
    /// Records up to here are none of its business.
    since: u64,
    /// It has been told of the gap up to here.
    told: u64,
}

/// What one read found; a gap comes before the records.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    /// Set by who wants to know by which audience each record came.
    pub(crate) wants_addresses: bool,
    /// The audiences of which records were dropped unread.
    pub(crate) gap: SmallVec<[Address; 1]>,
    /// One of those wants its slow readers disconnected.
    pub(crate) disconnects: bool,
    pub(crate) records: SmallVec<[Picked; 4]>,
    /// Whether the records come in the order of the cursor, so that their ids may be sent.
    pub(crate) ordered: bool,
}

#[derive(Clone, Debug)]
pub(crate) struct Picked {
    pub(crate) record: Arc<Record>,
    via: Option<Arc<Channel>>,
}

impl Picked {
    /// The audience by which it came, if the batch wants to know.
    pub(crate) fn address(&self) -> Option<&Address> {
        self.via.as_deref().map(|channel| &channel.address)
    }
}

impl Reader {
    pub(super) fn cursor(&self) -> u64 {
        self.cursor
    }

    pub(super) fn is_open(&self) -> bool {
        !self.closed
    }

    pub(super) fn listens_to(&self, address: &Address) -> bool {
        self.memberships.iter().any(|membership| membership.channel.address == *address)
    }

    #[cfg(test)]
    pub(super) fn told(&self, address: &Address) -> u64 {
        self.memberships.iter().find(|membership| membership.channel.address == *address).map_or(0, |m| m.told)
    }

    pub(super) fn enter(&mut self, channel: Arc<Channel>, subscriber: &Arc<Subscriber>, since: u64) {
        let slot = channel.add_listener(Arc::clone(subscriber));
        self.memberships.push(Membership { channel, slot, since, told: 0 });
    }

    pub(super) fn leave_all(&mut self) -> Vec<(Arc<Channel>, u32)> {
        self.closed = true;
        std::mem::take(&mut self.memberships).into_iter().map(|member| (member.channel, member.slot)).collect()
    }

    /// Sets the cursor of a reader that has read nothing yet.
    pub(super) fn begin(&mut self, begin: Begin, horizon: u64) {
        self.memberships.shrink_to_fit();
        let start = match begin {
            Begin::After(cursor) => {
                self.cursor = cursor;
                return;
            }
            Begin::Fresh(Start::Live) => horizon,
            Begin::Fresh(Start::Last(count)) => self.before_newest(count).unwrap_or(horizon),
            Begin::Fresh(Start::Oldest) => 0,
        };
        self.cursor = start;
        self.values_upto = start;
        for membership in &mut self.memberships {
            // It never claimed to know what was dropped before it came.
            membership.told = membership.channel.store.lock().floor();
        }
    }

    /// The number before the newest `count` records of all rings together.
    fn before_newest(&self, count: usize) -> Option<u64> {
        let mut numbers: Vec<u64> = Vec::new();
        for membership in &self.memberships {
            numbers.extend(membership.channel.store.lock().newest(count));
        }
        numbers.sort_unstable_by(|a, b| b.cmp(a));
        numbers.dedup();
        numbers.truncate(count);
        numbers.last().map(|oldest| oldest - 1)
    }

    pub(super) fn read(&mut self, log: &Log, me: ConnectionId, batch: &mut Batch) {
        *batch = Batch { wants_addresses: batch.wants_addresses, ..Batch::default() };
        let horizon = log.horizon();
        if self.values_after < self.values_upto {
            self.read_values(me, batch);
            if !batch.records.is_empty() {
                return;
            }
        }
        batch.ordered = true;
        if horizon > self.cursor {
            self.read_ordered(log, horizon, me, batch);
        }
    }

    fn read_values(&mut self, me: ConnectionId, batch: &mut Batch) {
        let mut pick = Pick::new(me, batch.wants_addresses);
        for Membership { channel, .. } in &self.memberships {
            pick.offer(channel, channel.store.lock().values_between(self.values_after, self.values_upto));
        }
        self.values_after = pick.finish(self.values_upto, batch);
    }

    fn read_ordered(&mut self, log: &Log, horizon: u64, me: ConnectionId, batch: &mut Batch) {
        let cursor = self.cursor;
        let mut pick = Pick::new(me, batch.wants_addresses);
        // The words first, then the locks: the heads are not held while a channel is looked into.
        let mut due: SmallVec<[u32; 8]> = SmallVec::new();
        log.heads.with(|head| {
            for (index, membership) in self.memberships.iter().enumerate() {
                if head(membership.channel.number as usize) > cursor.max(membership.since) {
                    due.push(index as u32);
                }
            }
        });
        for index in due {
            let Membership { channel, since, told, .. } = &mut self.memberships[index as usize];
            let after = cursor.max(*since);
            let store = channel.store.lock();
            if store.floor() > after.max(*told) {
                *told = store.floor();
                batch.gap.push(channel.address.clone());
                batch.disconnects |= log.policies.get(channel.policy).lag == LagPolicy::Disconnect;
            }
            pick.offer(channel, store.ring_between(after, horizon));
            pick.offer(channel, store.values_between(after, horizon));
        }
        self.cursor = pick.finish(horizon, batch);
    }
}

/// The oldest few of what several channels offer, each record once.
struct Pick {
    me: ConnectionId,
    wants_addresses: bool,
    picked: SmallVec<[Picked; 8]>,
    /// Nothing above this can be among them any more.
    cap: u64,
    /// Something was left out.
    cut: bool,
}

impl Pick {
    fn new(me: ConnectionId, wants_addresses: bool) -> Self {
        Self { me, wants_addresses, picked: SmallVec::new(), cap: u64::MAX, cut: false }
    }

    /// `records` are in order, so that its first `MAX_RECORDS` are all that can be among the oldest.
    fn offer<'a>(&mut self, channel: &Arc<Channel>, records: impl Iterator<Item = &'a Arc<Record>>) {
        let mut taken = 0;
        for record in records {
            if taken == MAX_RECORDS || record.sequence > self.cap {
                self.cut = true;
                break;
            }
            if !record.except.contains(&self.me) {
                taken += 1;
                let via = self.wants_addresses.then(|| Arc::clone(channel));
                self.picked.push(Picked { record: Arc::clone(record), via });
            }
        }
        if self.picked.len() >= 2 * MAX_RECORDS {
            self.settle();
        }
    }

    fn settle(&mut self) {
        self.picked.sort_by_key(|picked| picked.record.sequence);
        self.picked.dedup_by_key(|picked| picked.record.sequence);
        if self.picked.len() > MAX_RECORDS {
            self.cut = true;
            self.picked.truncate(MAX_RECORDS);
        }
        if let [.., last] = &self.picked[..]
            && self.picked.len() == MAX_RECORDS
        {
            self.cap = last.record.sequence;
        }
    }

    /// Moves what fits into the batch. Returns up to where everything is in it: `upto` unless something was left out.
    fn finish(mut self, upto: u64, batch: &mut Batch) -> u64 {
        self.settle();
        let mut bytes = 0;
        for picked in self.picked {
            bytes += picked.record.frame.len();
            if bytes > MAX_BYTES && !batch.records.is_empty() {
                self.cut = true;
                break;
            }
            batch.records.push(picked);
        }
        match batch.records.last() {
            Some(last) if self.cut => last.record.sequence,
            _ => upto,
        }
    }
}
