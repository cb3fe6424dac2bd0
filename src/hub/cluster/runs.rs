//! The exchange of runs with the broker: journals and announcements.
//!
//! 1. A run is true at the broker. An append is a compare-and-swap on the number of entries, so a
//!    journal has one order, and an entry after the end is impossible.
//! 2. A journal is read after an announcement of its writer's instance, and in addition once for
//!    each third of the peer timeout, because an announcement may be lost.
//! 3. Each instance that reads a run ends it when the instance of its writer is gone
//!    ([`Owners`](crate::hub::runs::owners::Owners)). Several may do so at the same time, and the
//!    broker accepts one end.
//! 4. An entry that the broker may have keeps its number until the broker answers. Otherwise the
//!    next entry would conflict with it, as if the run had ended ([`Unconfirmed`]). A caller that
//!    is dropped leaves the entry to [`run_ends`](super::run_ends).
//! 5. A run of this instance that is at the broker has a writer here, or its caller still waits for
//!    the broker ([`Awaited`]), or it is a stray one, which the next read ends.

use std::borrow::Cow;
use std::collections::hash_set::HashSet;
use std::error::Error;
use std::sync::{Arc, Weak};

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt, stream};
use tokio::time::{Duration, Instant};

use super::shared_log::SharedLog;
use crate::backplane::{Answer, BackplaneError, Begun, JournalAppend, JournalId, in_time};
use crate::hub::peers::message::{Body, RunNews};
use crate::hub::runs::content::{Entry, Over, Progress, RunContent};
use crate::hub::runs::entry::{self, Beginning};
use crate::hub::runs::exchange::{Awaited, DueEnd, Outgoing, Unconfirmed};
use crate::hub::tasks::back_off::BackOff;
use crate::hub::tasks::background::Job;
use crate::hub::{Hub, Inner};
use crate::types::{Epoch, Event, PublishError, RunEnd, RunError, Scoped, Topic};

/// The approximate maximum size of one read of a journal.
const PAGE_BYTES: usize = 256 * 1024;
/// The maximum number of journals that are read at the same time.
pub(super) const CONCURRENT: usize = 32;
/// The maximum number of attempts to begin a run, if each time another run has just ended.
const BEGINNINGS: usize = 3;
/// The maximum number of runs in one announcement. With the longest names and scopes, it has about
/// 280 kB, or 540 kB if the encoding escapes each character. By default, NATS allows 1 MB.
const NEWS_PER_MESSAGE: usize = 512;

pub(in crate::hub) static JOB: Job<Inner> =
    Job { run: |hub, _| work(hub).boxed(), has_work: is_wanted, has_more: is_wanted };

fn is_wanted(inner: &Arc<Inner>) -> bool {
    inner.shared_log.as_ref().is_some_and(|shared| !shared.runs.lock().wanted.is_empty())
}

/// Reads until nothing is left.
async fn work(inner: Weak<Inner>) {
    let mut back_off = BackOff::new();
    loop {
        let Some(hub) = inner.upgrade().map(|inner| Hub { inner }) else { return };
        let Some(shared) = &hub.inner.shared_log else { return };
        let wanted = std::mem::take(&mut shared.runs.lock().wanted);
        if wanted.is_empty() {
            return;
        }
        if hub.read_wanted(shared, Unread { shared, names: wanted }).await {
            back_off = BackOff::new();
        } else {
            drop(hub);
            back_off.wait().await;
        }
    }
}

/// The names of runs that were not read yet. If the task is dropped, the next one reads them.
struct Unread<'a> {
    shared: &'a SharedLog,
    names: HashSet<Topic>,
}

impl Drop for Unread<'_> {
    fn drop(&mut self) {
        self.shared.runs.lock().wanted.extend(self.names.drain());
    }
}

impl Hub {
    /// Reads the journals of runs. Returns whether it has read all of them.
    async fn read_wanted(&self, shared: &SharedLog, mut unread: Unread<'_>) -> bool {
        let names: Vec<Topic> = unread.names.iter().cloned().collect();
        let mut reads = stream::iter(names)
            .map(|name| async move { (self.refresh_if_used(shared, &name).await, name) })
            .buffer_unordered(CONCURRENT);
        while let Some((read, name)) = reads.next().await {
            match read {
                Ok(()) => drop(unread.names.remove(&name)),
                Err(error) => {
                    tracing::debug!(name: "sse.run.read_failed", %error, "the journal of a run cannot be read");
                }
            }
        }
        unread.names.is_empty()
    }

