//! A cursor over several channels, and the read that moves it.
//!
//! A read has two stages. A *replay* reads records up to the cursor, without ids: the current
//! values, for a new stream or a joined topic, and the records after the position from which a
//! topic was joined. Then the *ordered* read continues after the cursor and moves it. During a
//! replay the cursor does not move and no id is sent, because a client that reconnected with such
//! an id would never receive the rest of the replay.
//!
//! A channel may have the [outline](super::store::Outline) of a record in place of the record. A
//! read without a block ends before the first such record of its channels. The next read then
//! requests the block that has this record.

use std::collections::hash_map::HashMap;
use std::collections::hash_set::HashSet;
use std::sync::Arc;

use smallvec::SmallVec;

use super::backfill::Block;
use super::batch::{Batch, Piece};
use super::channel::Channel;
use super::pick::Pick;
use super::readable::Readable;
use super::store::{Record, Store};
use super::subscribe::{Begin, Joining, Since, TooManyTopics};
use crate::types::{Address, ConnectionId, GapReason, LagPolicy, Start, Topic};

/// The maximum number of memberships for which a read loads the latest numbers from the channels.
/// With more memberships, the read loads them from the dense table.
const LINEAR_SEARCH_MAX: usize = if cfg!(tower_sse_loom) { 1 } else { 8 };

/// An optional number in 8 bytes. `Option<u64>` takes 16 bytes, so the two fields of a [`Reader`]
/// would add 16 bytes to each idle connection.
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

/// The reading state of a connection. Every due record up to and including `cursor` has been read
/// or reported as a gap, except those that are still to be replayed.
#[derive(Debug, Default)]
pub(super) struct Reader {
    cursor: u64,
    memberships: Vec<Membership>,
    /// Whether some membership has a `replay`. Until all replays are done, the cursor does not move
    /// and no id may be sent. Otherwise a client that reconnects with this id would miss the rest
    /// of the replay.
    replaying: bool,
    /// The number that the cursor must reach before the stream reports its changed topics, so that
    /// the id of the report covers the change. Unset if there is no change to report.
    changed_at: Number,
    stage: Stage,
    /// The cursor with which the client reconnected. Unset for a new stream.
    resumed_at: Number,
    /// Whether the client has reconnected with a cursor or has asked for a history, and has not
    /// caught up with the log since then.
    is_returning: bool,
    /// Whether the reader's channels may have outlines after the cursor: the reader has entered a
    /// channel, and has not caught up with the log since then. A channel with a listener gets no
    /// outlines, so a reader that has caught up needs no block for any of its channels.
    may_have_outlines: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stage {
    /// The reader has no cursor yet, so it cannot join channels.
    #[default]
    New,
    Open,
    Closed,
}

#[derive(Debug)]
struct Membership {
    channel: Arc<Channel>,
    slot: u32,
    /// Ordered reads of this channel start after this number. A replay may read earlier records.
    since: u64,
    /// The connection reports no more gaps for records up to this number: the gap was reported, or
    /// the records were dropped before the connection began to read the channel.
    reported_through: u64,
    replay: Option<Box<Replay>>,
}

/// The part of a channel up to the cursor that is still due: current values after `values_after`,
/// and records after `records_after`.
#[derive(Clone, Copy, Debug)]
struct Replay {
    values_after: u64,
    records_after: u64,
    /// The reason of the gap to report before the replay, if any.
    pending_gap: Option<GapReason>,
}

impl Replay {
    fn values_after(after: u64) -> Self {
        Self { values_after: after, records_after: u64::MAX, pending_gap: None }
    }
}

/// The effect of a change of topics. Each topic is in at most one of the lists.
pub(super) struct Plan<'a> {
    pub(super) new: Vec<&'a Joining>,
    /// Topics that the connection has, and that the change lists both to leave and to join. The
    /// connection leaves and rejoins them.
    pub(super) again: Vec<&'a Joining>,
    pub(super) leaving: HashSet<&'a Topic>,
    /// The number of topics after the change.
    pub(super) count: usize,
}

