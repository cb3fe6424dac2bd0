//! The state that clones of an adapter share: connections to the server, the scripts, and the page
//! size of reads.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use redis::aio::MultiplexedConnection;
use redis::{Cmd, ErrorKind, FromRedisValue, RedisError, Script, ScriptInvocation, ServerErrorKind, ToRedisArgs};

use super::super::limits::LogLimits;
use super::super::per_runtime::PerRuntime;
use super::super::{Answer, BackplaneError, LogPosition, NewRecord, Seen};
use super::errors::{classify, is_elsewhere};
use super::journal_scripts::Scripts;
use super::keys::Keys;
use super::redirect::Connection;
use super::routed_connection::RoutedConnection;
use super::topology::{Limits, Topology};
use crate::sync::Mutex;

/// The maximum number of bytes of a record that are compared, from its start. In a record of a hub,
/// the random id ends within the first thirty bytes.
const COMPARED: usize = 64;
/// The pause before a command is sent again to a server of a cluster that has only some of the
/// keys.
const TRY_AGAIN: Duration = Duration::from_millis(20);
/// The maximum number of records or values in one page of a large read.
const PAGE: usize = 512;

pub(super) struct Shared {
    /// How to find the server that has the log.
    pub(super) topology: Topology,
    pub(super) namespace: String,
    pub(super) limits: LogLimits,
    /// The number of replicas that must acknowledge a record before an append succeeds.
    pub(super) replicas: u32,
    pub(super) keys: Keys,
    pub(super) append: Script,
    pub(super) state: Script,
    pub(super) journals: Scripts,
    /// The connections for small requests, so that small requests do not wait behind a large append
    /// or read.
    pub(super) line: PerRuntime<Line>,
    /// The connections for appends.
    pub(super) publish: PerRuntime<Line>,
    /// The connections for large reads.
    pub(super) bulk: PerRuntime<Line>,
    /// The time of the last attempt to remove old control messages.
    pub(super) tidied: Mutex<Option<Instant>>,
    own: Mutex<Option<Own>>,
    /// The maximum number of records or values in one page of the next large read. Becomes smaller
    /// after a read of which a page did not arrive, and larger after a read that succeeded. A scan
    /// of the values uses at least [`MIN_PAGE`](super::values::MIN_PAGE). Otherwise a scan of
    /// 100,000 values after failed reads of large records could need 100,000 round trips.
    pub(super) page: AtomicUsize,
}

/// The newest acknowledged record of this adapter. If the log has another record at the position of
/// this record, the log was rolled back and has grown since. If no instance has read the record,
/// only its publisher can detect the rollback.
#[derive(Clone)]
struct Own {
    position: LogPosition,
    /// The first [`COMPARED`] bytes of the record.
    start: Box<[u8]>,
}

/// A connection that is opened on demand and replaced when it breaks.
#[derive(Default)]
pub(super) struct Line {
    slot: Mutex<Slot>,
    /// The lock that a caller holds while it connects. Other callers wait for the lock.
    connecting: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct Slot {
    connection: Option<RoutedConnection>,
    /// Counts the connections, so that a late error of an old connection does not drop its
    /// successor.
    number: u64,
    /// The time and the error of the last failed attempt to connect. Callers that waited for this
    /// attempt return its error. Otherwise each of these callers would wait for its own attempt.
    failed: Option<(Instant, BackplaneError)>,
}

impl Line {
    fn find(&self) -> Option<(RoutedConnection, u64)> {
        let slot = self.slot.lock();
        Some((slot.connection.clone()?, slot.number))
    }

    async fn get(&self, shared: &Shared) -> Answer<(RoutedConnection, u64)> {
        if let Some(found) = self.find() {
            return Ok(found);
        }
        let requested_at = Instant::now();
        let _connecting = self.connecting.lock().await;
        if let Some(found) = self.find() {
            return Ok(found);
        }
        if let Some((_, error)) = self.slot.lock().failed.as_ref().filter(|(at, _)| *at >= requested_at) {
            return Err(error.duplicate());
        }
        let limits = shared.limits_of(Some(shared.limits.timeout));
        let mut connection = shared.connect(limits).await.inspect_err(|error| {
            self.slot.lock().failed = Some((Instant::now(), error.duplicate()));
        })?;
        shared.warn_of_eviction(&mut connection).await;
        shared.warn_of_few_replicas(&mut connection).await;
        let mut slot = self.slot.lock();
        slot.number += 1;
        slot.failed = None;
        Ok((slot.connection.insert(RoutedConnection::new(connection, limits)).clone(), slot.number))
    }

