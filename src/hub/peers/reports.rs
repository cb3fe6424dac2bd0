//! The reports of one other instance: which presence updates were applied, and where its list of
//! connections is. This code does no I/O, and callers pass the time.
//!
//! 1. Presence updates are numbered from 1. An instance whose first update arrives, or whose lease
//!    has the number 0, needs no list. So instances that have just started send no lists.
//! 2. After a missing number, the list of that instance is needed. Meanwhile its updates wait, and
//!    are applied after the list.
//! 3. A question names the instance that it asks. It follows the discovery after a random time, so
//!    that one of several instances asks and the others hear its question. Then it is repeated at
//!    most once a second. The pauses become longer if the lists do not help.
//! 4. Any stored list helps that includes the updates up to [`Reports::needed`].

use std::collections::vec_deque::VecDeque;

use super::message::{List, PresenceUpdate};
use crate::log::Millis;

/// The longest time before the first question, in milliseconds.
const FIRST_ASK: Millis = 100;
/// The first pause between two questions to an instance, in milliseconds. Each further question
/// doubles the pause, up to [`LONGEST_ASK_PAUSE`]. A random part of up to a quarter is added.
const FIRST_ASK_PAUSE: Millis = 1_000;
/// The longest pause between two questions to an instance, in milliseconds.
const LONGEST_ASK_PAUSE: Millis = 300_000;
/// The maximum number of updates of an instance that wait for its list. The oldest are dropped, and
/// the list then has to include them.
const MAX_WAITING: usize = 256;

/// The reports of one instance.
#[derive(Debug, Default)]
pub(super) struct Reports {
    /// The number of the last applied update. `None` while the list is needed.
    number: Option<u64>,
    /// The updates that wait for the list, with successive numbers.
    waiting: VecDeque<PresenceUpdate>,
    /// The number of the newest update that the list has to include.
    needed: u64,
    /// The newest known list, unless it could not be read.
    list: Option<List>,
    /// The number of the reading of the list, while the list is being read.
    reading: Option<u64>,
    /// The earliest time of the next question.
    ask_at: Millis,
    /// The pause between the last question and `ask_at`.
    ask_pause: Millis,
}

impl Reports {
    /// Creates the reports of an instance that was just discovered.
    pub(super) fn new(now: Millis) -> Self {
        Self { ask_at: after_jitter(now, FIRST_ASK), ..Self::default() }
    }

    /// Returns whether all updates that have arrived were applied.
    pub(super) fn is_complete(&self) -> bool {
        self.number.is_some()
    }

    /// Receives an update. Returns it if it has to be applied now.
    pub(super) fn update(&mut self, update: PresenceUpdate, now: Millis) -> Option<PresenceUpdate> {
        let before = update.number.saturating_sub(1);
        if before == 0 && self.is_new() {
            self.number = Some(0);
        }
        match self.number {
            Some(number) if number == before => {
                self.number = Some(update.number);
                return Some(update);
            }
            Some(number) if number >= update.number => {}
            Some(_) => {
                self.miss(before, now);
                self.waiting.push_back(update);
            }
            None => self.wait(update),
        }
        None
    }

    /// Returns whether no update and no lease with a number has arrived.
    fn is_new(&self) -> bool {
        self.number.is_none() && self.needed == 0 && self.waiting.is_empty()
    }

    fn wait(&mut self, update: PresenceUpdate) {
        match self.waiting.back() {
            Some(last) if last.number >= update.number => return,
            Some(last) if last.number + 1 == update.number => {}
            // The first waiting update, or the first after another missing one.
            _ => {
                self.waiting.clear();
                self.needed = self.needed.max(update.number - 1);
            }
        }
        if self.waiting.len() == MAX_WAITING {
            self.needed = self.waiting.pop_front().map_or(self.needed, |dropped| dropped.number);
        }
        self.waiting.push_back(update);
    }

