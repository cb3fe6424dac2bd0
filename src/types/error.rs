//! Opaque errors with `is_…()` predicates.

use std::convert::Infallible;
use std::error::Error;
use std::fmt;

use http::StatusCode;

/// The error of publishing an event.
///
/// The log has not appended the event, unless [`is_unknown`](Self::is_unknown) is true: then the
/// log may have appended it.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use tower_sse::{Event, Hub};
///
/// let hub = Hub::builder().build()?;
/// let error = hub.topic("news").publish(Event::new("hub.live", "")).await.unwrap_err();
/// assert!(error.is_invalid()); // a name of the hub: the same event can never be published
/// assert_eq!(error.status_code(), 400);
/// # Ok(()) }
/// ```
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
    Unshared(&'static str),
    NoRuntime,
}

impl PublishError {
    pub(crate) const NO_RUNTIME: Self = Self(PublishErrorKind::NoRuntime);
    pub(crate) const SHARED: Self = Self(PublishErrorKind::Shared);
    pub(crate) const KEY_UNSHARED: Self = Self(PublishErrorKind::Unshared("an idempotency key"));
    pub(crate) const RECORD_UNSHARED: Self = Self(PublishErrorKind::Unshared("a prepared record"));

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

    /// Returns whether the event or its target is invalid, so that a retry cannot succeed. Causes
    /// are an invalid name or key, bytes that are not UTF-8, a value that cannot be serialized, a
    /// payload or a union of targets over its limit, and an idempotency key or a prepared record
    /// without a shared log.
    #[must_use]
    pub fn is_invalid(&self) -> bool {
        !self.is_closed() && !self.is_unavailable()
    }

    /// Returns whether the broker could not be reached, rejected the event, or did not confirm it
    /// ([`is_unknown`](Self::is_unknown)).
    ///
    /// Also returns true if [`publish_now`](crate::Target::publish_now) was called with a shared
    /// log, or if the future was polled outside of a tokio runtime, where the hub cannot reach a
    /// broker.
    #[must_use]
    pub fn is_unavailable(&self) -> bool {
        matches!(self.0, PublishErrorKind::Broker { .. } | PublishErrorKind::Shared | PublishErrorKind::NoRuntime)
    }

    /// Returns whether the payload is over
    /// [`HubBuilder::max_payload`](crate::HubBuilder::max_payload). The hub counts the bytes that
    /// the event would have on the wire without its id. Such an error is also
    /// [invalid](Self::is_invalid).
    #[must_use]
    pub fn is_too_large(&self) -> bool {
        matches!(self.0, PublishErrorKind::TooLarge { .. })
    }

