//! The error of a subscription for which the hub opens no stream in this process, or issues no
//! ticket.

use std::error::Error;
use std::fmt;

use http::StatusCode;

use super::error::InvalidName;

/// The error of [`Hub::subscribe`](crate::Hub::subscribe) and [`Hub::ticket`](crate::Hub::ticket).
/// The hub has opened no stream, or issued no ticket.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use tower_sse::{Hub, OverLimit, Subscription};
///
/// let hub = Hub::builder().max_connections_per_user(1, OverLimit::Refuse).build()?;
/// let _page = hub.subscribe(Subscription::for_user("ada"), None)?;
/// let error = hub.subscribe(Subscription::for_user("ada"), None).unwrap_err();
/// assert!(error.is_over_limit());
/// assert_eq!(error.status_code(), 429);
/// # Ok(()) }
/// ```
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
    NoRun,
    TicketForRun,
}

impl SubscriptionError {
    pub(crate) const BANNED: Self = Self(Kind::Banned);
    pub(crate) const CLOSED: Self = Self(Kind::Closed);
    pub(crate) const DATA_NOT_JSON: Self = Self(Kind::DataNotJson);
    pub(crate) const DATA_TOO_LONG: Self = Self(Kind::DataTooLong);
    pub(crate) const LIMIT: Self = Self(Kind::Limit);
    pub(crate) const NO_RANDOM_BYTES: Self = Self(Kind::NoRandomBytes);
    pub(crate) const NO_RUN: Self = Self(Kind::NoRun);
    pub(crate) const NO_RUNTIME: Self = Self(Kind::NoRuntime);
    pub(crate) const TICKET_FOR_RUN: Self = Self(Kind::TicketForRun);
    pub(crate) const TICKET_TIME: Self = Self(Kind::TicketTime);
    pub(crate) const TOO_MANY_TICKETS: Self = Self(Kind::TooManyTickets);
    pub(crate) const TOO_MANY_TOPICS: Self = Self(Kind::TooManyTopics);
    pub(crate) const UNAVAILABLE: Self = Self(Kind::Unavailable);

    /// Returns whether the subscription or the ticket is invalid, so that a retry cannot succeed.
    /// Causes are an invalid name, more topics than
    /// [`HubBuilder::max_topics`](crate::HubBuilder::max_topics), attached data that is over
    /// [`Subscription::MAX_DATA_BYTES`](crate::Subscription::MAX_DATA_BYTES) or cannot be
    /// serialized, a lifetime of a ticket that is not between 1 second and 1 hour, and a ticket for
    /// a [run](crate::Subscription::run).
    #[must_use]
    pub fn is_invalid(&self) -> bool {
        matches!(
            self.0,
            Kind::Name(_)
                | Kind::TooManyTopics
                | Kind::DataTooLong
                | Kind::DataNotJson
                | Kind::TicketTime
                | Kind::TicketForRun
        )
    }

    /// Returns whether a limit on connections, on requests per second or on unredeemed tickets is
    /// reached. Tickets have a limit in total, and a limit for each user or key.
    #[must_use]
    pub fn is_over_limit(&self) -> bool {
        matches!(self.0, Kind::Limit | Kind::TooManyTickets)
    }

    /// Returns whether the user, a topic, everyone or the cursor is banned, by a disconnect with
    /// [`Disconnect::block_for`](crate::Disconnect::block_for) whose time is not over.
    #[must_use]
    pub fn is_banned(&self) -> bool {
        self.0 == Kind::Banned
    }

    /// Returns whether the subscription reads a [run](crate::Subscription::run) that the hub does
    /// not have, or has a cursor of such a run.
    #[must_use]
    pub fn is_run_missing(&self) -> bool {
        self.0 == Kind::NoRun
    }

    /// Returns whether the hub was drained, or is draining.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.0 == Kind::Closed
    }

    /// Returns whether the broker of a shared log does not answer, the hub has not read the shared
    /// log yet, or this version cannot read the rest of a run. Retry when
    /// [`Hub::is_ready`](crate::Hub::is_ready) returns true.
    ///
    /// Also returns true if a ticket of a shared log was requested outside of a tokio runtime,
    /// where the hub cannot reach the broker, and if the operating system returned no random bytes.
    #[must_use]
    pub fn is_unavailable(&self) -> bool {
        matches!(self.0, Kind::Unavailable | Kind::NoRuntime | Kind::NoRandomBytes)
    }

    /// Returns the HTTP status for a client that asked for the subscription: 400 if
    /// [invalid](Self::is_invalid), 403 if [banned](Self::is_banned), 404 if
    /// the [run is missing](Self::is_run_missing), 429 if [over a
    /// limit](Self::is_over_limit), otherwise 503.
    #[must_use]
    pub fn status_code(&self) -> StatusCode {
        if self.is_invalid() {
            StatusCode::BAD_REQUEST
        } else if self.is_banned() {
            StatusCode::FORBIDDEN
        } else if self.is_run_missing() {
            StatusCode::NOT_FOUND
        } else if self.is_over_limit() {
            StatusCode::TOO_MANY_REQUESTS
        } else {
            StatusCode::SERVICE_UNAVAILABLE
        }
    }
}

impl From<InvalidName> for SubscriptionError {
    fn from(invalid: InvalidName) -> Self {
        Self(Kind::Name(invalid))
    }
}

impl fmt::Display for SubscriptionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match &self.0 {
            Kind::Name(invalid) => return invalid.fmt(f),
            Kind::TooManyTopics => "too many topics",
            Kind::DataTooLong => "the subscription's data is too long",
            Kind::DataNotJson => "the subscription's data cannot be serialized to JSON",
            Kind::TicketTime => "the lifetime of a ticket must be 1 second to 1 hour",
            Kind::Closed => "the hub is draining or was drained",
            Kind::Limit => "a limit on connections or requests is reached",
            Kind::Banned => "the user, a topic, everyone or the cursor is banned",
            Kind::TooManyTickets => "too many unredeemed tickets",
            Kind::Unavailable => "the broker is unavailable, or the hub has not read the shared log yet",
            Kind::NoRuntime => "no tokio runtime: cannot reach the broker",
            Kind::NoRun => "no such run",
            Kind::TicketForRun => "a ticket cannot open a stream of a run",
            Kind::NoRandomBytes => "the operating system returned no random bytes",
        })
    }
}

impl Error for SubscriptionError {}
