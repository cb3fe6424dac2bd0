//! The log: all records in one order, and the reads of every cursor.
//!
//! The log is pure. It uses no runtime and no I/O. Callers pass the time as an argument, in
//! milliseconds since any fixed moment.
//!
//! Records are numbered. Each address in use (a topic, a user, a connection, everyone) has a
//! [`channel`], which stores its records and lists its listeners. The log has one
//! `visible_through`: readers may read records up to and including this number. Each channel has a
//! `trimmed_through`: the number of the newest record that the channel has dropped without a
//! replacement.
//!
//! Invariants, and the file that implements each of them:
//!
//! 1. One critical section numbers a record, stores it in the channels of its audience, and raises
//!    the latest number of these channels and then `visible_through`, in the order of the numbers
//!    ([`sequencer`]). So a reader that has loaded `visible_through` finds every retained record up
//!    to this number.
//! 2. A read loads `visible_through` first, then reads the channels, and only then moves the
//!    cursor, at most to the number that it has loaded ([`reader`]). So one number is a complete
//!    cursor over any set of channels, and replay and live delivery are the same read.
//! 3. A read reports a gap for a channel if the channel's `trimmed_through` is above the number
//!    after which the connection has to read the channel ([`store`]), or if the requested position
//!    cannot be used.
//! 4. Where several instances share a log, a client that reconnects or joins a topic with a number
//!    below `trimmed_through` reads blocks of the shared log ([`backfill`]), until memory has the
//!    rest. The blocks have the same numbers in the same order. Only records that the block lacks
//!    too are a gap.
//! 5. A listener is woken only after `visible_through` covers the record. After a listener has
//!    registered its waker, and before it sleeps, it reads once more or checks that it was not
//!    woken ([`cursor_handle`]). So no listener sleeps on a visible record.
//! 6. On a shared log, a channel without listeners keeps only the numbers, times and sizes of its
//!    records ([`dormancy`], [`store`]). A read stops before the first outline of its channels,
//!    and continues with a block of the shared log that has this record ([`reader`]). So a stream
//!    reads the same records and gaps as if the channel had all of its records, as long as the
//!    shared log has them.
//!
//! Locks are taken in this order: a subscriber's reader; the sequencer; a channel's store or its
//! listeners; the table of latest numbers, the epochs or a shared piece. Reads never take the
//! sequencer's lock, because [`readable`] has everything that they need besides the channels. The
//! log calls no waker under one of these locks.

mod backfill;
mod batch;
mod channel;
mod cursor_handle;
mod dormancy;
mod entry;
mod epochs;
mod latest;
mod listener;
mod marks;
#[cfg(test)]
mod models;
mod pick;
mod policies;
mod readable;
mod reader;
mod sequencer;
mod shared_chunks;
mod store;
mod subscribe;
mod time;
mod waking;

use std::sync::Arc;

use smallvec::SmallVec;

use crate::sync::{AtomicU64, Mutex, Ordering};
use crate::types::{Address, AddressRef, Audience, ConnectionId, Epoch, GapReason, Position, Topic, each_once};

use backfill::Read;
use channel::Channel;
use epochs::{Break, LogEpoch};
use readable::Readable;
use sequencer::Sequencer;
use waking::Deferred;

pub(crate) use backfill::Block;
pub(crate) use batch::Batch;
pub(crate) use cursor_handle::CursorHandle;
pub(crate) use entry::{Appended, Effect, Entry, Undecoded};
pub(crate) use listener::Listener;
pub(crate) use policies::Policies;
pub(crate) use sequencer::{Budgets, Swept, Usage};
pub(crate) use subscribe::{Begin, Changed, Joined, Joining, Since, TooManyTopics, Wanted};
pub(crate) use time::{Millis, millis};
pub(crate) use waking::PendingWakes;

/// The maximum number of channels to which a listener is added, or from which it is removed, under
/// one hold of the sequencer's lock. Publishers get the lock in between.
const CHANNELS_PER_LOCK: usize = if cfg!(tower_sse_loom) { 1 } else { 128 };

#[derive(Debug)]
pub(crate) struct Log {
    readable: Arc<Readable>,
    /// The highest number from which a stream was resumed or a topic was joined. A new epoch begins
    /// above this number, so that no record of the new epoch has a number that a client has already
    /// claimed to have read.
    claimed: AtomicU64,
    sequencer: Mutex<Sequencer>,
    deferred: Deferred,
}

