//! The instances that write runs, and whether they are alive.
//!
//! An instance is gone if it has sent its goodbye, or if this instance has received none of its
//! messages for a whole lease while this instance received messages. An instance that was never
//! heard gets a whole lease from the first question. So a run of an instance that has just started
//! is not taken for an abandoned one.

use std::collections::hash_map::HashMap;

use crate::hub::peers::message::InstanceId;
use crate::log::Millis;

/// The number of instances from which on silent ones are forgotten.
const MANY: usize = 1024;

#[derive(Debug)]
pub(in crate::hub) struct Owners {
    lease: Millis,
    known: HashMap<InstanceId, Owner>,
    /// The time from which on this instance receives messages without interruption.
    listening_since: Millis,
}

#[derive(Debug)]
struct Owner {
    /// The time of its last message, or of the first question about it.
    heard_at: Millis,
    has_left: bool,
}

impl Owners {
    pub(in crate::hub) fn new(lease: Millis) -> Self {
        Self { lease, known: HashMap::new(), listening_since: 0 }
    }

    /// Notes that this instance has connected to the broker again. It may have missed messages.
    pub(in crate::hub) fn reconnected(&mut self, now: Millis) {
        self.listening_since = now;
    }

    /// Notes a message of an instance.
    pub(in crate::hub) fn heard(&mut self, from: InstanceId, now: Millis) {
        if self.known.len() >= MANY {
            let lease = self.lease;
            self.known.retain(|_, owner| now.saturating_sub(owner.heard_at) <= lease);
        }
        self.known.insert(from, Owner { heard_at: now, has_left: false });
    }

    /// Notes the goodbye of an instance.
    pub(in crate::hub) fn left(&mut self, from: InstanceId, now: Millis) {
        self.known.insert(from, Owner { heard_at: now, has_left: true });
    }

    /// Returns whether an instance is gone. The caller makes sure that this instance receives
    /// messages now.
    pub(in crate::hub) fn is_gone(&mut self, owner: InstanceId, now: Millis) -> bool {
        let owner = self.known.entry(owner).or_insert(Owner { heard_at: now, has_left: false });
        owner.has_left || now.saturating_sub(owner.heard_at.max(self.listening_since)) > self.lease
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: InstanceId = InstanceId(1);

    #[test]
    fn an_instance_is_gone_after_its_goodbye_and_back_with_its_next_message() {
        let mut owners = Owners::new(100);
        owners.heard(ONE, 10);
        assert!(!owners.is_gone(ONE, 110));
        owners.left(ONE, 20);
        assert!(owners.is_gone(ONE, 20));
        owners.heard(ONE, 30);
        assert!(!owners.is_gone(ONE, 130));
    }

    #[test]
    fn an_instance_is_gone_after_a_whole_lease_of_silence() {
        let mut owners = Owners::new(100);
        owners.heard(ONE, 10);
        assert!(owners.is_gone(ONE, 111));
        // An instance that was never heard gets a lease from the first question.
        assert!(!owners.is_gone(InstanceId(2), 111));
        assert!(!owners.is_gone(InstanceId(2), 211));
        assert!(owners.is_gone(InstanceId(2), 212));
    }

    #[test]
    fn silence_while_this_instance_was_cut_off_does_not_count() {
        let mut owners = Owners::new(100);
        owners.heard(ONE, 10);
        owners.reconnected(500);
        assert!(!owners.is_gone(ONE, 600));
        assert!(owners.is_gone(ONE, 601));
    }
}
