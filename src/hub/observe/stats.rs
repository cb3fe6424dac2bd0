//! The hub seen from outside.

use crate::types::{EndReason, GapReason, Position, RefusalReason};

/// A snapshot: [`Hub::stats`](crate::Hub::stats). The counters run since the hub was built. Serialises
/// with the feature `json`.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Stats {
    /// Streams that are open now.
    pub connections: usize,
    /// Topics, users and others that the hub remembers now.
    pub channels: usize,
    /// Users who are online now, or were less than
    /// [`HubBuilder::presence_grace`](crate::HubBuilder::presence_grace) ago.
    pub users: usize,
    /// The bytes of memory that the log holds now, without current values. The estimate is within 20 % of
    /// what the hub has allocated. [`HubBuilder::retention_budget`](crate::HubBuilder::retention_budget)
    /// bounds it, and says what counts.
    pub retained_bytes: usize,
    /// The bytes of memory that current values hold now, bounded by
    /// [`HubBuilder::keyed_budget`](crate::HubBuilder::keyed_budget).
    pub keyed_bytes: usize,
    /// The newest position.
    pub position: Position,
    /// Streams opened ever.
    pub connected: u64,
    /// Events published ever.
    pub published: u64,
    /// Events handed to streams ever, each stream counted.
    pub delivered: u64,
    /// Other instances that are known now.
    pub others: usize,
    /// Records of a shared log that could not be read, ever.
    pub skipped: u64,
    /// Records that the hub's byte budgets pushed out ever.
    pub evicted: u64,
    /// The largest number of records, of all topics, by which an open stream is behind.
    pub lag: u64,
    /// Open streams that had something to do and were not polled for more than a second.
    pub stalled: usize,
    pub(in crate::hub) gaps: Vec<u64>,
    pub(in crate::hub) refused: Vec<u64>,
    pub(in crate::hub) ended: Vec<u64>,
}

impl Stats {
    /// How many gaps were told for this reason.
    #[must_use]
    pub fn gaps(&self, reason: GapReason) -> u64 {
        self.gaps[reason as usize]
    }

    /// How many requests were told to come back for this reason.
    #[must_use]
    pub fn refused(&self, reason: RefusalReason) -> u64 {
        self.refused[reason as usize]
    }

    /// How many streams ended for this reason.
    #[must_use]
    pub fn ended(&self, reason: EndReason) -> u64 {
        self.ended[reason as usize]
    }
}

/// An object with a field for each figure; those by reason are objects in it.
#[cfg(feature = "json")]
impl serde::Serialize for Stats {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeMap;

        struct By<'a, R>(&'a [R], fn(R) -> &'static str, &'a [u64]);
        impl<R: Copy> serde::Serialize for By<'_, R> {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                let Self(all, word, counts) = self;
                serializer.collect_map(all.iter().map(|reason| word(*reason)).zip(*counts))
            }
        }

        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("connections", &self.connections)?;
        map.serialize_entry("channels", &self.channels)?;
        map.serialize_entry("users", &self.users)?;
        map.serialize_entry("retained_bytes", &self.retained_bytes)?;
        map.serialize_entry("keyed_bytes", &self.keyed_bytes)?;
        map.serialize_entry("position", &self.position.to_string())?;
        map.serialize_entry("connected", &self.connected)?;
        map.serialize_entry("published", &self.published)?;
        map.serialize_entry("delivered", &self.delivered)?;
        map.serialize_entry("others", &self.others)?;
        map.serialize_entry("skipped", &self.skipped)?;
        map.serialize_entry("evicted", &self.evicted)?;
        map.serialize_entry("lag", &self.lag)?;
        map.serialize_entry("stalled", &self.stalled)?;
        map.serialize_entry("gaps", &By(GapReason::ALL, GapReason::as_str, &self.gaps))?;
        map.serialize_entry("refused", &By(RefusalReason::ALL, RefusalReason::as_str, &self.refused))?;
        map.serialize_entry("ended", &By(EndReason::ALL, EndReason::as_str, &self.ended))?;
        map.end()
    }
}
