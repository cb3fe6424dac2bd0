//! The writer of a run: it publishes the run's events and ends it.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::Mutex;

use super::Hub;
use crate::hub::runs::content::{Entry, Over, RunContent};
use crate::hub::runs::entry;
use crate::hub::runs::exchange::{DueEnd, Orphan, Outgoing};
use crate::hub::tasks::back_off::can_wait;
use crate::macros::opaque_debug;
use crate::types::{Event, Message, PublishError, RunEnd, RunError, Topic};

/// The only writer of an active run.
///
/// A writer that is dropped before it has ended its run ends it as
/// [aborted](crate::RunEnd::Aborted), with the [last will](crate::BeginRun::last_will) as last
/// event.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use tower_sse::{Event, Hub, RunError, RunWriter};
///
/// async fn answer(writer: RunWriter, words: &[&'static str]) -> Result<(), RunError> {
///     for word in words {
///         tokio::select! {
///             () = writer.stopped() => break, // the user has pressed "Stop"
///             published = writer.publish(Event::new("delta", *word)) => published?,
///         };
///     }
///     writer.finish_with(Event::new("done", "")).await
/// }
///
/// let hub = Hub::builder().build()?;
/// answer(hub.run("answers/7").begin().await?, &["Hel", "lo"]).await?;
/// # Ok(()) }
/// ```
#[must_use = "a writer that is dropped ends its run as aborted"]
pub struct RunWriter {
    hub: Hub,
    name: Topic,
    run: Arc<RunContent>,
    /// Held during an append, so that events keep their order.
    turn: Mutex<Outgoing>,
}

impl RunWriter {
    pub(super) fn new(hub: Hub, name: Topic, run: Arc<RunContent>) -> Self {
        Self { hub, name, run, turn: Mutex::default() }
    }

    /// Publishes an event. Returns its number in this run, counted from 0.
    ///
    /// Keys and idempotency keys of the event have no effect in a run. The names `open` and `error`
    /// are valid in a run, because some protocols have them. A browser's `EventSource` calls the
    /// listeners of these names also for its own events, so do not use them for pages with an
    /// `EventSource`.
    ///
    /// # Errors
    ///
    /// Returns an error if the event is invalid, if the run would exceed
    /// [`HubBuilder::run_max_bytes`](crate::HubBuilder::run_max_bytes) (8 MiB) or
    /// [`HubBuilder::run_max_events`](crate::HubBuilder::run_max_events) (100,000), if the run was
    /// ended by another instance or by a drain, or if the broker did not answer within
    /// [`HubBuilder::publish_timeout`](crate::HubBuilder::publish_timeout) (5 s; twice this time if
    /// the call first completes an earlier event). After an error
    /// that is not [unknown](RunError::is_unknown), the run does not have the event. After an
    /// unknown one, the run may have it, and the next call first completes it.
    ///
    /// Cancel safety: if the future is dropped, the event may have been published or not. The next
    /// call first completes it.
    pub async fn publish(&self, event: Event) -> Result<u64, RunError> {
        self.publish_many([event]).await
    }

