//! What the clones of an adapter share: connections to the server, the scripts, and reading in pages.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionAddr, ErrorKind, FromRedisValue, RedisError, Script, ServerErrorKind,
    ToRedisArgs,
};

use super::super::limits::LogLimits;
use super::super::per_runtime::PerRuntime;
use super::super::{Answer, BackplaneError, LogPosition, NewRecord, Seen};
use super::keys::Keys;
use crate::sync::Mutex;

/// How many bytes of a record are compared. The random id of a record lies within the first thirty.
const COMPARED: usize = 64;
/// How many records or values are asked for at a time by who reads many, if they come in time.
const PAGE: usize = 512;

pub(super) struct Shared {
    pub(super) client: Client,
    pub(super) namespace: String,
    pub(super) limits: LogLimits,
    /// How many replicas acknowledge a record before an append is done.
    pub(super) replicas: u32,
    pub(super) keys: Keys,
    pub(super) append: Script,
    pub(super) state: Script,
    /// For questions and what is small: they do not wait behind a large batch that is published or read.
    pub(super) line: PerRuntime<Line>,
    /// For publishing.
    pub(super) publish: PerRuntime<Line>,
    /// For reading much.
    pub(super) bulk: PerRuntime<Line>,
    /// When control messages were last looked through for old ones.
    pub(super) tidied: Mutex<Option<Instant>>,
    own: Mutex<Option<Own>>,
    /// How many are read at a time: fewer once so many did not come in time.
    pub(super) page: AtomicUsize,
}

/// The newest record that was appended over this adapter and acknowledged. If the log has another
/// record in its place, the log was rolled back and has grown since. If no instance had read the
/// record, only its publisher can notice that.
#[derive(Clone)]
struct Own {
    place: LogPosition,
    /// Its first bytes.
    start: Box<[u8]>,
}

/// A connection that is made when it is needed; a broken one is thrown away.
#[derive(Default)]
pub(super) struct Line {
    slot: Mutex<Slot>,
    /// Held while one caller connects for all.
    connecting: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct Slot {
    connection: Option<MultiplexedConnection>,
    /// Which connection it is, so that a late error of an old one does not throw away its successor.
    number: u64,
    /// When connecting failed last, and why: callers that waited for it meanwhile do not try one after the other.
    failed: Option<(Instant, BackplaneError)>,
}

impl Line {
    fn find(&self) -> Option<(MultiplexedConnection, u64)> {
        let slot = self.slot.lock();
        Some((slot.connection.clone()?, slot.number))
    }

    async fn get(&self, shared: &Shared) -> Answer<(MultiplexedConnection, u64)> {
        if let Some(found) = self.find() {
            return Ok(found);
        }
        let asked_at = Instant::now();
        let _connects = self.connecting.lock().await;
        if let Some(found) = self.find() {
            return Ok(found);
        }
        if let Some((_, error)) = self.slot.lock().failed.as_ref().filter(|(at, _)| *at >= asked_at) {
            return Err(error.again());
        }
        let mut connection = shared.connect(Some(shared.limits.timeout)).await.inspect_err(|error| {
            self.slot.lock().failed = Some((Instant::now(), error.again()));
        })?;
        shared.warn_of_eviction(&mut connection).await;
        let mut slot = self.slot.lock();
        slot.number += 1;
        slot.failed = None;
        Ok((slot.connection.insert(connection).clone(), slot.number))
    }

    /// Whether it still was this connection.
    fn lose(&self, number: u64) -> bool {
        let mut slot = self.slot.lock();
        slot.number == number && slot.connection.take().is_some()
    }
}

impl Shared {
    pub(super) fn new(client: Client, namespace: String, limits: LogLimits, replicas: u32) -> Self {
        Self {
            client,
            keys: Keys::new(&namespace),
            namespace,
            limits,
            replicas,
            append: Script::new(include_str!("append.lua")),
            state: Script::new(include_str!("state.lua")),
            line: PerRuntime::default(),
            publish: PerRuntime::default(),
            bulk: PerRuntime::default(),
            tidied: Mutex::default(),
            own: Mutex::default(),
            page: AtomicUsize::new(PAGE),
        }
    }

