//! The handle of a hub, and the state behind it.
//!
//! 1. Each field of [`Inner`] is a part of the state that uses its own data only. No part has a
//!    reference to `Inner`.
//! 2. The functions that work on several parts are in the other folders below `hub`, and in the
//!    files of this folder that contain the public methods.

use std::ops::RangeInclusive;
use std::sync::Arc;

use tokio::time::{Duration, Instant};

use super::cluster::shared_log::SharedLog;
use super::config::limits::Rate;
use super::config::settings::Settings;
use super::connection::bans::Bans;
use super::connection::handle::ConnectionHandle;
use super::connection::registry::Registry;
use super::connection::socket::Transports;
use super::membership::roster::Presences;
use super::observe::counters::Counters;
use super::observe::lifecycle::Lifecycles;
#[cfg(feature = "metrics")]
use super::observe::metrics::Metrics;
use super::observe::start::Start;
use super::observe::stats::Stats;
use super::runs::table::Runs;
use super::tasks::background::Background;
use super::tasks::workers::{Host, Workers, wake_rest};
use super::tickets::store::Tickets;
use super::upkeep::schedule::Rechecks;
use crate::log::{Joined, Log, Millis, Since, millis};
use crate::macros::opaque_debug;
use crate::sync::{AtomicBool, Mutex, Ordering};
use crate::types::{Address, Audience, Position, RefusalReason};
use crate::wire::RETRY_RANGE;

/// A handle to the hub, to clone into every service that publishes events.
///
/// A clone costs one reference count, and all clones refer to the same hub. Building a hub and
/// publishing to the log of this process need no runtime.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use tower_sse::{Event, Hub};
///
/// /// A service without HTTP.
/// struct Documents {
///     hub: Hub,
/// }
///
/// impl Documents {
///     async fn delete_document(&self, id: u64, owner: &str) -> Result<(), tower_sse::PublishError> {
///         self.hub.user(owner).publish(Event::new("document.deleted", id.to_string())).await?;
///         Ok(())
///     }
/// }
///
/// let documents = Documents { hub: Hub::builder().build()? };
/// documents.delete_document(7, "ada").await?;
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Hub {
    pub(super) inner: Arc<Inner>,
}

/// The state of a hub, shared by all of its handles.
pub(crate) struct Inner {
    pub(super) log: Log,
    pub(super) settings: Settings,
    pub(super) started: Instant,
    pub(super) registry: Registry,
    pub(super) transports: Transports,
    pub(super) counters: Counters,
    pub(super) start: Start,
    pub(super) tasks: Tasks,
    pub(super) workers: Workers<ConnectionHandle>,
    pub(super) bans: Bans,
    pub(super) rate: Mutex<Rate>,
    pub(super) presences: Presences,
    pub(super) lifecycles: Lifecycles,
    pub(super) rechecks: Rechecks,
    pub(super) tickets: Tickets,
    pub(super) runs: Runs,
    /// The log that this instance shares with other instances, if there is one.
    pub(super) shared_log: Option<SharedLog>,
    pub(super) draining: AtomicBool,
    pub(super) closed: AtomicBool,
}

/// The background tasks. The builder sets their jobs, because the jobs work on all of [`Inner`].
pub(crate) struct Tasks {
    pub(super) sweep: Background<Inner>,
    pub(super) recheck: Background<Inner>,
    /// The tasks of the shared log. Empty without a shared log.
    pub(super) of_shared_log: Vec<Background<Inner>>,
}

/// Returns 128 random bits from the operating system, for ids and secrets that cannot be guessed.
pub(super) fn random_bits() -> Result<u128, getrandom::Error> {
    Ok(u128::from(getrandom::u64()?) << 64 | u128::from(getrandom::u64()?))
}

impl Hub {
    /// Returns the newest position in the log. Without a shared log, every event that was published
    /// so far is at or before this position. With a shared log, it is the newest position that this
    /// instance has read.
    ///
    /// To render a page without missing an event, take the position first, then query the data, and
    /// then open the stream with `?last_event_id=` and the position. The stream then delivers the
    /// events after the position, or reports a gap. The data may already contain some of these
    /// events.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let hub = tower_sse::Hub::builder().build()?;
    /// use tower_sse::{Event, SubscriberItem, Subscription};
    ///
    /// let position = hub.position(); // and then query the documents
    /// hub.topic("documents").publish(Event::new("document.deleted", "7")).await?;
    /// let mut page = hub.subscribe(Subscription::anonymous().topic("documents"), position)?;
    /// assert!(matches!(page.next().await, Some(SubscriberItem::Event(event)) if event.data == "7"));
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn position(&self) -> Position {
        self.inner.log.position()
    }

