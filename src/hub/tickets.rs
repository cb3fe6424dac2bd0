//! Subscriptions that wait to be fetched, once, by who knows a secret.

use std::collections::hash_map::HashMap;
use std::fmt;
#[cfg(feature = "json")]
use std::fmt::Write;
use std::time::{Duration, SystemTime};

#[cfg(feature = "json")]
use bytes::Bytes;
#[cfg(feature = "json")]
use sha2::{Digest, Sha256};
#[cfg(feature = "json")]
use tokio::time::timeout;

use super::Hub;
use super::bars::Objection;
#[cfg(feature = "json")]
use super::{housekeeping, remote::Remote};
use crate::log::{Millis, millis};
use crate::moment::Moment;
use crate::subscription::{Expiry, Redeemed, Subscription, SubscriptionError};
use crate::sync::Mutex;
#[cfg(feature = "json")]
use crate::ticket::{self, Times};

const SHORTEST: Duration = Duration::from_secs(1);
pub(super) const LONGEST: Duration = Duration::from_secs(3600);
/// How many tickets are looked through, at least, for those that are over, and how often that is done when they are too
/// many, in milliseconds.
const TIDY_AT: usize = 64;
const TIDY_EVERY: Millis = 100;

/// A secret that opens one stream, once: [`Hub::ticket`]. 32 characters of `[0-9a-f]`, 128 bits from the operating system.
///
/// It shows in no log: `Debug` leaves it out, and there is no `Display`. With the feature `json` it serialises as its text.
#[derive(Clone, PartialEq, Eq)]
pub struct Ticket(Box<str>);

impl Ticket {
    /// The text, for the query field `ticket`.
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

#[cfg(feature = "json")]
impl serde::Serialize for Ticket {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl Hub {
    /// Makes a ticket for a stream of this subscription, for clients that can send no cookies and no headers: hand it to
    /// the page over a request that is authenticated, and let it open `/events?ticket=…` at once.
    ///
    /// It is good for one stream within `ttl`, between a second and an hour; seconds are enough. A request that is told to
    /// come back does not use it up. The access hook
    /// fetches the subscription with [`Hub::redeem`]. An expiry of the subscription counts from now.
    /// [`Target::disconnect`](crate::Target::disconnect) of its user or of one of its topics voids it.
    ///
    /// A browser's `EventSource` reconnects with the same URL, and the ticket in it is spent: it gets `401`, gives up, and
    /// its `onerror` finds it `CLOSED`. The page then asks for another ticket and opens a new stream with it and
    /// `last_event_id`. `docs/guide/authorization.md` has the script.
    ///
    /// With several instances any of them redeems it; values that were attached with
    /// [`Subscription::extension`](crate::Subscription::extension) stay behind then, and whether a kick came after it is told
    /// by the clocks of the machines. The broker has what it stands for under a hash of it, so who reads there cannot redeem it.
    ///
    /// Cancel safety: on one instance it never waits. With several a dropped future may have made a ticket that nobody knows.
    ///
    /// # Errors
    /// When the broker is not there, or cannot be asked outside of a tokio runtime, the subscription's names or size are not allowed, `ttl` is out of its range, too many tickets wait, or the
    /// operating system gives no random bytes.
    pub async fn ticket(&self, mut subscription: Subscription, ttl: Duration) -> Result<Ticket, SubscriptionError> {
        self.check(&subscription)?;
        if !(SHORTEST..=LONGEST).contains(&ttl) {
            return Err(SubscriptionError::TicketTime);
        }
        if let Some(Expiry::In(time)) = subscription.expiry {
            subscription.expiry = SystemTime::now().checked_add(time).map(Expiry::At);
        }
        let secret = super::random_bits().map_err(|_| SubscriptionError::NoRandomBytes)?;
        if let Some(remote) = &self.inner.remote {
            self.make_shared(remote, secret, &subscription, ttl).await?;
            return Ok(Ticket(text(secret).into()));
        }
        let now = self.now();
        let over_at = now.saturating_add(millis(ttl));
        self.inner.tickets.put(secret, Waiting { kept: Some((subscription, Moment::now())), over_at }, now)?;
        Ok(Ticket(text(secret).into()))
    }