    /// Returns the arguments by which both scripts recognise the log: what the caller has seen, with a new
    /// epoch, and what was appended last, if that is of the same epoch. The second group follows
    /// arguments that only one of the scripts has.
    pub(super) fn compared(&self, seen: Option<Seen>) -> (impl ToRedisArgs, impl ToRedisArgs) {
        let own = self.own.lock().clone().filter(|own| seen.is_some_and(|seen| seen.epoch == own.place.epoch));
        let (own, start) = own.map_or_else(Default::default, |own| (own.place.sequence, own.start));
        let (epoch, seen) = seen.map_or_else(Default::default, |seen| (format!("{:x}", seen.epoch), seen.sequence));
        ((epoch, seen.max(own), format!("{:x}", fastrand::u64(1..))), (own, start))
    }

    fn remember(&self, place: LogPosition, payload: &[u8]) {
        let mut own = self.own.lock();
        // Of two calls under way the later one may be answered first.
        let is_newer = |own: &Own| own.place.epoch != place.epoch || own.place.sequence < place.sequence;
        if own.as_ref().is_none_or(is_newer) {
            *own = Some(Own { place, start: payload[..payload.len().min(COMPARED)].into() });
        }
    }

    pub(super) async fn connect(&self, response_timeout: Option<Duration>) -> Answer<MultiplexedConnection> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(self.limits.timeout))
            .set_response_timeout(response_timeout);
        self.choose_cryptography();
        let connection = self.client.get_multiplexed_async_connection_with_config(&config).await;
        connection.map_err(|error| classify(&error).before_request())
    }

    /// The client takes the process's own and panics if there is none, so one is chosen for a process that has not.
    pub(super) fn choose_cryptography(&self) {
        let is_encrypted = matches!(self.client.get_connection_info().addr(), ConnectionAddr::TcpTls { .. });
        if is_encrypted && rustls::crypto::CryptoProvider::get_default().is_none() {
            // Somebody may have been faster.
            let _ = rustls::crypto::ring::default_provider().install_default();
        }
    }

    /// Runs a small command.
    pub(super) async fn query<T: FromRedisValue>(&self, command: &Cmd) -> Answer<T> {
        self.run_on(&self.line, async |connection| command.query_async(connection).await).await
    }

    pub(super) async fn run_on<T>(
        &self,
        lines: &PerRuntime<Line>,
        command: impl AsyncFnOnce(&mut MultiplexedConnection) -> Result<T, RedisError>,
    ) -> Answer<T> {
        let line = lines.here();
        let (mut connection, number) = line.get(self).await?;
        let answer = command(&mut connection).await;
        answer.map_err(|error| {
            if error.is_unrecoverable_error() || error.is_timeout() || error.is_io_error() || is_elsewhere(&error) {
                // What broke one has most likely broken all. Otherwise a publish would find that out
                // after the instance is ready again. A long read that is late says nothing of the others.
                let is_late_read = error.is_timeout() && std::ptr::eq(lines, &raw const self.bulk);
                if line.lose(number) && !is_late_read {
                    for lines in [&self.line, &self.publish, &self.bulk] {
                        lines.here().slot.lock().connection = None;
                    }
                }
            }
            classify(&error)
        })
    }

    /// Reads one page of many: fewer at a time, and once more, if it did not come in time.
    pub(super) async fn read_page<T: FromRedisValue>(&self, command: impl Fn(usize) -> Cmd) -> Answer<T> {
        let mut is_last = false;
        loop {
            let count = self.page.load(Ordering::Relaxed);
            let command = command(count);
            let page = self.run_on(&self.bulk, async |connection| command.query_async(connection).await).await;
            match &page {
                Ok(_) => self.page.store((count + count / 16 + 1).min(PAGE), Ordering::Relaxed),
                Err(error) if error.is_unknown() => {
                    self.page.store((count / 8).max(1), Ordering::Relaxed);
                    if count > 1 && !std::mem::replace(&mut is_last, true) {
                        continue;
                    }
                }
                Err(_) => {}
            }
            return page;
        }
    }

    /// A server that evicts keys may take the log at any time.
    pub(super) async fn warn_of_eviction(&self, connection: &mut MultiplexedConnection) {
        let asked =
            redis::cmd("CONFIG").arg("GET").arg("maxmemory-policy").query_async::<Vec<String>>(connection).await;
        // A user may not be allowed to ask.
        if let Ok([_, policy]) = asked.as_deref()
            && policy.starts_with("allkeys")
        {
            tracing::warn!(policy, "Redis evicts keys when memory is short, and may take the log: use noeviction");
        }
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
        let replicas = self.replicas;
        let append = async |connection: &mut MultiplexedConnection| {
            let appended: (String, Vec<u64>, u64) = call.invoke_async(connection).await?;
            let mut acknowledged = Ok(replicas);
            if replicas > 0 {
                // On the same connection: the server waits for what was written over it.
                let limit = u64::try_from(limits.timeout.as_millis() / 2).unwrap_or(u64::MAX).max(1);
                acknowledged = redis::cmd("WAIT").arg(replicas).arg(limit).query_async(connection).await;
            }
            Ok((appended, acknowledged))
        };
        let ((epoch, sequences, before), acknowledged) = self.run_on(&self.publish, append).await?;
        // Whatever the error is, the records are in the log.
        let unknown = |error| BackplaneError::unknown(format!("the server did not wait: {error}"));
        let acknowledged = acknowledged.map_err(unknown)?;
        if acknowledged < replicas {
            let text = format!("{acknowledged} of {replicas} replicas acknowledged the records in time");
            return Err(BackplaneError::unknown(text));
        }
        let epoch = parse_epoch(&epoch)?;
        // A number at or below the last one before is that of a record which was appended earlier
        // with the same key.
        if let Some(sequence) = sequences.iter().copied().max().filter(|&newest| newest > before)
            && let Some(record) = sequences.iter().position(|&number| number == sequence).and_then(|at| records.get(at))
        {
            self.remember(LogPosition { epoch, sequence }, &record.payload);
        }
        Ok(sequences.into_iter().map(|sequence| LogPosition { epoch, sequence }).collect())
    }
}

