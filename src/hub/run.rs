//! The handle of a run, and the beginning of a run.

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use futures::future::select;

use super::Hub;
use super::run_reader::RunReader;
use super::run_writer::RunWriter;
use super::target::Handle;
use crate::hub::peers::message::InstanceId;
use crate::hub::runs::content::{Entry, RunContent};
use crate::hub::runs::entry;
use crate::hub::runs::found::Found;
use crate::hub::tasks::back_off::can_wait;
use crate::macros::opaque_debug;
use crate::types::{Epoch, Event, InvalidName, PublishError, RunError, RunState, ScopeName, Scoped, Topic};

/// A run by its name: a stream of events with one writer, a beginning and an end.
///
/// A run is for the answer to one request, for example of a language model, of a report or of an
/// import. [`begin`](Self::begin) returns the [`RunWriter`], which publishes events and ends the
/// run. Any number of streams read the run, each from its first event. They may begin during the
/// run, and after its end for [`HubBuilder::run_keep_for`](crate::HubBuilder::run_keep_for). When
/// the run ends, its streams end.
///
/// A run is no topic: its events are not part of the log, and other events do not push them out.
/// With a backplane, the runs of all instances have one namespace, and any instance can read them.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use tower_sse::{EndReason, Event, Hub, SubscriberItem, Subscription};
///
/// let hub = Hub::builder().build()?;
/// let run = hub.run("answers/7");
/// let writer = run.begin().await?;
/// writer.publish(Event::new("delta", "Hel")).await?;
/// writer.publish(Event::new("delta", "lo")).await?;
/// writer.finish().await?;
///
/// let mut page = hub.subscribe(Subscription::run(run.reader().await?), None)?;
/// let mut text = String::new();
/// while let Some(item) = page.next().await {
///     match item {
///         SubscriberItem::Event(event) => text.push_str(&event.data),
///         SubscriberItem::End(reason) => assert_eq!(reason, EndReason::Finished),
///         _ => {}
///     }
/// }
/// assert_eq!(text, "Hello");
/// # Ok(()) }
/// ```
#[derive(Clone)]
#[must_use = "a run does nothing until it begins or is read"]
pub struct Run {
    pub(crate) hub: Hub,
    name: Result<Topic, InvalidName>,
}

impl Hub {
    /// Returns the run of this name. This call looks nothing up and begins nothing.
    ///
    /// A name has 1 to 255 bytes without control characters, as that of a topic. An invalid name is
    /// an error of the methods of [`Run`]. Take a name that a client cannot guess, or check that
    /// the client may read the run before the handler responds with it.
    pub fn run<N: TryInto<Topic, Error: Into<InvalidName>>>(&self, name: N) -> Run {
        Run::of(self, self, name)
    }
}

impl Run {
    /// Returns the run of a name in the scope of a handle. `hub` writes and reads the run.
    pub(super) fn of(hub: &Hub, handle: &impl Handle, name: impl TryInto<Topic, Error: Into<InvalidName>>) -> Self {
        let name = name.try_into().map_err(Into::into);
        let name = name.and_then(|name| name.placed_in(handle.scope_name()?));
        Self { hub: hub.clone(), name }
    }

    /// Begins the run. Await the returned value to get the [`RunWriter`].
    ///
    /// # Errors
    ///
    /// The future returns an error with [`is_active`](RunError::is_active) while a run of this name
    /// is active on any instance. After the end of that run, the next run of this name begins, and
    /// replaces the kept one. Other errors: the name or the last will is invalid, the hub was
    /// drained, there is a backplane and no tokio runtime, or the broker did not answer within
    /// [`HubBuilder::publish_timeout`](crate::HubBuilder::publish_timeout). If an error is
    /// [unknown](RunError::is_unknown), the run may have begun. The hub then ends it in the
    /// background as aborted.
    ///
    /// Cancel safety: a run that has begun although its future was dropped ends as aborted.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use tower_sse::{Event, Hub};
    ///
    /// let hub = Hub::builder().build()?;
    /// let writer = hub.run("reports/7").begin().last_will(Event::new("error", "interrupted")).await?;
    /// writer.publish(Event::new("progress", "40")).await?;
    /// drop(writer); // the job has failed: readers receive the last will, and then the end
    /// # Ok(()) }
    /// ```
    pub fn begin(&self) -> BeginRun {
        BeginRun { run: self.clone(), will: None }
    }