    pub(crate) fn settings(&self) -> &Settings {
        &self.inner.settings
    }

    pub(crate) fn log(&self) -> &Log {
        &self.inner.log
    }

    pub(crate) fn transports(&self) -> &Transports {
        &self.inner.transports
    }

    pub(crate) fn counters(&self) -> &Counters {
        &self.inner.counters
    }

    /// Adds the path of a layer to the line that [`log_start`](Self::log_start) logs. Returns
    /// whether the path was added: it is new, and the list is not full.
    pub(crate) fn note_mount(&self, path: &str) -> bool {
        self.inner.start.note_mount(path)
    }

    /// Logs the location of the log, the name of the instance and the paths of the layers, at the
    /// first call.
    pub(crate) fn log_start(&self) {
        let log =
            || self.inner.shared_log.as_ref().map_or("this process".to_owned(), |shared| shared.backplane.describe());
        self.inner.start.log(log, self.settings().instance_name.as_deref());
    }

    /// Counts a retryable refusal.
    pub(crate) fn refused(&self, reason: RefusalReason) {
        self.counters().refused(reason, self.now());
        // The housekeeping records the metrics, also of a hub that refuses all requests.
        #[cfg(feature = "metrics")]
        self.inner.tasks.sweep.ensure(&self.inner);
    }

    #[cfg(feature = "metrics")]
    pub(super) fn metrics(&self) -> &Metrics {
        &self.inner.counters.metrics
    }

    pub(crate) fn registry(&self) -> &Registry {
        &self.inner.registry
    }

    pub(crate) fn now(&self) -> Millis {
        self.inner.now()
    }

    /// Returns whether the hub has stopped accepting streams.
    pub(crate) fn is_draining(&self) -> bool {
        self.inner.draining.load(Ordering::Acquire)
    }

    /// Returns whether the hub has stopped accepting events.
    pub(crate) fn is_closed(&self) -> bool {
        self.inner.closed.load(Ordering::Acquire)
    }

    /// Adds each connection that this audience names by its id, and that is on this instance, to
    /// the channel of that id. A connection does not listen to this channel before the first event
    /// that names the id.
    pub(super) fn attach_connections(&self, audience: &Audience) {
        for address in audience.addresses() {
            if let Address::Connection(id, scope) = address
                && let Some(handle) = self.registry().find(*id).filter(|handle| !handle.reads_run)
                && handle.scope() == scope
            {
                // The join cannot exceed `max_topics`, because the channel is no topic.
                let joined = Joined { address: address.clone(), since: Since::Now, at: None };
                let _ = self.log().join(&handle, &joined, 0, self.now());
            }
        }
    }

    /// Completes an append: counts the events, and makes sure that the remaining listeners are
    /// woken and that the housekeeping runs.
    pub(super) fn published(&self, count: usize) {
        self.counters().published(count);
        wake_rest(&*self.inner);
        self.inner.tasks.sweep.ensure(&self.inner);
    }

    /// Returns a random multiple of `time` as a `retry`, clamped to [`RETRY_RANGE`]. `between` has
    /// the smallest and the largest factor.
    pub(crate) fn jittered_retry(&self, time: Duration, between: RangeInclusive<f64>) -> Duration {
        let factor = between.start() + (between.end() - between.start()) * fastrand::f64();
        let retry = Duration::try_from_secs_f64(time.as_secs_f64() * factor).unwrap_or(time);
        retry.clamp(*RETRY_RANGE.start(), *RETRY_RANGE.end())
    }
}

/// The time on a hub's clock at its start, in milliseconds. It is one year, so that the clock also
/// has times for records from before the start.
const STARTED: Millis = 365 * 24 * 60 * 60 * 1000;

