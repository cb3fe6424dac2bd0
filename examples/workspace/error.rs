//! The error of the services.

use std::fmt;

use tower_sse::{PublishError, RunError};

#[derive(Debug)]
pub(crate) enum Error {
    /// The input is invalid, for this reason.
    Invalid(&'static str),
    /// The object does not exist.
    Missing,
    /// A limit is reached.
    LimitReached(&'static str),
    /// The instance has not read the log yet, or it is shutting down.
    NotReady,
    /// The event could not be published.
    Publish(PublishError),
    /// A run could not be begun, stopped or read.
    Run(RunError),
    /// The database did not commit a change, or could not be read.
    #[cfg(feature = "postgres")]
    Database,
}

impl From<PublishError> for Error {
    fn from(error: PublishError) -> Self {
        Self::Publish(error)
    }
}

impl From<RunError> for Error {
    fn from(error: RunError) -> Self {
        Self::Run(error)
    }
}

#[cfg(feature = "postgres")]
impl From<tokio_postgres::Error> for Error {
    fn from(error: tokio_postgres::Error) -> Self {
        let cause = std::error::Error::source(&error).map(ToString::to_string);
        tracing::warn!(%error, cause, "a request to the database failed");
        Self::Database
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Invalid(reason) | Self::LimitReached(reason) => f.write_str(reason),
            Self::Missing => f.write_str("This no longer exists."),
            Self::NotReady => f.write_str("The server is not ready. Try again in a moment."),
            // The page shows no details of the broker. The hub logs them.
            Self::Publish(error) if error.is_unavailable() => {
                f.write_str("The shared log is unavailable. Try again in a moment.")
            }
            Self::Publish(error) if error.is_closed() => {
                f.write_str("The server is restarting. Try again in a moment.")
            }
            Self::Run(error) if error.is_unavailable() => {
                f.write_str("The server is unavailable. Try again in a moment.")
            }
            // The page shows no details of the database. They are logged above.
            #[cfg(feature = "postgres")]
            Self::Database => f.write_str("The database is unavailable. Try again in a moment."),
            Self::Publish(error) => error.fmt(f),
            Self::Run(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for Error {}

/// Checks a text that a user has entered, and returns it without surrounding spaces.
pub(crate) fn text(text: &str, max_length: usize) -> Result<String, Error> {
    let text = text.trim();
    match text.chars().count() {
        0 => Err(Error::Invalid("Enter a text.")),
        length if length > max_length => Err(Error::Invalid("The text is too long.")),
        _ => Ok(text.to_owned()),
    }
}
