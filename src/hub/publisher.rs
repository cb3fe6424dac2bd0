//! Publishing to a shared log without a hub, for programs that have no streams.

use std::sync::{Arc, OnceLock};

use super::builder::{HubBuilder, Shared};
use super::publish::{join, log, split};
use super::target::{Handle, Source, aim, targets};
use super::{Hub, Receipt, Run, Target};
use crate::backplane::{Backplane, LogPosition, NewRecord};
use crate::hub::cluster::append;
use crate::hub::config::configuration::Configuration;
use crate::hub::observe::counters::KEY_IGNORED;
#[cfg(feature = "metrics")]
use crate::hub::observe::metrics::PublishMetrics;
use crate::log::{Entry, Policies};
use crate::macros::opaque_debug;
use crate::sync::{AtomicBool, Mutex, Ordering};
use crate::types::{
    Address, Audience, BuildError, ConnectionId, Event, InvalidName, Message, Position, PublishError, ScopeName, Topic,
    UserId,
};

/// A publisher to a log that instances share, for workers, command-line tools and cron jobs.
///
/// A publisher has no HTTP, no streams and no memory for subscribers. It has background tasks only
/// after a call of [`run`](Publisher::run). A clone costs one reference count.
///
/// Keep one publisher for the life of the process. A publisher remembers the position of its newest
/// record, and passes this position to the log with the next publish. If the log ends before this
/// position, the log has lost records. It then begins a new epoch, and every stream gets a gap. A
/// log on Redis or Postgres also begins a new epoch if it has a different record at this position,
/// which happens after a failover to a replica that was behind. A new publisher remembers no
/// position, so its first publish detects no loss.
///
/// A publisher checks events as [`Hub`](crate::Hub) does. It needs the same retention rules as the
/// instances, because they set which topics keep the newest event of each [key](Event::key).
/// Therefore, create hubs and publishers from one function that returns the settings.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use tower_sse::backplane::Memory;
/// use tower_sse::{Event, Hub, HubBuilder, Retention, TopicFilter};
///
/// fn settings(log: Memory) -> HubBuilder {
///     let reports = TopicFilter::prefix("reports/");
///     Hub::builder().retention_for(reports, Retention::latest_per_key()).backplane(log)
/// }
///
/// let log = Memory::new(); // in production `Redis`, `Nats` or `Postgres`, in several processes
/// let instance = settings(log.clone()).build()?;
/// let publisher = settings(log).publisher()?;
///
/// let progress = Event::new("progress", "40").key("report").idempotency_key("report 7: 40 %");
/// publisher.topic("reports/7").and(publisher.user("ada")).publish(progress).await?;
/// # let _ = instance;
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Publisher {
    inner: Arc<Inner>,
}

struct Inner {
    backplane: Arc<dyn Backplane>,
    policies: Policies,
    configuration: Configuration,
    /// The hub that writes this publisher's runs. It has no streams and does not follow the log.
    writer: OnceLock<Hub>,
    /// The position of this publisher's newest record. A log that ends before this position begins
    /// a new epoch with the next append. Adapters that compare records, such as Redis, also do so
    /// if the log has a different record at this position.
    seen: Mutex<Option<LogPosition>>,
    is_key_ignored_logged: AtomicBool,
    #[cfg(feature = "metrics")]
    metrics: PublishMetrics,
}

/// A record that was checked and encoded.
struct Prepared {
    record: NewRecord,
    /// The kind of its audience, for the log.
    kind: &'static str,
    key_ignored: bool,
}

impl HubBuilder {
    /// Builds a [`Publisher`], for workers, command-line tools and cron jobs. This method needs no
    /// runtime and no broker.
    ///
    /// A publisher uses these settings: the [`backplane`](Self::backplane), which is required, the
    /// retention of topics and users, [`max_payload`](Self::max_payload),
    /// [`publish_timeout`](Self::publish_timeout) and [`require_scope`](Self::require_scope). For
    /// its [runs](Publisher::run), it also uses [`peer_timeout`](Self::peer_timeout),
    /// [`run_keep_for`](Self::run_keep_for), [`run_max_bytes`](Self::run_max_bytes) and
    /// [`run_max_events`](Self::run_max_events). Create instances and workers from one function
    /// that returns the settings, so that these are equal.
    ///
    /// ```
    /// use tower_sse::{Hub, backplane::Memory};
    ///
    /// let log = Memory::new(); // in production `Redis`, `Nats` or `Postgres`
    /// let publisher = Hub::builder().max_payload(64 * 1024).backplane(log).publisher()?;
    /// assert!(Hub::builder().publisher().is_err()); // there is no log to publish to
    /// # let _ = publisher;
    /// # Ok::<(), tower_sse::BuildError>(())
    /// ```
    ///
    /// # Errors
    /// Returns an error if a setting is invalid, as for [`build`](Self::build), or if there is no
    /// backplane.
    pub fn publisher(self) -> Result<Publisher, BuildError> {
        self.configuration.check()?;
        let policies = self.configuration.policies();
        let Some(Shared(backplane)) = self.backplane else {
            return Err(BuildError::new("backplane", "a publisher requires a backplane"));
        };
        Ok(Publisher {
            inner: Arc::new(Inner {
                backplane,
                policies,
                configuration: self.configuration,
                writer: OnceLock::new(),
                seen: Mutex::new(None),
                is_key_ignored_logged: AtomicBool::new(false),
                #[cfg(feature = "metrics")]
                metrics: PublishMetrics::default(),
            }),
        })
    }
}

