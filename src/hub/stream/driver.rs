//! One open stream: what to write next, and when. It knows nothing of bodies and sockets; whoever polls it writes.

use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::time::Duration;

use super::timers::{Expiry, Heartbeat};
use crate::hub::cluster::shared_log::SharedLog;
use crate::hub::connection::handle::{ConnectionHandle, Ending};
use crate::hub::connection::info::ConnectionInfo;
use crate::hub::tasks::workers;
use crate::hub::{Hub, LifecycleEvent, Transport};
use crate::log::{Batch, Millis, millis};
use crate::macros::opaque_debug;
use crate::sync::Ordering;
use crate::types::{Address, ConnectionId, EndReason, GapReason, Position, StreamEnd, Topic};
use crate::wire::hub_events::CursorState;

/// How many reads that find nothing for a stream follow each other.
const READS: usize = 16;
/// How long a stream waits at most before it reports that the log has begun a new epoch, in
/// milliseconds.
const LONGEST_SPREAD: Millis = 5_000;

/// See the module.
pub(crate) struct StreamDriver {
    hub: Hub,
    handle: Arc<ConnectionHandle>,
    stage: Stage,
    opening: Option<Box<Opening>>,
    progress: Progress,
    end: StreamEnd,
    heartbeat: Option<Heartbeat>,
    /// If its time is limited.
    limits: Option<Box<Limits>>,
    /// Its page was told that the log cannot be followed.
    told_stale: bool,
    /// It has read all that there was and said all that there was to say: it sleeps until it is woken.
    settled: bool,
    /// How many epochs of the log it knows of, as far as two bytes count. A wider number would add
    /// eight bytes to every idle connection.
    epochs: u16,
}

impl Drop for StreamDriver {
    fn drop(&mut self) {
        let timed_out = self.handle.transport().is_some_and(|transport| transport.has_timed_out());
        let otherwise = if timed_out { EndReason::Stalled } else { EndReason::Client };
        let reason = self.handle.ending().map_or(otherwise, |ending| ending.reason);
        self.hub.inner.forget(&self.handle, reason);
        self.handle.let_carrier_go();
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Opening,
    Reading,
    /// The last frame is out.
    Ending,
    Aborting,
    Ended,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    Behind,
    /// It has read to where the log was when it was accepted; `hub.live` is due.
    Arrived,
    CaughtUp,
}

#[derive(Debug)]
struct Limits {
    expiry: Option<Expiry>,
    /// When it is old enough to be ended.
    old_at: Millis,
    /// Until when it does not read, so that not all pages fetch their state at one moment. Zero if
    /// it reads.
    reads_from: Millis,
}

impl Default for Limits {
    fn default() -> Self {
        Self { expiry: None, old_at: Millis::MAX, reads_from: 0 }
    }
}

/// What is needed only until it has caught up.
#[derive(Debug)]
struct Opening {
    cursor: CursorState,
    gap: Option<GapReason>,
    /// The horizon when it was accepted: having read to there, it has caught up.
    accepted_at: u64,
}

/// What to write next.
#[derive(Debug)]
pub(crate) enum Step {
    Hello {
        connection: ConnectionId,
        cursor: CursorState,
        topics: Vec<Topic>,
    },
    /// And then the records of the batch, if any.
    Gap {
        reason: GapReason,
        topics: Vec<Topic>,
    },
    /// The records of the batch.
    Records,
    /// With the topics in force, if they have changed.
    Live(Position, Option<Vec<Topic>>),
    Heartbeat,
    /// The log cannot be followed now.
    Stale,
    Expiring(Duration),
    Bye(Ending),
    /// End with an error instead of properly. The last step, if it comes.
    Abort,
}

// The topics and the cursor are private.
opaque_debug!(|driver: StreamDriver| { id: driver.handle.id(), stage: driver.stage });

impl StreamDriver {
    pub(in crate::hub) fn new(
        hub: &Hub,
        handle: Arc<ConnectionHandle>,
        accepted_at: u64,
        cursor: CursorState,
        gap: Option<GapReason>,
        end: StreamEnd,
        now: Millis,
    ) -> Self {
        let settings = hub.settings();
        Self {
            stage: Stage::Opening,
            opening: Some(Box::new(Opening { cursor, gap, accepted_at })),
            progress: Progress::Behind,
            end,
            heartbeat: handle.to_network.then(|| Heartbeat::new(settings, now)),
            limits: settings
                .old_age()
                .map(|age| Box::new(Limits { old_at: now.saturating_add(age), ..Limits::default() })),
            told_stale: false,
            settled: false,
            epochs: hub.inner.shared_log.as_ref().map_or(0, SharedLog::epochs),
            hub: hub.clone(),
            handle,
        }
    }

