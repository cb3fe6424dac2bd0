//! Creates tickets, takes them for requests, and puts them back.
//!
//! The mounts that take an access hook put a taken ticket back at the end of its request, unless
//! the request succeeded ([`Redemption`]). In a handler, only [`Hub::respond`] puts a ticket back,
//! if it refuses.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use smallvec::SmallVec;

use super::store::{LONGEST, Waiting, text};
use crate::hub::Hub;
use crate::hub::connection::bans::Rejection;
use crate::hub::tasks::back_off::can_wait;
use crate::log::millis;
use crate::sync::Mutex;
use crate::types::RefusalReason;
use crate::types::{DisconnectClock, Expiry, Redeemed, Refusal, Subscription, SubscriptionError};

/// The minimum lifetime of a ticket.
const SHORTEST: Duration = Duration::from_secs(1);

/// A secret that opens one stream, returned by [`Hub::ticket`].
///
/// Its text has 32 characters of `[0-9a-f]`: 128 random bits from the operating system. A ticket
/// serializes as its text. `Debug` omits the text and `Display` is not implemented, so that logs do
/// not contain the secret.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let hub = tower_sse::Hub::builder().build()?;
/// use std::time::Duration;
/// use tower_sse::Subscription;
///
/// let ticket = hub.ticket(Subscription::for_user("ada"), Duration::from_secs(10)).await?;
/// let url = format!("/events?ticket={}", ticket.as_str());
/// assert_eq!(format!("{ticket:?}"), "Ticket"); // logs do not contain the secret
/// # assert_eq!(url.len(), "/events?ticket=".len() + 32);
/// # Ok(()) }
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct Ticket(Box<str>);

impl Ticket {
    /// Returns the text of the ticket, for the query parameter `ticket`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Ticket")
    }
}

impl serde::Serialize for Ticket {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl Hub {
    /// Creates a ticket for a stream with this subscription, for clients that cannot send cookies
    /// or headers.
    ///
    /// Return the ticket to the page in the response to an authenticated request. The page then
    /// opens `/events?ticket=…` at once.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let hub = tower_sse::Hub::builder().build()?;
    /// use std::time::Duration;
    /// use tower_sse::Subscription;
    ///
    /// let subscription = Subscription::for_user("ada").topic("news");
    /// let ticket = hub.ticket(subscription, Duration::from_secs(10)).await?;
    /// assert_eq!(ticket.as_str().len(), 32);
    /// # Ok(()) }
    /// ```
    ///
    /// A ticket opens one stream within `ttl`, which must be at least one second and at most one
    /// hour. A few seconds are enough. A request to the layer or the endpoint that receives no
    /// stream does not use up the ticket. The access hook gets the subscription from
    /// [`Hub::redeem`]. The time of [`Subscription::expires_in`](crate::Subscription::expires_in)
    /// starts when the ticket is created. [`Target::disconnect`](crate::Target::disconnect) of the
    /// user, of one of the topics or of everyone of its scope voids the ticket.
    ///
    /// A browser's `EventSource` reconnects with the same URL, whose ticket is already used. The
    /// hub responds with `401`, and the browser gives up: in the page's `onerror`, the
    /// `EventSource` has the state `CLOSED`. The page then requests another ticket, and opens a new
    /// stream with it and `last_event_id`. `docs/guide/authorization.md` has the script.
    ///
    /// A ticket does not carry values of
    /// [`Subscription::extension`](crate::Subscription::extension), because they cannot be sent to
    /// another instance. With several instances, any instance can redeem a ticket. The clocks of
    /// the machines then decide whether a disconnect was later than the ticket. The broker stores
    /// the subscription under a hash of the ticket, so read access to the broker is not enough to
    /// redeem a ticket.
    ///
    /// Cancel safety: without a shared log, the future never waits. With a shared log, a dropped
    /// future may have created a ticket that no client can use.
    ///
    /// # Errors
    ///
    /// Returns an error in these cases:
    ///
    /// - The subscription has an invalid name, too many topics, or data that is too large or cannot
    ///   be serialized.
    /// - `ttl` is out of its range.
    /// - Too many tickets of this instance are unredeemed: 65,536 in total, or 64 of the user or
    ///   key of the subscription.
    /// - The operating system returns no random bytes.
    /// - With a shared log, the broker is unavailable, or the future is polled outside of a tokio
    ///   runtime.
    pub async fn ticket(&self, mut subscription: Subscription, ttl: Duration) -> Result<Ticket, SubscriptionError> {
        self.check(&subscription)?;
        if subscription.run.is_some() {
            // Another instance could not look the run up when it redeems the ticket.
            return Err(SubscriptionError::TICKET_FOR_RUN);
        }
        if !(SHORTEST..=LONGEST).contains(&ttl) {
            return Err(SubscriptionError::TICKET_TIME);
        }
        if !subscription.extensions.is_empty() {
            self.counters().ticket_without_extensions(self.now());
            subscription.extensions = http::Extensions::new();
        }
        if let Some(Expiry::In(time)) = subscription.expiry {
            subscription.expiry = SystemTime::now().checked_add(time).map(Expiry::At);
        }
        let secret = crate::hub::inner::random_bits().map_err(|_| SubscriptionError::NO_RANDOM_BYTES)?;
        if let Some(shared) = &self.inner.shared_log {
            self.make_shared(shared, secret, &subscription, ttl).await?;
            return Ok(Ticket(text(secret).into()));
        }
        let now = self.now();
        let over_at = now.saturating_add(millis(ttl));
        self.inner.tickets.put(secret, Waiting::here(subscription, DisconnectClock::now(), over_at), now)?;
        Ok(Ticket(text(secret).into()))
    }

