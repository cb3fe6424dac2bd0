//! Statistics of a hub.

use crate::types::{EndReason, GapReason, Position, RefusalReason};

/// The name and the count of each reason, in the order of the reasons.
pub(in crate::hub) type ByReason = Vec<(&'static str, u64)>;

/// A snapshot of the hub's counts and sizes, returned by [`Hub::stats`](crate::Hub::stats).
///
/// The counters start at zero when the hub is built. The snapshot serializes with serde to an
/// object with a field for each value. The counts by reason are nested objects.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let hub = tower_sse::Hub::builder().build()?;
/// use tower_sse::{EndReason, GapReason, RefusalReason, Subscription};
///
/// drop(hub.subscribe(Subscription::for_user("ada"), None)?);
/// let stats = hub.stats();
/// assert_eq!((stats.connections, stats.connected), (0, 1));
/// assert_eq!((stats.ended(EndReason::Client), stats.gaps(GapReason::Trimmed)), (1, 0));
/// assert_eq!(stats.refused(RefusalReason::Limit), 0);
/// # Ok(()) }
/// ```
#[derive(Clone, Debug, serde::Serialize)]
#[non_exhaustive]
pub struct Stats {
    /// The number of streams that are open now.
    pub connections: usize,
    /// The number of topics, users and other addresses for which the hub holds state now.
    pub channels: usize,
    /// The number of users that this instance remembers: users with an open stream, and users whose
    /// last stream or [`Target::join`](crate::Target::join) was about
    /// [`HubBuilder::presence_grace`](crate::HubBuilder::presence_grace) ago at most.
    pub users: usize,
    /// The memory of retained events except current values, in bytes. This estimate is within 20 %
    /// of the memory that the hub has allocated for them. With a shared log, an event of an
    /// audience without listeners counts 32 bytes.
    /// [`HubBuilder::retention_budget`](crate::HubBuilder::retention_budget) limits this memory,
    /// and its documentation lists the parts that count.
    pub retained_bytes: usize,
    /// The memory of current values, in bytes.
    /// [`HubBuilder::keyed_budget`](crate::HubBuilder::keyed_budget) limits this memory.
    pub keyed_bytes: usize,
    /// The newest position in the log, as [`Hub::position`](crate::Hub::position) returns it.
    pub position: Position,
    /// The number of streams that were opened since the hub was built.
    pub connected: u64,
    /// The number of events that were published through this hub since it was built.
    pub published: u64,
    /// The number of events that were delivered to streams since the hub was built. An event counts
    /// for each stream that has read it, even if the client has not received it yet.
    pub delivered: u64,
    /// The number of bytes of streams that were passed to the server since the hub was built,
    /// before compression and encryption. This field needs the feature `metrics`.
    #[cfg(feature = "metrics")]
    pub sent_bytes: u64,
    /// Whether the hub cannot follow the shared log now. Always false with the log of this process.
    pub stale: bool,
    /// The number of other instances that count as alive now.
    pub others: usize,
    /// The number of records of a shared log that could not be read, since the hub was built. The
    /// hub reads a record of a topic or user without listeners on this instance only when a stream
    /// needs the record. A record counts each time that it is read.
    pub skipped: u64,
    /// The number of control messages of other instances, and of parts of them, that could not be
    /// read, since the hub was built. They are of a newer version of the crate, for example during
    /// an upgrade.
    pub unread: u64,
    /// The number of records that the byte budgets of the hub dropped, since the hub was built.
    pub evicted: u64,
    /// The largest distance of an open stream from the newest position, in records of all topics
    /// and users. A stream without work to do does not count.
    pub lag: u64,
    /// The number of open streams to clients that have had work to do for more than a second and
    /// were not polled meanwhile. Streams in this process do not count.
    pub stalled: usize,
    #[serde(serialize_with = "as_object")]
    pub(in crate::hub) gaps: ByReason,
    #[serde(serialize_with = "as_object")]
    pub(in crate::hub) refused: ByReason,
    #[serde(serialize_with = "as_object")]
    pub(in crate::hub) ended: ByReason,
}

impl Stats {
    /// Returns the number of gaps that were reported for this reason.
    #[must_use]
    pub fn gaps(&self, reason: GapReason) -> u64 {
        self.gaps[reason as usize].1
    }

    /// Returns the number of requests that got a retryable refusal for this reason.
    #[must_use]
    pub fn refused(&self, reason: RefusalReason) -> u64 {
        self.refused[reason as usize].1
    }

    /// Returns the number of streams that ended for this reason.
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
    fn stats_serialize_to_an_object_with_nested_objects_by_reason() {
        let hub = Hub::builder().build().unwrap();
        let json = serde_json::to_string(&hub.stats()).unwrap();
        assert!(json.starts_with(r#"{"connections":0,"channels":"#), "{json}");
        assert!(json.contains(&format!(r#""position":"{}","connected":0"#, hub.position())), "{json}");
        assert!(json.contains(r#""stalled":0,"gaps":{"trimmed":0,"epoch":0,"#), "{json}");
    }
}
