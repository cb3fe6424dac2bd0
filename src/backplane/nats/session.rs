//! Opens the log over one connection, and checks later whether it is still the same log.
//!
//! 1. A key-value bucket stores the current epoch, the creation time of the log's stream, and the
//!    number of a recent record. Instances change the bucket only by compare-and-set. So if several
//!    instances detect a loss, only one of them sets the new epoch.
//! 2. An instance reads the bucket and the stream of values before it reads the log. So if their
//!    numbers are above the log's last number, the log has lost records.
//! 3. If the log does not exist, an instance writes a claim into the bucket before it creates the
//!    log. The other instances wait for the log, up to a time limit. The claim has its own key, so
//!    that it does not replace the epoch if the log exists after all.
//! 4. The stream accepts records without values only on the subject of the current epoch. So the
//!    stream rejects such records from an instance that assumes another epoch. The server's
//!    description of the stream contains the epoch and the numbers of the same moment.
//! 5. In a cluster, the description of the stream may lack acknowledged records. So if its last
//!    number is too low, the instance appends a record without an audience, and only the number of
//!    this record proves that records were lost. See `proof`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_nats::jetstream::message::StreamMessage;
use bytes::Bytes;
use futures::future::try_join;
use tokio::time::sleep;

use super::super::{Answer, BackplaneError, LogPosition, LogState, Seen};
use super::connection::Connection;
use super::journal_headings::Known;
use super::proof::{self, Barrier, Evidence};
use super::streams::{self, Log, Plain};
use super::values;
use crate::sync::Mutex;

/// The maximum number of attempts to open the log while other instances change it.
const ATTEMPTS: u32 = 16;
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
    /// The writes that precede a repeated read of a single-use value.
    pub(super) deposits: Barrier,
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
    /// The creation time of the log's stream.
    created: String,
}

/// The claim of the instance that creates the log.
#[derive(Default)]
struct Claim {
    /// A random text, or an empty text if no instance creates the log.
    text: String,
    revision: u64,
}

/// The claims that this instance has seen while it opens the log.
#[derive(Default)]
struct Claims {
    /// The text of this instance's claim.
    own: Option<String>,
    /// The revision of another instance's claim, and the time at which this instance first saw it.
    other: Option<(u64, Instant)>,
}

