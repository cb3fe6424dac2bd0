//! A cursor over some channels, and the one way in which it reads.

use std::collections::hash_map::HashMap;
use std::collections::hash_set::HashSet;
use std::sync::Arc;

use smallvec::SmallVec;

use super::backfill::Block;
use super::batch::{Batch, Piece};
use super::channel::Channel;
use super::pick::Pick;
use super::readable::Readable;
use super::store::Record;
use super::subscribe::{Begin, Joining, Since, TooManyTopics};
use crate::types::{Address, ConnectionId, GapReason, LagPolicy, Start, Topic};

/// So many channels are looked at one by one; more, all in one dense table.
const A_FEW: usize = if cfg!(tower_sse_loom) { 1 } else { 8 };

/// A number, or none, in 8 bytes. `Option<u64>` takes 16, and the two of a [`Reader`] would make each idle connection
/// 16 of 400 bytes larger.
#[derive(Clone, Copy, Debug)]
struct Number(u64);

impl Number {
    fn some(number: u64) -> Self {
        Self(number)
    }

    fn get(self) -> Option<u64> {
        Some(self.0).filter(|&number| number != u64::MAX)
    }
}

impl Default for Number {
    fn default() -> Self {
        Self(u64::MAX)
    }
}

/// Where a connection is. Everything up to `cursor` has been read, on all its channels, but for what is to be replayed.
#[derive(Debug, Default)]
pub(super) struct Reader {
    cursor: u64,
    memberships: Vec<Membership>,
    /// Some membership has a `replay`. Until all are done the cursor does not move and no id may be written: what comes
    /// back with a later id would never hear of the rest.
    replaying: bool,
    /// The topics have changed since the stream was last told which they are; it is told when the cursor has come to
    /// where the log was then, so that the id stands for the change too.
    changed_at: Number,
    stage: Stage,
    /// The cursor that it came back with.
    resumed_at: Number,
    /// It has not been where the log is since it came back.
    is_returning: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stage {
    /// It has no cursor, so nothing can be joined yet.
    #[default]
    New,
    Open,
    Closed,
}

#[derive(Debug)]
struct Membership {
    channel: Arc<Channel>,
    slot: u32,
    /// Records up to here are none of its business.
    since: u64,
    /// It has been told of the gap up to here.
    told: u64,
    replay: Option<Box<Replay>>,
}

/// What of a channel is older than the cursor and still due: current values above the one number, records above the
/// other, both up to the cursor.
#[derive(Clone, Copy, Debug)]
struct Replay {
    values_after: u64,
    records_after: u64,
    /// The gap that is to be told of before.
    owes: Option<GapReason>,
}

impl Replay {
    fn values_after(after: u64) -> Self {
        Self { values_after: after, records_after: u64::MAX, owes: None }
    }
}

/// What a change of topics comes to, each topic once.
pub(super) struct Plan<'a> {
    pub(super) new: Vec<&'a Joining>,
    /// Those that are both left and joined.
    pub(super) again: Vec<&'a Joining>,
    pub(super) leaving: HashSet<&'a Topic>,
    /// How many there are afterwards.
    pub(super) count: usize,
}

impl Membership {
    /// What is due of this channel, if it is all that is due, nothing of it is missing, and it is
    /// the same for everybody.
    fn piece(&self, log: &Readable, cursor: u64, upto: u64) -> Option<Piece> {
        let after = cursor.max(self.since);
        let store = self.channel.store.lock();
        if store.floor() > after.max(self.told) || store.has_values() {
            return None;
        }
        log.pieces.piece(&self.channel, &store, after, upto)
    }
}

impl Reader {
    pub(super) fn cursor(&self) -> u64 {
        self.cursor
    }

    pub(super) fn is_open(&self) -> bool {
        self.stage == Stage::Open
    }

    pub(super) fn is_closed(&self) -> bool {
        self.stage == Stage::Closed
    }

    pub(super) fn is_replaying(&self) -> bool {
        self.replaying
    }

    pub(super) fn listens_to(&self, address: &Address) -> bool {
        self.memberships.iter().any(|membership| membership.channel.address == *address)
    }

    pub(super) fn topics(&self) -> impl Iterator<Item = &Topic> {
        self.memberships.iter().filter_map(|membership| membership.channel.address.topic())
    }

    /// Whether the topics have changed since this was last asked.
    pub(super) fn take_changed(&mut self) -> bool {
        let is_due = self.has_changed_by(self.cursor);
        if is_due {
            self.changed_at = Number::default();
        }
        is_due
    }

