//! The error of beginning, writing, stopping or reading a run.

use std::error::Error;
use std::fmt;
use std::time::Duration;

use http::StatusCode;

use super::error::{InvalidName, PublishError};

/// The error of beginning, writing, stopping or looking up a run.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use tower_sse::Hub;
///
/// let hub = Hub::builder().build()?;
/// let _writer = hub.run("answers/7").begin().await?;
/// let error = hub.run("answers/7").begin().await.unwrap_err();
/// assert!(error.is_active());
/// assert_eq!(error.status_code(), 409);
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct RunError(Kind);

#[derive(Debug)]
enum Kind {
    Active,
    Ended,
    OverLimit(&'static str),
    Refused(Duration),
    Event(PublishError),
}

impl RunError {
    pub(crate) const ACTIVE: Self = Self(Kind::Active);
    pub(crate) const ENDED: Self = Self(Kind::Ended);
    pub(crate) const TOO_MANY_BYTES: Self = Self(Kind::OverLimit("run_max_bytes"));
    pub(crate) const TOO_MANY_EVENTS: Self = Self(Kind::OverLimit("run_max_events"));

    /// Creates the error of a request that the hub refuses for now.
    pub(crate) fn refused(retry: Duration) -> Self {
        Self(Kind::Refused(retry))
    }

    /// Returns whether a run of this name is active, so that no other can begin. The application
    /// may wait for its end, or use another name.
    #[must_use]
    pub fn is_active(&self) -> bool {
        matches!(self.0, Kind::Active)
    }

    /// Returns whether the run has ended although this writer has not ended it: its instance was
    /// drained, other instances did not hear from this instance for
    /// [`HubBuilder::peer_timeout`](crate::HubBuilder::peer_timeout), or the broker has lost the run.
    /// The writer can stop its work.
    #[must_use]
    pub fn is_ended(&self) -> bool {
        matches!(self.0, Kind::Ended)
    }

    /// Returns whether the run would exceed
    /// [`HubBuilder::run_max_bytes`](crate::HubBuilder::run_max_bytes) or
    /// [`HubBuilder::run_max_events`](crate::HubBuilder::run_max_events). The hub has not published
    /// the event. The run is still active. Its last event has no such limit.
    #[must_use]
    pub fn is_over_limit(&self) -> bool {
        matches!(self.0, Kind::OverLimit(_))
    }

    /// Returns whether the name of the run or the event is invalid, so that a retry cannot succeed.
    #[must_use]
    pub fn is_invalid(&self) -> bool {
        matches!(&self.0, Kind::Event(error) if error.is_invalid())
    }

    /// Returns whether the broker could not be reached or did not confirm the request, the hub was
    /// drained, or the hub accepts no new streams now. A retry may succeed, perhaps on another
    /// instance.
    #[must_use]
    pub fn is_unavailable(&self) -> bool {
        match &self.0 {
            Kind::Refused(_) => true,
            Kind::Event(error) => error.is_unavailable() || error.is_closed(),
            Kind::Active | Kind::Ended | Kind::OverLimit(_) => false,
        }
    }

    /// Returns whether the request may have had an effect, although it failed: the broker did not
    /// confirm it. The next call of the same writer first repeats an event that was not confirmed,
    /// so that the run has each event at most once.
    #[must_use]
    pub fn is_unknown(&self) -> bool {
        matches!(&self.0, Kind::Event(error) if error.is_unknown())
    }

    /// Returns the HTTP status for a client whose request caused the call.
    ///
    /// | Error | Status |
    /// |---|---|
    /// | [`is_active`](Self::is_active), [`is_ended`](Self::is_ended) | 409 |
    /// | [`is_over_limit`](Self::is_over_limit), a too large event | 413 |
    /// | [`is_invalid`](Self::is_invalid) | 400, or 500 for a value that cannot be serialized |
    /// | [`is_unavailable`](Self::is_unavailable) | 503 |
    #[must_use]
    pub fn status_code(&self) -> StatusCode {
        match &self.0 {
            Kind::Active | Kind::Ended => StatusCode::CONFLICT,
            Kind::OverLimit(_) => StatusCode::PAYLOAD_TOO_LARGE,
            Kind::Refused(_) => StatusCode::SERVICE_UNAVAILABLE,
            Kind::Event(error) => error.status_code(),
        }
    }

    /// Returns the time after which the client may retry, for the header `Retry-After`. Returns
    /// `None` if a retry cannot succeed, or only after the active run of this name has ended.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match &self.0 {
            Kind::Refused(retry) => Some(*retry),
            Kind::Event(_) if self.is_unavailable() => Some(Duration::from_secs(1)),
            _ => None,
        }
    }
}

impl fmt::Display for RunError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Kind::Active => f.write_str("a run of this name is active"),
            Kind::Ended => f.write_str("the run has ended"),
            Kind::OverLimit(setting) => write!(f, "the run would exceed the limit `{setting}`"),
            Kind::Refused(_) => f.write_str("the hub accepts no new streams now"),
            Kind::Event(error) => error.fmt(f),
        }
    }
}

impl Error for RunError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match &self.0 {
            Kind::Event(error) => error.source(),
            _ => None,
        }
    }
}

impl From<PublishError> for RunError {
    fn from(error: PublishError) -> Self {
        Self(Kind::Event(error))
    }
}

impl From<InvalidName> for RunError {
    fn from(invalid: InvalidName) -> Self {
        Self(Kind::Event(invalid.into()))
    }
}
