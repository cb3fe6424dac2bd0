//! Publishing without a hub: for what has no streams of its own.

use std::sync::Arc;

use super::builder::{HubBuilder, Shared};
use super::publish::{join, split};
use super::target::{Source, aim, targets};
use super::{Receipt, Target};
use crate::backplane::{Backplane, LogPosition};
use crate::hub::cluster::append;
use crate::hub::config::configuration::Configuration;
use crate::hub::config::settings::Settings;
use crate::hub::observe::counters::KEY_IGNORED;
use crate::log::{Entry, Policies};
use crate::macros::opaque_debug;
use crate::sync::{AtomicBool, Mutex, Ordering};
use crate::types::{
    Address, Audience, BuildError, ConnectionId, Event, InvalidName, Position, PublishError, Topic, UserId,
};

/// Publishes to a log that instances share, and does nothing else: no HTTP, no streams, no memory for
/// subscribers, nothing that runs in the background. For workers, command-line tools and cron jobs.
/// Cloning is one reference count.
///
/// A publisher remembers the place of its newest record, and passes it to the log with the next
/// publish. A log that is younger begins a new epoch then, and every stream gets a gap. On Redis so
/// does a log that has another record in that place, after a failover to a replica that was behind.
/// A new publisher remembers nothing, so keep one for the life of the process.
///
/// It checks events as [`Hub`](crate::Hub) does. Which topics keep the newest of each [key](Event::key) it must be told as the
/// instances are: share the function that makes the settings.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use tower_sse::backplane::Memory;
/// use tower_sse::{Event, Hub, HubBuilder, Retention, TopicFilter};
///
/// fn settings(log: Memory) -> HubBuilder {
///     Hub::builder().retention_for(TopicFilter::prefix("reports/"), Retention::latest_per_key()).backplane(log)
/// }
///
/// let log = Memory::new(); // in real life `Redis`, in two processes
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
    settings: Settings,
    /// The highest place that this publisher was told. A log that ends below it begins a new epoch
    /// with the next append. That another record has its number is noticed by adapters that
    /// compare, such as Redis.
    seen: Mutex<Option<LogPosition>>,
    key_ignored_said: AtomicBool,
}

impl HubBuilder {
    /// Builds what only publishes, for workers, command-line tools and cron jobs: [`Publisher`]. Of the
    /// settings count the [`backplane`](Self::backplane), which it needs, the retention, the limits of
    /// events and targets, and [`publish_timeout`](Self::publish_timeout). Instances and workers that
    /// share one function for their settings agree. Needs no runtime and no broker.
    ///
    /// # Errors
    /// As [`build`](Self::build); and without a backplane.
    pub fn publisher(self) -> Result<Publisher, BuildError> {
        self.configuration.check()?;
        let policies = self.configuration.policies();
        let Some(Shared(backplane)) = self.backplane else {
            return Err(BuildError::new("backplane", "without one a publisher has no log to publish to"));
        };
        let Configuration { settings, .. } = self.configuration;
        Ok(Publisher {
            inner: Arc::new(Inner {
                backplane,
                policies,
                settings,
                seen: Mutex::new(None),
                key_ignored_said: AtomicBool::new(false),
            }),
        })
    }
}

impl Publisher {
    /// Creates a publisher with the default settings: the same as `Hub::builder().backplane(backplane).publisher()`.
    /// By those no topic keeps the newest of each key; with rules, use [`HubBuilder::publisher`].
    ///
    /// # Errors
    /// As [`HubBuilder::publisher`].
    pub fn new(backplane: impl Backplane) -> Result<Self, BuildError> {
        HubBuilder::default().backplane(backplane).publisher()
    }

    /// Publishes several events in this order, pipelined: many times as fast as one after the other. One
    /// result for each: a bad one does not stop the others. The whole batch has the time of one
    /// [`publish_timeout`](HubBuilder::publish_timeout), so make it some thousands, not millions.
    ///
    /// Cancel safety: as [`Target::publish`](Target::<Publisher>::publish).
    ///
    /// # Panics
    /// As [`Target::publish`](Target::<Publisher>::publish).
    pub async fn publish_many<'a, I>(&self, events: I) -> Vec<Result<Receipt, PublishError>>
    where
        I: IntoIterator<Item = (Target<'a, Self>, Event)>,
    {
        let mut ignored_keys = Vec::new();
        let (records, errors) = split(events.into_iter().map(|(target, event)| {
            let audience = self.checked(target.checked_for(self), &event)?;
            let record = append::record(&audience, &event, |address| self.inner.policies.keeps_values(address));
            ignored_keys.push(event.key.is_some() && record.values.is_empty());
            Ok(record)
        }));
        if ignored_keys.contains(&true) && !self.inner.key_ignored_said.swap(true, Ordering::Relaxed) {
            tracing::warn!("{KEY_IGNORED}; said once");
        }
        let positions = self.append(records).await.into_iter().zip(ignored_keys);
        let receipt = |(position, key_ignored): (Result<Position, _>, bool)| {
            position.map(|position| Receipt { position, connections: 0, key_ignored })
        };
        join(errors, positions.map(receipt))
    }

    /// By the rules of the hub.
    fn checked(&self, audience: Result<Audience, InvalidName>, event: &Event) -> Result<Audience, PublishError> {
        let entry = Entry::new(audience?, event, &self.inner.settings.framing);
        entry.map(|entry| entry.audience).map_err(|refused| refused.1)
    }

    async fn append(&self, records: Vec<crate::backplane::NewRecord>) -> Vec<Result<Position, PublishError>> {
        if records.is_empty() {
            return Vec::new();
        }
        let Inner { backplane, settings, seen, .. } = &*self.inner;
        let before = *seen.lock();
        let places = append::append(&**backplane, records, before, settings.publish_timeout).await;
        if let Some(newest) = places.iter().flatten().last() {
            let mut seen = seen.lock();
            // Of two calls under way the later one may be answered first.
            if !seen.is_some_and(|seen| seen.epoch == newest.epoch && seen.sequence > newest.sequence) {
                *seen = Some(*newest);
            }
        }
        places.into_iter().map(|place| place.map(append::position)).collect()
    }
}

targets!(Publisher);

impl Source for Publisher {
    fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.inner, &other.inner)
    }
}

impl Target<'_, Publisher> {
    /// Publishes an event. `Ok` means that the log has it; it says nothing about listeners.
    ///
    /// Cancel safety: a dropped future may have published or not.
    ///
    /// # Errors
    /// As [`Target::publish`](crate::Target::publish): a bad event or target, and nothing is appended; a
    /// broker that is not there, refuses, or does not answer within
    /// [`HubBuilder::publish_timeout`](crate::HubBuilder::publish_timeout); no tokio runtime to wait for
    /// it in, and nothing is sent.
    ///
    /// # Panics
    /// In a tokio runtime that was built without its clock or its network: use `enable_all`.
    pub async fn publish(self, event: Event) -> Result<Receipt, PublishError> {
        // There is one for each.
        self.source.publish_many([(self, event)]).await.pop().unwrap_or(Err(PublishError::CLOSED))
    }

    /// Whether [`publish`](Self::publish) would take this event: for a batch that is published whole or not at all.
    ///
    /// # Errors
    /// As [`publish`](Self::publish), but those of the broker.
    pub fn check(&self, event: &Event) -> Result<(), PublishError> {
        self.source.checked(self.audience.clone(), event).map(drop)
    }
}

opaque_debug!(|publisher: Publisher| { backplane: publisher.inner.backplane.describe() });