pub(super) fn parse_epoch(text: &str) -> Answer<u64> {
    u64::from_str_radix(text, 16).map_err(|_| BackplaneError::rejected("the epoch of the log is no number"))
}

/// Whether the server is not the primary of the log, or not yet or not any more: another connection
/// may lead to the one that is.
fn is_elsewhere(error: &RedisError) -> bool {
    use ServerErrorKind::{Ask, BusyLoading, ClusterDown, MasterDown, Moved, ReadOnly};
    matches!(error.kind(), ErrorKind::Server(ReadOnly | MasterDown | ClusterDown | Moved | Ask | BusyLoading))
}

/// What an error means. Its text has no secrets: the client leaves URLs out.
pub(super) fn classify(error: &RedisError) -> BackplaneError {
    let text = error.to_string();
    match error.kind() {
        // Nothing was done: no part of a script, and no command.
        ErrorKind::Server(ServerErrorKind::TryAgain) => BackplaneError::unavailable(text),
        _ if is_elsewhere(error) => BackplaneError::unavailable(text),
        ErrorKind::Server(_)
        | ErrorKind::Extension
        | ErrorKind::AuthenticationFailed
        | ErrorKind::UnexpectedReturnType
        | ErrorKind::InvalidClientConfig
        | ErrorKind::Client => BackplaneError::rejected(text),
        _ if error.is_connection_refusal() => BackplaneError::unavailable(text),
        _ => BackplaneError::unknown(text),
    }
}
