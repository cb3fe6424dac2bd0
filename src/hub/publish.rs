//! Publishing: checks an event and its target, then appends the event to the log in one step.

use smallvec::SmallVec;

use super::target::Source;
use super::{Hub, Receipt, Target};
use crate::backplane::NewRecord;
use crate::hub::cluster::append;
use crate::hub::cluster::shared_log::SharedLog;
use crate::log::{Effect, Entry};
use crate::types::{Audience, Event, InvalidName, Message, PublishError};

impl Hub {
    /// Publishes several events in this order, and returns one result for each event. An invalid
    /// event does not stop the others. The errors are those of [`Target::publish`].
    ///
    /// The log of this process appends all events in one step, without other events between them.
    /// Streams hardly read during this step. So if a batch is larger than the retention of its
    /// audience, open streams may receive a `hub.gap`.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let hub = tower_sse::Hub::builder().build()?;
    /// use tower_sse::Event;
    ///
    /// let saved = (hub.topic("documents/7"), Event::new("document.saved", "7"));
    /// let audit = (hub.topic("audit"), Event::new("document.saved", "7 by ada"));
    /// let receipts = hub.publish_many([saved, audit]).await;
    /// assert!(receipts.iter().all(|receipt| receipt.is_ok()));
    /// # Ok(()) }
    /// ```
    ///
    /// With a shared log, the hub sends the events without waiting for each answer, which is many
    /// times as fast as one `publish` after the other. Events of other publishers may come between
    /// them. The [`publish_timeout`](crate::HubBuilder::publish_timeout) applies to the whole
    /// batch.
    ///
    /// Cancel safety: with the log of this process, the future completes when it is first polled.
    /// With a shared log, a dropped future may have published none, some or all of the events.
    ///
    /// # Panics
    /// Panics under the same conditions as [`Target::publish`].
    pub async fn publish_many<'a, I>(&self, events: I) -> Vec<Result<Receipt, PublishError>>
    where
        I: IntoIterator<Item = (Target<'a>, Event)>,
    {
        #[cfg(feature = "metrics")]
        let mut call = self.metrics().publishing.begin();
        let events = events.into_iter().map(|(target, event)| (target.checked_for(self), event));
        let results = if let Some(shared) = &self.inner.shared_log {
            let checked: Vec<_> = events.map(|(audience, event)| self.checked_event(audience, event)).collect();
            #[cfg(feature = "metrics")]
            call.waits_for(checked.len());
            self.publish_shared(shared, checked).await
        } else {
            let (entries, errors) = split(events.map(|(audience, event)| self.entry(audience, &event)));
            join(errors, self.append(entries).into_iter().map(Ok))
        };
        #[cfg(feature = "metrics")]
        call.end(&results);
        results
    }

    fn publish_local(&self, audience: Result<Audience, InvalidName>, event: &Event) -> Result<Receipt, PublishError> {
        if self.inner.shared_log.is_some() {
            return Err(PublishError::SHARED);
        }
        let entry = self.entry(audience, event)?;
        self.append([entry]).pop().ok_or(PublishError::CLOSED)
    }

    async fn publish_shared(
        &self,
        shared: &SharedLog,
        checked: Vec<Result<(Audience, Event), PublishError>>,
    ) -> Vec<Result<Receipt, PublishError>> {
        let (events, errors) = split(checked);
        let listening = |audience: &Audience| audience.addresses().iter().map(|to| self.log().listening(to)).sum();
        let about: Vec<_> = events
            .iter()
            .map(|(audience, event)| {
                // Otherwise the channel of a connection has no listener before its first event.
                self.attach_connections(audience);
                let key_ignored = event.key.is_some() && self.ignores_key(audience);
                (audience.kind(), listening(audience), key_ignored)
            })
            .collect();
        let appended = if events.is_empty() { Vec::new() } else { self.append_shared(shared, events).await };
        let published = appended.into_iter().zip(about).map(|(position, (kind, connections, key_ignored))| {
            let receipt = Receipt { position: position?, connections, key_ignored };
            self.counters().published(1);
            log(kind, &receipt);
            Ok(receipt)
        });
        join(errors, published)
    }

    fn entry(&self, audience: Result<Audience, InvalidName>, event: &Event) -> Result<Entry, PublishError> {
        let audience = audience?;
        if event.idempotency_key.is_some() && self.inner.shared_log.is_none() {
            return Err(PublishError::KEY_UNSHARED);
        }
        let entry = Entry::new(audience, event, &self.settings().framing).map_err(|refused| refused.1)?;
        self.counters().payload(entry.draft.len());
        Ok(entry)
    }

    /// Returns the record of an event, if the event and its audience are valid.
    fn prepare(&self, audience: Result<Audience, InvalidName>, event: &Event) -> Result<NewRecord, PublishError> {
        if self.inner.shared_log.is_none() {
            return Err(PublishError::RECORD_UNSHARED);
        }
        let Entry { audience, .. } = self.entry(audience, event)?;
        if event.key.is_some() {
            self.ignores_key(&audience);
        }
        Ok(append::record(&audience, event, |address| self.log().keeps_values(address)))
    }

    /// Returns the event and its audience, if both are valid and the hub is not closed.
    fn checked_event(
        &self,
        audience: Result<Audience, InvalidName>,
        event: Event,
    ) -> Result<(Audience, Event), PublishError> {
        let entry = self.entry(audience, &event)?;
        if self.is_closed() { Err(PublishError::CLOSED) } else { Ok((entry.audience, event)) }
    }

    /// Appends entries to the log of this process, and returns one receipt for each. Appends
    /// nothing and returns no receipts if the hub is closed.
    fn append(&self, entries: impl IntoIterator<Item = Entry> + AsRef<[Entry]>) -> SmallVec<[Receipt; 1]> {
        if self.is_closed() {
            return SmallVec::new();
        }
        let mut about = SmallVec::<[_; 1]>::new();
        for entry in entries.as_ref() {
            self.attach_connections(&entry.audience);
            let key_ignored = entry.effect != Effect::Nothing && self.ignores_key(&entry.audience);
            about.push((entry.audience.kind(), key_ignored));
        }
        let mut receipts = SmallVec::new();
        for (appended, (kind, key_ignored)) in self.log().append(entries, self.now()).into_iter().zip(about) {
            let receipt = Receipt { position: appended.position, connections: appended.receivers, key_ignored };
            log(kind, &receipt);
            receipts.push(receipt);
        }
        self.published(receipts.len());
        receipts
    }

    /// Returns whether a key has no effect for this audience, because no address of the audience
    /// keeps the newest event of each key. If so, also logs a warning.
    fn ignores_key(&self, audience: &Audience) -> bool {
        let is_kept = audience.addresses().iter().any(|address| self.log().keeps_values(address));
        if !is_kept {
            self.counters().key_ignored(self.now());
        }
        !is_kept
    }
}

impl Source for Hub {
    fn is(&self, other: &Self) -> bool {
        std::sync::Arc::ptr_eq(&self.inner, &other.inner)
    }

