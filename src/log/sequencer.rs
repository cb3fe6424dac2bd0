//! The one place where records get their numbers and channels come and go.

use std::cmp::Reverse;
use std::collections::binary_heap::BinaryHeap;
use std::collections::btree_set::BTreeSet;
use std::collections::hash_map::HashMap;
use std::collections::vec_deque::VecDeque;
use std::sync::Arc;

use smallvec::SmallVec;

use super::channel::Channel;
use super::entry::Entry;
use super::epochs::{Break, Life};
use super::listener::Listener;
use super::marks::Marks;
use super::readable::Readable;
use super::store::{Dropped, Part, PerPart, Record, Store};
use super::time::{Millis, millis};
use super::waking::Asleep;
use crate::macros::give_memory_back;
use crate::types::retention::Kind;
use crate::types::{Address, Audience};

/// How many records and channels one publisher, or one turn of the housekeeping, disposes of.
const SWEEP: usize = 256;
/// How often a publisher looks for due things.
const SWEEP_EVERY: Millis = 100;
/// The number of the channel that is never forgotten.
const EVERYONE: u32 = 0;

/// The bounds of all channels together.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Budgets {
    pub(crate) ring_bytes: usize,
    pub(crate) keyed_bytes: usize,
    /// How long an empty channel without listeners is remembered.
    pub(crate) grace: Millis,
}

/// What a sweep left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Swept {
    /// More is due now.
    More,
    /// Something is kept that will be due.
    Later,
    /// Nothing is kept but what stays.
    Nothing,
}

#[derive(Debug)]
pub(super) struct Sequencer {
    readable: Arc<Readable>,
    budgets: Budgets,
    last: u64,
    /// The floor at which new channels start that have left no mark.
    floor: u64,
    marks: Marks,
    channels: HashMap<Address, Arc<Channel>>,
    /// By number. A free number has no channel.
    numbers: Vec<Option<Arc<Channel>>>,
    free: BinaryHeap<Reverse<u32>>,
    unique: u64,
    lanes: PerPart<Lanes>,
    retained: PerPart<usize>,
    /// Records that the budgets pushed out before the bounds of their own channel did.
    evicted: u64,
    /// Channels that were empty and without listeners at that time, oldest first.
    idle: VecDeque<(Millis, u32, u64)>,
    next_sweep: Millis,
    /// Records to be freed after the lock.
    dropped: Dropped,
    /// Contents of channels to be freed after the lock. A new epoch moves the contents of every channel here.
    forgotten: Vec<Store>,
}

/// The channels in the order of their oldest record, for age and for the budgets: one lane for each policy.
#[derive(Debug, Default)]
struct Lanes {
    all: Vec<Lane>,
    /// The first number of each lane, with its policy, so that a budget finds the oldest without a look at all lanes.
    firsts: BTreeSet<(u64, usize)>,
}

/// A channel stands here once while the part holds anything, under the number that was its oldest when it was put in:
/// never above what is its oldest now.
#[derive(Debug)]
struct Lane {
    age: Option<Millis>,
    heap: BinaryHeap<Reverse<Waiting>>,
}

impl Lanes {
    fn new(ages: impl Iterator<Item = Option<std::time::Duration>>) -> Self {
        let all = ages.map(|age| Lane { age: age.map(millis), heap: BinaryHeap::new() }).collect();
        Self { all, firsts: BTreeSet::new() }
    }

    /// The age that this policy bounds.
    fn age(&self, policy: usize) -> Option<Millis> {
        self.all[policy].age
    }

    fn first(&self, policy: usize) -> Option<&Waiting> {
        self.all[policy].heap.peek().map(|Reverse(waiting)| waiting)
    }

    /// The policy and the number of the first of all.
    fn oldest(&self) -> Option<(usize, u64)> {
        self.firsts.first().map(|(sequence, policy)| (*policy, *sequence))
    }

    fn push(&mut self, policy: usize, waiting: Waiting) {
        self.change(policy, |heap| heap.push(Reverse(waiting)));
    }

    fn pop(&mut self, policy: usize) -> Option<Waiting> {
        self.change(policy, BinaryHeap::pop).map(|Reverse(waiting)| waiting)
    }

