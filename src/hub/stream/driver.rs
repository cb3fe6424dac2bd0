//! One open stream: a state machine that decides what to write next, and when.
//!
//! [`StreamDriver`] does no I/O. Three callers poll it for steps: the HTTP body, the stream in this
//! process ([`Hub::subscribe`]) and the hub's own writer.
//!
//! 1. A stream registers its waker, then checks whether it must end, and then reads
//!    ([`StreamDriver::poll_next`]). So every record and every ending either is found by the poll
//!    or wakes the stream again.
//! 2. An ending may have a position. The stream first writes its records up to that position, and
//!    then the ending. A stream that waits for the shared log ends without them. The stream reads
//!    the ending before the records, so that it misses no record up to that position.
//! 3. A stream that has read and reported everything is *settled*, and does not read again until it
//!    is woken. Every change that it has to report also wakes it ([`StreamDriver::has_settled`]).
//! 4. The connection is removed from the registry before its last frame is written
//!    ([`StreamDriver::finish`]).
//!
//! Only the task that polls the stream uses the fields of [`StreamDriver`]. The rest of the hub
//! uses [`ConnectionHandle`].

use std::sync::Arc;
use std::task::{Context, Poll};

use smallvec::SmallVec;
use tokio::time::Duration;

use super::timers::{Expiry, Heartbeat};
use crate::hub::cluster::shared_log::SharedLog;
use crate::hub::connection::handle::{ConnectionHandle, Ending};
use crate::hub::connection::info::ConnectionInfo;
use crate::hub::runs::content::Over;
use crate::hub::runs::found::RunCursor;
use crate::hub::tasks::workers;
use crate::hub::{Hub, LifecycleEvent, Transport};
use crate::log::{Batch, Millis, millis};
use crate::macros::opaque_debug;
use crate::sync::Ordering;
use crate::types::{
    Address, ConnectionId, EndReason, GapReason, Ids, Position, Reconnect, RunEnd, StreamEnd, Subscription, Topic,
};
use crate::wire::Frame;
use crate::wire::hub_events::CursorState;

/// The maximum number of successive reads without a record, after which other streams have a turn.
const READS: usize = 16;
/// The maximum delay before a stream reports that the log has begun a new epoch, in milliseconds.
const LONGEST_SPREAD: Millis = 5_000;
/// The maximum heartbeat of a bare stream.
const LONGEST_BARE_HEARTBEAT: Duration = Duration::from_secs(30);

/// The state machine of one open stream.
pub(crate) struct StreamDriver {
    hub: Hub,
    handle: Arc<ConnectionHandle>,
    stage: Stage,
    /// `None` once a stream of the log has read up to the position at which it was accepted. A
    /// stream of a run keeps it.
    opening: Option<Box<Opening>>,
    progress: Progress,
    /// The way in which the stream ends. Clients of a bare stream take a proper end for a complete
    /// result, so such a stream ends with an error, unless it has read a run to its end.
    end: StreamEnd,
    /// The place of the ids if the stream is bare, and `None` otherwise. A bare stream has nothing
    /// but the application's events: [`encode`](super::encode) writes nothing for the other steps.
    bare: Option<Ids>,
    /// The timer of the heartbeat, or `None` for a reader in this process.
    heartbeat: Option<Heartbeat>,
    /// The time limits, or `None` if the stream has had none so far.
    limits: Option<Box<Limits>>,
    /// Whether `hub.stale` was written and no `hub.live` since.
    reported_stale: bool,
    /// Whether the stream has read and reported everything, so that it sleeps until it is woken.
    settled: bool,
    /// The value of [`SharedLog::epochs`] at the last read, or zero without a shared log. A wider
    /// number would add eight bytes to every idle connection.
    epochs: u16,
}

impl Drop for StreamDriver {
    fn drop(&mut self) {
        if let Some(cursor) = self.run_cursor() {
            cursor.run.unlisten(self.handle.id());
        }
        let timed_out = self.handle.transport().is_some_and(|transport| transport.has_timed_out());
        let otherwise = if timed_out { EndReason::Stalled } else { EndReason::Client };
        let reason = self.handle.ending().map_or(otherwise, |ending| ending.reason);
        self.hub.inner.forget(&self.handle, reason);
        self.handle.release_transport();
    }
}

