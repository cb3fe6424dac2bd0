//! A JetStream stream as the log. Server 2.9 or newer.
//!
//! The server has no scripts, so what Redis does in one step is made of several things here:
//!
//! - **Numbers** are the stream's own sequence. It is trimmed at its head only, by count and age.
//! - **The epoch** lies in a key-value bucket and is changed by compare-and-set; the stream takes
//!   plain records on a subject that names it. See `session`.
//! - **A younger log** is noticed before anything is appended whenever the adapter connects, looks,
//!   or is told by its caller of more than it knows. Should the log fall back between a look and an
//!   append, over a connection that holds, the acknowledgement shows it: its number is one that was
//!   there before. Then a new epoch begins at once, and the place that is returned is in the new
//!   one. Only until then may who reads take this one record for one of the old epoch.
//! - **Current values** are copied by the server into a second stream. See `values`.
//! - **Records with values** are taken in any epoch, since the copy needs a subject that stays. So
//!   if somebody else began a new epoch a moment ago, the place of such a record may name the old
//!   one, in which positions are refused by then.
//! - **Control messages** lie in a stream of their own for a minute, so that who was cut off for a
//!   moment hears them too.
//!
//! What a server acknowledged it may lose with the power, unless it is told to sync (`sync_interval: always`) or has
//! replicas: streams of one replica are made, and may be given more with NATS' own tools.

mod append;
mod connection;
mod control;
mod deposits;
mod names;
mod reader;
mod session;
mod shared;
mod streams;
mod values;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::BoxStream;

use self::connection::Servers;
use self::names::Names;
use self::reader::Reader;
use self::shared::Shared;
use super::limits::LogLimits;
use super::sealed::Sealed;
use super::{
    Answer, Backplane, BackplaneError, ControlMessage, CurrentValue, LogPosition, LogState, NewRecord, Seen, Stored,
};
use crate::macros::opaque_debug;

/// How long the server waits for something new before it says that there is nothing.
const BLOCK: Duration = Duration::from_secs(2);
const BATCH: usize = 512;

/// A log on a NATS server with JetStream: [`HubBuilder::backplane`](crate::HubBuilder::backplane).
///
/// `Nats` needs the feature `nats` and a server of version 2.9 or newer, with JetStream. Its
/// guarantees are those of the server's storage. A server that is killed and returns with its
/// folder has lost no acknowledged record. A server that returns with less begins a new epoch, and
/// the hub reports one gap to every client.
///
/// A record has to fit the server's `max_payload`, 1 MiB unless set, together with its headers: its
/// idempotency key, and the values that it sets.
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
    /// Creates a log at `url`, such as `nats://127.0.0.1:4222`, `tls://user:password@host`,
    /// `nats://token@host`, or several servers of one cluster, separated by commas.
    ///
    /// Hubs of one `namespace`, any text, are instances of one log. Hubs of other namespaces on the
    /// same server are unrelated. The log connects when it is first used.
    ///
    /// # Errors
    ///
    /// When `url` is not a NATS URL, or the namespace is too long: about 200 letters, fewer where
    /// it has others than `A-Za-z0-9-`. The error does not repeat them.
    pub fn new(url: &str, namespace: &str) -> Answer<Self> {
        let servers = Servers::parse(url).ok_or_else(|| BackplaneError::rejected("not a NATS URL"))?;
        let names = Arc::new(Names::new(namespace)?);
        Ok(Self { shared: Arc::new(Shared::new(servers, namespace.to_owned(), LogLimits::default(), names)) })
    }

    /// Sets the limits of the records that the broker retains. Defaults to [`LogLimits::new`].
    #[must_use]
    pub fn limits(self, limits: LogLimits) -> Self {
        self.with(|old| *old = LogLimits { timeout: old.timeout, ..limits })
    }

    /// Sets the time limit for connecting, and for each answer. Defaults to 2 s.
    #[must_use]
    pub fn timeout(self, timeout: Duration) -> Self {
        self.with(|limits| limits.timeout = timeout)
    }

    fn with(self, change: impl FnOnce(&mut LogLimits)) -> Self {
        let Shared { servers, namespace, limits, names, .. } = &*self.shared;
        let mut limits = *limits;
        change(&mut limits);
        Self { shared: Arc::new(Shared::new(servers.clone(), namespace.clone(), limits, Arc::clone(names))) }
    }
}