impl Log {
    pub(crate) fn new(epoch: Epoch, policies: Policies, budgets: Budgets) -> Self {
        let readable = Arc::new(Readable::new(epoch, policies));
        Self {
            sequencer: Mutex::new(Sequencer::new(Arc::clone(&readable), budgets)),
            readable,
            claimed: AtomicU64::new(0),
            deferred: Deferred::default(),
        }
    }

    /// Returns the newest position that readers may read.
    pub(crate) fn position(&self) -> Position {
        self.at(self.last())
    }

    pub(crate) fn at(&self, sequence: u64) -> Position {
        self.readable.epochs.position(sequence)
    }

    pub(crate) fn epoch(&self) -> Epoch {
        self.readable.epochs.current().id
    }

    /// Returns the number of a position of the current epoch, or `None` for another epoch. The
    /// number may be above `visible_through`.
    pub(crate) fn number(&self, position: Position) -> Option<u64> {
        self.readable.epochs.number(position)
    }

    /// Returns the newest number that readers may read (`visible_through`).
    pub(crate) fn last(&self) -> u64 {
        self.readable.visible_through()
    }

    /// Returns the number at which the current epoch begins.
    pub(crate) fn base(&self) -> u64 {
        self.readable.base()
    }

    /// Builds a block from records of the shared log: see [`Block::new`]. Returns `None` if `epoch`
    /// is no longer the current epoch.
    pub(crate) fn block(
        &self,
        epoch: Epoch,
        after: u64,
        known: u64,
        records: impl IntoIterator<Item = (u64, Read)>,
        now: Millis,
    ) -> Option<Block> {
        let current = self.readable.epochs.current();
        (current.id == epoch).then(|| Block::new(&current, after, known, records, now))
    }

    /// Notes that the first record that the shared log still has is `first`. So new readers do not
    /// ask for earlier records. Does nothing if the log is in another epoch.
    pub(crate) fn note_first(&self, epoch: Epoch, first: u64) {
        let current = self.readable.epochs.current();
        if current.id == epoch {
            // At most the newest number, because the next epoch may begin directly after it.
            let through = current.number(first.saturating_sub(1)).min(self.last());
            self.readable.note_shared_trimmed(through);
        }
    }

    /// Numbers and stores the entries. Wakes their listeners, or queues them if they are many. If
    /// [`has_deferred`](Self::has_deferred) returns true afterwards, the caller ensures that
    /// [`wake_deferred`](Self::wake_deferred) is called.
    pub(crate) fn append(&self, entries: impl IntoIterator<Item = Entry>, now: Millis) -> SmallVec<[Appended; 1]> {
        let (appended, asleep) = self.append_asleep(entries, now);
        self.wake(asleep, now);
        appended
    }

    /// Appends like [`append`](Self::append) without waking listeners, for a caller that holds a
    /// lock. The caller passes the result to [`wake`](Self::wake) after it has released the lock.
    pub(crate) fn append_asleep(
        &self,
        entries: impl IntoIterator<Item = Entry>,
        now: Millis,
    ) -> (SmallVec<[Appended; 1]>, PendingWakes) {
        let mut asleep = PendingWakes::default();
        let appended = self.locked(|sequencer| {
            let epoch = self.readable.epochs.current();
            let mut appended = SmallVec::new();
            for entry in entries {
                let sequence = sequencer.last() + 1 - epoch.base;
                let receivers = sequencer.append(&epoch, sequence, entry, now, &mut asleep);
                appended.push(Appended { position: Position::new(epoch.id, sequence), receivers });
            }
            sequencer.sweep_a_little(now);
            appended
        });
        (appended, asleep)
    }

    /// Runs `work` under the sequencer's lock. Records that `work` drops are freed after the lock
    /// is released, so that publishers do not wait for the deallocation.
    fn locked<R>(&self, work: impl FnOnce(&mut Sequencer) -> R) -> R {
        let mut sequencer = self.sequencer.lock();
        let result = work(&mut sequencer);
        let dropped = sequencer.take_dropped();
        drop(sequencer);
        drop(dropped);
        result
    }

