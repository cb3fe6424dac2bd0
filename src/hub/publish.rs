//! Publishing: an event to a target, one step into the log.

use smallvec::SmallVec;

use super::target::Source;
use super::{Hub, Receipt, Target};
use crate::hub::cluster::shared_log::SharedLog;
use crate::log::{Effect, Entry};
use crate::types::{Audience, Event, InvalidName, PublishError};

impl Hub {
    /// Publishes several events in one step, in this order and without other events between them.
    /// It returns one result for each event, and an invalid event does not stop the others. Streams
    /// hardly get to read in between, so a batch that is larger than the retention of its audience
    /// costs them a `hub.gap`.
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
    /// With a shared log the events are pipelined, which is many times as fast as one after the
    /// other. Events of other publishers may come between one group of a few hundred and the next.
    /// The whole batch has the time of one [`publish_timeout`](crate::HubBuilder::publish_timeout).
    ///
    /// Cancel safety: with the log of this process it never waits, so it is done when it is first
    /// polled. With a shared log a dropped future may or may not have published.
    ///
    /// # Panics
    /// As [`Target::publish`].
    pub async fn publish_many<'a, I>(&self, events: I) -> Vec<Result<Receipt, PublishError>>
    where
        I: IntoIterator<Item = (Target<'a>, Event)>,
    {
        let events = events.into_iter().map(|(target, event)| (target.checked_for(self), event));
        if let Some(shared) = &self.inner.shared_log {
            let checked = events.map(|(audience, event)| self.checked_event(audience, event)).collect();
            return self.publish_shared(shared, checked).await;
        }
        let (entries, errors) = split(events.map(|(audience, event)| self.entry(audience, &event)));
        join(errors, self.append(entries).into_iter().map(Ok))
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
            return Err(PublishError::UNSHARED);
        }
        let entry = Entry::new(audience, event, &self.settings().framing).map_err(|refused| refused.1)?;
        self.counters().payload(entry.draft.len());
        Ok(entry)
    }

    /// The event, if it can be published now.
    fn checked_event(
        &self,
        audience: Result<Audience, InvalidName>,
        event: Event,
    ) -> Result<(Audience, Event), PublishError> {
        let entry = self.entry(audience, &event)?;
        if self.is_closed() { Err(PublishError::CLOSED) } else { Ok((entry.audience, event)) }
    }

    /// Nothing is appended after a drain.
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

    /// Whether a key means nothing to any target of an event. Logs it.
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
}

impl Target<'_> {
    /// Publishes an event. `Ok` means that the log has the event; it says nothing about delivery,
    /// and the method waits for no reader.
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
    /// Cancel safety: with the log of this process it never waits, so it is done when it is first
    /// polled. With a shared log a dropped future may or may not have published.
    ///
    /// # Errors
    /// When a name is invalid, the payload is over its limit, the target has too many addresses,
    /// the event has an idempotency key and the log is not shared, or the hub was drained. Nothing
    /// is appended then, and no position is used. With a shared log also when the broker is
    /// unavailable, refuses, or does not answer within
    /// [`HubBuilder::publish_timeout`](crate::HubBuilder::publish_timeout). Without a tokio runtime
    /// to wait for the broker in, it returns an error and sends nothing.
    ///
    /// # Panics
    /// With a shared log, in a tokio runtime that was built without its clock or its network: use
    /// `enable_all`. The same applies to [`Hub::publish_many`], commands and [`Hub::ticket`].
    pub async fn publish(self, event: Event) -> Result<Receipt, PublishError> {
        let hub = self.source;
        let Some(shared) = &hub.inner.shared_log else { return self.publish_now(event) };
        let checked = hub.checked_event(self.audience, event);
        hub.publish_shared(shared, vec![checked]).await.pop().unwrap_or(Err(PublishError::CLOSED))
    }

    /// Publishes an event from code that cannot await: a `Drop`, a callback, a thread without a
    /// runtime. It works with the log of this process only, because publishing to a shared log has
    /// to wait for the broker.
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
    /// As [`publish`](Self::publish), and always with a shared log.
    #[expect(clippy::needless_pass_by_value, reason = "the twin of `publish`, which takes the event over")]
    pub fn publish_now(self, event: Event) -> Result<Receipt, PublishError> {
        let hub = self.source;
        if hub.inner.shared_log.is_some() {
            return Err(PublishError::SHARED);
        }
        let entry = hub.entry(self.audience, &event)?;
        hub.append([entry]).pop().ok_or(PublishError::CLOSED)
    }

    /// Checks whether [`publish`](Self::publish) would accept this event, for a batch that is
    /// published whole or not at all.
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
    /// As [`publish`](Self::publish), except that it does not check whether the hub was drained,
    /// and asks no broker.
    pub fn check(&self, event: &Event) -> Result<(), PublishError> {
        self.source.entry(self.audience.clone(), event).map(drop)
    }
}

fn log(target: &'static str, receipt: &Receipt) {
    tracing::debug!(target_kind = target, receivers = receipt.connections, position = %receipt.position, "published");
}

/// Splits events that were checked into the good ones, and for each event its error or `None`.
pub(super) fn split<T>(
    checked: impl IntoIterator<Item = Result<T, PublishError>>,
) -> (Vec<T>, Vec<Option<PublishError>>) {
    let mut good = Vec::new();
    let errors = checked.into_iter().map(|event| event.map(|event| good.push(event)).err()).collect();
    (good, errors)
}

/// Puts the outcomes of the good events in the places where [`split`] found no error.
pub(super) fn join<T>(
    errors: Vec<Option<PublishError>>,
    outcomes: impl IntoIterator<Item = Result<T, PublishError>>,
) -> Vec<Result<T, PublishError>> {
    let mut outcomes = outcomes.into_iter();
    let outcome = |error: Option<PublishError>| match error {
        Some(error) => Err(error),
        // There is one for each, unless the hub was closed meanwhile.
        None => outcomes.next().unwrap_or(Err(PublishError::CLOSED)),
    };
    errors.into_iter().map(outcome).collect()
}
