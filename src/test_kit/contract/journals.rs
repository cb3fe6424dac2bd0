//! The rules of journals, the storage of runs.

use std::time::Duration;

use bytes::Bytes;
use futures::future::try_join_all;
use tokio::time::{Instant, sleep, timeout};

use super::rule::{LIMIT, Logs, Outcome, PAUSE, bytes, call, ensure, ensure_eq, text};
use crate::backplane::{Backplane, Begun, JournalAppend, JournalId, JournalPage};

const KEY: &str = "answers/7";
const HOUR: Option<Duration> = Some(Duration::from_secs(3600));
const ALL: usize = usize::MAX;

async fn begin(log: &dyn Backplane, key: &str, first: &str) -> Outcome<Begun> {
    call(log.begin_journal(key, bytes(first))).await
}

async fn begin_new(log: &dyn Backplane, key: &str, first: &str) -> Outcome<JournalId> {
    match begin(log, key, first).await? {
        Begun::New(id) => Ok(id),
        Begun::Active(id) => Err(format!("a writer could not begin a journal: the journal {id} is active").into()),
    }
}

/// Appends an entry to the journal of [`KEY`].
async fn append(
    log: &dyn Backplane,
    id: JournalId,
    after: u64,
    entry: &str,
    close: Option<Duration>,
) -> Outcome<JournalAppend> {
    call(log.append_journal(KEY, id, after, bytes(entry), close)).await
}

/// Appends an entry, which has to succeed.
async fn appended(log: &dyn Backplane, id: JournalId, after: u64, entry: &str, close: Option<Duration>) -> Outcome {
    let result = append(log, id, after, entry, close).await?;
    ensure_eq!(result, JournalAppend::Appended, "the append of {entry:?} after entry {after}");
    Ok(())
}

/// Appends an entry, which has to be a conflict.
async fn conflict(
    log: &dyn Backplane,
    id: JournalId,
    after: u64,
    entry: &str,
    close: Option<Duration>,
    reason: &str,
) -> Outcome {
    let result = append(log, id, after, entry, close).await?;
    ensure_eq!(result, JournalAppend::Conflict, "the append of {entry:?} after entry {after} ({reason})");
    Ok(())
}

async fn read(log: &dyn Backplane, key: &str, id: Option<JournalId>, after: u64) -> Outcome<Option<JournalPage>> {
    call(log.read_journal(key, id, after, ALL)).await
}

/// Returns the current journal of a key, which has to exist.
async fn current(log: &dyn Backplane, key: &str) -> Outcome<JournalPage> {
    read(log, key, None, 0).await?.ok_or_else(|| format!("the key {key:?} has no journal").into())
}

/// Returns the entries of the current journal of a key, or an empty list without a journal.
async fn entries(log: &dyn Backplane, key: &str) -> Outcome<Vec<String>> {
    Ok(read(log, key, None, 0).await?.map_or_else(Vec::new, |page| texts(&page.entries)))
}

fn texts(entries: &[Bytes]) -> Vec<String> {
    entries.iter().map(text).collect()
}

fn page(id: JournalId, entries: &[&str], last: u64, is_closed: bool) -> Option<JournalPage> {
    let entries = entries.iter().map(|entry| bytes(entry)).collect();
    Some(JournalPage { id, entries, last, is_closed })
}

/// Returns an id that no journal has.
fn unknown_id() -> JournalId {
    JournalId::random()
}

/// Waits until the key has no journal.
async fn forgotten(log: &dyn Backplane) -> Outcome {
    let forgotten = async {
        while read(log, KEY, None, 0).await?.is_some() {
            sleep(PAUSE).await;
        }
        Ok(())
    };
    let late = || format!("the journal is not forgotten within {LIMIT:?}").into();
    timeout(LIMIT, forgotten).await.unwrap_or_else(|_| Err(late()))
}