    /// Reads the rest of a run, or forgets the run if no reader and no writer uses it.
    async fn refresh_if_used(&self, shared: &SharedLog, name: &Topic) -> Answer<()> {
        if self.inner.runs.forget_unused(name, shared.instance_id) {
            return Ok(());
        }
        self.refresh_run(shared, name).await.map(drop)
    }

    /// Begins a run at the broker.
    pub(in crate::hub) async fn begin_shared_run(
        &self,
        shared: &SharedLog,
        name: &Topic,
        will: Option<Event>,
    ) -> Result<Arc<RunContent>, RunError> {
        let beginning = Beginning { owner: shared.instance_id, will };
        let first = Bytes::from(entry::encode_beginning(&beginning));
        for _ in 0..BEGINNINGS {
            // The next run replaces the earlier one at the broker. So the readers of this instance
            // first receive the rest of the earlier run.
            let seems_active = self.inner.runs.get(name).is_some_and(|earlier| earlier.is_active());
            if seems_active && self.is_run_active(shared, name).await? {
                return Err(RunError::ACTIVE);
            }
            let mut begun = MayHaveBegun::new(self, shared, name, &first);
            let answer = self.persist(|| shared.backplane.begin_journal(&journal_key(name), first.clone())).await;
            begun.is_unknown = answer.as_ref().is_err_and(BackplaneError::is_unknown);
            if let Begun::New(id) = answer.map_err(|error| broker(&error))? {
                let run = Arc::new(RunContent::new(Epoch(id.get()), beginning.owner, beginning.will));
                run.apply(1, Entry::default(), self.now());
                let run = self.inner.runs.put(name, run, self.now());
                let awaited = shared.runs.lock().beginnings.remove(&first);
                if awaited.is_some_and(|awaited| awaited.stop == Some(run.id)) {
                    run.ask_to_stop();
                }
                self.announce_run(shared, name, &run);
                return Ok(run);
            }
            // Reading the active run ends it if the instance of its writer is gone.
            if self.is_run_active(shared, name).await? {
                return Err(RunError::ACTIVE);
            }
        }
        Err(RunError::ACTIVE)
    }

    async fn is_run_active(&self, shared: &SharedLog, name: &Topic) -> Result<bool, RunError> {
        let newest = self.refresh_run(shared, name).await;
        let newest = newest.map_err(|error| PublishError::broker(false, error))?;
        Ok(newest.is_some_and(|run| run.is_active()))
    }

    /// Completes the entry that the broker has not confirmed, and then appends the next entry.
    /// Returns the number of its first event. Entries that the broker does not confirm stay in
    /// `outgoing`.
    pub(in crate::hub) async fn write_run(
        &self,
        shared: &SharedLog,
        name: &Topic,
        run: &Arc<RunContent>,
        outgoing: &mut Outgoing,
    ) -> Result<u64, RunError> {
        // While the outcome of the earlier entry is unknown, the next one is not stored yet. An end
        // is stored later, because the hub completes it.
        let is_end = outgoing.next.as_ref().is_some_and(|(_, entry)| entry.over.is_some());
        let of_next = |error: RunError| match error.is_unavailable() {
            true => PublishError::broker(is_end && !is_rejected(&error), error).into(),
            false => error,
        };
        self.append_to_run(shared, name, run, &mut outgoing.unconfirmed).await.map_err(of_next)?;
        let Progress { events, entries, .. } = run.progress();
        if let Some((_, entry)) = &outgoing.next {
            run.check(entry, &self.settings().runs)?;
        }
        let number = entries + 1;
        let next = outgoing.next.take();
        outgoing.unconfirmed = next.map(|(bytes, entry)| Unconfirmed { number, bytes, entry, may_be_stored: false });
        self.append_to_run(shared, name, run, &mut outgoing.unconfirmed).await?;
        Ok(events)
    }