    fn requires_scope(&self) -> bool {
        self.settings().requires_scope
    }
}

impl Target<'_> {
    /// Publishes an event. `Ok` means that the log has the event. It says nothing about delivery,
    /// because the method does not wait for readers.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let hub = tower_sse::Hub::builder().build()?;
    /// use tower_sse::Event;
    ///
    /// let receipt = hub.topic("news").publish(Event::new("headline", "Bridge closed")).await?;
    /// assert_eq!(receipt.position, hub.position());
    /// let error = hub.topic("").publish(Event::new("headline", "Bridge closed")).await.unwrap_err();
    /// assert!(error.is_invalid());
    /// # Ok(()) }
    /// ```
    ///
    /// Cancel safety: with the log of this process, the future completes when it is first polled.
    /// With a shared log, a dropped future may or may not have published the event.
    ///
    /// # Errors
    /// In these cases the hub appends nothing, and uses no position:
    ///
    /// - A name or a key is invalid, or the target belongs to another hub.
    /// - The target has more than 128 addresses, or excludes more than 128 connections.
    /// - The payload is over [`HubBuilder::max_payload`](crate::HubBuilder::max_payload).
    /// - The event has an idempotency key, and the log is not shared.
    /// - The hub was drained.
    ///
    /// With a shared log, publishing also fails when the broker is unavailable, rejects the event,
    /// or does not answer within
    /// [`HubBuilder::publish_timeout`](crate::HubBuilder::publish_timeout). If
    /// [`PublishError::is_unknown`] is true, for example after a timeout, the event may have been
    /// published. Outside of a tokio runtime the hub cannot wait for the broker. The method then
    /// returns an error and sends nothing.
    ///
    /// # Panics
    /// Panics with a shared log in a tokio runtime whose time or I/O driver is disabled. Build the
    /// runtime with `enable_all`. The same applies to [`Hub::publish_many`], commands and
    /// [`Hub::ticket`].
    pub async fn publish(self, event: Event) -> Result<Receipt, PublishError> {
        let hub = self.source;
        if hub.inner.shared_log.is_none() {
            return self.publish_now(event);
        }
        // `publish_many` returns one result for each event.
        hub.publish_many([(self, event)]).await.pop().unwrap_or(Err(PublishError::CLOSED))
    }

    /// Publishes an event from code that cannot await, for example a `Drop`, a callback or a thread
    /// without a runtime. It works only with the log of this process, because publishing to a
    /// shared log has to wait for the broker.
    ///
    /// ```
    /// use tower_sse::{Event, Hub};
    ///
    /// let hub = Hub::builder().build()?;
    /// let receipt = hub.topic("documents/7").publish_now(Event::new("document.unlocked", "7"))?;
    /// assert_eq!(receipt.position, hub.position());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// Returns an error under the same conditions as [`publish`](Self::publish), and always with a
    /// shared log.
    #[expect(clippy::needless_pass_by_value, reason = "the same signature as `publish`")]
    pub fn publish_now(self, event: Event) -> Result<Receipt, PublishError> {
        let hub = self.source;
        #[cfg(feature = "metrics")]
        let call = hub.metrics().publishing.begin();
        let result = hub.publish_local(self.audience, &event);
        #[cfg(feature = "metrics")]
        call.end(std::slice::from_ref(&result));
        result
    }

