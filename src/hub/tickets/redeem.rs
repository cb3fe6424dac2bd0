//! Making tickets, taking them, and giving them back.
//!
//! A ticket that was taken is given back when its request is over, unless the request got what it
//! asked for ([`Taken`]).

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

const SHORTEST: Duration = Duration::from_secs(1);
/// A secret that opens one stream, once, returned by [`Hub::ticket`]. It has 32 characters of
/// `[0-9a-f]`, which are 128 bits from the operating system.
///
/// No log shows it: `Debug` leaves the text out, and there is no `Display`. A ticket serializes as
/// its text.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let hub = tower_sse::Hub::builder().build()?;
/// use std::time::Duration;
/// use tower_sse::Subscription;
///
/// let ticket = hub.ticket(Subscription::for_user("ada"), Duration::from_secs(10)).await?;
/// let url = format!("/events?ticket={}", ticket.as_str());
/// assert_eq!(format!("{ticket:?}"), "Ticket"); // a log does not reveal it
/// # assert_eq!(url.len(), "/events?ticket=".len() + 32);
/// # Ok(()) }
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct Ticket(Box<str>);

impl Ticket {
    /// Returns the text of the ticket, for the query field `ticket`.
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
    /// Makes a ticket for a stream of this subscription, for clients that cannot send cookies or
    /// headers. Return the ticket to the page in the response to an authenticated request. The page
    /// then opens `/events?ticket=…` at once.
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
    /// A ticket opens one stream within `ttl`, between a second and an hour; seconds are enough. A
    /// request that gets no stream does not use the ticket up. The access hook takes the
    /// subscription with [`Hub::redeem`]. An expiry of the subscription counts from now.
    /// [`Target::disconnect`](crate::Target::disconnect) of its user or of one of its topics voids
    /// the ticket.
    ///
    /// A browser's `EventSource` reconnects with the same URL, whose ticket is spent. The request
    /// gets `401`, the browser gives up, and the page's `onerror` finds the `EventSource` in the
    /// state `CLOSED`. The page then requests another ticket, and opens a new stream with it and
    /// `last_event_id`. `docs/guide/authorization.md` has the script.
    ///
    /// Values that [`Subscription::extension`](crate::Subscription::extension) attached are
    /// dropped, because a ticket carries only values that can travel to another instance. With
    /// several instances any instance redeems a ticket. The clocks of the machines then decide
    /// whether a disconnect came after the ticket. The broker stores the subscription under a hash
    /// of the ticket, so read access to the broker is not enough to redeem it.
    ///
    /// Cancel safety: on one instance it never waits. With several instances a dropped future may
    /// have made a ticket that is never used.
    ///
    /// # Errors
    /// When the subscription's names or size are invalid, `ttl` is out of its range, too many
    /// tickets wait (65,536 in all, or 64 of this user or key), or the operating system gives no
    /// random bytes. With a shared log also when the broker is unavailable, or when there is no
    /// tokio runtime to wait for it in.
    pub async fn ticket(&self, mut subscription: Subscription, ttl: Duration) -> Result<Ticket, SubscriptionError> {
        self.check(&subscription)?;
        if !(SHORTEST..=LONGEST).contains(&ttl) {
            return Err(SubscriptionError::TICKET_TIME);
        }
        subscription.extensions = http::Extensions::new();
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

    /// Takes the subscription that a ticket stands for.
    pub(crate) async fn take_ticket(&self, text: &str) -> Result<Taken, Refusal> {
        let canonical = text.len() == 32 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        let secret = u128::from_str_radix(text, 16).ok().filter(|_| canonical).ok_or(Refusal::unauthorized())?;
        if self.inner.shared_log.is_some() {
            return self.take_shared(secret).await;
        }
        let now = self.now();
        let waiting = self.inner.tickets.take(secret, now).ok_or(Refusal::unauthorized())?;
        let (mut subscription, made_at) = waiting.kept.ok_or(Refusal::unauthorized())?;
        // A user who was disconnected since needs a new one.
        let addresses = crate::hub::stream::admission::addresses(&subscription);
        if self.inner.bans.rejection(&addresses, made_at, now) == Some(Rejection::Outdated) {
            return Err(Refusal::unauthorized());
        }
        // The subscription's own time may have ended before the ticket's.
        if subscription.expiry.is_some_and(|expiry| expiry.remaining().is_zero()) {
            return Err(Refusal::unauthorized());
        }
        let redeemed = Redeemed { secret, made_at, deposited_at: None, over_at: waiting.over_at };
        subscription.redeemed = Some(Box::new(redeemed));
        Ok(Taken::new(self, subscription))
    }

    /// Takes it from the broker, in a task of its own: a request that is dropped while the broker answers
    /// must not lose the ticket. An answer that the request does not take is dropped, and so gives the ticket back.
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

    /// Makes a ticket good again whose request got nothing: its client comes back with the same URL.
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

/// A ticket that was taken. It is given back when this is dropped, unless it is spent.
pub(crate) struct Taken {
    hub: Hub,
    /// None once it is spent.
    subscription: Option<Subscription>,
}

impl Taken {
    pub(super) fn new(hub: &Hub, subscription: Subscription) -> Self {
        Self { hub: hub.clone(), subscription: Some(subscription) }
    }

    /// The ticket that a subscription came from, if it came from one.
    pub(crate) fn of(hub: &Hub, subscription: &Subscription) -> Option<Self> {
        subscription.redeemed.as_ref().map(|_| Self::new(hub, subscription.clone()))
    }

    /// The ticket has opened a stream, or is another one's responsibility. Returns what it stands for.
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

/// The tickets that one request redeems. They are given back when this is dropped, unless they are spent.
pub(crate) struct Redemption(Arc<Redemptions>);

/// Where a request's [`StreamRequest`](crate::StreamRequest) leaves the tickets that its hook redeems. None when
/// the request is over.
pub(crate) struct Redemptions(Mutex<Option<SmallVec<[Taken; 1]>>>);

impl Redemption {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Redemptions(Mutex::new(Some(SmallVec::new())))))
    }

    pub(crate) fn redemptions(&self) -> Arc<Redemptions> {
        Arc::clone(&self.0)
    }

    /// The request got what it asked for.
    pub(crate) fn spend(self) {
        let taken = self.0.0.lock().take();
        taken.into_iter().flatten().for_each(|taken| drop(taken.spend()));
    }
}

impl Drop for Redemption {
    fn drop(&mut self) {
        // Not under the lock.
        let taken = self.0.0.lock().take();
        drop(taken);
    }
}

impl Redemptions {
    /// Notes a ticket that a hook has redeemed, and returns what it stands for. None if the request is over: then the
    /// ticket is given back.
    pub(crate) fn note(&self, taken: Taken) -> Option<Subscription> {
        let mut open = self.0.lock();
        let taken_of_request = open.as_mut()?;
        let subscription = taken.subscription.clone();
        taken_of_request.push(taken);
        subscription
    }
}
