//! A background task of a hub: its job, and the slot that it runs in.
//!
//! A caller stores work under a lock, and then calls [`Background::ensure`]. The task of a job that
//! can run out of work ends by itself when it finds no work. The slot then calls `has_more`, which
//! takes the lock of the work again. Otherwise work that was stored during the task's last poll
//! would have no task ([rule 4 of slots](super::slot)).

use std::sync::{Arc, Weak};

use futures::future::BoxFuture;
use tokio::sync::Notify;

use super::slot::TaskSlot;
use super::workers::{Host, home};

/// The functions of a background task. `H` is the state of the hub.
pub(in crate::hub) struct Job<H> {
    /// Runs until there is no work, or until the hub is dropped. The notification wakes the future
    /// before its next timer.
    pub(in crate::hub) run: fn(Weak<H>, Arc<Notify>) -> BoxFuture<'static, ()>,
    /// Returns whether there is work. The function must be cheap, because every call of
    /// [`Background::ensure`] calls it while no task runs.
    pub(in crate::hub) has_work: fn(&Arc<H>) -> bool,
    /// Returns whether there is work after all. The slot calls the function when the task has just
    /// ended by itself. The function may do a part of the work.
    pub(in crate::hub) has_more: fn(&Arc<H>) -> bool,
}

/// A job, and the slot in which its task runs.
pub(in crate::hub) struct Background<H: 'static> {
    slot: Arc<TaskSlot>,
    job: &'static Job<H>,
}

impl<H: Host> Background<H> {
    pub(in crate::hub) fn new(job: &'static Job<H>) -> Self {
        Self { slot: Arc::default(), job }
    }

    /// Starts the task if there is work and no live task. Does nothing if [`home`] returns no
    /// runtime. A later call then starts the task.
    pub(in crate::hub) fn ensure(&self, host: &Arc<H>) {
        if !self.is_attended(host) {
            start(&self.slot, self.job, host);
        }
    }

    /// Returns whether a live task runs, or there is no work.
    pub(in crate::hub) fn is_attended(&self, host: &Arc<H>) -> bool {
        self.slot.is_attended() || !(self.job.has_work)(host)
    }

    /// Wakes the task before its next timer, because work may be due earlier.
    pub(in crate::hub) fn rouse(&self) {
        self.slot.rouse();
    }
}

fn start<H: Host>(slot: &Arc<TaskSlot>, job: &'static Job<H>, host: &Arc<H>) {
    let Some(runtime) = home(&**host) else { return };
    let (weak, ended, checked) = (Arc::downgrade(host), Arc::downgrade(host), Arc::clone(slot));
    let check = move || {
        if let Some(host) = ended.upgrade().filter(job.has_more) {
            start(&checked, job, &host);
        }
    };
    slot.ensure(&runtime, |roused| (job.run)(weak, roused), check);
}
