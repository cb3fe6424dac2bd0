//! A Redis stream as the log. Server 7.0 or newer, or what speaks like it.
//!
//! One script appends: it compares what the caller has seen, numbers by the stream's own last id, writes current values
//! beside the log and trims. All keys share one hash tag. Each tail has a connection of its own.

use std::collections::hash_map::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt};
use redis::aio::MultiplexedConnection;
use redis::streams::{StreamId, StreamRangeReply, StreamReadReply};
use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionAddr, ErrorKind, FromRedisValue, RedisError, Script, ServerErrorKind,
};
use tokio::sync::Mutex;

use super::{Backplane, BackplaneError, Current, Outgoing, Place, Seen, State, Stored, Told};

/// How long a read waits for something new before it looks whether anybody still wants it.
const BLOCK: Duration = Duration::from_secs(2);
const BATCH: usize = 512;
/// How many records or values are asked for at a time by who reads many, if they come in time.
const PAGE: usize = 512;
/// How many records one call of the script appends: others wait for it.
const CHUNK: usize = 256;
/// How many control messages are kept for those who are a moment behind.
const CONTROL: usize = 10_000;

/// A log on a Redis server: [`HubBuilder::backplane`](crate::HubBuilder::backplane).
///
/// Needs the feature `redis` and a server of version 7.0 or newer. What it promises is as good as the server's
/// persistence: with `appendonly yes` and `appendfsync always` nothing that was acknowledged is lost; without persistence
/// a restart begins a new epoch, and every client is told of one gap.
#[derive(Clone)]
pub struct Redis {
    shared: Arc<Shared>,
}

#[derive(Clone)]
struct Settings {
    max_records: usize,
    max_age: Duration,
    max_values: usize,
    timeout: Duration,
}

struct Shared {
    client: Client,
    namespace: String,
    settings: Settings,
    keys: Keys,
    append: Script,
    state: Script,
    /// For commands.
    line: Line,
    /// For reading much: a publish does not wait behind it.
    bulk: Line,
    /// How many are read at a time: fewer once so many did not come in time.
    page: AtomicUsize,
}

/// A connection that is made when it is needed; a broken one is thrown away.
type Line = Mutex<Option<MultiplexedConnection>>;

struct Keys {
    log: String,
    meta: String,
    values: String,
    order: String,
    control: String,
    idempotency: String,
    deposit: String,
}

impl Keys {
    fn new(namespace: &str) -> Self {
        use std::fmt::Write;
        // Braces would end the hash tag, and colons are ours.
        let mut encoded = String::new();
        for byte in namespace.bytes() {
            match byte {
                b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' => encoded.push(char::from(byte)),
                _ => drop(write!(encoded, "%{byte:02X}")),
            }
        }
        let key = |name: &str| format!("tower-sse:{{{encoded}}}:{name}");
        Self {
            log: key("log"),
            meta: key("meta"),
            values: key("values"),
            order: key("order"),
            control: key("control"),
            idempotency: key("idempotency:"),
            deposit: key("deposit:"),
        }
    }
}

impl Redis {
    /// A log at `url`, such as `redis://127.0.0.1:6379`, `rediss://user:password@host`. Hubs of one `namespace`, any text,
    /// are instances of one; others on the same server never meet it. Connects when it is first used.
    ///
    /// # Errors
    /// When the URL is none. The error does not repeat it.
    pub fn new(url: &str, namespace: &str) -> Result<Self, BackplaneError> {
        let client = Client::open(url).map_err(|_| BackplaneError::rejected("not a Redis URL"))?;
        let settings = Settings {
            max_records: 100_000,
            max_age: Duration::from_secs(3600),
            max_values: 100_000,
            timeout: Duration::from_secs(2),
        };
        Ok(Self { shared: Arc::new(Shared::new(client, namespace.to_owned(), settings)) })
    }

    /// Sets about how many records the log keeps. Defaults to 100,000.
    #[must_use]
    pub fn max_records(self, records: usize) -> Self {
        self.with(|settings| settings.max_records = records.max(1))
    }

    /// Sets how long the log keeps a record, looked at when something is appended. Defaults to an hour.
    #[must_use]
    pub fn max_age(self, age: Duration) -> Self {
        self.with(|settings| settings.max_age = age)
    }

