//! The state that clones of an adapter share: the connections and the settings.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio_postgres::Row;

use super::super::limits::LogLimits;
use super::super::per_runtime::PerRuntime;
use super::super::secret_key::hashed;
use super::super::{Answer, BackplaneError, LogPosition, Seen};
use super::connection::{Database, Failure, Parameter, Session};
use super::queue::Queue;
use crate::sync::Mutex;

/// The maximum number of bytes of a record that are compared, from its start. In a record of a hub,
/// the random id ends within the first thirty bytes.
const COMPARED: usize = 64;

/// The settings of an adapter.
#[derive(Clone)]
pub(super) struct Settings {
    pub(super) database: Database,
    /// The database for the streams, if they do not use [`database`](Self::database).
    pub(super) direct: Option<Database>,
    pub(super) namespace: String,
    pub(super) limits: LogLimits,
    pub(super) poll_interval: Duration,
    /// Whether the streams receive notifications.
    pub(super) listens: bool,
}

pub(super) struct Shared {
    pub(super) settings: Settings,
    /// The connections for small requests.
    pub(super) line: PerRuntime<Line>,
    /// The connections for appends.
    pub(super) publish: PerRuntime<Line>,
    /// The connections for large reads.
    pub(super) bulk: PerRuntime<Line>,
    /// The connections for journals, so that runs do not delay other requests.
    pub(super) journals: PerRuntime<Line>,
    /// The records that wait for an append.
    pub(super) queues: PerRuntime<Mutex<Queue>>,
    /// Counts the appends of this adapter. Without notifications, its streams wait for them.
    pub(super) appended: watch::Sender<u64>,
    own: Mutex<Option<Own>>,
}

/// The newest acknowledged record of this adapter. If the log has another record at its position,
/// the log was rolled back and has grown since.
#[derive(Clone)]
struct Own {
    position: LogPosition,
    /// The first [`COMPARED`] bytes of the record.
    start: Vec<u8>,
}

/// The arguments with which the server detects a log that has lost records.
pub(super) struct Compared {
    pub(super) new_epoch: i64,
    pub(super) own_epoch: i64,
    pub(super) own: i64,
    pub(super) own_start: Vec<u8>,
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
    session: Option<Arc<Session>>,
    /// The time and the error of the last failed attempt to connect. Callers that waited for this
    /// attempt return its error. Otherwise each of these callers would wait for its own attempt.
    failed: Option<(Instant, BackplaneError)>,
}

impl Line {
    fn find(&self) -> Option<Arc<Session>> {
        self.slot.lock().session.clone().filter(|session| !session.client.is_closed())
    }

    async fn get(&self, settings: &Settings) -> Answer<Arc<Session>> {
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
        let connect = async {
            let session = settings.database.connect(settings.limits.timeout, None).await?;
            session.check().await?;
            Ok(session)
        };
        let session = connect.await.inspect_err(|error: &BackplaneError| {
            self.slot.lock().failed = Some((Instant::now(), error.duplicate()));
        })?;
        let mut slot = self.slot.lock();
        slot.failed = None;
        Ok(Arc::clone(slot.session.insert(Arc::new(session))))
    }

    /// Drops a connection, unless another one has replaced it.
    fn lose(&self, lost: &Arc<Session>) {
        let mut slot = self.slot.lock();
        if slot.session.as_ref().is_some_and(|session| Arc::ptr_eq(session, lost)) {
            slot.session = None;
        }
    }
}

impl Shared {
    pub(super) fn new(settings: Settings) -> Self {
        Self {
            settings,
            line: PerRuntime::default(),
            publish: PerRuntime::default(),
            bulk: PerRuntime::default(),
            journals: PerRuntime::default(),
            queues: PerRuntime::default(),
            appended: watch::Sender::new(0),
            own: Mutex::default(),
        }
    }

    /// Runs a statement on the connection that the current runtime has in `lines`. Replaces the
    /// connection if the error shows that it is broken, that the answer is late, or that the server
    /// cannot append records.
    pub(super) async fn rows(
        &self,
        lines: &PerRuntime<Line>,
        sql: &str,
        parameters: &[Parameter<'_>],
    ) -> Answer<Vec<Row>> {
        let line = lines.here();
        let session = line.get(&self.settings).await?;
        session.rows(sql, parameters).await.map_err(|Failure { error, is_fatal }| {
            if is_fatal {
                line.lose(&session);
            }
            error
        })
    }

    /// Runs a statement that returns one row, as [`rows`](Self::rows) does.
    pub(super) async fn one(&self, lines: &PerRuntime<Line>, sql: &str, parameters: &[Parameter<'_>]) -> Answer<Row> {
        let mut rows = self.rows(lines, sql, parameters).await?;
        rows.pop().ok_or_else(|| BackplaneError::unknown("the server returned no row"))
    }

    /// Opens a connection for a stream. It receives notifications if the settings say so.
    pub(super) async fn open_stream(&self) -> Answer<Session> {
        let settings = &self.settings;
        let channel = settings.listens.then(|| channel(&settings.namespace));
        let database = settings.direct.as_ref().unwrap_or(&settings.database);
        let session = database.connect(settings.limits.timeout, channel.as_deref()).await?;
        session.check().await?;
        Ok(session)
    }

    pub(super) fn compared(&self) -> Compared {
        let new_epoch = fastrand::i64(1..);
        match self.own.lock().clone() {
            Some(Own { position, start }) => Compared {
                new_epoch,
                own_epoch: position.epoch.cast_signed(),
                own: position.sequence.cast_signed(),
                own_start: start,
            },
            None => Compared { new_epoch, own_epoch: 0, own: 0, own_start: Vec::new() },
        }
    }

    /// Stores a record as the newest record of this adapter, unless a newer record is stored.
    pub(super) fn remember(&self, position: LogPosition, payload: &[u8]) {
        let mut own = self.own.lock();
        // The answers of two simultaneous calls may arrive in reverse order.
        let is_newer = |own: &Own| own.position.epoch != position.epoch || own.position.sequence < position.sequence;
        if own.as_ref().is_none_or(is_newer) {
            *own = Some(Own { position, start: payload[..payload.len().min(COMPARED)].into() });
        }
    }
}

/// Returns the channel of a namespace, as the SQL function `tower_sse.channel` does.
fn channel(namespace: &str) -> String {
    format!("tower_sse_{}", &hashed(namespace)[..32])
}

/// Converts a seen position to the integers of the server.
pub(super) fn seen(seen: Option<Seen>) -> (i64, i64) {
    // No log has the epoch 0.
    seen.map_or((0, 0), |seen| (seen.epoch.cast_signed(), i64::try_from(seen.sequence).unwrap_or(i64::MAX)))
}

/// Converts a number of the server.
pub(super) fn number(number: i64) -> Answer<u64> {
    u64::try_from(number).map_err(|_| BackplaneError::unknown("the server returned a negative number"))
}
