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
//! 3. Each new connection leads to the server that has the log now: one known server, the primary
//!    that Sentinel names, or the owner of the log's slot in a cluster ([`topology`]). Commands
//!    follow the redirections of a cluster ([`redirect`], [`routed_connection`]).
//! 4. A cursor of a scan never leaves the connection that returned it ([`values`]).
//! 5. One file defines the names of all keys ([`keys`]).

mod errors;
mod journal_scripts;
mod journals;
mod keys;
mod redirect;
mod routed_connection;
mod server;
mod stream;
mod topology;
mod values;

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::{BoxStream, TryStreamExt};
use redis::streams::StreamRangeReply;
use redis::{Client, Cmd, ConnectionAddr, ConnectionInfo, IntoConnectionInfo};

use self::server::{Shared, parse_epoch};
use self::stream::{Batch, From, id_of, read, stored};
use self::topology::{Cluster, Sentinels, Topology};
use super::limits::LogLimits;
use super::{
    Answer, Backplane, BackplaneError, ControlMessage, ControlStream, CurrentValue, LogPosition, LogState, NewRecord,
    Range, ReadLimit, Seen, Stored,
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
/// [`new`](Self::new) and [`from_client`](Self::from_client) use one server, or one address that
/// always leads to the primary. [`sentinel`](Self::sentinel) and [`cluster`](Self::cluster) find
/// the primary after a failover.
///
/// `Redis` needs the feature `redis`, and Redis 7.0 or newer or Valkey. The log is as durable as
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
        Ok(Self::from_client(client, namespace))
    }

    /// Creates an adapter for a log on the server of a [`Client`]. So the adapter can use a private
    /// certificate authority, a client certificate, or other settings that a URL cannot express.
    ///
    /// `Client` and [`IntoConnectionInfo`] are types of version 1 of the crate `redis`. Use the
    /// same major version in your application. A later major version of `redis` is a breaking
    /// change of this crate.
    ///
    /// ```no_run
    /// # #[cfg(feature = "redis")] fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use redis::{Client, ClientTlsConfig, TlsCertificates};
    /// use tower_sse::backplane::Redis;
    ///
    /// let certificates = TlsCertificates {
    ///     root_cert: Some(std::fs::read("ca.pem")?),
    ///     client_tls: Some(ClientTlsConfig {
    ///         client_cert: std::fs::read("client.pem")?,
    ///         client_key: std::fs::read("client.key")?,
    ///     }),
    /// };
    /// let client = Client::build_with_tls("rediss://redis.internal:6379", certificates)?;
    /// let log = Redis::from_client(client, "shop");
    /// # let _ = log; Ok(()) }
    /// # #[cfg(not(feature = "redis"))] fn main() {}
    /// ```
    #[must_use]
    pub fn from_client(client: Client, namespace: &str) -> Self {
        Self::with_topology(Topology::Server(client), namespace)
    }

    /// Creates an adapter for a log on the primary that Redis Sentinel names.
    ///
    /// - `sentinels` are the addresses of the Sentinels, with their own credentials and TLS
    ///   settings. Name all of them, so that the adapter works as long as one of them does.
    /// - `primary` is the name of the primary at the Sentinels, for example `mymaster`.
    /// - `servers` has the user, the password, the database and the TLS settings of the Redis
    ///   servers. The adapter replaces its host and port by those that Sentinel names.
    ///
    /// The adapter asks the Sentinels before each connection, so it continues at the new primary
    /// after a failover. It waits for the answers of more than half of the Sentinels, and uses the
    /// newest configuration among them. So a Sentinel that is cut off from the others does not lead
    /// the adapter to the old primary.
    ///
    /// After half of the [`timeout`](Self::timeout), the answers that have arrived are enough. If
    /// no Sentinel has answered by then, the adapter waits for the first answer, up to the whole
    /// time limit. If only the Sentinel that is cut off answers, the adapter uses the old primary.
    ///
    /// During a failover, publishing fails, or its outcome is unknown. A failover may lose
    /// acknowledged records: see [`acknowledged_by`](Self::acknowledged_by).
    ///
    /// ```no_run
    /// # #[cfg(feature = "redis")] fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use tower_sse::backplane::Redis;
    ///
    /// let sentinels = [
    ///     "redis://:watch@10.0.0.1:26379",
    ///     "redis://:watch@10.0.0.2:26379",
    ///     "redis://:watch@10.0.0.3:26379",
    /// ];
    /// let log = Redis::sentinel(sentinels, "mymaster", "redis://app:secret@any", "shop")?;
    /// # let _ = log; Ok(()) }
    /// # #[cfg(not(feature = "redis"))] fn main() {}
    /// ```
    ///
    /// [`from_client`](Self::from_client) shows how to create a client with a private certificate
    /// authority. `client.get_connection_info().clone()` is then a value for `servers`, and for an
    /// item of `sentinels`.
    ///
    /// # Errors
    ///
    /// Returns an error if there are no Sentinels, if the name of the primary is empty, or if an
    /// address is not a Redis URL of a host. The error does not contain the address.
    pub fn sentinel<S: IntoConnectionInfo>(
        sentinels: impl IntoIterator<Item = S>,
        primary: &str,
        servers: impl IntoConnectionInfo,
        namespace: &str,
    ) -> Answer<Self> {
        let sentinels = sentinels.into_iter().map(host).collect::<Answer<Vec<_>>>()?;
        if sentinels.is_empty() || primary.is_empty() {
            return Err(BackplaneError::rejected("Redis::sentinel needs a Sentinel and the name of the primary"));
        }
        let sentinels = Sentinels { sentinels, primary: primary.to_owned(), servers: host(servers)? };
        Ok(Self::with_topology(Topology::Sentinel(sentinels), namespace))
    }

    /// Creates an adapter for a log in a Redis Cluster, or in a service with its protocol.
    ///
    /// All keys of a namespace are in one slot, so one server of the cluster has the whole log.
    /// Other namespaces are usually at other servers. The adapter connects to the owner of the
    /// slot, and follows the redirections of the cluster.
    ///
    /// `nodes` are addresses of some servers of the cluster, or one address that leads to any of
    /// them. The adapter learns the other servers from the cluster. It connects to them with the
    /// user, the password and the TLS settings of the first address.
    ///
    /// While the slot is moved to another server, publishing may take longer, or fails without an
    /// effect ([`PublishError::is_unavailable`](crate::PublishError::is_unavailable)). A failover
    /// may lose acknowledged records: see [`acknowledged_by`](Self::acknowledged_by).
    ///
    /// ```no_run
    /// # #[cfg(feature = "redis")] fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use tower_sse::backplane::Redis;
    ///
    /// let nodes = ["rediss://app:secret@10.0.0.1:6379", "rediss://app:secret@10.0.0.2:6379"];
    /// let log = Redis::cluster(nodes, "shop")?;
    /// # let _ = log; Ok(()) }
    /// # #[cfg(not(feature = "redis"))] fn main() {}
    /// ```
    ///
    /// # Errors
    ///
    /// Returns an error if there are no addresses, if an address is not a Redis URL of a host, or
    /// if it has a database other than 0. The error does not contain the address.
    pub fn cluster<N: IntoConnectionInfo>(nodes: impl IntoIterator<Item = N>, namespace: &str) -> Answer<Self> {
        let nodes = nodes.into_iter().map(host).collect::<Answer<Vec<_>>>()?;
        if nodes.is_empty() {
            return Err(BackplaneError::rejected("Redis::cluster needs the address of a server"));
        }
        if nodes.iter().any(|node| node.redis_settings().db() != 0) {
            return Err(BackplaneError::rejected("a Redis Cluster has only the database 0"));
        }
        Ok(Self::with_topology(Topology::Cluster(Cluster::new(nodes)), namespace))
    }

    fn with_topology(topology: Topology, namespace: &str) -> Self {
        Self { shared: Arc::new(Shared::new(topology, namespace.to_owned(), LogLimits::default(), 0)) }
    }

    /// Sets the number of replicas that must acknowledge a record before publishing succeeds.
    /// Defaults to 0. The adapter waits for the replicas with the command `WAIT`. Writes to runs
    /// wait in the same way. Control messages and tickets do not wait.
    ///
    /// A replica acknowledges a record when it has the record in memory. So a successful publish
    /// survives a failover if the new primary is one of the `replicas` that acknowledged it:
    ///
    /// - With the number of all replicas, every replica that can be promoted has the record. Then
    ///   publishing fails while a replica is down.
    /// - With fewer, Redis does not ensure that the new primary has the record. It prefers the
    ///   replica that has received most. A failover by Sentinel may promote another one, because
    ///   the old primary accepts records for about a second after the promotion.
    /// - With 0, a failover may lose every record of the last moments.
    ///
    /// `WAIT` is not a consensus: the primary stores the record first, and instances deliver it at
    /// once. If too few replicas acknowledge a record within half of the
    /// [`timeout`](Self::timeout), publishing fails although the primary has the record.
    /// [`PublishError::is_unknown`](crate::PublishError::is_unknown) then returns `true`. Publish
    /// the event again with the same
    /// [`idempotency_key`](crate::Event::idempotency_key): the log has it once, and the second call
    /// waits for the replicas too.
    ///
    /// The adapter logs a warning if it connects to a primary with fewer replicas.
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
        let tidy = &tidy;
        let tidy = |mut connection| async move { tidy.query_async::<()>(&mut connection).await };
        if let Err(error) = self.shared.run_on(&self.shared.line, tidy).await {
            tracing::debug!(name: "sse.control.trim_failed", %error, "old control messages cannot be removed from Redis");
        }
    }

    fn with(self, change: impl FnOnce(&mut Shared)) -> Self {
        let Shared { topology, namespace, limits, replicas, .. } = &*self.shared;
        let mut shared = Shared::new(topology.clone(), namespace.clone(), *limits, *replicas);
        change(&mut shared);
        Self { shared: Arc::new(shared) }
    }
}