    /// Appends an entry of a run at the broker, and then in memory. If the broker does not confirm
    /// the entry, it stays in `unconfirmed`.
    async fn append_to_run(
        &self,
        shared: &SharedLog,
        name: &Topic,
        run: &Arc<RunContent>,
        unconfirmed: &mut Option<Unconfirmed>,
    ) -> Result<(), RunError> {
        let Some(Unconfirmed { number, bytes, entry, may_be_stored }) = unconfirmed else { return Ok(()) };
        // True during the request, because the caller may drop this future.
        let was_sent = std::mem::replace(may_be_stored, true);
        let close = entry.over.is_some().then_some(self.settings().runs.keep_for);
        let (id, after) = (journal(run.id), *number - 1);
        let append = || shared.backplane.append_journal(&journal_key(name), id, after, bytes.clone(), close);
        match self.persist(append).await {
            Ok(JournalAppend::Appended) => {
                if let Some(Unconfirmed { number, entry, .. }) = unconfirmed.take() {
                    let is_over = entry.over.is_some();
                    run.apply(number, entry, self.now());
                    self.announce_run(shared, name, run);
                    if is_over {
                        self.inner.run_ended(name, run.id);
                    }
                }
                Ok(())
            }
            Ok(JournalAppend::Conflict) => {
                *unconfirmed = None;
                // Another instance has ended the run, or the broker has lost it. Streams of this
                // instance learn it from this read, or from a later one.
                shared.runs.lock().wanted.insert(name.clone());
                self.inner.ensure_shared_log();
                Err(RunError::ENDED)
            }
            Err(error) => {
                *may_be_stored = was_sent || error.is_unknown();
                // The writer of an end cannot repeat it, so the task does.
                let is_kept = *may_be_stored || close.is_some() && !error.is_rejected();
                if !is_kept {
                    *unconfirmed = None;
                }
                Err(PublishError::broker(is_kept, error.duplicate()).into())
            }
        }
    }

    /// Reads the rest of the newest run of a name. Ends the run if the instance of its writer is
    /// gone. Returns `None` if the broker has no run of this name.
    pub(in crate::hub) async fn refresh_run(
        &self,
        shared: &SharedLog,
        name: &Topic,
    ) -> Answer<Option<Arc<RunContent>>> {
        loop {
            let Some(run) = self.read_run(shared, name).await? else { return Ok(None) };
            if !run.is_active() || !self.is_owner_gone(shared, &run) {
                return Ok(Some(run));
            }
            self.abort_run(shared, name, &run, self.settings().runs.keep_for).await?;
        }
    }

    /// Reads the journal of the newest run of a name up to its end.
    async fn read_run(&self, shared: &SharedLog, name: &Topic) -> Answer<Option<Arc<RunContent>>> {
        loop {
            let known = self.inner.runs.get(name);
            let id = known.as_ref().map(|run| journal(run.id));
            let after = known.as_ref().map_or(0, |run| run.progress().entries);
            let limit = self.settings().publish_timeout;
            let page = in_time(limit, shared.backplane.read_journal(&journal_key(name), id, after, PAGE_BYTES)).await?;
            let Some(page) = page else {
                let Some(run) = known else { return Ok(None) };
                // The broker has forgotten the run, or has a newer one of this name.
                run.lose(self.now());
                self.inner.runs.forget(name, run.id);
                continue;
            };
            if let Some(run) = known.as_ref().filter(|_| page.last < after) {
                // The broker was restored from a backup. Read again what it has now.
                run.lose(self.now());
                self.inner.runs.forget(name, run.id);
                continue;
            }
            let mut entries = page.entries.into_iter();
            let run = match known {
                Some(run) => run,
                None => {
                    let invalid = || BackplaneError::rejected("the journal has an invalid first entry");
                    let first = entries.next().ok_or_else(invalid)?;
                    let Beginning { owner, will } = entry::decode_beginning(&first).ok_or_else(invalid)?;
                    let mut run = RunContent::new(Epoch(page.id.get()), owner, will);
                    run.is_stray = owner == shared.instance_id && !shared.runs.lock().beginnings.contains_key(&first);
                    run.apply(1, Entry::default(), self.now());
                    self.inner.runs.put_copy(name, Arc::new(run))
                }
            };
            if run.id.0 != page.id.get() {
                continue;
            }
            let first = if id.is_some() { after + 1 } else { 2 };
            for (number, bytes) in (first..).zip(entries) {
                match entry::decode(&bytes, &self.settings().framing) {
                    Some(entry) => {
                        let is_over = entry.over.is_some();
                        // Another read may have applied the entry already.
                        if run.apply(number, entry, self.now()).is_some() && is_over {
                            self.inner.run_ended(name, run.id);
                        }
                    }
                    None => {
                        if run.lose_unreadable(self.now()) {
                            tracing::warn!(name: "sse.run.entry_unreadable", "a run has an entry that this version cannot read");
                            self.inner.run_ended(name, run.id);
                        }
                        return Ok(Some(run));
                    }
                }
            }
            if run.is_active() && page.is_closed && run.progress().entries >= page.last {
                // The broker was restored from a backup, and the run has ended since: this instance
                // has another last entry. Read again what the broker has now.
                run.lose(self.now());
                self.inner.runs.forget(name, run.id);
                continue;
            }
            if run.progress().entries >= page.last || !run.is_active() {
                return Ok(Some(run));
            }
        }
    }