    fn has_changed_by(&self, cursor: u64) -> bool {
        self.changed_at.get().is_some_and(|at| at <= cursor)
    }

    #[cfg(all(test, not(tower_sse_loom)))]
    pub(super) fn told(&self, address: &Address) -> u64 {
        self.memberships.iter().find(|membership| membership.channel.address == *address).map_or(0, |m| m.told)
    }

    /// So many channels are going to be entered.
    pub(super) fn reserve(&mut self, count: usize) {
        self.memberships.reserve_exact(count);
    }

    /// One of the channels that a connection has from the start. It listens there by this slot.
    pub(super) fn enter(&mut self, channel: Arc<Channel>, slot: u32, since: u64) {
        self.memberships.push(Membership { channel, slot, since, told: 0, replay: None });
    }

    /// Whether one more address may be joined: not if it is there already, or the reader is not open.
    pub(super) fn admits(&self, address: &Address, max_topics: usize) -> Result<bool, TooManyTopics> {
        if !self.is_open() || self.listens_to(address) {
            return Ok(false);
        }
        if address.topic().is_some() && self.topics().count() >= max_topics { Err(TooManyTopics) } else { Ok(true) }
    }

    /// One more channel, of which it may not read what was published up to `after`; `horizon` is
    /// where the log was when it was entered.
    pub(super) fn join(&mut self, channel: Arc<Channel>, slot: u32, since: Since, after: u64, horizon: u64) {
        let (at, since, replay, told) = match since {
            Since::After(since) => {
                let since = since.max(after);
                let replay = Replay { values_after: since, records_after: since, owes: None };
                // Another instance may be a moment ahead, and so may what is asked for.
                (horizon.max(since), since, (since < self.cursor).then_some(replay), 0)
            }
            Since::Now | Since::Refused(_) => {
                let owes = if let Since::Refused(reason) = since { Some(reason) } else { None };
                let store = channel.store.lock();
                // What came after it had entered is its business, also if it was dropped since.
                let has_values = store.values_between(0, horizon).next().is_some();
                // Values up to the cursor are replayed; those after it are read in their order.
                let since = if has_values { self.cursor } else { horizon };
                let replay = Replay { owes, ..Replay::values_after(after) };
                let replay = (has_values || owes.is_some()).then_some(replay);
                (horizon, since.max(after), replay, store.floor().min(horizon))
            }
        };
        if channel.address.topic().is_some() {
            self.changed_at = Number::some(at);
        }
        self.replaying |= replay.is_some();
        self.memberships.push(Membership { channel, slot, since, told, replay: replay.map(Box::new) });
    }

    /// One more channel that was joined when the log was at `at`. A cursor from before that knows
    /// nothing of it; one from after accounts for it; a fresh page has it from its start.
    pub(super) fn join_as_of(&mut self, channel: Arc<Channel>, slot: u32, since: Since, at: u64) {
        match self.resumed_at.get() {
            None => self.join(channel, slot, Since::Now, 0, self.cursor),
            Some(cursor) if cursor <= at => self.join(channel, slot, since, 0, at),
            Some(_) => {
                let since = if let Since::After(since) = since { since } else { at };
                self.enter(channel, slot, since);
            }
        }
    }

    /// What a change of topics comes to.
    pub(super) fn plan<'a>(&self, leave: &'a [Topic], join: &'a [Joining]) -> Plan<'a> {
        let had: HashSet<&Topic> = self.topics().collect();
        let mut leaving: HashSet<&Topic> = leave.iter().filter(|topic| had.contains(topic)).collect();
        let mut seen = HashSet::with_capacity(join.len());
        let (mut new, mut again) = (Vec::new(), Vec::new());
        for joining in join.iter().filter(|joining| seen.insert(&joining.topic)) {
            if !had.contains(&joining.topic) {
                new.push(joining);
            } else if leaving.remove(&joining.topic) {
                again.push(joining);
            }
        }
        Plan { count: had.len() - leaving.len() + new.len(), new, again, leaving }
    }

    /// Leaves all addresses for which `is_meant` returns true.
    pub(super) fn leave(&mut self, is_meant: impl Fn(&Address) -> bool, horizon: u64) -> Vec<(Arc<Channel>, u32)> {
        self.take_out(is_meant, horizon).into_iter().map(|left| (left.channel, left.slot)).collect()
    }

