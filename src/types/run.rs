//! The state and the end of a run, and the reference of a subscription to its run.

use std::any::Any;
use std::sync::Arc;

use super::reason::EndReason;

/// The state of a run on all instances: [`Run::state`](crate::Run::state).
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use tower_sse::{Hub, RunEnd, RunState};
///
/// let hub = Hub::builder().build()?;
/// let run = hub.run("answers/7");
/// assert_eq!(run.state().await?, RunState::None);
/// let writer = run.begin().await?;
/// assert_eq!(run.state().await?, RunState::Active);
/// writer.finish().await?;
/// assert_eq!(run.state().await?, RunState::Ended(RunEnd::Finished));
/// # Ok(()) }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RunState {
    /// No run of this name has begun, or the hub has forgotten it: its end is longer ago than
    /// [`HubBuilder::run_keep_for`](crate::HubBuilder::run_keep_for).
    None,
    /// The run has begun and has not ended.
    Active,
    /// The run has ended, and readers can still read it.
    Ended(RunEnd),
}

/// The way in which a run has ended.
///
/// ```
/// use tower_sse::{EndReason, RunEnd};
///
/// // The reason in the `hub.bye` of the run's streams.
/// assert_eq!(EndReason::from(RunEnd::Stopped).as_str(), "stopped");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RunEnd {
    /// The writer called [`finish`](crate::RunWriter::finish) or
    /// [`finish_with`](crate::RunWriter::finish_with).
    Finished,
    /// The writer called [`fail`](crate::RunWriter::fail) or
    /// [`fail_with`](crate::RunWriter::fail_with).
    Failed,
    /// The writer finished the run after [`Run::stop`](crate::Run::stop).
    Stopped,
    /// The writer was dropped before it ended the run, its instance was drained, or its instance
    /// has died.
    Aborted,
}

impl RunEnd {
    const ALL: [(Self, EndReason); 4] = [
        (Self::Finished, EndReason::Finished),
        (Self::Failed, EndReason::Failed),
        (Self::Stopped, EndReason::Stopped),
        (Self::Aborted, EndReason::Aborted),
    ];

    /// Returns the end that this word names in a journal, or `None` for another word.
    pub(crate) fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|(_, reason)| reason.as_str() == word).map(|(end, _)| end)
    }
}

impl From<RunEnd> for EndReason {
    fn from(end: RunEnd) -> Self {
        match end {
            RunEnd::Finished => Self::Finished,
            RunEnd::Failed => Self::Failed,
            RunEnd::Stopped => Self::Stopped,
            RunEnd::Aborted => Self::Aborted,
        }
    }
}

/// The run that a subscription reads, and where the stream begins.
#[derive(Clone)]
pub(crate) struct RunSource {
    /// The hub's own value for the run. This module imports no other, so the type is opaque here.
    pub(crate) found: Arc<dyn Any + Send + Sync>,
    /// The number of events that the stream skips without a cursor.
    pub(crate) skipped: u64,
    /// Whether a request without a cursor gets no stream after the end of the run.
    pub(crate) only_while_active: bool,
}