    pub(crate) fn hub(&self) -> &Hub {
        &self.hub
    }

    pub(crate) fn id(&self) -> ConnectionId {
        self.handle.id()
    }

    /// The socket below. If it is unknown, it is looked for: it can be found in the task that polls it.
    pub(crate) fn find_socket(&self) -> Option<Arc<Transport>> {
        if !self.handle.is_carrier_known()
            && let Some(transport) = self.hub.transports().of_this_task()
        {
            self.carried_by(transport);
        }
        self.socket()
    }

    /// The socket below, where that is known and it may have to be cut.
    pub(crate) fn socket(&self) -> Option<Arc<Transport>> {
        self.handle.transport()
    }

    /// Says which socket it is written to.
    pub(crate) fn carried_by(&self, transport: Arc<Transport>) {
        self.handle.carried_by(transport);
    }

    /// It is written by the hub itself now. What is known as a socket while its peer does not take what it has.
    pub(crate) fn written_through(&self, stuck: Option<Arc<Transport>>) {
        self.handle.carried_over_to(stuck);
    }

    /// Its peer was given up, since it takes nothing. To be dropped.
    pub(crate) fn stalled(&self) {
        self.handle.end(Ending::now(EndReason::Stalled));
    }

    /// Its writer is still at the last step, and the peer takes bytes. The next step reads anew.
    pub(crate) fn goes_on(&mut self, cx: &Context<'_>) {
        self.settled = false;
        self.handle.subscriber.listen(cx.waker());
        self.handle.due.store(self.hub.now(), Ordering::Release);
    }

    /// Whether the stream has nothing to write: it has read everything and was not woken since. If so,
    /// this registers the task to be woken. A server polls a body once or twice after each event, so a
    /// body calls this before it makes a [`Batch`].
    pub(crate) fn sleeps_on(&mut self, cx: &Context<'_>) -> bool {
        self.settled = self.settled && self.handle.subscriber.may_sleep(cx.waker()) && !self.handle.is_ending();
        if self.settled {
            self.handle.due.store(self.handle.alarm_at(), Ordering::Release);
        }
        self.settled
    }

    /// What to write next; `None` at the end. `batch` holds the records that belong to it.
    pub(crate) fn poll_step(&mut self, cx: &mut Context<'_>, batch: &mut Batch) -> Poll<Option<Step>> {
        let mut looked_at = None;
        let polled = self.poll_next(cx, batch, &mut looked_at);
        let due = match polled {
            // Whoever takes a step comes back for the next at once, unless the peer does not take what it has.
            Poll::Ready(_) => looked_at.unwrap_or_else(|| self.hub.now()),
            Poll::Pending => self.handle.alarm_at(),
        };
        self.handle.due.store(due, Ordering::Release);
        polled
    }

