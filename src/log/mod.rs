//! The log: one order of all records, and what every cursor may still read of it.
//!
//! Pure: no runtime, no I/O, and time comes in as an argument, in milliseconds since any fixed moment.
//!
//! What holds, and where it is kept:
//!
//! 1. A record's number, its entry into every channel of its audience, those channels' heads and the horizon are set
//!    in one critical section, in the order of the numbers ([`sequencer`]). So whoever sees a horizon finds every
//!    record up to it.
//! 2. A read takes the horizon first, then the channels up to it, and only then moves the cursor there ([`reader`]). So
//!    one number is a complete cursor over any set of channels, and replay and live are the same read.
//! 3. A channel's floor is the newest record that it has dropped without a replacement ([`store`]). A gap is owed where
//!    the floor is above the cursor, nowhere else.
//! 4. Where several instances share a log, who comes back from before the floor reads on from
//!    blocks of that ([`backfill`]), for the same numbers in the same order, until memory has the
//!    rest. Only what is not there either is a gap.
//! 5. A listener is woken only after the horizon covers the record, and looks once more after it has registered its
//!    waker ([`cursor_handle`]). So nobody sleeps on a visible record.
//!
//! Locks are taken in this order: a subscriber's reader, the sequencer, a channel's store or its
//! listeners, the heads or a piece that is kept. Readers never take the sequencer's: what they need
//! beside the channels is in [`readable`]. Nothing is woken under a lock.

mod backfill;
mod batch;
mod channel;
mod cursor_handle;
mod entry;
mod epochs;
mod heads;
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
use crate::types::{Address, Audience, ConnectionId, Epoch, GapReason, Position, Topic, each_once};

use backfill::Read;
use channel::Channel;
use epochs::{Break, Life};
use listener::Listener;
use readable::Readable;
use sequencer::Sequencer;
use waking::Deferred;

pub(crate) use backfill::Block;
pub(crate) use batch::Batch;
pub(crate) use cursor_handle::CursorHandle;
pub(crate) use entry::{Appended, Effect, Entry};
pub(crate) use policies::Policies;
pub(crate) use sequencer::{Budgets, Swept, Usage};
pub(crate) use subscribe::{Begin, Changed, Joined, Joining, Since, TooManyTopics, Wanted};
pub(crate) use time::{Millis, millis};
pub(crate) use waking::Asleep;

/// How many channels are entered or left at a time before publishers get their turn.
const AT_ONCE: usize = if cfg!(tower_sse_loom) { 1 } else { 128 };

#[derive(Debug)]
pub(crate) struct Log {
    readable: Arc<Readable>,
    /// The highest number that a client ever came with: a new life begins above it.
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

    /// The newest position that everybody may read up to.
    pub(crate) fn position(&self) -> Position {
        self.at(self.last())
    }

    pub(crate) fn at(&self, sequence: u64) -> Position {
        self.readable.epochs.position(sequence)
    }

    pub(crate) fn epoch(&self) -> Epoch {
        self.readable.epochs.current().epoch
    }

    /// The number of a position, if it is of the current epoch. It may be above the horizon.
    pub(crate) fn number(&self, position: Position) -> Option<u64> {
        self.readable.epochs.number(position)
    }

    /// The newest number that everybody may read up to.
    pub(crate) fn last(&self) -> u64 {
        self.readable.horizon()
    }

    /// Where the numbers of the current life begin.
    pub(crate) fn base(&self) -> u64 {
        self.readable.base()
    }

    /// What was read of an epoch after a place: see [`Block::new`]. `None` if that epoch is over.
    pub(crate) fn block(
        &self,
        epoch: Epoch,
        after: u64,
        known: u64,
        records: impl IntoIterator<Item = (u64, Read)>,
        now: Millis,
    ) -> Option<Block> {
        let life = self.readable.epochs.current();
        (life.epoch == epoch).then(|| Block::new(&life, after, known, records, now))
    }

