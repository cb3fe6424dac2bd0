//! The refusal of a request for a stream.

use std::time::Duration;

use super::reason::RefusalReason;
use super::subscription_error::SubscriptionError;

/// A refusal of a request for a stream. It also sets whether the client should retry.
///
/// A browser's `EventSource` never retries after any status other than `200`. So a retryable
/// refusal is a stream with one event, `hub.refused`, which sets when the browser retries. The
/// other refusals are responses with another status, after which the browser does not retry.
///
/// ```
/// use tower_sse::{Refusal, RefusalReason, StreamRequest, Subscription};
/// # struct Session { user: u64, is_editor: bool, is_closed: bool }
/// # fn is_busy() -> bool { false }
///
/// async fn access(request: StreamRequest) -> Result<Subscription, Refusal> {
///     match request.extensions().get::<Session>() {
///         None => Err(Refusal::unauthorized()),
///         Some(account) if account.is_closed => Err(Refusal::gone()),
///         Some(account) if !account.is_editor => Err(Refusal::forbidden()),
///         Some(_) if is_busy() => Err(Refusal::retry_later(RefusalReason::Busy)),
///         Some(account) => Ok(Subscription::for_user(account.user).topic("drafts")),
///     }
/// }
/// # let _ = tower_sse::Hub::builder().build().unwrap().endpoint(access);
/// ```
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
    /// The subscription is invalid. Only the hub creates this refusal.
    Invalid(SubscriptionError),
    /// The access hook panicked. Only the hub creates this refusal.
    Panicked,
    /// There is no run to read, or the client has read all of it. Only the hub creates this
    /// refusal.
    NoRun,
    /// The hub cannot resume from the client's cursor: it is of a run that the hub does not have,
    /// or the stream is bare, so that it could not report the gap. Only the hub creates this
    /// refusal.
    Unresumable,
}

impl Refusal {
    pub(crate) const NO_RUN: Self = Self(Kind::NoRun);
    /// Refuses with `401`: the client must sign in first. Browsers do not retry.
    #[doc(alias = "login")]
    #[must_use]
    pub fn unauthorized() -> Self {
        Self(Kind::Unauthorized)
    }

    /// Refuses with `403`: the client has no permission. Return the same refusal for a topic that
    /// does not exist, so that a client cannot learn which topics exist. Browsers do not retry.
    #[must_use]
    pub fn forbidden() -> Self {
        Self(Kind::Forbidden)
    }

    /// Refuses with `200` and `hub.refused`: the client should retry after a random time of one to
    /// three times [`HubBuilder::retry`](crate::HubBuilder::retry), or after the time that
    /// [`retry`](Self::retry) sets.
    ///
    /// For a [bare](crate::Subscription::bare) stream, the hub refuses without `hub.refused`.
    #[doc(alias = "later")]
    #[must_use]
    pub fn retry_later(reason: RefusalReason) -> Self {
        Self(Kind::RetryLater { reason, retry: None })
    }

    /// Refuses with `204`: the client should never reconnect. Browsers do not retry.
    #[doc(alias = "never")]
    #[must_use]
    pub fn gone() -> Self {
        Self(Kind::Gone)
    }

    pub(crate) const UNRESUMABLE: Self = Self(Kind::Unresumable);

    pub(crate) fn invalid(invalid: SubscriptionError) -> Self {
        Self(Kind::Invalid(invalid))
    }

    /// Refuses a request whose authorization may be outdated, or whose topic change could not be
    /// sent to another instance. The client retries.
    pub(crate) fn outdated() -> Self {
        Self::retry_later(RefusalReason::Disconnected)
    }

    /// Sets the time after which the client should retry, for [`retry_later`](Self::retry_later).
    /// The hub adds up to half of this time, at random, so that clients that were refused together
    /// do not all retry at once. It clamps the sum to 0.1 s to 1 h. Has no effect on other
    /// refusals.
    #[must_use]
    pub fn retry(mut self, after: Duration) -> Self {
        if let Kind::RetryLater { retry, .. } = &mut self.0 {
            *retry = Some(after);
        }
        self
    }
}
