//! The sequencer: numbers records, stores them in channels, and creates and removes channels.
//!
//! All of its state is under one lock. In the order of the numbers, and within one hold of the
//! lock, the sequencer stores a record in every channel of its audience, raises the latest number
//! of these channels, and raises `visible_through` last.

use std::cmp::Reverse;
use std::collections::binary_heap::BinaryHeap;
use std::collections::btree_set::BTreeSet;
use std::collections::hash_map::HashMap;
use std::collections::vec_deque::VecDeque;
use std::num::NonZeroU64;
use std::sync::Arc;

use smallvec::SmallVec;

use super::channel::Channel;
use super::dormancy::Dormancy;
use super::entry::{Entry, Undecoded};
use super::epochs::{Break, LogEpoch};
use super::listener::Listener;
use super::marks::Marks;
use super::readable::Readable;
use super::store::{Dropped, Outline, Part, PerPart, RECORD_OVERHEAD, Record, Store};
use super::time::{Millis, millis};
use super::waking::PendingWakes;
use crate::macros::shrink_if_sparse;
use crate::types::retention::{Kind, Retention};
use crate::types::{Address, AddressRef, AsAddress, Audience, ScopeName};

/// The maximum number of records and channels that one sweep drops or makes dormant.
const MAX_PER_SWEEP: usize = 256;
/// The minimum time between two sweeps by publishers and by changes of subscriptions, in
/// milliseconds, unless a sweep has left work.
const SWEEP_INTERVAL: Millis = 100;
/// The number of the channel of [`Address::Everyone`] of the root scope, which is never removed.
const EVERYONE: u32 = 0;

/// The bounds of all channels together.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Budgets {
    pub(crate) ring_bytes: usize,
    pub(crate) keyed_bytes: usize,
    /// The time after which a sweep removes an empty channel without listeners, in milliseconds.
    /// The channel is removed earlier if it has dropped no record, or to save memory.
    pub(crate) grace: Millis,
    /// The time without listeners after which a channel of a shared log is
    /// [dormant](super::dormancy), in milliseconds. `None` if this is no shared log.
    pub(crate) dormant_after: Option<Millis>,
}

/// The work that is left after a sweep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Swept {
    /// More records or channels may be due now.
    More,
    /// Nothing is due now. Retained records or idle channels will be due later.
    Later,
    /// No retained record has an age limit, and no channel is idle.
    Nothing,
}

#[derive(Debug)]
pub(super) struct Sequencer {
    readable: Arc<Readable>,
    budgets: Budgets,
    last: u64,
    /// The lowest `trimmed_through` with which a new channel starts. The mark of its address may be
    /// higher.
    trimmed_through: u64,
    marks: Marks,
    channels: HashMap<Address, Arc<Channel>>,
    /// Channels by their number. A free number has no channel.
    numbers: Vec<Option<Arc<Channel>>>,
    free: BinaryHeap<Reverse<u32>>,
    unique: u64,
    lanes: PerPart<Lanes>,
    retained: PerPart<usize>,
    /// The number of records that were dropped because of a budget, before the bounds of
    /// their channel required it.
    evicted: u64,
    /// Channels that were empty and without listeners when they were added, in the order of adding.
    /// Each has the time since which it was idle, its number and its unique number.
    idle: VecDeque<(Millis, u32, u64)>,
    /// `None` if this is no shared log. Then no channel is ever dormant.
    pub(super) dormancy: Option<Dormancy>,
    next_sweep: Millis,
    /// Records to be freed after the lock is released.
    dropped: Dropped,
    /// Contents of channels to be freed after the lock is released. A new epoch moves the contents
    /// of every channel here.
    forgotten: Vec<Store>,
}

/// The channels in the order of their oldest record, for age and for the budgets. Each policy has
/// one lane, because all channels of a policy have the same age limit.
#[derive(Debug, Default)]
struct Lanes {
    all: Vec<Lane>,
    /// The first number of each lane, with its policy, so that a budget finds the oldest record of
    /// all lanes at once.
    firsts: BTreeSet<(u64, usize)>,
}

