//! The work on runs that waits for the tasks of a shared log. This code does no I/O.

use std::collections::hash_map::HashMap;
use std::collections::hash_set::HashSet;
use std::sync::Arc;

use bytes::Bytes;

use super::content::{Entry, RunContent};
use super::owners::Owners;
use crate::hub::peers::message::RunNews;
use crate::log::Millis;
use crate::types::{Epoch, Topic};

/// Under the lock of `SharedLog::runs`.
#[derive(Debug)]
pub(in crate::hub) struct Exchange {
    /// The runs of this instance that have new entries, to be announced to the other instances.
    pub(in crate::hub) changed: HashMap<Topic, RunNews>,
    /// The names of runs whose journals have new entries, or may have.
    pub(in crate::hub) wanted: HashSet<Topic>,
    /// The runs to be ended, because their callers are gone.
    pub(in crate::hub) ends: Vec<DueEnd>,
    /// The beginnings whose callers wait for the broker, by the first entry of the journal.
    pub(in crate::hub) beginnings: HashMap<Bytes, Awaited>,
    pub(in crate::hub) owners: Owners,
    /// Whether other instances may have ended the runs of this instance, because they may not have
    /// received its messages for some time.
    pub(in crate::hub) may_be_ended: bool,
}

/// A beginning whose caller waits for the broker.
#[derive(Debug)]
pub(in crate::hub) struct Awaited {
    pub(in crate::hub) name: Topic,
    /// The run that should stop, if another instance has asked for that already.
    pub(in crate::hub) stop: Option<Epoch>,
}

/// A run to be ended.
#[derive(Debug)]
pub(in crate::hub) enum DueEnd {
    Orphan(Orphan),
    /// A run that may have begun, by its name and the first entry of its journal. Its caller has
    /// given up.
    UnknownBeginning(Topic, Bytes),
}

/// A run whose writer is gone.
#[derive(Debug)]
pub(in crate::hub) struct Orphan {
    pub(in crate::hub) name: Topic,
    pub(in crate::hub) run: Arc<RunContent>,
    pub(in crate::hub) outgoing: Outgoing,
}

/// The entries of a run that the broker has not confirmed.
#[derive(Debug, Default)]
pub(in crate::hub) struct Outgoing {
    pub(in crate::hub) unconfirmed: Option<Unconfirmed>,
    /// The entry after `unconfirmed`. It has no number yet, because the broker may reject
    /// `unconfirmed`.
    pub(in crate::hub) next: Option<(Bytes, Entry)>,
}

/// An entry that has its number.
#[derive(Debug)]
pub(in crate::hub) struct Unconfirmed {
    /// The number of the entry in the journal.
    pub(in crate::hub) number: u64,
    pub(in crate::hub) bytes: Bytes,
    pub(in crate::hub) entry: Entry,
    /// Whether the broker may have the entry. Then no other entry may take its number.
    pub(in crate::hub) may_be_stored: bool,
}

impl Exchange {
    pub(in crate::hub) fn new(lease: Millis) -> Self {
        Self {
            changed: HashMap::new(),
            wanted: HashSet::new(),
            ends: Vec::new(),
            beginnings: HashMap::new(),
            may_be_ended: false,
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

    /// Notes the news of a broadcast that failed. News that were noted meanwhile stay.
    pub(in crate::hub) fn put_back(&mut self, news: impl IntoIterator<Item = (Topic, RunNews)>) {
        for (name, news) in news {
            self.changed.entry(name).or_insert(news);
        }
    }
}
