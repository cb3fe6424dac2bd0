//! One open stream: what to write next, and when. It knows nothing of bodies and sockets; whoever polls it writes.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use pin_project_lite::pin_project;
use tokio::time::{Duration, Sleep};

use super::registry::{Ending, Link};
use super::{Hub, Transport};
use crate::audience::Address;
use crate::log::{Batch, Begin, Millis, millis};
use crate::name::{ConnectionId, Topic};
use crate::position::{Cursor, Position};
use crate::reason::{EndReason, GapReason, RefusalReason};
use crate::subscription::{End, Subscription, SubscriptionError};
use crate::sync::Ordering;
use crate::wire::control::CursorState;

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
    topics: Vec<Topic>,
}

#[derive(Debug)]
struct Heartbeat {
    every: Millis,
    written_at: Millis,
    /// When an id was last written, and after how long it is too old to come back with.
    id_at: Millis,
    refresh: Millis,
}

/// How long before its time a subscription ends at most.
const MOST_EARLY: Millis = 60_000;

#[derive(Debug)]
struct Expiry {
    notice_at: Millis,
    notified: bool,
    end_at: Millis,
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
    Live(Position),
    Heartbeat,
    Expiring(Duration),
    Bye {
        reason: EndReason,
        retry: Option<Duration>,
    },
    /// End with an error instead of properly. The last step, if it comes.
    Abort,
}

/// Why there is no stream.
#[derive(Debug)]
pub(crate) enum OpenError {
    /// The same request will never do.
    Invalid(SubscriptionError),
    /// Another time.
    Refused(RefusalReason),
}

impl Hub {
    /// Opens a stream. What goes `to_network` has heartbeats, and is given up when it is not read.
    pub(crate) fn open(
        &self,
        subscription: Subscription,
        cursor: Cursor,
        to_network: bool,
    ) -> Result<Connection, OpenError> {
        self.admit(&subscription)?;
        let settings = self.settings();
        // Without random bytes an id could be guessed; such a machine is better left alone for a while.
        let id = match getrandom::u64().and_then(|high| Ok((high, getrandom::u64()?))) {
            Ok((high, low)) => ConnectionId::from_bits(u128::from(high) << 64 | u128::from(low)),
            Err(_) => return Err(OpenError::Refused(RefusalReason::Busy)),
        };
        let (begin, cursor_state, gap) = self.judge(cursor, subscription.start);
        let now = self.now();
        let heartbeat = to_network.then(|| Heartbeat::new(self, now));
        let expiry = subscription.expiry.map(|expiry| Box::new(Expiry::new(self, now, expiry.remaining())));
        let link = Arc::new(Link::new(id, to_network));
        let topics = subscription.topics.iter().cloned().map(Address::Topic);
        let addresses = topics.chain(subscription.user.map(Address::User)).chain([Address::Everyone]);
        // In this order, so that whoever finds the connection can also write to it.
        let accepted_at = self.log().open(&link.subscriber, addresses, begin, now);
        self.registry().insert(Arc::clone(&link));
        self.counters().connected(id, cursor_state == CursorState::Resuming);
        super::housekeeping::remember_runtime(&self.inner);
        super::housekeeping::ensure(&self.inner);
        if self.is_draining() {
            // It began between the look above and the entry into the registry, and may not have seen this one.
            link.end(Ending::now(EndReason::Draining));
        }
        Ok(Connection {
            stage: Stage::Opening,
            opening: Some(Box::new(Opening { cursor: cursor_state, gap, topics: subscription.topics })),
            accepted_at,
            progress: Progress::Behind,
            end: subscription.end.unwrap_or(settings.end),
            heartbeat,
            expiry,
            timer: None,
            hub: self.clone(),
            link,
        })
    }

    /// Whether a stream would be opened now.
    pub(crate) fn admit(&self, subscription: &Subscription) -> Result<(), OpenError> {
        if let Some(invalid) = &subscription.invalid {
            return Err(OpenError::Invalid(invalid.clone()));
        }
        if subscription.topics.len() > self.settings().max_topics {
            return Err(OpenError::Invalid(SubscriptionError::TooManyTopics));
        }
        if self.is_draining() {
            return Err(OpenError::Refused(RefusalReason::Draining));
        }
        Ok(())
    }

