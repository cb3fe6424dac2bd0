//! Tickets that a broker stores, so that any instance can redeem them.
//!
//! The key of a ticket contains its secret. An adapter for a broker stores only a hash of the key,
//! so read access to the broker is not enough to redeem a ticket.

use std::time::{Duration, SystemTime};

use bytes::Bytes;

use super::record::{self, Times};
use super::store::{Waiting, text};
use crate::backplane::in_time;
use crate::hub::Hub;
use crate::hub::cluster::shared_log::SharedLog;
use crate::hub::tasks::back_off::can_wait;
use crate::hub::tasks::workers;
use crate::log::millis;
use crate::types::{DisconnectClock, Redeemed, Refusal, RefusalReason, Subscription, SubscriptionError};

impl Hub {
    /// Counts a new ticket on this instance and stores it on the broker.
    pub(super) async fn make_shared(
        &self,
        shared: &SharedLog,
        secret: u128,
        subscription: &Subscription,
        ttl: Duration,
    ) -> Result<(), SubscriptionError> {
        if !can_wait() {
            return Err(SubscriptionError::NO_RUNTIME);
        }
        let now = self.now();
        let waiting = Waiting::elsewhere(subscription, now.saturating_add(millis(ttl)));
        self.inner.tickets.put(secret, waiting, now)?;
        let stored = self.deposit_ticket(shared, secret, subscription, SystemTime::now(), ttl).await;
        if stored.is_err() {
            // The broker may have stored the ticket, but the caller does not receive its secret.
            self.inner.tickets.take(secret, now);
        }
        stored
    }

    /// Stores a ticket on the broker within the publish timeout.
    async fn deposit_ticket(
        &self,
        shared: &SharedLog,
        secret: u128,
        subscription: &Subscription,
        made_at: SystemTime,
        ttl: Duration,
    ) -> Result<(), SubscriptionError> {
        let times = Times { made_at, over_at: SystemTime::now() + ttl };
        let bytes = Bytes::from(record::encode(subscription, times));
        let request = shared.backplane.put_once(&key(secret), bytes, ttl);
        in_time(self.settings().publish_timeout, request).await.map_err(|_| SubscriptionError::UNAVAILABLE)
    }

    /// Takes the subscription of a ticket from the broker. Returns a retryable refusal if the
    /// broker does not answer, and [`Refusal::unauthorized`] if the ticket is not valid.
    pub(super) async fn fetch_shared(&self, shared: &SharedLog, secret: u128) -> Result<Subscription, Refusal> {
        let taken = in_time(self.settings().publish_timeout, shared.backplane.take(&key(secret))).await;
        taken
            .map_err(|_| Refusal::retry_later(RefusalReason::Starting))?
            .and_then(|bytes| self.read_shared(secret, &bytes))
            .ok_or(Refusal::unauthorized())
    }

    /// Decodes the subscription of a ticket, and removes the ticket from the count of this
    /// instance. Returns `None` if the subscription cannot be decoded, if the ticket or the
    /// subscription has expired, or if a disconnect has voided the ticket.
    fn read_shared(&self, secret: u128, bytes: &[u8]) -> Option<Subscription> {
        let (mut subscription, times) = record::decode(bytes)?;
        self.inner.tickets.take(secret, self.now());
        let remaining = times.over_at.duration_since(SystemTime::now()).ok()?;
        if subscription.expiry.is_some_and(|expiry| expiry.remaining().is_zero()) {
            return None;
        }
        // A disconnect after the creation of the ticket voids it.
        let addresses = crate::hub::stream::admission::addresses(&subscription);
        if self.inner.bans.any_since(&addresses, times.made_at) {
            return None;
        }
        let over_at = self.now().saturating_add(millis(remaining));
        let (made_at, deposited_at) = (DisconnectClock::now(), Some(times.made_at));
        subscription.redeemed = Some(Box::new(Redeemed { secret, made_at, deposited_at, over_at }));
        Some(subscription)
    }

    /// Stores a ticket on the broker again for the rest of its lifetime. Keeps the ticket's time of
    /// creation, so that a disconnect since then voids the ticket.
    pub(super) fn give_back_shared(&self, redeemed: Redeemed, made_at: SystemTime, subscription: Subscription) {
        let Redeemed { secret, over_at, .. } = redeemed;
        let now = self.now();
        let remaining = Duration::from_millis(over_at.saturating_sub(now));
        let Some(runtime) = workers::home(&*self.inner) else { return };
        if remaining.is_zero() {
            return;
        }
        // The ticket now counts on this instance.
        self.inner.tickets.put_back(secret, Waiting::elsewhere(&subscription, over_at), now);
        let hub = self.clone();
        runtime.spawn(async move {
            if let Some(shared) = &hub.inner.shared_log {
                // After an error the ticket is lost, and the client has to request another ticket.
                let _ = hub.deposit_ticket(shared, secret, &subscription, made_at, remaining).await;
            }
        });
    }
}

/// Returns the key of a ticket on the broker.
fn key(secret: u128) -> String {
    format!("ticket:{}", text(secret))
}
