//! Subscriptions that wait to be fetched, once, by who knows a secret.

use std::collections::hash_map::HashMap;
use std::fmt;
#[cfg(feature = "json")]
use std::fmt::Write;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

#[cfg(feature = "json")]
use bytes::Bytes;
#[cfg(feature = "json")]
use sha2::{Digest, Sha256};
use smallvec::SmallVec;
#[cfg(feature = "json")]
use tokio::sync::oneshot;
#[cfg(feature = "json")]
use tokio::time::timeout;

#[cfg(feature = "json")]
use super::record::{self, Times};
use crate::hub::Hub;
#[cfg(feature = "json")]
use crate::hub::cluster::shared_log::SharedLog;
use crate::hub::connection::bans::Objection;
#[cfg(feature = "json")]
use crate::hub::tasks::{back_off, workers};
use crate::log::{Millis, millis};
use crate::sync::Mutex;
use crate::types::disconnect_clock::Moment;
use crate::types::name::UserId;
use crate::types::subscription::{Expiry, Redeemed, Subscription, SubscriptionError};

const SHORTEST: Duration = Duration::from_secs(1);
pub(in crate::hub) const LONGEST: Duration = Duration::from_secs(3600);
/// How many tickets are looked through, at least, for those that are over, and how often that is done when they are too
/// many, in milliseconds.
const TIDY_AT: usize = 64;
const TIDY_EVERY: Millis = 100;
/// How many tickets of one user, or of one key, may wait. A page redeems a ticket at once, so a user has about as many as
/// pages that are being opened; one who asks for more must not take those of all others.
const MOST_OF_ONE: usize = 64;

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
    /// It is good for one stream within `ttl`, between a second and an hour; seconds are enough. A request that gets no
    /// stream does not use it up. The access hook fetches the subscription with [`Hub::redeem`]. An expiry of the subscription counts from now.
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
    /// Cancel safety: on one instance it never waits. With several a dropped future may have made a ticket that is never used.
    ///
    /// # Errors
    /// When the broker is not there, or cannot be asked outside of a tokio runtime; the subscription's names or size are not
    /// allowed; `ttl` is out of its range; too many tickets wait, in all
    /// ([`HubBuilder::max_tickets`](crate::HubBuilder::max_tickets)) or 64 of this user or key; or the operating system
    /// gives no random bytes.
    pub async fn ticket(&self, mut subscription: Subscription, ttl: Duration) -> Result<Ticket, SubscriptionError> {
        self.check(&subscription)?;
        if !(SHORTEST..=LONGEST).contains(&ttl) {
            return Err(SubscriptionError::TicketTime);
        }
        if let Some(Expiry::In(time)) = subscription.expiry {
            subscription.expiry = SystemTime::now().checked_add(time).map(Expiry::At);
        }
        let secret = crate::hub::inner::random_bits().map_err(|_| SubscriptionError::NoRandomBytes)?;
        if let Some(shared) = &self.inner.shared_log {
            self.make_shared(shared, secret, &subscription, ttl).await?;
            return Ok(Ticket(text(secret).into()));
        }
        let now = self.now();
        let over_at = now.saturating_add(millis(ttl));
        self.inner.tickets.put(secret, Waiting::here(subscription, Moment::now(), over_at), now)?;
        Ok(Ticket(text(secret).into()))
    }

    /// Takes the subscription that a ticket stands for.
    pub(crate) async fn take_ticket(&self, text: &str) -> Result<Taken, NotTaken> {
        let canonical = text.len() == 32 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        let secret = u128::from_str_radix(text, 16).ok().filter(|_| canonical).ok_or(NotTaken::Invalid)?;
        if let Some(shared) = &self.inner.shared_log {
            return self.take_shared(shared, secret).await;
        }
        let now = self.now();
        let waiting = self.inner.tickets.take(secret, now).ok_or(NotTaken::Invalid)?;
        let (mut subscription, made_at) = waiting.kept.ok_or(NotTaken::Invalid)?;
        // A user who was disconnected since needs a new one.
        let addresses = crate::hub::stream::admission::addresses(&subscription);
        if self.inner.bars.objection(&addresses, made_at, now) == Some(Objection::Outdated) {
            return Err(NotTaken::Invalid);
        }
        // The subscription's own time may have ended before the ticket's.
        if subscription.expiry.is_some_and(|expiry| expiry.remaining().is_zero()) {
            return Err(NotTaken::Invalid);
        }
        let redeemed = Redeemed { secret, made_at, deposited_at: None, over_at: waiting.over_at };
        subscription.redeemed = Some(Box::new(redeemed));
        Ok(Taken::new(self, subscription))
    }

    /// Makes a ticket good again whose request got nothing: its client comes back with the same URL.
    fn give_back(&self, subscription: &Subscription) {
        let Some(redeemed) = subscription.redeemed.as_deref().copied() else { return };
        let subscription = Subscription { redeemed: None, ..subscription.clone() };
        if let Some(made_at) = redeemed.deposited_at {
            return self.give_back_shared(redeemed, made_at, subscription);
        }
        let Redeemed { secret, made_at, over_at, .. } = redeemed;
        self.inner.tickets.put_back(secret, Waiting::here(subscription, made_at, over_at), self.now());
    }
}