/// Returns the settings of a connection to a host. Rejects the path of a socket.
fn host(address: impl IntoConnectionInfo) -> Answer<ConnectionInfo> {
    let info = address.into_connection_info().map_err(|_| BackplaneError::rejected("not a Redis URL"))?;
    match info.addr() {
        ConnectionAddr::Tcp(..) | ConnectionAddr::TcpTls { .. } => Ok(info),
        _ => Err(BackplaneError::rejected("not the address of a host")),
    }
}

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
            if self.shared.topology.is_cluster() {
                // A chunk that is redirected is sent again, so the next chunk has to wait.
                for chunk in chunks {
                    answers.push(chunk.await);
                }
            } else {
                // The connection keeps the order of the other chunks, so they can be sent together.
                answers.extend(futures::future::join_all(chunks).await);
            }
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
            let (epoch, first, last): (String, u64, u64) = self.shared.invoke(line, &call).await?;
            Ok(LogState { epoch: parse_epoch(&epoch)?, first, last })
        })
    }

    fn range(&self, after: u64, limit: ReadLimit) -> BoxFuture<'_, Answer<Range>> {
        Box::pin(async move {
            let log = &self.shared.keys.log;
            // The server limits the number of entries only, so read about as many as fit, until the
            // bytes are reached. A script could count the bytes, but it would occupy the server for
            // several times as long.
            let read = async |mut connection: redirect::Connection, page: usize| {
                let (most, mut bytes, mut start) = (limit.records.min(page), 0, format!("({after}-0"));
                let mut records = Vec::new();
                while records.len() < most && (records.is_empty() || bytes < limit.bytes) {
                    let count = limit.fitting(records.len(), bytes).min(most - records.len());
                    let range = Cmd::xrange_count(log, &start, "+", count);
                    let StreamRangeReply { ids } = range.query_async(&mut connection).await?;
                    let found: Vec<Stored> = ids.iter().filter_map(stored).collect();
                    bytes += found.iter().map(|stored| stored.payload.len()).sum::<usize>();
                    records.extend(found);
                    match ids.last() {
                        Some(newest) if ids.len() == count => start = format!("({}", newest.id),
                        _ => break,
                    }
                }
                Ok(records)
            };
            Ok(Range::Records(limit.take(self.shared.read_pages(read).await?)))
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
            let scan = |connection, page| values::scan(connection, values, page);
            let current = self.shared.read_pages(scan).await?;
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
            let command = &command;
            let get = |mut connection| async move { command.query_async::<Option<Vec<u8>>>(&mut connection).await };
            Ok(self.shared.run_on(&self.shared.bulk, get).await?.map(Bytes::from))
        })
    }

    fn describe(&self) -> String {
        self.shared.topology.describe()
    }

    fn describe_limits(&self) -> String {
        self.shared.limits.to_string()
    }
}

opaque_debug!(|redis: Redis| { server: redis.describe(), namespace: redis.shared.namespace });
