//! The unredeemed tickets of this instance, and their number per owner. This code does no I/O, and
//! callers pass the time.

use std::collections::hash_map::HashMap;
use std::time::Duration;

use crate::log::Millis;
use crate::sync::Mutex;
use crate::types::{DisconnectClock, ScopedText, Subscription, SubscriptionError, UserId};

/// The maximum lifetime of a ticket.
pub(in crate::hub) const LONGEST: Duration = Duration::from_secs(3600);
/// The minimum number of tickets at which expired tickets are removed.
const TIDY_AT: usize = 64;
/// The minimum time between two removals of expired tickets while a limit is reached, in
/// milliseconds.
const TIDY_EVERY: Millis = 100;
/// The maximum number of unredeemed tickets of one user or key. A client normally redeems a ticket
/// at once, so a user has about as many tickets as streams that are being opened. The limit
/// prevents one user from taking all tickets.
const MAX_PER_OWNER: usize = 64;

/// Returns the text of a ticket.
pub(super) fn text(secret: u128) -> String {
    format!("{secret:032x}")
}

/// The maximum number of unredeemed tickets in total. With small subscriptions, so many tickets
/// take about 30 MB.
const MAX_TICKETS: usize = 65_536;

/// The unredeemed tickets of this instance.
#[derive(Debug, Default)]
pub(in crate::hub) struct Tickets {
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    waiting: HashMap<u128, Waiting>,
    of_owner: HashMap<Owner, usize>,
    /// The number of tickets at which expired ones are removed.
    tidy_at: usize,
    /// The time of the last removal of expired tickets.
    tidied_at: Millis,
    /// The latest time of expiry of all tickets that were ever added.
    last_over_at: Millis,
}

/// The user or the key whose number of tickets is limited.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Owner {
    User(UserId),
    /// The key of [`Subscription::counted_as`].
    Key(ScopedText),
}

impl Owner {
    fn of(subscription: &Subscription) -> Option<Self> {
        let user = || subscription.user.clone().map(Self::User);
        subscription.counted_as.clone().map(Self::Key).or_else(user)
    }
}

/// An unredeemed ticket.
#[derive(Debug)]
pub(super) struct Waiting {
    /// The owner, or `None` for an anonymous subscription without a key.
    owner: Option<Owner>,
    /// The subscription and the time of creation. `None` if the broker stores them. This entry then
    /// only counts the ticket.
    pub(super) kept: Option<(Subscription, DisconnectClock)>,
    /// The time of expiry.
    pub(super) over_at: Millis,
}

impl Waiting {
    /// Creates a ticket whose subscription this instance stores.
    pub(super) fn here(subscription: Subscription, made_at: DisconnectClock, over_at: Millis) -> Self {
        Self { owner: Owner::of(&subscription), kept: Some((subscription, made_at)), over_at }
    }

    /// Creates a ticket whose subscription the broker stores.
    pub(super) fn elsewhere(subscription: &Subscription, over_at: Millis) -> Self {
        Self { owner: Owner::of(subscription), kept: None, over_at }
    }
}

impl Table {
    fn insert(&mut self, secret: u128, ticket: Waiting) {
        if let Some(owner) = &ticket.owner {
            *self.of_owner.entry(owner.clone()).or_default() += 1;
        }
        if let Some(replaced) = self.waiting.insert(secret, ticket) {
            uncount(&mut self.of_owner, &replaced);
        }
    }

    fn remove(&mut self, secret: u128) -> Option<Waiting> {
        let removed = self.waiting.remove(&secret)?;
        uncount(&mut self.of_owner, &removed);
        Some(removed)
    }

    /// Removes expired tickets.
    fn tidy(&mut self, now: Millis) {
        for (_, expired) in self.waiting.extract_if(|_, waiting| waiting.over_at <= now) {
            uncount(&mut self.of_owner, &expired);
        }
        let len = self.waiting.len();
        self.waiting.shrink_to(len * 2);
        self.of_owner.shrink_to(len * 2);
        (self.tidy_at, self.tidied_at) = (len * 2, now);
    }
}

/// Reduces the count of the owner of a removed ticket.
fn uncount(of_owner: &mut HashMap<Owner, usize>, removed: &Waiting) {
    if let Some(owner) = &removed.owner
        && let Some(count) = of_owner.get_mut(owner)
    {
        *count -= 1;
        if *count == 0 {
            of_owner.remove(owner);
        }
    }
}

/// Returns whether one more ticket like this would exceed the total limit or the limit of its
/// owner.
fn is_full(table: &Table, ticket: &Waiting) -> bool {
    let of_owner = ticket.owner.as_ref().and_then(|owner| table.of_owner.get(owner));
    table.waiting.len() >= MAX_TICKETS || of_owner.is_some_and(|count| *count >= MAX_PER_OWNER)
}

impl Tickets {
    /// Adds a ticket, or returns an error if a limit is reached.
    pub(super) fn put(&self, secret: u128, ticket: Waiting, now: Millis) -> Result<(), SubscriptionError> {
        let mut table = self.table.lock();
        // Remove at most once per [`TIDY_EVERY`] while a limit is reached. Otherwise each rejected
        // ticket would cause a search of the whole table, although no ticket has expired.
        let may_tidy = is_full(&table, &ticket) && now >= table.tidied_at.saturating_add(TIDY_EVERY);
        if may_tidy || table.waiting.len() >= table.tidy_at.max(TIDY_AT) {
            table.tidy(now);
        }
        if is_full(&table, &ticket) {
            return Err(SubscriptionError::TOO_MANY_TICKETS);
        }
        table.last_over_at = table.last_over_at.max(ticket.over_at);
        table.insert(secret, ticket);
        Ok(())
    }

    /// Adds a taken ticket again, unless it has expired. Ignores the limits, because the ticket was
    /// counted before.
    pub(super) fn put_back(&self, secret: u128, ticket: Waiting, now: Millis) {
        if ticket.over_at > now {
            self.table.lock().insert(secret, ticket);
        }
    }

    /// Removes a ticket and returns it, unless it has expired.
    pub(super) fn take(&self, secret: u128, now: Millis) -> Option<Waiting> {
        let waiting = self.table.lock().remove(secret)?;
        (waiting.over_at > now).then_some(waiting)
    }

    /// Returns the latest time of expiry of all tickets that were ever added.
    pub(in crate::hub) fn last_over_at(&self) -> Millis {
        self.table.lock().last_over_at
    }
}
