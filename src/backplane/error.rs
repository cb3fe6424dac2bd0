//! The error of a request to a broker.

use std::error::Error;
use std::fmt;

/// The error of a request to a broker.
///
/// ```
/// use tower_sse::backplane::BackplaneError;
///
/// let error = BackplaneError::unknown("no answer in 2 s");
/// assert!(error.is_unknown()); // the broker may have processed the request
/// assert!(BackplaneError::rejected("out of memory").is_rejected());
/// assert!(!BackplaneError::unavailable("connection refused").is_unknown());
/// ```
#[derive(Debug)]
pub struct BackplaneError {
    kind: Kind,
    pub(super) text: Box<str>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Unavailable,
    Unknown,
    Rejected,
}

impl BackplaneError {
    /// Creates the error of a request that had no effect, because the broker cannot be reached or
    /// cannot process requests now. The text is for logs, and must not contain secrets.
    pub fn unavailable(text: impl Into<Box<str>>) -> Self {
        Self { kind: Kind::Unavailable, text: text.into() }
    }

    /// Creates the error of a request that the broker did not confirm, for example because no
    /// answer arrived in time. The broker may have processed the request.
    pub fn unknown(text: impl Into<Box<str>>) -> Self {
        Self { kind: Kind::Unknown, text: text.into() }
    }

    /// Creates the error of a request that was rejected, for example because the broker is out of
    /// memory, denies permission, or is too old.
    pub fn rejected(text: impl Into<Box<str>>) -> Self {
        Self { kind: Kind::Rejected, text: text.into() }
    }

    /// Returns a copy of the error, for another record or another caller.
    pub(crate) fn duplicate(&self) -> Self {
        Self { kind: self.kind, text: self.text.clone() }
    }

    /// Turns an unknown error into an unavailable error, for a caller whose request was not sent
    /// yet.
    #[cfg(any(feature = "nats", feature = "postgres", feature = "redis"))]
    pub(crate) fn before_request(self) -> Self {
        if self.is_unknown() { Self::unavailable(self.text) } else { self }
    }

    /// Names the part of a request that failed.
    #[cfg(feature = "postgres")]
    pub(crate) fn in_part(self, part: &str) -> Self {
        Self { text: format!("{part}: {}", self.text).into(), ..self }
    }

    /// Returns whether the broker may have processed the request.
    #[must_use]
    pub fn is_unknown(&self) -> bool {
        self.kind == Kind::Unknown
    }

    /// Returns whether the request was rejected.
    #[must_use]
    pub fn is_rejected(&self) -> bool {
        self.kind == Kind::Rejected
    }
}

impl fmt::Display for BackplaneError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            Kind::Unavailable => "broker unavailable",
            Kind::Unknown => "request not confirmed",
            Kind::Rejected => "request rejected",
        };
        write!(f, "{kind}: {}", self.text)
    }
}

impl Error for BackplaneError {}
