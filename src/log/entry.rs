//! An event that is ready to be appended to the log, and the result of appending it.

use std::sync::Arc;

use super::time::Millis;
use crate::types::{Audience, Event, Position, PublishError};
use crate::wire::{Draft, Framing};

/// A validated and encoded event that is ready to be appended.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) audience: Audience,
    pub(crate) effect: Effect,
    pub(crate) draft: Draft,
    /// The time at which the event was published, or `None` for the time of the append. The age of
    /// the record counts from this time, or from the append if that is earlier.
    pub(crate) published: Option<Millis>,
}

impl Entry {
    /// Checks and encodes an event. Returns the audience together with an error.
    pub(crate) fn new(
        audience: Audience,
        event: &Event,
        framing: &Framing,
    ) -> Result<Self, Box<(Audience, PublishError)>> {
        let effect = match event.key.as_deref() {
            None => Effect::Nothing,
            Some(key) if event.removes => Effect::Removes(Arc::from(key)),
            Some(key) => Effect::Sets(Arc::from(key)),
        };
        match check_size(&audience).and_then(|()| Draft::encode(event, framing)) {
            Ok(draft) => Ok(Self { audience, effect, draft, published: None }),
            Err(error) => Err(Box::new((audience, error))),
        }
    }
}

/// The properties of a record of a shared log that this instance has not decoded.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Undecoded {
    /// As [`Entry::published`].
    pub(crate) published: Option<Millis>,
    /// The approximate size of its frame in bytes.
    pub(crate) bytes: u32,
}

fn check_size(audience: &Audience) -> Result<(), PublishError> {
    if audience.is_too_large() { Err(PublishError::TOO_MANY_TARGETS) } else { Ok(()) }
}

/// The effect of a record on the current values of a channel that keeps them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    Nothing,
    Sets(Arc<str>),
    Removes(Arc<str>),
}

/// The result of appending one entry.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Appended {
    pub(crate) position: Position,
    pub(crate) receivers: usize,
}
