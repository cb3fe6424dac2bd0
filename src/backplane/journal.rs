//! Journals: the storage of runs at a broker.
//!
//! A *journal* stores one run: a list of entries that one writer appends, and which the writer
//! closes. Its storage is separate from the common log, so that records of the log never remove an
//! entry of a journal. An entry is opaque bytes, made by a hub. A journal is stored whole, or the
//! broker has forgotten it: no reader receives a journal with a hole.

use std::fmt;
use std::num::NonZeroU64;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;

use super::BackplaneError;

/// The time after which a broker may forget an open journal to which nothing was appended. The time
/// is longer than the longest pause of a run, and it bounds the storage of journals that were never
/// closed, because all instances ended before they could close them.
pub(crate) const IDLE: Duration = Duration::from_secs(24 * 3600);
/// The maximum time for which a closed journal is kept. The limit lets an adapter set an age at
/// which the broker removes every entry.
pub(crate) const MAX_KEEP: Duration = Duration::from_secs(24 * 3600);

/// Journals at a broker: the storage of runs. This trait is a part of
/// [`Backplane`](super::Backplane).
///
/// A journal has a key, which is a text of at most 512 bytes, and an id, which the adapter chooses.
/// A key has at most one current journal. The entries of a journal are numbered 1, 2, 3 and so on,
/// without holes. Entry 1 is `first` of [`begin_journal`](Self::begin_journal).
///
/// - **Compare-and-swap.** An append names the journal and the number of its entries. So an append
///   has no effect if another caller has appended to the journal, closed it or replaced it.
/// - **Repeats.** A caller repeats a call that failed with an
///   [unknown](BackplaneError::is_unknown) error. The repeated call has no further effect if the
///   first call had its effect, and then it returns success.
/// - **Expiry.** A broker forgets a closed journal when its time has passed. A broker may forget an
///   open journal to which nothing was appended for 24 hours. `Nats` also forgets an open journal
///   three days after it began.
/// - **Loss.** A broker that loses its data has no journal. It never returns a journal with a hole.
///   A broker that was restored from a backup may have a journal without its newest entries. Then
///   the next append of the writer returns [`JournalAppend::Conflict`].
/// - **Time limits.** Every call returns within the adapter's own time limits.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use std::time::Duration;
/// use tower_sse::backplane::{Begun, JournalAppend, Journals, Memory};
///
/// let log = Memory::new();
/// let Begun::New(id) = log.begin_journal("answers/7", "Hel".into()).await? else { panic!("another writer") };
/// let keep = Duration::from_secs(600);
/// let appended = log.append_journal("answers/7", id, 1, "lo".into(), Some(keep)).await?;
/// assert_eq!(appended, JournalAppend::Appended);
///
/// let page = log.read_journal("answers/7", None, 0, 1 << 20).await?.ok_or("no journal")?;
/// assert_eq!(page.entries, ["Hel", "lo"]);
/// assert!(page.is_closed);
/// # Ok(()) }
/// ```
pub trait Journals: Send + Sync + 'static {
    /// Begins a journal with its first entry, unless the key has an open journal.
    ///
    /// Replaces a closed journal of the key. Of several callers that begin a journal at once, one
    /// receives [`Begun::New`], and the others receive [`Begun::Active`].
    ///
    /// If the open journal has `first` as its first entry, the call is a repeat, and returns
    /// [`Begun::New`] with the id of this journal. So `first` must contain a random number that
    /// distinguishes this call from the calls of other writers.
    fn begin_journal(&self, key: &str, first: Bytes) -> BoxFuture<'_, Result<Begun, BackplaneError>>;

    /// Appends the entry with the number `after + 1`, if the journal `id` is the current journal of
    /// the key, is open, and has exactly `after` entries.
    ///
    /// `close` closes the journal with this entry. The broker then forgets the journal after the
    /// time in `close`. A time above 24 hours counts as 24 hours.
    ///
    /// If the journal already has an entry `after + 1` with the same bytes, and was closed with
    /// this entry exactly if `close` is set, the call is a repeat and returns
    /// [`JournalAppend::Appended`].
    fn append_journal(
        &self,
        key: &str,
        id: JournalId,
        after: u64,
        entry: Bytes,
        close: Option<Duration>,
    ) -> BoxFuture<'_, Result<JournalAppend, BackplaneError>>;

    /// Returns the entries with numbers above `after` of the current journal of the key, starting
    /// with the oldest. [`JournalPage`] has an example.
    ///
    /// The page has about `max_bytes` at most, and at least one entry if the journal has an entry
    /// above `after`. Returns `None` if the key has no journal, or if `id` is set and is not the id
    /// of the current journal.
    fn read_journal(
        &self,
        key: &str,
        id: Option<JournalId>,
        after: u64,
        max_bytes: usize,
    ) -> BoxFuture<'_, Result<Option<JournalPage>, BackplaneError>>;
}