    /// Returns whether a run has no writer any more. Returns false for a run of another instance
    /// while this instance receives no messages itself.
    fn is_owner_gone(&self, shared: &SharedLog, run: &RunContent) -> bool {
        if run.owner == shared.instance_id {
            return run.is_stray;
        }
        let now = self.now();
        let is_received = shared.peers.lock().is_received(now);
        let is_silent = shared.runs.lock().owners.is_gone(run.owner, now);
        is_received && is_silent
    }

    /// Ends a run without its writer. Reads on if another instance was faster.
    pub(super) async fn abort_run(
        &self,
        shared: &SharedLog,
        name: &Topic,
        run: &Arc<RunContent>,
        keep: Duration,
    ) -> Answer<()> {
        let after = run.progress().entries;
        let over = Over { end: RunEnd::Aborted, note: None };
        let bytes = Bytes::from(entry::encode(run.will.as_slice(), Some(&over)));
        let id = journal(run.id);
        let append = || shared.backplane.append_journal(&journal_key(name), id, after, bytes.clone(), Some(keep));
        if let JournalAppend::Appended = self.persist(append).await? {
            let drafts = entry::drafts(run.will.as_slice(), &self.settings().framing).unwrap_or_default();
            run.apply(after + 1, Entry { drafts, over: Some(over) }, self.now());
            self.announce_run(shared, name, run);
            self.inner.run_ended(name, run.id);
        }
        Ok(())
    }

