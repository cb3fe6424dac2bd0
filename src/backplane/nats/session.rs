//! What is known of the log over one connection, and whether it still is the log that it was.
//!
//! 1. A bucket says which epoch is in force, of which stream (by when that was created), and how far it had come. It is
//!    changed by compare-and-set only: of several instances that notice a loss, one names the new epoch.
//! 2. The bucket and the values are read before the log, so what they knew is never ahead of it by chance.
//! 3. A log that is missing is made by one of those who miss it: who puts a claim into the bucket first.
//! 4. The stream takes plain records on the subject of the epoch in force alone. So who believes in another is refused,
//!    and one look at the stream says the epoch and the positions of one moment.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::time::sleep;

use super::super::limits::LogLimits;
use super::super::{BackplaneError, Place, Seen, State};
use super::connection::{By, Connection};
use super::names::Names;
use super::streams::{self, Log};
use super::values;

/// How often others may be faster in naming a new epoch.
const ATTEMPTS: u32 = 16;
/// In the place of when the log was made, while somebody is about to make it.
const CLAIM: &str = "-";
const BRIEFLY: Duration = Duration::from_millis(20);
/// How often the bucket is told how far the log has come.
const NOTE: Duration = Duration::from_secs(10);

/// The log as it was found over one connection.
pub(super) struct Session {
    pub(super) connection: Connection,
    /// Where it was when it was opened.
    pub(super) opened: State,
    created: String,
    /// The newest position known. Nothing that is appended later may lie below.
    highest: AtomicU64,
    /// The log was opened again, since it was not this one any more.
    over: AtomicBool,
    noted: Mutex<Instant>,
}

/// Another's claim: of several who find no log one makes it and all that belongs to it, who says so
/// first. Should it not get to that, another does.
#[derive(Debug, Default)]
struct Claim {
    /// Its revision, and since when it is waited for.
    waiting: Option<(u64, Instant)>,
}

impl Claim {
    fn is_over(&mut self, revision: u64, patience: Duration) -> bool {
        match self.waiting {
            Some((of, since)) if of == revision => since.elapsed() > patience,
            _ => {
                self.waiting = Some((revision, Instant::now()));
                false
            }
        }
    }
}

/// What the bucket says.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Record {
    epoch: u64,
    last: u64,
    created: String,
}

/// Opens the log: makes what is missing, and begins a new epoch if it is not the log that the
/// bucket or the caller knows. With `younger`, that epoch is known to be over.
pub(super) async fn open(
    connection: Connection,
    names: &Names,
    limits: &LogLimits,
    seen: Option<Seen>,
    younger: Option<u64>,
) -> Result<Session, BackplaneError> {
    let mut others = Claim::default();
    let mut mine = None;
    let mut attempts = 0;
    while attempts < ATTEMPTS {
        let candidate = fastrand::u64(1..);
        let (record, revision) = read(&connection, names).await?;
        let claims = record.as_ref().filter(|record| record.created == CLAIM).map(|record| record.epoch);
        if claims.is_some() && claims != mine && !others.is_over(revision, connection.timeout) {
            sleep(BRIEFLY).await;
            continue;
        }
        attempts += 1;
        let values_end = values::end(&connection, names).await?;
        let Some(log) = streams::log(&connection, names).await? else {
            let claim = Record { epoch: candidate, last: 0, created: CLAIM.to_owned() };
            if write(&connection, names, &claim, revision).await? {
                mine = Some(candidate);
                // A stream of values that copied out of the log that is gone may take a while to notice the new one.
                streams::delete(&connection, &names.values).await?;
                streams::make_log(&connection, names, limits, candidate).await?;
                streams::values(&connection, names, limits).await?;
                streams::told(&connection, names).await?;
            }
            continue;
        };
        let is_known = |record: &Record| {
            let seen = seen.filter(|seen| seen.epoch == record.epoch).map_or(0, |seen| seen.sequence);
            record.created == log.created && log.last >= record.last.max(seen) && younger != Some(record.epoch)
        };
        // What it has of a log that is gone would keep out what has the same numbers now.
        if values_end > log.last {
            streams::delete(&connection, &names.values).await?;
        }
        let record = match record {
            Some(record) if is_known(&record) => record,
            _ => {
                let fresh = Record { epoch: candidate, last: log.last, created: log.created.clone() };
                if !write(&connection, names, &fresh, revision).await? {
                    continue;
                }
                tracing::info!(epoch = fresh.epoch, last = fresh.last, "the log on NATS begins a new epoch");
                fresh
            }
        };
        let Some(log) = streams::fence(&connection, names, limits, log, record.epoch).await? else { continue };
        if !streams::values(&connection, names, limits).await? {
            continue;
        }
        if log.created != record.created || log.last < record.last {
            continue;
        }
        let Log { first, last, created, .. } = log;
        return Ok(Session {
            connection,
            opened: State { epoch: record.epoch, first, last },
            created,
            highest: AtomicU64::new(last),
            over: AtomicBool::new(false),
            noted: Mutex::new(Instant::now()),
        });
    }
    Err(BackplaneError::unavailable("other instances keep changing the log"))
}