/// The channels of one policy. Each channel whose part is not empty has exactly one entry. The
/// number in an entry is that of the oldest record when the entry was made. So it is a lower bound
/// for the current oldest record.
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

    /// Returns the maximum age of a record with this policy, in milliseconds.
    fn age(&self, policy: usize) -> Option<Millis> {
        self.all[policy].age
    }

    fn first(&self, policy: usize) -> Option<&Waiting> {
        self.all[policy].heap.peek().map(|Reverse(waiting)| waiting)
    }

    /// Returns the policy and the number of the entry with the lowest number of all lanes.
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

    /// Shrinks the heaps. Drops the entries of removed channels first if they are many, because a
    /// lane without an age limit does not pop them with time.
    fn shrink(&mut self, used: usize, exists: impl Fn(&Waiting) -> bool) {
        for policy in 0..self.all.len() {
            let heap = &self.all[policy].heap;
            if heap.len() > 2 * used + 512 {
                self.change(policy, |heap| heap.retain(|Reverse(waiting)| exists(waiting)));
            }
            shrink_if_sparse!(self.all[policy].heap);
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

/// The channels and bytes that the log holds at one moment.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    pub(crate) channels: usize,
    pub(crate) ring_bytes: usize,
    pub(crate) keyed_bytes: usize,
    /// The number of records that the budgets have dropped since the start of the log.
    pub(crate) evicted: u64,
}

impl Sequencer {
    pub(super) fn new(readable: Arc<Readable>, budgets: Budgets) -> Self {
        let policies = &readable.policies;
        let lanes = PerPart {
            ring: Lanes::new(policies.all().iter().map(|retention| retention.ring.age)),
            keyed: Lanes::new(policies.all().iter().map(|retention| retention.keyed.age)),
        };
        let policy = policies.index(&Address::Everyone(ScopeName::ROOT));
        let everyone = Arc::new(Channel::new(Address::Everyone(ScopeName::ROOT), EVERYONE, 0, policy, 0));
        readable.latest.cover(EVERYONE as usize);
        Self {
            readable,
            budgets,
            last: 0,
            trimmed_through: 0,
            marks: Marks::default(),
            channels: HashMap::from([(Address::Everyone(ScopeName::ROOT), Arc::clone(&everyone))]),
            numbers: vec![Some(everyone)],
            free: BinaryHeap::new(),
            unique: 0,
            lanes,
            retained: PerPart::default(),
            evicted: 0,
            idle: VecDeque::new(),
            dormancy: budgets.dormant_after.map(Dormancy::new),
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

    /// Returns the records and stores that were dropped under the lock, for the caller to free
    /// after the lock is released. Returns `None` if nothing was dropped, which is the usual case.
    pub(super) fn take_dropped(&mut self) -> Option<(Dropped, Vec<Store>)> {
        let has_any = !self.dropped.is_empty() || !self.forgotten.is_empty();
        has_any.then(|| (std::mem::take(&mut self.dropped), std::mem::take(&mut self.forgotten)))
    }

    pub(super) fn last(&self) -> u64 {
        self.last
    }

    /// Stores an entry in its channels, and raises `visible_through` to its number, which is above
    /// all earlier numbers. Returns the number of listeners of these channels, and adds the
    /// channels that have listeners to `asleep`.
    pub(super) fn append(
        &mut self,
        epoch: &LogEpoch,
        sequence: u64,
        entry: Entry,
        now: Millis,
        asleep: &mut PendingWakes,
    ) -> usize {
        self.last = epoch.number(sequence);
        let (record, channels) = self.record(epoch, sequence, entry, now);
        let mut receivers = 0;
        for channel in channels {
            if channel.is_dormant() {
                let cost = u32::try_from(record.cost()).unwrap_or(u32::MAX);
                self.outline(&channel, Outline { sequence: record.sequence, at: record.at, cost }, now);
            } else {
                self.apply(&channel, Arc::clone(&record), now);
            }
            channel.raise_latest(&self.readable.latest, record.sequence);
            let listening = channel.listening();
            receivers += listening;
            if listening > 0 {
                asleep.0.push(channel);
            }
        }
        self.fit_budgets(now);
        self.readable.raise_visible_through(self.last);
        receivers
    }

    /// Stores the outline of a record in its channels, and raises `visible_through` to its number,
    /// which is above all earlier numbers. Returns false, and changes nothing, if one of the
    /// channels needs the record itself.
    pub(super) fn append_outline(
        &mut self,
        number: u64,
        audience: &Audience,
        undecoded: Undecoded,
        now: Millis,
    ) -> bool {
        let mut channels: SmallVec<[Arc<Channel>; 1]> = SmallVec::new();
        for address in audience.addresses() {
            match self.channels.get(address) {
                Some(channel) if channel.is_dormant() => channels.push(Arc::clone(channel)),
                // No reader of this instance will ask for the record: see `record`.
                None if matches!(address, Address::Connection(..)) => {}
                None if self.may_be_dormant(address) => {}
                Some(_) | None => return false,
            }
        }
        if channels.len() < audience.addresses().len() {
            let addresses = audience.addresses().iter();
            let stored = addresses.filter(|address| !matches!(address, Address::Connection(..)));
            channels = stored.map(|address| self.channel_of_record(address)).collect();
        }
        self.outline_in(&channels, number, undecoded, now);
        true
    }

    /// As [`append_outline`](Self::append_outline), for a record with one address. Returns false,
    /// and changes nothing, if its channel is not dormant.
    pub(super) fn append_outline_for(
        &mut self,
        number: u64,
        to: AddressRef<'_>,
        undecoded: Undecoded,
        now: Millis,
    ) -> bool {
        let channel = self.channels.get(&to as &dyn AsAddress).filter(|channel| channel.is_dormant());
        let Some(channel) = channel.cloned() else { return false };
        self.outline_in(&[channel], number, undecoded, now);
        true
    }

    fn outline_in(&mut self, channels: &[Arc<Channel>], number: u64, undecoded: Undecoded, now: Millis) {
        self.last = number;
        let at = undecoded.published.map_or(now, |at| at.min(now));
        let cost = undecoded.bytes.saturating_add(RECORD_OVERHEAD as u32);
        for channel in channels {
            self.outline(channel, Outline { sequence: number, at, cost }, now);
            channel.raise_latest(&self.readable.latest, number);
        }
        self.fit_budgets(now);
        self.readable.raise_visible_through(number);
    }

    /// Returns whether the channel of an address may be dormant.
    fn may_be_dormant(&self, address: &Address) -> bool {
        self.dormancy.is_some()
            && match address {
                Address::Topic(_) | Address::User(_) => !self.readable.policies.keeps_values(address),
                Address::Everyone(_) | Address::EveryScope | Address::Connection(..) => false,
            }
    }

    /// Returns the channel of an address of a record. If it does not exist, creates it, dormant if
    /// possible.
    fn channel_of_record(&mut self, address: &Address) -> Arc<Channel> {
        if let Some(channel) = self.channels.get(address) {
            return Arc::clone(channel);
        }
        let channel = self.channel(address);
        channel.set_dormant(self.may_be_dormant(address));
        channel
    }

    /// Makes a channel dormant whose last listener left at `since`, before the grace period.
    /// Replaces at most `most` records by their outlines. If the channel has more, it stays in the
    /// queue of [`Dormancy`]. Returns the number of replaced records.
    fn make_dormant(&mut self, channel: &Arc<Channel>, since: Millis, most: usize, now: Millis) -> usize {
        let (count, is_done) =
            self.retained.change(&channel.store, |store| store.outline_oldest(most, &mut self.dropped));
        if let Some(dormancy) = &mut self.dormancy {
            if is_done {
                channel.set_dormant(true);
            } else {
                dormancy.note_left(channel, since);
            }
        }
        self.note_if_idle(channel, now);
        count
    }

    /// Stores current values that were loaded from the shared log. The caller raises
    /// `visible_through` afterwards, so that connections that are already open read the new values
    /// too.
    pub(super) fn set_values(&mut self, epoch: &LogEpoch, values: Vec<(u64, Entry)>, now: Millis) {
        for (sequence, entry) in values {
            let (record, channels) = self.record(epoch, sequence, entry, now);
            for channel in channels {
                if self.readable.policies.get(channel.policy).kind == Kind::LatestPerKey {
                    self.apply(&channel, Arc::clone(&record), now);
                    // Only raise the latest number, because it may already be at the channel's
                    // `trimmed_through`. A reader below `trimmed_through` must read the channel to
                    // report the gap.
                    channel.raise_latest(&self.readable.latest, record.sequence);
                }
            }
            self.fit_budgets(now);
        }
    }

    /// Raises the newest number of the log and `visible_through`, unless they are already higher.
    /// Records that are appended later have higher numbers.
    pub(super) fn advance(&mut self, number: u64) {
        if number > self.last {
            self.last = number;
            self.readable.raise_visible_through(number);
        }
    }

    /// Returns the channels that have listeners.
    pub(super) fn listened(&self) -> SmallVec<[Arc<Channel>; 4]> {
        self.all().filter(|channel| channel.listening() > 0).cloned().collect()
    }

    /// Returns all channels in the order of their numbers.
    pub(super) fn all(&self) -> impl Iterator<Item = &Arc<Channel>> {
        self.numbers.iter().flatten()
    }

    /// Records a break at a number above all earlier numbers. Raises `trimmed_through` of the
    /// channels of `audience`, or of all channels if `audience` is `None`, so that their readers
    /// report a gap.
    pub(super) fn interrupt(
        &mut self,
        found: Break,
        audience: Option<&Audience>,
        now: Millis,
        asleep: &mut PendingWakes,
    ) {
        self.readable.epochs.note_break(found);
        self.last = found.at;
        let channels: Vec<_> = match audience {
            Some(audience) => audience.addresses().iter().map(|address| self.channel_of_record(address)).collect(),
            None => {
                self.trimmed_through = self.trimmed_through.max(found.at);
                self.marks.clear();
                self.all().cloned().collect()
            }
        };
        for channel in channels {
            channel.store.lock().raise_trimmed_through(found.at);
            // Only raise the latest number, because the channel may contain loaded values with
            // higher numbers.
            channel.raise_latest(&self.readable.latest, found.at);
            if channel.listening() > 0 {
                asleep.0.push(channel);
            } else {
                self.note_if_idle(&channel, now);
            }
        }
        self.readable.raise_visible_through(found.at);
    }

    /// Drops all records and current values. Listeners stay.
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
        epoch: &LogEpoch,
        sequence: u64,
        entry: Entry,
        now: Millis,
    ) -> (Arc<Record>, SmallVec<[Arc<Channel>; 4]>) {
        let mut channels: SmallVec<[Arc<Channel>; 4]> = SmallVec::new();
        for address in entry.audience.addresses() {
            match address {
                // A record for a connection without a channel is not stored: the connection is
                // closed, or open on another instance, so no reader of this instance will ask for
                // the record.
                Address::Connection(..) => channels.extend(self.find_channel(address)),
                _ => channels.push(self.channel_of_record(address)),
            }
        }
        let record = Arc::new(Record {
            sequence: epoch.number(sequence),
            frame: entry.draft.finish(&epoch.prefix, sequence),
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

    /// Returns the channel of an address, and creates it if it does not exist.
    fn channel(&mut self, address: &Address) -> Arc<Channel> {
        if let Some(channel) = self.channels.get(address) {
            return Arc::clone(channel);
        }
        // Use the lowest free number, so that the tables can be truncated after the highest number
        // in use.
        let number = self.free.pop().map(|Reverse(number)| number).unwrap_or_else(|| {
            self.numbers.push(None);
            (self.numbers.len() - 1) as u32
        });
        self.unique += 1;
        let policy = self.readable.policies.index(address);
        let trimmed_through = self.trimmed_through.max(self.marks.take(address));
        let channel = Arc::new(Channel::new(address.clone(), number, self.unique, policy, trimmed_through));
        self.readable.latest.cover(number as usize);
        // A reader whose cursor is below `trimmed_through` must read the channel. Otherwise it
        // would not report the gap.
        self.readable.latest.set(number as usize, trimmed_through);
        self.numbers[number as usize] = Some(Arc::clone(&channel));
        self.channels.insert(address.clone(), Arc::clone(&channel));
        channel
    }

    /// Adds a listener to the channel of an address. Returns the channel, and the slot for
    /// [`exit`](Self::exit). Drops the outlines of records that the shared log no longer has, so
    /// that the listener does not ask for them.
    pub(super) fn enter(&mut self, address: &Address, listener: Arc<dyn Listener>) -> (Arc<Channel>, u32) {
        let channel = self.channel(address);
        if let Some(dormancy) = &mut self.dormancy {
            dormancy.remove(&channel);
            let through = self.readable.shared_trimmed_through();
            self.retained.change(&channel.store, |store| store.drop_outlines(through));
        }
        let slot = channel.add_listener(listener);
        (channel, slot)
    }

    /// Removes a listener from a channel. If the channel then has no listeners, removes the channel
    /// of a connection, and removes another channel or queues it as idle if it is empty.
    pub(super) fn exit(&mut self, channel: &Arc<Channel>, slot: u32, now: Millis) {
        channel.remove_listener(slot);
        if channel.listening() > 0 {
            return;
        }
        if let Address::Connection(..) = channel.address {
            // No later connection has the same id. So the records can be dropped without a mark,
            // because no later reader has to report a gap for them.
            let contents = self.retained.change(&channel.store, Store::clear);
            self.forgotten.extend(Some(contents).filter(|store| !store.is_empty()));
            self.remove(channel);
        } else {
            if self.may_be_dormant(&channel.address)
                && let Some(dormancy) = &mut self.dormancy
            {
                dormancy.note_left(channel, now);
            }
            self.note_if_idle(channel, now);
        }
    }

    /// Sweeps at most once per [`SWEEP_INTERVAL`], as part of publishing and of changes of
    /// subscriptions, so that old records are also dropped if no housekeeping task runs. If work is
    /// left, the next call sweeps too.
    pub(super) fn sweep_a_little(&mut self, now: Millis) {
        if now >= self.next_sweep {
            let swept = self.sweep(now);
            self.next_sweep = if swept == Swept::More { now } else { now + SWEEP_INTERVAL };
        }
    }

    /// Drops records that are past their age, replaces records of channels without listeners by
    /// their outlines, and removes channels that have been idle for the grace period. Stops after
    /// [`MAX_PER_SWEEP`] records and channels.
    pub(super) fn sweep(&mut self, now: Millis) -> Swept {
        let mut left = MAX_PER_SWEEP;
        for policy in 0..self.readable.policies.all().len() {
            for part in [Part::Ring, Part::Keyed] {
                let Some(age) = self.lanes.of(part).age(policy) else { continue };
                let is_due = |waiting: &Waiting| waiting.at.saturating_add(age) <= now;
                while left > 0 && self.lanes.of(part).first(policy).is_some_and(is_due) {
                    let dropped = self.drop_from(policy, part, now, left, |_, at| at.saturating_add(age) <= now);
                    // A visit that drops nothing counts too, otherwise the sweep would be
                    // unbounded.
                    left -= dropped.max(1);
                }
            }
        }
        while left > 0
            && let Some((since, number, unique)) = self.dormancy.as_mut().and_then(|dormancy| dormancy.take_due(now))
        {
            let channel = self.find(number, unique);
            let moved = channel.map_or(0, |channel| self.make_dormant(&channel, since, left, now));
            left -= moved.max(1);
        }
        while left > 0 && self.idle.front().is_some_and(|(since, ..)| since.saturating_add(self.budgets.grace) <= now) {
            left -= 1;
            self.forget_oldest_idle(Some(now));
        }
        self.shrink();
        if left == 0 {
            Swept::More
        } else if !self.idle.is_empty()
            || self.lanes.ring.is_aging()
            || self.lanes.keyed.is_aging()
            || self.dormancy.as_ref().is_some_and(Dormancy::is_waiting)
        {
            Swept::Later
        } else {
            Swept::Nothing
        }
    }

    fn apply(&mut self, channel: &Arc<Channel>, record: Arc<Record>, now: Millis) {
        let at = record.at;
        self.change(channel, at, now, |store, retention, dropped| store.apply(record, retention, dropped));
    }

    fn outline(&mut self, channel: &Arc<Channel>, outline: Outline, now: Millis) {
        self.change(channel, outline.at, now, |store, retention, dropped| store.outline(outline, retention, dropped));
    }

    /// Adds a record of the time `at`, or its outline, to a channel.
    fn change(
        &mut self,
        channel: &Arc<Channel>,
        at: Millis,
        now: Millis,
        add: impl FnOnce(&mut Store, &Retention, &mut Dropped),
    ) {
        let is_from_before = at < now;
        let mut is_expired = false;
        self.retained.change(&channel.store, |store| {
            add(store, self.readable.policies.get(channel.policy), &mut self.dropped);
            for part in [Part::Ring, Part::Keyed] {
                let lanes = self.lanes.of(part);
                if let Some(age) = lanes.age(channel.policy).filter(|_| is_from_before) {
                    // An instance may apply a record of a shared log long after its publishing.
                    // Such a record may already be past its age.
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

    /// Drops the oldest current values of all channels until they fit into their budget, and then
    /// the oldest records of all rings. Removes idle channels before it drops a record of a ring.
    /// The values come first, because a channel that has lost its last value may become idle, and
    /// then counts with the rings.
    fn fit_budgets(&mut self, now: Millis) {
        for (part, budget) in [(Part::Keyed, self.budgets.keyed_bytes), (Part::Ring, self.budgets.ring_bytes)] {
            while *self.retained.of(part) > budget {
                if part == Part::Ring && !self.idle.is_empty() {
                    self.forget_oldest_idle(None);
                    continue;
                }
                let Some((policy, sequence)) = self.lanes.of(part).oldest() else { break };
                // The record that was just appended stays: no reader could have read it yet.
                if sequence == self.last {
                    break;
                }
                self.evicted += self.drop_from(policy, part, now, usize::MAX, |oldest, _| oldest <= sequence) as u64;
            }
        }
    }

    /// Takes the first channel out of a lane, drops its oldest records while `is_due` returns true,
    /// and puts the channel back under its new oldest number, if a record is left. Returns the
    /// number of dropped records, at most `most`.
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
        let is_within_grace = self.dormancy.as_ref().is_some_and(|dormancy| dormancy.is_within_grace(channel));
        let (is_empty, trimmed_through) = {
            let store = channel.store.lock();
            (store.is_empty(), store.trimmed_through())
        };
        if is_empty && trimmed_through <= self.trimmed_through && !is_within_grace {
            // No mark is needed: a new channel starts at this or a higher `trimmed_through`, so its
            // readers report every gap of this channel.
            self.remove(channel);
            return;
        }
        let since = NonZeroU64::new(now).unwrap_or(NonZeroU64::MIN);
        if is_empty && self.retained.change(&channel.store, |store| store.idle_since.replace(since)).is_none() {
            self.idle.push_back((now, channel.number, channel.unique));
        }
    }

    /// Takes the first channel out of the queue of idle channels, and removes the channel unless it
    /// is in use again. If `now` is given and the channel has not been idle for the whole grace
    /// period, puts it back into the queue.
    fn forget_oldest_idle(&mut self, now: Option<Millis>) {
        let Some((_, number, unique)) = self.idle.pop_front() else { return };
        let Some(channel) = self.find(number, unique) else { return };
        let is_too_young =
            |since: &NonZeroU64| now.is_some_and(|now| since.get().saturating_add(self.budgets.grace) > now);
        let (is_unused, idle_since, trimmed_through) = self.retained.change(&channel.store, |store| {
            let is_unused = store.is_empty() && channel.listening() == 0;
            // The channel may have been used and become idle again: then `since` is the later time.
            store.idle_since = store.idle_since.filter(is_too_young).filter(|_| is_unused);
            (is_unused, store.idle_since, store.trimmed_through())
        });
        if let Some(since) = idle_since {
            self.idle.push_back((since.get(), number, unique));
        } else if is_unused {
            self.trimmed_through = self.trimmed_through.max(self.marks.leave(&channel.address, trimmed_through));
            self.remove(&channel);
        }
    }

    fn find(&self, number: u32, unique: u64) -> Option<Arc<Channel>> {
        self.numbers.get(number as usize)?.clone().filter(|channel| channel.unique == unique)
    }

    fn remove(&mut self, channel: &Channel) {
        if let Some(dormancy) = &mut self.dormancy {
            dormancy.remove(channel);
        }
        let bytes = channel.store.lock().bytes();
        self.retained.ring -= bytes.ring;
        self.retained.keyed -= bytes.keyed;
        self.channels.remove(&channel.address);
        self.numbers[channel.number as usize] = None;
        self.free.push(Reverse(channel.number));
    }

    /// Shrinks the tables after many channels were removed.
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
            self.readable.latest.truncate(len);
        }
        shrink_if_sparse!(self.channels);
        shrink_if_sparse!(self.idle);
        if let Some(dormancy) = &mut self.dormancy {
            dormancy.shrink();
        }
        let numbers = &self.numbers;
        let exists = |waiting: &Waiting| {
            let channel = numbers.get(waiting.number as usize).and_then(Option::as_ref);
            channel.is_some_and(|channel| channel.unique == waiting.unique)
        };
        self.lanes.ring.shrink(used, exists);
        self.lanes.keyed.shrink(used, exists);
    }
}