    /// Stores an entry that the shared log has numbered. The caller applies entries in the order of
    /// their numbers. Returns false, and stores nothing, if the number is not above the newest
    /// number of the log.
    pub(crate) fn apply(&self, sequence: u64, entry: Entry, now: Millis) -> bool {
        let mut asleep = PendingWakes::default();
        // The closure returns a rejected entry, so that it is freed after the lock is released.
        let rejected = self.locked(|sequencer| {
            let epoch = self.readable.epochs.current();
            if epoch.number(sequence) <= sequencer.last() {
                return Some(entry);
            }
            sequencer.append(&epoch, sequence, entry, now, &mut asleep);
            sequencer.sweep_a_little(now);
            None
        });
        self.wake(asleep, now);
        rejected.is_none()
    }

    /// Stores only the number, the time and the size of a record that the shared log has numbered,
    /// if no channel of its audience has had a listener within the grace period. Returns false, and
    /// changes nothing, if the record itself is needed. The caller then decodes the record and
    /// calls [`apply`](Self::apply). Returns true, and changes nothing, if the number is not above
    /// the newest number of the log.
    pub(crate) fn outline(&self, sequence: u64, audience: &Audience, undecoded: Undecoded, now: Millis) -> bool {
        self.outline_with(sequence, now, |sequencer, number| sequencer.append_outline(number, audience, undecoded, now))
    }

    /// As [`outline`](Self::outline), for a record whose audience is one address without excluded
    /// connections. Returns false also if the address has no channel yet.
    pub(crate) fn outline_for(&self, sequence: u64, to: AddressRef<'_>, undecoded: Undecoded, now: Millis) -> bool {
        self.outline_with(sequence, now, |sequencer, number| sequencer.append_outline_for(number, to, undecoded, now))
    }

    fn outline_with(&self, sequence: u64, now: Millis, append: impl FnOnce(&mut Sequencer, u64) -> bool) -> bool {
        self.locked(|sequencer| {
            let number = self.readable.base().saturating_add(sequence);
            if number > sequencer.last() && !append(sequencer, number) {
                return false;
            }
            sequencer.sweep_a_little(now);
            true
        })
    }

    /// Marks the record with this number as lost, unless the log already covers the number. The
    /// readers of `audience` report a gap, or all readers if `audience` is `None`.
    pub(crate) fn mark_lost(&self, sequence: u64, audience: Option<&Audience>, now: Millis) {
        self.interrupt(audience, now, |sequencer, epoch| {
            let at = epoch.number(sequence);
            (at > sequencer.last()).then_some(Break { at, below: at, reason: GapReason::Lost })
        });
    }

    /// Marks all records after the newest number of the log, up to and including this number, as
    /// lost. Replaces the current values by `values`, each with its number, because the lost
    /// records may have changed them. All readers report a gap. Does nothing if the log already
    /// covers this number.
    pub(crate) fn mark_all_lost(&self, sequence: u64, values: Vec<(u64, Entry)>, now: Millis) {
        self.interrupt(None, now, |sequencer, epoch| {
            let at = epoch.number(sequence);
            if at <= sequencer.last() {
                return None;
            }
            sequencer.forget_values();
            sequencer.set_values(epoch, values, now);
            Some(Break { at, below: at, reason: GapReason::Lost })
        });
    }

    /// Begins a new epoch, because the shared log has begun anew. Drops all records and current
    /// values of the old epoch. The records of the new epoch up to and including `trimmed_through`
    /// are unavailable, except the current `values`, each with its number. Every open stream
    /// reports a gap.
    pub(crate) fn begin_epoch(&self, epoch: Epoch, trimmed_through: u64, values: Vec<(u64, Entry)>, now: Millis) {
        self.interrupt(None, now, |sequencer, _| {
            let base = sequencer.last().max(self.claimed.load(Ordering::Acquire)).saturating_add(1);
            let epoch = self.readable.epochs.begin(epoch, base);
            sequencer.forget_all();
            sequencer.set_values(&epoch, values, now);
            // The gap has the reason `epoch` only for cursors below the base of the new epoch. A
            // client with a cursor in the new epoch has missed only records that this epoch has
            // dropped.
            Some(Break { at: epoch.number(trimmed_through), below: base, reason: GapReason::Epoch })
        });
    }