    /// As if these were left and joined, but it listens to them all the time.
    pub(super) fn begin_anew(&mut self, topics: &[&Joining], horizon: u64) {
        let topics: HashMap<&Topic, &Joining> = topics.iter().map(|joining| (&joining.topic, *joining)).collect();
        let is_meant = |address: &Address| address.topic().is_some_and(|topic| topics.contains_key(topic));
        for Membership { channel, slot, .. } in self.take_out(is_meant, horizon) {
            let joining = channel.address.topic().and_then(|topic| topics.get(topic));
            let (since, after) = joining.map_or((Since::Now, 0), |joining| (joining.since, joining.after));
            self.join(channel, slot, since, after, horizon);
        }
    }

    fn take_out(&mut self, is_meant: impl Fn(&Address) -> bool, horizon: u64) -> Vec<Membership> {
        let is_meant = |membership: &mut Membership| is_meant(&membership.channel.address);
        let out: Vec<_> = self.memberships.extract_if(.., is_meant).collect();
        if self.memberships.len() < self.memberships.capacity() / 2 {
            self.memberships.shrink_to_fit();
        }
        if out.iter().any(|membership| membership.channel.address.topic().is_some()) {
            self.changed_at = Number::some(horizon);
        }
        self.replaying = self.memberships.iter().any(|membership| membership.replay.is_some());
        out
    }

    pub(super) fn leave_all(&mut self) -> Vec<(Arc<Channel>, u32)> {
        self.stage = Stage::Closed;
        self.replaying = false;
        std::mem::take(&mut self.memberships).into_iter().map(|member| (member.channel, member.slot)).collect()
    }

    /// Sets the cursor of a reader that has read nothing yet. `horizon` is where the log was when
    /// its channels were entered.
    pub(super) fn begin(&mut self, log: &Readable, begin: Begin, horizon: u64) {
        self.memberships.shrink_to_fit();
        self.stage = Stage::Open;
        let (start, reports_gaps) = match begin {
            Begin::After(cursor) => {
                self.cursor = cursor;
                self.resumed_at = Number::some(cursor);
                self.is_returning = true;
                return;
            }
            Begin::Fresh(start) => (start, true),
            Begin::Refused(start) => (start, false),
        };
        // The life of the log may have ended since then.
        let base = log.base().min(horizon);
        let (cursor, wants_more) = match start {
            Start::Live => (horizon, false),
            Start::Last(count) => self.before_newest(count, horizon),
            Start::Oldest => (base, true),
        };
        self.cursor = cursor;
        for membership in &mut self.memberships {
            let store = membership.channel.store.lock();
            // What is dropped after it came is missing to it; what was dropped before only if it asked for it.
            let floor = store.floor().min(horizon);
            let after = membership.since;
            let is_missing =
                wants_more && reports_gaps && floor > base.max(after) && log.keeps_history(&membership.channel);
            let owes = is_missing.then(|| log.epochs.reason(floor, base).unwrap_or(GapReason::Trimmed));
            let has_values = cursor > base && store.has_values();
            membership.told = floor;
            membership.since = after.max(cursor);
            if has_values || owes.is_some() {
                membership.replay = Some(Box::new(Replay { owes, ..Replay::values_after(after) }));
                self.replaying = true;
            }
        }
    }

    /// The number before the newest `count` records of all rings together, and whether there are fewer.
    fn before_newest(&self, count: usize, horizon: u64) -> (u64, bool) {
        let mut numbers: Vec<u64> = Vec::new();
        for membership in &self.memberships {
            numbers.extend(membership.channel.store.lock().newest(count, membership.since, horizon));
        }
        if numbers.len() >= count {
            numbers.sort_unstable_by(|a, b| b.cmp(a));
            numbers.dedup();
            numbers.truncate(count);
        }
        (numbers.iter().min().map_or(horizon, |oldest| oldest - 1), numbers.len() < count)
    }

    pub(super) fn read(&mut self, log: &Readable, me: ConnectionId, batch: &mut Batch) {
        batch.clear();
        let horizon = log.horizon();
        if self.replaying {
            self.read_replay(log, me, batch);
            if !batch.records.is_empty() || !batch.gap.is_empty() || batch.needs.is_some() || self.replaying {
                return;
            }
        }
        batch.ordered = true;
        if horizon > self.cursor && !(batch.wants_changes && self.has_changed_by(self.cursor)) {
            self.read_ordered(log, horizon, me, batch);
        }
        batch.changed =
            batch.wants_changes && batch.count() == 0 && batch.gap.is_empty() && self.has_changed_by(self.cursor);
        batch.settled = self.cursor >= horizon && self.changed_at.get().is_none() && batch.gap.is_empty();
    }