/// The stage of a stream. A stream passes the stages in this order. Only a stream with
/// [`StreamEnd::Abort`] passes `Aborting`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// The next step is `hub.hello`.
    Opening,
    Reading,
    /// The last frame was returned.
    Ending,
    /// The next step is [`Step::Abort`]. The server has had a turn to write the last frame.
    Aborting,
    Ended,
}

/// The progress of the catch-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    /// The stream has not reached the position that the log had when the stream was accepted.
    Behind,
    /// The stream has read up to the position at which it was accepted, and `hub.live` is due.
    Arrived,
    /// The first `hub.live` was written.
    CaughtUp,
}

/// The time limits of a stream. Most streams have none.
#[derive(Debug)]
struct Limits {
    expiry: Option<Expiry>,
    /// The time at which the stream reaches its maximum age.
    old_at: Millis,
    /// The time until which the stream does not read after a new epoch, so that not all pages fetch
    /// their state at the same moment. Zero if the stream does not wait.
    reads_from: Millis,
}

impl Default for Limits {
    fn default() -> Self {
        Self { expiry: None, old_at: Millis::MAX, reads_from: 0 }
    }
}

/// The state that a stream of the log needs only until it has read up to the position at which it
/// was accepted, and the place of a stream of a run. In one box, so that an idle stream of the log
/// is small.
#[derive(Debug)]
struct Opening {
    cursor: CursorState,
    /// The reason of the gap if the hub could not resume from the client's cursor. `None` after the
    /// stream has reported the gap.
    gap: Option<GapReason>,
    /// The value of `visible_through` when the stream was accepted. A stream that has read up to
    /// this number writes `hub.live`.
    accepted_at: u64,
    /// The run that the stream reads in place of the log, or `None`.
    run: Option<RunCursor>,
}

/// The next step of a stream, which the caller writes.
///
/// The ending is in a box, because each delivery moves a step, and each stream ends only once.
#[derive(Debug)]
pub(crate) enum Step {
    Hello {
        connection: ConnectionId,
        cursor: CursorState,
        topics: Vec<Topic>,
    },
    /// `hub.gap`, and then the records of the batch, if there are any.
    Gap {
        reason: GapReason,
        topics: Vec<Topic>,
    },
    /// The records of the batch.
    Records,
    /// Events of a run, and the end if the run has ended.
    Run {
        frames: SmallVec<[Frame; 1]>,
        end: Option<Box<Ending>>,
    },
    /// `hub.live`, with the topics in force if they have changed.
    Live(Position, Option<Vec<Topic>>),
    Heartbeat,
    /// `hub.stale`: the hub cannot follow the shared log now.
    Stale,
    Expiring(Duration),
    Bye(Box<Ending>),
    /// The end with an error, as the last step of a stream with [`StreamEnd::Abort`].
    Abort,
}

// The debug output omits the topics and the cursor, because logs may contain the output.
opaque_debug!(|driver: StreamDriver| { id: driver.handle.id(), stage: driver.stage });

impl StreamDriver {
    pub(in crate::hub) fn new(
        hub: &Hub,
        handle: Arc<ConnectionHandle>,
        accepted_at: u64,
        cursor: CursorState,
        gap: Option<GapReason>,
        subscription: &Subscription,
        now: Millis,
    ) -> Self {
        let settings = hub.settings();
        // A reader in this process receives items, so it can read all of them.
        let bare = subscription.bare_ids().filter(|_| handle.to_network);
        let (end, heartbeat) = match bare {
            Some(_) => (StreamEnd::Abort, settings.heartbeat.min(LONGEST_BARE_HEARTBEAT)),
            None => (subscription.end.unwrap_or(settings.end), settings.heartbeat),
        };
        Self {
            stage: Stage::Opening,
            opening: Some(Box::new(Opening { cursor, gap, accepted_at, run: None })),
            progress: Progress::Behind,
            end,
            bare,
            heartbeat: handle.to_network.then(|| Heartbeat::new(heartbeat, now)),
            limits: settings
                .old_age()
                .map(|age| Box::new(Limits { old_at: now.saturating_add(age), ..Limits::default() })),
            reported_stale: false,
            settled: false,
            epochs: hub.inner.shared_log.as_ref().map_or(0, SharedLog::epochs),
            hub: hub.clone(),
            handle,
        }
    }