    /// Sets how many current values are kept; the oldest go first. Defaults to 100,000.
    #[must_use]
    pub fn max_values(self, values: usize) -> Self {
        self.with(|settings| settings.max_values = values.max(1))
    }

    /// Sets how long connecting, and an answer, may take. Defaults to 2 s.
    #[must_use]
    pub fn timeout(self, timeout: Duration) -> Self {
        self.with(|settings| settings.timeout = timeout)
    }

    fn with(self, change: impl FnOnce(&mut Settings)) -> Self {
        let mut settings = self.shared.settings.clone();
        change(&mut settings);
        let shared = Shared::new(self.shared.client.clone(), self.shared.namespace.clone(), settings);
        Self { shared: Arc::new(shared) }
    }
}

impl Shared {
    fn new(client: Client, namespace: String, settings: Settings) -> Self {
        Self {
            client,
            keys: Keys::new(&namespace),
            namespace,
            settings,
            append: Script::new(include_str!("append.lua")),
            state: Script::new(include_str!("state.lua")),
            line: Mutex::default(),
            bulk: Mutex::default(),
            page: AtomicUsize::new(PAGE),
        }
    }

    async fn connect(&self, response_timeout: Option<Duration>) -> Result<MultiplexedConnection, BackplaneError> {
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
    fn choose_cryptography(&self) {
        let is_encrypted = matches!(self.client.get_connection_info().addr(), ConnectionAddr::TcpTls { .. });
        if is_encrypted && rustls::crypto::CryptoProvider::get_default().is_none() {
            // Somebody may have been faster.
            let _ = rustls::crypto::ring::default_provider().install_default();
        }
    }

    /// Runs a command on the shared connection.
    async fn run<T>(
        &self,
        command: impl AsyncFnOnce(&mut MultiplexedConnection) -> Result<T, RedisError>,
    ) -> Result<T, BackplaneError> {
        self.run_on(&self.line, command).await
    }

    async fn run_on<T>(
        &self,
        line: &Line,
        command: impl AsyncFnOnce(&mut MultiplexedConnection) -> Result<T, RedisError>,
    ) -> Result<T, BackplaneError> {
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
    async fn read_page<T: FromRedisValue>(&self, command: impl Fn(usize) -> Cmd) -> Result<T, BackplaneError> {
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
    async fn warn_of_eviction(&self, connection: &mut MultiplexedConnection) {
        let asked =
            redis::cmd("CONFIG").arg("GET").arg("maxmemory-policy").query_async::<Vec<String>>(connection).await;
        // A user may not be allowed to ask.
        if let Ok([_, policy]) = asked.as_deref()
            && policy.starts_with("allkeys")
        {
            tracing::warn!(policy, "Redis evicts keys when memory is short, and may take the log: use noeviction");
        }
    }

    async fn append_chunk(&self, records: &[Outgoing], seen: Option<Seen>) -> Result<Vec<Place>, BackplaneError> {
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

fn seen_arguments(call: &mut redis::ScriptInvocation<'_>, seen: Option<Seen>) {
    let (epoch, sequence) = seen.map_or((String::new(), 0), |seen| (format!("{:x}", seen.epoch), seen.sequence));
    call.arg(epoch).arg(sequence).arg(format!("{:x}", fastrand::u64(1..)));
}

fn parse_epoch(text: &str) -> Result<u64, BackplaneError> {
    u64::from_str_radix(text, 16).map_err(|_| BackplaneError::rejected("the epoch of the log is no number"))
}

/// What an error means. Its text has no secrets: the client leaves URLs out.
fn classify(error: &RedisError) -> BackplaneError {
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

/// What somebody else has put there without a record is one that nobody can read.
fn stored(entry: &StreamId) -> Option<Stored> {
    let sequence = entry.id.split('-').next()?.parse().ok()?;
    Some(Stored { sequence, payload: Bytes::from(entry.get::<Vec<u8>>("d").unwrap_or_default()) })
}

/// What an id of a stream says: two numbers.
fn id_of(text: &str) -> (u64, u64) {
    let (time, count) = text.split_once('-').unwrap_or((text, "0"));
    (time.parse().unwrap_or(0), count.parse().unwrap_or(0))
}

impl Backplane for Redis {
    fn append(&self, records: Vec<Outgoing>, seen: Option<Seen>) -> BoxFuture<'_, Vec<Result<Place, BackplaneError>>> {
        async move {
            let mut chunks = records.chunks(CHUNK).map(|chunk| self.shared.append_chunk(chunk, seen));
            // The first alone: a server that does not know the script answers it twice, and others would overtake it.
            let Some(first) = chunks.next() else { return Vec::new() };
            let mut answers = vec![first.await];
            if let [Err(error)] = &answers[..] {
                return records.iter().map(|_| Err(error.again())).collect();
            }
            // The others on one connection, which keeps their order, so they are under way together.
            answers.extend(futures::future::join_all(chunks).await);
            let mut results = Vec::with_capacity(records.len());
            for (chunk, answer) in records.chunks(CHUNK).zip(answers) {
                match answer {
                    Ok(places) => results.extend(places.into_iter().map(Ok)),
                    Err(error) => results.extend(chunk.iter().map(|_| Err(error.again()))),
                }
            }
            results
        }
        .boxed()
    }

    fn state(&self, seen: Option<Seen>) -> BoxFuture<'_, Result<State, BackplaneError>> {
        async move {
            let mut call = self.shared.state.prepare_invoke();
            call.key(&self.shared.keys.log).key(&self.shared.keys.meta);
            seen_arguments(&mut call, seen);
            let (epoch, first, last): (String, u64, u64) =
                self.shared.run(async |connection| call.invoke_async(connection).await).await?;
            Ok(State { epoch: parse_epoch(&epoch)?, first, last })
        }
        .boxed()
    }

    fn range(&self, after: u64, limit: usize) -> BoxFuture<'_, Result<Vec<Stored>, BackplaneError>> {
        async move {
            let reply: StreamRangeReply = self
                .shared
                .read_page(|page| {
                    let mut command = redis::cmd("XRANGE");
                    command.arg(&self.shared.keys.log).arg(format!("({after}-0")).arg("+");
                    command.arg("COUNT").arg(page.min(limit));
                    command
                })
                .await?;
            Ok(reply.ids.iter().filter_map(stored).collect())
        }
        .boxed()
    }

    fn tail(&self, after: u64) -> BoxStream<'static, Result<Vec<Stored>, BackplaneError>> {
        let entries = read(Arc::clone(&self.shared), self.shared.keys.log.clone(), From::After(after));
        let batch = |entries: Vec<StreamId>| entries.iter().filter_map(stored).collect::<Vec<_>>();
        entries.map(move |entries| entries.map(batch)).boxed()
    }

    fn values(&self) -> BoxFuture<'_, Result<Vec<Current>, BackplaneError>> {
        async move {
            let record = |value: Vec<u8>| {
                let colon = value.iter().position(|&byte| byte == b':')?;
                let sequence = std::str::from_utf8(&value[..colon]).ok()?.parse().ok()?;
                Some(Stored { sequence, payload: Bytes::from(value).slice(colon + 1..) })
            };
            // A scan may name one twice.
            let mut current: HashMap<String, Stored> = HashMap::new();
            let mut cursor = 0_u64;
            loop {
                let page: (u64, Vec<(String, Vec<u8>)>) = self
                    .shared
                    .read_page(|page| {
                        let mut command = redis::cmd("HSCAN");
                        command.arg(&self.shared.keys.values).arg(cursor).arg("COUNT").arg(page);
                        command
                    })
                    .await?;
                for (id, value) in page.1 {
                    if let Some(record) = record(value)
                        && current.get(&id).is_none_or(|known| known.sequence < record.sequence)
                    {
                        current.insert(id, record);
                    }
                }
                cursor = page.0;
                if cursor == 0 {
                    break;
                }
            }
            Ok(current.into_iter().map(|(id, record)| Current { id: id.into(), record }).collect())
        }
        .boxed()
    }

    fn tell(&self, message: Bytes) -> BoxFuture<'_, Result<(), BackplaneError>> {
        async move {
            let mut command = redis::cmd("XADD");
            command
                .arg(&self.shared.keys.control)
                .arg("MAXLEN")
                .arg("~")
                .arg(CONTROL)
                .arg("*")
                .arg("d")
                .arg(&message[..]);
            self.shared.run(async |connection| command.query_async::<String>(connection).await).await.map(drop)
        }
        .boxed()
    }