    fn poll_next(
        &mut self,
        cx: &mut Context<'_>,
        batch: &mut Batch,
        looked_at: &mut Option<Millis>,
    ) -> Poll<Option<Step>> {
        match self.stage {
            Stage::Opening => {
                self.stage = Stage::Reading;
                // It may have been opened on another runtime.
                workers::ensure(&self.hub.inner);
                if let Some(opening) = self.opening.as_deref() {
                    let topics = self.hub.log().topics(&self.handle.subscriber);
                    return Poll::Ready(Some(Step::Hello {
                        connection: self.handle.id(),
                        cursor: opening.cursor,
                        topics,
                    }));
                }
            }
            Stage::Reading => {}
            Stage::Ending | Stage::Aborting | Stage::Ended => return self.poll_end(cx),
        }

        if self.sleeps_on(cx) {
            return Poll::Pending;
        }
        self.handle.subscriber.listen(cx.waker());
        // Before it reads: a stream that always has something to read ends too.
        if let Some(step) = self.clock_step() {
            return Poll::Ready(Some(step));
        }
        loop {
            // Before the read, which then finds all records that the ending comes after.
            let ending = self.handle.ending();
            if let Some(ending) = &ending
                && (self.handle.is_gone() || self.hub.log().cursor(&self.handle.subscriber) >= ending.after)
            {
                return Poll::Ready(Some(self.finish(ending.clone())));
            }
            let found = match self.read_step(batch, looked_at) {
                Ok(step) => return Poll::Ready(Some(step)),
                Err(found) => found,
            };
            match ending {
                // The stream was woken and reads on.
                _ if found == Found::MayBeMore => return Poll::Pending,
                // A stream that waits for the shared log ends all the same: its broker may be away for long.
                Some(ending) => return Poll::Ready(Some(self.finish(ending))),
                None if self.handle.is_ending() => {}
                None => return self.poll_clock(cx),
            }
        }
    }

    fn poll_end(&mut self, cx: &Context<'_>) -> Poll<Option<Step>> {
        let (stage, polled) = match self.stage {
            // A server throws away what it has not written when a body fails. Pending makes it write first.
            Stage::Ending if self.end == StreamEnd::Abort => {
                cx.waker().wake_by_ref();
                (Stage::Aborting, Poll::Pending)
            }
            Stage::Aborting => (Stage::Ended, Poll::Ready(Some(Step::Abort))),
            _ => (Stage::Ended, Poll::Ready(None)),
        };
        self.stage = stage;
        polled
    }

    /// What the clock says: the end of its time, a notice of it, or that it is old.
    fn clock_step(&mut self) -> Option<Step> {
        let given = self.handle.expires_at();
        if given == Millis::MAX && self.limits.is_none() {
            return None;
        }
        let limits = self.limits.get_or_insert_default();
        let now = self.hub.now();
        if given != Millis::MAX {
            if limits.expiry.as_ref().is_none_or(|expiry| !expiry.is_of(given)) {
                limits.expiry = Some(Expiry::new(given, now));
            }
            if let Some(expiry) = &mut limits.expiry {
                if expiry.is_over(now) {
                    return Some(self.finish(Ending::now(EndReason::Expired)));
                }
                if let Some(remaining) = expiry.take_notice(now) {
                    return Some(Step::Expiring(remaining));
                }
            }
        }
        if now >= limits.old_at {
            limits.old_at = Millis::MAX;
            // As in a drain: what was published so far is delivered, and those who end together come back spread out.
            let retry = Some(self.hub.jittered_retry(self.hub.settings().retry, 0.0..=2.0));
            let after = self.hub.log().last();
            self.handle.end(Ending { retry, after, ..Ending::now(EndReason::Age) });
        }
        None
    }

    /// Whether the stream waits before it reports that the log has begun a new epoch. It reads
    /// nothing meanwhile, so the order of gap and events does not change. Only a stream to a
    /// network that has caught up waits: a new one comes at a time of its own, and a reader in this
    /// process may have no runtime that could wake it.
    fn waits_for_its_turn(&mut self) -> bool {
        let Some(shared) = &self.hub.inner.shared_log else { return false };
        let epochs = shared.epochs();
        if epochs != std::mem::replace(&mut self.epochs, epochs)
            && self.progress == Progress::CaughtUp
            && self.handle.to_network
        {
            let most = millis(self.hub.settings().retry).min(LONGEST_SPREAD);
            self.limits.get_or_insert_default().reads_from = self.hub.now() + fastrand::u64(0..=most);
        }
        let Some(limits) = self.limits.as_mut().filter(|limits| limits.reads_from != 0) else { return false };
        // The end of a stream comes after what there is to read. A drain has a spread of its own.
        if self.handle.is_ending() || self.hub.now() >= limits.reads_from {
            limits.reads_from = 0;
        }
        limits.reads_from != 0
    }

