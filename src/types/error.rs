//! What can go wrong, as opaque errors with `is_…()` predicates.

use std::convert::Infallible;
use std::error::Error;
use std::fmt;

use http::StatusCode;

/// Why an event was not published.
///
/// Nothing was appended and no position was used, unless [`is_unknown`](Self::is_unknown) says otherwise.
#[derive(Debug)]
pub struct PublishError(PublishErrorKind);

#[derive(Debug)]
enum PublishErrorKind {
    Invalid(InvalidName),
    TooLarge { bytes: usize, limit: usize },
    TooManyTargets,
    NotUtf8(std::str::Utf8Error),
    NotJson(serde_json::Error),
    Closed,
    Broker { is_unknown: bool, cause: Box<dyn Error + Send + Sync> },
    Shared,
    Unshared,
    NoRuntime,
}

impl PublishError {
    pub(crate) const NO_RUNTIME: Self = Self(PublishErrorKind::NoRuntime);
    pub(crate) const SHARED: Self = Self(PublishErrorKind::Shared);
    pub(crate) const UNSHARED: Self = Self(PublishErrorKind::Unshared);

    pub(crate) fn broker(is_unknown: bool, cause: impl Error + Send + Sync + 'static) -> Self {
        Self(PublishErrorKind::Broker { is_unknown, cause: Box::new(cause) })
    }

    pub(crate) const CLOSED: Self = Self(PublishErrorKind::Closed);

    pub(crate) fn too_large(bytes: usize, limit: usize) -> Self {
        Self(PublishErrorKind::TooLarge { bytes, limit })
    }

    pub(crate) const TOO_MANY_TARGETS: Self = Self(PublishErrorKind::TooManyTargets);

    pub(crate) fn not_utf8(error: std::str::Utf8Error) -> Self {
        Self(PublishErrorKind::NotUtf8(error))
    }

    pub(crate) fn not_json(error: serde_json::Error) -> Self {
        Self(PublishErrorKind::NotJson(error))
    }

    /// The event or its target can never be published as it is: a bad name, bytes that are not
    /// UTF-8, a value that does not serialize, a payload or a union over its limit, an idempotency
    /// key where no log remembers it.
    #[must_use]
    pub fn is_invalid(&self) -> bool {
        !self.is_closed() && !self.is_unavailable()
    }

    /// The broker is not there, refuses, or did not answer in time
    /// ([`is_unknown`](Self::is_unknown)); or [`publish_now`](crate::Target::publish_now) was
    /// called where publishing has to wait for one; or the future was polled outside of a tokio
    /// runtime, where the hub cannot talk to one.
    #[must_use]
    pub fn is_unavailable(&self) -> bool {
        matches!(self.0, PublishErrorKind::Broker { .. } | PublishErrorKind::Shared | PublishErrorKind::NoRuntime)
    }

    /// The payload is over [`HubBuilder::max_payload`](crate::HubBuilder::max_payload), counted as it would stand on
    /// the wire. Also [`is_invalid`](Self::is_invalid).
    #[must_use]
    pub fn is_too_large(&self) -> bool {
        matches!(self.0, PublishErrorKind::TooLarge { .. })
    }

    /// The hub was drained: it publishes nothing any more.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        matches!(self.0, PublishErrorKind::Closed)
    }

    /// The status for a client whose request caused the event:
    ///
    /// | error | status |
    /// |---|---|
    /// | [`is_too_large`](Self::is_too_large) | 413 |
    /// | a value that does not serialize, which is a mistake of the application | 500 |
    /// | otherwise [`is_invalid`](Self::is_invalid) | 400 |
    /// | [`is_closed`](Self::is_closed), [`is_unavailable`](Self::is_unavailable) | 503 |
    ///
    /// If the error is also [`is_unknown`](Self::is_unknown), the event may be published all the same.
    #[must_use]
    pub fn status_code(&self) -> StatusCode {
        match self.0 {
            PublishErrorKind::TooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            PublishErrorKind::NotJson(_) => StatusCode::INTERNAL_SERVER_ERROR,
            _ if self.is_invalid() => StatusCode::BAD_REQUEST,
            _ => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// The record was sent to the log and no answer came in time, so it may or may not have been published. Never so
    /// with the log of this process.
    #[must_use]
    pub fn is_unknown(&self) -> bool {
        matches!(self.0, PublishErrorKind::Broker { is_unknown: true, .. })
    }
}

impl fmt::Display for PublishError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            PublishErrorKind::Invalid(invalid) => invalid.fmt(f),
            PublishErrorKind::TooLarge { bytes, limit } => {
                write!(f, "payload of {bytes} bytes after framing is over the limit of {limit}")
            }
            PublishErrorKind::TooManyTargets => f.write_str("too many targets"),
            PublishErrorKind::NotUtf8(_) => f.write_str("data is not UTF-8"),
            PublishErrorKind::NotJson(_) => f.write_str("data does not serialise to JSON"),
            PublishErrorKind::Closed => f.write_str("the hub was drained"),
            PublishErrorKind::Broker { is_unknown: false, .. } => f.write_str("the log cannot be written to"),
            PublishErrorKind::Broker { is_unknown: true, .. } => f.write_str("the log did not answer"),
            PublishErrorKind::Shared => f.write_str("the log is shared: publishing has to be awaited"),
            PublishErrorKind::NoRuntime => f.write_str("a shared log is written to within a tokio runtime only"),
            PublishErrorKind::Unshared => f.write_str("only a shared log remembers an idempotency key"),
        }
    }
}