/// Eight writers begin a journal of one key at once. Returns the id of the journal.
async fn compete(logs: &Logs<'_>, key: &str, round: usize) -> Outcome<JournalId> {
    let connections: Vec<_> = (0..8).map(|_| logs.connect()).collect();
    let firsts: Vec<_> = (0..8).map(|n| format!("writer {round}.{n}")).collect();
    let begun = connections.iter().zip(&firsts).map(|(log, first)| begin(&**log, key, first));
    let begun = try_join_all(begun).await?;
    let page = current(&*connections[0], key).await?;
    let winners: Vec<_> = begun.iter().zip(&firsts).filter(|(begun, _)| **begun == Begun::New(page.id)).collect();
    let others = begun.iter().filter(|begun| **begun == Begun::Active(page.id)).count();
    ensure_eq!((winners.len(), others), (1, 7), "the number of writers that began the journal, and of others");
    ensure_eq!(texts(&page.entries), [winners[0].1.as_str()], "the entries of the journal");
    Ok(page.id)
}

pub(super) async fn one_of_many_simultaneous_writers_begins_a_journal(logs: &Logs<'_>) -> Outcome {
    for round in 0..10 {
        compete(logs, &format!("answers/{round}"), round).await?;
    }
    Ok(())
}

pub(super) async fn one_of_many_simultaneous_writers_replaces_a_closed_journal(logs: &Logs<'_>) -> Outcome {
    let log = logs.connect();
    let mut last = begin_new(&*log, KEY, "first").await?;
    for round in 0..10 {
        appended(&*log, last, 1, "last", HOUR).await?;
        let id = compete(logs, KEY, round).await?;
        ensure!(id != last, "a new journal has the id of the journal that it replaces");
        last = id;
    }
    Ok(())
}

/// The instance that ends the run of a dead writer may compete with the writer.
pub(super) async fn one_of_several_simultaneous_appends_with_one_number_succeeds(logs: &Logs<'_>) -> Outcome {
    let connections: Vec<_> = (0..4).map(|_| logs.connect()).collect();
    let id = begin_new(&*connections[0], KEY, "first").await?;
    for after in 1..=50 {
        let appends = connections.iter().enumerate().map(|(n, log)| {
            let (entry, close) = (format!("{after}.{n}"), if after == 50 && n % 2 == 0 { HOUR } else { None });
            async move { append(&**log, id, after, &entry, close).await }
        });
        let results = try_join_all(appends).await?;
        let successes = results.iter().filter(|result| **result == JournalAppend::Appended).count();
        ensure_eq!(successes, 1, "the number of appends after entry {after} that succeeded");
    }
    ensure_eq!(entries(&*connections[0], KEY).await?.len(), 51, "the number of entries");
    Ok(())
}

pub(super) async fn an_open_journal_is_active_until_it_is_closed(logs: &Logs<'_>) -> Outcome {
    let log = logs.connect();
    let id = begin_new(&*log, KEY, "first").await?;
    ensure_eq!(begin(&*log, KEY, "other writer").await?, Begun::Active(id), "the second writer's call");
    appended(&*log, id, 1, "second", None).await?;
    ensure_eq!(begin(&*log, KEY, "other writer").await?, Begun::Active(id), "the second writer's call");
    ensure_eq!(read(&*log, KEY, None, 0).await?, page(id, &["first", "second"], 2, false), "the open journal");
    appended(&*log, id, 2, "last", HOUR).await?;
    let closed = page(id, &["first", "second", "last"], 3, true);
    ensure_eq!(read(&*log, KEY, None, 0).await?, closed, "the closed journal");
    Ok(())
}

pub(super) async fn a_closed_journal_is_replaced_by_the_next_one(logs: &Logs<'_>) -> Outcome {
    let log = logs.connect();
    let old = begin_new(&*log, KEY, "old").await?;
    appended(&*log, old, 1, "old end", HOUR).await?;
    let new = begin_new(&*log, KEY, "new").await?;
    ensure!(old != new, "two journals have the same id");
    ensure_eq!(read(&*log, KEY, None, 0).await?, page(new, &["new"], 1, false), "the new journal");
    ensure_eq!(read(&*log, KEY, Some(new), 1).await?, page(new, &[], 1, false), "the new journal after entry 1");
    ensure_eq!(read(&*log, KEY, Some(old), 0).await?, None, "the old journal");
    conflict(&*log, old, 2, "late", None, "to the old journal").await?;
    appended(&*log, new, 1, "second", None).await?;
    ensure_eq!(entries(&*log, KEY).await?, ["new", "second"], "the entries");
    Ok(())
}