/// Opens the log. Creates the streams that do not exist. Begins a new epoch if the bucket has no
/// epoch or describes another log, if the log ends below the bucket's number, if the log ends below
/// `seen` in the same epoch, or if the epoch has ended.
pub(super) async fn open(connection: Connection, seen: Option<Seen>, evidence: &Evidence) -> Answer<Session> {
    let names = Arc::clone(&connection.names);
    let is_complete = connection.is_clustered();
    let mut is_log_missing = false;
    // Old servers can create a stream twice if several instances create it at once. So on a single
    // server, only the instance with the claim creates these streams.
    if is_complete {
        // At the same time, because a stream that does not exist is asked for several times.
        let ((), log) = try_join(streams::create_missing(&connection), streams::log(&connection)).await?;
        is_log_missing = log.is_none();
    }
    let mut claims = Claims::default();
    let mut attempts = 0;
    while attempts < ATTEMPTS {
        let candidate = fastrand::u64(1..);
        let (mut record, mut revision, mut claim) = (None, 0, Claim::default());
        if has_keys(&connection).await? {
            (record, revision) = read(&connection).await?;
            claim = read_claim(&connection).await?;
        }
        if !claims.can_continue(&claim, connection.limits.timeout) {
            is_log_missing = false;
            sleep(CLAIM_PAUSE).await;
            continue;
        }
        attempts += 1;
        let values_end = values::end(&connection).await?;
        let log = if is_log_missing { None } else { streams::log(&connection).await? };
        is_log_missing = false;
        let Some(log) = log else {
            if claims.write(&connection, &claim).await? {
                if !is_complete {
                    streams::create_missing(&connection).await?;
                }
                // If a stream of values exists, its source was the deleted log. NATS may need some
                // time before it copies from the new log of this name. So delete the stream of
                // values and create it again.
                if streams::make_log(&connection, candidate).await? {
                    streams::delete(&connection, &names.values).await?;
                    streams::make_values(&connection).await?;
                }
            }
            continue;
        };
        // The highest number of this log that is known.
        let of_record = record.as_ref().filter(|record| record.created == log.created);
        let known = of_record.map_or(LogPosition { epoch: 0, sequence: 0 }, |record| {
            let seen = seen.filter(|seen| seen.epoch == record.epoch).map_or(0, |seen| seen.sequence);
            LogPosition { epoch: record.epoch, sequence: record.last.max(seen) }
        });
        let checked = check(&connection, log, known, values_end, evidence).await?;
        let Some(Checked { log, is_behind_values, .. }) = checked else { continue };
        let last = log.last;
        // The newest value has a higher number than the newest record, so the log has lost records.
        // NATS would not copy new records with numbers that it has copied before. So delete the
        // stream of values. It is created again below.
        if is_behind_values {
            streams::delete(&connection, &names.values).await?;
        }
        let record = match of_record.filter(|record| !evidence.has_ended(record.epoch)) {
            Some(record) => {
                // The bucket of a cluster may have been read from a server that is behind. Only a
                // write proves that this is still the epoch in force.
                let is_doubtful = connection.is_clustered() && log.epoch != Some(record.epoch);
                if is_doubtful && !write(&connection, record, revision).await? {
                    continue;
                }
                record.clone()
            }
            None => {
                let fresh = Record { epoch: candidate, last, created: log.created.clone() };
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
        if !is_complete {
            streams::create_missing(&connection).await?;
        }
        claims.clear(&connection).await;
        let Log { first, created, .. } = log;
        let last = last.max(log.last);
        return Ok(Session::new(connection, LogState { epoch: record.epoch, first, last }, created));
    }
    Err(BackplaneError::unavailable("the log cannot be opened while other instances change it"))
}

/// Opens the log over a new connection to a cluster, if it is still the log of an earlier session,
/// in the same epoch. Otherwise returns `None`.
///
/// This needs only the leader of the log. So a server that leads another stream can fail without
/// interrupting the instances that are running. So this does not wait until the server copies
/// values, and applies no limits.
pub(super) async fn resume(
    connection: &Connection,
    old: &Session,
    seen: Option<Seen>,
    evidence: &Evidence,
) -> Answer<Option<Session>> {
    let Some(info) = connection.stream(&connection.names.log).await? else { return Ok(None) };
    let log = Log::new(&connection.names, &info)?;
    let known = old.known(seen);
    if !connection.is_clustered() || log.created != old.created || log.epoch != Some(known.epoch) {
        return Ok(None);
    }
    let checked = check(connection, log, known, 0, evidence).await?;
    let Some(Checked { log, is_lost: false, .. }) = checked else { return Ok(None) };
    let opened = LogState { epoch: known.epoch, first: log.first, last: log.last };
    Ok(Some(Session::new(connection.clone(), opened, log.created)))
}

/// The log after its last number was compared with the numbers that are known.
struct Checked {
    log: Log,
    /// Whether the log has lost records of the epoch of the highest known number.
    is_lost: bool,
    /// Whether the log has lost the record of the newest value.
    is_behind_values: bool,
}

/// Compares the last number of the log with the highest `known` number and with the number of the
/// newest value. In a cluster, the description of the log proves nothing, so the number of a new
/// record is compared instead. Notes a loss in `evidence`. Returns `None` if the log does not
/// accept this record.
async fn check(
    connection: &Connection,
    mut log: Log,
    known: LogPosition,
    values_end: u64,
    evidence: &Evidence,
) -> Answer<Option<Checked>> {
    let mut is_lost = log.last < known.sequence;
    let mut is_behind_values = log.last < values_end;
    if connection.is_clustered() && (is_lost || is_behind_values) {
        let Some(epoch) = log.epoch else {
            return Err(BackplaneError::rejected("the stream of the log does not have the subject of an epoch"));
        };
        let Some(proof) = proof::append(connection, epoch).await? else { return Ok(None) };
        log.last = log.last.max(proof);
        is_lost = proof <= known.sequence.max(values_end) || evidence.is_replaced(connection, known.epoch).await?;
        is_behind_values = proof <= values_end;
    }
    if is_lost {
        evidence.end(known.epoch);
    }
    Ok(Some(Checked { log, is_lost, is_behind_values }))
}

impl Claims {
    /// Returns whether this instance can continue. Otherwise it has to wait for the instance that
    /// has written this claim. It does not wait longer than the time limit of one answer, because
    /// that instance may have ended.
    fn can_continue(&mut self, claim: &Claim, limit: Duration) -> bool {
        if claim.text.is_empty() || self.own.as_ref() == Some(&claim.text) {
            return true;
        }
        match self.other {
            Some((revision, since)) if revision == claim.revision => since.elapsed() > limit,
            _ => {
                self.other = Some((claim.revision, Instant::now()));
                false
            }
        }
    }

    /// Writes a claim of this instance in place of `claim`. Returns whether it was written.
    async fn write(&mut self, connection: &Connection, claim: &Claim) -> Answer<bool> {
        let text = format!("{:016x}", fastrand::u64(..));
        let subject = connection.names.claim.clone();
        let is_written = connection.compare_and_set(subject, text.clone().into(), claim.revision).await?;
        if is_written {
            self.own = Some(text);
        }
        Ok(is_written)
    }

    /// Clears the claim after the log was opened, if there was one. Errors are ignored: without
    /// this step, the next instance waits for a moment.
    async fn clear(&self, connection: &Connection) {
        if self.own.is_none() && self.other.is_none() {
            return;
        }
        if let Ok(claim) = read_claim(connection).await
            && !claim.text.is_empty()
        {
            drop(connection.compare_and_set(connection.names.claim.clone(), Bytes::new(), claim.revision).await);
        }
    }
}

impl Session {
    fn new(connection: Connection, opened: LogState, created: String) -> Self {
        Self {
            connection,
            opened,
            created,
            highest: AtomicU64::new(opened.last),
            over: AtomicBool::new(false),
            journals: Known::default(),
            deposits: Barrier::default(),
            noted: Mutex::new(Instant::now()),
        }
    }

    /// Returns the highest position that this session has seen.
    pub(super) fn seen(&self) -> LogPosition {
        LogPosition { epoch: self.opened.epoch, sequence: self.highest.load(Ordering::Acquire) }
    }

    /// Returns the higher one of this session's position and the caller's position, if both are in
    /// the same epoch.
    fn known(&self, seen: Option<Seen>) -> LogPosition {
        let own = self.seen();
        seen.filter(|seen| seen.epoch == own.epoch && seen.sequence > own.sequence).unwrap_or(own)
    }

    /// Notes that the log has a record with this number.
    pub(super) fn saw(&self, sequence: u64) {
        self.highest.fetch_max(sequence, Ordering::AcqRel);
    }

    /// Returns whether the server's description of the log ends below the highest number that this
    /// session has seen. Then the server that answered is behind, or the log has lost records,
    /// which [`state`](Self::state) finds out.
    pub(super) async fn is_ahead(&self) -> Answer<bool> {
        let known = self.seen();
        let Some(info) = self.connection.stream(&self.connection.names.log).await? else { return Ok(true) };
        Ok(Log::new(&self.connection.names, &info)?.last < known.sequence)
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
    /// another epoch than the session, or has lost records of this epoch that the session or the
    /// caller has seen.
    pub(super) async fn state(&self, seen: Option<Seen>, evidence: &Evidence) -> Answer<Option<LogState>> {
        let names = &self.connection.names;
        let known = self.known(seen);
        if evidence.has_ended(known.epoch) {
            return Ok(None);
        }
        let Some(info) = self.connection.stream(&names.log).await? else { return Ok(None) };
        let log = Log::new(names, &info)?;
        if log.created != self.created || log.epoch != Some(known.epoch) {
            return Ok(None);
        }
        let checked = check(&self.connection, log, known, 0, evidence).await?;
        let Some(Checked { log, is_lost: false, .. }) = checked else { return Ok(None) };
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
        if !has_keys(&self.connection).await? {
            return Ok(false);
        }
        match read(&self.connection).await? {
            (Some(record), revision) if record.epoch == self.opened.epoch && record.last < last => {
                write(&self.connection, &Record { last, ..record }, revision).await
            }
            _ => Ok(false),
        }
    }
}

/// Returns whether the bucket has a key. Creates the bucket if it does not exist.
///
/// A caller must check this before it reads a key: a server of version 2.9.10 crashes on a request
/// for a message of a stream that is being created.
async fn has_keys(connection: &Connection) -> Answer<bool> {
    let Some(info) = connection.stream(&connection.names.bucket).await? else {
        Plain::bucket(&connection.names).create_if_missing(connection).await?;
        return Ok(false);
    };
    Ok(info["state"]["messages"] != 0)
}

/// Returns the claim in the bucket.
async fn read_claim(connection: &Connection) -> Answer<Claim> {
    let message = connection.newest_of(&connection.names.bucket, &connection.names.claim).await?;
    let claim = |message: StreamMessage| Claim {
        text: String::from_utf8_lossy(&message.payload).into_owned(),
        revision: message.sequence,
    };
    Ok(message.map(claim).unwrap_or_default())
}

/// Returns the epoch in the bucket and its revision, or `None` and 0 if the bucket has no epoch.
async fn read(connection: &Connection) -> Answer<(Option<Record>, u64)> {
    let names = &connection.names;
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