    /// Raises `visible_through` to this number of the shared log, and wakes all listeners. The
    /// caller has applied all retained records up to and including this number.
    pub(crate) fn advance(&self, sequence: u64, now: Millis) {
        let asleep = self.locked(|sequencer| {
            sequencer.advance(self.readable.epochs.current().number(sequence));
            PendingWakes(sequencer.listened())
        });
        self.wake(asleep, now);
    }

    /// Returns whether the channel of this address keeps the newest record of each key.
    pub(crate) fn keeps_values(&self, address: &Address) -> bool {
        self.readable.policies.keeps_values(address)
    }

    /// Records the break that `break_at` returns, if any, under the sequencer's lock. Wakes the
    /// readers that have to report the gap after the lock is released.
    fn interrupt(
        &self,
        audience: Option<&Audience>,
        now: Millis,
        break_at: impl FnOnce(&mut Sequencer, &LogEpoch) -> Option<Break>,
    ) {
        let mut asleep = PendingWakes::default();
        self.locked(|sequencer| {
            if let Some(found) = break_at(sequencer, &self.readable.epochs.current()) {
                sequencer.interrupt(found, audience, now, &mut asleep);
            }
        });
        self.wake(asleep, now);
    }

    pub(crate) fn wake(&self, asleep: PendingWakes, now: Millis) {
        self.deferred.mark(asleep.0, now);
    }