    fn change<R>(&mut self, policy: usize, change: impl FnOnce(&mut BinaryHeap<Reverse<Waiting>>) -> R) -> R {
        let before = self.first(policy).map(|waiting| waiting.sequence);
        let result = change(&mut self.all[policy].heap);
        let after = self.first(policy).map(|waiting| waiting.sequence);
        if before != after {
            before.map(|before| self.firsts.remove(&(before, policy)));
            after.map(|after| self.firsts.insert((after, policy)));
        }
        result
    }

    fn clear(&mut self) {
        self.all.iter_mut().for_each(|lane| lane.heap.clear());
        self.firsts.clear();
    }

    /// Drops the entries of channels that are gone, which no age drops, and gives memory back.
    fn shrink(&mut self, used: usize, exists: impl Fn(&Waiting) -> bool) {
        for policy in 0..self.all.len() {
            let heap = &self.all[policy].heap;
            if heap.len() > 2 * used + 512 {
                self.change(policy, |heap| heap.retain(|Reverse(waiting)| exists(waiting)));
            }
            give_memory_back!(self.all[policy].heap);
        }
    }

    fn is_aging(&self) -> bool {
        self.firsts.iter().any(|(_, policy)| self.all[*policy].age.is_some())
    }
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Waiting {
    sequence: u64,
    at: Millis,
    number: u32,
    unique: u64,
}

/// What is held at one moment.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    pub(crate) channels: usize,
    pub(crate) ring_bytes: usize,
    pub(crate) keyed_bytes: usize,
    /// Ever, by the budgets.
    pub(crate) evicted: u64,
}

impl Sequencer {
    pub(super) fn new(readable: Arc<Readable>, budgets: Budgets) -> Self {
        let policies = &readable.policies;
        let lanes = PerPart {
            ring: Lanes::new(policies.all().iter().map(|retention| retention.ring.age)),
            keyed: Lanes::new(policies.all().iter().map(|retention| retention.keyed.age)),
        };
        let policy = policies.index(&Address::Everyone);
        let everyone = Arc::new(Channel::new(Address::Everyone, EVERYONE, 0, policy, 0));
        readable.heads.cover(EVERYONE as usize);
        Self {
            readable,
            budgets,
            last: 0,
            floor: 0,
            marks: Marks::default(),
            channels: HashMap::from([(Address::Everyone, Arc::clone(&everyone))]),
            numbers: vec![Some(everyone)],
            free: BinaryHeap::new(),
            unique: 0,
            lanes,
            retained: PerPart::default(),
            evicted: 0,
            idle: VecDeque::new(),
            next_sweep: 0,
            dropped: Dropped::new(),
            forgotten: Vec::new(),
        }
    }

    pub(super) fn usage(&self) -> Usage {
        Usage {
            channels: self.channels.len(),
            ring_bytes: self.retained.ring,
            keyed_bytes: self.retained.keyed,
            evicted: self.evicted,
        }
    }

    /// Returns what was dropped under the lock, for the caller to free after it. Most calls drop nothing.
    pub(super) fn take_dropped(&mut self) -> Option<(Dropped, Vec<Store>)> {
        let has_any = !self.dropped.is_empty() || !self.forgotten.is_empty();
        has_any.then(|| (std::mem::take(&mut self.dropped), std::mem::take(&mut self.forgotten)))
    }

    pub(super) fn last(&self) -> u64 {
        self.last
    }

    /// Puts an entry whose number is above all others into its channels, and raises the horizon to
    /// it. Returns how many listen to those channels, and adds them to `asleep`.
    pub(super) fn append(
        &mut self,
        life: &Life,
        sequence: u64,
        entry: Entry,
        now: Millis,
        asleep: &mut Asleep,
    ) -> usize {
        self.last = life.number(sequence);
        let (record, channels) = self.record(life, sequence, entry, now);
        let mut receivers = 0;
        for channel in channels {
            self.apply(&channel, Arc::clone(&record), now);
            channel.raise_head(&self.readable.heads, record.sequence);
            let listening = channel.listening();
            receivers += listening;
            if listening > 0 {
                asleep.0.push(channel);
            }
        }
        self.fit_budgets(now);
        self.readable.raise_horizon(self.last);
        receivers
    }

    /// Puts current values that are older than the records to come where they belong. The horizon
    /// does not cover them yet, so that connections that are here already read them.
    pub(super) fn set_values(&mut self, life: &Life, values: Vec<(u64, Entry)>, now: Millis) {
        for (sequence, entry) in values {
            let (record, channels) = self.record(life, sequence, entry, now);
            for channel in channels {
                if self.readable.policies.get(channel.policy).kind == Kind::LatestPerKey {
                    self.apply(&channel, Arc::clone(&record), now);
                    // Its floor may be higher, and a reader below it must report a gap.
                    channel.raise_head(&self.readable.heads, record.sequence);
                }
            }
            self.fit_budgets(now);
        }
    }