    /// Receives a lease with the number of the newest update.
    pub(super) fn lease(&mut self, number: u64, now: Millis) {
        match self.number {
            None if number == 0 && self.is_new() => self.number = Some(0),
            None if self.waiting.back().is_none_or(|last| last.number < number) => {
                self.waiting.clear();
                self.needed = self.needed.max(number);
            }
            Some(applied) if applied < number => self.miss(number, now),
            // A late message, or nothing is missing.
            None | Some(_) => {}
        }
    }

    /// Notes that the updates up to this number are missing.
    fn miss(&mut self, needed: u64, now: Millis) {
        self.number = None;
        self.needed = needed;
        self.ask_at = self.ask_at.max(after_jitter(now, FIRST_ASK));
    }

    /// Returns whether a list includes all updates that are missing.
    fn helps(&self, list: &List) -> bool {
        list.number >= self.needed
    }

    /// Returns the number of the newest update that the list has to include, if this instance has
    /// to ask for the list now. If so, begins the pause before the next question.
    pub(super) fn ask(&mut self, now: Millis) -> Option<u64> {
        if self.number.is_some()
            || self.reading.is_some()
            || now < self.ask_at
            || self.list.is_some_and(|list| self.helps(&list))
        {
            return None;
        }
        self.pause(now);
        Some(self.needed)
    }

    /// Notes that another instance has asked for a list that includes the updates up to this
    /// number.
    pub(super) fn asked(&mut self, needed: u64, now: Millis) {
        if self.number.is_none() && needed >= self.needed && now >= self.ask_at.saturating_sub(FIRST_ASK) {
            self.pause(now);
        }
    }

    fn pause(&mut self, now: Millis) {
        self.ask_pause = (self.ask_pause * 2).clamp(FIRST_ASK_PAUSE, LONGEST_ASK_PAUSE);
        self.ask_at = after_jitter(now.saturating_add(self.ask_pause), self.ask_pause / 4);
    }

    /// Forgets the pauses. The caller knows that nothing was missing for a while.
    pub(super) fn forget_pauses(&mut self, now: Millis, after: Millis) {
        if now > self.ask_at.saturating_add(after) {
            (self.ask_at, self.ask_pause) = (0, 0);
        }
    }

    /// Notes that the instance has stored its list.
    pub(super) fn listed(&mut self, list: List) {
        if list.is_plausible() {
            self.list = Some(list);
        }
    }

    /// Returns the list if this instance has to read it now. `reading` is the number of this
    /// reading, which differs from those of all others.
    pub(super) fn begin_reading(&mut self, reading: u64) -> Option<List> {
        let list = self.list.filter(|list| self.reading.is_none() && self.expects(list))?;
        self.reading = Some(reading);
        Some(list)
    }

    /// Returns whether a list is being read by the reading with this number. If not, its parts must
    /// not be combined with those of the present reading.
    pub(super) fn is_read_by(&self, reading: u64) -> bool {
        self.reading == Some(reading)
    }

    /// Returns whether a list has to be applied.
    pub(super) fn expects(&self, list: &List) -> bool {
        self.number.is_none() && self.helps(list)
    }

    /// Notes that the list which was being read will not be applied. It is read again.
    pub(super) fn stop_reading(&mut self) {
        self.reading = None;
    }

    /// Ends the reading of a list. If the whole list was read and applied, and nothing else is
    /// missing meanwhile, returns the updates that have to be applied after it.
    pub(super) fn end_reading(&mut self, list: List, is_read: bool) -> Vec<PresenceUpdate> {
        self.reading = None;
        if self.list == Some(list) {
            self.list = None;
        }
        if !is_read || !self.expects(&list) {
            return Vec::new();
        }
        let mut updates: Vec<_> = std::mem::take(&mut self.waiting).into();
        updates.retain(|update| update.number > list.number);
        self.number = Some(updates.last().map_or(list.number, |last| last.number));
        updates
    }
}

