//! The ends of runs in the memory of this instance.

use std::sync::Arc;

use super::content::{Entry, Over, RunContent};
use super::entry;
use crate::hub::Inner;
use crate::log::millis;
use crate::types::{Epoch, RunEnd, Topic};

impl Inner {
    /// Notes that a run has ended, so that the housekeeping forgets it after the time for which
    /// runs are kept.
    pub(in crate::hub) fn run_ended(self: &Arc<Self>, name: &Topic, id: Epoch) {
        let at = self.now().saturating_add(millis(self.settings.runs.keep_for));
        self.runs.forget_at(at, name, id);
        self.tasks.sweep.ensure(self);
        self.tasks.sweep.rouse();
    }

    /// Ends a run of a hub without a shared log as aborted, unless it has ended. The last will is
    /// its last event.
    pub(in crate::hub) fn abort_local_run(self: &Arc<Self>, name: &Topic, run: &RunContent) {
        let drafts = || entry::drafts(run.will.as_slice(), &self.settings.framing).unwrap_or_default();
        let over = || Some(Over { end: RunEnd::Aborted, note: None });
        while run.is_active() {
            let next = run.progress().entries + 1;
            if run.apply(next, Entry { drafts: drafts(), over: over() }, self.now()).is_some() {
                self.run_ended(name, run.id);
            }
        }
    }
}