    /// Makes the stream read a run in place of the log.
    pub(in crate::hub) fn of_run(mut self, cursor: RunCursor) -> Self {
        cursor.run.listen(Arc::clone(&self.handle) as _);
        if let Some(opening) = &mut self.opening {
            opening.run = Some(cursor);
        }
        self
    }

    /// Returns the position after the events of a run that the stream has read.
    pub(in crate::hub) fn run_position(&self) -> Option<Position> {
        self.run_cursor().map(|cursor| cursor.run.position(cursor.read))
    }

    /// Returns the place in the run that the stream reads in place of the log, or `None`.
    fn run_cursor(&self) -> Option<&RunCursor> {
        self.opening.as_ref()?.run.as_ref()
    }

    pub(crate) fn hub(&self) -> &Hub {
        &self.hub
    }

    pub(crate) fn id(&self) -> ConnectionId {
        self.handle.id()
    }

    /// Returns the place of the ids if the stream is bare, and `None` otherwise.
    pub(crate) fn bare(&self) -> Option<Ids> {
        self.bare
    }

    /// Returns the socket that carries the stream, if the hub can find it. If the transport is not
    /// known yet, takes the socket that the current task polls, if there is exactly one.
    pub(crate) fn find_socket(&self) -> Option<Arc<Transport>> {
        if !self.handle.is_transport_known()
            && let Some(transport) = self.hub.transports().find_by_task()
        {
            self.set_transport(transport);
        }
        self.socket()
    }

    /// Returns the socket that carries the stream, if the hub knows it and can cut it.
    pub(crate) fn socket(&self) -> Option<Arc<Transport>> {
        self.handle.transport()
    }

    /// Sets the socket that carries the stream, unless the transport is already known.
    pub(crate) fn set_transport(&self, transport: Arc<Transport>) {
        self.handle.set_transport(transport);
    }

    /// Notes that the hub's own writer writes the stream. `stuck` is the socket of the stream while
    /// bytes wait for the client, and `None` otherwise.
    pub(crate) fn set_own_writer(&self, stuck: Option<Arc<Transport>>) {
        self.handle.replace_transport(stuck);
    }

    /// Ends the stream because its client takes no bytes. The caller then drops the driver.
    pub(crate) fn stalled(&self) {
        self.handle.end(Ending::now(EndReason::Stalled));
    }

    /// Notes that the client takes bytes while the last step is not completely written, so that the
    /// stream does not count as stalled. The next poll reads again.
    pub(crate) fn note_progress(&mut self, cx: &Context<'_>) {
        self.settled = false;
        self.handle.subscriber.listen(cx.waker());
        self.handle.due.store(self.hub.now(), Ordering::Release);
    }

    /// Returns whether the stream has read and reported everything, was not woken since and is not
    /// ending. If so, registers the task to be woken. A server polls a body once or twice after
    /// each event, so a body calls this before it creates a [`Batch`].
    pub(crate) fn may_sleep(&mut self, cx: &Context<'_>) -> bool {
        self.settled = self.settled && self.handle.subscriber.may_sleep(cx.waker()) && !self.handle.is_ending();
        if self.settled {
            self.handle.due.store(self.handle.alarm_at(), Ordering::Release);
        }
        self.settled
    }

    /// Returns the next step, with its records in `batch`. `None` at the end.
    pub(crate) fn poll_step(&mut self, cx: &mut Context<'_>, batch: &mut Batch) -> Poll<Option<Step>> {
        let mut read_at = None;
        let polled = self.poll_next(cx, batch, &mut read_at);
        let due = match polled {
            // The stream is due again at once. If bytes wait for the client, the caller polls
            // later, and the housekeeping measures the delay.
            Poll::Ready(_) => read_at.unwrap_or_else(|| self.hub.now()),
            Poll::Pending => self.handle.alarm_at(),
        };
        self.handle.due.store(due, Ordering::Release);
        polled
    }