impl Session {
    pub(super) fn seen(&self) -> Place {
        Place { epoch: self.opened.epoch, sequence: self.highest.load(Ordering::Acquire) }
    }

    pub(super) fn saw(&self, sequence: u64) {
        self.highest.fetch_max(sequence, Ordering::AcqRel);
    }

    /// Whether the caller has seen more than is known here.
    pub(super) fn is_behind(&self, seen: Option<Seen>) -> bool {
        let known = self.seen();
        seen.is_some_and(|seen| seen.epoch == known.epoch && seen.sequence > known.sequence)
    }

    pub(super) fn end(&self) {
        self.over.store(true, Ordering::Release);
    }

    pub(super) fn is_good(&self) -> bool {
        !self.over.load(Ordering::Acquire) && self.connection.is_whole()
    }

    /// Where the log is, if it still is this one, not younger than what is known.
    pub(super) async fn look(&self, names: &Names, seen: Option<Seen>) -> Result<Option<State>, BackplaneError> {
        let known = self.seen();
        let seen = seen.filter(|seen| seen.epoch == known.epoch).map_or(0, |seen| seen.sequence);
        let Some(info) = self.connection.ask("STREAM.INFO", &names.log, &json!({})).await? else { return Ok(None) };
        let log = Log::new(names, &info)?;
        if log.created != self.created || log.epoch != Some(known.epoch) || log.last < known.sequence.max(seen) {
            return Ok(None);
        }
        self.saw(log.last);
        if self.is_to_note() {
            // Nothing is lost if that fails.
            drop(self.note(names, log.last).await);
        }
        Ok(Some(State { epoch: known.epoch, first: log.first, last: log.last }))
    }

    fn is_to_note(&self) -> bool {
        let mut noted = self.noted.lock().unwrap_or_else(PoisonError::into_inner);
        let is_time = noted.elapsed() >= NOTE;
        if is_time {
            *noted = Instant::now();
        }
        is_time
    }

    /// Tells the bucket how far the log has come.
    async fn note(&self, names: &Names, last: u64) -> Result<bool, BackplaneError> {
        match read(&self.connection, names).await? {
            (Some(record), revision) if record.epoch == self.opened.epoch && record.last < last => {
                write(&self.connection, names, &Record { last, ..record }, revision).await
            }
            _ => Ok(false),
        }
    }
}

/// What the bucket says, and its revision; it is made if it is missing.
async fn read(connection: &Connection, names: &Names) -> Result<(Option<Record>, u64), BackplaneError> {
    // A server of version 2.9.10 dies of being asked for a message of a stream that it is about to make.
    match connection.ask("STREAM.INFO", &names.bucket, &json!({})).await? {
        Some(info) if info["state"]["messages"] != 0 => {}
        Some(_) => return Ok((None, 0)),
        None => {
            streams::bucket(connection, names).await?;
            return Ok((None, 0));
        }
    }
    let Some(message) = connection.message(&names.bucket, By::Subject(&names.epoch)).await? else {
        return Ok((None, 0));
    };
    let parse = |payload: &[u8]| {
        let mut parts = std::str::from_utf8(payload).ok()?.split(' ');
        let epoch = u64::from_str_radix(parts.next()?, 16).ok()?;
        Some(Record { epoch, last: parts.next()?.parse().ok()?, created: parts.next()?.to_owned() })
    };
    // Whatever else it is, is replaced.
    Ok((parse(&message.payload), message.sequence))
}

/// Whether nobody else was faster.
async fn write(connection: &Connection, names: &Names, record: &Record, revision: u64) -> Result<bool, BackplaneError> {
    let Record { epoch, last, created } = record;
    let text = format!("{epoch:016x} {last} {created}");
    connection.compare_and_set(names.epoch.clone(), text.into(), revision).await
}