    /// Publishes a typed event. Errors and cancel safety are those of [`publish`](Self::publish).
    ///
    /// ```
    /// # #[cfg(feature = "derive")] #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use tower_sse::Message;
    ///
    /// # let hub = tower_sse::Hub::builder().build()?;
    /// #[derive(serde::Serialize, Message)]
    /// enum Import {
    ///     #[message(event = "progress")]
    ///     Progress { percent: u8 },
    ///     #[message(event = "result")]
    ///     Result { rows: u64 },
    /// }
    ///
    /// let writer = hub.run("imports/7").begin().await?;
    /// writer.send(&Import::Progress { percent: 40 }).await?;
    /// writer.finish_with(Import::Result { rows: 1204 }.to_event()?).await?;
    /// # Ok(()) }
    /// # #[cfg(not(feature = "derive"))] fn main() {}
    /// ```
    pub fn send<'a, M: Message>(
        &'a self,
        message: &M,
    ) -> impl Future<Output = Result<u64, RunError>> + Send + use<'a, M> {
        let event = message.to_event();
        #[cfg(feature = "metrics")]
        if let Err(error) = &event {
            self.hub.metrics().publishing.failed(error);
        }
        async move { self.publish(event?).await }
    }

    /// Publishes several events in this order, all or none. Readers on other instances receive them
    /// together. Returns the number of the first event. Errors and cancel safety are those of
    /// [`publish`](Self::publish). A broker also limits the size of all events together: NATS to
    /// 1 MiB by default.
    pub async fn publish_many(&self, events: impl IntoIterator<Item = Event>) -> Result<u64, RunError> {
        self.append(events.into_iter().collect(), None).await
    }

    /// Completes when any instance calls [`Run::stop`](crate::Run::stop), and also when the run has
    /// ended without this writer: its instance was drained, or other instances have ended the run.
    /// In both cases the writer can stop its work. Cancel safe.
    pub async fn stopped(&self) {
        self.run.asked_to_stop().await;
    }

    /// Returns whether an instance has called [`Run::stop`](crate::Run::stop). The method returns
    /// false if the run has ended for another reason.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.run.is_asked_to_stop()
    }

    /// Ends the run. Its end is [`Stopped`](crate::RunEnd::Stopped) if
    /// [`Run::stop`](crate::Run::stop) was called, and [`Finished`](crate::RunEnd::Finished)
    /// otherwise.
    ///
    /// # Errors
    ///
    /// Returns an error if the run has already been ended by another instance or by a drain, or if
    /// the broker did not confirm the end. In the latter case, the error is
    /// [unknown](RunError::is_unknown), and the hub completes the end in the background. It does so
    /// too if the future is dropped.
    pub async fn finish(self) -> Result<(), RunError> {
        self.end(None, None).await
    }

    /// Publishes the last event and ends the run, in one step: no reader receives the one without
    /// the other. The limits of a run do not apply to its last event. Errors are those of
    /// [`finish`](Self::finish). If the event is invalid or the broker rejects it, the run ends as
    /// aborted, with its last will. So publish a result that may be too large with
    /// [`publish`](Self::publish) first.
    pub async fn finish_with(self, last: Event) -> Result<(), RunError> {
        self.end(Some(last), None).await
    }

    /// Ends the run as [`Failed`](crate::RunEnd::Failed). The note is for the page, and stands in
    /// the `hub.bye` of the run's streams. It must not contain secrets. Bare streams do not have
    /// it: use [`fail_with`](Self::fail_with). A note longer than
    /// [`Disconnect::MAX_NOTE_BYTES`](crate::Disconnect::MAX_NOTE_BYTES) is cut. Errors are those
    /// of [`finish`](Self::finish).
    pub async fn fail(self, note: impl Into<String>) -> Result<(), RunError> {
        self.end(None, Some(note.into())).await
    }

    /// Publishes the last event and ends the run as [`Failed`](crate::RunEnd::Failed), in one step.
    /// The note is as in [`fail`](Self::fail).
    pub async fn fail_with(self, last: Event, note: impl Into<String>) -> Result<(), RunError> {
        self.end(Some(last), Some(note.into())).await
    }

    async fn end(self, last: Option<Event>, failure: Option<String>) -> Result<(), RunError> {
        let over = match failure {
            Some(note) => {
                Over { end: RunEnd::Failed, note: Some(cut(&note).into()).filter(|note: &Arc<str>| !note.is_empty()) }
            }
            None if self.is_stopped() => Over { end: RunEnd::Stopped, note: None },
            None => Over { end: RunEnd::Finished, note: None },
        };
        self.append(last.into_iter().collect(), Some(over)).await.map(drop)
    }

    async fn append(&self, events: Vec<Event>, over: Option<Over>) -> Result<u64, RunError> {
        #[cfg(feature = "metrics")]
        let (mut call, count) = (self.hub.metrics().publishing.begin(), events.len());
        #[cfg(feature = "metrics")]
        call.waits_for(count);
        let appended = self.append_entry(events, over).await;
        #[cfg(feature = "metrics")]
        call.end_for_run(count, &appended);
        appended
    }

    async fn append_entry(&self, events: Vec<Event>, over: Option<Over>) -> Result<u64, RunError> {
        let settings = self.hub.settings();
        let drafts = entry::drafts(&events, &settings.framing)?;
        let mut outgoing = self.turn.lock().await;
        if events.is_empty() && over.is_none() {
            return Ok(self.run.progress().events);
        }
        if self.hub.is_closed() && over.is_none() {
            // The drain is about to end the run. More events would only delay its end.
            return Err(RunError::ENDED);
        }
        let is_over = over.is_some();
        let Some(shared) = &self.hub.inner.shared_log else {
            let entry = Entry { drafts, over };
            self.run.check(&entry, &settings.runs)?;
            let number = self.run.progress().entries + 1;
            let first = self.run.apply(number, entry, self.hub.now()).ok_or(RunError::ENDED)?;
            if is_over {
                self.hub.inner.run_ended(&self.name, self.run.id);
            }
            return Ok(first);
        };
        if is_over {
            self.run.set_ending();
        }
        let bytes = Bytes::from(entry::encode(&events, over.as_ref()));
        outgoing.next = Some((bytes, Entry { drafts, over }));
        let written = match can_wait() {
            true => self.hub.write_run(shared, &self.name, &self.run, &mut outgoing).await,
            // The hub completes an end as soon as one of its runtimes runs.
            false if is_over => Err(PublishError::broker(true, PublishError::NO_RUNTIME).into()),
            false => Err(PublishError::NO_RUNTIME.into()),
        };
        if !is_over {
            outgoing.next = None;
        }
        written
    }
}

/// Returns the beginning of a note, at most as long as the note of a disconnect.
fn cut(note: &str) -> &str {
    let mut end = note.len().min(crate::types::Disconnect::MAX_NOTE_BYTES);
    while !note.is_char_boundary(end) {
        end -= 1;
    }
    &note[..end]
}

impl Drop for RunWriter {
    fn drop(&mut self) {
        if !self.run.is_active() {
            return;
        }
        match &self.hub.inner.shared_log {
            None => self.hub.inner.abort_local_run(&self.name, &self.run),
            Some(shared) => {
                let mut outgoing = std::mem::take(self.turn.get_mut());
                // The hub completes the end of the run, and publishes no event that was not sent.
                outgoing.next.take_if(|(_, entry)| entry.over.is_none());
                self.run.set_ending();
                let orphan = Orphan { name: self.name.clone(), run: Arc::clone(&self.run), outgoing };
                shared.runs.lock().ends.push(DueEnd::Orphan(orphan));
                self.hub.inner.ensure_shared_log();
            }
        }
    }
}

// The debug output omits the name, because it may be secret.
opaque_debug!(|writer: RunWriter| { run: writer.run });
