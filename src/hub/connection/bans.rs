//! The table of recent disconnects and bans, by user and topic.
//!
//! 1. The table is in the memory of this process. Other instances add an entry when they carry the
//!    command out.
//! 2. A banned client also receives an event id that contains the end of the ban, and sends it when
//!    it reconnects. So an instance without an entry, for example after a restart, also rejects the
//!    client ([`last_event_id`](crate::types::last_event_id)).
//! 3. A later disconnect never makes a ban shorter ([`Table::note_disconnect`]).
//! 4. The authorization of a request is outdated if a disconnect of one of its addresses came after
//!    the request had arrived. The request gets a retryable refusal, and the access hook decides
//!    about the next request anew ([`disconnect_clock`](crate::types::disconnect_clock)).

use std::collections::hash_map::HashMap;
use std::time::SystemTime;

use crate::log::Millis;
use crate::sync::{AtomicU64, Mutex, Ordering};
use crate::types::{Address, DisconnectClock};

/// The minimum number of entries at which the table drops the expired entries.
const TIDY_AT: usize = 64;

/// The recent disconnects and bans.
#[derive(Debug, Default)]
pub(in crate::hub) struct Bans {
    table: Mutex<Table>,
    /// The latest time at which an entry of a topic is over. Written under the lock of the table,
    /// and read without it, so that a stream without a possible entry takes no lock and hashes no
    /// name.
    topics_over_at: AtomicU64,
    /// The same for the entries of users and of everyone.
    others_over_at: AtomicU64,
}

#[derive(Debug, Default)]
struct Table {
    by_address: HashMap<Address, Ban>,
    /// The number of entries at which [`tidy`](Self::tidy) drops the expired entries.
    tidy_at: usize,
}

/// The last disconnect of an address.
#[derive(Clone, Copy, Debug)]
struct Ban {
    disconnected_at: DisconnectClock,
    /// The time of the disconnect by the wall clock, for tickets of other instances.
    disconnected_when: SystemTime,
    /// The end of the ban, or zero if the address was not banned.
    until: Millis,
    /// The time at which the entry may be dropped: the ban has ended, and no request or ticket from
    /// before the disconnect is left.
    over_at: Millis,
}

/// The reason for which a connection cannot be opened or cannot join a topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::hub) enum Rejection {
    /// The ban has not ended yet.
    Banned,
    /// A disconnect came after the request had arrived.
    Outdated,
}

impl Bans {
    /// Records a disconnect. New connections of these addresses are banned until `until`, which is
    /// zero for a disconnect without a ban. Requests and tickets from before this moment may arrive
    /// until `remember`.
    pub(in crate::hub) fn note_disconnect<'a>(
        &self,
        addresses: impl IntoIterator<Item = &'a Address>,
        until: Millis,
        remember: Millis,
        now: Millis,
    ) {
        let mut table = self.table.lock();
        for address in addresses {
            let over_at = table.note_disconnect(address, until, remember, now);
            self.over_at(address).fetch_max(over_at, Ordering::AcqRel);
        }
    }

    fn over_at(&self, address: &Address) -> &AtomicU64 {
        if address.topic().is_some() { &self.topics_over_at } else { &self.others_over_at }
    }

    /// Returns the reason to reject a request, if there is one: one of these addresses is banned,
    /// or was disconnected after `asked_at`.
    pub(in crate::hub) fn rejection<'a>(
        &self,
        addresses: impl IntoIterator<Item = &'a Address>,
        asked_at: DisconnectClock,
        now: Millis,
    ) -> Option<Rejection> {
        let may_have_entry = |address: &&Address| self.over_at(address).load(Ordering::Acquire) > now;
        let mut addresses = addresses.into_iter().filter(may_have_entry).peekable();
        addresses.peek()?;
        let table = self.table.lock();
        let mut outdated = None;
        for ban in addresses.filter_map(|address| table.by_address.get(address)) {
            if ban.until > now {
                return Some(Rejection::Banned);
            }
            if ban.over_at > now && ban.disconnected_at > asked_at {
                outdated = Some(Rejection::Outdated);
            }
        }
        outdated
    }

    /// Returns whether one of these addresses was disconnected since `time`, by the wall clock.
    pub(in crate::hub) fn any_since<'a>(
        &self,
        addresses: impl IntoIterator<Item = &'a Address>,
        time: SystemTime,
    ) -> bool {
        let table = self.table.lock();
        let mut bans = addresses.into_iter().filter_map(|address| table.by_address.get(address));
        bans.any(|ban| ban.disconnected_when >= time)
    }
}

impl Table {
    /// Replaces the entry of an address. Returns the time at which the new entry is over.
    fn note_disconnect(&mut self, address: &Address, until: Millis, remember: Millis, now: Millis) -> Millis {
        self.tidy(now);
        let before = self.by_address.get(address).map_or(0, |ban| ban.until);
        let until = until.max(before);
        let over_at = until.max(remember);
        let ban = Ban { disconnected_at: DisconnectClock::new(), disconnected_when: SystemTime::now(), until, over_at };
        self.by_address.insert(address.clone(), ban);
        over_at
    }

    fn tidy(&mut self, now: Millis) {
        if self.by_address.len() >= self.tidy_at.max(TIDY_AT) {
            self.by_address.retain(|_, ban| ban.over_at > now);
            self.by_address.shrink_to(self.by_address.len() * 2);
            self.tidy_at = self.by_address.len() * 2;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::UserId;

    fn user(name: &str) -> Address {
        Address::User(UserId::try_from(name).unwrap())
    }

    #[test]
    fn banned_user_is_rejected_until_the_ban_ends() {
        let bans = Bans::default();
        bans.note_disconnect([&user("ada")], 500, 110, 100);
        // A later disconnect without a ban does not shorten it.
        bans.note_disconnect([&user("ada")], 0, 210, 200);
        let asked_at = DisconnectClock::now();
        assert_eq!(bans.rejection([&user("ada")], asked_at, 499), Some(Rejection::Banned));
        assert_eq!(bans.rejection([&user("ada")], asked_at, 500), None);
        assert_eq!(bans.rejection([&user("ben")], asked_at, 499), None);
    }

    #[test]
    fn request_from_before_the_disconnect_is_outdated() {
        let bans = Bans::default();
        let before = DisconnectClock::now();
        bans.note_disconnect([&user("ada")], 0, 1_100, 100);
        assert_eq!(bans.rejection([&user("ada")], before, 100), Some(Rejection::Outdated));
        assert_eq!(bans.rejection([&user("ada")], DisconnectClock::now(), 100), None);
        assert_eq!(bans.rejection([&user("ada")], before, 1_100), None, "no request takes so long");
    }

    #[test]
    fn entries_that_are_over_take_no_memory() {
        let bans = Bans::default();
        for n in 0..10_000 {
            bans.note_disconnect([&user(&n.to_string())], 0, n + 10, n);
        }
        let len = bans.table.lock().by_address.len();
        assert!(len < 200, "{len}");
    }

    #[test]
    fn stream_without_a_possible_entry_takes_no_lock() {
        let bans = Bans::default();
        bans.note_disconnect([&user("ada")], 500, 110, 100);
        let topic = Address::Topic(crate::types::name::Topic::try_from("t").unwrap());
        let _held = bans.table.lock();
        // With the lock, these calls would wait for the test, which holds it.
        assert_eq!(bans.rejection([&topic], DisconnectClock::now(), 100), None);
        assert_eq!(bans.rejection([&topic, &user("ada")], DisconnectClock::now(), 500), None, "all entries are over");
    }
}
