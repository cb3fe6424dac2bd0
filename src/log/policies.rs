//! The retention of each address.

use crate::types::retention::{Kind, Retention};
use crate::types::{Address, TopicFilter};

/// The retention rules and the defaults. The first matching rule applies, or else a default. The
/// policy of an address never changes.
#[derive(Clone, Debug)]
pub(crate) struct Policies {
    rules: Vec<TopicFilter>,
    /// The retentions of the rules, then the defaults for topics, users, everyone and connections.
    retentions: Vec<Retention>,
}

impl Policies {
    pub(crate) fn new(
        rules: Vec<(TopicFilter, Retention)>,
        topics: Retention,
        users: Retention,
        everyone: Retention,
        connections: Retention,
    ) -> Self {
        let (rules, mut retentions): (Vec<_>, Vec<_>) = rules.into_iter().unzip();
        retentions.extend([topics, users, everyone, connections]);
        Self { rules, retentions }
    }

    /// Returns whether the channel of this address keeps the newest record of each key.
    pub(crate) fn keeps_values(&self, address: &Address) -> bool {
        self.get(self.index(address)).kind == Kind::LatestPerKey
    }

    pub(super) fn index(&self, address: &Address) -> usize {
        let defaults = self.rules.len();
        match address {
            Address::Topic(topic) => self.rules.iter().position(|rule| rule.matches(topic)).unwrap_or(defaults),
            Address::User(_) => defaults + 1,
            Address::Everyone(_) | Address::EveryScope => defaults + 2,
            Address::Connection(..) => defaults + 3,
        }
    }

    pub(super) fn get(&self, index: usize) -> &Retention {
        &self.retentions[index]
    }

    /// Returns each retention with its rule. The last four are the defaults and have no rule.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (Option<&TopicFilter>, &Retention)> {
        let rules = self.rules.iter().map(Some).chain(std::iter::repeat(None));
        rules.zip(&self.retentions)
    }

    pub(super) fn all(&self) -> &[Retention] {
        &self.retentions
    }
}
