//! Why a request gets no stream.

use std::time::Duration;

use super::reason::RefusalReason;
use super::subscription_error::SubscriptionError;

/// Why a request gets no stream, and whether the client should come back.
///
/// A browser's `EventSource` gives up for good on any status but 200. So "not now" is said by a stream of one
/// event, `hub.refused`, which tells the browser when to try again; statuses are for "do not try again like this".
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal(pub(crate) Kind);

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Unauthorized,
    Forbidden,
    RetryLater {
        reason: RefusalReason,
        retry: Option<Duration>,
    },
    Gone,
    /// Only the hub refuses with this: the same request will never succeed.
    Invalid(SubscriptionError),
    /// Only the hub refuses with this: the access hook panicked.
    Panicked,
}

impl Refusal {
    /// `401`: the client must sign in first. Browsers do not retry.
    #[doc(alias = "login")]
    #[must_use]
    pub fn unauthorized() -> Self {
        Self(Kind::Unauthorized)
    }

    /// `403`: the client may not have this. Return the same for what does not exist, so that a
    /// client cannot learn what does. Browsers do not retry.
    #[must_use]
    pub fn forbidden() -> Self {
        Self(Kind::Forbidden)
    }

    /// `200` and `hub.refused`: the client should come back, after a random time of one to three times
    /// [`HubBuilder::retry`](crate::HubBuilder::retry), or what [`retry`](Self::retry) sets.
    #[doc(alias = "later")]
    #[must_use]
    pub fn retry_later(reason: RefusalReason) -> Self {
        Self(Kind::RetryLater { reason, retry: None })
    }

    /// `204`: the client should never come back. Browsers obey.
    #[doc(alias = "never")]
    #[must_use]
    pub fn gone() -> Self {
        Self(Kind::Gone)
    }

    pub(crate) fn invalid(invalid: SubscriptionError) -> Self {
        Self(Kind::Invalid(invalid))
    }

    /// Returns the refusal of a decision that a disconnect has outdated. The client asks again.
    pub(crate) fn outdated() -> Self {
        Self::retry_later(RefusalReason::Disconnected)
    }

    /// Sets when the client should come back, for [`retry_later`](Self::retry_later); the hub adds up to half
    /// of it, so that clients that were refused together do not come back together. Changes nothing
    /// for the others.
    #[must_use]
    pub fn retry(mut self, after: Duration) -> Self {
        if let Kind::RetryLater { retry, .. } = &mut self.0 {
            *retry = Some(after);
        }
        self
    }
}