/// Why a ticket was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NotTaken {
    /// There is no such ticket, or not any more.
    Invalid,
    /// The broker, where it would be, did not answer.
    Unavailable,
}

/// A ticket that was taken. It is given back when this is dropped, unless it is spent.
pub(crate) struct Taken {
    hub: Hub,
    /// None once it is spent.
    subscription: Option<Subscription>,
}

impl Taken {
    fn new(hub: &Hub, subscription: Subscription) -> Self {
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

/// Where a request's [`Connect`](crate::Connect) leaves the tickets that its hook redeems. None when the request is over.
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

/// On a broker, for whichever instance is asked.
#[cfg(feature = "json")]
impl Hub {
    async fn make_shared(
        &self,
        shared: &SharedLog,
        secret: u128,
        subscription: &Subscription,
        ttl: Duration,
    ) -> Result<(), SubscriptionError> {
        if !back_off::can_wait() {
            return Err(SubscriptionError::NoRuntime);
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
        let deposited = shared.backplane.deposit(&key(secret), bytes, ttl);
        match timeout(self.settings().publish_timeout, deposited).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(SubscriptionError::Unavailable),
        }
    }

    async fn take_shared(&self, shared: &SharedLog, secret: u128) -> Result<Taken, NotTaken> {
        if !back_off::can_wait() {
            return Err(NotTaken::Unavailable);
        }
        let (answer, answered) = oneshot::channel();
        let (hub, backplane) = (self.clone(), Arc::clone(&shared.backplane));
        // A task of its own: a request that is dropped while the broker answers must not lose the ticket. An answer that
        // the request does not take is dropped, and so gives the ticket back.
        tokio::spawn(async move {
            let key = key(secret);
            let taken = match timeout(hub.settings().publish_timeout, backplane.withdraw(&key)).await {
                Ok(Ok(Some(bytes))) => hub.read_shared(secret, &bytes).ok_or(NotTaken::Invalid),
                Ok(Ok(None)) => Err(NotTaken::Invalid),
                Ok(Err(_)) | Err(_) => Err(NotTaken::Unavailable),
            };
            drop(answer.send(taken));
        });
        answered.await.unwrap_or(Err(NotTaken::Unavailable))
    }

    fn read_shared(&self, secret: u128, bytes: &[u8]) -> Option<Taken> {
        let (mut subscription, times) = record::decode(bytes)?;
        self.inner.tickets.take(secret, self.now());
        let left = times.over_at.duration_since(SystemTime::now()).ok()?;
        if subscription.expiry.is_some_and(|expiry| expiry.remaining().is_zero()) {
            return None;
        }
        // A user who was disconnected since needs a new one.
        let addresses = crate::hub::stream::admission::addresses(&subscription);
        if self.inner.bars.any_since(&addresses, times.made_at) {
            return None;
        }
        let over_at = self.now().saturating_add(millis(left));
        let (made_at, deposited_at) = (Moment::now(), Some(times.made_at));
        subscription.redeemed = Some(Box::new(Redeemed { secret, made_at, deposited_at, over_at }));
        Some(Taken::new(self, subscription))
    }

    /// Deposits a ticket again for the rest of its time. It stays as old as it is, so that a disconnect meanwhile voids it.
    fn give_back_shared(&self, redeemed: Redeemed, made_at: SystemTime, subscription: Subscription) {
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
pub(in crate::hub) struct Tickets {
    table: Mutex<Table>,
    limit: usize,
}

#[derive(Debug, Default)]
struct Table {
    waiting: HashMap<u128, Waiting>,
    of_owner: HashMap<Owner, usize>,
    /// Those that are over are dropped when there are this many.
    tidy_at: usize,
    tidied_at: Millis,
    last_over_at: Millis,
}

/// Who is not to have too many tickets.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Owner {
    User(UserId),
    /// See [`Subscription::counted_as`].
    Key(Arc<str>),
}

impl Owner {
    fn of(subscription: &Subscription) -> Option<Self> {
        let user = || subscription.user.clone().map(Self::User);
        subscription.counted_as.clone().map(Self::Key).or_else(user)
    }
}

#[derive(Debug)]
struct Waiting {
    /// Counted with the other tickets of this user or key; none for an anonymous one without a key.
    owner: Option<Owner>,
    /// What it stands for, and when it was made. None if that lies on a broker: then it only counts.
    kept: Option<(Subscription, Moment)>,
    over_at: Millis,
}

impl Waiting {
    fn here(subscription: Subscription, made_at: Moment, over_at: Millis) -> Self {
        Self { owner: Owner::of(&subscription), kept: Some((subscription, made_at)), over_at }
    }

    #[cfg(feature = "json")]
    fn elsewhere(subscription: &Subscription, over_at: Millis) -> Self {
        Self { owner: Owner::of(subscription), kept: None, over_at }
    }
}

impl Table {
    fn insert(&mut self, secret: u128, ticket: Waiting) {
        if let Some(owner) = &ticket.owner {
            *self.of_owner.entry(owner.clone()).or_default() += 1;
        }
        if let Some(before) = self.waiting.insert(secret, ticket) {
            uncount(&mut self.of_owner, &before);
        }
    }

    fn remove(&mut self, secret: u128) -> Option<Waiting> {
        let removed = self.waiting.remove(&secret)?;
        uncount(&mut self.of_owner, &removed);
        Some(removed)
    }

    /// Drops the tickets that are over.
    fn tidy(&mut self, now: Millis) {
        for (_, over) in self.waiting.extract_if(|_, waiting| waiting.over_at <= now) {
            uncount(&mut self.of_owner, &over);
        }
        let len = self.waiting.len();
        self.waiting.shrink_to(len * 2);
        self.of_owner.shrink_to(len * 2);
        (self.tidy_at, self.tidied_at) = (len * 2, now);
    }
}

fn uncount(of_owner: &mut HashMap<Owner, usize>, gone: &Waiting) {
    if let Some(owner) = &gone.owner
        && let Some(count) = of_owner.get_mut(owner)
    {
        *count -= 1;
        if *count == 0 {
            of_owner.remove(owner);
        }
    }
}

impl Tickets {
    pub(in crate::hub) fn new(limit: usize) -> Self {
        Self { table: Mutex::default(), limit }
    }

    fn put(&self, secret: u128, ticket: Waiting, now: Millis) -> Result<(), SubscriptionError> {
        let mut table = self.table.lock();
        // Not at every ticket that is refused, if all are good for a while.
        let is_full = self.is_full(&table, &ticket) && now >= table.tidied_at.saturating_add(TIDY_EVERY);
        if is_full || table.waiting.len() >= table.tidy_at.max(TIDY_AT) {
            table.tidy(now);
        }
        if self.is_full(&table, &ticket) {
            return Err(SubscriptionError::TooManyTickets);
        }
        table.last_over_at = table.last_over_at.max(ticket.over_at);
        table.insert(secret, ticket);
        Ok(())
    }

    /// Whether there is no room for one more ticket like this, in all or of its owner.
    fn is_full(&self, table: &Table, ticket: &Waiting) -> bool {
        let of_owner = ticket.owner.as_ref().and_then(|owner| table.of_owner.get(owner));
        table.waiting.len() >= self.limit || of_owner.is_some_and(|count| *count >= MOST_OF_ONE)
    }

    /// Puts a ticket back that was taken. There is always room for it: it was there before.
    fn put_back(&self, secret: u128, ticket: Waiting, now: Millis) {
        if ticket.over_at > now {
            self.table.lock().insert(secret, ticket);
        }
    }

    fn take(&self, secret: u128, now: Millis) -> Option<Waiting> {
        let waiting = self.table.lock().remove(secret)?;
        (waiting.over_at > now).then_some(waiting)
    }

    /// When the last of those that were made is over.
    pub(in crate::hub) fn last_over_at(&self) -> Millis {
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