impl Publisher {
    /// Creates a publisher with the default settings, like
    /// `Hub::builder().backplane(backplane).publisher()`. With these settings, no topic keeps the
    /// newest event of each key. If the instances have other settings, use
    /// [`HubBuilder::publisher`].
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use tower_sse::{Event, Publisher, backplane::Memory};
    ///
    /// let publisher = Publisher::new(Memory::new())?; // in production `Redis`, `Nats` or `Postgres`
    /// publisher.topic("news").publish(Event::new("headline", "Bridge closed")).await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// Returns an error under the same conditions as [`HubBuilder::publisher`].
    #[doc(alias = "publisher")]
    pub fn new(backplane: impl Backplane) -> Result<Self, BuildError> {
        HubBuilder::default().backplane(backplane).publisher()
    }

    /// Publishes several events in this order, and returns one result for each event. An invalid
    /// event does not stop the others. The errors are those of
    /// [`Target::publish`](Target::<Publisher>::publish).
    ///
    /// The publisher sends the events without waiting for each answer, which is many times as fast
    /// as one `publish` after the other. The [`publish_timeout`](HubBuilder::publish_timeout)
    /// applies to the whole batch, so publish thousands of events in a batch, not millions.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use tower_sse::{Event, Publisher, backplane::Memory};
    ///
    /// let publisher = Publisher::new(Memory::new())?;
    /// let headlines = ["Bridge closed", "Bridge open again"];
    /// let events = headlines.map(|text| (publisher.topic("news"), Event::new("headline", text)));
    /// let receipts = publisher.publish_many(events).await;
    /// assert!(receipts.iter().all(|receipt| receipt.is_ok()));
    /// # Ok(()) }
    /// ```
    ///
    /// Cancel safety: a dropped future may have published none, some or all of the events.
    ///
    /// # Panics
    /// Panics under the same conditions as [`Target::publish`](Target::<Publisher>::publish).
    pub async fn publish_many<'a, I>(&self, events: I) -> Vec<Result<Receipt, PublishError>>
    where
        I: IntoIterator<Item = (Target<'a, Self>, Event)>,
    {
        let prepare = |(target, event): (Target<'_, Self>, Event)| self.prepare(target.checked_for(self), &event);
        self.publish_all(events.into_iter().map(prepare).collect()).await
    }

    /// Publishes records that [`Target::prepare`](Target::<Publisher>::prepare) has returned, in
    /// this order, and returns one result for each record. The records may be of another publisher
    /// or of a hub, for example from the outbox table of an application.
    ///
    /// The publisher sends the records like [`publish_many`](Self::publish_many). It does not check
    /// them again. If a record was damaged, instances skip it, and its audience receives a
    /// `hub.gap`. If a call is repeated after an error, or by a process that was started again, an
    /// [idempotency key](NewRecord::idempotency_key) prevents a second event.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use tower_sse::{Event, Publisher, backplane::Memory};
    ///
    /// let publisher = Publisher::new(Memory::new())?;
    /// let record = publisher.topic("news").prepare(Event::new("headline", "Bridge closed"))?;
    /// for receipt in publisher.publish_prepared(vec![record]).await {
    ///     assert!(!receipt?.key_ignored); // `prepare` has logged a key without an effect
    /// }
    /// # Ok(()) }
    /// ```
    ///
    /// Cancel safety: a dropped future may have published none, some or all of the records.
    ///
    /// # Errors
    /// Each result has the errors of [`Target::publish`](Target::<Publisher>::publish) that concern
    /// the broker or the runtime.
    ///
    /// # Panics
    /// Panics under the same conditions as [`Target::publish`](Target::<Publisher>::publish).
    pub async fn publish_prepared(&self, records: Vec<NewRecord>) -> Vec<Result<Receipt, PublishError>> {
        let prepared = |record| Ok(Prepared { record, kind: "prepared", key_ignored: false });
        self.publish_all(records.into_iter().map(prepared).collect()).await
    }

    async fn publish_all(&self, prepared: Vec<Result<Prepared, PublishError>>) -> Vec<Result<Receipt, PublishError>> {
        #[cfg(feature = "metrics")]
        let mut call = self.inner.metrics.begin();
        let (prepared, errors) = split(prepared);
        #[cfg(feature = "metrics")]
        call.waits_for(errors.len());
        let (records, about): (Vec<_>, Vec<_>) =
            prepared.into_iter().map(|Prepared { record, kind, key_ignored }| (record, (kind, key_ignored))).unzip();
        let positions = self.append(records).await.into_iter().zip(about);
        let receipt = |(position, (kind, key_ignored)): (Result<Position, PublishError>, _)| {
            let receipt = Receipt { position: position?, connections: 0, key_ignored };
            log(kind, &receipt);
            Ok(receipt)
        };
        let results = join(errors, positions.map(receipt));
        #[cfg(feature = "metrics")]
        call.end(&results);
        results
    }

    /// Checks and encodes an event. Logs a warning if its key has no effect.
    fn prepare(&self, audience: Result<Audience, InvalidName>, event: &Event) -> Result<Prepared, PublishError> {
        let audience = self.checked(audience, event)?;
        let record = append::record(&audience, event, |address| self.inner.policies.keeps_values(address));
        let key_ignored = event.key.is_some() && record.values.is_empty();
        if key_ignored && !self.inner.is_key_ignored_logged.swap(true, Ordering::Relaxed) {
            tracing::warn!(name: "sse.publish.key_ignored", "{KEY_IGNORED} (logged once)");
        }
        Ok(Prepared { record, kind: audience.kind(), key_ignored })
    }

    /// Checks an event by the same rules as a hub.
    fn checked(&self, audience: Result<Audience, InvalidName>, event: &Event) -> Result<Audience, PublishError> {
        let entry = Entry::new(audience?, event, &self.inner.configuration.settings.framing);
        entry.map(|entry| entry.audience).map_err(|refused| refused.1)
    }

    async fn append(&self, records: Vec<NewRecord>) -> Vec<Result<Position, PublishError>> {
        if records.is_empty() {
            return Vec::new();
        }
        let Inner { backplane, configuration: Configuration { settings, .. }, seen, .. } = &*self.inner;
        let before = *seen.lock();
        let places = append::append(&**backplane, records, before, settings.publish_timeout).await;
        if let Some(newest) = places.iter().flatten().last() {
            let mut seen = seen.lock();
            // Answers to concurrent calls may arrive in another order.
            if !seen.is_some_and(|seen| seen.epoch == newest.epoch && seen.sequence > newest.sequence) {
                *seen = Some(*newest);
            }
        }
        places.into_iter().map(|place| place.map(append::position)).collect()
    }
}

impl Publisher {
    /// Returns the run of this name, for a worker that writes runs. [`Hub::run`](crate::Hub::run)
    /// describes names.
    ///
    /// From the first call on, the publisher sends the instances a sign of life every third of
    /// [`peer_timeout`](HubBuilder::peer_timeout). They end its runs `peer_timeout` after it has
    /// died, so this setting must be the same everywhere. Keep the publisher until its runs have
    /// ended: with its last clone and its last writer, it stops. A worker that exits ends its runs
    /// first.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use tower_sse::backplane::Memory;
    /// use tower_sse::{Event, Hub, Publisher, RunEnd, RunState};
    ///
    /// let log = Memory::new(); // in production `Redis`, `Nats` or `Postgres`, in several processes
    /// let instance = Hub::builder().backplane(log.clone()).build()?;
    /// let worker = Publisher::new(log)?;
    /// let writer = worker.run("imports/7").begin().await?;
    /// writer.publish(Event::new("progress", "40")).await?;
    /// writer.finish().await?;
    /// assert_eq!(instance.run("imports/7").state().await?, RunState::Ended(RunEnd::Finished));
    /// # Ok(()) }
    /// ```
    pub fn run<N: TryInto<Topic, Error: Into<InvalidName>>>(&self, name: N) -> Run {
        Run::of(self.run_writer(), self, name)
    }

    /// Returns the hub that writes the runs of this publisher.
    pub(super) fn run_writer(&self) -> &Hub {
        let Inner { backplane, configuration, writer, .. } = &*self.inner;
        writer.get_or_init(|| Hub::for_runs_only(configuration.clone(), Arc::clone(backplane)))
    }
}

targets!(Publisher, Publisher);

impl Source for Publisher {
    fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.inner, &other.inner)
    }