pub(super) async fn an_append_that_does_not_fit_is_a_conflict(logs: &Logs<'_>) -> Outcome {
    let log = logs.connect();
    let unknown = unknown_id();
    conflict(&*log, unknown, 1, "x", None, "without a journal").await?;
    let id = begin_new(&*log, KEY, "first").await?;
    conflict(&*log, unknown, 1, "x", None, "with another id").await?;
    for after in [0, 2, 3, u64::MAX - 1, u64::MAX] {
        conflict(&*log, id, after, "x", None, "with another number of entries").await?;
    }
    appended(&*log, id, 1, "second", None).await?;
    conflict(&*log, id, 1, "x", None, "another entry has this number").await?;
    conflict(&*log, id, 1, "second", HOUR, "the entry did not close the journal").await?;
    appended(&*log, id, 2, "last", HOUR).await?;
    conflict(&*log, id, 2, "last", None, "the entry closed the journal").await?;
    conflict(&*log, id, 3, "late", None, "the journal is closed").await?;
    conflict(&*log, id, 3, "late", HOUR, "the journal is closed").await?;
    ensure_eq!(entries(&*log, KEY).await?, ["first", "second", "last"], "the entries");
    Ok(())
}

/// A caller repeats a call whose outcome is unknown, perhaps on another connection.
pub(super) async fn repeated_calls_have_their_effect_once(logs: &Logs<'_>) -> Outcome {
    let (one, two) = (logs.connect(), logs.connect());
    let id = begin_new(&*one, KEY, "first").await?;
    ensure_eq!(begin(&*two, KEY, "first").await?, Begun::New(id), "the repeated call that begins the journal");
    for (after, entry, close) in [(1, "second", None), (2, "second", None), (3, "last", HOUR)] {
        for log in [&one, &two, &one] {
            appended(&**log, id, after, entry, close).await?;
        }
    }
    // An earlier entry also counts.
    for (after, entry) in [(1, "second"), (2, "second")] {
        appended(&*two, id, after, entry, None).await?;
    }
    let expected = page(id, &["first", "second", "second", "last"], 4, true);
    ensure_eq!(read(&*one, KEY, None, 0).await?, expected, "the journal");
    let next = begin_new(&*one, KEY, "next").await?;
    appended(&*one, next, 1, "more", None).await?;
    ensure_eq!(begin(&*two, KEY, "next").await?, Begun::New(next), "the repeated call that begins the next journal");
    ensure_eq!(entries(&*one, KEY).await?, ["next", "more"], "the entries of the next journal");
    Ok(())
}

pub(super) async fn a_journal_is_read_in_pages_of_limited_size(logs: &Logs<'_>) -> Outcome {
    let log = logs.connect();
    ensure_eq!(read(&*log, KEY, None, 0).await?, None, "the journal of a new key");
    let id = begin_new(&*log, KEY, "entry 0001").await?;
    for after in 1..40 {
        appended(&*log, id, after, &format!("entry {:04}", after + 1), None).await?;
    }
    let expected: Vec<_> = (1..=40).map(|n| format!("entry {n:04}")).collect();
    for (max_bytes, most) in [(0, 1), (1, 1), (25, 2), (100, 10), (ALL, 40)] {
        let mut all = Vec::new();
        while all.len() < 40 {
            let after = all.len() as u64;
            let page = call(log.read_journal(KEY, Some(id), after, max_bytes)).await?;
            let Some(page) = page else { return Err(format!("no page after entry {after}").into()) };
            ensure_eq!((page.id, page.last, page.is_closed), (id, 40, false), "the head of a page");
            let count = page.entries.len();
            ensure!((1..=most).contains(&count), "a page of at most {max_bytes} bytes has {count} entries");
            all.extend(texts(&page.entries));
        }
        ensure_eq!(all, expected, "the entries in pages of {max_bytes} bytes");
    }
    for after in [40, 41, u64::MAX] {
        ensure_eq!(read(&*log, KEY, None, after).await?, page(id, &[], 40, false), "the page after entry {after}");
    }
    ensure_eq!(read(&*log, KEY, Some(unknown_id()), 0).await?, None, "the page of an unknown journal");
    Ok(())
}

