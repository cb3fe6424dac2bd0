//! What this instance has to report to the others. Pure: time is passed in.
//!
//! 1. A connection that changes is noted at once. All that were noted are reported together, in numbered messages.
//! 2. Presence events wait here until the broker has them, in their order. While the broker is away
//!    for long, the oldest are dropped.
//! 3. A snapshot of presence names a position from before everything that other instances may not have reported yet
//!    ([`Outbox::settled_position`]).

use std::collections::hash_set::HashSet;
use std::collections::vec_deque::VecDeque;

use super::table::SETTLE;
use crate::log::Millis;
use crate::types::{ConnectionId, Event, Position, Topic, UserId};

/// How many presence events wait for the broker at most.
const WAITING: usize = 10_000;

#[derive(Debug, Default)]
pub(in crate::hub) struct Outbox {
    changed: HashSet<ConnectionId>,
    /// All connections are to be reported.
    all: bool,
    /// Of the last report.
    pub(in crate::hub) number: u64,
    /// The instance has said goodbye: its connections are not reported any more.
    pub(in crate::hub) is_closed: bool,
    /// Oldest first.
    presence: VecDeque<PresenceEvent>,
    /// How many presence events were dropped because the queue was full, ever.
    dropped: u64,
    /// Where the log was, a while ago; newest last.
    positions: VecDeque<(Millis, Position)>,
}

/// A presence event about a member of a topic.
#[derive(Clone, Debug)]
pub(in crate::hub) struct PresenceEvent {
    pub(in crate::hub) topic: Topic,
    pub(in crate::hub) user: UserId,
    pub(in crate::hub) event: Event,
}

/// The connections that are to be reported.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::hub) enum Due {
    All,
    Changed(HashSet<ConnectionId>),
}

impl Outbox {
    /// A connection of this instance has come, changed or gone.
    pub(in crate::hub) fn changed(&mut self, id: ConnectionId) {
        if !self.all {
            self.changed.insert(id);
        }
    }

    /// All are to be reported, so also those that have changed.
    pub(in crate::hub) fn report_all(&mut self) {
        self.all = true;
        self.changed.clear();
    }

    /// Takes the connections that are to be reported, if there are any.
    pub(in crate::hub) fn take_due(&mut self) -> Option<Due> {
        if std::mem::take(&mut self.all) {
            return Some(Due::All);
        }
        let changed = std::mem::take(&mut self.changed);
        (!changed.is_empty()).then_some(Due::Changed(changed))
    }

    /// Queues a presence event for the shared log.
    pub(in crate::hub) fn announce(&mut self, topic: Topic, user: UserId, event: Event) {
        if self.presence.len() == WAITING {
            self.presence.pop_front();
            self.dropped += 1;
        }
        self.presence.push_back(PresenceEvent { topic, user, event });
    }

    /// The next presence events, and what [`announced`](Self::announced) needs to know of this moment. They stay in the
    /// queue until the broker has answered: the task that asks it may be replaced while it waits.
    pub(in crate::hub) fn presence(&self, most: usize) -> (Vec<PresenceEvent>, u64) {
        (self.presence.iter().take(most).cloned().collect(), self.dropped)
    }

    /// Takes events out that [`presence`](Self::presence) has returned, but for those that are to be tried `again`, of
    /// which the newest comes first.
    pub(in crate::hub) fn announced(&mut self, count: usize, dropped: u64, again: Vec<PresenceEvent>) {
        // Fewer if the queue was full and the oldest were dropped meanwhile.
        let dropped = usize::try_from(self.dropped - dropped).unwrap_or(usize::MAX);
        let done = count.saturating_sub(dropped).min(self.presence.len());
        self.presence.drain(..done);
        again.into_iter().for_each(|event| self.presence.push_front(event));
    }

    pub(in crate::hub) fn note_position(&mut self, now: Millis, position: Position) {
        self.positions.push_back((now, position));
        while self.positions.get(1).is_some_and(|(at, _)| at.saturating_add(SETTLE) <= now) {
            self.positions.pop_front();
        }
    }

    /// Where the log was before what others have not reported yet: from there on nothing is missed.
    pub(in crate::hub) fn settled_position(&self) -> Option<Position> {
        self.positions.front().map(|(_, position)| *position)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Epoch;

    #[test]
    fn a_report_of_all_includes_the_connections_that_changed() {
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
    fn a_presence_event_stays_until_it_is_appended() {
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
        assert_eq!(names(&outbox)[0], 3, "the one that was dropped is not taken out again");
    }

    #[test]
    fn the_settled_position_is_old_enough() {
        let mut outbox = Outbox::default();
        assert_eq!(outbox.settled_position(), None);
        for now in [0, 500, 1_000, 2_500, 2_600] {
            outbox.note_position(now, Position::new(Epoch(1), now));
        }
        assert_eq!(outbox.settled_position(), Some(Position::new(Epoch(1), 500)));
    }
}
