//! The NATS adapter. It stores the log in a JetStream stream, and needs a NATS server of version
//! 2.9 or newer, or a cluster of servers of version 2.12.2 or newer.
//!
//! A NATS server cannot run scripts. So the adapter sends several requests where the Redis adapter
//! calls one script:
//!
//! - **Numbers** are the sequence numbers of the stream. The limits of the stream (count, size and
//!   age) remove only the oldest records.
//! - **The epoch** is stored in a key-value bucket and changed by compare-and-set. The stream
//!   accepts records that set or remove no current value only on a subject that contains the epoch.
//!   See `session`.
//! - **Loss** of records is detected when the adapter connects, when it reads the state, and before
//!   an append if the caller has seen a higher position than the adapter. If the log loses records
//!   between the last such check and an append, while the connection stays open, the adapter
//!   detects the loss after the append, because the acknowledgement contains a number that the
//!   adapter has seen before. The adapter then begins a new epoch at once, and returns a position
//!   in the new epoch. Until the new epoch begins, a reader can mistake the new record for a record
//!   of the old epoch.
//! - **Current values** are copied by the server into a second stream. See `values`.
//! - **Records with values** are accepted in any epoch: their subject does not contain the epoch,
//!   so that a new value replaces a value of an earlier epoch. So if another instance has just
//!   begun a new epoch, the adapter may return a position in the old epoch for such a record.
//! - **Control messages** are stored in a separate stream for at most one minute, so that an
//!   instance that was disconnected for a moment can still receive them.
//!
//! A server may lose acknowledged records in a power failure, unless it syncs every write
//! (`sync_interval: always`).
//!
//! # Clusters
//!
//! In a cluster, the answer to a read may lack acknowledged messages. A stream without a leader is
//! described by any of its replicas. A leader that was cut off from the other servers answers until
//! it steps down. A consumer reads from any replica, which may be behind. So no read proves a loss:
//!
//! - A description of a stream without a leader is an error (`Connection::stream`).
//! - If the log ends below a known number, the number of a record that is appended now decides
//!   (`proof`). Values are deleted only after this proof.
//! - A stream that is not found is asked for again.
//! - A reader skips messages that it has read. The answer to a read of the log that lacks a record
//!   which the leader has is [`Range::NotYet`]. Other reads that lack a message which the leader
//!   has, or which was acknowledged, are errors.
//! - A ticket or a run that is not found is read again after a write to its stream.

mod access;
mod append;
mod connection;
mod control;
mod denials;
mod deposits;
mod journal_headings;
mod journals;
mod names;
mod proof;
mod reader;
mod session;
mod shared;
mod streams;
mod values;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::BoxStream;

use self::access::Identity;
use self::connection::Servers;
use self::names::Names;
use self::reader::Reader;
use self::shared::Shared;
use super::limits::LogLimits;
use super::{
    Answer, Backplane, BackplaneError, ControlMessage, ControlStream, CurrentValue, LogPosition, LogState, NewRecord,
    Range, ReadLimit, Seen, Stored,
};
use crate::macros::opaque_debug;

/// The time after which the server ends a request for new messages.
const BLOCK: Duration = Duration::from_secs(2);
/// The maximum number of messages that one request returns.
const BATCH: usize = 512;

/// A log on a NATS server with JetStream, for
/// [`HubBuilder::backplane`](crate::HubBuilder::backplane).
///
/// `Nats` needs the feature `nats` and a server of version 2.9 or newer, with JetStream, or a
/// cluster of servers of version 2.12.2 or newer ([`replicas`](Self::replicas)). The log is as
/// durable as the server's storage. A server process that is killed and restarts with its storage
/// directory has lost no acknowledged record. If the server restarts without records that an
/// instance has seen, the log begins a new epoch, and every stream receives one `hub.gap`.
///
/// A record and its headers together must not exceed the server's `max_payload`, by default 1 MiB.
/// The headers contain the idempotency key and the ids of the values that the record sets or
/// removes.
///
/// ```no_run
/// # #[cfg(feature = "nats")] fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use tower_sse::Hub;
/// use tower_sse::backplane::Nats;
///
/// let log = Nats::new("nats://127.0.0.1:4222", "shop")?;
/// let hub = Hub::builder().backplane(log).build()?;
/// # let _ = hub; Ok(()) }
/// # #[cfg(not(feature = "nats"))] fn main() {}
/// ```
#[derive(Clone)]
pub struct Nats {
    shared: Arc<Shared>,
}

