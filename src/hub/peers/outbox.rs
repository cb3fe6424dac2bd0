//! The changes and presence events that this instance has to report to the other instances. This
//! code does no I/O, and callers pass the time.
//!
//! 1. Each change of a connection is noted at once. The control task sends the noted connections
//!    together, in numbered presence updates ([`Outbox::take_changed`]). A presence update that the
//!    broker has not confirmed is sent again with the same number, so that other instances that
//!    have received it ignore the repetition ([`Outbox::sending`]).
//! 2. The list of all connections is stored at the broker when another instance asks for it, at
//!    most once for each [`LIST_PAUSE`]. A list that includes what the other instance needs is only
//!    announced again ([`Outbox::asked`]). Each attempt has a new serial number, because the broker
//!    may still store a part of an attempt that has failed. An attempt does not overwrite the
//!    stored list. If the broker executes a failed attempt after a later list was stored, it may
//!    overwrite parts of that list. Instances then cannot read the list, and ask for another one.
//! 3. Presence events wait in their order until the broker has appended them
//!    ([`Outbox::announced`]). If the queue is full, for example because the broker is unavailable
//!    for a long time, the oldest events are dropped.
//! 4. The position of a snapshot of presence is a little older than the snapshot, so that changes
//!    which other instances have not reported yet come after the position
//!    ([`Outbox::settled_position`]).

use std::collections::hash_set::HashSet;
use std::collections::vec_deque::VecDeque;

use bytes::Bytes;

use super::message::List;
use super::witnesses::SETTLE;
use crate::log::Millis;
use crate::macros::shrink_if_sparse;
use crate::types::{ConnectionId, Event, Position, Topic, UserId};

/// The maximum number of presence events that wait for the broker.
const WAITING: usize = 10_000;

/// The minimum time between two stored lists, in milliseconds.
const LIST_PAUSE: Millis = 1_000;
/// The time for which a stored list is announced again, in milliseconds. The broker stores it twice
/// as long, so that the other instances have time to read it.
pub(in crate::hub) const LIST_AGE: Millis = 30_000;

/// The outgoing changes and presence events, under the lock of `SharedLog::outbox`. The code that
/// changes a connection adds them, and the control task takes them.
#[derive(Debug, Default)]
pub(in crate::hub) struct Outbox {
    /// The connections that have changed since the last presence update.
    changed: HashSet<ConnectionId>,
    /// The number of the last presence update that the broker has confirmed.
    number: u64,
    /// The presence update with the next number, while it is sent.
    sending: Option<Bytes>,
    /// Whether another instance needs a lease message now.
    pub(in crate::hub) lease_is_due: bool,
    /// Whether the list of all connections has to be stored.
    list_is_due: bool,
    /// Whether the newest stored list has to be announced again.
    listed_is_due: bool,
    /// The newest stored list, and the time at which it was stored.
    list: Option<(Millis, List)>,
    /// The serial number of the last list that was to be stored.
    serial: u64,
    /// The time at which a list could not be stored.
    failed_at: Option<Millis>,
    /// Whether the instance sends or has sent its goodbye. The instance then sends no further
    /// report about itself.
    pub(in crate::hub) is_closed: bool,
    /// The presence events that wait for the broker, the oldest first.
    presence: VecDeque<PresenceEvent>,
    /// The number of presence events that were ever dropped because the queue was full.
    dropped: u64,
    /// Recent positions of the log with their times, the newest last.
    positions: VecDeque<(Millis, Position)>,
}

/// A presence event about a member of a topic.
#[derive(Clone, Debug)]
pub(in crate::hub) struct PresenceEvent {
    pub(in crate::hub) topic: Topic,
    pub(in crate::hub) user: UserId,
    pub(in crate::hub) event: Event,
}

impl Outbox {
    /// Notes that a connection of this instance was opened, changed or closed.
    pub(in crate::hub) fn changed(&mut self, id: ConnectionId) {
        self.changed.insert(id);
    }

