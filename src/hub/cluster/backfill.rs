//! Blocks of the shared log, for those who come back from before what this instance keeps in memory.
//!
//! 1. Blocks begin at fixed places, so that clients from about the same time need the same one; it is read once, and kept
//!    while there is room.
//! 2. One task reads, one block after the other: however many come back, the broker is asked for one at a time. It lives
//!    while a connection waits, in a [task slot](crate::hub::tasks::slot).
//! 3. A block is only believed if the log had the same epoch before and after. Records that are missing at its beginning
//!    are asked for again, for a while, if the log says that it has them.

use std::collections::btree_map::BTreeMap;
use std::collections::hash_map::HashMap;
use std::sync::{Arc, Weak};

use futures::FutureExt;

use super::shared_log::SharedLog;
use crate::backplane::BackplaneError;
use crate::hub::connection::handle::Link;
use crate::hub::tasks::back_off::{BackOff, in_time};
use crate::hub::tasks::background::Job;
use crate::hub::{Hub, Inner};
use crate::log::Block;
use crate::sync::Mutex;
use crate::types::name::ConnectionId;

/// How many records one block has at most.
const RECORDS: u64 = 512;
/// How many bytes of blocks are kept, beside the newest.
const ROOM: usize = 16 << 20;

#[derive(Debug, Default)]
pub(in crate::hub) struct Past {
    blocks: Mutex<Blocks>,
}

#[derive(Debug)]
struct Blocks {
    /// By the number after which they begin.
    kept: BTreeMap<u64, Kept>,
    bytes: usize,
    /// Goes up with every use.
    clock: u64,
    /// Who waits for what comes after a number.
    wanted: BTreeMap<u64, HashMap<ConnectionId, Weak<Link>>>,
    /// How many records are asked for at a time: fewer where they are large.
    count: usize,
}

impl Default for Blocks {
    fn default() -> Self {
        Self { kept: BTreeMap::new(), bytes: 0, clock: 0, wanted: BTreeMap::new(), count: RECORDS as usize }
    }
}

#[derive(Debug)]
struct Kept {
    block: Arc<Block>,
    used: u64,
}

impl Blocks {
    /// The block that has what comes after a number, in the life that begins at `base`.
    fn find(&mut self, base: u64, number: u64) -> Option<Arc<Block>> {
        let (_, kept) = self.kept.range_mut(..=number).next_back()?;
        if !kept.block.covers(base, number) {
            return None;
        }
        self.clock += 1;
        kept.used = self.clock;
        Some(Arc::clone(&kept.block))
    }

    /// Where the block begins that would have what comes after a number.
    fn start(&self, base: u64, number: u64) -> u64 {
        let start = base + (number - base) / RECORDS * RECORDS;
        let before = self.kept.range(..=number).next_back().filter(|(_, kept)| kept.block.base() == base);
        before.map_or(start, |(_, kept)| start.max(kept.block.upto().min(number)))
    }

    fn keep(&mut self, block: Block) {
        self.clock += 1;
        self.bytes += block.bytes();
        let kept = Kept { block: Arc::new(block), used: self.clock };
        if let Some(before) = self.kept.insert(kept.block.after(), kept) {
            self.bytes -= before.block.bytes();
        }
        while self.bytes > ROOM && self.kept.len() > 1 {
            // There are few.
            let Some((&oldest, _)) = self.kept.iter().min_by_key(|(_, kept)| kept.used) else { return };
            self.bytes -= self.kept.remove(&oldest).map_or(0, |kept| kept.block.bytes());
        }
    }
}

impl Hub {
    /// The block with what comes after a number. If it is not here yet, the connection is woken when it is.
    pub(in crate::hub) fn look_back(&self, shared: &SharedLog, number: u64, link: &Arc<Link>) -> Option<Arc<Block>> {
        let base = self.log().base();
        if number < base {
            // Of a life that has just ended: the next look knows.
            link.wake(self.now());
            return None;
        }
        let mut blocks = shared.past.blocks.lock();
        if let Some(block) = blocks.find(base, number) {
            return Some(block);
        }
        let start = blocks.start(base, number);
        blocks.wanted.entry(start).or_default().insert(link.id(), Arc::downgrade(link));
        drop(blocks);
        self.inner.ensure_shared_log();
        None
    }

