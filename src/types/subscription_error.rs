//! Why a subscription gets no stream in this process, or no ticket.

use std::error::Error;
use std::fmt;

use http::StatusCode;

use super::error::InvalidName;

/// Why [`Hub::subscribe`](crate::Hub::subscribe) opened no stream, or [`Hub::ticket`](crate::Hub::ticket) made no
/// ticket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubscriptionError(Kind);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Kind {
    Name(InvalidName),
    TooManyTopics,
    DataTooLong,
    DataNotJson,
    TicketTime,
    Closed,
    Limit,
    Banned,
    TooManyTickets,
    NoRandomBytes,
    Unavailable,
    NoRuntime,
}

impl SubscriptionError {
    pub(crate) const BANNED: Self = Self(Kind::Banned);
    pub(crate) const CLOSED: Self = Self(Kind::Closed);
    pub(crate) const DATA_NOT_JSON: Self = Self(Kind::DataNotJson);
    pub(crate) const DATA_TOO_LONG: Self = Self(Kind::DataTooLong);
    pub(crate) const LIMIT: Self = Self(Kind::Limit);
    pub(crate) const NO_RANDOM_BYTES: Self = Self(Kind::NoRandomBytes);
    pub(crate) const NO_RUNTIME: Self = Self(Kind::NoRuntime);
    pub(crate) const TICKET_TIME: Self = Self(Kind::TicketTime);
    pub(crate) const TOO_MANY_TICKETS: Self = Self(Kind::TooManyTickets);
    pub(crate) const TOO_MANY_TOPICS: Self = Self(Kind::TooManyTopics);
    pub(crate) const UNAVAILABLE: Self = Self(Kind::Unavailable);

    pub(crate) fn name(invalid: InvalidName) -> Self {
        Self(Kind::Name(invalid))
    }

    /// The subscription can never be accepted as it is: an invalid name, more topics than
    /// [`HubBuilder::max_topics`](crate::HubBuilder::max_topics), attached data that is over
    /// [`Subscription::MAX_DATA_BYTES`](crate::Subscription::MAX_DATA_BYTES) or does not serialize, or a time that a
    /// ticket cannot have.
    #[must_use]
    pub fn is_invalid(&self) -> bool {
        matches!(self.0, Kind::Name(_) | Kind::TooManyTopics | Kind::DataTooLong | Kind::DataNotJson | Kind::TicketTime)
    }

    /// A limit on connections is reached, or as many tickets wait to be redeemed as there may be, in all or of this
    /// user.
    #[must_use]
    pub fn is_over_limit(&self) -> bool {
        matches!(self.0, Kind::Limit | Kind::TooManyTickets)
    }

    /// The user, or a topic, was disconnected with [`Disconnect::block_for`](crate::Disconnect::block_for), and the
    /// time is not over.
    #[must_use]
    pub fn is_banned(&self) -> bool {
        self.0 == Kind::Banned
    }

    /// The hub was drained, or is being drained.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.0 == Kind::Closed
    }

    /// The broker of a shared log does not answer, or the hub has not read the log yet. Try again:
    /// [`Hub::is_ready`](crate::Hub::is_ready) says when. Also where there is no tokio runtime to wait for the broker
    /// in, and where the operating system gives no random bytes.
    #[must_use]
    pub fn is_unavailable(&self) -> bool {
        matches!(self.0, Kind::Unavailable | Kind::NoRuntime | Kind::NoRandomBytes)
    }

    /// The status for a client that asked for it: 400 if [invalid](Self::is_invalid), 403 if
    /// [banned](Self::is_banned), 429 if [over a limit](Self::is_over_limit), otherwise 503.
    #[must_use]
    pub fn status_code(&self) -> StatusCode {
        if self.is_invalid() {
            StatusCode::BAD_REQUEST
        } else if self.is_banned() {
            StatusCode::FORBIDDEN
        } else if self.is_over_limit() {
            StatusCode::TOO_MANY_REQUESTS
        } else {
            StatusCode::SERVICE_UNAVAILABLE
        }
    }
}

impl fmt::Display for SubscriptionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match &self.0 {
            Kind::Name(invalid) => return invalid.fmt(f),
            Kind::TooManyTopics => "too many topics",
            Kind::DataTooLong => "the subscription's data is too long",
            Kind::DataNotJson => "the subscription's data does not serialize to JSON",
            Kind::TicketTime => "a ticket lives between a second and an hour",
            Kind::Closed => "the hub is drained",
            Kind::Limit => "a limit on connections is reached",
            Kind::Banned => "the user or a topic is disconnected for a time",
            Kind::TooManyTickets => "too many tickets wait to be redeemed",
            Kind::Unavailable => "the broker is unavailable",
            Kind::NoRuntime => "the broker can only be asked within a tokio runtime",
            Kind::NoRandomBytes => "the operating system gives no random bytes",
        })
    }
}

impl Error for SubscriptionError {}
