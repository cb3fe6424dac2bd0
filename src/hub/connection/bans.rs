//! Bans: the users and topics that were disconnected lately.
//!
//! 1. A ban is kept in the memory of this process. Other instances note it when the command reaches them.
//! 2. A client that was told to stay away also has an id that says until when, so an instance that knows of no ban
//!    refuses it too ([`last_event_id`](crate::types::last_event_id)).
//! 3. A later disconnect never makes a ban shorter.
//! 4. A request that was decided before the disconnect is decided anew
//!    ([`disconnect_clock`](crate::types::disconnect_clock)).

use std::collections::hash_map::HashMap;
use std::time::SystemTime;

use crate::log::Millis;
use crate::sync::{AtomicU64, Mutex, Ordering};
use crate::types::{Address, DisconnectClock};

/// How many entries are looked through before those that are over are dropped.
const TIDY_AT: usize = 64;

#[derive(Debug, Default)]
pub(in crate::hub) struct Bans {
    table: Mutex<Table>,
    /// When the last entry about a topic is over, and the last about a user or everyone. Written under the
    /// lock, and read without it, so that a stream that meets no entry takes no lock and hashes none of its names.
    topics_over_at: AtomicU64,
    others_over_at: AtomicU64,
}

#[derive(Debug, Default)]
struct Table {
    by_address: HashMap<Address, Ban>,
    tidy_at: usize,
}

#[derive(Clone, Copy, Debug)]
struct Ban {
    disconnected_at: DisconnectClock,
    /// For what was decided on another instance.
    disconnected_when: SystemTime,
    /// Nobody comes back before then.
    until: Millis,
    /// The entry may be dropped then.
    over_at: Millis,
}

/// What stands against a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::hub) enum Rejection {
    /// It is not to come back yet.
    Banned,
    /// It was disconnected after its request had come.
    Outdated,
}

impl Bans {
    /// Notes a disconnection. Connections of these addresses stay away until `until`, and up to `remember`
    /// something may come that was decided before this moment.
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

    /// Whether something stands against what was asked for, or decided, at a moment and is about these addresses.
    pub(in crate::hub) fn rejection<'a>(
        &self,
        addresses: impl IntoIterator<Item = &'a Address>,
        asked_at: DisconnectClock,
        now: Millis,
    ) -> Option<Rejection> {
        let may_be_noted = |address: &&Address| self.over_at(address).load(Ordering::Acquire) > now;
        let mut addresses = addresses.into_iter().filter(may_be_noted).peekable();
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

    /// Whether one of these was disconnected since a time, by the clock on the wall.
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
    /// Returns when the entry is over.
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
    fn who_was_told_to_stay_away_is_let_in_when_the_time_is_over() {
        let bans = Bans::default();
        bans.note_disconnect([&user("ada")], 500, 110, 100);
        // A later disconnect that lets come back does not shorten it.
        bans.note_disconnect([&user("ada")], 0, 210, 200);
        let asked_at = DisconnectClock::now();
        assert_eq!(bans.rejection([&user("ada")], asked_at, 499), Some(Rejection::Banned));
        assert_eq!(bans.rejection([&user("ada")], asked_at, 500), None);
        assert_eq!(bans.rejection([&user("ben")], asked_at, 499), None);
    }

    #[test]
    fn what_was_asked_before_the_disconnect_is_decided_anew() {
        let bans = Bans::default();
        let before = DisconnectClock::now();
        bans.note_disconnect([&user("ada")], 0, 1_100, 100);
        assert_eq!(bans.rejection([&user("ada")], before, 100), Some(Rejection::Outdated));
        assert_eq!(bans.rejection([&user("ada")], DisconnectClock::now(), 100), None);
        assert_eq!(bans.rejection([&user("ada")], before, 1_100), None, "no request takes so long");
    }

    #[test]
    fn what_is_over_takes_no_memory() {
        let bans = Bans::default();
        for n in 0..10_000 {
            bans.note_disconnect([&user(&n.to_string())], 0, n + 10, n);
        }
        let len = bans.table.lock().by_address.len();
        assert!(len < 200, "{len}");
    }

    #[test]
    fn a_stream_of_what_was_never_disconnected_waits_for_no_lock() {
        let bans = Bans::default();
        bans.note_disconnect([&user("ada")], 500, 110, 100);
        let topic = Address::Topic(crate::types::name::Topic::try_from("t").unwrap());
        let _held = bans.table.lock();
        // Otherwise this would wait for the lock that the test holds.
        assert_eq!(bans.rejection([&topic], DisconnectClock::now(), 100), None);
        assert_eq!(bans.rejection([&topic, &user("ada")], DisconnectClock::now(), 500), None, "all entries are over");
    }
}
