//! The work on runs that waits for the tasks of a shared log. This code does no I/O.

use std::collections::hash_map::HashMap;
use std::collections::hash_set::HashSet;
use std::sync::Arc;

use bytes::Bytes;

use super::content::{Entry, RunContent};
use super::owners::Owners;
use crate::hub::peers::message::RunNews;
use crate::log::Millis;
use crate::types::Topic;

/// Under the lock of `SharedLog::runs`.
#[derive(Debug)]
pub(in crate::hub) struct Exchange {
    /// The runs of this instance that have new entries, to be announced to the other instances.
    pub(in crate::hub) changed: HashMap<Topic, RunNews>,
    /// The names of runs whose journals have new entries, or may have.
    pub(in crate::hub) wanted: HashSet<Topic>,
    /// The runs whose writers are gone, to be ended.
    pub(in crate::hub) orphans: Vec<Orphan>,
    /// The beginnings of which this instance does not know whether the broker has stored them.
    pub(in crate::hub) abandoned: Vec<(Topic, Bytes)>,
    pub(in crate::hub) owners: Owners,
}

/// A run whose writer is gone.
#[derive(Debug)]
pub(in crate::hub) struct Orphan {
    pub(in crate::hub) name: Topic,
    pub(in crate::hub) run: Arc<RunContent>,
    /// An entry that the broker has not confirmed yet.
    pub(in crate::hub) unconfirmed: Option<Unconfirmed>,
}

/// An entry that was sent to the broker.
#[derive(Debug)]
pub(in crate::hub) struct Unconfirmed {
    /// The number of the entry in the journal.
    pub(in crate::hub) number: u64,
    pub(in crate::hub) bytes: Bytes,
    pub(in crate::hub) entry: Entry,
}

impl Exchange {
    pub(in crate::hub) fn new(lease: Millis) -> Self {
        Self {
            changed: HashMap::new(),
            wanted: HashSet::new(),
            orphans: Vec::new(),
            abandoned: Vec::new(),
            owners: Owners::new(lease),
        }
    }

    /// Notes that a run has a new entry.
    pub(in crate::hub) fn note(&mut self, name: &Topic, news: RunNews) {
        let known = self.changed.entry(name.clone()).or_insert(news);
        if known.id != news.id || known.entries < news.entries {
            *known = news;
        }
    }

    pub(in crate::hub) fn has_work(&self) -> bool {
        !self.wanted.is_empty() || !self.orphans.is_empty() || !self.abandoned.is_empty()
    }
}