    /// What joined channels hold from before the cursor. Without ids, so that nobody comes back
    /// with one that is not the cursor.
    fn read_replay(&mut self, log: &Readable, me: ConnectionId, batch: &mut Batch) {
        if let Some(reason) = self.memberships.iter().find_map(|membership| membership.replay.as_ref()?.owes) {
            batch.gap_reason = Some(reason);
            for Membership { channel, replay, .. } in &mut self.memberships {
                if let Some(replay) = replay.as_mut().filter(|replay| replay.owes == Some(reason)) {
                    replay.owes = None;
                    batch.gap.push(channel.address.clone());
                }
            }
            return;
        }
        let cursor = self.cursor;
        let Ok((block, low)) = self.block_for_replay(log, batch) else { return };
        // The cursor may be of an instance that is a moment ahead.
        let end = cursor.min(log.horizon());
        let (upto, lost) = self.span(block.as_deref(), low, end);
        let mut pick = Pick::new(me, batch.wants_addresses);
        let mut gaps: SmallVec<[(usize, u64); 1]> = SmallVec::new();
        for (index, membership) in self.memberships.iter().enumerate() {
            let Some(replay) = membership.replay.as_deref().copied() else { continue };
            let channel = &membership.channel;
            let store = channel.store.lock();
            pick.offer(channel, store.values_between(replay.values_after, upto));
            let known = replay.records_after.max(membership.told);
            let is_short = replay.records_after < cursor && store.floor() > known;
            if is_short
                && let Some(block) = block.as_deref().filter(|block| block.after <= replay.records_after)
                && log.is_elsewhere(channel, replay.records_after)
            {
                let missing = block.missing(channel, lost).min(store.floor());
                if missing > known {
                    gaps.push((index, missing));
                    batch.gap.push(channel.address.clone());
                    batch.gap_reason = Some(if lost.is_some() { GapReason::Lost } else { GapReason::Trimmed });
                }
                if missing < store.floor() {
                    let is_also_for = |record: &Record, other: &Channel| block.is_also_for(record.sequence, other);
                    let unread = |record: &&Arc<Record>| !self.has_read(index, record, is_also_for);
                    pick.offer(channel, block.between(channel, replay.records_after, upto).filter(unread));
                    continue;
                }
                // It has nothing that memory does not have.
            } else if is_short && batch.looks_back && log.is_elsewhere(channel, replay.records_after) {
                // It was dropped a moment ago.
                (batch.gap, batch.gap_reason) = (SmallVec::new(), None);
                batch.needs = Some(replay.records_after);
                return;
            } else if is_short {
                gaps.push((index, store.floor()));
                batch.gap.push(channel.address.clone());
                batch.gap_reason = Some(GapReason::Trimmed);
            }
            let is_also_for = |record: &Record, other: &Channel| record.union.contains(&other.unique);
            let unread = |record: &&Arc<Record>| !self.has_read(index, record, is_also_for);
            pick.offer(channel, store.ring_between(replay.records_after, upto).filter(unread));
        }
        let done = pick.finish(upto, batch);
        for (index, floor) in gaps {
            self.memberships[index].told = floor;
        }
        self.replaying = false;
        for membership in &mut self.memberships {
            if let Some(replay) = &mut membership.replay {
                replay.values_after = replay.values_after.max(done);
                replay.records_after = replay.records_after.max(done);
                if done >= cursor {
                    membership.replay = None;
                } else {
                    self.replaying = true;
                }
            }
        }
        batch.goes_on = done < end;
    }

    /// The block from which a replay goes on, and after which number; none if memory has it all.
    /// `Err` if it is not at hand.
    fn block_for_replay(&self, log: &Readable, batch: &mut Batch) -> Result<(Option<Arc<Block>>, u64), ()> {
        let past = batch.past.take();
        let is_short = |membership: &&Membership| {
            membership.replay.as_ref().is_some_and(|replay| {
                let floor = membership.channel.store.lock().floor();
                let known = replay.records_after.max(membership.told);
                replay.records_after < self.cursor
                    && floor > known
                    && log.is_elsewhere(&membership.channel, replay.records_after)
            })
        };
        let short = self.memberships.iter().filter(is_short).filter_map(|membership| membership.replay.as_deref());
        let Some(low) = short.map(|replay| replay.records_after).min().filter(|_| batch.looks_back) else {
            return Ok((None, self.cursor));
        };
        match past.filter(|block| block.covers(log.base(), low)) {
            Some(block) => Ok((Some(block), low)),
            None => {
                batch.needs = Some(low);
                Err(())
            }
        }
    }