    /// Returns whether the hub was drained. A drained hub publishes no more events.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        matches!(self.0, PublishErrorKind::Closed)
    }

    /// Returns the HTTP status for a client whose request caused the event.
    ///
    /// | Error | Status |
    /// |---|---|
    /// | [`is_too_large`](Self::is_too_large) | 413 |
    /// | a value that cannot be serialized, which is a bug of the application | 500 |
    /// | any other error for which [`is_invalid`](Self::is_invalid) is true | 400 |
    /// | [`is_closed`](Self::is_closed), [`is_unavailable`](Self::is_unavailable) | 503 |
    ///
    /// If [`is_unknown`](Self::is_unknown) is also true, the event may have been published despite
    /// the error.
    #[must_use]
    pub fn status_code(&self) -> StatusCode {
        match self.0 {
            PublishErrorKind::TooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            PublishErrorKind::NotJson(_) => StatusCode::INTERNAL_SERVER_ERROR,
            _ if self.is_invalid() => StatusCode::BAD_REQUEST,
            _ => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// Returns whether the event may have been published: the record was sent to the shared log,
    /// and the log did not confirm it, for example within the timeout. Always false with the log of
    /// this process.
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
                write!(f, "payload of {bytes} bytes after framing exceeds the limit of {limit}")
            }
            PublishErrorKind::TooManyTargets => f.write_str("too many targets"),
            PublishErrorKind::NotUtf8(_) => f.write_str("data is not UTF-8"),
            PublishErrorKind::NotJson(_) => f.write_str("data cannot be serialized to JSON"),
            PublishErrorKind::Closed => f.write_str("the hub was drained"),
            PublishErrorKind::Broker { is_unknown: false, .. } => f.write_str("cannot write to the shared log"),
            PublishErrorKind::Broker { is_unknown: true, .. } => {
                f.write_str("the shared log did not confirm the event")
            }
            PublishErrorKind::Shared => f.write_str("`publish_now` cannot write to a shared log: await `publish`"),
            PublishErrorKind::NoRuntime => f.write_str("no tokio runtime: cannot write to the shared log"),
            PublishErrorKind::Unshared(what) => write!(f, "{what} requires a shared log"),
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

/// The error of a command that ends connections, or that makes them join or leave a topic.
///
/// If the command is [invalid](Self::is_invalid), it changed nothing. If
/// [`is_over_limit`](Self::is_over_limit) is true, some connections of the target may have joined
/// the topic. If [`is_unavailable`](Self::is_unavailable) is true, this instance has carried out
/// the command.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use tower_sse::{Hub, Subscription};
///
/// let hub = Hub::builder().build()?;
/// let page = hub.subscribe(Subscription::for_user("ada"), None)?;
/// let error = hub.connection(page.connection()).join("").await.unwrap_err();
/// assert!(error.is_invalid());
/// assert_eq!(error.to_string(), "topic is empty");
/// # Ok(()) }
/// ```
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

    /// Returns whether the target, the topic or the note is invalid, so that a retry cannot
    /// succeed.
    #[must_use]
    pub fn is_invalid(&self) -> bool {
        !self.is_over_limit() && !self.is_unavailable()
    }

    /// Returns whether other instances may not have received the command, although this instance
    /// has carried it out. Either the broker was unavailable, or the future was polled outside of a
    /// tokio runtime, where the hub cannot reach the broker. Retry the command.
    #[must_use]
    pub fn is_unavailable(&self) -> bool {
        matches!(self.0, CommandErrorKind::Broker(_) | CommandErrorKind::NoRuntime)
    }

    /// Returns whether a connection or a user of the target already has as many topics as
    /// [`HubBuilder::max_topics`](crate::HubBuilder::max_topics) allows.
    #[must_use]
    pub fn is_over_limit(&self) -> bool {
        matches!(self.0, CommandErrorKind::TooManyTopics { .. })
    }

    /// Returns the HTTP status for a client whose request caused the command: 400 if
    /// [invalid](Self::is_invalid), 409 if [over the limit](Self::is_over_limit), and 503 if the
    /// broker is [unavailable](Self::is_unavailable).
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
            CommandErrorKind::TooManyTopics { limit } => {
                write!(f, "a connection or user would have more than {limit} topics")
            }
            CommandErrorKind::Broker(_) => f.write_str("cannot send the command to other instances"),
            CommandErrorKind::NoRuntime => f.write_str("no tokio runtime: cannot send the command to other instances"),
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

/// The error of a name or a short text that no hub accepts: a topic, user, connection, event name,
/// key or note.
///
/// The text of the error names the field and the problem. It does not contain the value.
///
/// ```
/// use tower_sse::Topic;
///
/// let error = Topic::try_from("news\n").unwrap_err();
/// assert_eq!(error.field(), "topic");
/// assert_eq!(error.to_string(), "topic contains the control character U+000A");
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidName {
    field: &'static str,
    problem: NameProblem,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum NameProblem {
    Missing,
    Empty,
    TooLong { limit: usize },
    Control(char),
    Reserved,
    Malformed,
    Foreign,
    OtherScope,
    AllScopes,
}

impl InvalidName {
    pub(crate) fn new(field: &'static str, problem: NameProblem) -> Self {
        Self { field, problem }
    }

    /// Returns the kind of the invalid value: `topic`, `user`, `connection`, `event name`, `key`,
    /// `idempotency key`, `note`, `scope`, `target`, `subscription`, `counted_as` or
    /// `header sse-connection`.
    #[must_use]
    pub fn field(&self) -> &'static str {
        self.field
    }
}

impl fmt::Display for InvalidName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let field = self.field;
        match self.problem {
            NameProblem::Missing => write!(f, "{field} is missing"),
            NameProblem::Empty => write!(f, "{field} is empty"),
            NameProblem::TooLong { limit } => write!(f, "{field} is longer than {limit} bytes"),
            NameProblem::Control(c) => {
                write!(f, "{field} contains the control character U+{:04X}", u32::from(c))
            }
            NameProblem::Reserved => {
                write!(f, "{field} is reserved: `open`, `error` and names that start with `hub.`")
            }
            NameProblem::Foreign => write!(f, "{field} belongs to another hub or publisher"),
            NameProblem::OtherScope => write!(f, "{field} belongs to another scope"),
            NameProblem::AllScopes => write!(f, "{field} is of all scopes, and a topic is of one scope"),
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

/// The error of [`HubBuilder::build`](crate::HubBuilder::build) and
/// [`HubBuilder::publisher`](crate::HubBuilder::publisher): a setting is invalid, or two settings
/// contradict each other.
///
/// ```
/// use tower_sse::Hub;
///
/// let error = Hub::builder().max_payload(0).build().unwrap_err();
/// assert_eq!(error.setting(), "max_payload");
/// assert_eq!(error.to_string(), "max_payload: must be at least 16 bytes");
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BuildError {
    setting: &'static str,
    problem: &'static str,
}

impl BuildError {
    pub(crate) fn new(setting: &'static str, problem: &'static str) -> Self {
        Self { setting, problem }
    }

    /// Returns the name of the builder method that sets the rejected setting. It is `build` if the
    /// operating system returned no random bytes.
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
