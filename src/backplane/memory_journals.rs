//! Journals in the memory of this process.

use std::collections::hash_map::HashMap;

use bytes::Bytes;
use tokio::time::{Duration, Instant};

use super::journal::{self, Begun, JournalAppend, JournalId, JournalPage, fitting};

/// The journals of a [`Memory`](super::Memory), by key.
#[derive(Clone, Default)]
pub(super) struct MemoryJournals(HashMap<Box<str>, Journal>);

#[derive(Clone)]
struct Journal {
    id: JournalId,
    entries: Vec<Bytes>,
    is_closed: bool,
    /// The time at which the journal is forgotten.
    until: Instant,
}

impl MemoryJournals {
    pub(super) fn begin(&mut self, key: &str, first: Bytes) -> Begun {
        let now = Instant::now();
        self.0.retain(|_, journal| journal.until > now);
        if let Some(journal) = self.0.get(key).filter(|journal| !journal.is_closed) {
            let is_repeat = journal.entries.first() == Some(&first);
            return if is_repeat { Begun::New(journal.id) } else { Begun::Active(journal.id) };
        }
        let id = JournalId::random();
        let journal = Journal { id, entries: vec![first], is_closed: false, until: now + journal::IDLE };
        self.0.insert(key.into(), journal);
        Begun::New(id)
    }

    pub(super) fn append(
        &mut self,
        key: &str,
        id: JournalId,
        after: u64,
        entry: Bytes,
        close: Option<Duration>,
    ) -> JournalAppend {
        let now = Instant::now();
        let journal = self.0.get_mut(key).filter(|journal| journal.id == id && journal.until > now);
        let Some(journal) = journal else { return JournalAppend::Conflict };
        let count = journal.entries.len() as u64;
        if count > after {
            let index = usize::try_from(after).unwrap_or(usize::MAX);
            let has_closed = journal.is_closed && count == after + 1;
            let is_repeat = journal.entries.get(index) == Some(&entry) && has_closed == close.is_some();
            return if is_repeat { JournalAppend::Appended } else { JournalAppend::Conflict };
        }
        if count < after || journal.is_closed {
            return JournalAppend::Conflict;
        }
        journal.entries.push(entry);
        journal.is_closed = close.is_some();
        journal.until = now + close.map_or(journal::IDLE, |keep| keep.min(journal::MAX_KEEP));
        JournalAppend::Appended
    }

    /// Removes the newest entries of the current journal of a key, and opens the journal. Forgets a
    /// journal without entries. With 0 entries, nothing changes.
    #[cfg(feature = "test-kit")]
    pub(super) fn roll_back(&mut self, key: &str, entries: usize) {
        let Some(journal) = self.0.get_mut(key).filter(|_| entries > 0) else { return };
        journal.entries.truncate(journal.entries.len().saturating_sub(entries));
        journal.is_closed = false;
        journal.until = Instant::now() + journal::IDLE;
        if journal.entries.is_empty() {
            self.0.remove(key);
        }
    }

    pub(super) fn read(&self, key: &str, id: Option<JournalId>, after: u64, max_bytes: usize) -> Option<JournalPage> {
        let journal = self.0.get(key).filter(|journal| journal.until > Instant::now())?;
        if id.is_some_and(|id| id != journal.id) {
            return None;
        }
        let rest = journal.entries.get(usize::try_from(after).unwrap_or(usize::MAX)..).unwrap_or_default();
        let entries = rest[..fitting(rest, max_bytes)].to_vec();
        let last = journal.entries.len() as u64;
        Some(JournalPage { id: journal.id, entries, last, is_closed: journal.is_closed })
    }
}
