//! The members of instances that have ended.
//!
//! 1. When an instance ends, the witness with the lowest id publishes `hub.left` for the members of
//!    the ended instance ([`Ended::take_orphans`]). A witness is an instance that was connected for
//!    at least one lease before the last update or lease message of the ended instance, so that it
//!    has usually read the list of the ended instance. An instance that connected later is no
//!    witness, however low its id. Each instance that knows the members publishes the event, unless
//!    it knows a live witness with a lower id. So the event may be published twice rather than not
//!    at all.
//! 2. A witness may end before it has published the event. So an instance that leaves the event to
//!    a witness keeps the members until the witness must have published it.

use super::message::InstanceId;
use crate::log::Millis;
use crate::types::{Topic, UserId};

/// The time within which a change on one instance should reach all other instances, in
/// milliseconds. The value has a wide margin.
pub(super) const SETTLE: Millis = 2_000;

/// The ended instances with members for which `hub.left` may still have to be published.
#[derive(Debug, Default)]
pub(super) struct Ended(Vec<EndedInstance>);

/// An instance that has ended.
#[derive(Debug)]
struct EndedInstance {
    /// The other witnesses, as rule 1 of the module defines them.
    witnesses: Vec<InstanceId>,
    /// The members of the instance, each with the time of departure. The earliest departure is the
    /// last entry.
    members: Vec<(Millis, Topic, UserId)>,
}

impl Ended {
    /// Adds an instance with its members, each with the time of departure.
    pub(super) fn add(&mut self, witnesses: Vec<InstanceId>, mut members: Vec<(Millis, Topic, UserId)>) {
        if !members.is_empty() {
            members.sort_unstable_by_key(|(since, ..)| std::cmp::Reverse(*since));
            self.0.push(EndedInstance { witnesses, members });
        }
    }

    /// Removes the members whose wait is over. Returns those for which this instance has to publish
    /// `hub.left`: it knows no live witness with a lower id. `grace` is the time after which a
    /// member has left, and `lease` the time after which a silent instance has ended.
    pub(super) fn take_orphans(
        &mut self,
        instance: InstanceId,
        now: Millis,
        grace: Millis,
        lease: Millis,
        is_live: impl Fn(&InstanceId) -> bool,
    ) -> Vec<(Topic, UserId)> {
        let mut orphans = Vec::new();
        self.0.retain_mut(|EndedInstance { witnesses, members }| {
            let defers = witnesses.iter().any(|witness| *witness < instance && is_live(witness));
            // A witness may detect the end of the instance one lease later than this instance. This
            // instance needs another lease to detect that the witness has ended.
            let wait = grace.saturating_add(if defers { lease.saturating_mul(2) } else { 0 });
            while let Some((_, topic, user)) = members.pop_if(|(since, ..)| since.saturating_add(wait) <= now) {
                if !defers {
                    orphans.push((topic, user));
                }
            }
            !members.is_empty()
        });
        orphans
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
