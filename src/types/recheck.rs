//! What is asked about an open stream, and the answers.

use std::sync::Arc;

use futures::future::BoxFuture;

use super::refusal::Refusal;
use super::subscription::Subscription;

/// The answer of [`Access::recheck`](crate::Access::recheck) about an open stream.
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
pub enum Recheck {
    /// The stream stays as it is. The hub asks again after the next interval.
    Keep,
    /// The stream stays, with no more than this subscription.
    ///
    /// The stream leaves at once each topic that the subscription neither has nor [lets
    /// join](Subscription::may_join), and the waiting events of such a topic are dropped. An expiry
    /// replaces the old one, so this is also the way to renew an open stream. The subscription adds
    /// nothing that the stream does not have. With another user, or none, the stream ends. The hub
    /// asks again after the next interval.
    ///
    /// A [ticket](crate::Hub::ticket) that is redeemed is narrowed in the same way. Its page may
    /// then [join](Subscription::may_join) the topics that both the ticket and this subscription
    /// allow.
    Narrow(Subscription),
    /// The stream ends at once.
    ///
    /// After [`Refusal::retry_later`] the client reconnects at that time, and after
    /// [`Refusal::gone`] not for a day. After the other refusals the client reconnects, and the
    /// hook decides about the request as about every other.
    End(Refusal),
    /// The stream stays as it is. The hub does not ask about it again.
    Settled,
}

/// Who can be asked about an open stream.
pub(crate) trait Authority: Send + Sync {
    fn recheck(self: Arc<Self>, subscription: Subscription) -> BoxFuture<'static, Recheck>;
}
