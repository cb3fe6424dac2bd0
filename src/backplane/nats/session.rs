//! Opens the log over one connection, and checks later whether it is still the same log.
//!
//! 1. A key-value bucket stores the current epoch, the creation time of the log's stream, and the
//!    number of a recent record. Instances change the bucket only by compare-and-set. So if several
//!    instances detect a loss, only one of them sets the new epoch.
//! 2. An instance reads the bucket and the stream of values before it reads the log. So if their
//!    numbers are above the log's last number, the log has lost records.
//! 3. If the log does not exist, an instance writes a claim into the bucket before it creates the
//!    log. The other instances wait for the log, up to a time limit.
//! 4. The stream accepts records without values only on the subject of the current epoch. So the
//!    stream rejects such records from an instance that assumes another epoch. The server's
//!    description of the stream contains the epoch and the numbers of the same moment.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::time::sleep;

use super::super::{Answer, BackplaneError, LogPosition, LogState, Seen};
use super::connection::Connection;
use super::journal_headings::Known;
use super::streams::{self, Log};
use super::values;
use crate::sync::Mutex;

/// The maximum number of attempts to open the log while other instances change it.
const ATTEMPTS: u32 = 16;
/// The placeholder for the creation time of the log while an instance is creating the log.
const CLAIM: &str = "-";
/// The pause between two checks of another instance's claim.
const CLAIM_PAUSE: Duration = Duration::from_millis(20);
/// The minimum interval at which a session writes the last number of the log into the bucket.
const NOTE: Duration = Duration::from_secs(10);

/// The log as it was opened over one connection.
pub(super) struct Session {
    pub(super) connection: Connection,
    /// The state of the log at the time of opening.
    pub(super) opened: LogState,
    /// The creation time of the log's stream.
    created: String,
    /// The highest record number that this session has seen. If a later append gets this number or
    /// a lower number, the log has lost records.
    highest: AtomicU64,
    /// Whether another session has replaced this session.
    over: AtomicBool,
    /// What the session remembers about journals.
    pub(super) journals: Known,
    /// The time of opening, or of the last attempt to write the last number of the log into the
    /// bucket.
    noted: Mutex<Instant>,
}

/// The content of the bucket.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Record {
    epoch: u64,
    /// The last number of the log when the bucket was written.
    last: u64,
    /// The creation time of the log's stream, or [`CLAIM`].
    created: String,
}

/// Opens the log. Creates the log and the stream of values if they do not exist. Begins a new epoch
/// if the bucket has no epoch or describes another log, if the log ends below the bucket's number,
/// if the log ends below `seen` in the same epoch, or if the epoch is `ended`.
pub(super) async fn open(connection: Connection, seen: Option<Seen>, ended: Option<u64>) -> Answer<Session> {
    let mut own_claim = None;
    // The revision of another instance's claim, and the time at which this instance first saw the
    // claim.
    let mut waiting = (0, Instant::now());
    let mut attempts = 0;
    while attempts < ATTEMPTS {
        let candidate = fastrand::u64(1..);
        let (record, revision) = read(&connection).await?;
        let claim = record.as_ref().filter(|record| record.created == CLAIM).map(|record| record.epoch);
        if claim.is_some() && claim != own_claim {
            if waiting.0 != revision {
                waiting = (revision, Instant::now());
            }
            // If the other instance does not create the log in time, this instance creates it.
            if waiting.1.elapsed() <= connection.limits.timeout {
                sleep(CLAIM_PAUSE).await;
                continue;
            }
        }
        attempts += 1;
        let values_end = values::end(&connection).await?;
        let Some(log) = streams::log(&connection).await? else {
            let claim = Record { epoch: candidate, last: 0, created: CLAIM.to_owned() };
            if write(&connection, &claim, revision).await? {
                own_claim = Some(candidate);
                // If a stream of values exists, its source was the deleted log. NATS may need some
                // time before it copies from the new log of this name. So delete the stream of
                // values and create it again.
                streams::delete(&connection, &connection.names.values).await?;
                streams::make_log(&connection, candidate).await?;
                streams::values(&connection).await?;
                streams::control(&connection).await?;
            }
            continue;
        };
        let is_known = |record: &Record| {
            let seen = seen.filter(|seen| seen.epoch == record.epoch).map_or(0, |seen| seen.sequence);
            record.created == log.created && log.last >= record.last.max(seen) && ended != Some(record.epoch)
        };
        // The newest value has a higher number than the newest record, so the log has lost records.
        // NATS would not copy new records with numbers that it has copied before. So delete the
        // stream of values. It is created again below.
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
                tracing::info!(name: "sse.log.epoch_began", epoch = fresh.epoch, last = fresh.last, "the log on NATS began a new epoch");
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
            journals: Known::default(),
            noted: Mutex::new(Instant::now()),
        });
    }
    Err(BackplaneError::unavailable("the log cannot be opened while other instances change it"))
}

