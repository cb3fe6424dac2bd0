//! Why a service does not do what it was asked.

use std::fmt;

use tower_sse::PublishError;

#[derive(Debug)]
pub(crate) enum Error {
    /// What was asked cannot be, for this reason.
    Invalid(&'static str),
    /// There is no such thing.
    Missing,
    /// There are enough of these.
    Enough(&'static str),
    /// This instance has not read the log yet, or does not read it any more: it is told to leave.
    NotReady,
    /// The log does not take it.
    Publish(PublishError),
}

impl From<PublishError> for Error {
    fn from(error: PublishError) -> Self {
        Self::Publish(error)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Invalid(reason) | Self::Enough(reason) => f.write_str(reason),
            Self::Missing => f.write_str("There is no such thing any more."),
            Self::NotReady => f.write_str("Not now: the server is not ready."),
            // What is wrong with a broker is for the log, not for people.
            Self::Publish(error) if error.is_unavailable() => f.write_str("Not now: the shared log is away."),
            Self::Publish(error) if error.is_closed() => f.write_str("Not now: the server is restarting."),
            Self::Publish(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for Error {}

/// Text of a person, without spaces around it.
pub(crate) fn text(text: &str, longest: usize) -> Result<String, Error> {
    let text = text.trim();
    match text.chars().count() {
        0 => Err(Error::Invalid("Write something first.")),
        length if length > longest => Err(Error::Invalid("That is too long.")),
        _ => Ok(text.to_owned()),
    }
}
