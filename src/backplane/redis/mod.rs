//! The Redis adapter. It stores the log in a Redis stream, and needs Redis 7.0 or newer, or a
//! compatible server.
//!
//! One script appends records. It compares the log with the position that the caller has seen,
//! numbers the records from the last id of the stream, writes the current values to a hash and
//! trims the stream. All keys of a log have the same hash tag.
//!
//! 1. The adapter replaces a connection that broke, or on which an answer is overdue ([`server`]).
//! 2. Each stream of [`tail`](Backplane::tail) and [`listen`](Backplane::listen) has its own
//!    connection. Every wait on it has a time limit ([`stream`]).
//! 3. One file defines the names of all keys ([`keys`]).

mod journal_scripts;
mod journals;
mod keys;
mod server;
mod stream;

use std::collections::hash_map::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::{BoxStream, TryStreamExt};
use redis::streams::StreamRangeReply;
use redis::{Client, Cmd};

use self::server::{Shared, parse_epoch};
use self::stream::{Batch, From, id_of, read, stored};
use super::limits::LogLimits;
use super::sealed::Sealed;
use super::{
    Answer, Backplane, BackplaneError, ControlMessage, ControlStream, CurrentValue, LogPosition, LogState, NewRecord,
    Seen, Stored,
};
use crate::macros::opaque_debug;

/// The maximum number of records that one call of the script appends. Other clients of the server
/// wait while a script runs.
const CHUNK: usize = 256;
/// The approximate maximum number of retained control messages of one stream.
const CONTROL_MESSAGES: usize = 10_000;
/// The age from which control messages are removed, because they contain user ids.
const CONTROL_AGE: Duration = Duration::from_secs(300);
/// The minimum interval between two removals of old control messages by one adapter.
const TIDY: Duration = Duration::from_secs(10);

/// A log on a Redis server, for [`HubBuilder::backplane`](crate::HubBuilder::backplane).
///
/// `Redis` needs the feature `redis` and a server of version 7.0 or newer. The log is as durable as
/// the server's persistence. With `appendonly yes` and `appendfsync always`, a restart of the
/// server loses no acknowledged record. Without persistence, the log begins a new epoch after a
/// restart of the server, and every stream receives one `hub.gap`.
///
/// ```no_run
/// # #[cfg(feature = "redis")] fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use tower_sse::Hub;
/// use tower_sse::backplane::Redis;
///
/// let log = Redis::new("redis://127.0.0.1:6379", "shop")?.acknowledged_by(1);
/// let hub = Hub::builder().backplane(log).build()?;
/// # let _ = hub; Ok(()) }
/// # #[cfg(not(feature = "redis"))] fn main() {}
/// ```
#[derive(Clone)]
pub struct Redis {
    shared: Arc<Shared>,
}

impl Redis {
    /// Creates an adapter for a log on the server at `url`, for example `redis://127.0.0.1:6379` or
    /// `rediss://user:password@host`.
    ///
    /// Hubs that use the same server and the same `namespace` share one log. Hubs with other
    /// namespaces on the same server are unrelated. The namespace is any text. The adapter connects
    /// when it is first used.
    ///
    /// # Errors
    ///
    /// Returns an error if `url` is not a Redis URL. The error does not contain the URL.
    pub fn new(url: &str, namespace: &str) -> Answer<Self> {
        let client = Client::open(url).map_err(|_| BackplaneError::rejected("not a Redis URL"))?;
        Ok(Self { shared: Arc::new(Shared::new(client, namespace.to_owned(), LogLimits::default(), 0)) })
    }

    /// Sets the number of replicas that must acknowledge a record before publishing succeeds.
    /// Defaults to 0. The adapter waits for the replicas with the command `WAIT`.
    ///
    /// With 0, a failover may lose records that were acknowledged to the publisher. If too few
    /// replicas acknowledge a record within half of the [`timeout`](Self::timeout), publishing
    /// fails although the primary has the record.
    /// [`PublishError::is_unknown`](crate::PublishError::is_unknown) then returns `true`.
    #[must_use]
    pub fn acknowledged_by(self, replicas: u32) -> Self {
        self.with(|shared| shared.replicas = replicas)
    }

    /// Sets the limits of the records and current values that the broker retains. Defaults to
    /// [`LogLimits::new`].
    #[must_use]
    pub fn limits(self, limits: LogLimits) -> Self {
        self.with(|shared| shared.limits = LogLimits { timeout: shared.limits.timeout, ..limits })
    }