    /// Takes what a ticket stands for; none if it is no ticket, spent, or over.
    pub(crate) async fn take_ticket(&self, text: &str) -> Option<Subscription> {
        let canonical = text.len() == 32 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        let secret = u128::from_str_radix(text, 16).ok().filter(|_| canonical)?;
        if let Some(remote) = &self.inner.remote {
            return self.withdraw_ticket(remote, secret).await;
        }
        let now = self.now();
        let Waiting { kept, over_at } = self.inner.tickets.take(secret, now)?;
        let (mut subscription, made_at) = kept?;
        // Who was disconnected since needs a new one.
        let objection = self.inner.bars.lock().objection(&super::open::addresses(&subscription), made_at, now);
        if objection == Some(Objection::Outdated) {
            return None;
        }
        // Its own time may have ended before the ticket's.
        if subscription.expiry.is_some_and(|expiry| expiry.remaining().is_zero()) {
            return None;
        }
        subscription.redeemed = Some(Redeemed { secret, made_at, deposited_at: None, over_at });
        Some(subscription)
    }

    /// No stream came of it, for now: the client comes back with the same URL.
    pub(crate) fn give_back(&self, subscription: &Subscription) {
        if let Some(redeemed) = subscription.redeemed {
            let subscription = Subscription { redeemed: None, ..subscription.clone() };
            if let Some(made_at) = redeemed.deposited_at {
                return self.give_back_shared(redeemed, made_at, subscription);
            }
            let Redeemed { secret, made_at, over_at, .. } = redeemed;
            // If there is no room for it meanwhile, the page asks for another.
            let waiting = Waiting { kept: Some((subscription, made_at)), over_at };
            let _ = self.inner.tickets.put(secret, waiting, self.now());
        }
    }
}

/// On a broker, for whichever instance is asked.
#[cfg(feature = "json")]
impl Hub {
    async fn make_shared(
        &self,
        remote: &Remote,
        secret: u128,
        subscription: &Subscription,
        ttl: Duration,
    ) -> Result<(), SubscriptionError> {
        if !housekeeping::can_wait() {
            return Err(SubscriptionError::NoRuntime);
        }
        let now = self.now();
        self.inner.tickets.put(secret, Waiting::elsewhere(now.saturating_add(millis(ttl))), now)?;
        let deposited = self.deposit_ticket(remote, secret, subscription, SystemTime::now(), ttl).await;
        if deposited.is_err() {
            // It may be there all the same, but nobody is told of it.
            self.inner.tickets.take(secret, now);
        }
        deposited
    }

    async fn deposit_ticket(
        &self,
        remote: &Remote,
        secret: u128,
        subscription: &Subscription,
        made_at: SystemTime,
        ttl: Duration,
    ) -> Result<(), SubscriptionError> {
        let times = Times { made_at, over_at: SystemTime::now() + ttl };
        let bytes = Bytes::from(ticket::encode(subscription, times));
        let deposited = remote.backplane.deposit(&key(secret), bytes, ttl);
        match timeout(self.settings().publish_timeout, deposited).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(SubscriptionError::Unavailable),
        }
    }

    async fn withdraw_ticket(&self, remote: &Remote, secret: u128) -> Option<Subscription> {
        if !housekeeping::can_wait() {
            return None;
        }
        let key = key(secret);
        let withdrawn = timeout(self.settings().publish_timeout, remote.backplane.withdraw(&key)).await;
        let (mut subscription, times) = ticket::decode(&withdrawn.ok()?.ok()??)?;
        self.inner.tickets.take(secret, self.now());
        let left = times.over_at.duration_since(SystemTime::now()).ok()?;
        if subscription.expiry.is_some_and(|expiry| expiry.remaining().is_zero()) {
            return None;
        }
        // Who was disconnected since needs a new one.
        let addresses = super::open::addresses(&subscription);
        if self.inner.bars.lock().any_since(&addresses, times.made_at) {
            return None;
        }
        let over_at = self.now().saturating_add(millis(left));
        let (made_at, deposited_at) = (Moment::now(), Some(times.made_at));
        subscription.redeemed = Some(Redeemed { secret, made_at, deposited_at, over_at });
        Some(subscription)
    }