    /// Repeats a request until the broker has answered it, within the publish timeout. The error is
    /// unknown if one of the attempts may have had an effect.
    pub(super) async fn persist<'a, T>(&self, mut request: impl FnMut() -> BoxFuture<'a, Answer<T>>) -> Answer<T> {
        let until = Instant::now() + self.settings().publish_timeout;
        let mut back_off = BackOff::new();
        let mut is_unknown = false;
        loop {
            let remaining = until.saturating_duration_since(Instant::now());
            let error = match in_time(remaining, request()).await {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            is_unknown |= error.is_unknown();
            if error.is_rejected() || tokio::time::timeout_at(until, back_off.wait()).await.is_err() {
                return Err(if is_unknown { BackplaneError::unknown(error.to_string()) } else { error });
            }
        }
    }

    /// Makes the control task announce the newest entry of a run, unless a later run of this name
    /// has begun.
    fn announce_run(&self, shared: &SharedLog, name: &Topic, run: &RunContent) {
        if self.inner.runs.get(name).is_some_and(|newest| newest.id != run.id) {
            return;
        }
        let news = RunNews { id: run.id, entries: run.progress().entries };
        shared.runs.lock().note(name, news);
        self.inner.ensure_shared_log();
    }

    /// Processes announcements of another instance.
    pub(super) fn receive_run_news(&self, shared: &SharedLog, news: Vec<(Topic, RunNews)>) {
        let mut wanted = Vec::new();
        for (name, news) in news {
            match self.inner.runs.get(&name) {
                Some(run) if run.id == news.id && run.progress().entries >= news.entries => {}
                Some(_) => wanted.push(name),
                None => drop(self.inner.runs.notify(&name)),
            }
        }
        self.want_runs(shared, wanted);
    }

    /// Announces the newest entries of this instance's runs.
    pub(super) async fn broadcast_run_news(&self, shared: &SharedLog) -> Answer<()> {
        let changed = std::mem::take(&mut shared.runs.lock().changed);
        let mut changed = changed.into_iter().peekable();
        while changed.peek().is_some() {
            let batch: Vec<_> = changed.by_ref().take(NEWS_PER_MESSAGE).collect();
            if let Err(error) = self.broadcast(shared, Body::Runs(batch.clone())).await {
                shared.runs.lock().put_back(batch.into_iter().chain(changed));
                return Err(error);
            }
        }
        Ok(())
    }

    /// Sends the request to stop a run to the instance of its writer.
    pub(in crate::hub) async fn broadcast_stop(&self, shared: &SharedLog, name: Topic, id: Epoch) -> Answer<()> {
        self.broadcast(shared, Body::Stop(name, id)).await
    }

    /// Processes a request to stop. Only the instance of the writer has a writer to ask.
    pub(super) fn receive_stop(&self, shared: &SharedLog, name: &Topic, id: Epoch) {
        // The caller may have found the run at the broker before the answer to its writer arrives.
        for awaited in shared.runs.lock().beginnings.values_mut().filter(|awaited| awaited.name == *name) {
            awaited.stop = Some(id);
        }
        if let Some(run) = self.inner.runs.get(name).filter(|run| run.id == id) {
            run.ask_to_stop();
        }
    }

    /// Makes the task look at each run that a stream reads. The task then finds entries whose
    /// announcement was lost, and ends the runs of instances that are gone. If other instances may
    /// have ended the runs of this instance meanwhile, the task looks at these too.
    pub(super) fn look_at_runs(&self, shared: &SharedLog) {
        let is_received = shared.peers.lock().is_received(self.now());
        let looks_at_own = is_received && std::mem::take(&mut shared.runs.lock().may_be_ended);
        if !is_received {
            shared.runs.lock().may_be_ended = true;
        }
        let runs = self.inner.runs.all().into_iter().filter(|(_, run)| run.is_active());
        let looked_at = runs.filter(|(_, run)| looks_at_own || run.owner != shared.instance_id);
        self.want_runs(shared, looked_at.map(|(name, _)| name).collect());
    }

    pub(super) fn want_runs(&self, shared: &SharedLog, names: Vec<Topic>) {
        if !names.is_empty() {
            shared.runs.lock().wanted.extend(names);
            self.inner.ensure_shared_log();
        }
    }
}

/// A beginning whose outcome is not known yet. If it is dropped, the task ends the run that may
/// have begun.
struct MayHaveBegun<'a> {
    hub: &'a Hub,
    shared: &'a SharedLog,
    name: &'a Topic,
    first: &'a Bytes,
    is_unknown: bool,
}

impl<'a> MayHaveBegun<'a> {
    fn new(hub: &'a Hub, shared: &'a SharedLog, name: &'a Topic, first: &'a Bytes) -> Self {
        let awaited = Awaited { name: name.clone(), stop: None };
        shared.runs.lock().beginnings.insert(first.clone(), awaited);
        Self { hub, shared, name, first, is_unknown: true }
    }
}

impl Drop for MayHaveBegun<'_> {
    fn drop(&mut self) {
        let mut runs = self.shared.runs.lock();
        runs.beginnings.remove(self.first);
        if self.is_unknown {
            runs.ends.push(DueEnd::UnknownBeginning(self.name.clone(), self.first.clone()));
            drop(runs);
            self.hub.inner.ensure_shared_log();
        }
    }
}

/// Returns the key of the journal of a run.
pub(super) fn journal_key(name: &Topic) -> Cow<'_, str> {
    name.scope_name().broker_key(name.as_str())
}

/// Returns the id of the journal of a run.
fn journal(id: Epoch) -> JournalId {
    // The id is of a journal, so it is not zero.
    JournalId::new(id.0).unwrap_or_else(JournalId::random)
}

/// Converts the error of a broker into that of a caller.
pub(super) fn broker(error: &BackplaneError) -> RunError {
    PublishError::broker(error.is_unknown(), error.duplicate()).into()
}

/// Returns whether the broker will not accept the request, also if it is repeated.
pub(super) fn is_rejected(error: &RunError) -> bool {
    let causes = std::iter::successors(error.source(), |&cause| cause.source());
    causes.filter_map(|cause| cause.downcast_ref::<BackplaneError>()).any(BackplaneError::is_rejected)
}