    fn hear(&self, after: Option<Box<str>>) -> BoxStream<'static, Result<Told, BackplaneError>> {
        let from = after.map_or(From::Now, From::Mark);
        let entries = read(Arc::clone(&self.shared), self.shared.keys.control.clone(), from);
        let told = |entry: StreamId| {
            let message = entry.get::<Vec<u8>>("d")?.into();
            Some(Ok(Told { mark: entry.id.into(), message }))
        };
        let each = move |entries: Result<Vec<StreamId>, BackplaneError>| {
            let each: Vec<_> = match entries {
                Ok(entries) => entries.into_iter().filter_map(told).collect(),
                Err(error) => vec![Err(error)],
            };
            futures::stream::iter(each)
        };
        entries.flat_map(each).boxed()
    }

    fn deposit(&self, key: &str, payload: Bytes, time: Duration) -> BoxFuture<'_, Result<(), BackplaneError>> {
        let mut command = redis::cmd("SET");
        command.arg(format!("{}{key}", self.shared.keys.deposit)).arg(&payload[..]);
        command.arg("PX").arg(u64::try_from(time.as_millis()).unwrap_or(u64::MAX).max(1));
        async move { self.shared.run(async |connection| command.query_async::<()>(connection).await).await }.boxed()
    }

    fn withdraw(&self, key: &str) -> BoxFuture<'_, Result<Option<Bytes>, BackplaneError>> {
        let mut command = redis::cmd("GETDEL");
        command.arg(format!("{}{key}", self.shared.keys.deposit));
        async move {
            let found: Option<Vec<u8>> =
                self.shared.run(async |connection| command.query_async(connection).await).await?;
            Ok(found.map(Bytes::from))
        }
        .boxed()
    }

    fn describe(&self) -> String {
        format!("redis at {}", self.shared.client.get_connection_info().addr())
    }

    fn limits(&self) -> String {
        let Settings { max_records, max_age, max_values, .. } = &self.shared.settings;
        format!("{max_records} records, {max_age:?}, {max_values} values")
    }
}