/// The id of a journal: a random number that is not zero.
///
/// ```
/// use tower_sse::backplane::JournalId;
///
/// let id = JournalId::new(0x2a).ok_or("zero is not an id")?;
/// assert_eq!((id.get(), id.to_string()), (42, "2a".to_owned()));
/// # Ok::<(), &str>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct JournalId(NonZeroU64);

impl JournalId {
    /// Creates an id of a number. Returns `None` for zero.
    #[must_use]
    pub const fn new(id: u64) -> Option<Self> {
        match NonZeroU64::new(id) {
            Some(id) => Some(Self(id)),
            None => None,
        }
    }

    /// Creates a random id, for a journal that an adapter begins.
    #[must_use]
    pub fn random() -> Self {
        Self(NonZeroU64::MIN.saturating_add(fastrand::u64(..u64::MAX)))
    }

    /// Returns the number.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0.get()
    }
}

/// Writes the number in hexadecimal, as the epoch of a [`Position`](crate::Position).
impl fmt::Display for JournalId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}", self.0)
    }
}

/// The result of [`Journals::begin_journal`].
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use tower_sse::backplane::{Begun, Journals, Memory};
///
/// let log = Memory::new();
/// let Begun::New(id) = log.begin_journal("answers/7", "writer 1".into()).await? else { panic!() };
/// assert_eq!(log.begin_journal("answers/7", "writer 2".into()).await?, Begun::Active(id));
/// # Ok(()) }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Begun {
    /// The call began this journal.
    New(JournalId),
    /// The key already has this open journal.
    Active(JournalId),
}

/// The result of [`Journals::append_journal`].
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use tower_sse::backplane::{Begun, JournalAppend, Journals, Memory};
///
/// let log = Memory::new();
/// let Begun::New(id) = log.begin_journal("answers/7", "first".into()).await? else { panic!() };
/// let appended = log.append_journal("answers/7", id, 1, "second".into(), None).await?;
/// assert_eq!(appended, JournalAppend::Appended);
/// let late = log.append_journal("answers/7", id, 1, "also second".into(), None).await?;
/// assert_eq!(late, JournalAppend::Conflict);
/// # Ok(()) }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum JournalAppend {
    /// The journal has the entry.
    Appended,
    /// The journal is not the current journal of the key, is closed, or has another number of
    /// entries. The call had no effect.
    Conflict,
}

/// A part of a journal, which [`Journals::read_journal`] returns.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use tower_sse::backplane::{Begun, JournalPage, Journals, Memory};
///
/// let log = Memory::new();
/// let Begun::New(id) = log.begin_journal("answers/7", "first".into()).await? else { panic!() };
/// log.append_journal("answers/7", id, 1, "second".into(), None).await?;
/// let page = log.read_journal("answers/7", Some(id), 1, 1 << 20).await?;
/// assert_eq!(page, Some(JournalPage::new(id, vec!["second".into()], 2, false)));
/// # Ok(()) }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct JournalPage {
    /// The id of the journal.
    pub id: JournalId,
    /// The entries with the numbers `after + 1`, `after + 2` and so on.
    pub entries: Vec<Bytes>,
    /// The number of the newest entry of the journal. The page may end before this entry.
    pub last: u64,
    /// Whether the journal was closed with the entry `last`.
    pub is_closed: bool,
}

impl JournalPage {
    /// Creates a page with these entries of a journal whose newest entry has the number `last`.
    #[must_use]
    pub const fn new(id: JournalId, entries: Vec<Bytes>, last: u64, is_closed: bool) -> Self {
        Self { id, entries, last, is_closed }
    }
}

/// Returns how many of these entries, from the first on, fit into a page: at least one.
pub(super) fn fitting<'e>(entries: impl IntoIterator<Item = &'e Bytes>, max_bytes: usize) -> usize {
    let mut bytes = 0_usize;
    let fits = |&(index, entry): &(usize, &Bytes)| {
        bytes = bytes.saturating_add(entry.len());
        index == 0 || bytes <= max_bytes
    };
    entries.into_iter().enumerate().take_while(fits).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_has_entries_up_to_its_size_and_at_least_one() {
        let entries = ["12345", "67", "8"].map(Bytes::from);
        for (max_bytes, count) in [(0, 1), (4, 1), (5, 1), (6, 1), (7, 2), (8, 3), (usize::MAX, 3)] {
            assert_eq!(fitting(&entries, max_bytes), count, "{max_bytes}");
        }
        assert_eq!(fitting([], 8), 0);
    }
}