    /// Gives the entries their numbers, keeps them and wakes who listens. What it left to
    /// [`wake_deferred`](Self::wake_deferred) is said by [`has_deferred`](Self::has_deferred).
    pub(crate) fn append(&self, entries: impl IntoIterator<Item = Entry>, now: Millis) -> SmallVec<[Appended; 1]> {
        let (appended, asleep) = self.append_asleep(entries, now);
        self.wake(asleep, now);
        appended
    }

    /// The same for who holds a lock: it wakes nobody, which is for [`wake`](Self::wake).
    pub(crate) fn append_asleep(
        &self,
        entries: impl IntoIterator<Item = Entry>,
        now: Millis,
    ) -> (SmallVec<[Appended; 1]>, Asleep) {
        let mut asleep = Asleep::default();
        let appended = self.locked(|sequencer| {
            let life = self.readable.epochs.current();
            let mut appended = SmallVec::new();
            for entry in entries {
                let sequence = sequencer.last() + 1 - life.base;
                let receivers = sequencer.append(&life, sequence, entry, now, &mut asleep);
                appended.push(Appended { position: Position::new(life.epoch, sequence), receivers });
            }
            sequencer.sweep_a_little(now);
            appended
        });
        (appended, asleep)
    }

    /// Works under the sequencer's lock. What was dropped there is freed after it.
    fn locked<R>(&self, work: impl FnOnce(&mut Sequencer) -> R) -> R {
        let mut sequencer = self.sequencer.lock();
        let result = work(&mut sequencer);
        let dropped = sequencer.take_dropped();
        drop(sequencer);
        drop(dropped);
        result
    }

    /// Takes in what a log that others number has given a place, in their order. False if that
    /// place is taken or passed.
    pub(crate) fn apply(&self, sequence: u64, entry: Entry, now: Millis) -> bool {
        let mut asleep = Asleep::default();
        // An entry that is not taken in is freed after the lock.
        let rejected = self.locked(|sequencer| {
            let life = self.readable.epochs.current();
            if life.number(sequence) <= sequencer.last() {
                return Some(entry);
            }
            sequencer.append(&life, sequence, entry, now, &mut asleep);
            sequencer.sweep_a_little(now);
            None
        });
        self.wake(asleep, now);
        rejected.is_none()
    }

    /// The record of this place is not to be had. Its audience is told so; everybody, if that is not known.
    pub(crate) fn lose(&self, sequence: u64, audience: Option<&Audience>, now: Millis) {
        self.interrupt(audience, now, |sequencer, life| {
            let at = life.number(sequence);
            (at > sequencer.last()).then_some(Break { at, below: at, reason: GapReason::Lost })
        });
    }

    /// Nothing is to be had any more up to this place but current values, each with its place:
    /// those that are known may be of before. Everybody is told so.
    pub(crate) fn lose_all(&self, sequence: u64, values: Vec<(u64, Entry)>, now: Millis) {
        self.interrupt(None, now, |sequencer, life| {
            let at = life.number(sequence);
            if at <= sequencer.last() {
                return None;
            }
            sequencer.forget_values();
            sequencer.set_values(life, values, now);
            Some(Break { at, below: at, reason: GapReason::Lost })
        });
    }

    /// The log behind this one has begun a new life, of which nothing is to be had up to `gone` but
    /// current values, each with its place. Nothing of the old one is left, and every open stream
    /// is told so.
    pub(crate) fn begin_epoch(&self, epoch: Epoch, gone: u64, values: Vec<(u64, Entry)>, now: Millis) {
        self.interrupt(None, now, |sequencer, _| {
            let base = sequencer.last().max(self.claimed.load(Ordering::Acquire)).saturating_add(1);
            let life = self.readable.epochs.begin(epoch, base);
            sequencer.forget_all();
            sequencer.set_values(&life, values, now);
            // Who comes with a position of the new life misses what it has dropped, no more.
            Some(Break { at: life.number(gone), below: base, reason: GapReason::Epoch })
        });
    }

    /// Everything up to this place was applied.
    pub(crate) fn advance(&self, sequence: u64, now: Millis) {
        let asleep = self.locked(|sequencer| {
            sequencer.advance(self.readable.epochs.current().number(sequence));
            Asleep(sequencer.listened())
        });
        self.wake(asleep, now);
    }

