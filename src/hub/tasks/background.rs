//! A background task of a hub: how it runs, when there is work for it, and the slot that it runs in.
//!
//! A caller stores work under a lock and then calls [`Background::ensure`]. The task ends by itself
//! when it finds no work. The slot then asks `has_more`, which takes the lock of the work again. So no
//! work is left without a task ([rule 4 of slots](super::slot)).

use std::sync::{Arc, Weak};

use futures::future::BoxFuture;
use tokio::sync::Notify;

use super::slot::TaskSlot;
use super::workers::{Host, home};

/// What a background task does. `H` is what the hub holds.
pub(in crate::hub) struct Job<H> {
    /// Runs until there is no work, or until the hub is gone. The notification wakes it before its own time.
    pub(in crate::hub) run: fn(Weak<H>, Arc<Notify>) -> BoxFuture<'static, ()>,
    /// Whether there is work for it. Each call of [`Background::ensure`] asks this while no task runs, so it is cheap.
    pub(in crate::hub) has_work: fn(&Arc<H>) -> bool,
    /// Whether there is work after all. Asked when the task has just ended by itself; it may do a part of the work.
    pub(in crate::hub) has_more: fn(&Arc<H>) -> bool,
}

pub(in crate::hub) struct Background<H: 'static> {
    slot: Arc<TaskSlot>,
    job: &'static Job<H>,
}

impl<H: Host> Background<H> {
    pub(in crate::hub) fn new(job: &'static Job<H>) -> Self {
        Self { slot: Arc::default(), job }
    }

    /// Starts the task if there is work and no task that gets its turns. Without a runtime nothing happens: the first
    /// caller that has one starts it.
    pub(in crate::hub) fn ensure(&self, host: &Arc<H>) {
        if !self.is_attended(host) {
            start(&self.slot, self.job, host);
        }
    }

    /// Whether a task gets its turns, or there is no work.
    pub(in crate::hub) fn is_attended(&self, host: &Arc<H>) -> bool {
        self.slot.is_attended() || !(self.job.has_work)(host)
    }

    /// Wakes the task, because something may be due before it would look.
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
