//! The limits and the answer of a read of the log.

use super::Stored;

/// The maximum number of records in the first request of a read, because their sizes are unknown.
#[cfg(any(feature = "nats", feature = "redis"))]
const FIRST_READ: usize = 64;

/// The limits of one [`Backplane::range`](super::Backplane::range).
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use tower_sse::backplane::{Backplane, Memory, NewRecord, ReadLimit};
///
/// let log = Memory::new();
/// log.append(vec![NewRecord::new("large".into()), NewRecord::new("larger".into())], None).await;
/// let read = log.range(0, ReadLimit::records(100).bytes(10)).await?;
/// assert_eq!(read.into_records().map(|records| records.len()), Some(1)); // both have eleven bytes
/// # Ok(()) }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ReadLimit {
    /// The maximum number of records.
    pub records: usize,
    /// The maximum total size of the payloads of the records in bytes. A first record that is
    /// larger is returned all the same.
    pub bytes: usize,
}

impl ReadLimit {
    /// Creates a limit of this number of records, of any size.
    #[must_use]
    pub const fn records(records: usize) -> Self {
        Self { records, bytes: usize::MAX }
    }

    /// Sets the maximum total size of the payloads in bytes.
    #[must_use]
    pub const fn bytes(self, bytes: usize) -> Self {
        Self { bytes, ..self }
    }

    /// Returns about how many further records fit into this limit, after `count` records of this
    /// total size. Returns at least one, and a small number if no size is known yet.
    #[cfg(any(feature = "nats", feature = "redis"))]
    pub(super) fn fitting(self, count: usize, bytes: usize) -> usize {
        let rest = self.bytes.saturating_sub(bytes).saturating_mul(count);
        rest.checked_div(bytes).map_or(FIRST_READ, |fitting| fitting.saturating_add(1))
    }

    /// Returns the first records, up to this limit. An adapter whose broker does not limit the size
    /// of a read can use this function.
    ///
    /// ```
    /// use tower_sse::backplane::{ReadLimit, Stored};
    ///
    /// let stored = [Stored::new(1, "large".into()), Stored::new(2, "larger".into())];
    /// assert_eq!(ReadLimit::records(9).bytes(10).take(stored.clone()).len(), 1);
    /// assert_eq!(ReadLimit::records(9).bytes(1).take(stored).len(), 1); // at least one record
    /// ```
    #[must_use]
    pub fn take(self, records: impl IntoIterator<Item = Stored>) -> Vec<Stored> {
        let mut bytes = 0;
        let mut taken = Vec::new();
        for record in records.into_iter().take(self.records) {
            bytes += record.payload.len();
            if bytes > self.bytes && !taken.is_empty() {
                break;
            }
            taken.push(record);
        }
        taken
    }
}

/// The answer to a [`Backplane::range`](super::Backplane::range). [`ReadLimit`] has an example.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Range {
    /// The records, in order. The list may be out of date: the log may have more records.
    Records(Vec<Stored>),
    /// The server cannot return the records now, and the adapter knows it: for example, a replica
    /// that answers is behind. So the answer proves nothing about the records. The hub reads again
    /// later, and does not count the records as missing meanwhile.
    ///
    /// `Nats` returns this answer in a cluster, if the leader of the stream has records that the
    /// answering replica lacks. `Redis` and [`Memory`](super::Memory) never return it: they read
    /// from the primary and from memory.
    NotYet,
}

impl Range {
    /// Returns the records, or `None` for [`NotYet`](Self::NotYet).
    #[must_use]
    pub fn into_records(self) -> Option<Vec<Stored>> {
        match self {
            Self::Records(records) => Some(records),
            Self::NotYet => None,
        }
    }
}
