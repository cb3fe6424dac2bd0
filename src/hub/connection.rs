//! One open stream: what to write next, and when. It knows nothing of bodies and sockets; whoever polls it writes.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use pin_project_lite::pin_project;
use tokio::time::{Duration, Sleep};

use super::link::{Ending, Link};
use super::timing::{Expiry, Heartbeat};
use super::{Hub, LifecycleEvent, Transport, housekeeping};
use crate::audience::Address;
use crate::log::{Batch, Millis};
use crate::name::{ConnectionId, Topic};
use crate::position::Position;
use crate::reason::{EndReason, GapReason};
use crate::subscription::End;
use crate::sync::Ordering;
use crate::wire::control::CursorState;

/// How many reads that find nothing for a stream follow each other.
const READS: usize = 16;

pin_project! {
    /// See the module.
    pub(crate) struct Connection {
        hub: Hub,
        link: Arc<Link>,
        stage: Stage,
        opening: Option<Box<Opening>>,
        // The horizon when it was accepted: having read to there, it has caught up.
        accepted_at: u64,
        progress: Progress,
        end: End,
        heartbeat: Option<Heartbeat>,
        expiry: Option<Box<Expiry>>,
        // When it is old enough to be ended.
        old_at: Millis,
        // Its page was told that the log cannot be followed.
        told_stale: bool,
        // Rests until the earliest of what is due; armed when there is anything.
        #[pin]
        timer: Option<Sleep>,
    }

    impl PinnedDrop for Connection {
        fn drop(this: Pin<&mut Self>) {
            let timed_out = this.link.transport.get().is_some_and(|transport| transport.has_timed_out());
            let otherwise = if timed_out { EndReason::Stalled } else { EndReason::Client };
            let reason = this.link.ending().map_or(otherwise, |ending| ending.reason);
            this.hub.inner.forget(&this.link, reason);
            if let Some(transport) = this.link.transport.get() {
                transport.remove_stream();
            }
        }
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

/// What is needed only until the first frames are out.
#[derive(Debug)]
struct Opening {
    cursor: CursorState,
    gap: Option<GapReason>,
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

/// What it may read is nobody's business.
impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("id", &self.link.id).field("stage", &self.stage).finish_non_exhaustive()
    }
}

impl Connection {
    pub(super) fn new(
        hub: &Hub,
        link: Arc<Link>,
        accepted_at: u64,
        cursor: CursorState,
        gap: Option<GapReason>,
        end: End,
        now: Millis,
    ) -> Self {
        let settings = hub.settings();
        Self {
            stage: Stage::Opening,
            opening: Some(Box::new(Opening { cursor, gap })),
            accepted_at,
            progress: Progress::Behind,
            end,
            heartbeat: link.to_network.then(|| Heartbeat::new(settings, now)),
            expiry: None,
            told_stale: false,
            old_at: settings.old_age().map_or(Millis::MAX, |age| now.saturating_add(age)),
            timer: None,
            hub: hub.clone(),
            link,
        }
    }

    pub(crate) fn hub(&self) -> &Hub {
        &self.hub
    }

    pub(crate) fn id(&self) -> ConnectionId {
        self.link.id
    }

    /// Says which socket it is written to.
    pub(crate) fn carried_by(&self, transport: Arc<Transport>) {
        // Only the first is kept; there is only one.
        self.link.transport.get_or_init(|| {
            transport.add_stream();
            transport
        });
    }

    /// What to write next; `None` at the end. `batch` holds the records that belong to it.
    pub(crate) fn poll_step(mut self: Pin<&mut Self>, cx: &mut Context<'_>, batch: &mut Batch) -> Poll<Option<Step>> {
        let polled = self.as_mut().poll_next(cx, batch);
        let due = match (&polled, self.timer.as_ref()) {
            // Whoever takes a step comes back for the next at once, unless the peer does not take what it has.
            (Poll::Ready(_), _) => self.hub.now(),
            (Poll::Pending, Some(timer)) => self.hub.inner.at(timer.deadline()),
            (Poll::Pending, None) => Millis::MAX,
        };
        self.link.due.store(due, Ordering::Release);
        polled
    }

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>, batch: &mut Batch) -> Poll<Option<Step>> {
        match self.stage {
            Stage::Opening => {
                let this = self.as_mut().project();
                *this.stage = Stage::Reading;
                if let Some(opening) = this.opening.as_deref() {
                    let topics = this.hub.log().topics(&this.link.subscriber);
                    return Poll::Ready(Some(Step::Hello { connection: this.link.id, cursor: opening.cursor, topics }));
                }
            }
            Stage::Reading => {}
            Stage::Ending | Stage::Aborting | Stage::Ended => return self.poll_end(cx),
        }

        self.link.subscriber.listen(cx.waker());
        batch.records.clear();
        // Before it reads: a stream that always has something to read ends too.
        if let Some(step) = self.as_mut().clock_step() {
            return Poll::Ready(Some(step));
        }
        if let Some(ending) = self.link.ending()
            && (self.link.is_gone() || self.hub.log().cursor(&self.link.subscriber) >= ending.after)
        {
            return Poll::Ready(Some(self.finish(ending)));
        }
        if let Some(step) = self.as_mut().read_step(batch) {
            return Poll::Ready(Some(step));
        }
        if let Some(ending) = self.link.ending() {
            return Poll::Ready(Some(self.finish(ending)));
        }
        self.poll_timer(cx)
    }

    fn poll_end(self: Pin<&mut Self>, cx: &Context<'_>) -> Poll<Option<Step>> {
        let this = self.project();
        let (stage, polled) = match *this.stage {
            // A server throws away what it has not written when a body fails. Pending makes it write first.
            Stage::Ending if *this.end == End::Abort => {
                cx.waker().wake_by_ref();
                (Stage::Aborting, Poll::Pending)
            }
            Stage::Aborting => (Stage::Ended, Poll::Ready(Some(Step::Abort))),
            _ => (Stage::Ended, Poll::Ready(None)),
        };
        *this.stage = stage;
        polled
    }

    /// What the clock says: the end of its time, a notice of it, or that it is old.
    fn clock_step(mut self: Pin<&mut Self>) -> Option<Step> {
        let given = self.link.expires_at.load(Ordering::Acquire);
        if given == Millis::MAX && self.old_at == Millis::MAX {
            return None;
        }
        let this = self.as_mut().project();
        let now = this.hub.now();
        if given != Millis::MAX {
            if this.expiry.as_ref().is_none_or(|expiry| !expiry.is_of(given)) {
                *this.expiry = Some(Box::new(Expiry::new(given, this.hub.settings(), now)));
            }
            if let Some(expiry) = this.expiry {
                if expiry.is_over(now) {
                    return Some(self.finish(Ending::now(EndReason::Expired)));
                }
                if let Some(remaining) = expiry.take_notice(now) {
                    return Some(Step::Expiring(remaining));
                }
            }
        }
        if now >= *this.old_at {
            *this.old_at = Millis::MAX;
            // As in a drain: what was published so far is delivered, and those who end together come back spread out.
            let retry = Some(this.hub.jittered_retry(this.hub.settings().retry, 0.0..=2.0));
            let after = this.hub.log().last();
            this.link.end(Ending { retry, after, ..Ending::now(EndReason::Age) });
        }
        None
    }

    fn read_step(self: Pin<&mut Self>, batch: &mut Batch) -> Option<Step> {
        let this = self.project();
        let (hub, link) = (&*this.hub, this.link);
        if let Some(Opening { gap: Some(reason), .. }) = this.opening.take().map(|opening| *opening) {
            hub.counters().gap(link.id, reason, hub.now());
            return Some(Step::Gap { reason, topics: hub.log().topics(&link.subscriber) });
        }
        if *this.progress == Progress::Arrived
            && let Some(live) = live(hub, link, this.heartbeat)
        {
            *this.progress = Progress::CaughtUp;
            *this.told_stale = false;
            return Some(live);
        }
        let caught_up = *this.progress == Progress::CaughtUp;
        batch.wants_changes = caught_up;
        let waits = read(hub, link, batch);
        if batch.ordered && !caught_up && hub.log().cursor(&link.subscriber) >= *this.accepted_at {
            *this.progress = Progress::Arrived;
        }
        let count = batch.records.len();
        if count > 0 {
            hub.counters().delivered(count);
            link.delivered.fetch_add(count as u64, Ordering::Relaxed);
        }
        if !batch.gap.is_empty() {
            return Some(gap_step(hub, link, this.stage, batch, caught_up));
        }
        if !batch.records.is_empty() {
            if let Some(heartbeat) = this.heartbeat {
                heartbeat.wrote(batch.ordered, hub.now());
            }
            return Some(Step::Records);
        }
        let is_stale = hub.inner.is_stale();
        // Not before its first `live`, which would take it back; but one that waits for older records may wait for long.
        let is_due = *this.progress == Progress::CaughtUp || waits;
        if is_stale && is_due && !batch.changed && !std::mem::replace(this.told_stale, true) {
            return Some(Step::Stale);
        }
        // Who is still behind is told so by its first `live`.
        let is_back = !is_stale && std::mem::take(this.told_stale) && *this.progress == Progress::CaughtUp;
        if (batch.changed || is_back || *this.progress == Progress::Arrived)
            && let Some(live) = live(hub, link, this.heartbeat)
        {
            *this.progress = Progress::CaughtUp;
            // If it cannot be followed now, that is said again.
            *this.told_stale = false;
            return Some(live);
        }
        None
    }

    /// Nothing is to be read: rests until something is due.
    fn poll_timer(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Step>> {
        let mut this = self.project();
        loop {
            let now = this.hub.now();
            let clock = this.expiry.as_ref().map_or(Millis::MAX, |expiry| expiry.due()).min(*this.old_at);
            if now >= clock {
                // The next look begins with it.
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            if let Some(heartbeat) = this.heartbeat
                && now >= heartbeat.due()
            {
                heartbeat.wrote(false, now);
                // Whatever runtime the hub's work was on before, this one is alive.
                housekeeping::revive(&this.hub.inner);
                if *this.progress == Progress::CaughtUp
                    && !*this.told_stale
                    && (this.hub.settings().visible_heartbeat || heartbeat.needs_id(now))
                    && let Some(live) = live(this.hub, this.link, this.heartbeat)
                {
                    return Poll::Ready(Some(live));
                }
                return Poll::Ready(Some(Step::Heartbeat));
            }
            let due = this.heartbeat.as_ref().map_or(Millis::MAX, Heartbeat::due).min(clock);
            if due == Millis::MAX {
                return Poll::Pending;
            }
            let deadline = this.hub.inner.instant(due);
            match this.timer.as_mut().as_pin_mut() {
                None => this.timer.set(Some(tokio::time::sleep_until(deadline))),
                // A timer that is early costs one look; moving it at every event would cost more.
                Some(timer) if timer.is_elapsed() || timer.deadline() > deadline => timer.reset(deadline),
                Some(_) => {}
            }
            let Some(timer) = this.timer.as_mut().as_pin_mut() else { return Poll::Pending };
            if timer.poll(cx).is_pending() {
                return Poll::Pending;
            }
        }
    }

    fn finish(self: Pin<&mut Self>, ending: Ending) -> Step {
        let this = self.project();
        end(this.hub, this.link, this.stage, ending)
    }
}

/// What the stream may read now: from memory, and if it comes back from before what is there, from where the log is shared.
/// Whether that is waited for.
fn read(hub: &Hub, link: &Arc<Link>, batch: &mut Batch) -> bool {
    batch.looks_back = hub.inner.remote.is_some();
    for _ in 0..READS {
        hub.log().read(&link.subscriber, batch);
        match (batch.needs.take(), &hub.inner.remote) {
            (Some(after), Some(remote)) => match hub.look_back(remote, after, link) {
                Some(block) => batch.past = Some(block),
                None => return true,
            },
            _ if batch.goes_on && batch.records.is_empty() && batch.gap.is_empty() => {}
            _ => return false,
        }
    }
    // Others want to go on too.
    link.wake(hub.now());
    false
}

fn gap_step(hub: &Hub, link: &Link, stage: &mut Stage, batch: &mut Batch, caught_up: bool) -> Step {
    let was_too_slow = caught_up && batch.gap_reason.is_none();
    let topics: Vec<Topic> = batch.gap.iter().filter_map(Address::topic).cloned().collect();
    if was_too_slow {
        hub.inner.lifecycles.tell(|| LifecycleEvent::Lagged {
            connection: Arc::new(hub.inner.info(link, hub.log().topics(&link.subscriber))),
            topics: topics.clone(),
        });
        if batch.disconnects {
            batch.records.clear();
            return end(hub, link, stage, Ending::now(EndReason::Lagged));
        }
    }
    let reason = if was_too_slow { GapReason::Lagged } else { batch.gap_reason.unwrap_or(GapReason::Trimmed) };
    hub.counters().gap(link.id, reason, hub.now());
    Step::Gap { reason, topics }
}

/// Caught up; none while something older is still to be replayed.
fn live(hub: &Hub, link: &Link, heartbeat: &mut Option<Heartbeat>) -> Option<Step> {
    let (position, topics) = hub.log().settled(&link.subscriber)?;
    if let Some(heartbeat) = heartbeat {
        heartbeat.wrote(true, hub.now());
    }
    Some(Step::Live(position, topics))
}

/// It is out of the registry and out of its channels before its last frame is written.
fn end(hub: &Hub, link: &Link, stage: &mut Stage, ending: Ending) -> Step {
    let ending = link.end(ending);
    *stage = Stage::Ending;
    hub.inner.forget(link, ending.reason);
    Step::Bye(ending)
}
