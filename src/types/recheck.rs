//! What is asked about an open stream, and the answers.

use std::sync::Arc;

use futures::future::BoxFuture;

use super::refusal::Refusal;
use super::subscription::Subscription;

/// What [`Access::recheck`](crate::Access::recheck) says of a stream that is open.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Recheck {
    /// It stays as it is. Ask again after the next interval.
    Keep,
    /// It stays, with no more than this: topics that it does not have, nor [lets
    /// join](Subscription::may_join), are left at once, and so is what waits of them; its expiry,
    /// if it has one, takes the place of the old one, so this is also how an open stream is
    /// renewed. What is in it beyond what the stream has is not added. With another user, or none,
    /// the stream ends. Ask again after the next interval.
    ///
    /// A [ticket](crate::Hub::ticket) that is redeemed is narrowed in the same way. Its page may then
    /// [join](Subscription::may_join) the topics that both the ticket and this subscription allow.
    Narrow(Subscription),
    /// It ends at once. After [`Refusal::retry_later`] the client comes back then, after [`Refusal::gone`] not for a day;
    /// after the others it comes back, and the hook answers it as it does every request.
    End(Refusal),
    /// It stays as it is, and need not be asked about again.
    Settled,
}

/// Who can be asked about an open stream.
pub(crate) trait Authority: Send + Sync {
    fn recheck(self: Arc<Self>, subscription: Subscription) -> BoxFuture<'static, Recheck>;
}