    /// Returns the next step. If this function has read the clock after the records, it sets
    /// `read_at` to that time, so that the caller need not read the clock again.
    fn poll_next(
        &mut self,
        cx: &mut Context<'_>,
        batch: &mut Batch,
        read_at: &mut Option<Millis>,
    ) -> Poll<Option<Step>> {
        match self.stage {
            Stage::Opening => {
                self.stage = Stage::Reading;
                // The runtime that polls the stream needs a worker, and the stream may have been
                // opened on another runtime.
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

        if self.may_sleep(cx) {
            return Poll::Pending;
        }
        self.handle.subscriber.listen(cx.waker());
        // Check the clock before the read, so that a stream that always has records to read also
        // expires.
        if let Some(step) = self.clock_step() {
            return Poll::Ready(Some(step));
        }
        loop {
            // Take the ending before the read, so that the read finds all records up to the
            // position of the ending.
            let ending = self.handle.ending();
            if let Some(ending) = &ending
                && (self.handle.is_gone() || self.has_read_up_to(ending.after))
            {
                return Poll::Ready(Some(self.finish(ending.clone())));
            }
            let outcome = match self.read_step(batch, read_at) {
                Ok(step) => return Poll::Ready(Some(step)),
                Err(outcome) => outcome,
            };
            match ending {
                // `read` has woken the stream, so it is polled again and reads on.
                _ if outcome == ReadOutcome::MayBeMore => return Poll::Pending,
                // The stream has read everything. A stream that waits for the shared log ends here
                // too, because the broker may be unavailable for a long time.
                Some(ending) => return Poll::Ready(Some(self.finish(ending))),
                None if self.handle.is_ending() => {}
                None => return self.poll_clock(cx),
            }
        }
    }

    /// Returns whether the last step was returned and the stream ends without an error, so that the
    /// caller can write the end of the body together with the last bytes.
    pub(crate) fn is_complete(&self) -> bool {
        matches!(self.stage, Stage::Ending | Stage::Ended) && self.end == StreamEnd::Clean
    }

    fn poll_end(&mut self, cx: &Context<'_>) -> Poll<Option<Step>> {
        let (stage, polled) = match self.stage {
            // When a body fails, a server discards the bytes that it has not written yet. `Pending`
            // makes the server write them first.
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

    /// Returns the step that is due by the clock: `hub.expiring`, or the end of an expired stream.
    /// Also sets the ending of a stream that has reached its maximum age.
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
            // As in a drain, the stream first writes the records that were published so far, and a
            // random `retry` spreads the reconnects.
            let retry = Some(self.hub.jittered_retry(self.hub.settings().retry, 0.0..=2.0));
            // At least 1, so that a stream of a run also reads the rest of the run first.
            let after = self.hub.log().last().max(1);
            self.handle.end(Ending { retry, after, ..Ending::now(EndReason::Age) });
        }
        None
    }

    /// Returns whether the stream waits before it reports that the log has begun a new epoch. A
    /// waiting stream reads nothing, so it still reports the gap before the events of the new
    /// epoch. Only a stream that goes to a network and has caught up waits. New streams open at
    /// different times anyway, and a reader in this process may have no runtime that could wake it.
    fn delays_new_epoch(&mut self) -> bool {
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
        // An ending stream reads its last records now. A drain spreads the reconnects itself.
        if self.handle.is_ending() || self.hub.now() >= limits.reads_from {
            limits.reads_from = 0;
        }
        limits.reads_from != 0
    }

    /// Returns the time until which the stream does not read after a new epoch, or zero if it does
    /// not wait.
    fn reads_from(&self) -> Millis {
        self.limits.as_ref().map_or(0, |limits| limits.reads_from)
    }

    /// Reads the log, and returns the step that follows from it.
    ///
    /// # Errors
    ///
    /// Returns the outcome of the read if there is nothing to write.
    fn read_step(&mut self, batch: &mut Batch, read_at: &mut Option<Millis>) -> Result<Step, ReadOutcome> {
        if self.run_cursor().is_some() {
            return self.read_run(read_at);
        }
        if self.delays_new_epoch() {
            return Err(ReadOutcome::Waits);
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
        let outcome = self.read(batch);
        let (hub, handle) = (&self.hub, &self.handle);
        if batch.ordered
            && !caught_up
            && self.opening.as_ref().is_none_or(|opening| hub.log().cursor(&handle.subscriber) >= opening.accepted_at)
        {
            self.opening = None;
            self.progress = Progress::Arrived;
        }
        let count = batch.count();
        #[cfg_attr(not(feature = "metrics"), expect(unused_variables, reason = "durations are metrics"))]
        let is_sampled = count > 0 && self.count(count);
        if !batch.gap.is_empty() {
            return Ok(self.gap_step(batch, caught_up));
        }
        if count > 0 {
            let now = *read_at.insert(hub.now());
            // A replay has events that are older than the wish to read them.
            #[cfg(feature = "metrics")]
            if is_sampled && caught_up && batch.ordered {
                self.hub.counters().metrics.delivered(Duration::from_millis(batch.age(now)));
            }
            if let Some(heartbeat) = &mut self.heartbeat {
                heartbeat.wrote(batch.ordered, now);
            }
            self.settled = self.has_settled(batch, self.is_stale());
            return Ok(Step::Records);
        }
        let is_stale = self.is_stale();
        // Usually `hub.stale` is due only after the first `hub.live`, because `hub.live` would
        // cancel it. A stream that waits for older records may wait for a long time, so it reports
        // `hub.stale` earlier.
        let is_due = self.progress == Progress::CaughtUp || outcome == ReadOutcome::Waits;
        if is_stale && is_due && !batch.changed && !std::mem::replace(&mut self.reported_stale, true) {
            return Ok(Step::Stale);
        }
        // A stream that has not caught up reports the end of the interruption with its first
        // `hub.live`.
        let is_back = !is_stale && std::mem::take(&mut self.reported_stale) && self.progress == Progress::CaughtUp;
        if (batch.changed || is_back || self.progress == Progress::Arrived)
            && let Some(live) = self.live()
        {
            return Ok(live);
        }
        self.settled = self.has_settled(batch, is_stale);
        Err(outcome)
    }

    /// Counts events that the stream has read. Returns whether they are in the sample whose
    /// durations are recorded.
    fn count(&self, events: usize) -> bool {
        // Only this stream writes `delivered`, so a load and a store are enough.
        let delivered = self.handle.delivered.load(Ordering::Relaxed) + events as u64;
        self.handle.delivered.store(delivered, Ordering::Relaxed);
        self.hub.counters().delivered(self.handle.id(), events)
    }

    /// Returns whether the stream has read the records up to and including this number. A stream of
    /// a run reads all events of the run before it ends, so that the end of the run stays the end.
    fn has_read_up_to(&self, after: u64) -> bool {
        match self.run_cursor() {
            Some(_) => after == 0,
            // `after` is at least 1, also on an empty log.
            None => self.hub.log().cursor(&self.handle.subscriber) >= after.min(self.hub.log().last()),
        }
    }

    /// Reads the run, and returns the step that follows from it.
    fn read_run(&mut self, read_at: &mut Option<Millis>) -> Result<Step, ReadOutcome> {
        let run = self.opening.as_mut().and_then(|opening| opening.run.as_mut());
        let Some(cursor) = run else { return Err(ReadOutcome::Complete) };
        let mut part = cursor.run.read(cursor.read);
        if part.is_ahead && cursor.resumes && part.over.take().is_some() {
            // The run has ended without events that the client has: the broker was restored from a
            // backup.
            part.lost = true;
        }
        let count = part.frames.len();
        cursor.read += count as u64;
        let (position, will) = (cursor.run.position(cursor.read), cursor.run.will.is_some());
        if count > 0 {
            self.count(count);
            let now = *read_at.insert(self.hub.now());
            if let Some(heartbeat) = &mut self.heartbeat {
                heartbeat.wrote(true, now);
            }
        }
        let end = part.over.map(|over| self.finish_run(&over, will));
        if count > 0 || end.is_some() {
            return Ok(Step::Run { frames: part.frames, end });
        }
        if part.lost {
            // The client asks again, and the cursor of a forgotten run receives `404`.
            return Ok(self.finish(Ending::now(EndReason::Lagged)));
        }
        if self.progress != Progress::CaughtUp {
            self.progress = Progress::CaughtUp;
            return Ok(Step::Live(position, None));
        }
        self.settled = !self.handle.is_ending() && self.handle.alarm_at() <= self.due();
        Err(ReadOutcome::Complete)
    }

    /// Ends the stream because its run has ended.
    fn finish_run(&mut self, over: &Over, has_will: bool) -> Box<Ending> {
        // Without a last will, clients of the bare profile would take a proper end for a success.
        let is_break = self.bare.is_some() && over.end == RunEnd::Aborted && !has_will;
        self.end = if is_break { StreamEnd::Abort } else { StreamEnd::Clean };
        let ending = Ending { reconnect: Reconnect::Over, note: over.note.clone(), ..Ending::now(over.end.into()) };
        self.set_ending(ending)
    }

    fn is_stale(&self) -> bool {
        self.hub.inner.shared_log.as_ref().is_some_and(SharedLog::is_stale)
    }

    /// Returns whether the stream has read and reported everything, so that it need not read again
    /// before it is woken. Each of these wakes it: a record, a change of its topics, its end, a new
    /// expiry, its alarm, and a log that can no longer be followed or can be followed again.
    fn has_settled(&self, batch: &Batch, is_stale: bool) -> bool {
        batch.settled
            && self.progress == Progress::CaughtUp
            && !self.handle.is_ending()
            && self.reported_stale == is_stale
            && self.handle.alarm_at() <= self.due()
    }

    /// Returns the time of the next limit: `hub.expiring`, the expiry or the maximum age.
    /// `Millis::MAX` if there is none.
    fn time_limit(&self) -> Millis {
        self.limits
            .as_ref()
            .map_or(Millis::MAX, |limits| limits.expiry.as_ref().map_or(Millis::MAX, Expiry::due).min(limits.old_at))
    }

    /// Returns the time of the next step by the clock: a heartbeat, a time limit, or the end of the
    /// wait after a new epoch. `Millis::MAX` if there is none.
    fn due(&self) -> Millis {
        let reads_from = Some(self.reads_from()).filter(|&from| from != 0).unwrap_or(Millis::MAX);
        self.heartbeat.as_ref().map_or(Millis::MAX, Heartbeat::due).min(self.time_limit()).min(reads_from)
    }

    /// Returns the heartbeat if it is due, as a comment or as `hub.live`. Otherwise sets the alarm.
    fn poll_clock(&mut self, cx: &Context<'_>) -> Poll<Option<Step>> {
        let due = self.due();
        // An early alarm costs one poll, and moving the alarm at every event would cost more.
        // Before the alarm nothing is due, so the clock is not read. If nothing will ever be due,
        // both times are `Millis::MAX`, and no alarm is set.
        if self.handle.alarm_at() <= due {
            return Poll::Pending;
        }
        let now = self.hub.now();
        if now >= self.time_limit() {
            // The next poll calls `clock_step`, which handles the limit.
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let reads = self.reads_from() == 0;
        if let Some(heartbeat) = &mut self.heartbeat
            && now >= heartbeat.due()
        {
            heartbeat.wrote(false, now);
            if self.progress == Progress::CaughtUp
                && self.bare.is_none()
                && reads
                && !self.reported_stale
                && (self.hub.settings().visible_heartbeat || heartbeat.needs_id(self.hub.settings(), now))
                && let Some(live) = self.live()
            {
                return Poll::Ready(Some(live));
            }
            return Poll::Ready(Some(Step::Heartbeat));
        }
        // The alarm is at most one heartbeat ahead, because the worker keeps an entry for each
        // alarm until it is due, also after the stream was dropped.
        let soon = now.saturating_add(millis(self.hub.settings().heartbeat));
        workers::set_alarm(&self.hub.inner, &self.handle, due.min(soon));
        Poll::Pending
    }

    /// Reads the records that are due. Records that memory no longer has come from the shared log.
    fn read(&self, batch: &mut Batch) -> ReadOutcome {
        let (hub, handle) = (&self.hub, &self.handle);
        batch.can_backfill = hub.inner.shared_log.is_some();
        for _ in 0..READS {
            hub.log().read(&handle.subscriber, batch);
            if self.may_skip_records() {
                batch.records.retain(|picked| !picked.record.frame.is_of_hub());
            }
            match (batch.needs_block_after.take(), &hub.inner.shared_log) {
                (Some(after), Some(shared)) => {
                    batch.block = shared.find_block(hub.log().base(), after, handle, hub.now());
                    if batch.block.is_none() {
                        hub.inner.ensure_shared_log();
                        return ReadOutcome::Waits;
                    }
                }
                _ if batch.has_more && batch.count() == 0 && batch.gap.is_empty() => {}
                _ => return ReadOutcome::Complete,
            }
        }
        // Yield after `READS` reads, so that this stream does not starve the others.
        handle.wake(hub.now());
        ReadOutcome::MayBeMore
    }

    /// Returns whether the stream skips some records that it reads: the presence events of its
    /// topics, if the stream is bare.
    pub(crate) fn may_skip_records(&self) -> bool {
        self.bare.is_some() && !self.hub.settings().presence_rules.is_empty()
    }

    /// Returns the step for a gap. Returns the end of the stream if the stream is bare, or if the
    /// stream was too slow and the retention of the lost records disconnects slow readers.
    fn gap_step(&mut self, batch: &mut Batch, caught_up: bool) -> Step {
        let (hub, handle) = (&self.hub, &self.handle);
        let was_too_slow = caught_up && batch.gap_reason.is_none();
        let topics: Vec<Topic> = batch.gap.iter().filter_map(Address::topic).cloned().collect();
        if was_too_slow {
            hub.inner.lifecycles.send(|| LifecycleEvent::Lagged {
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
        if self.bare.is_some() {
            // The stream cannot report the gap. Its client resumes from the last event before the
            // gap, and a cursor from which the hub cannot resume is refused.
            batch.records.clear();
            return self.finish(Ending::now(if was_too_slow { EndReason::Lagged } else { EndReason::Gap }));
        }
        Step::Gap { reason, topics }
    }

    /// Returns `hub.live`, or `None` while records from before the cursor are still to be replayed.
    fn live(&mut self) -> Option<Step> {
        let (position, topics) = match self.run_position() {
            Some(position) => (position, None),
            None => self.hub.log().settled(&self.handle.subscriber)?,
        };
        // A bare stream writes nothing for this step, so its next heartbeat is not later.
        if let Some(heartbeat) = self.heartbeat.as_mut().filter(|_| self.bare.is_none()) {
            heartbeat.wrote(true, self.hub.now());
        }
        self.progress = Progress::CaughtUp;
        // `hub.live` cancels `hub.stale`. If the log still cannot be followed, the stream reports
        // `hub.stale` again.
        self.reported_stale = false;
        Some(Step::Live(position, topics))
    }

    /// Ends the stream, and returns `hub.bye`. The connection leaves the registry and its channels
    /// before the caller writes `hub.bye`, so that it no longer counts when its client reconnects.
    fn finish(&mut self, ending: Ending) -> Step {
        Step::Bye(self.set_ending(ending))
    }

    /// Makes the next step the last one. Returns the ending that stands.
    fn set_ending(&mut self, ending: Ending) -> Box<Ending> {
        let ending = self.handle.end(ending);
        self.stage = Stage::Ending;
        self.hub.inner.forget(&self.handle, ending.reason);
        Box::new(ending)
    }
}

/// The outcome of a read without anything to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ReadOutcome {
    /// The stream has read everything.
    Complete,
    /// More records may be due. The stream has woken itself to read on.
    MayBeMore,
    /// The stream waits for older records from the shared log, or the gap of a new epoch is not due
    /// yet.
    Waits,
}