    /// Drops the connection with this number. Returns whether it was still the current connection.
    fn lose(&self, number: u64) -> bool {
        let mut slot = self.slot.lock();
        slot.number == number && slot.connection.take().is_some()
    }
}

impl Shared {
    pub(super) fn new(topology: Topology, namespace: String, limits: LogLimits, replicas: u32) -> Self {
        Self {
            topology,
            keys: Keys::new(&namespace),
            namespace,
            limits,
            replicas,
            append: Script::new(include_str!("append.lua")),
            state: Script::new(include_str!("state.lua")),
            journals: Scripts::new(),
            line: PerRuntime::default(),
            publish: PerRuntime::default(),
            bulk: PerRuntime::default(),
            tidied: Mutex::default(),
            own: Mutex::default(),
            page: AtomicUsize::new(PAGE),
        }
    }

    /// Returns the arguments with which both scripts detect a log that has lost records.
    ///
    /// The first group is the highest position that the caller has seen or this adapter has
    /// appended, and a random new epoch. The second group is the number and the first bytes of the
    /// newest record of this adapter. Records of this adapter count only if they are of the
    /// caller's epoch. The groups are separate because the append script has other arguments
    /// between them.
    pub(super) fn compared(&self, seen: Option<Seen>) -> (impl ToRedisArgs, impl ToRedisArgs) {
        let own = self.own.lock().clone().filter(|own| seen.is_some_and(|seen| seen.epoch == own.position.epoch));
        let (own, start) = own.map_or_else(Default::default, |own| (own.position.sequence, own.start));
        let (epoch, seen) = seen.map_or_else(Default::default, |seen| (format!("{:x}", seen.epoch), seen.sequence));
        ((epoch, seen.max(own), format!("{:x}", fastrand::u64(1..))), (own, start))
    }

    /// Stores a record as the newest record of this adapter, unless a newer record is stored.
    fn remember(&self, position: LogPosition, payload: &[u8]) {
        let mut own = self.own.lock();
        // The answers of two simultaneous calls may arrive in reverse order.
        let is_newer = |own: &Own| own.position.epoch != position.epoch || own.position.sequence < position.sequence;
        if own.as_ref().is_none_or(is_newer) {
            *own = Some(Own { position, start: payload[..payload.len().min(COMPARED)].into() });
        }
    }

    /// Opens a connection to the server that has the log, without a time limit for answers.
    pub(super) async fn open_routed(&self) -> Answer<RoutedConnection> {
        let limits = self.limits_of(None);
        Ok(RoutedConnection::new(self.connect(limits).await?, limits))
    }

    async fn connect(&self, limits: Limits) -> Answer<MultiplexedConnection> {
        self.choose_cryptography();
        self.topology.connect(&self.keys.meta, limits).await
    }

    fn limits_of(&self, answer: Option<Duration>) -> Limits {
        Limits { connect: self.limits.timeout, answer }
    }

    /// Installs a cryptography provider for rustls if the process has none. The Redis client uses
    /// the provider of the process and panics without a provider.
    fn choose_cryptography(&self) {
        if self.topology.is_encrypted() && rustls::crypto::CryptoProvider::get_default().is_none() {
            // An error means that another thread has installed a provider in the meantime.
            let _ = rustls::crypto::ring::default_provider().install_default();
        }
    }

    /// Runs a small command on the connection for small requests.
    pub(super) async fn query<T: FromRedisValue>(&self, command: &Cmd) -> Answer<T> {
        self.run_on(&self.line, |mut connection| async move { command.query_async(&mut connection).await }).await
    }

