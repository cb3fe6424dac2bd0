//! Redeeming the tickets of requests.

use super::StreamRequest;
use crate::hub::Hub;
#[cfg(doc)]
use crate::types::RefusalReason;
use crate::types::{Refusal, Subscription};

impl StreamRequest {
    /// Returns whether the query has a field `ticket`.
    #[must_use]
    pub fn has_ticket(&self) -> bool {
        self.query_values("ticket").next().is_some()
    }
}

impl Hub {
    /// Redeems the request's `?ticket=` in an access hook, and returns the subscription of the
    /// ticket. A ticket is valid for one request.
    ///
    /// A ticket is older than the request, so later changes apply: the subscription's own expiry,
    /// [`Target::disconnect`](crate::Target::disconnect), and
    /// [`Access::recheck`](crate::Access::recheck), which layer and endpoint call before the stream
    /// opens. A handler that calls this method has to check the permissions itself.
    ///
    /// ```
    /// use tower_sse::{Access, Hub, Recheck, Refusal, StreamRequest, Subscription};
    ///
    /// struct Tickets {
    ///     hub: Hub,
    /// }
    ///
    /// impl Access for Tickets {
    ///     async fn authorize(&self, request: StreamRequest) -> Result<Subscription, Refusal> {
    ///         self.hub.redeem(&request).await
    ///     }
    ///     async fn recheck(&self, subscription: Subscription) -> Recheck {
    ///         // Query the database here: is the user still permitted?
    ///         if subscription.user().is_some() { Recheck::Keep } else { Recheck::End(Refusal::forbidden()) }
    ///     }
    /// }
    /// ```
    ///
    /// A ticket opens one stream. If layer or endpoint call the hook and the request receives no
    /// stream, the hub gives the ticket back: for example because the hook refuses or takes too
    /// long, a limit is reached, or the client disconnects. So the hub admits a browser that
    /// reconnects with the same URL after `hub.refused`. In a handler only [`Hub::respond`] gives a
    /// ticket back, if it refuses. Each request to [change
    /// topics](crate::SseLayer::allow_topic_changes) needs a separate ticket, which is spent when
    /// the topics have changed.
    ///
    /// With several instances, the hub gives a ticket back by storing it at the broker again, for
    /// the rest of its lifetime. If the broker or the process fails at that moment, the ticket is
    /// lost, and the page has to request another.
    ///
    /// Cancel safety: on one instance the future never waits. If the future is dropped while a
    /// broker answers, the ticket is given back.
    ///
    /// # Errors
    ///
    /// [`Refusal::unauthorized`] if the query has no ticket, or if the ticket is unknown, spent,
    /// void or expired. [`Refusal::retry_later`] with the reason
    /// [`Starting`](RefusalReason::Starting) if the broker of a shared log does not answer.
    pub async fn redeem(&self, request: &StreamRequest) -> Result<Subscription, Refusal> {
        let ticket = request.query_values("ticket").next().ok_or(Refusal::unauthorized())?;
        let taken = self.take_ticket(&ticket).await?;
        let subscription = match &request.redemptions {
            Some(redemptions) => redemptions.note(taken),
            None => taken.spend(),
        };
        subscription.ok_or(Refusal::unauthorized())
    }
}
