//! A subscription that reads a run.

use std::sync::Arc;

use crate::hub::runs::found::Found;
use crate::macros::opaque_debug;
use crate::types::{RunSource, ScopeName, Subscription};

/// A run that was looked up: [`Run::reader`](crate::Run::reader). It opens streams through
/// [`Subscription::run`].
///
/// A reader keeps the run that it found, and all of its events, in memory. If a new run of the name
/// begins, the reader still reads the earlier run. With a backplane, this instance must have read
/// the earlier run to its end by then. Otherwise the rest is lost.
#[derive(Clone)]
pub struct RunReader {
    pub(super) found: Found,
    /// The scope of the run.
    pub(super) scope: ScopeName,
}

impl RunReader {
    /// Returns whether there is no run of this name. Returns false if a run was found, active or
    /// ended, and if the broker did not answer.
    #[must_use]
    pub fn is_missing(&self) -> bool {
        matches!(self.found, Found::Nothing)
    }
}

impl Subscription {
    /// Creates a subscription that reads a run and nothing else: not the events of a user, of
    /// everyone or of a topic.
    ///
    /// The stream begins with the first event of the run, or after the cursor that the client
    /// sends. It ends after the last event. With [`with_user`](Self::with_user), the stream counts
    /// for the limits and the presence of a user, and a
    /// [disconnect](crate::Target::disconnect) of the user ends it. The stream does not read the
    /// topics of the subscription, and [`start`](Self::start) has no effect.
    ///
    /// The answer to a request depends on its cursor (`Last-Event-ID`) and on the run:
    ///
    /// | Cursor | Run | Answer |
    /// |---|---|---|
    /// | none | active, or ended and kept | `200`: the events from the first one, and the end |
    /// | none | none, or ended with [`only_while_active`](Self::only_while_active) | `204` |
    /// | of this run | active, or ended and kept | `200`: the events after the cursor, and the end |
    /// | the last event | ended | `204` for a `GET` with `Accept: text/event-stream`, which stops an `EventSource`; otherwise `200` and the end |
    /// | of another or a forgotten run | any | `404` |
    /// | any | the broker did not answer | a [retryable refusal](crate::Refusal::retry_later) |
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use tower_sse::{Hub, StreamRequest, Subscription};
    ///
    /// let hub = Hub::builder().build()?;
    /// let request = StreamRequest::from_request(&http::Request::get("/answers/7").body(())?);
    /// let reader = hub.run("answers/7").reader().await?;
    /// let response = hub.respond(request, Subscription::run(reader)).into_response();
    /// assert_eq!(response.status(), 204); // no run of this name has begun
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn run(reader: RunReader) -> Self {
        let mut subscription = Self::anonymous().placed_in(&reader.scope);
        let found = Arc::new(reader.found);
        subscription.run = Some(Box::new(RunSource { found, skipped: 0, only_while_active: false }));
        subscription
    }

    /// Starts a stream of a run after the event with this number, for a request without a cursor.
    /// Events are numbered from 0 in each run. Ignored without [`run`](Self::run).
    #[must_use]
    pub fn after_event(mut self, number: u64) -> Self {
        if let Some(run) = &mut self.run {
            run.skipped = number.saturating_add(1);
        }
        self
    }

    /// Answers a request without a cursor with `204` when the run has ended, as if it had been
    /// forgotten. For clients that ask whether something is still active, and that would show a
    /// kept run twice. Ignored without [`run`](Self::run).
    #[must_use]
    pub fn only_while_active(mut self) -> Self {
        if let Some(run) = &mut self.run {
            run.only_while_active = true;
        }
        self
    }
}

opaque_debug!(|reader: RunReader| { is_missing: reader.is_missing() });