impl Sealed for Nats {}

impl Backplane for Nats {
    fn append(&self, records: Vec<NewRecord>, seen: Option<Seen>) -> BoxFuture<'_, Vec<Answer<LogPosition>>> {
        Box::pin(async move {
            let appended = self.shared.append(&records, seen).await;
            appended.unwrap_or_else(|error| records.iter().map(|_| Err(error.again())).collect())
        })
    }

    fn state(&self, seen: Option<Seen>) -> BoxFuture<'_, Answer<LogState>> {
        Box::pin(async move {
            let session = self.shared.session(None).await?;
            match session.look(seen).await? {
                Some(state) => Ok(state),
                None => Ok(self.shared.in_time(self.shared.reopen(&session, seen, false)).await?.opened),
            }
        })
    }

    fn range(&self, after: u64, limit: usize) -> BoxFuture<'_, Answer<Vec<Stored>>> {
        Box::pin(async move {
            let session = self.shared.session(None).await?;
            let (connection, log) = (&session.connection, &self.shared.names.log);
            let messages = Reader::open(connection, log, after, None).await?.rest(limit, BATCH).await?;
            let mut records: Vec<_> = messages.into_iter().map(|message| message.stored).collect();
            let first = records.first().map(|stored| stored.sequence);
            if limit > 0 && first != Some(after + 1) {
                // Trimmed or deleted records are missing, or the reader does not see yet what the log has.
                let oldest = connection.oldest_from(log, after.saturating_add(1)).await?;
                if oldest.is_some_and(|oldest| first.is_none_or(|first| oldest < first)) {
                    return Err(BackplaneError::unavailable("records of the log cannot be read yet"));
                }
            }
            // The next call looks at a hole.
            let whole =
                records.iter().zip(first.unwrap_or(0)..).take_while(|(stored, number)| stored.sequence == *number);
            records.truncate(whole.count());
            Ok(records)
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
                // Else what comes may be of an epoch that is not what the reader thinks.
                if !session.is_good() {
                    Err(BackplaneError::unavailable("the log is another"))?;
                }
                let batch: Vec<_> = batch.into_iter().map(|message| message.stored).collect();
                for stored in &batch {
                    // Trimmed, deleted, or lost on the way: whoever follows has to look.
                    if stored.sequence != last + 1 {
                        let next = stored.sequence;
                        Err(BackplaneError::unavailable(format!("after record {last} came {next}")))?;
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

    fn broadcast(&self, message: Bytes) -> BoxFuture<'_, Answer<()>> {
        Box::pin(async move {
            let session = self.shared.session(None).await.map_err(BackplaneError::before_request)?;
            control::broadcast(&session.connection, message).await
        })
    }

    fn listen(&self, after: Option<Box<str>>) -> BoxStream<'static, Answer<ControlMessage>> {
        let shared = Arc::clone(&self.shared);
        Box::pin(async_stream::try_stream! {
            let session = shared.session_of_stream().await?;
            let (life, mut reader) = control::listen(&session.connection, after).await?;
            loop {
                for message in reader.next(BATCH, BLOCK).await? {
                    let Stored { sequence, payload } = message.stored;
                    yield ControlMessage { mark: format!("{sequence} {life}").into(), message: payload };
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
        Box::pin(async move { deposits::take(&self.shared.session(None).await?.connection, &key).await })
    }

    fn describe(&self) -> String {
        format!("nats at {}", self.shared.servers)
    }

    fn describe_limits(&self) -> String {
        self.shared.limits.to_string()
    }
}

opaque_debug!(|nats: Nats| { server: nats.describe(), namespace: nats.shared.namespace });