    /// Returns the number of the last presence update that the broker has confirmed.
    pub(in crate::hub) fn number(&self) -> u64 {
        self.number
    }

    /// Returns the number of changed connections.
    pub(in crate::hub) fn changes(&self) -> usize {
        self.changed.len()
    }

    /// Takes up to `most` changed connections for the next presence update.
    pub(in crate::hub) fn take_changed(&mut self, most: usize) -> Vec<ConnectionId> {
        if self.changed.len() <= most {
            return std::mem::take(&mut self.changed).into_iter().collect();
        }
        let taken: Vec<_> = self.changed.iter().take(most).copied().collect();
        taken.iter().for_each(|id| _ = self.changed.remove(id));
        shrink_if_sparse!(self.changed);
        taken
    }

    /// Notes connections again that were taken for a presence update.
    pub(in crate::hub) fn put_back(&mut self, ids: impl IntoIterator<Item = ConnectionId>) {
        self.changed.extend(ids);
    }

    /// Returns the presence update that the broker has not confirmed, with its number.
    pub(in crate::hub) fn sending(&self) -> Option<(u64, Bytes)> {
        Some((self.number + 1, self.sending.clone()?))
    }

    /// Begins to send a presence update with the number after [`number`](Self::number).
    pub(in crate::hub) fn send(&mut self, update: Bytes) {
        self.sending = Some(update);
    }

    /// Notes that the broker has confirmed the presence update with this number.
    pub(in crate::hub) fn sent(&mut self, number: u64) {
        // Another task may have replaced the one that has sent the update, and have sent it too.
        if self.sending.is_some() && number == self.number + 1 {
            (self.number, self.sending) = (number, None);
        }
    }

    /// Notes that another instance needs a list that includes the presence updates up to this
    /// number.
    pub(in crate::hub) fn asked(&mut self, needed: u64, now: Millis) {
        match self.list {
            Some((at, list)) if list.number >= needed && now <= at.saturating_add(LIST_AGE) => {
                self.listed_is_due = true;
            }
            _ => self.list_is_due = true,
        }
    }

    /// Returns the serial number and the presence update number of the list that has to be stored
    /// now, if there is one.
    pub(in crate::hub) fn take_list_due(&mut self, now: Millis) -> Option<(u64, u64)> {
        let last = self.list.map(|(at, _)| at).into_iter().chain(self.failed_at).max();
        let may_store = last.is_none_or(|at| at.saturating_add(LIST_PAUSE) <= now);
        if !may_store || !std::mem::take(&mut self.list_is_due) {
            return None;
        }
        self.serial += 1;
        // Other instances may read the stored list, so its keys stay as they are.
        if self.list.is_some_and(|(_, list)| list.serial % 2 == self.serial % 2) {
            self.serial += 1;
        }
        Some((self.serial, self.number))
    }

    /// Notes that a list was stored. It has to be announced.
    pub(in crate::hub) fn stored(&mut self, list: List, now: Millis) {
        // Another task may have replaced the one that has stored this list, and have stored a newer
        // one.
        if self.list.is_none_or(|(_, newest)| newest.serial < list.serial) {
            self.list = Some((now, list));
            self.listed_is_due = true;
        }
    }

    /// Notes that a list could not be stored. It was not announced, so no instance reads its parts.
    /// An instance that needs the list asks again.
    pub(in crate::hub) fn not_stored(&mut self, now: Millis) {
        self.failed_at = Some(now);
    }

    /// Returns the list that has to be announced now, if there is one.
    pub(in crate::hub) fn take_listed(&mut self) -> Option<List> {
        let is_due = std::mem::take(&mut self.listed_is_due);
        self.list.filter(|_| is_due).map(|(_, list)| list)
    }

    /// Queues a presence event for the shared log. Drops the oldest event if the queue is full.
    pub(in crate::hub) fn announce(&mut self, topic: Topic, user: UserId, event: Event) {
        // There may be more: `announced` puts events back that were dropped meanwhile.
        while self.presence.len() >= WAITING {
            self.presence.pop_front();
            self.dropped += 1;
        }
        self.presence.push_back(PresenceEvent { topic, user, event });
    }

