//! The topics of the connections of other instances. Each is stored once, and connections refer to
//! it by number.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;

use hashbrown::HashTable;
use roaring::RoaringBitmap;

use super::slots::Slots;
use crate::types::{ScopeName, Scoped, Topic, TopicFilter};

#[derive(Debug, Default)]
pub(super) struct Topics {
    slots: Slots<PeerTopic>,
    by_name: HashTable<u32>,
    /// The filters of the topics with presence events.
    rules: Vec<TopicFilter>,
    hasher: RandomState,
}

/// A topic on other instances.
#[derive(Debug, Default)]
pub(super) struct PeerTopic {
    /// `None` for a number that is not used.
    pub(super) name: Option<Topic>,
    pub(super) connections: RoaringBitmap,
    pub(super) has_events: bool,
}

impl Topics {
    pub(super) fn new(rules: Vec<TopicFilter>) -> Self {
        Self { rules, ..Self::default() }
    }

    /// Returns the number of a topic.
    pub(super) fn find(&self, name: &Topic) -> Option<u32> {
        let is_named = |topic: &u32| self.slots.get(*topic).name.as_ref() == Some(name);
        self.by_name.find(self.hasher.hash_one(Some(name)), is_named).copied()
    }

    /// Returns the number of a topic. Adds an unknown topic. `scope` is the scope of the topic, and
    /// all its topics share its text.
    pub(super) fn number(&mut self, name: &Topic, scope: &ScopeName) -> u32 {
        if let Some(topic) = self.find(name) {
            return topic;
        }
        let has_events = self.rules.iter().any(|rule| rule.matches(name));
        // The topic shares the text of its scope. It is in this scope, so there is no error.
        let shared = name.clone().placed_in(scope).ok();
        let topic = self.slots.insert(PeerTopic { name: shared, has_events, ..PeerTopic::default() });
        let (hasher, slots) = (&self.hasher, &self.slots);
        let hash = |topic: &u32| hasher.hash_one(&slots.get(*topic).name);
        self.by_name.insert_unique(hasher.hash_one(Some(name)), topic, hash);
        topic
    }

    /// Returns a topic by its number.
    pub(super) fn get(&self, topic: u32) -> &PeerTopic {
        self.slots.get(topic)
    }

    pub(super) fn at(&mut self, topic: u32) -> &mut PeerTopic {
        self.slots.at(topic)
    }

    /// Removes a topic without connections.
    pub(super) fn remove(&mut self, topic: u32) {
        let hash = self.hasher.hash_one(&self.slots.get(topic).name);
        if let Ok(entry) = self.by_name.find_entry(hash, |number| *number == topic) {
            entry.remove();
            self.slots.remove(topic);
        }
    }

    /// Returns the allocated memory in bytes. The memory of bitmaps is an estimate.
    #[cfg(any(test, feature = "test-kit"))]
    pub(super) fn allocated(&self) -> usize {
        let of_topic = |topic: &PeerTopic| {
            // The text has two reference counts. The text of the scope belongs to the scope.
            let name = topic.name.as_ref().map_or(0, |name| (name.as_str().len() + 16).next_multiple_of(8));
            name + super::memory::of_bitmap(&topic.connections)
        };
        let topics: usize = (0..self.slots.end()).map(|topic| of_topic(self.slots.get(topic))).sum();
        self.slots.allocated() + self.by_name.allocation_size() + topics
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.slots.len() == 0 && self.by_name.is_empty()
    }
}