impl Error for PublishError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match &self.0 {
            PublishErrorKind::NotUtf8(error) => Some(error),
            PublishErrorKind::NotJson(error) => Some(error),
            PublishErrorKind::Broker { cause, .. } => Some(&**cause),
            _ => None,
        }
    }
}

impl From<InvalidName> for PublishError {
    fn from(invalid: InvalidName) -> Self {
        Self(PublishErrorKind::Invalid(invalid))
    }
}

/// Why connections were not told to end, to join or to leave. Nothing was changed, but where one of several connections
/// had no room for a topic: others may have joined then.
#[derive(Debug)]
pub struct CommandError(CommandErrorKind);

#[derive(Debug)]
enum CommandErrorKind {
    Invalid(InvalidName),
    TooManyTargets,
    TooManyTopics { limit: usize },
    Broker(Box<dyn Error + Send + Sync>),
    NoRuntime,
}

impl CommandError {
    pub(crate) const NO_RUNTIME: Self = Self(CommandErrorKind::NoRuntime);

    pub(crate) fn broker(cause: impl Error + Send + Sync + 'static) -> Self {
        Self(CommandErrorKind::Broker(Box::new(cause)))
    }

    pub(crate) const TOO_MANY_TARGETS: Self = Self(CommandErrorKind::TooManyTargets);

    pub(crate) fn too_many_topics(limit: usize) -> Self {
        Self(CommandErrorKind::TooManyTopics { limit })
    }

    /// The target, the topic or the note can never be as it is.
    #[must_use]
    pub fn is_invalid(&self) -> bool {
        !self.is_over_limit() && !self.is_unavailable()
    }

    /// It was carried out on this instance, and the others could not be told: the broker is not
    /// there, or the future was polled outside of a tokio runtime, where the hub cannot talk to it.
    /// Repeat it.
    #[must_use]
    pub fn is_unavailable(&self) -> bool {
        matches!(self.0, CommandErrorKind::Broker(_) | CommandErrorKind::NoRuntime)
    }

    /// The connection, or the user, has as many topics as
    /// [`HubBuilder::max_topics`](crate::HubBuilder::max_topics) allows.
    #[must_use]
    pub fn is_over_limit(&self) -> bool {
        matches!(self.0, CommandErrorKind::TooManyTopics { .. })
    }

    /// The status for a client whose request caused the command: 400 if [invalid](Self::is_invalid), 409 if
    /// [over the limit](Self::is_over_limit), and 503 if the broker is [unavailable](Self::is_unavailable).
    #[must_use]
    pub fn status_code(&self) -> StatusCode {
        if self.is_unavailable() {
            StatusCode::SERVICE_UNAVAILABLE
        } else if self.is_over_limit() {
            StatusCode::CONFLICT
        } else {
            StatusCode::BAD_REQUEST
        }
    }
}

impl fmt::Display for CommandError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            CommandErrorKind::Invalid(invalid) => invalid.fmt(f),
            CommandErrorKind::TooManyTargets => f.write_str("too many targets"),
            CommandErrorKind::TooManyTopics { limit } => write!(f, "more than {limit} topics"),
            CommandErrorKind::Broker(_) => f.write_str("other instances could not be told"),
            CommandErrorKind::NoRuntime => f.write_str("other instances are told within a tokio runtime only"),
        }
    }
}

impl Error for CommandError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match &self.0 {
            CommandErrorKind::Broker(cause) => Some(&**cause),
            _ => None,
        }
    }
}

impl From<InvalidName> for CommandError {
    fn from(invalid: InvalidName) -> Self {
        Self(CommandErrorKind::Invalid(invalid))
    }
}

/// A topic, user, event name or key that no hub accepts. It says which of them and why; it does not repeat the value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidName {
    field: &'static str,
    problem: NameProblem,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum NameProblem {
    Empty,
    TooLong { limit: usize },
    Control(char),
    Reserved,
    Malformed,
    Foreign,
}

impl InvalidName {
    pub(crate) fn new(field: &'static str, problem: NameProblem) -> Self {
        Self { field, problem }
    }

    /// Which value it is: `topic`, `user`, `connection`, `event name`, `key`, `idempotency key`, `note` or `target`.
    #[must_use]
    pub fn field(&self) -> &'static str {
        self.field
    }
}

impl fmt::Display for InvalidName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let field = self.field;
        match self.problem {
            NameProblem::Empty => write!(f, "{field} is empty"),
            NameProblem::TooLong { limit } => write!(f, "{field} is longer than {limit} bytes"),
            NameProblem::Control(c) => {
                write!(f, "{field} contains the control character U+{:04X}", u32::from(c))
            }
            NameProblem::Reserved => {
                write!(f, "{field} is reserved: `open`, `error` and names that start with `hub.`")
            }
            NameProblem::Foreign => write!(f, "{field} belongs to another hub"),
            NameProblem::Malformed => write!(f, "{field} is malformed"),
        }
    }
}

impl Error for InvalidName {}

impl From<Infallible> for InvalidName {
    fn from(never: Infallible) -> Self {
        match never {}
    }
}

/// A setting, or two that contradict each other, which [`HubBuilder::build`](crate::HubBuilder::build) refuses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BuildError {
    setting: &'static str,
    problem: &'static str,
}

impl BuildError {
    pub(crate) fn new(setting: &'static str, problem: &'static str) -> Self {
        Self { setting, problem }
    }

    /// The name of the builder's method.
    #[must_use]
    pub fn setting(&self) -> &'static str {
        self.setting
    }
}

impl fmt::Display for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.setting, self.problem)
    }
}

impl Error for BuildError {}
