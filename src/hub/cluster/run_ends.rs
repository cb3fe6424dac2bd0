//! The ends of runs whose callers are gone: their writers were dropped, or the outcome of their
//! beginnings is unknown.
//!
//! 1. A call that is dropped leaves its end in
//!    [`Exchange::ends`](crate::hub::runs::exchange::Exchange). The task carries the ends out until
//!    the broker has accepted them.
//! 2. Reads of runs do not wait for ends. The ends of one turn do not wait for each other, and the
//!    next turn begins after the last of them.
//! 3. A drain ends the runs of its instance as aborted. It leaves out a run whose end is queued
//!    already, so that a run that was finished does not end as aborted.

use std::sync::{Arc, Weak};

use bytes::Bytes;
use futures::{FutureExt, StreamExt, future, stream};
use tokio::time::Duration;

use super::runs::{CONCURRENT, broker, is_rejected, journal_key};
use super::shared_log::SharedLog;
use crate::backplane::{Answer, Begun, in_time};
use crate::hub::runs::content::{Entry, RunContent};
use crate::hub::runs::entry::{self, Beginning};
use crate::hub::runs::exchange::{DueEnd, Orphan};
use crate::hub::tasks::back_off::BackOff;
use crate::hub::tasks::background::Job;
use crate::hub::{Hub, Inner};
use crate::types::{Epoch, RunError, Topic};

/// The time for which the broker keeps a run whose caller never learned that it had begun.
const KEEP_UNREAD: Duration = Duration::from_secs(1);

pub(in crate::hub) static JOB: Job<Inner> =
    Job { run: |hub, _| work(hub).boxed(), has_work: is_wanted, has_more: is_wanted };

fn is_wanted(inner: &Arc<Inner>) -> bool {
    inner.shared_log.as_ref().is_some_and(|shared| !shared.runs.lock().ends.is_empty())
}

/// Works until no end is left.
async fn work(inner: Weak<Inner>) {
    let mut back_off = BackOff::new();
    loop {
        let Some(hub) = inner.upgrade().map(|inner| Hub { inner }) else { return };
        let Some(shared) = &hub.inner.shared_log else { return };
        if shared.runs.lock().ends.is_empty() {
            return;
        }
        if hub.end_all_due(shared).await {
            back_off = BackOff::new();
        } else {
            drop(hub);
            back_off.wait().await;
        }
    }
}

/// An end that may not be done yet. If it is dropped before it is done, a later turn repeats it.
struct Undone<'a> {
    shared: &'a SharedLog,
    end: Option<DueEnd>,
}

impl Drop for Undone<'_> {
    fn drop(&mut self) {
        self.shared.runs.lock().ends.extend(self.end.take());
    }
}

impl Hub {
    /// Carries out all ends that are due. Returns whether all of them are done.
    async fn end_all_due(&self, shared: &SharedLog) -> bool {
        let due = std::mem::take(&mut shared.runs.lock().ends);
        let ends: Vec<_> = due.into_iter().map(|end| self.end_due(shared, Undone { shared, end: Some(end) })).collect();
        let done = stream::iter(ends).buffer_unordered(CONCURRENT);
        done.fold(true, |all, is_done| std::future::ready(all && is_done)).await
    }

    /// Carries out one end. Returns whether it is done.
    async fn end_due(&self, shared: &SharedLog, mut undone: Undone<'_>) -> bool {
        let ended = match &mut undone.end {
            None => Ok(()),
            Some(DueEnd::Orphan(orphan)) => self.end_orphan(shared, orphan).await,
            Some(DueEnd::UnknownBeginning(name, first)) => {
                self.end_unknown(shared, name, first).await.map_err(|error| broker(&error))
            }
        };
        match ended {
            Ok(()) => undone.end = None,
            Err(error) => {
                tracing::debug!(name: "sse.run.end_delayed", %error, "a run without a writer cannot be ended yet");
            }
        }
        undone.end.is_none()
    }

