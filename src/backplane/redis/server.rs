//! What the clones of an adapter share: connections to the server, the scripts, and reading in pages.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionAddr, ErrorKind, FromRedisValue, RedisError, Script, ServerErrorKind,
};
use tokio::sync::Mutex;

use super::super::per_runtime::PerRuntime;
use super::super::{BackplaneError, Outgoing, Place, Seen};
use super::Settings;
use super::keys::Keys;

/// How many records or values are asked for at a time by who reads many, if they come in time.
const PAGE: usize = 512;

pub(super) struct Shared {
    pub(super) client: Client,
    pub(super) namespace: String,
    pub(super) settings: Settings,
    pub(super) keys: Keys,
    pub(super) append: Script,
    pub(super) state: Script,
    /// For commands.
    pub(super) line: PerRuntime<Line>,
    /// For reading much: a publish does not wait behind it.
    pub(super) bulk: PerRuntime<Line>,
    /// How many are read at a time: fewer once so many did not come in time.
    pub(super) page: AtomicUsize,
}

/// A connection that is made when it is needed; a broken one is thrown away.
pub(super) type Line = Mutex<Option<MultiplexedConnection>>;

impl Shared {
    pub(super) fn new(client: Client, namespace: String, settings: Settings) -> Self {
        Self {
            client,
            keys: Keys::new(&namespace),
            namespace,
            settings,
            append: Script::new(include_str!("append.lua")),
            state: Script::new(include_str!("state.lua")),
            line: PerRuntime::default(),
            bulk: PerRuntime::default(),
            page: AtomicUsize::new(PAGE),
        }
    }

    pub(super) async fn connect(
        &self,
        response_timeout: Option<Duration>,
    ) -> Result<MultiplexedConnection, BackplaneError> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(self.settings.timeout))
            .set_response_timeout(response_timeout);
        self.choose_cryptography();
        // Nothing was asked yet.
        let connection = self.client.get_multiplexed_async_connection_with_config(&config).await;
        connection.map_err(|error| match classify(&error) {
            error if error.is_rejected() => error,
            error => BackplaneError::unavailable(error.text),
        })
    }

    /// The client takes the process's own and panics if there is none, so one is chosen for a process that has not.
    pub(super) fn choose_cryptography(&self) {
        let is_encrypted = matches!(self.client.get_connection_info().addr(), ConnectionAddr::TcpTls { .. });
        if is_encrypted && rustls::crypto::CryptoProvider::get_default().is_none() {
            // Somebody may have been faster.
            let _ = rustls::crypto::ring::default_provider().install_default();
        }
    }

    /// Runs a command on the shared connection.
    pub(super) async fn run<T>(
        &self,
        command: impl AsyncFnOnce(&mut MultiplexedConnection) -> Result<T, RedisError>,
    ) -> Result<T, BackplaneError> {
        self.run_on(&self.line, command).await
    }

    pub(super) async fn run_on<T>(
        &self,
        lines: &PerRuntime<Line>,
        command: impl AsyncFnOnce(&mut MultiplexedConnection) -> Result<T, RedisError>,
    ) -> Result<T, BackplaneError> {
        let line = lines.here();
        let mut connection = {
            let mut shared = line.lock().await;
            match &*shared {
                Some(connection) => connection.clone(),
                None => {
                    let mut connection = self.connect(Some(self.settings.timeout)).await?;
                    self.warn_of_eviction(&mut connection).await;
                    shared.insert(connection).clone()
                }
            }
        };
        match command(&mut connection).await {
            Ok(answer) => Ok(answer),
            Err(error) => {
                if error.is_unrecoverable_error() || error.is_timeout() || error.is_io_error() {
                    *line.lock().await = None;
                }
                Err(classify(&error))
            }
        }
    }

    /// Reads one page of many: fewer at a time, and once more, if it did not come in time.
    pub(super) async fn read_page<T: FromRedisValue>(
        &self,
        command: impl Fn(usize) -> Cmd,
    ) -> Result<T, BackplaneError> {
        let mut is_last = false;
        loop {
            let count = self.page.load(Ordering::Relaxed);
            let command = command(count);
            let page = self.run_on(&self.bulk, async |connection| command.query_async(connection).await).await;
            match &page {
                Ok(_) => self.page.store((count + count / 16 + 1).min(PAGE), Ordering::Relaxed),
                Err(error) if error.is_unknown() => self.page.store((count / 8).max(1), Ordering::Relaxed),
                Err(_) => {}
            }
            match page {
                Err(error) if error.is_unknown() && count > 1 && !is_last => is_last = true,
                page => return page,
            }
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

    pub(super) async fn append_chunk(
        &self,
        records: &[Outgoing],
        seen: Option<Seen>,
    ) -> Result<Vec<Place>, BackplaneError> {
        let settings = &self.settings;
        let mut call = self.append.prepare_invoke();
        for key in [&self.keys.log, &self.keys.meta, &self.keys.values, &self.keys.order] {
            call.key(key);
        }
        seen_arguments(&mut call, seen);
        call.arg(settings.max_records).arg(settings.max_age.as_millis() as u64).arg(settings.max_values);
        call.arg(600_000).arg(records.len());
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
        let (epoch, sequences): (String, Vec<u64>) =
            self.run(async |connection| call.invoke_async(connection).await).await?;
        let epoch = parse_epoch(&epoch)?;
        Ok(sequences.into_iter().map(|sequence| Place { epoch, sequence }).collect())
    }
}

pub(super) fn seen_arguments(call: &mut redis::ScriptInvocation<'_>, seen: Option<Seen>) {
    let (epoch, sequence) = seen.map_or((String::new(), 0), |seen| (format!("{:x}", seen.epoch), seen.sequence));
    call.arg(epoch).arg(sequence).arg(format!("{:x}", fastrand::u64(1..)));
}

pub(super) fn parse_epoch(text: &str) -> Result<u64, BackplaneError> {
    u64::from_str_radix(text, 16).map_err(|_| BackplaneError::rejected("the epoch of the log is no number"))
}

/// What an error means. Its text has no secrets: the client leaves URLs out.
pub(super) fn classify(error: &RedisError) -> BackplaneError {
    let text = error.to_string();
    match error.kind() {
        ErrorKind::Server(ServerErrorKind::BusyLoading | ServerErrorKind::TryAgain | ServerErrorKind::MasterDown) => {
            BackplaneError::unavailable(text)
        }
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
