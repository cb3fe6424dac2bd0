//! The runs of this instance by name, and the callers that wait for a run to begin.

use std::collections::hash_map::{Entry, HashMap};
use std::collections::vec_deque::VecDeque;
use std::sync::Arc;

use tokio::sync::watch;

use super::content::RunContent;
use crate::hub::peers::message::InstanceId;
use crate::log::Millis;
use crate::sync::Mutex;
use crate::types::{Epoch, RunError, Topic};

/// The newest known run of each name.
#[derive(Default)]
pub(in crate::hub) struct Runs {
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    by_name: HashMap<Topic, Arc<RunContent>>,
    /// The ended runs in the order of their ends, each with the time at which it is forgotten.
    forget: VecDeque<(Millis, Topic, Epoch)>,
    /// The callers that wait for a run of a name to begin.
    waiting: HashMap<Topic, watch::Sender<()>>,
    /// The number of entries of `waiting` from which the callers that have given up are removed.
    clean_at: usize,
}

impl Runs {
    pub(in crate::hub) fn get(&self, name: &Topic) -> Option<Arc<RunContent>> {
        self.table.lock().by_name.get(name).cloned()
    }

    /// Adds a run of this instance.
    ///
    /// # Errors
    ///
    /// Returns an error if the run of that name is active.
    pub(in crate::hub) fn begin(&self, name: &Topic, run: &Arc<RunContent>) -> Result<(), RunError> {
        let mut table = self.table.lock();
        if table.by_name.get(name).is_some_and(|known| known.is_active()) {
            return Err(RunError::ACTIVE);
        }
        let earlier = table.put(name, run);
        drop(table);
        // The events of a run may be many, so they are freed without the lock.
        drop(earlier);
        Ok(())
    }

    /// Sets the run of a name, in place of an earlier run. Returns the run of the table: a reader
    /// may have added a copy of the same run. The rest of an earlier run whose end this instance
    /// has not read is lost, because the broker has replaced that run too.
    pub(in crate::hub) fn put(&self, name: &Topic, run: Arc<RunContent>, now: Millis) -> Arc<RunContent> {
        let mut table = self.table.lock();
        if let Some(known) = table.by_name.get(name).filter(|known| known.id == run.id) {
            return Arc::clone(known);
        }
        let earlier = table.put(name, &run);
        drop(table);
        if let Some(earlier) = earlier {
            earlier.lose(now);
        }
        run
    }

    /// Adds a copy of a run that was read from the broker, unless the table has a run of this name.
    /// Returns the run of the table. It may be a later run than the copy.
    pub(in crate::hub) fn put_copy(&self, name: &Topic, run: Arc<RunContent>) -> Arc<RunContent> {
        let mut table = self.table.lock();
        if let Some(known) = table.by_name.get(name) {
            return Arc::clone(known);
        }
        table.put(name, &run);
        run
    }

    /// Forgets the run of a name if nothing but the table uses it, and if another instance writes
    /// it. Returns false if the name leads to a run that is still used.
    pub(in crate::hub) fn forget_unused(&self, name: &Topic, here: InstanceId) -> bool {
        let mut table = self.table.lock();
        match table.by_name.entry(name.clone()) {
            // Only the table can give new references, and it is locked.
            Entry::Occupied(known) if known.get().owner != here && Arc::strong_count(known.get()) == 1 => {
                let unused = known.remove();
                drop(table);
                drop(unused);
                true
            }
            Entry::Occupied(_) => false,
            Entry::Vacant(_) => true,
        }
    }

    /// Forgets a run, unless its name leads to another run by now.
    pub(in crate::hub) fn forget(&self, name: &Topic, id: Epoch) {
        let forgotten = self.table.lock().forget(name, id);
        // The events of a run may be many, so they are freed without the lock.
        drop(forgotten);
    }

    /// Notes that an ended run is forgotten at this time.
    pub(in crate::hub) fn forget_at(&self, at: Millis, name: &Topic, id: Epoch) {
        self.table.lock().forget.push_back((at, name.clone(), id));
    }

    /// Forgets the runs whose time has come.
    pub(in crate::hub) fn sweep(&self, now: Millis) {
        let mut table = self.table.lock();
        let mut dropped = Vec::new();
        while table.forget.front().is_some_and(|(at, ..)| *at <= now) {
            if let Some((_, name, id)) = table.forget.pop_front() {
                dropped.extend(table.forget(&name, id));
            }
        }
        crate::macros::shrink_if_sparse!(table.by_name);
        drop(table);
        // The events of a run may be many, so they are freed without the lock.
        drop(dropped);
    }

    /// Returns the time at which the next run is forgotten, if an ended run is kept.
    pub(in crate::hub) fn next_due(&self) -> Option<Millis> {
        self.table.lock().forget.front().map(|(at, ..)| *at)
    }

    /// Returns all runs with their names.
    pub(in crate::hub) fn all(&self) -> Vec<(Topic, Arc<RunContent>)> {
        self.table.lock().by_name.iter().map(|(name, run)| (name.clone(), Arc::clone(run))).collect()
    }

    /// Returns a receiver that is notified when a run of this name begins.
    pub(in crate::hub) fn wait_for(&self, name: &Topic) -> watch::Receiver<()> {
        let mut table = self.table.lock();
        // Callers that have given up leave their senders behind.
        if table.waiting.len() >= table.clean_at {
            table.waiting.retain(|_, sender| sender.receiver_count() > 0);
            table.clean_at = (2 * table.waiting.len()).max(1024);
        }
        table.waiting.entry(name.clone()).or_insert_with(|| watch::Sender::new(())).subscribe()
    }

    /// Notifies the callers that wait for a run of this name. Returns whether there are any.
    pub(in crate::hub) fn notify(&self, name: &Topic) -> bool {
        let waiting = self.table.lock().waiting.remove(name);
        waiting.is_some_and(|sender| sender.send(()).is_ok())
    }
}

impl Table {
    /// Returns the earlier run of this name.
    fn put(&mut self, name: &Topic, run: &Arc<RunContent>) -> Option<Arc<RunContent>> {
        let earlier = self.by_name.insert(name.clone(), Arc::clone(run));
        if let Some(waiting) = self.waiting.remove(name) {
            // An error means that all callers have given up.
            let _ = waiting.send(());
        }
        earlier
    }

    fn forget(&mut self, name: &Topic, id: Epoch) -> Option<Arc<RunContent>> {
        match self.by_name.entry(name.clone()) {
            Entry::Occupied(known) if known.get().id == id => Some(known.remove()),
            _ => None,
        }
    }
}