    /// Ends a run of this instance whose writer is gone.
    async fn end_orphan(&self, shared: &SharedLog, orphan: &mut Orphan) -> Result<(), RunError> {
        let Orphan { name, run, outgoing } = orphan;
        match self.write_run(shared, name, run, outgoing).await {
            // The run ends without an entry that the broker rejects.
            Err(error) if error.is_unavailable() && !is_rejected(&error) => return Err(error),
            Ok(_) | Err(_) => {}
        }
        self.end_own_run(shared, name, run).await.map_err(|error| broker(&error))
    }

    /// Ends a run of this instance as aborted, unless it has ended.
    pub(in crate::hub) async fn end_own_run(
        &self,
        shared: &SharedLog,
        name: &Topic,
        run: &Arc<RunContent>,
    ) -> Answer<()> {
        while run.is_active() {
            self.abort_run(shared, name, run, self.settings().runs.keep_for).await?;
            if run.is_active() {
                // An entry that was not confirmed has arrived, or another instance has ended the
                // run.
                match self.refresh_run(shared, name).await? {
                    Some(newest) if Arc::ptr_eq(&newest, run) => {}
                    _ => drop(run.lose(self.now())),
                }
            }
        }
        Ok(())
    }

    /// Ends a run that may have begun, although its caller has given up.
    async fn end_unknown(&self, shared: &SharedLog, name: &Topic, first: &Bytes) -> Answer<()> {
        let Some(Beginning { owner, will }) = entry::decode_beginning(first) else { return Ok(()) };
        let limit = self.settings().publish_timeout;
        let page = in_time(limit, shared.backplane.read_journal(&journal_key(name), None, 0, 1)).await?;
        let id = match page {
            Some(page) if page.entries.first() == Some(first) => page.id,
            // Another run of this name has begun. A repeated beginning might replace it. If the
            // first one still arrives, the run is a stray one.
            Some(_) => return Ok(()),
            // The broker answers a repeated beginning as it answered the first one.
            None => match self.persist(|| shared.backplane.begin_journal(&journal_key(name), first.clone())).await? {
                Begun::New(id) => id,
                Begun::Active(_) => return Ok(()),
            },
        };
        // A reader of this instance may have found the run at the broker.
        let known = self.inner.runs.get(name).filter(|run| run.id.0 == id.get());
        let run = known.unwrap_or_else(|| {
            let run = RunContent::new(Epoch(id.get()), owner, will);
            run.apply(1, Entry::default(), self.now());
            Arc::new(run)
        });
        // If the run has ended already, this has no effect, and the next read finds the end.
        self.abort_run(shared, name, &run, KEEP_UNREAD).await?;
        if run.is_active() {
            self.want_runs(shared, vec![name.clone()]);
        }
        Ok(())
    }

    /// Ends all runs that this instance writes, within the publish timeout.
    pub(in crate::hub) async fn end_own_runs(&self) {
        let runs = self.inner.runs.all().into_iter().filter(|(_, run)| run.is_active());
        let Some(shared) = &self.inner.shared_log else {
            runs.for_each(|(name, run)| self.inner.abort_local_run(&name, &run));
            return;
        };
        let own = runs.filter(|(_, run)| run.owner == shared.instance_id);
        let (ending, active): (Vec<_>, Vec<_>) = own.partition(|(_, run)| run.is_ending());
        let ended = future::join_all(ending.iter().map(|(_, run)| run.ended()));
        let aborts: Vec<_> = active.iter().map(|(name, run)| self.abort_in_drain(shared, name, run)).collect();
        let aborted = stream::iter(aborts).buffer_unordered(CONCURRENT).collect::<()>();
        let ends = future::join3(self.end_all_due(shared), ended, aborted);
        // The error is logged for each run, or the lease of this instance ends the runs.
        let _ = tokio::time::timeout(self.settings().publish_timeout, ends).await;
        // The task goes on with the ends that are not done.
        self.inner.ensure_shared_log();
    }

    async fn abort_in_drain(&self, shared: &SharedLog, name: &Topic, run: &Arc<RunContent>) {
        if let Err(error) = self.end_own_run(shared, name, run).await {
            tracing::warn!(name: "sse.run.end_failed", %error, "a run of this instance could not be ended: its readers learn it after peer_timeout");
        }
    }
}