    /// Nothing is numbered up to here any more.
    pub(super) fn advance(&mut self, number: u64) {
        if number > self.last {
            self.last = number;
            self.readable.raise_horizon(number);
        }
    }

    /// The channels that somebody listens to.
    pub(super) fn listened(&self) -> SmallVec<[Arc<Channel>; 4]> {
        self.all().filter(|channel| channel.listening() > 0).cloned().collect()
    }

    /// In the order of their numbers.
    fn all(&self) -> impl Iterator<Item = &Arc<Channel>> {
        self.numbers.iter().flatten()
    }

    /// Makes a number above all others one that the readers of these channels, or of all, have missed.
    pub(super) fn interrupt(&mut self, found: Break, audience: Option<&Audience>, now: Millis, asleep: &mut Asleep) {
        self.readable.epochs.note_break(found);
        self.last = found.at;
        let channels: Vec<_> = match audience {
            Some(audience) => audience.addresses().iter().map(|address| self.channel(address)).collect(),
            None => {
                self.floor = self.floor.max(found.at);
                self.marks.clear();
                self.all().cloned().collect()
            }
        };
        for channel in channels {
            channel.store.lock().raise_floor(found.at);
            // It may hold values that are newer.
            channel.raise_head(&self.readable.heads, found.at);
            if channel.listening() > 0 {
                asleep.0.push(channel);
            } else {
                self.note_if_idle(&channel, now);
            }
        }
        self.readable.raise_horizon(found.at);
    }

    /// Drops everything that is kept. Who listens stays.
    pub(super) fn forget_all(&mut self) {
        self.forget(Store::clear);
        self.lanes.ring.clear();
        self.lanes.keyed.clear();
    }

    /// Drops all current values.
    pub(super) fn forget_values(&mut self) {
        self.forget(Store::clear_values);
        self.lanes.keyed.clear();
    }

    fn forget(&mut self, clear: impl Fn(&mut Store) -> Store) {
        let contents = self.numbers.iter().flatten().map(|channel| self.retained.change(&channel.store, &clear));
        self.forgotten.extend(contents.filter(|store| !store.is_empty()));
    }

    fn record(
        &mut self,
        life: &Life,
        sequence: u64,
        entry: Entry,
        now: Millis,
    ) -> (Arc<Record>, SmallVec<[Arc<Channel>; 4]>) {
        let mut channels: SmallVec<[Arc<Channel>; 4]> = SmallVec::new();
        for address in entry.audience.addresses() {
            match address {
                // Its channel is opened by whoever finds the connection; without one there is nobody to keep it for.
                Address::Connection(_) => channels.extend(self.find_channel(address)),
                _ => channels.push(self.channel(address)),
            }
        }
        let record = Arc::new(Record {
            sequence: life.number(sequence),
            frame: entry.draft.finish(&life.prefix, sequence),
            at: entry.published.map_or(now, |at| at.min(now)),
            effect: entry.effect,
            except: entry.audience.excluded().iter().copied().collect(),
            union: if channels.len() > 1 {
                channels.iter().map(|channel| channel.unique).collect()
            } else {
                Box::default()
            },
        });
        (record, channels)
    }

    pub(super) fn find_channel(&self, address: &Address) -> Option<Arc<Channel>> {
        self.channels.get(address).cloned()
    }

    /// The channel of an address; a new one if there is none.
    fn channel(&mut self, address: &Address) -> Arc<Channel> {
        if let Some(channel) = self.channels.get(address) {
            return Arc::clone(channel);
        }
        // The lowest first, so that the tables can be cut behind the highest in use.
        let number = self.free.pop().map(|Reverse(number)| number).unwrap_or_else(|| {
            self.numbers.push(None);
            (self.numbers.len() - 1) as u32
        });
        self.unique += 1;
        let policy = self.readable.policies.index(address);
        let floor = self.floor.max(self.marks.take(address));
        let channel = Arc::new(Channel::new(address.clone(), number, self.unique, policy, floor));
        self.readable.heads.cover(number as usize);
        // A reader whose cursor is below the floor must look into the channel to learn of its gap.
        self.readable.heads.set(number as usize, floor);
        self.numbers[number as usize] = Some(Arc::clone(&channel));
        self.channels.insert(address.clone(), Arc::clone(&channel));
        channel
    }