    /// Until when it does not read, or zero.
    fn reads_from(&self) -> Millis {
        self.limits.as_ref().map_or(0, |limits| limits.reads_from)
    }

    /// What the log has for this stream, and what is to be said of it. `Err` if that is nothing.
    fn read_step(&mut self, batch: &mut Batch, looked_at: &mut Option<Millis>) -> Result<Step, Found> {
        if self.waits_for_its_turn() {
            return Err(Found::Waits);
        }
        if let Some(reason) = self.opening.as_mut().and_then(|opening| opening.gap.take()) {
            self.hub.counters().gap(self.handle.id(), reason, self.hub.now());
            return Ok(Step::Gap { reason, topics: self.hub.log().topics(&self.handle.subscriber) });
        }
        if self.progress == Progress::Arrived
            && let Some(live) = self.live()
        {
            return Ok(live);
        }
        let caught_up = self.progress == Progress::CaughtUp;
        batch.wants_changes = caught_up;
        let found = self.read(batch);
        let (hub, handle) = (&self.hub, &self.handle);
        if batch.ordered
            && !caught_up
            && self.opening.as_ref().is_none_or(|opening| hub.log().cursor(&handle.subscriber) >= opening.accepted_at)
        {
            self.opening = None;
            self.progress = Progress::Arrived;
        }
        let count = batch.count();
        if count > 0 {
            hub.counters().delivered(handle.id(), count);
            // Nobody else writes it.
            handle.delivered.store(handle.delivered.load(Ordering::Relaxed) + count as u64, Ordering::Relaxed);
        }
        if !batch.gap.is_empty() {
            return Ok(self.gap_step(batch, caught_up));
        }
        if count > 0 {
            let now = *looked_at.insert(hub.now());
            if let Some(heartbeat) = &mut self.heartbeat {
                heartbeat.wrote(batch.ordered, now);
            }
            self.settled = self.has_settled(batch, self.is_stale());
            return Ok(Step::Records);
        }
        let is_stale = self.is_stale();
        // Not before its first `live`, which would take it back; but one that waits for older records may
        // wait for long.
        let is_due = self.progress == Progress::CaughtUp || found == Found::Waits;
        if is_stale && is_due && !batch.changed && !std::mem::replace(&mut self.told_stale, true) {
            return Ok(Step::Stale);
        }
        // Who is still behind is told so by its first `live`.
        let is_back = !is_stale && std::mem::take(&mut self.told_stale) && self.progress == Progress::CaughtUp;
        if (batch.changed || is_back || self.progress == Progress::Arrived)
            && let Some(live) = self.live()
        {
            return Ok(live);
        }
        self.settled = self.has_settled(batch, is_stale);
        Err(found)
    }

    fn is_stale(&self) -> bool {
        self.hub.inner.shared_log.as_ref().is_some_and(SharedLog::is_stale)
    }

    /// Whether the stream has read and reported everything, so that it need not look before it is
    /// woken. Everything that it reads wakes it: records, a change of its topics, its end, a new
    /// expiry, its alarm, and a log that can no longer be followed, or can be again.
    fn has_settled(&self, batch: &Batch, is_stale: bool) -> bool {
        batch.settled
            && self.progress == Progress::CaughtUp
            && !self.handle.is_ending()
            && self.told_stale == is_stale
            && self.handle.alarm_at() <= self.due()
    }

    /// When its time is over, or a notice of that is due.
    fn time_limit(&self) -> Millis {
        self.limits
            .as_ref()
            .map_or(Millis::MAX, |limits| limits.expiry.as_ref().map_or(Millis::MAX, Expiry::due).min(limits.old_at))
    }

    /// When it has something to do by itself.
    fn due(&self) -> Millis {
        let reads_from = Some(self.reads_from()).filter(|&from| from != 0).unwrap_or(Millis::MAX);
        self.heartbeat.as_ref().map_or(Millis::MAX, Heartbeat::due).min(self.time_limit()).min(reads_from)
    }