    fn requires_scope(&self) -> bool {
        self.inner.configuration.settings.requires_scope
    }
}

impl Target<'_, Publisher> {
    /// Publishes an event. `Ok` means that the log has the event. It says nothing about delivery.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use tower_sse::{Event, Publisher, backplane::Memory};
    ///
    /// let publisher = Publisher::new(Memory::new())?;
    /// let receipt = publisher.user("ada").publish(Event::new("report.ready", "7")).await?;
    /// assert_eq!(receipt.connections, 0); // a publisher has no connections
    /// # Ok(()) }
    /// ```
    ///
    /// Cancel safety: a dropped future may or may not have published the event.
    ///
    /// # Errors
    /// The publisher appends nothing if a name or a key is invalid, the target belongs to another
    /// publisher or is too large (128 addresses, 128 excluded connections), or the payload is over
    /// [`HubBuilder::max_payload`](crate::HubBuilder::max_payload).
    ///
    /// Publishing also fails when the broker is unavailable, rejects the event, or does not answer
    /// within [`HubBuilder::publish_timeout`](crate::HubBuilder::publish_timeout). If
    /// [`PublishError::is_unknown`] is true, for example after a timeout, the event may have been
    /// published. Outside of a tokio runtime the publisher cannot wait for the broker. The method
    /// then returns an error and sends nothing.
    ///
    /// # Panics
    /// Panics in a tokio runtime whose time or I/O driver is disabled. Build the runtime with
    /// `enable_all`.
    pub async fn publish(self, event: Event) -> Result<Receipt, PublishError> {
        // `publish_many` returns one result for each event.
        self.source.publish_many([(self, event)]).await.pop().unwrap_or(Err(PublishError::CLOSED))
    }

    /// Checks an event and returns its record, without publishing it.
    /// [`Target::prepare`](Target::<Hub>::prepare) describes the use of a prepared record.
    ///
    /// ```
    /// use tower_sse::{Event, Publisher, backplane::Memory};
    ///
    /// let publisher = Publisher::new(Memory::new())?;
    /// let record = publisher.user("ada").prepare(Event::new("report.ready", "7"))?;
    /// assert!(record.payload.starts_with(b"{"));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// Returns the errors of [`publish`](Self::publish), except those of the broker.
    #[expect(clippy::needless_pass_by_value, reason = "the same signature as `publish`")]
    pub fn prepare(self, event: Event) -> Result<NewRecord, PublishError> {
        let prepared = self.source.prepare(self.audience, &event);
        #[cfg(feature = "metrics")]
        if let Err(error) = &prepared {
            self.source.inner.metrics.failed(error);
        }
        prepared.map(|prepared| prepared.record)
    }

    /// Checks whether [`publish`](Self::publish) would accept this event. Use it to publish a batch
    /// only if all of its events are valid.
    ///
    /// ```
    /// use tower_sse::{Event, Publisher, backplane::Memory};
    ///
    /// let publisher = Publisher::new(Memory::new())?;
    /// let batch = [
    ///     (publisher.topic("documents/7"), Event::new("document.saved", "7")),
    ///     (publisher.topic("documents/7"), Event::new("hub.saved", "7")), // names of the hub are reserved
    /// ];
    /// assert!(batch.iter().any(|(target, event)| target.check(event).is_err()));
    /// # Ok::<(), tower_sse::BuildError>(())
    /// ```
    ///
    /// # Errors
    /// Returns the errors of [`publish`](Self::publish), except those of the broker.
    pub fn check(&self, event: &Event) -> Result<(), PublishError> {
        self.source.checked(self.audience.clone(), event).map(drop)
    }
}

impl<'p> Target<'p, Publisher> {
    /// Publishes a typed event: [`Target::send`](Target::<Hub>::send). The errors are those of
    /// [`publish`](Self::publish).
    pub fn send<M: Message>(
        self,
        message: &M,
    ) -> impl Future<Output = Result<Receipt, PublishError>> + Send + use<'p, M> {
        let event = message.to_event();
        #[cfg(feature = "metrics")]
        if let Err(error) = &event {
            self.source.inner.metrics.failed(error);
        }
        async move { self.publish(event?).await }
    }
}

opaque_debug!(|publisher: Publisher| { backplane: publisher.inner.backplane.describe() });