    /// Takes a ticket. Returns [`Refusal::unauthorized`] if the ticket is unknown, used, expired or
    /// voided. With a shared log, returns a retryable refusal if the broker is unavailable.
    pub(crate) async fn take_ticket(&self, text: &str) -> Result<Taken, Refusal> {
        let is_canonical = text.len() == 32 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        let secret = u128::from_str_radix(text, 16).ok().filter(|_| is_canonical).ok_or(Refusal::unauthorized())?;
        if self.inner.shared_log.is_some() {
            return self.take_shared(secret).await;
        }
        let now = self.now();
        let waiting = self.inner.tickets.take(secret, now).ok_or(Refusal::unauthorized())?;
        let (mut subscription, made_at) = waiting.kept.ok_or(Refusal::unauthorized())?;
        // A disconnect after the creation of the ticket voids it.
        let addresses = crate::hub::stream::admission::addresses(&subscription);
        if self.inner.bans.rejection(&addresses, made_at, now) == Some(Rejection::Outdated) {
            return Err(Refusal::unauthorized());
        }
        // The subscription may expire before the ticket.
        if subscription.expiry.is_some_and(|expiry| expiry.remaining().is_zero()) {
            return Err(Refusal::unauthorized());
        }
        let redeemed = Redeemed { secret, made_at, deposited_at: None, over_at: waiting.over_at };
        subscription.redeemed = Some(Box::new(redeemed));
        Ok(Taken::new(self, subscription))
    }

    /// Takes a ticket from the broker.
    ///
    /// The request to the broker runs in a spawned task, because the caller's future may be dropped
    /// before the broker has answered. The task then drops its unused result, which puts the ticket
    /// back. Otherwise the ticket would be lost.
    async fn take_shared(&self, secret: u128) -> Result<Taken, Refusal> {
        if !can_wait() {
            return Err(Refusal::retry_later(RefusalReason::Starting));
        }
        let hub = self.clone();
        let taken = tokio::spawn(async move {
            let shared = hub.inner.shared_log.as_ref().ok_or(Refusal::retry_later(RefusalReason::Starting))?;
            hub.fetch_shared(shared, secret).await.map(|subscription| Taken::new(&hub, subscription))
        });
        taken.await.unwrap_or(Err(Refusal::retry_later(RefusalReason::Starting)))
    }

    /// Puts the ticket of a request that did not succeed back, so that the client can retry with
    /// the same URL.
    pub(super) fn give_back(&self, subscription: &Subscription) {
        let Some(redeemed) = subscription.redeemed.as_deref().copied() else { return };
        let subscription = Subscription { redeemed: None, ..subscription.clone() };
        if let Some(made_at) = redeemed.deposited_at {
            return self.give_back_shared(redeemed, made_at, subscription);
        }
        let Redeemed { secret, made_at, over_at, .. } = redeemed;
        self.inner.tickets.put_back(secret, Waiting::here(subscription, made_at, over_at), self.now());
    }
}

/// A ticket that was taken. Dropping this value puts the ticket back, unless the ticket was spent.
pub(crate) struct Taken {
    hub: Hub,
    /// `None` once the ticket is spent.
    subscription: Option<Subscription>,
}

impl Taken {
    pub(super) fn new(hub: &Hub, subscription: Subscription) -> Self {
        Self { hub: hub.clone(), subscription: Some(subscription) }
    }

    /// Returns the ticket from which a subscription came, or `None` if it did not come from a
    /// ticket.
    pub(crate) fn of(hub: &Hub, subscription: &Subscription) -> Option<Self> {
        subscription.redeemed.as_ref().map(|_| Self::new(hub, subscription.clone()))
    }

    /// Marks the ticket as used, so that it is not put back. Returns its subscription.
    pub(crate) fn spend(mut self) -> Option<Subscription> {
        self.subscription.take()
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        if let Some(subscription) = self.subscription.take() {
            self.hub.give_back(&subscription);
        }
    }
}

/// The tickets that one request redeems. Dropping this value puts the tickets back, unless they
/// were spent.
pub(crate) struct Redemption(Arc<Redemptions>);

/// The list to which a [`StreamRequest`](crate::StreamRequest) adds the tickets that its hook
/// redeems. `None` after the end of the request.
pub(crate) struct Redemptions(Mutex<Option<SmallVec<[Taken; 1]>>>);

impl Redemption {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Redemptions(Mutex::new(Some(SmallVec::new())))))
    }

    pub(crate) fn redemptions(&self) -> Arc<Redemptions> {
        Arc::clone(&self.0)
    }

    /// Marks the tickets as used, because the request succeeded.
    pub(crate) fn spend(self) {
        let taken = self.0.0.lock().take();
        taken.into_iter().flatten().for_each(|taken| drop(taken.spend()));
    }
}

impl Drop for Redemption {
    fn drop(&mut self) {
        // Take the list first, so that the tickets are dropped after the lock is released.
        let taken = self.0.0.lock().take();
        drop(taken);
    }
}

impl Redemptions {
    /// Adds a ticket that a hook has redeemed, and returns its subscription. If the request has
    /// ended, puts the ticket back and returns `None`.
    pub(crate) fn note(&self, taken: Taken) -> Option<Subscription> {
        let mut open = self.0.lock();
        let tickets = open.as_mut()?;
        let subscription = taken.subscription.clone();
        tickets.push(taken);
        subscription
    }
}