    /// Returns the state of the newest run of this name.
    ///
    /// # Errors
    ///
    /// Returns an error if the name is invalid or the broker is unavailable.
    pub async fn state(&self) -> Result<RunState, RunError> {
        Ok(match self.find().await? {
            None => RunState::None,
            Some(run) => {
                let progress = run.progress();
                match progress.end {
                    Some(end) => RunState::Ended(end),
                    None if progress.lost && !progress.unreadable => RunState::None,
                    None => RunState::Active,
                }
            }
        })
    }

    /// Asks the writer to stop, on whichever instance it is. Returns false if no run of this name
    /// is active. A further call has no further effect.
    ///
    /// [`RunWriter::stopped`] then completes. The writer decides when the run ends. Closing a
    /// stream stops nothing, so a page needs a route that calls this method. An instance that
    /// cannot reach the broker receives the request when it can again.
    ///
    /// # Errors
    ///
    /// Returns an error if the name is invalid, or if the broker is unavailable.
    pub async fn stop(&self) -> Result<bool, RunError> {
        let name = self.name.clone()?;
        let Some(run) = self.find().await?.filter(|run| run.may_be_active()) else { return Ok(false) };
        match &self.hub.inner.shared_log {
            Some(shared) if run.owner != shared.instance_id => {
                let sent = self.hub.broadcast_stop(shared, name, run.id).await;
                sent.map_err(|error| PublishError::broker(error.is_unknown(), error))?;
            }
            _ => run.ask_to_stop(),
        }
        Ok(true)
    }

    /// Looks the newest run of this name up, for [`Subscription::run`](crate::Subscription::run).
    /// If there is none, a request for it receives `204`, or `404` with a cursor. If the broker
    /// does not answer, a request receives a retryable refusal, because an `EventSource` would give
    /// up after an error. But a run that this instance has written to its end is found without the
    /// broker.
    ///
    /// # Errors
    ///
    /// Returns an error if the name is invalid.
    pub async fn reader(&self) -> Result<RunReader, RunError> {
        let found = match self.find().await {
            Ok(Some(run)) => Found::Run(run),
            Ok(None) => Found::Nothing,
            Err(error) if error.is_unavailable() => {
                tracing::debug!(name: "sse.run.lookup_failed", %error, "a run cannot be looked up");
                self.own_ended().map_or(Found::Unavailable, Found::Own)
            }
            Err(error) => return Err(error),
        };
        let scope = self.name.as_ref().map_or(ScopeName::ROOT, |name| name.scope_name().clone());
        Ok(RunReader { found, scope })
    }

    /// Looks the newest run of this name up like [`reader`](Self::reader). If there is none, waits
    /// at most this time for a run to begin. For a page that may open its stream before the job
    /// begins: a response `204` would end an `EventSource` for good. The wait ends early when the
    /// hub drains. With a backplane, each waiting call asks the broker once per second, in case an
    /// announcement was lost.
    ///
    /// # Errors
    ///
    /// Returns an error if the name is invalid.
    ///
    /// ```
    /// # #[cfg(feature = "axum")] fn main() {
    /// use std::time::Duration;
    /// use axum::extract::{Path, State};
    /// use tower_sse::{EventStream, Hub, RunError, StreamRequest, Subscription};
    ///
    /// async fn progress(
    ///     State(hub): State<Hub>,
    ///     Path(job): Path<u64>,
    ///     request: StreamRequest,
    /// ) -> Result<EventStream, RunError> {
    ///     let reader = hub.run(format!("jobs/{job}")).reader_within(Duration::from_secs(5)).await?;
    ///     Ok(hub.respond(request, Subscription::run(reader)))
    /// }
    /// # let _: axum::Router<Hub> = axum::Router::new().route("/jobs/{job}", axum::routing::get(progress));
    /// # }
    /// # #[cfg(not(feature = "axum"))] fn main() {}
    /// ```
    pub async fn reader_within(&self, time: Duration) -> Result<RunReader, RunError> {
        let name = self.name.clone()?;
        if !can_wait() {
            return self.reader().await;
        }
        let mut over = pin!(tokio::time::sleep(time));
        loop {
            // Register before the search, so that no beginning in between is missed.
            let mut begun = self.hub.inner.runs.wait_for(&name);
            // The time limits the wait for a run and not the search, because the caller would take
            // a late answer for the answer that there is no run.
            let reader = self.reader().await?;
            if !reader.is_missing() || over.is_elapsed() || self.hub.is_draining() {
                return Ok(reader);
            }
            // The announcement of another instance may be lost, so look again from time to time.
            let changed = pin!(begun.changed());
            let _ = tokio::time::timeout(LOOK_AGAIN, select(over.as_mut(), changed)).await;
        }
    }