impl Nats {
    /// Creates an adapter for a log on the server at `url`, for example `nats://127.0.0.1:4222`,
    /// `tls://user:password@host` or `nats://token@host`. The text can contain the URLs of several
    /// servers of one cluster, separated by commas.
    ///
    /// Hubs that use the same server and the same `namespace` share one log. Hubs with other
    /// namespaces on the same server are unrelated. The namespace is any text. The adapter connects
    /// when it is first used.
    ///
    /// # Errors
    ///
    /// Returns an error if `url` is not a NATS URL, or if the namespace is longer than 200 bytes. A
    /// byte other than `A` to `Z`, `a` to `z`, `0` to `9` and `-` counts as three bytes. The error
    /// contains neither the URL nor the namespace.
    pub fn new(url: &str, namespace: &str) -> Answer<Self> {
        let servers = Servers::parse(url).ok_or_else(|| BackplaneError::rejected("not a NATS URL"))?;
        let names = Arc::new(Names::new(namespace)?);
        Ok(Self { shared: Arc::new(Shared::new(servers, namespace.to_owned(), LogLimits::default(), names)) })
    }

    /// Sets the limits of the records and current values that the broker retains. Defaults to
    /// [`LogLimits::new`].
    #[must_use]
    pub fn limits(self, limits: LogLimits) -> Self {
        self.with(|_, old| *old = LogLimits { timeout: old.timeout, ..limits })
    }

    /// Sets the time limit for connecting to a server, and for each answer of the server. Defaults
    /// to 2 s. A call that needs several requests can take longer.
    #[must_use]
    pub fn timeout(self, timeout: Duration) -> Self {
        self.with(|_, limits| limits.timeout = timeout)
    }

    /// Sets the minimum number of replicas of each stream: the log, the current values, the bucket
    /// with the epoch, control messages, tickets and runs. Defaults to 1.
    ///
    /// With 3 replicas, in a cluster of at least three servers, the log survives the failure of one
    /// server without a loss, and with 5 replicas the failure of two. The adapter creates streams
    /// with this number, and raises the number of existing streams that have fewer. It never lowers
    /// the number, because another instance may require more. To lower it, change the streams with
    /// the tools of NATS.
    ///
    /// More than one replica, and a cluster, needs version 2.12.2 or newer on all servers. Every
    /// call fails with an error that names the versions if the server to which the adapter has
    /// connected is older. The adapter does not see the versions of the other servers, so upgrade
    /// all servers of a cluster before you use this version of the adapter.
    ///
    /// ```
    /// # #[cfg(feature = "nats")] fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use tower_sse::backplane::Nats;
    ///
    /// let log = Nats::new("nats://one:4222, nats://two:4222, nats://three:4222", "shop")?;
    /// let log = log.replicas(3)?;
    /// # let _ = log; Ok(()) }
    /// # #[cfg(not(feature = "nats"))] fn main() {}
    /// ```
    ///
    /// # Errors
    ///
    /// Returns an error if the number is not between 1 and 5.
    pub fn replicas(self, replicas: usize) -> Answer<Self> {
        if !(1..=5).contains(&replicas) {
            return Err(BackplaneError::rejected(format!("a stream cannot have {replicas} replicas, only 1 to 5")));
        }
        Ok(self.with(|servers, _| servers.replicas = replicas))
    }

    /// Reads a user JWT and an NKey seed from a credentials file (`.creds`), in place of a user or
    /// a token in the URL. The adapter reads the file for each new connection, so a renewed file
    /// needs no restart.
    ///
    /// If the file cannot be read or has another content, every call fails with an error.
    ///
    /// ```
    /// # #[cfg(feature = "nats")] fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use tower_sse::backplane::Nats;
    ///
    /// let log = Nats::new("tls://nats.example.com", "shop")?;
    /// let log = log.credentials_file("/run/secrets/nats.creds");
    /// # let _ = log; Ok(()) }
    /// # #[cfg(not(feature = "nats"))] fn main() {}
    /// ```
    #[must_use]
    pub fn credentials_file(self, path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        self.with(|servers, _| servers.access.set_identity(Identity::File(path)))
    }

    /// Sets the seed of an NKey (`SU…`), in place of a user or a token in the URL.
    ///
    /// If the text is not the seed of an NKey, every call fails with an error that does not contain
    /// the text.
    ///
    /// ```
    /// # #[cfg(feature = "nats")] fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use tower_sse::backplane::Nats;
    ///
    /// # fn read_secret(_: &str) -> String { String::new() }
    /// let log = Nats::new("nats://127.0.0.1:4222", "shop")?.nkey(read_secret("nats-seed"));
    /// # let _ = log; Ok(()) }
    /// # #[cfg(not(feature = "nats"))] fn main() {}
    /// ```
    #[must_use]
    pub fn nkey(self, seed: impl Into<String>) -> Self {
        let seed = seed.into();
        self.with(|servers, _| servers.access.set_identity(Identity::NKey(seed)))
    }