    /// Whether a cursor can be honoured; if not, why.
    fn judge(&self, cursor: Cursor, start: crate::subscription::Start) -> (Begin, CursorState, Option<GapReason>) {
        let refused = |reason| (Begin::Fresh(start), CursorState::Refused, Some(reason));
        match cursor {
            Cursor::Absent => (Begin::Fresh(start), CursorState::Fresh, None),
            Cursor::Invalid => refused(GapReason::Invalid),
            Cursor::At(position) if position.epoch() != self.log().epoch() => refused(GapReason::Epoch),
            // The log of this process is the only one, so nobody can be ahead of it.
            Cursor::At(position) if position.sequence() > self.position().sequence() => refused(GapReason::Ahead),
            Cursor::At(position) => (Begin::After(position.sequence()), CursorState::Resuming, None),
        }
    }
}

impl Heartbeat {
    fn new(hub: &Hub, now: Millis) -> Self {
        let every = millis(hub.settings().heartbeat);
        Self {
            every: every - fastrand::u64(0..=every / 10),
            written_at: now,
            id_at: now,
            // A cursor that is older than the grace may meet a floor that is not its own; stay well below.
            refresh: millis(hub.settings().channel_grace) / 4,
        }
    }
}

impl Expiry {
    fn new(hub: &Hub, now: Millis, remaining: Duration) -> Self {
        let remaining = millis(remaining);
        // A little early, so that those who came together do not come back together.
        let end_at = now + remaining - fastrand::u64(0..=(remaining / 10).min(MOST_EARLY));
        let notice = millis(hub.settings().expiry_notice).min(remaining / 2);
        Self { notice_at: end_at.saturating_sub(notice).max(now), notified: false, end_at }
    }
}

/// What it may read is nobody's business.
impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("id", &self.link.id).field("stage", &self.stage).finish_non_exhaustive()
    }
}