/// Returns a random time after `time`, at most `jitter` later.
fn after_jitter(time: Millis, jitter: Millis) -> Millis {
    time.saturating_add(fastrand::u64(..=jitter))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn update(number: u64) -> PresenceUpdate {
        PresenceUpdate { number, ..PresenceUpdate::default() }
    }

    fn applied(reports: &mut Reports, number: u64) -> Option<u64> {
        reports.update(update(number), 0).map(|update| update.number)
    }

    fn list(number: u64) -> List {
        List { number, serial: 1, parts: 1 }
    }

    #[test]
    fn updates_of_an_instance_that_has_just_started_need_no_list() {
        let mut reports = Reports::new(0);
        assert_eq!([1, 1, 2].map(|number| applied(&mut reports, number)), [Some(1), None, Some(2)]);
        let mut reports = Reports::new(0);
        reports.lease(0, 0);
        assert_eq!((reports.ask(10_000), applied(&mut reports, 1)), (None, Some(1)));
    }

    #[test]
    fn updates_after_a_missing_one_wait_for_the_list() {
        let mut reports = Reports::new(0);
        assert_eq!([7, 8, 9].map(|number| applied(&mut reports, number)), [None; 3]);
        assert_eq!(reports.ask(FIRST_ASK), Some(6));
        reports.listed(list(5));
        assert_eq!(reports.begin_reading(1), None, "the list does not include the update 6");
        reports.listed(list(7));
        assert_eq!((reports.begin_reading(1), reports.begin_reading(2)), (Some(list(7)), None));
        assert_eq!(applied(&mut reports, 10), None);
        let numbers: Vec<_> = reports.end_reading(list(7), true).iter().map(|update| update.number).collect();
        assert_eq!((numbers, applied(&mut reports, 11)), (vec![8, 9, 10], Some(11)));
        assert_eq!(applied(&mut reports, 13), None);
        assert!(!reports.is_complete());
        assert_eq!(reports.ask(1_000_000), Some(12));
    }

    #[test]
    fn list_that_no_longer_helps_when_it_was_read_is_not_applied() {
        let mut reports = Reports::new(0);
        reports.lease(4, 0);
        reports.listed(list(4));
        assert!(reports.begin_reading(1).is_some());
        assert_eq!([6, 8].map(|number| applied(&mut reports, number)), [None; 2]);
        assert!(reports.end_reading(list(4), true).is_empty() && !reports.is_complete());
        assert_eq!(reports.ask(1_000_000), Some(7));
    }

    #[test]
    fn list_that_cannot_be_read_is_asked_for_again() {
        let mut reports = Reports::new(0);
        reports.lease(4, 0);
        reports.listed(list(4));
        assert_eq!((reports.begin_reading(1), reports.ask(1_000_000)), (Some(list(4)), None));
        reports.end_reading(list(4), false);
        assert_eq!(reports.ask(1_000_000), Some(4));
    }

    #[test]
    fn question_is_asked_once_a_second_and_not_after_that_of_another_instance() {
        let mut reports = Reports::new(0);
        reports.lease(4, 0);
        let asked: Vec<_> = (0..=2_000).filter(|now| reports.ask(*now).is_some()).collect();
        assert!(matches!(asked[..], [first, second] if first <= FIRST_ASK && second >= first + 1_000), "{asked:?}");
        let mut reports = Reports::new(0);
        reports.lease(4, 0);
        reports.asked(3, 0);
        assert!(reports.ask_at <= FIRST_ASK, "that list need not include the update 4");
        reports.asked(4, 0);
        assert!((0..1_000).all(|now| reports.ask(now).is_none()));
        assert_eq!(reports.ask(1_250), Some(4));
    }

    #[test]
    fn late_messages_change_nothing() {
        let mut reports = Reports::new(0);
        (1..6).for_each(|number| assert!(applied(&mut reports, number).is_some()));
        reports.lease(3, 0);
        assert_eq!([2, 5].map(|number| applied(&mut reports, number)), [None; 2]);
        assert!(reports.is_complete());
        reports.lease(6, 0);
        assert!(!reports.is_complete());
    }

    #[test]
    fn waiting_updates_are_bounded() {
        let mut reports = Reports::new(0);
        (2..2 + MAX_WAITING as u64 + 10).for_each(|number| assert!(applied(&mut reports, number).is_none()));
        assert_eq!((reports.waiting.len(), reports.needed), (MAX_WAITING, 11));
    }
}
