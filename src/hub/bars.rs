//! Who was disconnected lately: who is not to come back yet, and whose request may have been decided by what was true
//! before.

use std::collections::hash_map::HashMap;

use crate::audience::Address;
use crate::log::Millis;

/// How many entries are looked through before those that are over are dropped.
const TIDY_AT: usize = 64;

#[derive(Debug, Default)]
pub(super) struct Bars {
    by_address: HashMap<Address, Bar>,
    tidy_at: usize,
}

#[derive(Clone, Copy, Debug)]
struct Bar {
    kicked_at: Millis,
    /// Nobody comes back before then.
    until: Millis,
    /// The entry may be dropped then.
    over_at: Millis,
}

/// What stands against a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Objection {
    /// It is not to come back yet.
    Barred,
    /// It was disconnected after its request had come.
    Outdated,
}

impl Bars {
    /// `remember` is how long a request may take to be decided.
    pub(super) fn kick(&mut self, address: Address, until: Millis, remember: Millis, now: Millis) {
        self.tidy(now);
        let before = self.by_address.get(&address).map_or(0, |bar| bar.until);
        let until = until.max(before);
        let over_at = until.max(now.saturating_add(remember));
        self.by_address.insert(address, Bar { kicked_at: now, until, over_at });
    }

    /// Whether something stands against a request of `asked_at` that wants these addresses.
    pub(super) fn objection<'a>(
        &self,
        addresses: impl IntoIterator<Item = &'a Address>,
        asked_at: Millis,
        now: Millis,
    ) -> Option<Objection> {
        let mut outdated = None;
        for bar in addresses.into_iter().filter_map(|address| self.by_address.get(address)) {
            if bar.until > now {
                return Some(Objection::Barred);
            }
            if bar.over_at > now && bar.kicked_at >= asked_at {
                outdated = Some(Objection::Outdated);
            }
        }
        outdated
    }

    pub(super) fn is_empty(&self) -> bool {
        self.by_address.is_empty()
    }

    fn tidy(&mut self, now: Millis) {
        if self.by_address.len() >= self.tidy_at.max(TIDY_AT) {
            self.by_address.retain(|_, bar| bar.over_at > now);
            self.by_address.shrink_to(self.by_address.len() * 2);
            self.tidy_at = self.by_address.len() * 2;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::name::UserId;

    fn user(name: &str) -> Address {
        Address::User(UserId::try_from(name).unwrap())
    }

    #[test]
    fn who_was_told_to_stay_away_is_let_in_when_the_time_is_over() {
        let mut bars = Bars::default();
        bars.kick(user("ada"), 500, 10, 100);
        // A later kick that lets come back does not shorten it.
        bars.kick(user("ada"), 0, 10, 200);
        assert_eq!(bars.objection([&user("ada")], 300, 499), Some(Objection::Barred));
        assert_eq!(bars.objection([&user("ada")], 300, 500), None);
        assert_eq!(bars.objection([&user("ben")], 300, 499), None);
    }

    #[test]
    fn a_request_that_came_before_the_kick_is_decided_anew() {
        let mut bars = Bars::default();
        bars.kick(user("ada"), 0, 1_000, 100);
        assert_eq!(bars.objection([&user("ada")], 100, 150), Some(Objection::Outdated));
        assert_eq!(bars.objection([&user("ada")], 101, 150), None);
        assert_eq!(bars.objection([&user("ada")], 0, 1_100), None, "no request takes so long");
    }

    #[test]
    fn what_is_over_takes_no_memory() {
        let mut bars = Bars::default();
        for n in 0..10_000 {
            bars.kick(user(&n.to_string()), 0, 10, n);
        }
        assert!(bars.by_address.len() < 200, "{}", bars.by_address.len());
    }
}