    /// How far may be read from a number on with the block at hand, so that a record that is
    /// missing to somebody here comes first; and that record.
    fn span(&self, block: Option<&Block>, after: u64, upto: u64) -> (u64, Option<u64>) {
        let Some(block) = block else { return (upto, None) };
        let upto = upto.min(block.upto);
        let is_mine = |address: &Address| self.listens_to(address);
        match block.first_lost(after, is_mine) {
            Some(lost) if lost == after + 1 => {
                let next = block.first_lost(lost, is_mine);
                (next.map_or(upto, |next| upto.min(next - 1)), Some(lost))
            }
            Some(lost) => (upto.min(lost - 1), None),
            None => (upto, None),
        }
    }

    /// Whether a record of a union has come by way of another channel already.
    fn has_read(&self, except: usize, record: &Record, is_also_for: impl Fn(&Record, &Channel) -> bool) -> bool {
        self.memberships.iter().enumerate().any(|(index, membership)| {
            let unread_after = membership.replay.as_ref().map_or(u64::MAX, |replay| replay.records_after);
            index != except
                && (membership.since + 1..=unread_after).contains(&record.sequence)
                && is_also_for(record, &membership.channel)
        })
    }

    /// The memberships whose channels have something after the cursor.
    fn due(&self, log: &Readable) -> SmallVec<[u32; 8]> {
        let mut due = SmallVec::new();
        // The words first, then the locks: the heads are not held while a channel is looked into.
        let mut look = |head: &dyn Fn(&Channel) -> u64| {
            for (index, membership) in self.memberships.iter().enumerate() {
                if head(&membership.channel) > self.cursor.max(membership.since) {
                    due.push(index as u32);
                }
            }
        };
        if self.memberships.len() <= A_FEW {
            look(&Channel::head);
        } else {
            log.heads.with(|head| look(&|channel: &Channel| head(channel.number as usize)));
        }
        due
    }

    fn read_ordered(&mut self, log: &Readable, horizon: u64, me: ConnectionId, batch: &mut Batch) {
        let cursor = self.cursor;
        let looks_back = batch.looks_back && self.is_returning;
        let block = batch.past.take().filter(|block| looks_back && block.covers(log.base(), cursor));
        let (upto, lost) = self.span(block.as_deref(), cursor, horizon);
        let due = self.due(log);
        if let [only] = due[..]
            && block.is_none()
            && batch.wants_pieces
            && let Some(piece) = self.memberships[only as usize].piece(log, cursor, upto)
        {
            self.cursor = piece.upto;
            batch.piece = Some(piece);
            batch.goes_on = self.cursor < horizon;
            self.is_returning &= batch.goes_on;
            return;
        }
        let mut pick = Pick::new(me, batch.wants_addresses);
        for index in due {
            let Membership { channel, since, told, .. } = &mut self.memberships[index as usize];
            let after = cursor.max(*since);
            let store = channel.store.lock();
            let known = after.max(*told);
            if store.floor() > known {
                if looks_back && log.is_elsewhere(channel, cursor) {
                    let Some(block) = block.as_deref() else {
                        // What was found so far to be told is told first.
                        batch.needs = batch.gap.is_empty().then_some(cursor);
                        return;
                    };
                    let missing = block.missing(channel, lost).min(store.floor());
                    if missing > known {
                        *told = missing;
                        let reason = if lost.is_some() { GapReason::Lost } else { GapReason::Trimmed };
                        batch.gap_reason = batch.gap_reason.or(Some(reason));
                        batch.gap.push(channel.address.clone());
                    }
                    if missing < store.floor() {
                        pick.offer(channel, block.between(channel, after, upto));
                        continue;
                    }
                    // It has nothing that memory does not have.
                } else {
                    *told = store.floor();
                    batch.gap_reason = batch.gap_reason.or_else(|| log.epochs.reason(store.floor(), cursor));
                    batch.gap.push(channel.address.clone());
                    batch.disconnects |= log.policies.get(channel.policy).lag == LagPolicy::Disconnect;
                }
            }
            pick.offer(channel, store.ring_between(after, upto));
            pick.offer(channel, store.values_between(after, upto));
        }
        self.cursor = pick.finish(upto, batch);
        batch.goes_on = self.cursor < horizon;
        self.is_returning &= batch.goes_on;
    }
}
