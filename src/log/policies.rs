//! Which retention holds for which audience.

use crate::types::retention::{Kind, Retention};
use crate::types::{Address, TopicFilter};

/// Rules and defaults; the first matching rule wins. An audience has the same policy for ever.
#[derive(Clone, Debug)]
pub(crate) struct Policies {
    rules: Vec<TopicFilter>,
    /// Those of the rules, then for topics, users, everyone and connections.
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

    /// Whether the newest of each key is kept of what is for an address.
    pub(crate) fn keeps_values(&self, address: &Address) -> bool {
        self.get(self.index(address)).kind == Kind::LatestPerKey
    }

    pub(super) fn index(&self, address: &Address) -> usize {
        let defaults = self.rules.len();
        match address {
            Address::Topic(topic) => self.rules.iter().position(|rule| rule.matches(topic)).unwrap_or(defaults),
            Address::User(_) => defaults + 1,
            Address::Everyone => defaults + 2,
            Address::Connection(_) => defaults + 3,
        }
    }

    pub(super) fn get(&self, index: usize) -> &Retention {
        &self.retentions[index]
    }

    /// Each retention with its rule. The last four have none: they are the defaults.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (Option<&TopicFilter>, &Retention)> {
        let rules = self.rules.iter().map(Some).chain(std::iter::repeat(None));
        rules.zip(&self.retentions)
    }

    pub(super) fn all(&self) -> &[Retention] {
        &self.retentions
    }
}
