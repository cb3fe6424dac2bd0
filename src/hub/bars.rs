//! Who was disconnected lately: who is not to come back yet, and whose request may have been decided by what was true
//! before.

use std::collections::hash_map::HashMap;
use std::time::SystemTime;

use crate::audience::Address;
use crate::log::Millis;
use crate::moment::Moment;

/// How many entries are looked through before those that are over are dropped.
const TIDY_AT: usize = 64;

#[derive(Debug, Default)]
pub(super) struct Bars {
    by_address: HashMap<Address, Bar>,
    tidy_at: usize,
}

#[derive(Clone, Copy, Debug)]
struct Bar {
    kicked_at: Moment,
    /// For what was decided on another instance.
    kicked_when: SystemTime,
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
    /// Nobody comes back before `until`; and up to `remember` there may be something that was decided before this moment.
    pub(super) fn kick(&mut self, address: Address, until: Millis, remember: Millis, now: Millis) {
        self.tidy(now);
        let before = self.by_address.get(&address).map_or(0, |bar| bar.until);
        let until = until.max(before);
        self.by_address.insert(
            address,
            Bar { kicked_at: Moment::new(), kicked_when: SystemTime::now(), until, over_at: until.max(remember) },
        );
    }

    /// Whether something stands against what was asked for, or decided, at a moment and is about these addresses.
    pub(super) fn objection<'a>(
        &self,
        addresses: impl IntoIterator<Item = &'a Address>,
        asked_at: Moment,
        now: Millis,
    ) -> Option<Objection> {
        let mut outdated = None;
        for bar in addresses.into_iter().filter_map(|address| self.by_address.get(address)) {
            if bar.until > now {
                return Some(Objection::Barred);
            }
            if bar.over_at > now && bar.kicked_at > asked_at {
                outdated = Some(Objection::Outdated);
            }
        }
        outdated
    }

    /// Whether one of these was disconnected since a time, by the clock on the wall.
    pub(super) fn any_since<'a>(&self, addresses: impl IntoIterator<Item = &'a Address>, time: SystemTime) -> bool {
        let mut bars = addresses.into_iter().filter_map(|address| self.by_address.get(address));
        bars.any(|bar| bar.kicked_when >= time)
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
        bars.kick(user("ada"), 500, 110, 100);
        // A later kick that lets come back does not shorten it.
        bars.kick(user("ada"), 0, 210, 200);
        let asked_at = Moment::now();
        assert_eq!(bars.objection([&user("ada")], asked_at, 499), Some(Objection::Barred));
        assert_eq!(bars.objection([&user("ada")], asked_at, 500), None);
        assert_eq!(bars.objection([&user("ben")], asked_at, 499), None);
    }

    #[test]
    fn what_was_asked_before_the_kick_is_decided_anew() {
        let mut bars = Bars::default();
        let before = Moment::now();
        bars.kick(user("ada"), 0, 1_100, 100);
        assert_eq!(bars.objection([&user("ada")], before, 100), Some(Objection::Outdated));
        assert_eq!(bars.objection([&user("ada")], Moment::now(), 100), None);
        assert_eq!(bars.objection([&user("ada")], before, 1_100), None, "no request takes so long");
    }

    #[test]
    fn what_is_over_takes_no_memory() {
        let mut bars = Bars::default();
        for n in 0..10_000 {
            bars.kick(user(&n.to_string()), 0, n + 10, n);
        }
        assert!(bars.by_address.len() < 200, "{}", bars.by_address.len());
    }
}
