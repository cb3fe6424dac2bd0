//! The tickets that wait on this instance, and how many each owner has. Pure: time is passed in.

use std::collections::hash_map::HashMap;
use std::sync::Arc;
use std::time::Duration;

use crate::log::Millis;
use crate::sync::Mutex;
use crate::types::{DisconnectClock, Subscription, SubscriptionError, UserId};

pub(in crate::hub) const LONGEST: Duration = Duration::from_secs(3600);
/// How many tickets are looked through, at least, for those that are over, and how often that is done when they are too
/// many, in milliseconds.
const TIDY_AT: usize = 64;
const TIDY_EVERY: Millis = 100;
/// How many tickets of one user, or of one key, may wait. A page redeems a ticket at once, so a user
/// has about as many as pages that are being opened; one who asks for more must not take those of all others.
const MOST_OF_ONE: usize = 64;

/// The secret as its owner has it.
pub(super) fn text(secret: u128) -> String {
    format!("{secret:032x}")
}

/// How many tickets may wait in all, so that their memory is bounded: some 30 MB.
const MOST: usize = 65_536;

#[derive(Debug, Default)]
pub(in crate::hub) struct Tickets {
    table: Mutex<Table>,
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
pub(super) struct Waiting {
    /// Counted with the other tickets of this user or key; none for an anonymous one without a key.
    owner: Option<Owner>,
    /// What it stands for, and when it was made. None if that lies on a broker: then it only counts.
    pub(super) kept: Option<(Subscription, DisconnectClock)>,
    pub(super) over_at: Millis,
}

impl Waiting {
    pub(super) fn here(subscription: Subscription, made_at: DisconnectClock, over_at: Millis) -> Self {
        Self { owner: Owner::of(&subscription), kept: Some((subscription, made_at)), over_at }
    }

    pub(super) fn elsewhere(subscription: &Subscription, over_at: Millis) -> Self {
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

/// Whether there is no room for one more ticket like this, in all or of its owner.
fn is_full(table: &Table, ticket: &Waiting) -> bool {
    let of_owner = ticket.owner.as_ref().and_then(|owner| table.of_owner.get(owner));
    table.waiting.len() >= MOST || of_owner.is_some_and(|count| *count >= MOST_OF_ONE)
}

impl Tickets {
    pub(super) fn put(&self, secret: u128, ticket: Waiting, now: Millis) -> Result<(), SubscriptionError> {
        let mut table = self.table.lock();
        // Not at every ticket that is refused, if all are good for a while.
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

    /// Puts a ticket back that was taken. There is always room for it: it was there before.
    pub(super) fn put_back(&self, secret: u128, ticket: Waiting, now: Millis) {
        if ticket.over_at > now {
            self.table.lock().insert(secret, ticket);
        }
    }

    pub(super) fn take(&self, secret: u128, now: Millis) -> Option<Waiting> {
        let waiting = self.table.lock().remove(secret)?;
        (waiting.over_at > now).then_some(waiting)
    }

    /// When the last of those that were made is over.
    pub(in crate::hub) fn last_over_at(&self) -> Millis {
        self.table.lock().last_over_at
    }
}