impl Connection {
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

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>, batch: &mut Batch) -> Poll<Option<Step>> {
        let mut this = self.project();
        match *this.stage {
            Stage::Opening => {
                *this.stage = Stage::Reading;
                if let Some(opening) = this.opening.as_deref_mut() {
                    let topics = match opening.gap {
                        Some(_) => opening.topics.clone(),
                        None => std::mem::take(&mut opening.topics),
                    };
                    return Poll::Ready(Some(Step::Hello { connection: this.link.id, cursor: opening.cursor, topics }));
                }
            }
            Stage::Reading => {}
            Stage::Ending => {
                if *this.end == End::Abort {
                    // A server throws away what it has not written when a body fails. Pending makes it write first.
                    *this.stage = Stage::Aborting;
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                *this.stage = Stage::Ended;
                return Poll::Ready(None);
            }
            Stage::Aborting => {
                *this.stage = Stage::Ended;
                return Poll::Ready(Some(Step::Abort));
            }
            Stage::Ended => return Poll::Ready(None),
        }

        this.link.subscriber.listen(cx.waker());
        let ending = this.link.ending();
        if let Some(ending) = ending
            && this.hub.log().cursor(&this.link.subscriber) >= ending.after
        {
            return Poll::Ready(Some(end(this.hub, this.link, this.stage, ending)));
        }
        // Before it reads: a stream that always has something to read ends too.
        if let Some(expiry) = this.expiry
            && this.hub.now() >= expiry.end_at
        {
            batch.records.clear();
            return Poll::Ready(Some(end(this.hub, this.link, this.stage, Ending::now(EndReason::Expired))));
        }
        if let Some(Opening { gap: Some(reason), topics, .. }) = this.opening.take().map(|opening| *opening) {
            batch.records.clear();
            this.hub.counters().gap(this.link.id, reason, this.hub.now());
            return Poll::Ready(Some(Step::Gap { reason, topics }));
        }

        if *this.progress == Progress::Arrived {
            batch.records.clear();
            *this.progress = Progress::CaughtUp;
            return Poll::Ready(Some(live(this.hub, this.link, this.heartbeat)));
        }

        this.hub.log().read(&this.link.subscriber, this.link.id, batch);
        let caught_up = *this.progress == Progress::CaughtUp;
        if batch.ordered && !caught_up && this.hub.log().cursor(&this.link.subscriber) >= *this.accepted_at {
            *this.progress = Progress::Arrived;
        }
        this.hub.counters().delivered(batch.records.len());
        let step = if !batch.gap.is_empty() {
            if batch.disconnects && caught_up {
                batch.records.clear();
                return Poll::Ready(Some(end(this.hub, this.link, this.stage, Ending::now(EndReason::Lagged))));
            }
            let reason = if caught_up { GapReason::Lagged } else { GapReason::Trimmed };
            this.hub.counters().gap(this.link.id, reason, this.hub.now());
            Some(Step::Gap { reason, topics: batch.gap.iter().filter_map(topic).collect() })
        } else {
            (!batch.records.is_empty()).then_some(Step::Records)
        };
        if let Some(step) = step {
            if let Some(heartbeat) = this.heartbeat {
                let now = this.hub.now();
                heartbeat.written_at = now;
                if batch.ordered && !batch.records.is_empty() {
                    heartbeat.id_at = now;
                }
            }
            return Poll::Ready(Some(step));
        }

        if let Some(ending) = ending {
            return Poll::Ready(Some(end(this.hub, this.link, this.stage, ending)));
        }
        if *this.progress == Progress::Arrived {
            *this.progress = Progress::CaughtUp;
            return Poll::Ready(Some(live(this.hub, this.link, this.heartbeat)));
        }

        loop {
            let now = this.hub.now();
            if let Some(expiry) = this.expiry {
                if now >= expiry.end_at {
                    return Poll::Ready(Some(end(this.hub, this.link, this.stage, Ending::now(EndReason::Expired))));
                }
                if now >= expiry.notice_at && !std::mem::replace(&mut expiry.notified, true) {
                    return Poll::Ready(Some(Step::Expiring(Duration::from_millis(expiry.end_at - now))));
                }
            }
            if let Some(heartbeat) = this.heartbeat
                && now >= heartbeat.written_at + heartbeat.every
            {
                heartbeat.written_at = now;
                if this.hub.settings().visible_heartbeat || now >= heartbeat.id_at + heartbeat.refresh {
                    return Poll::Ready(Some(live(this.hub, this.link, this.heartbeat)));
                }
                return Poll::Ready(Some(Step::Heartbeat));
            }
            let heartbeat_at = this.heartbeat.as_ref().map(|heartbeat| heartbeat.written_at + heartbeat.every);
            let expiry_at = this.expiry.as_ref().map(|e| if e.notified { e.end_at } else { e.notice_at });
            let Some(due) = heartbeat_at.into_iter().chain(expiry_at).min() else { return Poll::Pending };
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
}

fn live(hub: &Hub, link: &Link, heartbeat: &mut Option<Heartbeat>) -> Step {
    if let Some(heartbeat) = heartbeat {
        let now = hub.now();
        heartbeat.written_at = now;
        heartbeat.id_at = now;
    }
    Step::Live(hub.log().at(hub.log().cursor(&link.subscriber)))
}

/// It is out of the registry and out of its channels before its last frame is written.
fn end(hub: &Hub, link: &Link, stage: &mut Stage, ending: Ending) -> Step {
    link.end(ending);
    let ending = link.ending().unwrap_or(ending);
    *stage = Stage::Ending;
    hub.inner.forget(link, ending.reason);
    Step::Bye { reason: ending.reason, retry: ending.retry }
}

fn topic(address: &Address) -> Option<Topic> {
    match address {
        Address::Topic(topic) => Some(topic.clone()),
        Address::User(_) | Address::Connection(_) | Address::Everyone => None,
    }
}
