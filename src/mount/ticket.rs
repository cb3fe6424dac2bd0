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
    /// Redeems the ticket in the query field `ticket` of the request, and returns the subscription
    /// of the ticket. Call this method in an access hook, or in a handler before [`Hub::respond`].
    ///
    /// A ticket is older than the request, so the hub also applies later changes. A ticket whose
    /// subscription has expired, or that [`Target::disconnect`](crate::Target::disconnect) has
    /// voided, is refused. Layer and endpoint call [`Access::recheck`](crate::Access::recheck)
    /// before the stream opens. A handler that calls this method has to check the permissions
    /// itself.
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
    /// A ticket opens one stream. If layer or endpoint call the hook and the request opens no
    /// stream, the hub gives the ticket back, so that it can be redeemed again: for example because
    /// the hook refuses or takes too long, a limit is reached, or the client disconnects. So a
    /// browser can reconnect with the same URL after `hub.refused`. In a handler, only
    /// [`Hub::respond`] gives a ticket back, if it opens no stream. If the access hook requires a
    /// ticket, each request to [change topics](crate::SseLayer::allow_topic_changes) needs a
    /// separate ticket, which is spent if the request succeeds.
    ///
    /// With several instances, the hub gives a ticket back by storing it at the broker again, for
    /// the rest of its lifetime. If the broker or the process fails at that moment, the ticket is
    /// lost, and the client has to request another ticket.
    ///
    /// Cancel safety: without a shared log, the future never waits. If the future is dropped before
    /// the broker has answered, the hub gives the ticket back.
    ///
    /// # Errors
    ///
    /// Returns [`Refusal::unauthorized`] if the query has no ticket, or if the ticket is unknown,
    /// spent, void or expired. With a shared log, returns [`Refusal::retry_later`] with the reason
    /// [`Starting`](RefusalReason::Starting) if the broker fails or does not answer, or if the
    /// future is polled outside of a tokio runtime.
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