    /// Adds a listener to an address. Returns its channel, and the slot to leave it by.
    pub(super) fn enter(&mut self, address: &Address, listener: Arc<dyn Listener>) -> (Arc<Channel>, u32) {
        let channel = self.channel(address);
        let slot = channel.add_listener(listener);
        (channel, slot)
    }

    /// The reverse.
    pub(super) fn exit(&mut self, channel: &Arc<Channel>, slot: u32, now: Millis) {
        channel.remove_listener(slot);
        if channel.listening() > 0 {
            return;
        }
        if let Address::Connection(_) = channel.address {
            // What was sent to a connection dies with it; nobody asks for it again, so no floor is left behind.
            let contents = self.retained.change(&channel.store, Store::clear);
            self.forgotten.extend(Some(contents).filter(|store| !store.is_empty()));
            self.remove(channel);
        } else {
            self.note_if_idle(channel, now);
        }
    }

    /// A publisher's share of the housekeeping.
    pub(super) fn sweep_a_little(&mut self, now: Millis) {
        if now >= self.next_sweep {
            let swept = self.sweep(now);
            self.next_sweep = if swept == Swept::More { now } else { now + SWEEP_EVERY };
        }
    }

    /// Drops what is past its age and forgets channels that have been idle for the grace.
    pub(super) fn sweep(&mut self, now: Millis) -> Swept {
        let mut left = SWEEP;
        for policy in 0..self.readable.policies.all().len() {
            for part in [Part::Ring, Part::Keyed] {
                let Some(age) = self.lanes.of(part).age(policy) else { continue };
                let is_due = |waiting: &Waiting| waiting.at.saturating_add(age) <= now;
                while left > 0 && self.lanes.of(part).first(policy).is_some_and(is_due) {
                    let dropped = self.drop_from(policy, part, now, left, |_, at| at.saturating_add(age) <= now);
                    // A channel that is looked at in vain counts too.
                    left -= dropped.max(1);
                }
            }
        }
        while left > 0 && self.idle.front().is_some_and(|(since, ..)| since.saturating_add(self.budgets.grace) <= now) {
            left -= 1;
            self.forget_oldest_idle(Some(now));
        }
        self.shrink();
        if left == 0 {
            Swept::More
        } else if !self.idle.is_empty() || self.lanes.ring.is_aging() || self.lanes.keyed.is_aging() {
            Swept::Later
        } else {
            Swept::Nothing
        }
    }

    fn apply(&mut self, channel: &Arc<Channel>, record: Arc<Record>, now: Millis) {
        let is_from_before = record.at < now;
        let mut is_expired = false;
        self.retained.change(&channel.store, |store| {
            store.apply(record, self.readable.policies.get(channel.policy), &mut self.dropped);
            for part in [Part::Ring, Part::Keyed] {
                let lanes = self.lanes.of(part);
                if let Some(age) = lanes.age(channel.policy).filter(|_| is_from_before) {
                    // It may be past its age already.
                    while store.oldest(part).is_some_and(|(_, at)| at.saturating_add(age) <= now) {
                        store.drop_oldest(part, &mut self.dropped);
                        is_expired = true;
                    }
                }
                if let Some((sequence, at)) = store.oldest(part).filter(|_| !*store.queued.of(part)) {
                    *store.queued.of(part) = true;
                    let waiting = Waiting { sequence, at, number: channel.number, unique: channel.unique };
                    lanes.push(channel.policy, waiting);
                }
            }
        });
        if is_expired {
            self.note_if_idle(channel, now);
        }
    }

    /// Drops the oldest of all current values, or of all rings, until they fit. Channels that hold
    /// nothing are forgotten before a record is dropped. The values come first, because a channel
    /// without values counts with the rings.
    fn fit_budgets(&mut self, now: Millis) {
        for (part, budget) in [(Part::Keyed, self.budgets.keyed_bytes), (Part::Ring, self.budgets.ring_bytes)] {
            while *self.retained.of(part) > budget {
                if part == Part::Ring && !self.idle.is_empty() {
                    self.forget_oldest_idle(None);
                    continue;
                }
                let Some((policy, sequence)) = self.lanes.of(part).oldest() else { break };
                // The record that was just appended stays: nobody could have read it yet.
                if sequence == self.last {
                    break;
                }
                self.evicted += self.drop_from(policy, part, now, usize::MAX, |oldest, _| oldest <= sequence) as u64;
            }
        }
    }