    /// Calls a script on the connection that the current runtime has in `lines`.
    pub(super) async fn invoke<T: FromRedisValue>(
        &self,
        lines: &PerRuntime<Line>,
        call: &ScriptInvocation<'_>,
    ) -> Answer<T> {
        self.run_on(lines, |mut connection| async move { call.invoke_async(&mut connection).await }).await
    }

    /// Runs a command on the connection that the current runtime has in `lines`. Drops the
    /// connection if the error shows that the connection is broken, that the answer is late, or
    /// that the server cannot serve the log.
    ///
    /// Follows the redirections of a cluster. A server that redirects a request has not carried it
    /// out, so the command can be run again from its beginning.
    pub(super) async fn run_on<T, F: Future<Output = Result<T, RedisError>>>(
        &self,
        lines: &PerRuntime<Line>,
        command: impl Fn(Connection) -> F,
    ) -> Answer<T> {
        let line = lines.here();
        let begun = Instant::now();
        let mut was_moved = false;
        loop {
            let (connection, number) = line.get(self).await?;
            let error = match connection.run(&self.topology, &command).await? {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            if error.is_unrecoverable_error() || error.is_timeout() || error.is_io_error() || is_elsewhere(&error) {
                // The same cause has most likely broken the other connections of this runtime, so
                // they are dropped too. Otherwise a publish would fail on a broken connection after
                // the instance is ready again. A late answer to a large read proves nothing about
                // the other connections.
                let is_late_read = error.is_timeout() && std::ptr::eq(lines, &raw const self.bulk);
                if line.lose(number) && !is_late_read {
                    for lines in [&self.line, &self.publish, &self.bulk] {
                        lines.here().slot.lock().connection = None;
                    }
                }
            }
            match error.kind() {
                // The new connection leads to the new owner of the slot.
                ErrorKind::Server(ServerErrorKind::Moved)
                    if self.topology.is_cluster() && !std::mem::replace(&mut was_moved, true) => {}
                // The slot is being moved, and the server has only some of the keys.
                ErrorKind::Server(ServerErrorKind::TryAgain)
                    if self.topology.is_cluster() && begun.elapsed() < self.limits.timeout / 2 =>
                {
                    tokio::time::sleep(TRY_AGAIN).await;
                }
                _ => return Err(classify(&error)),
            }
        }
    }

    /// Runs a large read of one page or of several. `read` gets the maximum number of entries of a
    /// page. If a page does not arrive, reduces this number and runs the read once more from its
    /// beginning. A read with pages of one entry does not run again.
    pub(super) async fn read_pages<T, F: Future<Output = Result<T, RedisError>>>(
        &self,
        read: impl Fn(Connection, usize) -> F,
    ) -> Answer<T> {
        let mut is_retry = false;
        loop {
            let count = self.page.load(Ordering::Relaxed);
            let answer = self.run_on(&self.bulk, |connection| read(connection, count)).await;
            match &answer {
                Ok(_) => self.page.store((count + count / 16 + 1).min(PAGE), Ordering::Relaxed),
                Err(error) if error.is_unknown() => {
                    self.page.store((count / 8).max(1), Ordering::Relaxed);
                    if count > 1 && !std::mem::replace(&mut is_retry, true) {
                        continue;
                    }
                }
                Err(_) => {}
            }
            return answer;
        }
    }

    /// Logs a warning if the server may evict keys, because the server could then delete the log or
    /// a run.
    pub(super) async fn warn_of_eviction(&self, connection: &mut MultiplexedConnection) {
        let answer =
            redis::cmd("CONFIG").arg("GET").arg("maxmemory-policy").query_async::<Vec<String>>(connection).await;
        // Ignore an error: the Redis user may have no permission for `CONFIG GET`.
        if let Ok([_, policy]) = answer.as_deref()
            && policy != "noeviction"
        {
            tracing::warn!(name: "sse.log.eviction_possible",
                policy,
                "Redis may evict the log or runs when memory is short: set maxmemory-policy to noeviction"
            );
        }
    }

    /// Logs a warning if the primary has fewer replicas than publishing waits for. Then the outcome
    /// of every publish is unknown.
    async fn warn_of_few_replicas(&self, connection: &mut MultiplexedConnection) {
        if self.replicas == 0 {
            return;
        }
        // Ignore an error: the Redis user may have no permission for `INFO`.
        let answer = redis::cmd("INFO").arg("replication").query_async::<String>(connection).await;
        let info = answer.unwrap_or_default();
        let connected =
            info.lines().find_map(|line| line.strip_prefix("connected_slaves:")?.trim().parse::<u32>().ok());
        if let Some(connected) = connected.filter(|&connected| connected < self.replicas) {
            tracing::warn!(name: "sse.log.too_few_replicas",
                connected,
                required = self.replicas,
                "the Redis primary has fewer replicas than acknowledged_by requires, so publishing fails"
            );
        }
    }

    /// Calls a script that writes. If `has_written` returns true for its answer, waits until
    /// [`replicas`](Self::replicas) replicas have acknowledged the write. `written` names the
    /// written data in an error.
    pub(super) async fn write<T: FromRedisValue>(
        &self,
        call: &ScriptInvocation<'_>,
        has_written: impl Fn(&T) -> bool,
        written: &str,
    ) -> Answer<T> {
        let replicas = self.replicas;
        let has_written = &has_written;
        let write = |mut connection: Connection| async move {
            let answer: T = call.invoke_async(&mut connection).await?;
            let mut acknowledged = Ok(replicas);
            if replicas > 0 && has_written(&answer) {
                // Send `WAIT` on the same connection, because it covers only the writes of its own
                // connection.
                let limit = u64::try_from(self.limits.timeout.as_millis() / 2).unwrap_or(u64::MAX).max(1);
                acknowledged = redis::cmd("WAIT").arg(replicas).arg(limit).query_async(&mut connection).await;
            }
            Ok((answer, acknowledged))
        };
        let (answer, acknowledged) = self.run_on(&self.publish, write).await?;
        // The data is already stored, so an error of `WAIT` becomes an unknown error.
        let acknowledged = acknowledged.map_err(|error| BackplaneError::unknown(format!("WAIT failed: {error}")))?;
        if acknowledged < replicas {
            let text = format!("{acknowledged} of {replicas} replicas acknowledged the {written} in time");
            return Err(BackplaneError::unknown(text));
        }
        Ok(answer)
    }

    pub(super) async fn append_chunk(&self, records: &[NewRecord], seen: Option<Seen>) -> Answer<Vec<LogPosition>> {
        let limits = &self.limits;
        let mut call = self.append.prepare_invoke();
        for key in [&self.keys.log, &self.keys.meta, &self.keys.values, &self.keys.order] {
            call.key(key);
        }
        let (seen, own) = self.compared(seen);
        call.arg(seen).arg(limits.max_records).arg(limits.max_age.as_millis() as u64).arg(limits.max_values);
        call.arg(600_000).arg(records.len()).arg(limits.max_bytes).arg(own);
        let mut idempotent = 0;
        for record in records {
            let index = record.idempotency_key.as_ref().map_or(0, |key| {
                idempotent += 1;
                call.key(format!("{}{key}", self.keys.idempotency));
                idempotent
            });
            call.arg(&record.payload[..]).arg(index).arg(record.values.len());
            for value in &record.values {
                call.arg(&*value.id).arg(if value.removes { "1" } else { "0" });
            }
        }
        let (epoch, sequences, before): (String, Vec<u64>, u64) = self.write(&call, |_| true, "records").await?;
        let epoch = parse_epoch(&epoch)?;
        // A sequence up to and including `before` belongs to a record that an earlier call appended
        // with the same idempotency key.
        if let Some(sequence) = sequences.iter().copied().max().filter(|&newest| newest > before)
            && let Some(record) = sequences.iter().position(|&number| number == sequence).and_then(|at| records.get(at))
        {
            self.remember(LogPosition { epoch, sequence }, &record.payload);
        }
        Ok(sequences.into_iter().map(|sequence| LogPosition { epoch, sequence }).collect())
    }
}

pub(super) fn parse_epoch(text: &str) -> Answer<u64> {
    u64::from_str_radix(text, 16).map_err(|_| BackplaneError::rejected("the epoch of the log is not a number"))
}