    async fn read_block(&self, shared: &SharedLog, start: u64) -> Result<(), BackplaneError> {
        let (epoch, base) = (self.log().epoch(), self.log().base());
        let changed = || BackplaneError::unavailable("the log has begun a new epoch");
        let after = start.checked_sub(base).ok_or_else(changed)?;
        // Before it is asked for: what comes meanwhile is not missing if the answer does not have it.
        let (known, count) = (self.log().last(), shared.past.blocks.lock().count);
        let limit = self.settings().publish_timeout;
        let read = async {
            let records = shared.backplane.range(after, count).await?;
            Ok((records, shared.backplane.state(shared.seen(self.log().epoch())).await?))
        };
        let (records, state) = in_time(limit, read).await?;
        if state.epoch != epoch.0 {
            return Err(changed());
        }
        let expected = state.first.max(after + 1);
        let is_late = records.iter().find(|stored| stored.sequence > after).is_none_or(|next| next.sequence > expected);
        if !is_late {
            shared.history.found(expected);
        } else if expected <= state.last && shared.history.missing_for(expected) < limit {
            return Err(BackplaneError::unknown("records cannot be read, although the log has them"));
        }
        let records = records.into_iter().map(|stored| (stored.sequence, self.read(&stored.payload)));
        let block = self.log().block(epoch, after, known, records, self.now()).ok_or_else(changed)?;
        let mut blocks = shared.past.blocks.lock();
        blocks.count = if block.is_large() { (count / 2).max(1) } else { (count * 2).min(RECORDS as usize) };
        blocks.keep(block);
        Ok(())
    }
}

pub(in crate::hub) static JOB: Job<Inner> = Job {
    run: |hub, _| read(hub).boxed(),
    has_work: |inner| inner.shared_log.as_ref().is_some_and(|shared| !shared.past.blocks.lock().wanted.is_empty()),
};

async fn read(inner: Weak<Inner>) {
    let mut back_off = BackOff::new();
    // One after the other in turn, so that none waits behind one that cannot be read.
    let mut before = 0;
    loop {
        let Some(hub) = inner.upgrade().map(|inner| Hub { inner }) else { return };
        let Some(shared) = &hub.inner.shared_log else { return };
        let start = {
            let mut blocks = shared.past.blocks.lock();
            blocks.wanted.retain(|_, waiting| {
                waiting.retain(|_, link| link.upgrade().is_some_and(|link| !link.is_gone()));
                !waiting.is_empty()
            });
            let next = blocks.wanted.range(before + 1..).next().or_else(|| blocks.wanted.first_key_value());
            let Some((&start, _)) = next else { return };
            start
        };
        before = start;
        if let Err(error) = hub.read_block(shared, start).await {
            tracing::debug!(%error, "older records could not be read");
            drop(hub);
            back_off.wait().await;
            let Some(inner) = inner.upgrade() else { return };
            // A number of a life that is over is not asked for again.
            let Some(shared) = &inner.shared_log else { return };
            let base = inner.log.base();
            let mut blocks = shared.past.blocks.lock();
            let over = blocks.wanted.range(..base).map(|(start, _)| *start).collect::<Vec<_>>();
            let waiting: Vec<_> = over.iter().filter_map(|start| blocks.wanted.remove(start)).collect();
            drop(blocks);
            wake(&inner, waiting);
            continue;
        }
        back_off = BackOff::new();
        let waiting = shared.past.blocks.lock().wanted.remove(&start);
        wake(&hub.inner, waiting);
    }
}

fn wake(inner: &Inner, waiting: impl IntoIterator<Item = HashMap<ConnectionId, Weak<Link>>>) {
    let now = inner.now();
    waiting.into_iter().flatten().filter_map(|(_, link)| link.upgrade()).for_each(|link| link.wake(now));
}