    /// Checks an event and returns its record, without publishing it. The application stores the
    /// record in its own transaction, and publishes it after the commit: [`NewRecord`] shows how to
    /// store a record, and [`Publisher::publish_prepared`](crate::Publisher::publish_prepared)
    /// publishes it.
    ///
    /// A hub without a shared log cannot prepare records, because no other process could publish
    /// them. A drained hub can, so that requests which are in progress complete.
    ///
    /// The record has the present time as its time of publishing. The method logs a warning if the
    /// [key](Event::key) of the event has no effect.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use tower_sse::backplane::Memory;
    /// use tower_sse::{Event, Hub, Publisher};
    ///
    /// let log = Memory::new(); // in production a broker
    /// let hub = Hub::builder().backplane(log.clone()).build()?;
    /// let record = hub.user("ada").prepare(Event::new("document.renamed", "7"))?;
    /// // Store the change and the record in one transaction, and commit it.
    /// let publisher = Publisher::new(log)?;
    /// for receipt in publisher.publish_prepared(vec![record]).await {
    ///     receipt?;
    /// }
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// Returns the errors of [`publish`](Self::publish), except those of a drained hub and of the
    /// broker. Also returns an error if the log is not shared.
    #[expect(clippy::needless_pass_by_value, reason = "the same signature as `publish`")]
    pub fn prepare(self, event: Event) -> Result<NewRecord, PublishError> {
        let hub = self.source;
        let prepared = hub.prepare(self.audience, &event);
        #[cfg(feature = "metrics")]
        if let Err(error) = &prepared {
            hub.metrics().publishing.failed(error);
        }
        prepared
    }

    /// Checks whether [`publish`](Self::publish) would accept this event. Use it to publish a batch
    /// only if all of its events are valid.
    ///
    /// ```
    /// use tower_sse::{Event, Hub};
    ///
    /// let hub = Hub::builder().build()?;
    /// let batch = [
    ///     (hub.topic("documents/7"), Event::new("document.saved", "7")),
    ///     (hub.topic("documents/7"), Event::new("hub.saved", "7")), // names of the hub are reserved
    /// ];
    /// assert!(batch.iter().any(|(target, event)| target.check(event).is_err()));
    /// # Ok::<(), tower_sse::BuildError>(())
    /// ```
    ///
    /// # Errors
    /// Returns the errors of [`publish`](Self::publish), except those of a drained hub and of the
    /// broker.
    pub fn check(&self, event: &Event) -> Result<(), PublishError> {
        self.source.entry(self.audience.clone(), event).map(drop)
    }
}

impl<'h> Target<'h> {
    /// Publishes a typed event. The type has the name of the event and its key, and the value as
    /// JSON is its data. The errors are those of [`publish`](Self::publish).
    ///
    /// ```
    /// # #[cfg(feature = "derive")] #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let hub = tower_sse::Hub::builder().build()?;
    /// #[derive(serde::Serialize, tower_sse::Message)]
    /// #[message(event = "document.deleted")]
    /// struct DocumentDeleted { id: u64 }
    ///
    /// hub.user("ada").send(&DocumentDeleted { id: 7 }).await?;
    /// # Ok(()) }
    /// # #[cfg(not(feature = "derive"))] fn main() {}
    /// ```
    pub fn send<M: Message>(
        self,
        message: &M,
    ) -> impl Future<Output = Result<Receipt, PublishError>> + Send + use<'h, M> {
        let event = message.to_event();
        #[cfg(feature = "metrics")]
        if let Err(error) = &event {
            self.source.metrics().publishing.failed(error);
        }
        async move { self.publish(event?).await }
    }
}

pub(super) fn log(target: &'static str, receipt: &Receipt) {
    tracing::debug!(name: "sse.publish.appended", target_kind = target, receivers = receipt.connections, position = %receipt.position, "published");
}

/// Splits checked events into two lists: the valid events, and for each event its error, or `None`
/// if it is valid.
pub(super) fn split<T>(
    checked: impl IntoIterator<Item = Result<T, PublishError>>,
) -> (Vec<T>, Vec<Option<PublishError>>) {
    let mut valid = Vec::new();
    let errors = checked.into_iter().map(|event| event.map(|event| valid.push(event)).err()).collect();
    (valid, errors)
}

/// Puts the outcomes of the valid events in the places where [`split`] found no error.
pub(super) fn join<T>(
    errors: Vec<Option<PublishError>>,
    outcomes: impl IntoIterator<Item = Result<T, PublishError>>,
) -> Vec<Result<T, PublishError>> {
    let mut outcomes = outcomes.into_iter();
    let outcome = |error: Option<PublishError>| match error {
        Some(error) => Err(error),
        // Every valid event has an outcome, unless the hub was closed before the append.
        None => outcomes.next().unwrap_or(Err(PublishError::CLOSED)),
    };
    errors.into_iter().map(outcome).collect()
}
