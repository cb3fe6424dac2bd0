//! The periodic re-authorization of open streams.

use std::sync::Arc;

use futures::future::BoxFuture;

use super::refusal::Refusal;
use super::subscription::Subscription;

/// The result of [`Access::recheck`](crate::Access::recheck) for an open stream.
///
/// ```
/// use tower_sse::{Recheck, Refusal, Subscription};
///
/// fn recheck(stream: Subscription, is_signed_in: bool, is_editor: bool) -> Recheck {
///     match (is_signed_in, is_editor) {
///         (false, _) => Recheck::End(Refusal::unauthorized()),
///         (true, false) => Recheck::Narrow(stream.retain_topics(|topic| topic.as_str() != "drafts")),
///         (true, true) => Recheck::Keep,
///     }
/// }
/// # let _ = recheck;
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
#[allow(clippy::large_enum_variant, reason = "a value exists for a moment, once for each recheck of a stream")]
pub enum Recheck {
    /// The stream stays as it is. The hub calls the hook again after the next interval.
    Keep,
    /// The stream stays open, with at most the permissions of this subscription.
    ///
    /// The stream leaves at once each topic that the subscription neither has nor allows to
    /// [join](Subscription::may_join), and the hub drops the waiting events of such a topic. The
    /// hub ignores topics of the subscription that the stream does not have. An expiry of the
    /// subscription replaces the expiry of the stream, so an application can renew an open stream.
    /// If the subscription and the stream do not have the same user and the same
    /// [scope](Subscription::in_scope), the stream ends. The hub calls the hook again after the
    /// next interval.
    ///
    /// The hub also narrows a [ticket](crate::Hub::ticket) in this way when it is redeemed. The
    /// page may then [join](Subscription::may_join) the topics that both the ticket and this
    /// subscription allow.
    Narrow(Subscription),
    /// The stream ends at once.
    ///
    /// After [`Refusal::retry_later`] the client reconnects after the time of the refusal.
    /// [`Refusal::gone`] bans the client for a day. After other refusals the client reconnects, and
    /// the access hook authorizes the request like any other.
    End(Refusal),
    /// The stream stays as it is. The hub does not call the hook for it again.
    Settled,
}

/// The access hook of one mount, which rechecks open streams.
pub(crate) trait Authority: Send + Sync {
    fn recheck(self: Arc<Self>, subscription: Subscription) -> BoxFuture<'static, Recheck>;
}
