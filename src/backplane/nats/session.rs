//! What is known of the log over one connection, and whether it still is the log that it was.
//!
//! 1. A bucket says which epoch is in force, of which stream (by when that was created), and how far it had come. It is
//!    changed by compare-and-set only: of several instances that notice a loss, one names the new epoch.
//! 2. The bucket and the values are read before the log, so what they knew is never ahead of it by chance.
//! 3. A log that is missing is made by one of those who miss it: who puts a claim into the bucket first.
//! 4. The stream takes plain records on the subject of the epoch in force alone. So who believes in another is refused,
//!    and one look at the stream says the epoch and the positions of one moment.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::time::sleep;

use super::super::{Answer, BackplaneError, LogPosition, LogState, Seen};
use super::connection::Connection;
use super::streams::{self, Log};
use super::values;
use crate::sync::Mutex;

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
    pub(super) opened: LogState,
    created: String,
    /// The newest position known. Nothing that is appended later may lie below.
    highest: AtomicU64,
    /// The log was opened again, since it was not this one any more.
    over: AtomicBool,
    noted: Mutex<Instant>,
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
pub(super) async fn open(connection: Connection, seen: Option<Seen>, younger: Option<u64>) -> Answer<Session> {
    let mut mine = None;
    // The revision of another instance's claim, and the time at which this instance first saw it.
    let mut waiting = (0, Instant::now());
    let mut attempts = 0;
    while attempts < ATTEMPTS {
        let candidate = fastrand::u64(1..);
        let (record, revision) = read(&connection).await?;
        let claims = record.as_ref().filter(|record| record.created == CLAIM).map(|record| record.epoch);
        if claims.is_some() && claims != mine {
            if waiting.0 != revision {
                waiting = (revision, Instant::now());
            }
            // If the other instance does not create the log in time, this instance creates it.
            if waiting.1.elapsed() <= connection.limits.timeout {
                sleep(BRIEFLY).await;
                continue;
            }
        }
        attempts += 1;
        let values_end = values::end(&connection).await?;
        let Some(log) = streams::log(&connection).await? else {
            let claim = Record { epoch: candidate, last: 0, created: CLAIM.to_owned() };
            if write(&connection, &claim, revision).await? {
                mine = Some(candidate);
                // A stream of values that copied out of the log that is gone may take a while to notice the new one.
                streams::delete(&connection, &connection.names.values).await?;
                streams::make_log(&connection, candidate).await?;
                streams::values(&connection).await?;
                streams::control(&connection).await?;
            }
            continue;
        };
        let is_known = |record: &Record| {
            let seen = seen.filter(|seen| seen.epoch == record.epoch).map_or(0, |seen| seen.sequence);
            record.created == log.created && log.last >= record.last.max(seen) && younger != Some(record.epoch)
        };
        // What it has of a log that is gone would keep out what has the same numbers now.
        if values_end > log.last {
            streams::delete(&connection, &connection.names.values).await?;
        }
        let record = match record {
            Some(record) if is_known(&record) => record,
            _ => {
                let fresh = Record { epoch: candidate, last: log.last, created: log.created.clone() };
                if !write(&connection, &fresh, revision).await? {
                    continue;
                }
                tracing::info!(epoch = fresh.epoch, last = fresh.last, "the log on NATS begins a new epoch");
                fresh
            }
        };
        let Some(log) = streams::fence(&connection, log, record.epoch).await? else { continue };
        let is_copied = streams::values(&connection).await?;
        if !is_copied || log.created != record.created || log.last < record.last {
            continue;
        }
        let Log { first, last, created, .. } = log;
        return Ok(Session {
            connection,
            opened: LogState { epoch: record.epoch, first, last },
            created,
            highest: AtomicU64::new(last),
            over: AtomicBool::new(false),
            noted: Mutex::new(Instant::now()),
        });
    }
    Err(BackplaneError::unavailable("other instances keep changing the log"))
}

impl Session {
    pub(super) fn seen(&self) -> LogPosition {
        LogPosition { epoch: self.opened.epoch, sequence: self.highest.load(Ordering::Acquire) }
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
    pub(super) async fn look(&self, seen: Option<Seen>) -> Answer<Option<LogState>> {
        let names = &self.connection.names;
        let known = self.seen();
        let seen = seen.filter(|seen| seen.epoch == known.epoch).map_or(0, |seen| seen.sequence);
        let Some(info) = self.connection.stream(&names.log).await? else { return Ok(None) };
        let log = Log::new(names, &info)?;
        if log.created != self.created || log.epoch != Some(known.epoch) || log.last < known.sequence.max(seen) {
            return Ok(None);
        }
        self.saw(log.last);
        if self.is_to_note() {
            // Nothing is lost if that fails.
            drop(self.note(log.last).await);
        }
        Ok(Some(LogState { epoch: known.epoch, first: log.first, last: log.last }))
    }

    fn is_to_note(&self) -> bool {
        let mut noted = self.noted.lock();
        let is_time = noted.elapsed() >= NOTE;
        if is_time {
            *noted = Instant::now();
        }
        is_time
    }

    /// Tells the bucket how far the log has come.
    async fn note(&self, last: u64) -> Answer<bool> {
        match read(&self.connection).await? {
            (Some(record), revision) if record.epoch == self.opened.epoch && record.last < last => {
                write(&self.connection, &Record { last, ..record }, revision).await
            }
            _ => Ok(false),
        }
    }
}

/// What the bucket says, and its revision; it is made if it is missing.
async fn read(connection: &Connection) -> Answer<(Option<Record>, u64)> {
    let names = &connection.names;
    // A server of version 2.9.10 dies of being asked for a message of a stream that it is about to make.
    match connection.stream(&names.bucket).await? {
        Some(info) if info["state"]["messages"] != 0 => {}
        Some(_) => return Ok((None, 0)),
        None => {
            streams::bucket(connection).await?;
            return Ok((None, 0));
        }
    }
    let Some(message) = connection.newest_of(&names.bucket, &names.epoch).await? else {
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
async fn write(connection: &Connection, record: &Record, revision: u64) -> Answer<bool> {
    let Record { epoch, last, created } = record;
    let text = format!("{epoch:016x} {last} {created}");
    connection.compare_and_set(connection.names.epoch.clone(), text.into(), revision).await
}