pub(super) async fn a_closed_journal_is_forgotten_after_its_time(logs: &Logs<'_>) -> Outcome {
    let log = logs.connect();
    let id = begin_new(&*log, KEY, "first").await?;
    // Before the append, because the broker counts the time from a moment during the append.
    let closed_at = Instant::now();
    appended(&*log, id, 1, "last", Some(Duration::from_secs(5))).await?;
    ensure_eq!(entries(&*log, KEY).await?, ["first", "last"], "the entries of the closed journal");
    forgotten(&*log).await?;
    let after = closed_at.elapsed();
    ensure!(after >= Duration::from_millis(4_500), "a journal that is kept for 5 s is forgotten after {after:?}");
    ensure_eq!(read(&*log, KEY, Some(id), 0).await?, None, "the forgotten journal");
    ensure_eq!(read(&*logs.connect(), KEY, None, 0).await?, None, "the forgotten journal, on another connection");
    conflict(&*log, id, 2, "late", None, "the journal is forgotten").await?;
    conflict(&*log, id, 1, "last", HOUR, "the journal is forgotten").await?;
    begin_new(&*log, KEY, "next").await?;
    ensure_eq!(entries(&*log, KEY).await?, ["next"], "the entries of the next journal");
    Ok(())
}

/// An application may set any time, also one that exceeds the range of a clock.
pub(super) async fn a_journal_may_be_closed_for_any_time(logs: &Logs<'_>) -> Outcome {
    let log = logs.connect();
    let id = begin_new(&*log, KEY, "first").await?;
    appended(&*log, id, 1, "last", Some(Duration::MAX)).await?;
    ensure_eq!(entries(&*log, KEY).await?, ["first", "last"], "the entries of a journal with the longest time");
    let id = begin_new(&*log, KEY, "next").await?;
    appended(&*log, id, 1, "last", Some(Duration::ZERO)).await?;
    forgotten(&*log).await
}

pub(super) async fn journals_of_two_keys_are_independent(logs: &Logs<'_>) -> Outcome {
    let log = logs.connect();
    let one = begin_new(&*log, KEY, "one").await?;
    let two = begin_new(&*log, "answers/8", "two").await?;
    appended(&*log, one, 1, "one end", HOUR).await?;
    conflict(&*log, two, 1, "x", None, "with the id of another key").await?;
    ensure_eq!(read(&*log, "answers/8", None, 0).await?, page(two, &["two"], 1, false), "the second journal");
    ensure_eq!(read(&*log, KEY, None, 0).await?, page(one, &["one", "one end"], 2, true), "the first journal");
    Ok(())
}

pub(super) async fn keys_and_entries_may_have_any_bytes(logs: &Logs<'_>) -> Outcome {
    let log = logs.connect();
    let long = "ä".repeat(127);
    let keys = ["", " ", "a", "A", "a.b", "a.*", ">", "*", "a b", "{a}", "a}:log", "%61", "\0\r\n", "ä", "🦀", &long];
    for key in keys {
        begin_new(&*log, key, key).await?;
    }
    for key in keys {
        ensure_eq!(entries(&*log, key).await?, [key], "the entries of the key {key:?}");
    }
    let all = Bytes::from((0..=255).collect::<Vec<u8>>());
    let Begun::New(id) = call(log.begin_journal(KEY, all.clone())).await? else {
        return Err("a writer could not begin a journal with an entry of all bytes".into());
    };
    for (after, entry) in [(1, Bytes::new()), (2, all.clone())] {
        for _ in 0..2 {
            let result = call(log.append_journal(KEY, id, after, entry.clone(), None)).await?;
            ensure_eq!(result, JournalAppend::Appended, "the append after entry {after}, and its repeat");
        }
    }
    ensure_eq!(current(&*log, KEY).await?.entries, [all.clone(), Bytes::new(), all], "the entries");
    Ok(())
}