    /// Sets the prefix of the subjects on which the adapter receives answers. Defaults to `_INBOX`.
    ///
    /// If each NATS user has a different prefix, no user needs a permission for the answers to the
    /// other users.
    ///
    /// ```
    /// # #[cfg(feature = "nats")] fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use tower_sse::backplane::Nats;
    ///
    /// let log = Nats::new("nats://127.0.0.1:4222", "shop")?.inbox_prefix("_INBOX_shop")?;
    /// # let _ = log; Ok(()) }
    /// # #[cfg(not(feature = "nats"))] fn main() {}
    /// ```
    ///
    /// # Errors
    ///
    /// Returns an error if the text is not the beginning of a subject: tokens of visible ASCII
    /// characters, separated by dots, without `*` and `>`.
    pub fn inbox_prefix(self, prefix: &str) -> Answer<Self> {
        let mut servers = self.shared.servers.clone();
        servers.access.set_inbox_prefix(prefix)?;
        Ok(self.with(|old, _| *old = servers))
    }

    /// Sets the PEM file with the certificates of the authorities that the adapter trusts, for
    /// servers whose certificate was issued by a private authority. The adapter then trusts only
    /// these authorities, and none of the system. It reads the file for each new connection. If the
    /// file cannot be read, every call fails with an error.
    ///
    /// ```
    /// # #[cfg(feature = "nats")] fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use tower_sse::backplane::Nats;
    ///
    /// let log = Nats::new("tls://nats.internal:4222", "shop")?
    ///     .root_certificates("/etc/shop/ca.pem")
    ///     .client_certificate("/etc/shop/client.pem", "/etc/shop/client.key");
    /// # let _ = log; Ok(()) }
    /// # #[cfg(not(feature = "nats"))] fn main() {}
    /// ```
    #[must_use]
    pub fn root_certificates(self, pem: impl Into<PathBuf>) -> Self {
        let pem = pem.into();
        self.with(|servers, _| servers.access.set_roots(pem))
    }

    /// Sets the PEM files of a certificate and its private key, for servers that verify clients.
    /// The adapter reads the files for each new connection. If they cannot be read, every call
    /// fails with an error. [`root_certificates`](Self::root_certificates) has an example.
    #[must_use]
    pub fn client_certificate(self, certificate: impl Into<PathBuf>, key: impl Into<PathBuf>) -> Self {
        let (certificate, key) = (certificate.into(), key.into());
        self.with(|servers, _| servers.access.set_certificate(certificate, key))
    }

    fn with(self, change: impl FnOnce(&mut Servers, &mut LogLimits)) -> Self {
        let Shared { servers, namespace, limits, names, .. } = &*self.shared;
        let (mut servers, mut limits) = (servers.clone(), *limits);
        change(&mut servers, &mut limits);
        Self { shared: Arc::new(Shared::new(servers, namespace.clone(), limits, Arc::clone(names))) }
    }
}