    /// Whether the newest of each key is kept of what is for an address.
    pub(crate) fn keeps_values(&self, address: &Address) -> bool {
        self.readable.policies.keeps_values(address)
    }

    /// Makes a number one that readers have missed.
    fn interrupt(
        &self,
        audience: Option<&Audience>,
        now: Millis,
        break_at: impl FnOnce(&mut Sequencer, &Life) -> Option<Break>,
    ) {
        let mut asleep = Asleep::default();
        self.locked(|sequencer| {
            if let Some(found) = break_at(sequencer, &self.readable.epochs.current()) {
                sequencer.interrupt(found, audience, now, &mut asleep);
            }
        });
        self.wake(asleep, now);
    }

    pub(crate) fn wake(&self, asleep: Asleep, now: Millis) {
        self.deferred.mark(asleep.0, now);
    }

    /// Subscribes to these addresses and sets the cursor. Returns the horizon at that moment: the
    /// stream has caught up when it has read to there. Nothing happens if it is closed.
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
        let (entered, horizon) = self.enter(listener, wanted.iter().map(|wanted| &wanted.address), now);
        reader.reserve(entered.len());
        for ((channel, slot), wanted) in entered.into_iter().zip(&wanted) {
            reader.enter(channel, slot, wanted.after);
        }
        if let Begin::After(cursor) = begin {
            self.claimed.fetch_max(cursor, Ordering::AcqRel);
        }
        reader.begin(&self.readable, begin, horizon);
        horizon
    }

    /// Makes it listen to these addresses, and says where the log was then. Publishers get their
    /// turn in between, so that a subscription to thousands of topics does not stop them.
    fn enter<'a, L: Listener + 'static>(
        &self,
        listener: &Arc<L>,
        addresses: impl IntoIterator<Item = &'a Address>,
        now: Millis,
    ) -> (Entered, u64) {
        let mut addresses = addresses.into_iter().peekable();
        let mut entered = Entered::with_capacity(addresses.size_hint().0);
        let mut horizon = self.last();
        while addresses.peek().is_some() {
            self.locked(|sequencer| {
                sequencer.sweep_a_little(now);
                let some = addresses.by_ref().take(AT_ONCE);
                entered.extend(some.map(|address| sequencer.enter(address, Arc::clone(listener) as _)));
                horizon = self.last();
            });
        }
        (entered, horizon)
    }

    /// The reverse.
    fn exit(&self, entered: &[(Arc<Channel>, u32)], now: Millis) {
        for some in entered.chunks(AT_ONCE) {
            self.locked(|sequencer| {
                some.iter().for_each(|(channel, slot)| sequencer.exit(channel, *slot, now));
                sequencer.sweep_a_little(now);
            });
        }
    }

    /// Subscribes to one more address; wake the subscriber then. If it is subscribed to already, or not open, nothing
    /// changes, and false is returned. At most `max_topics` topics.
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
        let (entered, horizon) = self.enter(listener, [&joined.address], now);
        for (channel, slot) in entered {
            match joined.at {
                None => reader.join(channel, slot, joined.since, 0, horizon),
                Some(at) => reader.join_as_of(channel, slot, joined.since, at),
            }
        }
        Ok(true)
    }

    /// Leaves topics, then joins others, in one step: all of it, or nothing if there would be more
    /// than `max_topics` topics or `confirm` objects. A topic that is both left and joined begins
    /// anew. Wake the subscriber if anything has changed.
    ///
    /// `confirm` is asked when the subscriber listens to all of them, and before anything is left.
    /// So what takes a topic away either finds this subscriber among its listeners, or was noted
    /// before `confirm` looks.
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
        let (entered, horizon) = self.enter(listener, &addresses, now);
        if let Err(error) = confirm() {
            self.exit(&entered, now);
            return Err(error);
        }
        plan.new.iter().chain(&plan.again).for_each(|joining| self.claim(joining.since));
        let is_left = |address: &Address| address.topic().is_some_and(|topic| plan.leaving.contains(topic));
        let left = reader.leave(is_left, horizon);
        for ((channel, slot), joining) in entered.into_iter().zip(&plan.new) {
            reader.join(channel, slot, joining.since, joining.after, horizon);
        }
        reader.begin_anew(&plan.again, horizon);
        self.exit(&left, now);
        Ok(Changed {
            left: left.iter().filter_map(|(channel, _)| channel.address.topic().cloned()).collect(),
            joined: plan.new.iter().map(|joining| joining.topic.clone()).collect(),
            again: !plan.again.is_empty(),
            topics: reader.topics().cloned().collect(),
        })
    }

    /// A client has come with this number.
    fn claim(&self, since: Since) {
        if let Since::After(cursor) = since {
            self.claimed.fetch_max(cursor, Ordering::AcqRel);
        }
    }

    /// Ends the subscription to one address: nothing more of it is read, not even what waits. Returns whether there was
    /// one.
    pub(crate) fn leave(&self, subscriber: &CursorHandle, address: &Address, now: Millis) -> bool {
        let mut reader = subscriber.reader.lock();
        let left = reader.leave(|other| other == address, self.last());
        self.exit(&left, now);
        !left.is_empty()
    }

    /// Ends all subscriptions. A second call changes nothing. Returns the topics that it had.
    pub(crate) fn close(&self, subscriber: &CursorHandle, now: Millis) -> Vec<Topic> {
        let mut reader = subscriber.reader.lock();
        let topics = reader.topics().cloned().collect();
        let memberships = reader.leave_all();
        self.exit(&memberships, now);
        topics
    }

    /// What `subscriber` may read now, within bounds. The cursor moves with it.
    pub(crate) fn read(&self, subscriber: &CursorHandle, batch: &mut Batch) {
        subscriber.reader.lock().read(&self.readable, subscriber.id, batch);
    }

    /// The cursor as an id that may be written now, and the topics if they have changed since this was last asked. None
    /// while something from before the cursor is still to be replayed.
    pub(crate) fn settled(&self, subscriber: &CursorHandle) -> Option<(Position, Option<Vec<Topic>>)> {
        let mut reader = subscriber.reader.lock();
        if reader.is_replaying() {
            return None;
        }
        let changed = reader.take_changed().then(|| reader.topics().cloned().collect());
        Some((self.at(reader.cursor()), changed))
    }

    /// The topics in force.
    pub(crate) fn topics(&self, subscriber: &CursorHandle) -> Vec<Topic> {
        subscriber.reader.lock().topics().cloned().collect()
    }

    /// Who listens to an address at this moment.
    pub(crate) fn listeners(&self, address: &Address) -> Vec<ConnectionId> {
        let channel = self.sequencer.lock().find_channel(address);
        channel.map_or_else(Vec::new, |channel| channel.listeners())
    }

    /// How many listen to an address at this moment.
    pub(crate) fn listening(&self, address: &Address) -> usize {
        self.sequencer.lock().find_channel(address).map_or(0, |channel| channel.listening())
    }

    /// Everything up to here was read; [`read`](Self::read) has returned it.
    pub(crate) fn cursor(&self, subscriber: &CursorHandle) -> u64 {
        subscriber.reader.lock().cursor()
    }

    /// How many records behind the horizon the subscriber's cursor is, counting everybody's.
    pub(crate) fn lag(&self, subscriber: &CursorHandle) -> u64 {
        self.last().saturating_sub(subscriber.reader.lock().cursor())
    }

    /// Drops what is past its age, some of it if there is much. Says whether there is more, or may be later.
    pub(crate) fn sweep(&self, now: Millis) -> Swept {
        self.locked(|sequencer| sequencer.sweep(now))
    }

    /// Whether listeners wait to be woken by [`wake_deferred`](Self::wake_deferred).
    pub(crate) fn has_deferred(&self) -> bool {
        self.deferred.is_waiting()
    }

    /// Wakes some listeners of the channels that had too many to wake at once. Returns false when none is left.
    pub(crate) fn wake_deferred(&self, now: Millis) -> bool {
        self.deferred.wake_batch(now)
    }

    pub(crate) fn usage(&self) -> Usage {
        self.sequencer.lock().usage()
    }
}

/// Channels, and the slots by which a subscriber listens there.
type Entered = SmallVec<[(Arc<Channel>, u32); 4]>;
