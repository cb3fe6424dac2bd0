//! Tickets on a broker, for whichever instance is asked.
//!
//! The adapter stores a hash of the key, which has the secret. So a reader of the broker cannot redeem a ticket.

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
        let deposited = self.deposit_ticket(shared, secret, subscription, SystemTime::now(), ttl).await;
        if deposited.is_err() {
            // It may be there all the same, but nobody is told of it.
            self.inner.tickets.take(secret, now);
        }
        deposited
    }

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
        let deposited = shared.backplane.put_once(&key(secret), bytes, ttl);
        in_time(self.settings().publish_timeout, deposited).await.map_err(|_| SubscriptionError::UNAVAILABLE)
    }

    /// Takes what a ticket stands for from the broker.
    pub(super) async fn fetch_shared(&self, shared: &SharedLog, secret: u128) -> Result<Subscription, Refusal> {
        let taken = in_time(self.settings().publish_timeout, shared.backplane.take(&key(secret))).await;
        taken
            .map_err(|_| Refusal::retry_later(RefusalReason::Starting))?
            .and_then(|bytes| self.read_shared(secret, &bytes))
            .ok_or(Refusal::unauthorized())
    }

    fn read_shared(&self, secret: u128, bytes: &[u8]) -> Option<Subscription> {
        let (mut subscription, times) = record::decode(bytes)?;
        self.inner.tickets.take(secret, self.now());
        let left = times.over_at.duration_since(SystemTime::now()).ok()?;
        if subscription.expiry.is_some_and(|expiry| expiry.remaining().is_zero()) {
            return None;
        }
        // A user who was disconnected since needs a new one.
        let addresses = crate::hub::stream::admission::addresses(&subscription);
        if self.inner.bans.any_since(&addresses, times.made_at) {
            return None;
        }
        let over_at = self.now().saturating_add(millis(left));
        let (made_at, deposited_at) = (DisconnectClock::now(), Some(times.made_at));
        subscription.redeemed = Some(Box::new(Redeemed { secret, made_at, deposited_at, over_at }));
        Some(subscription)
    }

    /// Deposits a ticket again for the rest of its time. It stays as old as it is, so that a disconnect
    /// meanwhile voids it.
    pub(super) fn give_back_shared(&self, redeemed: Redeemed, made_at: SystemTime, subscription: Subscription) {
        let Redeemed { secret, over_at, .. } = redeemed;
        let now = self.now();
        let left = Duration::from_millis(over_at.saturating_sub(now));
        let Some(runtime) = workers::home(&*self.inner) else { return };
        if left.is_zero() {
            return;
        }
        // From now on it counts here.
        self.inner.tickets.put_back(secret, Waiting::elsewhere(&subscription, over_at), now);
        let hub = self.clone();
        runtime.spawn(async move {
            if let Some(shared) = &hub.inner.shared_log {
                // If it is lost, the page asks for another.
                let _ = hub.deposit_ticket(shared, secret, &subscription, made_at, left).await;
            }
        });
    }
}

fn key(secret: u128) -> String {
    format!("ticket:{}", text(secret))
}