    /// Returns the newest known run of this name, if this instance has written it to its end. The
    /// job of a request may end before its handler looks the run up, while the broker is
    /// unavailable.
    fn own_ended(&self) -> Option<Arc<RunContent>> {
        let shared = self.hub.inner.shared_log.as_ref()?;
        let run = self.hub.inner.runs.get(self.name.as_ref().ok()?)?;
        (run.owner == shared.instance_id && run.progress().end.is_some()).then_some(run)
    }

    async fn find(&self) -> Result<Option<Arc<RunContent>>, RunError> {
        let name = self.name.as_ref().map_err(Clone::clone)?;
        self.hub.find_run(name).await
    }
}

/// The time after which a caller that waits for a run to begin looks again.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

impl Hub {
    /// Returns the newest run of a name.
    async fn find_run(&self, name: &Topic) -> Result<Option<Arc<RunContent>>, RunError> {
        let known = self.inner.runs.get(name);
        let Some(shared) = &self.inner.shared_log else { return Ok(known) };
        if let Some(run) = known.filter(|run| run.owner == shared.instance_id && run.is_active() && !run.is_stray) {
            return Ok(Some(run));
        }
        if !can_wait() {
            return Err(PublishError::NO_RUNTIME.into());
        }
        self.inner.ensure_shared_log();
        let found = self.refresh_run(shared, name).await;
        found.map_err(|error| PublishError::broker(false, error).into())
    }
}

/// The beginning of a run: [`Run::begin`]. Await it.
#[must_use = "a run does not begin until this value is awaited"]
pub struct BeginRun {
    run: Run,
    will: Option<Event>,
}

impl BeginRun {
    /// Sets the last event of the run if it ends as aborted: its writer was dropped, its instance
    /// was drained, or its instance has died. Take the error event of the protocol that the clients
    /// speak. Its size counts against no limit of the run. Without a last will, bare streams of an
    /// aborted run break instead of ending.
    pub fn last_will(mut self, event: Event) -> Self {
        self.will = Some(event);
        self
    }

    async fn begin(self) -> Result<RunWriter, RunError> {
        let Self { run: Run { hub, name }, will } = self;
        let name = name?;
        entry::drafts(will.as_slice(), &hub.settings().framing)?;
        // Without a shared log, a run cannot outlive the drain, and the drain has ended the others.
        let is_closed = || hub.is_closed() || (hub.is_draining() && hub.inner.shared_log.is_none());
        if is_closed() {
            return Err(PublishError::CLOSED.into());
        }
        let content = match &hub.inner.shared_log {
            None => {
                let id = getrandom::u64().unwrap_or_else(|_| fastrand::u64(..));
                let content = Arc::new(RunContent::new(Epoch(id), InstanceId(0), will));
                content.apply(1, Entry::default(), hub.now());
                hub.inner.runs.begin(&name, &content)?;
                content
            }
            Some(_) if !can_wait() => return Err(PublishError::NO_RUNTIME.into()),
            Some(shared) => {
                hub.inner.ensure_shared_log();
                hub.begin_shared_run(shared, &name, will).await?
            }
        };
        // If a drain has begun meanwhile, it may have missed this run, so the drop of the writer
        // ends the run.
        let writer = RunWriter::new(hub.clone(), name, content);
        if is_closed() { Err(PublishError::CLOSED.into()) } else { Ok(writer) }
    }
}

impl IntoFuture for BeginRun {
    type Output = Result<RunWriter, RunError>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.begin())
    }
}

// The debug output omits the last will, because it may be secret.
opaque_debug!(|run: Run| { is_valid: run.name.is_ok() });
opaque_debug!(|begin: BeginRun| { run: begin.run });
