//! The headers of journals' entries, and what a session remembers about journals.

use std::collections::hash_map::HashMap;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_nats::HeaderMap;

use super::super::journal::{self, JournalId};
use super::super::{Answer, BackplaneError};
use super::names::JOURNAL;
use super::proof::Barrier;
use super::streams::JOURNAL_AGE;
use crate::sync::Mutex;

/// The maximum number of journals whose places a session remembers.
const PLACES: usize = 1024;

/// The content of the header of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Heading {
    pub(super) id: JournalId,
    /// The number of the entry.
    pub(super) number: u64,
    /// The time at which the journal began, in milliseconds of Unix time.
    pub(super) begun: u64,
    /// If the entry closes the journal, the time in milliseconds for which the journal is kept.
    pub(super) keep: Option<u64>,
}

impl Heading {
    pub(super) fn parse(headers: &HeaderMap) -> Answer<Self> {
        let parse = || {
            let mut parts = headers.get(JOURNAL)?.as_str().split(' ');
            let id = JournalId::new(u64::from_str_radix(parts.next()?, 16).ok()?)?;
            let (number, begun) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
            let keep = parts.next().map(str::parse).transpose().ok()?;
            Some(Self { id, number, begun, keep })
        };
        parse().ok_or_else(|| BackplaneError::rejected("an entry of a journal cannot be read"))
    }

    pub(super) fn write(&self) -> HeaderMap {
        let Self { id, number, begun, keep } = self;
        let keep = keep.map(|keep| format!(" {keep}")).unwrap_or_default();
        let mut headers = HeaderMap::new();
        headers.insert(JOURNAL, format!("{id} {number} {begun}{keep}"));
        headers
    }

    /// Returns whether the journal is forgotten, if this is its newest entry. The server stored the
    /// entry at `stored_at`.
    pub(super) fn is_forgotten(&self, stored_at: u64, now: u64) -> bool {
        let keep = self.keep.unwrap_or(millis(journal::IDLE));
        now >= stored_at.saturating_add(keep) || (self.keep.is_none() && self.is_too_old(now))
    }

    /// Returns whether the journal is so old that the server may soon remove its first entry.
    pub(super) fn is_too_old(&self, now: u64) -> bool {
        now >= self.begun.saturating_add(millis(JOURNAL_AGE))
    }
}

pub(super) fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Returns the time by the clock of this machine, in milliseconds of Unix time.
pub(super) fn now() -> u64 {
    millis(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
}

/// An entry of a journal and the number of its message in the stream.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub(super) heading: Heading,
    pub(super) sequence: u64,
}

/// Places by subject, each of the current journal when it was stored.
///
/// The places only save round trips: a writer checks a place by compare-and-set, and a reader skips
/// messages of another journal.
#[derive(Default)]
pub(super) struct Places(Mutex<HashMap<String, Place>>);

impl Places {
    pub(super) fn find(&self, subject: &str, id: JournalId) -> Option<Place> {
        self.0.lock().get(subject).copied().filter(|place| place.heading.id == id)
    }

    pub(super) fn remember(&self, subject: &str, place: Place) {
        let mut places = self.0.lock();
        if places.len() >= PLACES && !places.contains_key(subject) {
            places.clear();
        }
        places.insert(subject.to_owned(), place);
    }

    pub(super) fn forget(&self, subject: &str) {
        self.0.lock().remove(subject);
    }
}

/// What a session remembers about the journals.
#[derive(Default)]
pub(super) struct Known {
    /// Whether the stream of journals exists.
    pub(super) has_stream: AtomicBool,
    /// The newest entries that the session has written.
    pub(super) written: Places,
    /// The last entries of the pages that the session has read.
    pub(super) read: Places,
    /// The writes that precede a repeated read.
    pub(super) barrier: Barrier,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heading_round_trips_through_a_header() {
        let id = JournalId::new(0xab).unwrap();
        for keep in [None, Some(600_000)] {
            let heading = Heading { id, number: 7, begun: 1_795_866_000_000, keep };
            assert_eq!(Heading::parse(&heading.write()).unwrap(), heading);
        }
        for text in ["", "0 1 2", "ab 1", "ab 1 x", "ab 1 2 x"] {
            let mut headers = HeaderMap::new();
            headers.insert(JOURNAL, text);
            assert!(Heading::parse(&headers).unwrap_err().is_rejected(), "{text}");
        }
    }

    #[test]
    fn journal_is_forgotten_after_its_time_or_a_day_without_an_append_or_three_days() {
        let hour = 3_600_000;
        let open = Heading { id: JournalId::random(), number: 1, begun: 0, keep: None };
        let closed = Heading { keep: Some(hour), ..open };
        assert!(!open.is_forgotten(hour, 25 * hour - 1) && open.is_forgotten(hour, 25 * hour));
        assert!(!open.is_forgotten(71 * hour, 72 * hour - 1) && open.is_forgotten(71 * hour, 72 * hour));
        assert!(!closed.is_forgotten(71 * hour, 72 * hour - 1) && closed.is_forgotten(71 * hour, 72 * hour));
        assert!(!closed.is_forgotten(72 * hour, 72 * hour));
    }
}