    /// Sets the time limit for connecting, and for each answer of the server. Defaults to 2 s. A
    /// call that needs several requests can take longer.
    #[must_use]
    pub fn timeout(self, timeout: Duration) -> Self {
        self.with(|shared| shared.limits.timeout = timeout)
    }

    /// Removes control messages that are older than [`CONTROL_AGE`] at `now`, the server's time in
    /// milliseconds. Also renews the expiry of the control streams, so that all messages expire
    /// when no instance sends messages any more. Does nothing if the last attempt was less than
    /// [`TIDY`] ago.
    async fn tidy(&self, now: u64) {
        {
            let mut tidied = self.shared.tidied.lock();
            if tidied.is_some_and(|at| at.elapsed() < TIDY) {
                return;
            }
            *tidied = Some(Instant::now());
        }
        let age = CONTROL_AGE.as_millis() as u64;
        let mut tidy = redis::pipe();
        for key in [&self.shared.keys.commands, &self.shared.keys.presence] {
            tidy.cmd("XTRIM").arg(key).arg("MINID").arg(now.saturating_sub(age));
            tidy.cmd("PEXPIRE").arg(key).arg(age);
        }
        let tidy = async |connection: &mut _| tidy.query_async::<()>(connection).await;
        if let Err(error) = self.shared.run_on(&self.shared.line, tidy).await {
            tracing::debug!(name: "sse.control.trim_failed", %error, "old control messages cannot be removed from Redis");
        }
    }

    fn with(self, change: impl FnOnce(&mut Shared)) -> Self {
        let Shared { client, namespace, limits, replicas, .. } = &*self.shared;
        let mut shared = Shared::new(client.clone(), namespace.clone(), *limits, *replicas);
        change(&mut shared);
        Self { shared: Arc::new(shared) }
    }
}

impl Sealed for Redis {}