    /// It stays as old as it is, so that a kick meanwhile voids it.
    fn give_back_shared(&self, redeemed: Redeemed, made_at: SystemTime, subscription: Subscription) {
        let Redeemed { secret, over_at, .. } = redeemed;
        let now = self.now();
        let left = Duration::from_millis(over_at.saturating_sub(now));
        // It counts here from now on. Also if it is one too many: it was there before.
        let _ = self.inner.tickets.put(secret, Waiting::elsewhere(over_at), now);
        let hub = self.clone();
        if let Some(runtime) = housekeeping::runtime(&self.inner) {
            runtime.spawn(async move {
                if let Some(remote) = &hub.inner.remote {
                    // If it is lost, the page asks for another.
                    let _ = hub.deposit_ticket(remote, secret, &subscription, made_at, left).await;
                }
            });
        }
    }
}

/// The secret as its owner has it.
fn text(secret: u128) -> String {
    format!("{secret:032x}")
}

/// Where it lies on a broker: whoever can list the keys there is not to learn the secret from them.
#[cfg(feature = "json")]
fn key(secret: u128) -> String {
    let mut key = "ticket:".to_owned();
    for byte in Sha256::digest(text(secret)) {
        // To a string it never fails.
        let _ = write!(key, "{byte:02x}");
    }
    key
}

#[derive(Debug)]
pub(super) struct Tickets {
    table: Mutex<Table>,
    limit: usize,
}

#[derive(Debug, Default)]
struct Table {
    waiting: HashMap<u128, Waiting>,
    /// Those that are over are dropped when there are this many.
    tidy_at: usize,
    tidied_at: Millis,
    last_over_at: Millis,
}

#[derive(Debug)]
struct Waiting {
    /// What it stands for, and when it was made. None if that lies on a broker: then it only counts.
    kept: Option<(Subscription, Moment)>,
    over_at: Millis,
}

#[cfg(feature = "json")]
impl Waiting {
    fn elsewhere(over_at: Millis) -> Self {
        Self { kept: None, over_at }
    }
}

impl Tickets {
    pub(super) fn new(limit: usize) -> Self {
        Self { table: Mutex::default(), limit }
    }

    fn put(&self, secret: u128, ticket: Waiting, now: Millis) -> Result<(), SubscriptionError> {
        let mut table = self.table.lock();
        // Not at every ticket that is refused, if all are good for a while.
        let is_full = table.waiting.len() >= self.limit && now >= table.tidied_at.saturating_add(TIDY_EVERY);
        if is_full || table.waiting.len() >= table.tidy_at.max(TIDY_AT) {
            table.waiting.retain(|_, waiting| waiting.over_at > now);
            let len = table.waiting.len();
            table.waiting.shrink_to(len * 2);
            (table.tidy_at, table.tidied_at) = (len * 2, now);
        }
        if table.waiting.len() >= self.limit {
            return Err(SubscriptionError::TooManyTickets);
        }
        table.last_over_at = table.last_over_at.max(ticket.over_at);
        table.waiting.insert(secret, ticket);
        Ok(())
    }

    fn take(&self, secret: u128, now: Millis) -> Option<Waiting> {
        let waiting = self.table.lock().waiting.remove(&secret)?;
        (waiting.over_at > now).then_some(waiting)
    }

    /// When the last of those that were made is over.
    pub(super) fn last_over_at(&self) -> Millis {
        self.table.lock().last_over_at
    }
}

#[cfg(all(test, feature = "json"))]
mod tests {
    use super::*;

    #[test]
    fn a_key_on_a_broker_is_the_hash_of_the_secret() {
        assert_eq!(text(7), "00000000000000000000000000000007");
        assert_eq!(key(7), "ticket:e5090df26d24944b1e29254e5540e676eda0788f76a6a85a387344c4e0f70c64");
    }
}