impl Session {
    /// Returns the highest position that this session has seen.
    pub(super) fn seen(&self) -> LogPosition {
        LogPosition { epoch: self.opened.epoch, sequence: self.highest.load(Ordering::Acquire) }
    }

    /// Notes that the log has a record with this number.
    pub(super) fn saw(&self, sequence: u64) {
        self.highest.fetch_max(sequence, Ordering::AcqRel);
    }

    /// Returns whether the caller has seen a higher position of this epoch than the session.
    pub(super) fn is_behind(&self, seen: Option<Seen>) -> bool {
        let known = self.seen();
        seen.is_some_and(|seen| seen.epoch == known.epoch && seen.sequence > known.sequence)
    }

    /// Marks the session as replaced.
    pub(super) fn end(&self) {
        self.over.store(true, Ordering::Release);
    }

    /// Returns whether the session can be used: it was not replaced, and its connection is intact.
    pub(super) fn is_good(&self) -> bool {
        !self.over.load(Ordering::Acquire) && self.connection.is_intact()
    }

    /// Returns the state of the log. Returns `None` if the log was deleted or created again, is in
    /// another epoch than the session, or ends below the highest number of this epoch that the
    /// session or the caller has seen.
    pub(super) async fn state(&self, seen: Option<Seen>) -> Answer<Option<LogState>> {
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
            // An error is ignored, because the number in the bucket only helps to detect a later
            // loss.
            drop(self.note(log.last).await);
        }
        Ok(Some(LogState { epoch: known.epoch, first: log.first, last: log.last }))
    }

    /// Returns whether the last number must be written into the bucket now. Returns `true` at most
    /// once per [`NOTE`].
    fn is_to_note(&self) -> bool {
        let mut noted = self.noted.lock();
        let is_due = noted.elapsed() >= NOTE;
        if is_due {
            *noted = Instant::now();
        }
        is_due
    }

    /// Writes the last number of the log into the bucket if the bucket has a lower number of the
    /// same epoch. Returns whether it was written.
    async fn note(&self, last: u64) -> Answer<bool> {
        match read(&self.connection).await? {
            (Some(record), revision) if record.epoch == self.opened.epoch && record.last < last => {
                write(&self.connection, &Record { last, ..record }, revision).await
            }
            _ => Ok(false),
        }
    }
}

/// Returns the content of the bucket and its revision, or `None` and 0 if the bucket is empty.
/// Creates the bucket if it does not exist.
async fn read(connection: &Connection) -> Answer<(Option<Record>, u64)> {
    let names = &connection.names;
    // Request the description of the stream first: a server of version 2.9.10 crashes on a request
    // for a message of a stream that is being created.
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
    // Content that cannot be parsed counts as missing. The caller replaces it.
    Ok((parse(&message.payload), message.sequence))
}

/// Writes the content of the bucket if the bucket still has this revision. Returns whether it was
/// written.
async fn write(connection: &Connection, record: &Record, revision: u64) -> Answer<bool> {
    let Record { epoch, last, created } = record;
    let text = format!("{epoch:016x} {last} {created}");
    connection.compare_and_set(connection.names.epoch.clone(), text.into(), revision).await
}