    /// Takes the first channel out of a lane, drops its oldest records while `is_due`, and puts it
    /// back in its new place. Returns how many it dropped, at most `most`.
    fn drop_from(
        &mut self,
        policy: usize,
        part: Part,
        now: Millis,
        most: usize,
        is_due: impl Fn(u64, Millis) -> bool,
    ) -> usize {
        let Some(waiting) = self.lanes.of(part).pop(policy) else { return 0 };
        let Some(channel) = self.find(waiting.number, waiting.unique) else { return 0 };
        let mut dropped = 0;
        self.retained.change(&channel.store, |store| {
            while dropped < most && store.oldest(part).is_some_and(|(sequence, at)| is_due(sequence, at)) {
                store.drop_oldest(part, &mut self.dropped);
                dropped += 1;
            }
            let oldest = store.oldest(part);
            *store.queued.of(part) = oldest.is_some();
            if let Some((sequence, at)) = oldest {
                self.lanes.of(part).push(policy, Waiting { sequence, at, ..waiting });
            }
        });
        self.note_if_idle(&channel, now);
        dropped
    }

    fn note_if_idle(&mut self, channel: &Channel, now: Millis) {
        if channel.number == EVERYONE || channel.listening() > 0 {
            return;
        }
        let (is_empty, floor) = {
            let store = channel.store.lock();
            (store.is_empty(), store.floor())
        };
        if is_empty && floor <= self.floor {
            // It has dropped nothing that a new one would not answer for as well.
            self.remove(channel);
        } else if is_empty && self.retained.change(&channel.store, |store| store.idle_since.replace(now)).is_none() {
            self.idle.push_back((now, channel.number, channel.unique));
        }
    }

    /// Takes the first channel out of the queue and forgets it, unless it is in use. With a time,
    /// it must have been idle for the grace by then.
    fn forget_oldest_idle(&mut self, now: Option<Millis>) {
        let Some((_, number, unique)) = self.idle.pop_front() else { return };
        let Some(channel) = self.find(number, unique) else { return };
        let is_too_young = |since: &Millis| now.is_some_and(|now| since.saturating_add(self.budgets.grace) > now);
        let (is_unused, idle_since, floor) = self.retained.change(&channel.store, |store| {
            let is_unused = store.is_empty() && channel.listening() == 0;
            // It was in use again meanwhile.
            store.idle_since = store.idle_since.filter(is_too_young).filter(|_| is_unused);
            (is_unused, store.idle_since, store.floor())
        });
        if let Some(since) = idle_since {
            self.idle.push_back((since, number, unique));
        } else if is_unused {
            self.floor = self.floor.max(self.marks.leave(&channel.address, floor));
            self.remove(&channel);
        }
    }

    fn find(&self, number: u32, unique: u64) -> Option<Arc<Channel>> {
        self.numbers.get(number as usize)?.clone().filter(|channel| channel.unique == unique)
    }

    fn remove(&mut self, channel: &Channel) {
        let bytes = channel.store.lock().bytes();
        self.retained.ring -= bytes.ring;
        self.retained.keyed -= bytes.keyed;
        self.channels.remove(&channel.address);
        self.numbers[channel.number as usize] = None;
        self.free.push(Reverse(channel.number));
    }

    /// Gives memory back after many channels are gone.
    fn shrink(&mut self) {
        let used = self.channels.len();
        if self.numbers.len() > 1024
            && self.free.len() > self.numbers.len() / 4 * 3
            && self.numbers.last().is_some_and(Option::is_none)
        {
            let len = self.numbers.iter().rposition(Option::is_some).map_or(0, |last| last + 1);
            self.numbers.truncate(len);
            self.numbers.shrink_to(len * 2);
            self.free.retain(|Reverse(number)| (*number as usize) < len);
            self.free.shrink_to(self.free.len() * 2);
            self.readable.heads.truncate(len);
        }
        give_memory_back!(self.channels);
        give_memory_back!(self.idle);
        let numbers = &self.numbers;
        let exists = |waiting: &Waiting| {
            let channel = numbers.get(waiting.number as usize).and_then(Option::as_ref);
            channel.is_some_and(|channel| channel.unique == waiting.unique)
        };
        self.lanes.ring.shrink(used, exists);
        self.lanes.keyed.shrink(used, exists);
    }
}
