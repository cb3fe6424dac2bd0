//! The run that a subscription reads.

use std::sync::Arc;

use super::content::RunContent;
use crate::types::{Cursor, Refusal, RefusalReason, RunSource};

/// What the search for a run has found. [`RunSource::found`] contains it.
#[derive(Clone)]
pub(in crate::hub) enum Found {
    Run(Arc<RunContent>),
    /// A run that this instance has written to its end. The broker did not answer, so a later run
    /// of this name may have begun.
    Own(Arc<RunContent>),
    /// There is no run of this name.
    Nothing,
    /// The broker did not answer.
    Unavailable,
}

/// The place of a stream in a run.
#[derive(Debug)]
pub(crate) struct RunCursor {
    pub(in crate::hub) run: Arc<RunContent>,
    /// The number of events that the stream has read, or that its client has.
    pub(in crate::hub) read: u64,
    /// Whether the client resumes from a cursor.
    pub(in crate::hub) resumes: bool,
}

/// Returns the place in the run at which the stream of a request begins. `from_event_source` is
/// true if the request seems to come from a browser's `EventSource`, which a `204` stops.
///
/// # Errors
///
/// Returns a refusal if the request gets no stream: see
/// [`Subscription::run`](crate::Subscription::run).
pub(in crate::hub) fn place(source: &RunSource, cursor: Cursor, from_event_source: bool) -> Result<RunCursor, Refusal> {
    let run = match source.found.downcast_ref::<Found>() {
        // Another instance may have a version that can read the rest of the run.
        Some(Found::Run(run)) if run.progress().lost && run.progress().unreadable => {
            return Err(Refusal::retry_later(RefusalReason::Starting));
        }
        // A stream of a run that is lost ends at once, and its client asks again. It cannot resume.
        Some(Found::Run(run)) if cursor != Cursor::Absent && run.progress().lost => return Err(Refusal::UNRESUMABLE),
        Some(Found::Own(run)) if !is_of(cursor, run) => return Err(Refusal::retry_later(RefusalReason::Starting)),
        Some(Found::Run(run) | Found::Own(run)) => Arc::clone(run),
        Some(Found::Unavailable) => return Err(Refusal::retry_later(RefusalReason::Starting)),
        Some(Found::Nothing) | None if cursor == Cursor::Absent => return Err(Refusal::NO_RUN),
        Some(Found::Nothing) | None => return Err(Refusal::UNRESUMABLE),
    };
    let progress = run.progress();
    // The client is ahead if another instance has read an event before the instance of the writer
    // has received the answer of the broker. The stream then waits for the event.
    let may_be_ahead = progress.end.is_none() && !progress.lost;
    let most = if may_be_ahead { u64::MAX } else { progress.events };
    match cursor {
        Cursor::Absent if progress.end.is_some() && source.only_while_active => Err(Refusal::NO_RUN),
        Cursor::Absent => Ok(RunCursor { run, read: source.skipped.min(most), resumes: false }),
        Cursor::At(position) if position.epoch() == run.id && position.sequence() <= most => {
            if from_event_source && progress.end.is_some() && position.sequence() == progress.events {
                return Err(Refusal::NO_RUN);
            }
            Ok(RunCursor { run, read: position.sequence(), resumes: true })
        }
        Cursor::At(_) | Cursor::Invalid | Cursor::Banned { .. } => Err(Refusal::UNRESUMABLE),
    }
}

/// Returns whether a request has no cursor, or one of this run.
fn is_of(cursor: Cursor, run: &RunContent) -> bool {
    match cursor {
        Cursor::Absent => true,
        Cursor::At(position) => position.epoch() == run.id,
        Cursor::Invalid | Cursor::Banned { .. } => false,
    }
}
