//! Publishing: an event to a target, one step into the log.

use smallvec::SmallVec;

use super::{Hub, Target};
use crate::hub::cluster::shared_log::SharedLog;
use crate::log::Entry;
use crate::types::{Audience, Event, Position, PublishError};

/// What became of an event: the log has it. That somebody saw it is not said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Published {
    /// Its place in the log, which is also the `id` that browsers get with it.
    pub position: Position,
    /// How many connections listen to the target, known without a walk: exact for one target, at most as many for a
    /// union (a connection that listens to two of its targets counts twice) and with [`Target::except`]. Zero is exact.
    pub receivers: usize,
}

impl Hub {
    /// Publishes several events in one step, in this order, without others between them. One result for each: a bad one
    /// does not stop the others. Streams hardly get to read in between, so a batch that is larger than the
    /// retention of its audience costs them a `hub.gap`.
    ///
    /// With a shared log they are pipelined: many times as fast as one after the other. Others may come between a few
    /// hundred and the next, and the whole batch has the time of one
    /// [`publish_timeout`](crate::HubBuilder::publish_timeout).
    ///
    /// Cancel safety: with the log of this process it never waits, so it is done when it is first polled.
    pub async fn publish_many<'a, I>(&self, events: I) -> Vec<Result<Published, PublishError>>
    where
        I: IntoIterator<Item = (Target<'a>, Event)>,
    {
        let own = |target: &Target<'_>| self.check_own(target.hub).map_err(PublishError::from);
        if let Some(shared) = &self.inner.shared_log {
            let checked =
                |(target, event): (Target<'a>, Event)| own(&target).and_then(|()| target.checked_event(event));
            let checked = events.into_iter().map(checked).collect();
            return self.publish_shared(shared, checked).await;
        }
        let mut entries = Vec::new();
        let errors: Vec<Option<PublishError>> = events
            .into_iter()
            .map(|(target, event)| {
                own(&target).and_then(|()| target.entry(&event)).map(|entry| entries.push(entry)).err()
            })
            .collect();
        let mut published = self.append(entries).into_iter();
        let outcome = |error: Option<PublishError>| match error {
            Some(error) => Err(error),
            None => published.next().ok_or(PublishError::CLOSED),
        };
        errors.into_iter().map(outcome).collect()
    }

    async fn publish_shared(
        &self,
        shared: &SharedLog,
        checked: Vec<Result<(Audience, Event), PublishError>>,
    ) -> Vec<Result<Published, PublishError>> {
        let mut events = Vec::new();
        let mut receivers = Vec::new();
        let errors: Vec<Option<PublishError>> = checked
            .into_iter()
            .map(|checked| match checked {
                Ok(_) if self.is_closed() => Some(PublishError::CLOSED),
                Ok((audience, event)) => {
                    receivers.push(audience.addresses().iter().map(|address| self.log().listening(address)).sum());
                    events.push((audience, event));
                    None
                }
                Err(error) => Some(error),
            })
            .collect();
        let mut appended = if events.is_empty() { Vec::new() } else { self.append_shared(shared, events).await }
            .into_iter()
            .zip(receivers);
        let outcome = |error: Option<PublishError>| match error {
            Some(error) => Err(error),
            None => {
                let (position, receivers) = appended.next().ok_or(PublishError::CLOSED)?;
                let position = position?;
                self.counters().published(1);
                Ok(Published { position, receivers })
            }
        };
        errors.into_iter().map(outcome).collect()
    }

    /// Nothing is appended after a drain.
    fn append(&self, entries: impl IntoIterator<Item = Entry> + AsRef<[Entry]>) -> SmallVec<[Published; 1]> {
        if self.is_closed() {
            return SmallVec::new();
        }
        for entry in entries.as_ref() {
            self.attach_connections(&entry.audience);
        }
        let appended = self.log().append(entries, self.now());
        self.published(appended.len());
        appended
            .into_iter()
            .map(|appended| Published { position: appended.position, receivers: appended.receivers })
            .collect()
    }
}

impl Target<'_> {
    /// Publishes an event. `Ok` means that the log has it; it does not wait for any reader.
    ///
    /// Cancel safety: with the log of this process it never waits, so it is done when it is first polled.
    /// With a shared one a dropped future may have published or not.
    ///
    /// # Errors
    /// A name that is not allowed, a payload over the limit, a union over the limit, a hub that was drained. Nothing is
    /// appended then and no position is used. Where the log is shared also: a broker that is not there,
    /// refuses, or does not answer within
    /// [`HubBuilder::publish_timeout`](crate::HubBuilder::publish_timeout); no tokio runtime to wait for
    /// it in, and nothing is sent.
    ///
    /// # Panics
    /// Where the log is shared, in a tokio runtime that was built without its clock or its network: use
    /// `enable_all`. So do [`Hub::publish_many`], commands and [`Hub::ticket`].
    pub async fn publish(self, event: Event) -> Result<Published, PublishError> {
        let hub = self.hub;
        let Some(shared) = &hub.inner.shared_log else { return self.publish_now(event) };
        let checked = self.checked_event(event);
        hub.publish_shared(shared, vec![checked]).await.pop().unwrap_or(Err(PublishError::CLOSED))
    }

    /// The same for code that cannot await: a `Drop`, a callback, a thread without a runtime. With the log
    /// of this process only: where several instances share one, publishing has to wait for the broker.
    ///
    /// # Errors
    /// As [`publish`](Self::publish); and always where the log is shared.
    #[expect(clippy::needless_pass_by_value, reason = "the twin of `publish`, which takes the event over")]
    pub fn publish_now(self, event: Event) -> Result<Published, PublishError> {
        let hub = self.hub;
        if hub.inner.shared_log.is_some() {
            return Err(PublishError::SHARED);
        }
        let entry = self.entry(&event)?;
        hub.append([entry]).pop().ok_or(PublishError::CLOSED)
    }

    /// Whether [`publish`](Self::publish) would take this event: for a batch that is published whole or not at all.
    ///
    /// # Errors
    /// As [`publish`](Self::publish), but that the hub was drained.
    pub fn check(&self, event: &Event) -> Result<(), PublishError> {
        self.clone().entry(event).map(drop)
    }

    fn entry(self, event: &Event) -> Result<Entry, PublishError> {
        let hub = self.hub;
        let audience = self.audience?;
        if event.once().is_some() && hub.inner.shared_log.is_none() {
            return Err(PublishError::UNSHARED);
        }
        let settings = hub.settings();
        let entry =
            Entry::new(audience, event, &settings.framing, settings.max_targets).map_err(|refused| refused.1)?;
        hub.counters().payload(entry.draft.len());
        Ok(entry)
    }

    /// The event, if it can be published to this target.
    fn checked_event(self, event: Event) -> Result<(Audience, Event), PublishError> {
        let audience = self.audience.clone()?;
        self.entry(&event)?;
        Ok((audience, event))
    }
}
