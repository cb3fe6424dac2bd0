//! Tickets in requests.

use super::Connect;
use crate::hub::Hub;
use crate::refusal::Refusal;
use crate::subscription::Subscription;

impl Connect {
    /// Whether the query has a field `ticket`.
    #[must_use]
    pub fn has_ticket(&self) -> bool {
        self.query_values("ticket").next().is_some()
    }
}

impl Hub {
    /// In an access hook: takes the subscription that the request's `?ticket=` stands for. Each is good for one request.
    ///
    /// A ticket is older than the request, so what has changed since counts: the subscription's own expiry,
    /// [`Target::disconnect`](crate::Target::disconnect), and [`Access::recheck`](crate::Access::recheck), which layer and
    /// endpoint ask about it before the stream opens. A handler that calls this itself looks for itself.
    ///
    /// ```
    /// use tower_sse::{Access, Connect, Hub, Recheck, Refusal, Subscription};
    ///
    /// struct Tickets {
    ///     hub: Hub,
    /// }
    ///
    /// impl Access for Tickets {
    ///     async fn connect(&self, connect: Connect) -> Result<Subscription, Refusal> {
    ///         self.hub.redeem(&connect).await
    ///     }
    ///     async fn recheck(&self, subscription: Subscription) -> Recheck {
    ///         // Is the user still allowed to? Ask the database here.
    ///         if subscription.user_id().is_some() { Recheck::Keep } else { Recheck::End(Refusal::forbidden()) }
    ///     }
    /// }
    /// ```
    ///
    /// A ticket that was taken is good again if the request is told to come back. Each request to
    /// [change topics](crate::SseLayer::changeable) needs one of its own.
    ///
    /// Cancel safety: on one instance it never waits. If the request is dropped, the ticket is spent.
    ///
    /// # Errors
    /// [`Refusal::login`] where there is no ticket, or one that is unknown, spent, void or over: the same for all.
    pub async fn redeem(&self, connect: &Connect) -> Result<Subscription, Refusal> {
        let ticket = connect.query_values("ticket").next().ok_or(Refusal::login())?;
        self.take_ticket(&ticket).await.ok_or(Refusal::login())
    }
}
