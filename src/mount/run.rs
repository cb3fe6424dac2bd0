//! The beginning of a run for a request.

use std::pin::Pin;

use http::Method;

use super::StreamRequest;
use crate::hub::{BeginRun, Hub, Run, RunWriter};
use crate::macros::opaque_debug;
use crate::types::{Cursor, Event, RunError};

impl Run {
    /// Begins the run for a request, unless the request only reads a run. Await the returned value.
    ///
    /// Some clients resume with the same `POST` that began the run. So the future returns
    /// `Ok(None)`, and the handler only responds with the stream, in these cases:
    ///
    /// - The request has a cursor.
    /// - A run of this name is active.
    /// - The method is `HEAD`.
    /// - [`Hub::respond`] will refuse the origin or the host of the request.
    ///
    /// # Errors
    ///
    /// The errors are those of [`begin`](Self::begin), except that an active run is none. In
    /// addition, the future returns an error with status `503`, and no run begins, if the hub is
    /// draining, has not read the shared log yet, or has reached the limit of
    /// [`HubBuilder::max_connections`](crate::HubBuilder::max_connections). [`Hub::respond`] makes
    /// the other checks later: bans, and the limits of a user, of a scope and per second. If the
    /// hub refuses the stream there, the run is active without this reader.
    ///
    /// Cancel safety: a run that has begun although its future was dropped ends as aborted.
    ///
    /// ```
    /// # #[cfg(feature = "axum")] fn main() {
    /// use axum::extract::{Json, State};
    /// use tower_sse::{Event, EventStream, Hub, RunError, RunWriter, StreamRequest, Subscription};
    ///
    /// async fn answer(
    ///     State(hub): State<Hub>,
    ///     request: StreamRequest,
    ///     Json(question): Json<String>,
    /// ) -> Result<EventStream, RunError> {
    ///     let run = hub.run(format!("answers/{question}"));
    ///     if let Some(writer) = run.begin_for(&request).last_will(Event::new("error", "interrupted")).await? {
    ///         tokio::spawn(generate(writer, question));
    ///     }
    ///     Ok(hub.respond(request, Subscription::run(run.reader().await?)))
    /// }
    ///
    /// async fn generate(writer: RunWriter, question: String) -> Result<(), RunError> {
    ///     for word in question.split(' ').rev() {
    ///         writer.publish(Event::new("word", word.to_owned())).await?;
    ///     }
    ///     writer.finish().await
    /// }
    /// # let _: axum::Router<Hub> = axum::Router::new().route("/answers", axum::routing::post(answer));
    /// # }
    /// # #[cfg(not(feature = "axum"))] fn main() {}
    /// ```
    pub fn begin_for(&self, request: &StreamRequest) -> BeginRunFor {
        let only_reads = request.cursor() != Cursor::Absent || request.method() == Method::HEAD;
        let begins = !only_reads && (self.hub.is_of_publisher() || self.hub.allows_site(request));
        BeginRunFor { hub: self.hub.clone(), begin: self.begin(), begins }
    }
}

/// The beginning of a run for a request: [`Run::begin_for`]. Await it.
#[must_use = "a run does not begin until this value is awaited"]
pub struct BeginRunFor {
    hub: Hub,
    begin: BeginRun,
    /// Whether the request may begin a run.
    begins: bool,
}

impl BeginRunFor {
    /// Sets the last event of the run if it ends as aborted: [`BeginRun::last_will`].
    pub fn last_will(mut self, event: Event) -> Self {
        self.begin = self.begin.last_will(event);
        self
    }
}

impl IntoFuture for BeginRunFor {
    type Output = Result<Option<RunWriter>, RunError>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            if !self.begins {
                return Ok(None);
            }
            self.hub.check_capacity()?;
            match self.begin.await {
                Ok(writer) => Ok(Some(writer)),
                Err(error) if error.is_active() => Ok(None),
                Err(error) => Err(error),
            }
        })
    }
}

// The debug output omits the last will, because it may be secret.
opaque_debug!(|begin: BeginRunFor| { begins: begin.begins });