    /// Returns up to `most` of the oldest presence events. Also returns the number of events that
    /// were dropped so far, for [`announced`](Self::announced). The events stay in the queue until
    /// the broker has answered, because another task may replace the control task while that task
    /// waits.
    pub(in crate::hub) fn presence(&self, most: usize) -> (Vec<PresenceEvent>, u64) {
        (self.presence.iter().take(most).cloned().collect(), self.dropped)
    }

    /// Removes the `count` events that [`presence`](Self::presence) has returned, and then queues
    /// the events in `again`, which are in reverse order, at the front. `dropped` is the number
    /// that `presence` has returned.
    pub(in crate::hub) fn announced(&mut self, count: usize, dropped: u64, again: Vec<PresenceEvent>) {
        // Some of the events may have been dropped meanwhile, because the queue was full.
        let dropped = usize::try_from(self.dropped - dropped).unwrap_or(usize::MAX);
        let done = count.saturating_sub(dropped).min(self.presence.len());
        self.presence.drain(..done);
        again.into_iter().for_each(|event| self.presence.push_front(event));
    }

    /// Notes the current position of the log.
    pub(in crate::hub) fn note_position(&mut self, now: Millis, position: Position) {
        self.positions.push_back((now, position));
        while self.positions.get(1).is_some_and(|(at, _)| at.saturating_add(SETTLE) <= now) {
            self.positions.pop_front();
        }
    }

