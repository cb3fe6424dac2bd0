//! The changes and presence events that this instance has to report to the other instances. This
//! code does no I/O, and callers pass the time.
//!
//! 1. Each change of a connection is noted at once. The control task sends the noted connections
//!    together, in numbered presence updates ([`Outbox::take_due`]).
//! 2. Presence events wait in their order until the broker has appended them
//!    ([`Outbox::announced`]). If the queue is full, for example because the broker is unavailable
//!    for a long time, the oldest events are dropped.
//! 3. The position of a snapshot of presence is a little older than the snapshot, so that changes
//!    which other instances have not reported yet come after the position
//!    ([`Outbox::settled_position`]).

use std::collections::hash_set::HashSet;
use std::collections::vec_deque::VecDeque;

use super::table::SETTLE;
use crate::log::Millis;
use crate::types::{ConnectionId, Event, Position, Topic, UserId};

/// The maximum number of presence events that wait for the broker.
const WAITING: usize = 10_000;

/// The outgoing changes and presence events, under the lock of `SharedLog::outbox`. The code that
/// changes a connection adds them, and the control task takes them.
#[derive(Debug, Default)]
pub(in crate::hub) struct Outbox {
    /// The connections that have changed since the last presence update.
    changed: HashSet<ConnectionId>,
    /// Whether the complete list is due. `changed` is then empty.
    all: bool,
    /// The number of the last presence update.
    pub(in crate::hub) number: u64,
    /// Whether the instance sends or has sent its goodbye. The instance then starts no further
    /// presence update.
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

/// The connections that the next presence updates contain.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::hub) enum Due {
    All,
    Changed(HashSet<ConnectionId>),
}

impl Outbox {
    /// Notes that a connection of this instance was opened, changed or closed.
    pub(in crate::hub) fn changed(&mut self, id: ConnectionId) {
        if !self.all {
            self.changed.insert(id);
        }
    }

    /// Makes the complete list due, which includes all noted changes.
    pub(in crate::hub) fn report_all(&mut self) {
        self.all = true;
        self.changed.clear();
    }

    /// Takes the connections for the next presence update, if there are any.
    pub(in crate::hub) fn take_due(&mut self) -> Option<Due> {
        if std::mem::take(&mut self.all) {
            return Some(Due::All);
        }
        let changed = std::mem::take(&mut self.changed);
        (!changed.is_empty()).then_some(Due::Changed(changed))
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
    fn complete_list_includes_the_changed_connections() {
        let (mut outbox, one) = (Outbox::default(), ConnectionId::from_bits(1));
        assert_eq!(outbox.take_due(), None);
        outbox.changed(one);
        outbox.changed(one);
        assert_eq!(outbox.take_due(), Some(Due::Changed([one].into())));
        outbox.changed(one);
        outbox.report_all();
        outbox.changed(one);
        assert_eq!((outbox.take_due(), outbox.take_due()), (Some(Due::All), None));
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