/// Where reading a stream begins.
enum From {
    Now,
    /// After a number.
    After(u64),
    /// After the entry with this id. If the newest is older, by a clock that was set back, all there is.
    Mark(Box<str>),
}

/// Entries of a stream as they come. On a connection of its own, without a limit for an
/// answer: a read waits on purpose.
fn read(shared: Arc<Shared>, key: String, from: From) -> BoxStream<'static, Result<Vec<StreamId>, BackplaneError>> {
    async_stream::try_stream! {
        let mut connection = shared.connect(None).await?;
        let mut id = match from {
            From::After(number) => format!("{number}-0"),
            From::Now | From::Mark(_) => {
                let mut newest = redis::cmd("XREVRANGE");
                newest.arg(&key).arg("+").arg("-").arg("COUNT").arg(1);
                let reply: StreamRangeReply =
                    newest.query_async(&mut connection).await.map_err(|error| classify(&error))?;
                let newest = reply.ids.first().map_or_else(|| "0-0".to_owned(), |entry| entry.id.clone());
                match from {
                    From::Mark(mark) if id_of(&mark) <= id_of(&newest) => mark.into(),
                    From::Mark(_) => "0-0".to_owned(),
                    _ => newest,
                }
            }
        };
        loop {
            let mut command = redis::cmd("XREAD");
            command.arg("COUNT").arg(BATCH).arg("BLOCK").arg(BLOCK.as_millis() as u64);
            command.arg("STREAMS").arg(&key).arg(&id);
            // A connection on which nothing comes back at all is broken.
            let limit = BLOCK + shared.settings.timeout;
            let reply: Option<StreamReadReply> = tokio::time::timeout(limit, command.query_async(&mut connection))
                .await
                .map_err(|_| BackplaneError::unknown("nothing comes"))?
                .map_err(|error| classify(&error))?;
            let entries = reply.and_then(|reply| reply.keys.into_iter().next()).map_or_else(Vec::new, |key| key.ids);
            if let Some(newest) = entries.last() {
                id.clone_from(&newest.id);
                yield entries;
            }
        }
    }
    .boxed()
}

impl fmt::Debug for Redis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Redis")
            .field("server", &self.describe())
            .field("namespace", &self.shared.namespace)
            .finish_non_exhaustive()
    }
}