impl Membership {
    /// Returns the due records of this channel as a shared piece. Returns `None` if a record is
    /// missing, if the channel has current values, or if a record excludes a connection. The caller
    /// uses the piece only if no other channel has due records.
    fn piece(&self, log: &Readable, cursor: u64, upto: u64) -> Option<Piece> {
        let after = cursor.max(self.since);
        let store = self.channel.store.lock();
        if store.trimmed_through() > after.max(self.reported_through) || store.has_values() {
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

    /// Returns whether a change of topics is to be reported now, and marks it as reported.
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
    pub(super) fn reported_through(&self, address: &Address) -> u64 {
        self.memberships
            .iter()
            .find(|membership| membership.channel.address == *address)
            .map_or(0, |m| m.reported_through)
    }

    /// Reserves memory for `count` memberships.
    pub(super) fn reserve(&mut self, count: usize) {
        self.memberships.reserve_exact(count);
    }

    /// Adds a channel without a replay. `slot` is the connection's place among the channel's
    /// listeners. Ordered reads of the channel start after `since`.
    pub(super) fn enter(&mut self, channel: Arc<Channel>, slot: u32, since: u64) {
        self.may_have_outlines = true;
        self.memberships.push(Membership { channel, slot, since, reported_through: 0, replay: None });
    }

    /// Returns whether the address can be joined: the reader is open and does not have the address
    /// yet. Returns an error if the reader has at least `max_topics` topics and the address is
    /// another topic.
    pub(super) fn admits(&self, address: &Address, max_topics: usize) -> Result<bool, TooManyTopics> {
        if !self.is_open() || self.listens_to(address) {
            return Ok(false);
        }
        if address.topic().is_some() && self.topics().count() >= max_topics { Err(TooManyTopics) } else { Ok(true) }
    }

    /// Adds a channel that the connection joins after its start. The connection must not read the
    /// channel's records up to and including `after`. `visible_through` is the number of the log at
    /// which the join takes effect.
    pub(super) fn join(&mut self, channel: Arc<Channel>, slot: u32, since: Since, after: u64, visible_through: u64) {
        let (at, since, replay, reported_through) = match since {
            Since::After(since) => {
                let since = since.max(after);
                let replay = Replay { values_after: since, records_after: since, pending_gap: None };
                // `since` may come from another instance, which has read more of the shared log.
                (visible_through.max(since), since, (since < self.cursor).then_some(replay), 0)
            }
            Since::Now | Since::Refused(_) => {
                let pending_gap = if let Since::Refused(reason) = since { Some(reason) } else { None };
                let store = channel.store.lock();
                // Records after `visible_through` were published after the channel was entered: if
                // one is dropped unread, the connection must report a gap. So `reported_through` is
                // at most `visible_through`.
                let has_values = store.values_between(0, visible_through).next().is_some();
                // Values up to the cursor are replayed. Values after it come with the ordered read.
                let since = if has_values { self.cursor } else { visible_through };
                let replay = Replay { pending_gap, ..Replay::values_after(after) };
                let replay = (has_values || pending_gap.is_some()).then_some(replay);
                (visible_through, since.max(after), replay, store.trimmed_through().min(visible_through))
            }
        };
        if channel.address.topic().is_some() {
            self.changed_at = Number::some(at);
        }
        self.replaying |= replay.is_some();
        self.may_have_outlines = true;
        self.memberships.push(Membership { channel, slot, since, reported_through, replay: replay.map(Box::new) });
    }

    /// Adds a channel that the user joined when the log was at the number `at`, before this
    /// connection was opened. A connection that resumed with a cursor of at most `at` joins the
    /// channel as if it had been open at `at`. A higher cursor already covers the join. A new
    /// connection joins the channel at its start.
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

    /// Returns the effect of leaving and joining these topics, without changing anything.
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

    /// Leaves all addresses for which `matches` returns true. Returns their channels, each with the
    /// slot among its listeners. The caller removes the listeners.
    pub(super) fn leave(
        &mut self,
        matches: impl Fn(&Address) -> bool,
        visible_through: u64,
    ) -> Vec<(Arc<Channel>, u32)> {
        self.remove_where(matches, visible_through).into_iter().map(|left| (left.channel, left.slot)).collect()
    }

    /// Leaves and joins these topics, without removing the connection from their listeners.
    pub(super) fn rejoin(&mut self, topics: &[&Joining], visible_through: u64) {
        let topics: HashMap<&Topic, &Joining> = topics.iter().map(|joining| (&joining.topic, *joining)).collect();
        let matches = |address: &Address| address.topic().is_some_and(|topic| topics.contains_key(topic));
        for Membership { channel, slot, .. } in self.remove_where(matches, visible_through) {
            let joining = channel.address.topic().and_then(|topic| topics.get(topic));
            let (since, after) = joining.map_or((Since::Now, 0), |joining| (joining.since, joining.after));
            self.join(channel, slot, since, after, visible_through);
        }
    }

    /// Removes the memberships for whose addresses `matches` returns true.
    fn remove_where(&mut self, matches: impl Fn(&Address) -> bool, visible_through: u64) -> Vec<Membership> {
        let matches = |membership: &mut Membership| matches(&membership.channel.address);
        let out: Vec<_> = self.memberships.extract_if(.., matches).collect();
        if self.memberships.len() < self.memberships.capacity() / 2 {
            self.memberships.shrink_to_fit();
        }
        if out.iter().any(|membership| membership.channel.address.topic().is_some()) {
            self.changed_at = Number::some(visible_through);
        }
        self.replaying = self.memberships.iter().any(|membership| membership.replay.is_some());
        out
    }

    /// Closes the reader, and returns its channels, each with the slot among its listeners. The
    /// caller removes the listeners.
    pub(super) fn leave_all(&mut self) -> Vec<(Arc<Channel>, u32)> {
        self.stage = Stage::Closed;
        self.replaying = false;
        std::mem::take(&mut self.memberships).into_iter().map(|member| (member.channel, member.slot)).collect()
    }

    /// Opens a new reader and sets its cursor. `visible_through` is the value of the log after the
    /// reader was added to its channels.
    pub(super) fn begin(&mut self, log: &Readable, begin: Begin, visible_through: u64) {
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
            Begin::Unreported(start) => (start, false),
        };
        // A new epoch may have begun after `visible_through` was loaded.
        let base = log.base().min(visible_through);
        let (cursor, wants_more) = match start {
            Start::Live => (visible_through, false),
            Start::Last(count) => self.before_newest(count, visible_through),
            Start::Oldest => (base, true),
        };
        self.cursor = cursor;
        // While the stream waits for a block, a channel may drop records that it has not read yet.
        self.is_returning = cursor < visible_through;
        for membership in &mut self.memberships {
            let store = membership.channel.store.lock();
            // Records after `visible_through` that are dropped unread are always a gap. Records
            // that were dropped before are a gap only if the start asks for them.
            let trimmed_through = store.trimmed_through().min(visible_through);
            let after = membership.since;
            let is_missing = wants_more
                && reports_gaps
                && trimmed_through > base.max(after)
                && log.keeps_history(&membership.channel);
            let pending_gap =
                is_missing.then(|| log.epochs.reason(trimmed_through, base).unwrap_or(GapReason::Trimmed));
            let has_values = cursor > base && store.has_values();
            // If gaps are not reported, a loss that another stream has found in the shared log must
            // not end this stream again.
            let lost_through = if reports_gaps { 0 } else { membership.channel.lost_through().min(visible_through) };
            membership.reported_through = trimmed_through.max(lost_through);
            membership.since = after.max(cursor);
            if has_values || pending_gap.is_some() {
                membership.replay = Some(Box::new(Replay { pending_gap, ..Replay::values_after(after) }));
                self.replaying = true;
            }
        }
    }

    /// Returns whether the stream has to report a gap for records from before its start, as far as
    /// this instance knows. If `can_backfill` is true, the shared log may still have records that
    /// memory does not have.
    pub(super) fn begins_with_gap(&self, log: &Readable, can_backfill: bool) -> bool {
        self.memberships.iter().any(|membership| {
            let Membership { channel, since, reported_through, replay, .. } = membership;
            let store = channel.store.lock();
            let (trimmed_through, outlined_through) = (store.trimmed_through(), store.outlined_through());
            drop(store);
            let is_lost = |after: u64| {
                let known = after.max(*reported_through);
                let is_lost_there = channel.lost_through() > known;
                let may_backfill = can_backfill && log.may_backfill(channel, after) && !is_lost_there;
                (trimmed_through > known && !may_backfill) || (outlined_through > known && is_lost_there)
            };
            is_lost(self.cursor.max(*since))
                || replay.as_ref().is_some_and(|replay| {
                    replay.pending_gap.is_some()
                        || (replay.records_after < self.cursor && is_lost(replay.records_after))
                })
        })
    }

    /// Returns the number directly before the oldest of the newest `count` records of all rings
    /// together, and whether the rings contain fewer records.
    fn before_newest(&self, count: usize, visible_through: u64) -> (u64, bool) {
        let mut numbers: Vec<u64> = Vec::new();
        for membership in &self.memberships {
            numbers.extend(membership.channel.store.lock().newest(count, membership.since, visible_through));
        }
        if numbers.len() >= count {
            numbers.sort_unstable_by(|a, b| b.cmp(a));
            numbers.dedup();
            numbers.truncate(count);
        }
        (numbers.iter().min().map_or(visible_through, |oldest| oldest - 1), numbers.len() < count)
    }

    /// Reads the due records into `batch`, within its bounds: first the replay, then the ordered
    /// records.
    pub(super) fn read(&mut self, log: &Readable, me: ConnectionId, batch: &mut Batch) {
        batch.clear();
        let visible_through = log.visible_through();
        if self.replaying {
            self.read_replay(log, me, batch);
            if !batch.records.is_empty() || !batch.gap.is_empty() || batch.needs_block_after.is_some() || self.replaying
            {
                return;
            }
        }
        batch.ordered = true;
        if visible_through > self.cursor && !(batch.wants_changes && self.has_changed_by(self.cursor)) {
            self.read_ordered(log, visible_through, me, batch);
        }
        batch.changed =
            batch.wants_changes && batch.count() == 0 && batch.gap.is_empty() && self.has_changed_by(self.cursor);
        batch.settled = self.cursor >= visible_through && self.changed_at.get().is_none() && batch.gap.is_empty();
    }

    /// Reads records up to the cursor that are to be replayed. They are sent without ids, so that
    /// no client reconnects with an id that is not the cursor.
    fn read_replay(&mut self, log: &Readable, me: ConnectionId, batch: &mut Batch) {
        if let Some(reason) = self.memberships.iter().find_map(|membership| membership.replay.as_ref()?.pending_gap) {
            batch.gap_reason = Some(reason);
            for Membership { channel, replay, .. } in &mut self.memberships {
                if let Some(replay) = replay.as_mut().filter(|replay| replay.pending_gap == Some(reason)) {
                    replay.pending_gap = None;
                    batch.gap.push(channel.address.clone());
                }
            }
            return;
        }
        let cursor = self.cursor;
        let Ok((block, low)) = self.block_for_replay(log, batch) else { return };
        // The cursor may come from an instance that has read more of the shared log.
        let end = cursor.min(log.visible_through());
        let (upto, lost) = self.span(block.as_deref(), low, end);
        let mut pick = Pick::new(me, batch.wants_addresses);
        let mut gaps: SmallVec<[(usize, u64); 1]> = SmallVec::new();
        for (index, membership) in self.memberships.iter().enumerate() {
            let Some(replay) = membership.replay.as_deref().copied() else { continue };
            let channel = &membership.channel;
            let store = channel.store.lock();
            pick.offer(channel, store.values_between(replay.values_after, upto));
            let mut known = replay.records_after.max(membership.reported_through);
            let is_due = replay.records_after < cursor;
            let can_backfill = batch.can_backfill && log.may_backfill(channel, replay.records_after);
            if is_due && store.trimmed_through() > known && !can_backfill {
                known = store.trimmed_through();
                gaps.push((index, store.trimmed_through()));
                batch.gap.push(channel.address.clone());
                batch.gap_reason = Some(GapReason::Trimmed);
            }
            if let Some(range) = BackfillRange::find(&store, replay.records_after, known, can_backfill)
                && is_due
                && range.after < upto
            {
                let Some(block) = block.as_deref().filter(|block| block.after <= range.after) else {
                    // A record was dropped after `block_for_replay` had checked this channel. The
                    // caller must provide a block first.
                    (batch.gap, batch.gap_reason) = (SmallVec::new(), None);
                    batch.needs_block_after = Some(range.after);
                    return;
                };
                let missing = block.missing(channel, lost).min(range.through);
                if missing > known.max(range.after) {
                    channel.note_lost(missing);
                    gaps.push((index, missing));
                    batch.gap.push(channel.address.clone());
                    batch.gap_reason = Some(if lost.is_some() { GapReason::Lost } else { GapReason::Trimmed });
                }
                if missing < range.through {
                    let is_also_for = |record: &Record, other: &Channel| block.is_also_for(record.sequence, other);
                    let unread = |record: &&Arc<Record>| !self.has_read(index, record, is_also_for);
                    pick.offer(channel, block.between(channel, range.after, upto).filter(unread));
                    continue;
                }
                // The block has nothing that memory does not have.
            }
            let is_also_for = |record: &Record, other: &Channel| record.union.contains(&other.unique);
            let unread = |record: &&Arc<Record>| !self.has_read(index, record, is_also_for);
            pick.offer(channel, store.ring_between(replay.records_after, upto).filter(unread));
        }
        let done = pick.finish(upto, batch);
        for (index, trimmed_through) in gaps {
            self.memberships[index].reported_through = trimmed_through;
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
        batch.has_more = done < end;
    }

    /// Returns the block that a replay needs and the number after which the replay reads the block,
    /// or no block and the cursor if no block is needed or the batch cannot have blocks. If the
    /// needed block is missing, sets `batch.needs_block_after` and returns an error.
    fn block_for_replay(&self, log: &Readable, batch: &mut Batch) -> Result<(Option<Arc<Block>>, u64), ()> {
        let block = batch.block.take().filter(|_| batch.can_backfill);
        if !batch.can_backfill {
            return Ok((None, self.cursor));
        }
        let needed_after = |membership: &Membership| {
            let after = membership.replay.as_ref()?.records_after;
            let known = after.max(membership.reported_through);
            let can_backfill = log.may_backfill(&membership.channel, after);
            let range = BackfillRange::find(&membership.channel.store.lock(), after, known, can_backfill)?;
            Some(range.after).filter(|after| *after < self.cursor)
        };
        let Some(low) = self.memberships.iter().filter_map(needed_after).min() else {
            return Ok((None, self.cursor));
        };
        match block.filter(|block| block.covers(log.base(), low)) {
            Some(block) => Ok((Some(block), low)),
            None => {
                batch.needs_block_after = Some(low);
                Err(())
            }
        }
    }

    /// Returns the number up to and including which this read may go with the block, and the lost
    /// record directly after `after`, if any. A read stops before the next lost record of this
    /// connection's channels, so that the gap for it is reported before the records after it.
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

    /// Returns whether this connection has already read a record of a union through another of its
    /// channels.
    fn has_read(&self, except: usize, record: &Record, is_also_for: impl Fn(&Record, &Channel) -> bool) -> bool {
        self.memberships.iter().enumerate().any(|(index, membership)| {
            let unread_after = membership.replay.as_ref().map_or(u64::MAX, |replay| replay.records_after);
            index != except
                && (membership.since + 1..=unread_after).contains(&record.sequence)
                && is_also_for(record, &membership.channel)
        })
    }

    /// Returns the indexes of the memberships whose channels may have records or a gap after the
    /// cursor.
    fn due(&self, log: &Readable) -> SmallVec<[u32; 8]> {
        let mut due = SmallVec::new();
        // The caller locks the due channels afterwards, so that the lock of the table of latest
        // numbers is not held meanwhile.
        let mut look = |latest: &dyn Fn(&Channel) -> u64| {
            for (index, membership) in self.memberships.iter().enumerate() {
                if latest(&membership.channel) > self.cursor.max(membership.since) {
                    due.push(index as u32);
                }
            }
        };
        if self.memberships.len() <= LINEAR_SEARCH_MAX {
            look(&Channel::latest);
        } else {
            log.latest.with(|latest| look(&|channel: &Channel| latest(channel.number as usize)));
        }
        due
    }

    /// Returns the number before the first outline after the cursor in one of these channels, or
    /// `visible_through` if they have none.
    fn before_outlines(&self, due: &[u32], visible_through: u64) -> u64 {
        let before = |index: &u32| {
            let Membership { channel, since, .. } = &self.memberships[*index as usize];
            channel.store.lock().first_outline(self.cursor.max(*since)).map(|outline| outline - 1)
        };
        due.iter().filter_map(before).fold(visible_through, u64::min)
    }

    /// Reads records after the cursor in the order of the log, and moves the cursor.
    fn read_ordered(&mut self, log: &Readable, visible_through: u64, me: ConnectionId, batch: &mut Batch) {
        let cursor = self.cursor;
        let can_backfill = batch.can_backfill && self.is_returning;
        let may_have_outlines = batch.can_backfill && self.may_have_outlines;
        let is_usable = |block: &Arc<Block>| (can_backfill || may_have_outlines) && block.covers(log.base(), cursor);
        let block = batch.block.take().filter(is_usable);
        let due = self.due(log);
        let mut end = visible_through;
        if may_have_outlines && block.is_none() {
            end = self.before_outlines(&due, end);
            if end == cursor {
                batch.needs_block_after = Some(cursor);
                return;
            }
        }
        let (upto, lost) = self.span(block.as_deref(), cursor, end);
        if let [only] = due[..]
            && block.is_none()
            && batch.allows_pieces
            && let Some(piece) = self.memberships[only as usize].piece(log, cursor, upto)
        {
            self.move_to(piece.upto, visible_through, batch);
            batch.piece = Some(piece);
            return;
        }
        let mut pick = Pick::new(me, batch.wants_addresses);
        for index in due {
            let Membership { channel, since, reported_through, .. } = &mut self.memberships[index as usize];
            let after = cursor.max(*since);
            let store = channel.store.lock();
            let mut known = after.max(*reported_through);
            let may_backfill = can_backfill && log.may_backfill(channel, cursor);
            if store.trimmed_through() > known && !may_backfill {
                known = store.trimmed_through();
                *reported_through = known;
                batch.gap_reason = batch.gap_reason.or_else(|| log.epochs.reason(store.trimmed_through(), cursor));
                batch.gap.push(channel.address.clone());
                batch.disconnects |= log.policies.get(channel.policy).lag == LagPolicy::Disconnect;
            }
            if batch.can_backfill
                && let Some(range) = BackfillRange::find(&store, after, known, may_backfill)
                && range.after < upto
            {
                let Some(block) = block.as_deref() else {
                    // Report the gaps that were found so far before asking for a block.
                    batch.needs_block_after = batch.gap.is_empty().then_some(cursor);
                    return;
                };
                let missing = block.missing(channel, lost).min(range.through);
                if missing > known.max(range.after) {
                    *reported_through = missing;
                    channel.note_lost(missing);
                    let reason = if lost.is_some() { GapReason::Lost } else { GapReason::Trimmed };
                    batch.gap_reason = batch.gap_reason.or(Some(reason));
                    batch.gap.push(channel.address.clone());
                }
                if missing < range.through {
                    pick.offer(channel, block.between(channel, range.after, upto));
                    continue;
                }
                // The block has nothing that memory does not have.
            }
            pick.offer(channel, store.ring_between(after, upto));
            pick.offer(channel, store.values_between(after, upto));
        }
        let cursor = pick.finish(upto, batch);
        self.move_to(cursor, visible_through, batch);
    }

    /// Moves the cursor after an ordered read.
    fn move_to(&mut self, cursor: u64, visible_through: u64, batch: &mut Batch) {
        self.cursor = cursor;
        batch.has_more = cursor < visible_through;
        self.is_returning &= batch.has_more;
        self.may_have_outlines &= batch.has_more;
    }
}

/// The part of a channel from its first to its last missing record. The channel does not have these
/// records, and the shared log may have them.
#[derive(Clone, Copy, Debug)]
struct BackfillRange {
    /// No record between the position of the reader and this number, inclusive, is missing.
    after: u64,
    /// The channel has every record after this number.
    through: u64,
}

impl BackfillRange {
    /// Returns the range of the missing records after `after`, or `None` if no record is missing.
    /// No gap is reported any more for the records up to and including `known`. If `can_backfill`
    /// is false, only the records of outlines count, because the reader gets a gap for the others.
    fn find(store: &Store, after: u64, known: u64, can_backfill: bool) -> Option<Self> {
        let through = store.outlined_through();
        if can_backfill && store.trimmed_through() > known {
            return Some(Self { after, through: through.max(store.trimmed_through()) });
        }
        store.first_outline(after).map(|outline| Self { after: outline - 1, through })
    }
}