    /// Nothing is to be read: rests until something is due.
    fn poll_clock(&mut self, cx: &Context<'_>) -> Poll<Option<Step>> {
        let due = self.due();
        // An alarm that is early costs one look; moving it at every event would cost more. While it has not
        // rung nothing is due, and the clock need not be read. It is never set if nothing will be.
        if self.handle.alarm_at() <= due {
            return Poll::Pending;
        }
        let now = self.hub.now();
        if now >= self.time_limit() {
            // The next look begins with it.
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let reads = self.reads_from() == 0;
        if let Some(heartbeat) = &mut self.heartbeat
            && now >= heartbeat.due()
        {
            heartbeat.wrote(false, now);
            if self.progress == Progress::CaughtUp
                && reads
                && !self.told_stale
                && (self.hub.settings().visible_heartbeat || heartbeat.needs_id(self.hub.settings(), now))
                && let Some(live) = self.live()
            {
                return Poll::Ready(Some(live));
            }
            return Poll::Ready(Some(Step::Heartbeat));
        }
        // Not far ahead: a stream that has gone is remembered for as long as its alarm.
        let soon = now.saturating_add(millis(self.hub.settings().heartbeat));
        workers::set_alarm(&self.hub.inner, &self.handle, due.min(soon));
        Poll::Pending
    }

    /// What the stream may read now: from memory, and if it comes back from before what is there, from
    /// where the log is shared.
    fn read(&self, batch: &mut Batch) -> Found {
        let (hub, handle) = (&self.hub, &self.handle);
        batch.looks_back = hub.inner.shared_log.is_some();
        for _ in 0..READS {
            hub.log().read(&handle.subscriber, batch);
            match (batch.needs.take(), &hub.inner.shared_log) {
                (Some(after), Some(shared)) => {
                    batch.past = shared.look_back(hub.log().base(), after, handle, hub.now());
                    if batch.past.is_none() {
                        hub.inner.ensure_shared_log();
                        return Found::Waits;
                    }
                }
                _ if batch.goes_on && batch.count() == 0 && batch.gap.is_empty() => {}
                _ => return Found::All,
            }
        }
        // Other streams get their turn after so many reads that found nothing.
        handle.wake(hub.now());
        Found::MayBeMore
    }

    fn gap_step(&mut self, batch: &mut Batch, caught_up: bool) -> Step {
        let (hub, handle) = (&self.hub, &self.handle);
        let was_too_slow = caught_up && batch.gap_reason.is_none();
        let topics: Vec<Topic> = batch.gap.iter().filter_map(Address::topic).cloned().collect();
        if was_too_slow {
            hub.inner.lifecycles.tell(|| LifecycleEvent::Lagged {
                connection: Arc::new(ConnectionInfo::of(handle, hub.log().topics(&handle.subscriber), hub.now())),
                topics: topics.clone(),
            });
            if batch.disconnects {
                batch.records.clear();
                return self.finish(Ending::now(EndReason::Lagged));
            }
        }
        let reason = if was_too_slow { GapReason::Lagged } else { batch.gap_reason.unwrap_or(GapReason::Trimmed) };
        hub.counters().gap(handle.id(), reason, hub.now());
        Step::Gap { reason, topics }
    }

    /// Caught up; none while something older is still to be replayed.
    fn live(&mut self) -> Option<Step> {
        let (position, topics) = self.hub.log().settled(&self.handle.subscriber)?;
        if let Some(heartbeat) = &mut self.heartbeat {
            heartbeat.wrote(true, self.hub.now());
        }
        self.progress = Progress::CaughtUp;
        // If the log cannot be followed now, that is said again.
        self.told_stale = false;
        Some(Step::Live(position, topics))
    }

    /// It is out of the registry and out of its channels before its last frame is written.
    fn finish(&mut self, ending: Ending) -> Step {
        let ending = self.handle.end(ending);
        self.stage = Stage::Ending;
        self.hub.inner.forget(&self.handle, ending.reason);
        Step::Bye(ending)
    }
}

/// What a read left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    /// Everything was read that there was.
    All,
    /// There may be more. The stream was woken to read on.
    MayBeMore,
    /// Older records have to come from the shared log first, or the gap of a new epoch is not due
    /// yet.
    Waits,
}