impl Backplane for Redis {
    fn append(&self, records: Vec<NewRecord>, seen: Option<Seen>) -> BoxFuture<'_, Vec<Answer<LogPosition>>> {
        Box::pin(async move {
            let mut chunks = records.chunks(CHUNK).map(|chunk| self.shared.append_chunk(chunk, seen));
            // The first chunk is sent alone. If the server does not have the script yet, the client
            // loads the script and sends this chunk again. Meanwhile, later chunks could overtake
            // this chunk.
            let Some(first) = chunks.next() else { return Vec::new() };
            let mut answers = vec![first.await];
            if let [Err(error)] = &answers[..] {
                return records.iter().map(|_| Err(error.duplicate())).collect();
            }
            // The connection keeps the order of the other chunks, so they can be sent together.
            answers.extend(futures::future::join_all(chunks).await);
            let mut results = Vec::with_capacity(records.len());
            for (chunk, answer) in records.chunks(CHUNK).zip(answers) {
                match answer {
                    Ok(positions) => results.extend(positions.into_iter().map(Ok)),
                    Err(error) => results.extend(chunk.iter().map(|_| Err(error.duplicate()))),
                }
            }
            results
        })
    }

    fn state(&self, seen: Option<Seen>) -> BoxFuture<'_, Answer<LogState>> {
        Box::pin(async move {
            let Shared { state, keys, line, .. } = &*self.shared;
            let mut call = state.prepare_invoke();
            let (seen, own) = self.shared.compared(seen);
            call.key(&keys.log).key(&keys.meta).arg(seen).arg(own);
            let look = async |connection: &mut _| call.invoke_async(connection).await;
            let (epoch, first, last): (String, u64, u64) = self.shared.run_on(line, look).await?;
            Ok(LogState { epoch: parse_epoch(&epoch)?, first, last })
        })
    }

    fn range(&self, after: u64, limit: usize) -> BoxFuture<'_, Answer<Vec<Stored>>> {
        Box::pin(async move {
            let log = &self.shared.keys.log;
            let page = |page: usize| Cmd::xrange_count(log, format!("({after}-0"), "+", page.min(limit));
            let reply: StreamRangeReply = self.shared.read_page(page).await?;
            Ok(reply.ids.iter().filter_map(stored).collect())
        })
    }

    fn tail(&self, after: u64) -> BoxStream<'static, Answer<Vec<Stored>>> {
        let log = vec![(self.shared.keys.log.clone(), From::After(after))];
        let batches = read(Arc::clone(&self.shared), log);
        Box::pin(batches.map_ok(|batch| batch.entries.iter().filter_map(|(_, entry)| stored(entry)).collect()))
    }

    fn values(&self) -> BoxFuture<'_, Answer<Vec<CurrentValue>>> {
        Box::pin(async move {
            let values = &self.shared.keys.values;
            let record = |value: Vec<u8>| {
                let colon = value.iter().position(|&byte| byte == b':')?;
                let sequence = std::str::from_utf8(&value[..colon]).ok()?.parse().ok()?;
                Some(Stored { sequence, payload: Bytes::from(value).slice(colon + 1..) })
            };
            // A scan may return an id more than once.
            let mut current: HashMap<String, Stored> = HashMap::new();
            let mut cursor = 0_u64;
            loop {
                let scan = |page| redis::cmd("HSCAN").arg(values).arg(cursor).arg("COUNT").arg(page).take();
                let (next, page): (u64, Vec<(String, Vec<u8>)>) = self.shared.read_page(scan).await?;
                for (id, value) in page {
                    if let Some(record) = record(value)
                        && current.get(&id).is_none_or(|known| known.sequence < record.sequence)
                    {
                        current.insert(id, record);
                    }
                }
                if next == 0 {
                    break;
                }
                cursor = next;
            }
            Ok(current.into_iter().map(|(id, record)| CurrentValue { id: id.into(), record }).collect())
        })
    }

    fn broadcast(&self, stream: ControlStream, message: Bytes) -> BoxFuture<'_, Answer<()>> {
        Box::pin(async move {
            let mut command = redis::cmd("XADD");
            let key = match stream {
                ControlStream::Commands => &self.shared.keys.commands,
                ControlStream::Presence => &self.shared.keys.presence,
            };
            command.arg(key).arg("MAXLEN").arg("~").arg(CONTROL_MESSAGES);
            command.arg("*").arg("d").arg(&message[..]);
            let id = self.shared.query::<String>(&command).await?;
            self.tidy(id_of(&id).0).await;
            Ok(())
        })
    }

    fn listen(&self, after: Option<Box<str>>) -> BoxStream<'static, Answer<ControlMessage>> {
        let keys = [self.shared.keys.commands.clone(), self.shared.keys.presence.clone()];
        // A mark has the id of an entry of each stream. The listener has received both entries.
        let from = match after.as_deref().map(|mark| mark.split_once(' ')) {
            None => [From::Now, From::Now],
            Some(Some((commands, presence))) => [From::Mark(commands.into()), From::Mark(presence.into())],
            Some(None) => [From::After(0), From::After(0)],
        };
        let mut batches = read(Arc::clone(&self.shared), std::iter::zip(keys, from).collect());
        Box::pin(async_stream::try_stream! {
            while let Some(Batch { after: mut ids, entries }) = batches.try_next().await? {
                for (stream, entry) in entries {
                    ids[stream].clone_from(&entry.id);
                    if let Some(message) = entry.get::<Vec<u8>>("d") {
                        yield ControlMessage { mark: ids.join(" ").into(), message: message.into() };
                    }
                }
            }
        })
    }

    fn put_once(&self, key: &str, payload: Bytes, time: Duration) -> BoxFuture<'_, Answer<()>> {
        let mut command = redis::cmd("SET");
        command.arg(self.shared.keys.deposit(key)).arg(&payload[..]);
        command.arg("PX").arg(u64::try_from(time.as_millis()).unwrap_or(u64::MAX).max(1));
        Box::pin(async move { self.shared.query(&command).await })
    }

    fn take(&self, key: &str) -> BoxFuture<'_, Answer<Option<Bytes>>> {
        let command = Cmd::get_del(self.shared.keys.deposit(key));
        Box::pin(async move { Ok(self.shared.query::<Option<Vec<u8>>>(&command).await?.map(Bytes::from)) })
    }

    fn put_shared(&self, key: &str, payload: Bytes, time: Duration) -> BoxFuture<'_, Answer<()>> {
        let mut command = redis::cmd("SET");
        command.arg(self.shared.keys.shared(key)).arg(&payload[..]);
        command.arg("PX").arg(time.min(CONTROL_AGE).as_millis().max(1) as u64);
        Box::pin(async move { self.shared.query(&command).await })
    }

    fn get_shared(&self, key: &str) -> BoxFuture<'_, Answer<Option<Bytes>>> {
        let command = Cmd::get(self.shared.keys.shared(key));
        Box::pin(async move {
            let get = async |connection: &mut _| command.query_async::<Option<Vec<u8>>>(connection).await;
            Ok(self.shared.run_on(&self.shared.bulk, get).await?.map(Bytes::from))
        })
    }

    fn describe(&self) -> String {
        format!("redis at {}", self.shared.client.get_connection_info().addr())
    }

    fn describe_limits(&self) -> String {
        self.shared.limits.to_string()
    }
}

opaque_debug!(|redis: Redis| { server: redis.describe(), namespace: redis.shared.namespace });
