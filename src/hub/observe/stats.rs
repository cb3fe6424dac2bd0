//! The hub seen from outside.

use crate::types::{EndReason, GapReason, Position, RefusalReason};

/// A count for each reason, beside the reason's word, in the order of the reasons.
pub(in crate::hub) type ByReason = Vec<(&'static str, u64)>;

/// A snapshot: [`Hub::stats`](crate::Hub::stats). The counters run since the hub was built. Serializes
/// with serde to an object with a field for each figure. Counts by reason are objects.
#[derive(Clone, Debug, serde::Serialize)]
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
    #[serde(serialize_with = "as_object")]
    pub(in crate::hub) gaps: ByReason,
    #[serde(serialize_with = "as_object")]
    pub(in crate::hub) refused: ByReason,
    #[serde(serialize_with = "as_object")]
    pub(in crate::hub) ended: ByReason,
}

impl Stats {
    /// How many gaps were told for this reason.
    #[must_use]
    pub fn gaps(&self, reason: GapReason) -> u64 {
        self.gaps[reason as usize].1
    }

    /// How many requests were told to come back for this reason.
    #[must_use]
    pub fn refused(&self, reason: RefusalReason) -> u64 {
        self.refused[reason as usize].1
    }

    /// How many streams ended for this reason.
    #[must_use]
    pub fn ended(&self, reason: EndReason) -> u64 {
        self.ended[reason as usize].1
    }
}

fn as_object<S: serde::Serializer>(counts: &[(&str, u64)], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(counts.iter().copied())
}

#[cfg(test)]
mod tests {
    use crate::Hub;

    #[test]
    fn statistics_are_an_object_with_objects_by_reason() {
        let hub = Hub::builder().build().unwrap();
        let json = serde_json::to_string(&hub.stats()).unwrap();
        assert!(json.starts_with(r#"{"connections":0,"channels":"#), "{json}");
        assert!(json.contains(&format!(r#""position":"{}","connected":0"#, hub.position())), "{json}");
        assert!(json.contains(r#""stalled":0,"gaps":{"trimmed":0,"epoch":0,"#), "{json}");
    }
}