    /// Returns the newest noted position that was at least [`SETTLE`] old at the last call of
    /// [`note_position`](Self::note_position). If no position was that old, because the instance
    /// has just started, returns the oldest noted position.
    ///
    /// Other instances report a change within [`SETTLE`]. So a client that has a snapshot of
    /// presence, and then reads the events after this position, misses no change.
    pub(in crate::hub) fn settled_position(&self) -> Option<Position> {
        self.positions.front().map(|(_, position)| *position)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Epoch;

    #[test]
    fn queue_of_presence_events_is_bounded_when_events_are_put_back() {
        let mut outbox = Outbox::default();
        let announce = |outbox: &mut Outbox| {
            outbox.announce(Topic::from(7), UserId::from(1), Event::unnamed("joined"));
        };
        (0..WAITING).for_each(|_| announce(&mut outbox));
        let (events, dropped) = outbox.presence(256);
        // The queue is full, so these drop the oldest events while the broker is asked.
        (0..10).for_each(|_| announce(&mut outbox));
        outbox.announced(events.len(), dropped, events.into_iter().rev().collect());
        announce(&mut outbox);
        assert_eq!(outbox.presence.len(), WAITING);
    }

    #[test]
    fn changed_connection_is_taken_once_in_batches() {
        let mut outbox = Outbox::default();
        (0..7).chain(0..7).for_each(|id| outbox.changed(ConnectionId::from_bits(id)));
        let mut taken: Vec<_> = [3, 3, 3, 3].into_iter().flat_map(|most| outbox.take_changed(most)).collect();
        taken.sort_unstable();
        assert_eq!(taken, (0..7).map(ConnectionId::from_bits).collect::<Vec<_>>());
    }

    #[test]
    fn presence_update_is_sent_with_one_number_until_it_is_confirmed() {
        let mut outbox = Outbox::default();
        outbox.send("first".into());
        assert_eq!(outbox.sending(), Some((1, "first".into())));
        assert_eq!((outbox.sending(), outbox.number()), (Some((1, "first".into())), 0));
        outbox.sent(1);
        assert_eq!((outbox.sending(), outbox.number()), (None, 1));
        outbox.send("second".into());
        outbox.sent(1);
        assert_eq!(outbox.sending(), Some((2, "second".into())), "the first was confirmed twice");
    }

    #[test]
    fn list_is_stored_once_for_all_instances_that_ask() {
        let mut outbox = Outbox { number: 7, ..Outbox::default() };
        assert_eq!((outbox.take_list_due(0), outbox.take_listed()), (None, None));
        (0..3).for_each(|_| outbox.asked(5, 10));
        assert_eq!((outbox.take_list_due(10), outbox.take_list_due(10)), (Some((1, 7)), None));
        let list = List { number: 7, serial: 1, parts: 2 };
        outbox.stored(list, 10);
        assert_eq!((outbox.take_listed(), outbox.take_listed()), (Some(list), None));
        // The stored list includes what this instance needs.
        outbox.asked(7, 20);
        assert_eq!((outbox.take_list_due(20), outbox.take_listed()), (None, Some(list)));
        outbox.asked(8, 20);
        assert_eq!((outbox.take_list_due(1_009), outbox.take_list_due(1_010)), (None, Some((2, 7))));
        outbox.stored(List { serial: 2, ..list }, 1_010);
        outbox.asked(7, 1_010 + LIST_AGE + 1);
        assert_eq!(outbox.take_list_due(100_000), Some((3, 7)), "the list may be gone");
        outbox.not_stored(100_000);
        assert_eq!(outbox.take_list_due(101_000), None, "an instance that needs the list asks again");
        outbox.asked(7, 100_500);
        assert_eq!(
            (outbox.take_list_due(100_999), outbox.take_list_due(101_000)),
            (None, Some((5, 7))),
            "the parts of list 2 stay"
        );
    }

    /// Otherwise a reader could combine the parts of two attempts with different connections.
    #[test]
    fn two_attempts_to_store_a_list_never_have_the_same_serial_number() {
        let mut outbox = Outbox::default();
        let list = |serial| List { number: 0, serial, parts: 1 };
        outbox.asked(0, 0);
        assert_eq!(outbox.take_list_due(0), Some((1, 0)));
        outbox.not_stored(0);
        outbox.asked(0, 1_000);
        assert_eq!(outbox.take_list_due(1_000), Some((2, 0)), "the first attempt may still be stored");
        // A task that replaces the one with the second attempt begins a third one.
        outbox.asked(0, 2_000);
        assert_eq!(outbox.take_list_due(2_000), Some((3, 0)));
        outbox.stored(list(3), 2_000);
        outbox.stored(list(2), 2_100);
        assert_eq!(outbox.take_listed(), Some(list(3)), "the older attempt replaces no newer list");
    }

    #[test]
    fn presence_event_stays_queued_until_it_is_appended() {
        let mut outbox = Outbox::default();
        let names = |outbox: &Outbox| -> Vec<_> {
            let (events, _) = outbox.presence(WAITING);
            events.iter().map(|event| event.user.as_str().parse::<usize>().unwrap()).collect()
        };
        let announce = |outbox: &mut Outbox, users: std::ops::Range<usize>| {
            users.for_each(|user| outbox.announce(Topic::from(7), UserId::from(user), Event::new("hub.left", "{}")));
        };
        announce(&mut outbox, 0..4);
        let (events, dropped) = outbox.presence(3);
        outbox.announced(3, dropped, vec![events[2].clone(), events[0].clone()]);
        assert_eq!(names(&outbox), [0, 2, 3]);
        let (events, dropped) = outbox.presence(2);
        announce(&mut outbox, 4..WAITING + 2);
        assert_eq!(names(&outbox)[..2], [2, 3], "the oldest was dropped");
        outbox.announced(events.len(), dropped, Vec::new());
        assert_eq!(names(&outbox)[0], 3, "the dropped event is not removed twice");
    }

    #[test]
    fn settled_position_is_older_than_the_settle_time() {
        let mut outbox = Outbox::default();
        assert_eq!(outbox.settled_position(), None);
        for now in [0, 500, 1_000, 2_500, 2_600] {
            outbox.note_position(now, Position::new(Epoch(1), now));
        }
        assert_eq!(outbox.settled_position(), Some(Position::new(Epoch(1), 500)));
    }
}