    /// Subscribes to these addresses and sets the cursor. Returns `visible_through` after the
    /// subscription: the stream has caught up when it has read up to this number. Changes nothing
    /// if the subscriber is closed.
    pub(crate) fn open<L: Listener + AsRef<CursorHandle> + 'static>(
        &self,
        listener: &Arc<L>,
        wanted: impl IntoIterator<Item = impl Into<Wanted>>,
        begin: Begin,
        now: Millis,
    ) -> u64 {
        let mut wanted: Vec<Wanted> = wanted.into_iter().map(Into::into).collect();
        each_once(&mut wanted, |wanted| &wanted.address);
        let mut reader = L::as_ref(listener).reader.lock();
        if reader.is_closed() {
            return self.last();
        }
        let (entered, visible_through) = self.enter(listener, wanted.iter().map(|wanted| &wanted.address), now);
        reader.reserve(entered.len());
        for ((channel, slot), wanted) in entered.into_iter().zip(&wanted) {
            reader.enter(channel, slot, wanted.after);
        }
        if let Begin::After(cursor) = begin {
            self.claimed.fetch_max(cursor, Ordering::AcqRel);
        }
        reader.begin(&self.readable, begin, visible_through);
        visible_through
    }

    /// Returns whether the stream has to report a gap for records from before its start, as far as
    /// this instance knows. If `can_backfill` is true, the caller can provide blocks of records
    /// that the channels have dropped.
    pub(crate) fn begins_with_gap(&self, subscriber: &CursorHandle, can_backfill: bool) -> bool {
        subscriber.reader.lock().begins_with_gap(&self.readable, can_backfill)
    }

    /// Adds the listener to the channels of these addresses. Returns the channels, and
    /// `visible_through` under the last hold of the lock. Releases the sequencer's lock after every
    /// [`CHANNELS_PER_LOCK`] channels, so that a subscription to thousands of topics does not block
    /// publishers.
    fn enter<'a, L: Listener + 'static>(
        &self,
        listener: &Arc<L>,
        addresses: impl IntoIterator<Item = &'a Address>,
        now: Millis,
    ) -> (Entered, u64) {
        let mut addresses = addresses.into_iter().peekable();
        let mut entered = Entered::with_capacity(addresses.size_hint().0);
        let mut visible_through = self.last();
        while addresses.peek().is_some() {
            self.locked(|sequencer| {
                sequencer.sweep_a_little(now);
                let some = addresses.by_ref().take(CHANNELS_PER_LOCK);
                entered.extend(some.map(|address| sequencer.enter(address, Arc::clone(listener) as _)));
                visible_through = self.last();
            });
        }
        (entered, visible_through)
    }

    /// Removes listeners, given as channel and slot. Releases the sequencer's lock after every
    /// [`CHANNELS_PER_LOCK`] channels.
    fn exit(&self, entered: &[(Arc<Channel>, u32)], now: Millis) {
        for some in entered.chunks(CHANNELS_PER_LOCK) {
            self.locked(|sequencer| {
                some.iter().for_each(|(channel, slot)| sequencer.exit(channel, *slot, now));
                sequencer.sweep_a_little(now);
            });
        }
    }

    /// Subscribes to one more address. Returns false, and changes nothing, if the subscriber is
    /// already subscribed to it or is not open. If this function returns true, the subscriber may
    /// have records to read. The caller then wakes the subscriber if it may be asleep.
    ///
    /// # Errors
    ///
    /// Returns [`TooManyTopics`] if the subscriber has at least `max_topics` topics and the address
    /// is another topic.
    pub(crate) fn join<L: Listener + AsRef<CursorHandle> + 'static>(
        &self,
        listener: &Arc<L>,
        joined: &Joined,
        max_topics: usize,
        now: Millis,
    ) -> Result<bool, TooManyTopics> {
        let mut reader = L::as_ref(listener).reader.lock();
        if !reader.admits(&joined.address, max_topics)? {
            return Ok(false);
        }
        self.claim(joined.since);
        let (entered, visible_through) = self.enter(listener, [&joined.address], now);
        for (channel, slot) in entered {
            match joined.at {
                None => reader.join(channel, slot, joined.since, 0, visible_through),
                Some(at) => reader.join_as_of(channel, slot, joined.since, at),
            }
        }
        Ok(true)
    }

    /// Leaves topics and joins others in one step. A topic in both lists is joined anew. Returns an
    /// empty result if the subscriber is not open. The caller wakes the subscriber if
    /// [`Changed::is_any`] returns true.
    ///
    /// Calls `confirm` after the subscriber has been added to the listeners of all joined topics,
    /// and before it leaves any topic. So a command that takes a topic away either finds this
    /// subscriber among the topic's listeners, or was recorded before `confirm` checks for such
    /// commands.
    ///
    /// # Errors
    ///
    /// Returns an error, and changes nothing, if the subscriber would have more than `max_topics`
    /// topics, or if `confirm` returns an error.
    pub(crate) fn change<L: Listener + AsRef<CursorHandle> + 'static, E: From<TooManyTopics>>(
        &self,
        listener: &Arc<L>,
        leave: &[Topic],
        join: &[Joining],
        max_topics: usize,
        now: Millis,
        confirm: impl FnOnce() -> Result<(), E>,
    ) -> Result<Changed, E> {
        let mut reader = L::as_ref(listener).reader.lock();
        if !reader.is_open() {
            return Ok(Changed::default());
        }
        let plan = reader.plan(leave, join);
        if plan.count > max_topics {
            return Err(TooManyTopics.into());
        }
        let addresses: Vec<Address> = plan.new.iter().map(|joining| Address::Topic(joining.topic.clone())).collect();
        let (entered, visible_through) = self.enter(listener, &addresses, now);
        if let Err(error) = confirm() {
            self.exit(&entered, now);
            return Err(error);
        }
        plan.new.iter().chain(&plan.again).for_each(|joining| self.claim(joining.since));
        let is_left = |address: &Address| address.topic().is_some_and(|topic| plan.leaving.contains(topic));
        let left = reader.leave(is_left, visible_through);
        for ((channel, slot), joining) in entered.into_iter().zip(&plan.new) {
            reader.join(channel, slot, joining.since, joining.after, visible_through);
        }
        reader.rejoin(&plan.again, visible_through);
        self.exit(&left, now);
        Ok(Changed {
            left: left.iter().filter_map(|(channel, _)| channel.address.topic().cloned()).collect(),
            joined: plan.new.iter().map(|joining| joining.topic.clone()).collect(),
            again: !plan.again.is_empty(),
            topics: reader.topics().cloned().collect(),
        })
    }

    /// Raises `claimed` to the number after which a topic is joined.
    fn claim(&self, since: Since) {
        if let Since::After(cursor) = since {
            self.claimed.fetch_max(cursor, Ordering::AcqRel);
        }
    }

    /// Ends the subscription to one address. The subscriber reads no further record through this
    /// address, not even records that are already due. Returns whether the subscriber was
    /// subscribed to the address.
    pub(crate) fn leave(&self, subscriber: &CursorHandle, address: &Address, now: Millis) -> bool {
        let mut reader = subscriber.reader.lock();
        let left = reader.leave(|other| other == address, self.last());
        self.exit(&left, now);
        !left.is_empty()
    }

    /// Ends all subscriptions, and returns the topics that the subscriber had. A second call
    /// changes nothing.
    pub(crate) fn close(&self, subscriber: &CursorHandle, now: Millis) -> Vec<Topic> {
        let mut reader = subscriber.reader.lock();
        let topics = reader.topics().cloned().collect();
        let memberships = reader.leave_all();
        self.exit(&memberships, now);
        topics
    }

    /// Reads the records that are due for `subscriber` into `batch`, within the bounds of one
    /// batch. Moves the cursor, except during a replay.
    pub(crate) fn read(&self, subscriber: &CursorHandle, batch: &mut Batch) {
        subscriber.reader.lock().read(&self.readable, subscriber.id, batch);
    }

    /// Returns the cursor as a position whose id may be sent now, and the topics if they have
    /// changed and the change was not returned before. Returns `None` while records up to the
    /// cursor are still to be replayed.
    pub(crate) fn settled(&self, subscriber: &CursorHandle) -> Option<(Position, Option<Vec<Topic>>)> {
        let mut reader = subscriber.reader.lock();
        if reader.is_replaying() {
            return None;
        }
        let changed = reader.take_changed().then(|| reader.topics().cloned().collect());
        Some((self.at(reader.cursor()), changed))
    }

    /// Returns the current topics of the subscriber.
    pub(crate) fn topics(&self, subscriber: &CursorHandle) -> Vec<Topic> {
        subscriber.reader.lock().topics().cloned().collect()
    }

    /// Returns the connections that listen to an address now.
    pub(crate) fn listeners(&self, address: &Address) -> Vec<ConnectionId> {
        let channel = self.sequencer.lock().find_channel(address);
        channel.map_or_else(Vec::new, |channel| channel.listeners())
    }

    /// Returns the number of connections that listen to an address now.
    pub(crate) fn listening(&self, address: &Address) -> usize {
        self.sequencer.lock().find_channel(address).map_or(0, |channel| channel.listening())
    }

    /// Returns the cursor. [`read`](Self::read) has returned every due record up to and including
    /// this number, except those that are still to be replayed.
    pub(crate) fn cursor(&self, subscriber: &CursorHandle) -> u64 {
        subscriber.reader.lock().cursor()
    }

    /// Returns the difference between `visible_through` and the subscriber's cursor, or zero if the
    /// cursor is higher.
    pub(crate) fn lag(&self, subscriber: &CursorHandle) -> u64 {
        self.last().saturating_sub(subscriber.reader.lock().cursor())
    }

    /// Drops records that are past their age, and removes channels that have been idle for the
    /// grace period, up to a fixed number of both. Returns whether more are due, now or later.
    pub(crate) fn sweep(&self, now: Millis) -> Swept {
        self.locked(|sequencer| sequencer.sweep(now))
    }

    /// Returns whether [`wake_deferred`](Self::wake_deferred) has listeners to wake.
    pub(crate) fn has_deferred(&self) -> bool {
        self.deferred.is_waiting()
    }

    /// Wakes one batch of the listeners that publishers have left in the queue. Returns whether the
    /// queue has more.
    pub(crate) fn wake_deferred(&self, now: Millis) -> bool {
        self.deferred.wake_batch(now)
    }

    /// Returns the address of each channel, with the number of its listeners and whether it retains
    /// records or current values.
    #[cfg(feature = "test-kit")]
    pub(crate) fn channels(&self) -> Vec<(Address, usize, bool)> {
        let sequencer = self.sequencer.lock();
        let retains = |channel: &Channel| !channel.store.lock().is_empty();
        sequencer.all().map(|channel| (channel.address.clone(), channel.listening(), retains(channel))).collect()
    }

    pub(crate) fn usage(&self) -> Usage {
        self.sequencer.lock().usage()
    }
}

/// Channels, each with the subscriber's slot among its listeners.
type Entered = SmallVec<[(Arc<Channel>, u32); 4]>;