impl Inner {
    pub(super) fn new(log: Log, settings: Settings, tasks: Tasks, shared_log: Option<SharedLog>) -> Self {
        let grace = millis(settings.presence_grace);
        Self {
            log,
            started: Instant::now(),
            registry: Registry::new(settings.limits.clone(), grace),
            transports: Transports::default(),
            counters: Counters::default(),
            start: Start::default(),
            tasks,
            workers: Workers::default(),
            bans: Bans::default(),
            rate: Mutex::default(),
            presences: Presences::new(settings.presence_rules.clone(), grace),
            lifecycles: Lifecycles::default(),
            rechecks: Rechecks::default(),
            tickets: Tickets::default(),
            runs: Runs::default(),
            settings,
            shared_log,
            draining: AtomicBool::new(false),
            closed: AtomicBool::new(false),
        }
    }

    pub(super) fn now(&self) -> Millis {
        self.at(Instant::now())
    }

    /// Starts the tasks of the shared log that do not run.
    pub(super) fn ensure_shared_log(self: &Arc<Self>) {
        self.tasks.of_shared_log.iter().for_each(|task| task.ensure(self));
    }

    #[cfg(feature = "metrics")]
    pub(super) fn record_stats(&self) {
        if self.shared_log.as_ref().is_some_and(|shared| shared.writes_only) {
            // The hub of a publisher has no streams, and its peers are those of the real hubs.
            return;
        }
        self.counters.metrics.record(|| self.stats());
    }

    pub(super) fn stats(&self) -> Stats {
        let now = self.now();
        let usage = self.log.usage();
        let totals = self.counters.totals();
        let handles = self.registry.all();
        let overdue = |since: u64| now > since.saturating_add(1_000);
        Stats {
            connections: handles.len(),
            channels: usage.channels,
            users: self.registry.users(),
            retained_bytes: usage.ring_bytes,
            keyed_bytes: usage.keyed_bytes,
            position: self.log.position(),
            connected: totals.connected,
            published: totals.published,
            delivered: totals.delivered,
            #[cfg(feature = "metrics")]
            sent_bytes: totals.sent_bytes,
            stale: self.shared_log.as_ref().is_some_and(SharedLog::is_stale),
            others: self.shared_log.as_ref().map_or(0, SharedLog::instances),
            skipped: self.shared_log.as_ref().map_or(0, SharedLog::skipped),
            unread: self.shared_log.as_ref().map_or(0, SharedLog::unread),
            evicted: usage.evicted,
            // An idle stream has nothing to read, however old its cursor is.
            lag: handles
                .iter()
                .filter(|handle| handle.needs_poll(now))
                .map(|handle| self.log.lag(&handle.subscriber))
                .max()
                .unwrap_or(0),
            stalled: handles.iter().filter(|handle| handle.overdue_since().is_some_and(overdue)).count(),
            gaps: totals.gaps,
            refused: totals.refused,
            ended: totals.ended,
        }
    }

    pub(super) fn at(&self, instant: Instant) -> Millis {
        let since = u64::try_from(instant.saturating_duration_since(self.started).as_millis());
        since.map_or(Millis::MAX, |since| since.saturating_add(STARTED))
    }

    pub(super) fn instant(&self, millis: Millis) -> Instant {
        self.started + Duration::from_millis(millis.saturating_sub(STARTED))
    }
}

/// The last counts of a hub reach the recorder, although no call of `record_metrics` follows.
#[cfg(feature = "metrics")]
impl Drop for Inner {
    fn drop(&mut self) {
        self.record_stats();
    }
}

impl Host for Inner {
    type Stream = ConnectionHandle;

    fn workers(&self) -> &Workers<ConnectionHandle> {
        &self.workers
    }

    fn ensure_tasks(self: &Arc<Self>) {
        self.tasks.sweep.ensure(self);
        self.tasks.recheck.ensure(self);
        self.ensure_shared_log();
    }

    fn now(&self) -> Millis {
        Self::now(self)
    }

    fn instant(&self, at: Millis) -> Instant {
        Self::instant(self, at)
    }

    fn has_streams(&self) -> bool {
        self.registry.len() > 0
    }

    fn has_deferred(&self) -> bool {
        self.log.has_deferred()
    }

    fn wake_deferred(&self) -> bool {
        self.log.wake_deferred(self.now())
    }
}

opaque_debug!(|hub: Hub| {
    instance: hub.settings().instance_name,
    position: hub.position(),
    connections: hub.registry().len(),
});