impl Backplane for Nats {
    fn append(&self, records: Vec<NewRecord>, seen: Option<Seen>) -> BoxFuture<'_, Vec<Answer<LogPosition>>> {
        Box::pin(async move {
            let appended = self.shared.append(&records, seen).await;
            appended.unwrap_or_else(|error| records.iter().map(|_| Err(error.duplicate())).collect())
        })
    }

    fn state(&self, seen: Option<Seen>) -> BoxFuture<'_, Answer<LogState>> {
        Box::pin(async move {
            let session = self.shared.session(None).await?;
            match session.state(seen, &self.shared.evidence).await? {
                Some(state) => Ok(state),
                None => Ok(self.shared.in_time(self.shared.reopen(&session, seen)).await?.opened),
            }
        })
    }

    fn range(&self, after: u64, limit: ReadLimit) -> BoxFuture<'_, Answer<Range>> {
        Box::pin(async move {
            let session = self.shared.session(None).await?;
            let (connection, log) = (&session.connection, &self.shared.names.log);
            let messages = Reader::open(connection, log, after, None).await?.rest(limit, BATCH).await?;
            let mut records = limit.take(messages.into_iter().map(|message| message.stored));
            let first = records.first().map(|stored| stored.sequence);
            if limit.records > 0 && first != Some(after + 1) {
                // The record `after + 1` is missing. It does not exist yet, was removed, or has not
                // arrived at the replica that answered. Ask the leader of the stream for the next
                // record that exists.
                let oldest = connection.oldest_from(log, after.saturating_add(1)).await?;
                let is_behind = match oldest {
                    Some(oldest) => first.is_none_or(|first| oldest < first),
                    // In a cluster, the leader that answered may have been replaced meanwhile. Ask
                    // again after its successor has described the log. If no record exists then,
                    // the log has removed the records.
                    None if session.seen().sequence <= after || !connection.is_clustered() => false,
                    None => session.is_ahead().await? || connection.oldest_from(log, after + 1).await?.is_some(),
                };
                if is_behind {
                    return Ok(Range::NotYet);
                }
            }
            // Return only the records before the first hole. The next call then begins at the hole
            // and checks the missing record as above.
            let contiguous =
                records.iter().zip(first.unwrap_or(0)..).take_while(|(stored, number)| stored.sequence == *number);
            records.truncate(contiguous.count());
            Ok(Range::Records(records))
        })
    }

    fn tail(&self, after: u64) -> BoxStream<'static, Answer<Vec<Stored>>> {
        let shared = Arc::clone(&self.shared);
        Box::pin(async_stream::try_stream! {
            let session = shared.session_of_stream().await?;
            let mut reader = Reader::open(&session.connection, &shared.names.log, after, None).await?;
            let mut last = after;
            loop {
                let batch = reader.next(BATCH, BLOCK).await?;
                // The records may be of a new epoch if another session has replaced this session.
                if !session.is_good() {
                    Err(BackplaneError::unavailable("the connection broke, or the log was opened again"))?;
                }
                let batch: Vec<_> = batch.into_iter().map(|message| message.stored).collect();
                for stored in &batch {
                    // The records between `last` and this record were removed or not delivered.
                    // After this error, the hub compares its position with the state of the log.
                    if stored.sequence != last + 1 {
                        let next = stored.sequence;
                        Err(BackplaneError::unavailable(format!("record {next} follows record {last}")))?;
                    }
                    last = stored.sequence;
                }
                session.saw(last);
                if !batch.is_empty() {
                    yield batch;
                }
            }
        })
    }

    fn values(&self) -> BoxFuture<'_, Answer<Vec<CurrentValue>>> {
        Box::pin(async move { values::read(&self.shared.session(None).await?.connection).await })
    }

    fn broadcast(&self, stream: ControlStream, message: Bytes) -> BoxFuture<'_, Answer<()>> {
        Box::pin(async move {
            let session = self.shared.session(None).await.map_err(BackplaneError::before_request)?;
            control::broadcast(&session.connection, stream, message).await
        })
    }

    fn listen(&self, after: Option<Box<str>>) -> BoxStream<'static, Answer<ControlMessage>> {
        let shared = Arc::clone(&self.shared);
        Box::pin(async_stream::try_stream! {
            let session = shared.session_of_stream().await?;
            let (created, mut reader) = control::listen(&session.connection, after).await?;
            loop {
                for message in reader.next(BATCH, BLOCK).await? {
                    let Stored { sequence, payload, .. } = message.stored;
                    yield ControlMessage { mark: format!("{sequence} {created}").into(), message: payload };
                }
            }
        })
    }

    fn put_once(&self, key: &str, payload: Bytes, time: Duration) -> BoxFuture<'_, Answer<()>> {
        let key = key.to_owned();
        Box::pin(async move {
            let session = self.shared.session(None).await?;
            deposits::put(&session.connection, &key, &payload, time).await
        })
    }

    fn take(&self, key: &str) -> BoxFuture<'_, Answer<Option<Bytes>>> {
        let key = key.to_owned();
        Box::pin(async move { deposits::take(&*self.shared.session(None).await?, &key).await })
    }

    fn put_shared(&self, key: &str, payload: Bytes, _time: Duration) -> BoxFuture<'_, Answer<()>> {
        let key = key.to_owned();
        Box::pin(async move { control::put_shared(&self.shared.session(None).await?.connection, &key, payload).await })
    }

    fn get_shared(&self, key: &str) -> BoxFuture<'_, Answer<Option<Bytes>>> {
        let key = key.to_owned();
        Box::pin(async move { control::get_shared(&self.shared.session(None).await?.connection, &key).await })
    }

    fn describe(&self) -> String {
        format!("nats at {}", self.shared.servers)
    }

    fn describe_limits(&self) -> String {
        self.shared.limits.to_string()
    }
}

opaque_debug!(|nats: Nats| { server: nats.describe(), namespace: nats.shared.namespace });
