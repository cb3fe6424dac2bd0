//! What the clones of an adapter share: the newest session, and appending over it.

use std::sync::Arc;
use std::time::Instant;

use super::super::limits::LogLimits;
use super::super::per_runtime::PerRuntime;
use super::super::{Answer, BackplaneError, LogPosition, NewRecord, Seen};
use super::append::{self, Outcome};
use super::connection::Servers;
use super::names::Names;
use super::session::{self, Session};
use crate::sync::Mutex;

pub(super) struct Shared {
    pub(super) servers: Servers,
    pub(super) namespace: String,
    pub(super) limits: LogLimits,
    pub(super) names: Arc<Names>,
    /// The newest of each runtime, with its connection. Once it broke it is only asked how far the log had come.
    sessions: PerRuntime<tokio::sync::Mutex<Option<Arc<Session>>>>,
    /// The one that was opened last, on any runtime: what it knows of the log holds for all.
    newest: Mutex<Option<Arc<Session>>>,
    /// When connecting failed last, and why: those who waited for it meanwhile do not try one after the other.
    failed: Mutex<Option<(Instant, BackplaneError)>>,
}

impl Shared {
    pub(super) fn new(servers: Servers, namespace: String, limits: LogLimits, names: Arc<Names>) -> Self {
        Self {
            servers,
            namespace,
            limits,
            names,
            sessions: PerRuntime::default(),
            newest: Mutex::default(),
            failed: Mutex::default(),
        }
    }

    /// The log as it is known, over a connection that is whole; opened if need be.
    pub(super) async fn session(&self, seen: Option<Seen>) -> Answer<Arc<Session>> {
        self.in_time(self.find(seen)).await
    }

    /// The same for a stream. Whoever has that may stop polling it for a while, and others would
    /// wait for what it holds.
    pub(super) async fn session_of_stream(self: &Arc<Self>) -> Answer<Arc<Session>> {
        let shared = Arc::clone(self);
        let opened = tokio::spawn(async move { shared.session(None).await }).await;
        opened.unwrap_or_else(|_| Err(BackplaneError::unavailable("the runtime is gone")))
    }

    /// Opening asks several things, and others may wait for the same.
    pub(super) async fn in_time<T>(&self, what: impl Future<Output = Answer<T>>) -> Answer<T> {
        let limit = self.limits.timeout.saturating_mul(4);
        let opened = tokio::time::timeout(limit, what).await;
        opened.unwrap_or_else(|_| Err(BackplaneError::unavailable("the log was not opened in time")))
    }

    async fn find(&self, seen: Option<Seen>) -> Answer<Arc<Session>> {
        let asked_at = Instant::now();
        let session = self.sessions.here();
        let mut current = session.lock().await;
        if let Some((_, error)) = self.failed.lock().as_ref().filter(|(at, _)| *at >= asked_at) {
            return Err(error.again());
        }
        if let Some(session) = &*current
            && session.is_good()
            && (!session.is_behind(seen) || session.look(seen).await?.is_some())
        {
            return Ok(Arc::clone(session));
        }
        self.open(&mut current, seen, None).await
    }

    /// The log anew, since it is not what this session knows. With `younger`, that session's epoch is over.
    pub(super) async fn reopen(&self, than: &Arc<Session>, seen: Option<Seen>, younger: bool) -> Answer<Arc<Session>> {
        let session = self.sessions.here();
        let mut current = session.lock().await;
        let younger = younger.then(|| than.seen().epoch);
        match &*current {
            // Somebody was faster.
            Some(session)
                if !Arc::ptr_eq(session, than)
                    && session.is_good()
                    && younger != Some(session.seen().epoch)
                    && !session.is_behind(seen) =>
            {
                Ok(Arc::clone(session))
            }
            _ => self.open(&mut current, seen, younger).await,
        }
    }

    async fn open(
        &self,
        current: &mut Option<Arc<Session>>,
        seen: Option<Seen>,
        younger: Option<u64>,
    ) -> Answer<Arc<Session>> {
        let connection = match &*current {
            Some(session) if session.connection.is_whole() => session.connection.clone(),
            _ => self.servers.connect(&self.names, self.limits).await.inspect_err(|error| {
                *self.failed.lock() = Some((Instant::now(), error.again()));
            })?,
        };
        // What was known before: by the caller, here, and on the runtime that opened the log last.
        let newest = self.newest.lock().clone();
        let known = [newest.as_ref(), current.as_ref()].into_iter().flatten().map(|session| session.seen());
        let seen = known.fold(seen, |seen, known| match seen {
            Some(seen) if known.epoch != seen.epoch || known.sequence <= seen.sequence => Some(seen),
            _ => Some(known),
        });
        let session = session::open(connection, seen, younger).await?;
        if let Some(before) = current.take() {
            before.end();
        }
        let session = Arc::new(session);
        *current = Some(Arc::clone(&session));
        *self.newest.lock() = Some(Arc::clone(&session));
        Ok(session)
    }

    pub(super) async fn append(
        &self,
        records: &[NewRecord],
        seen: Option<Seen>,
    ) -> Answer<Vec<Result<LogPosition, BackplaneError>>> {
        let mut session = self.session(seen).await.map_err(BackplaneError::before_request)?;
        let mut places = Vec::with_capacity(records.len());
        for attempt in 0..2 {
            let known = session.seen();
            let mut outcomes = append::append(&session, &records[places.len()..]).await;
            // Those at the end that nobody took can be appended again, in order.
            let taken = outcomes.iter().rposition(|outcome| !matches!(outcome, Outcome::Nobody)).map_or(0, |at| at + 1);
            let is_again = attempt == 0 && taken < outcomes.len();
            if is_again {
                outcomes.truncate(taken);
            }
            let newest = |outcome: &Outcome| if let Outcome::At(sequence) = outcome { Some(*sequence) } else { None };
            let is_younger = outcomes.iter().filter_map(newest).any(|sequence| sequence <= known.sequence);
            let mut epoch = known.epoch;
            if is_younger {
                let reopened = self.in_time(self.reopen(&session, seen, true)).await;
                // The records were appended, but their epoch is unknown.
                epoch = reopened.map_err(|error| BackplaneError::unknown(error.text))?.seen().epoch;
            } else {
                outcomes.iter().filter_map(newest).for_each(|sequence| session.saw(sequence));
            }
            places.extend(outcomes.into_iter().map(|outcome| match outcome {
                Outcome::At(sequence) | Outcome::Before(sequence) => Ok(LogPosition { epoch, sequence }),
                Outcome::Nobody => Err(BackplaneError::unavailable("no stream takes the record")),
                Outcome::Failed(error) => Err(error),
            }));
            if !is_again {
                break;
            }
            session = match self.in_time(self.reopen(&session, seen, false)).await {
                Ok(session) => session,
                Err(error) => {
                    let error = error.before_request();
                    places.extend(records[places.len()..].iter().map(|_| Err(error.again())));
                    break;
                }
            };
        }
        Ok(places)
    }
}
