//! The state that clones of an adapter share, and the functions that open sessions and append
//! records.

use std::sync::Arc;
use std::time::Instant;

use super::super::limits::LogLimits;
use super::super::per_runtime::PerRuntime;
use super::super::{Answer, BackplaneError, LogPosition, NewRecord, Seen};
use super::append::{self, Outcome};
use super::connection::Servers;
use super::names::Names;
use super::proof::Evidence;
use super::session::{self, Session};
use crate::sync::Mutex;

pub(super) struct Shared {
    pub(super) servers: Servers,
    pub(super) namespace: String,
    pub(super) limits: LogLimits,
    pub(super) names: Arc<Names>,
    /// The newest session of each runtime, with its connection. A session with a broken connection
    /// is kept only for the highest position that it has seen.
    sessions: PerRuntime<tokio::sync::Mutex<Option<Arc<Session>>>>,
    /// The session that was opened last, on any runtime. Its highest position counts as seen when
    /// another runtime opens the log.
    newest: Mutex<Option<Arc<Session>>>,
    /// What is known about losses of the log.
    pub(super) evidence: Evidence,
    /// The time and the error of the last failed attempt to connect. Callers that waited for this
    /// attempt return its error. Otherwise each of these callers would wait for its own attempt.
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
            evidence: Evidence::default(),
            failed: Mutex::default(),
        }
    }

    /// Returns a session with an intact connection. Opens the log if no such session exists, or if
    /// the log ends below `seen` in the same epoch.
    pub(super) async fn session(&self, seen: Option<Seen>) -> Answer<Arc<Session>> {
        self.in_time(self.find(seen)).await
    }

    /// Returns a session like [`session`](Self::session), but opens it in a spawned task. Otherwise
    /// a stream that is not polled could hold the lock of the session, and delay other calls.
    pub(super) async fn session_of_stream(self: &Arc<Self>) -> Answer<Arc<Session>> {
        let shared = Arc::clone(self);
        let opened = tokio::spawn(async move { shared.session(None).await }).await;
        opened.unwrap_or_else(|_| Err(BackplaneError::unavailable("the runtime has shut down")))
    }

    /// Waits for the log to be opened, at most for four times the time limit of one answer. Opening
    /// takes several requests, and may wait for another caller that opens the log.
    pub(super) async fn in_time<T>(&self, opening: impl Future<Output = Answer<T>>) -> Answer<T> {
        let limit = self.limits.timeout.saturating_mul(4);
        let opened = tokio::time::timeout(limit, opening).await;
        opened.unwrap_or_else(|_| Err(BackplaneError::unavailable("the log was not opened in time")))
    }

    async fn find(&self, seen: Option<Seen>) -> Answer<Arc<Session>> {
        let requested_at = Instant::now();
        let session = self.sessions.here();
        let mut current = session.lock().await;
        if let Some((_, error)) = self.failed.lock().as_ref().filter(|(at, _)| *at >= requested_at) {
            return Err(error.duplicate());
        }
        if let Some(session) = &*current
            && session.is_good()
            && !self.evidence.has_ended(session.opened.epoch)
            && (!session.is_behind(seen) || session.state(seen, &self.evidence).await?.is_some())
        {
            return Ok(Arc::clone(session));
        }
        self.open(&mut current, seen).await
    }

    /// Opens the log again, because it has changed since session `old` was opened. The new session
    /// gets another epoch than `old` if the log has lost records of that epoch.
    pub(super) async fn reopen(&self, old: &Arc<Session>, seen: Option<Seen>) -> Answer<Arc<Session>> {
        let session = self.sessions.here();
        let mut current = session.lock().await;
        match &*current {
            // Another caller has already opened the log again.
            Some(session)
                if !Arc::ptr_eq(session, old)
                    && session.is_good()
                    && !self.evidence.has_ended(session.opened.epoch)
                    && !session.is_behind(seen) =>
            {
                Ok(Arc::clone(session))
            }
            _ => self.open(&mut current, seen).await,
        }
    }

    async fn open(&self, current: &mut Option<Arc<Session>>, seen: Option<Seen>) -> Answer<Arc<Session>> {
        let connection = match &*current {
            Some(session) if session.connection.is_intact() => session.connection.clone(),
            _ => self.servers.connect(&self.names, self.limits).await.inspect_err(|error| {
                *self.failed.lock() = Some((Instant::now(), error.duplicate()));
            })?,
        };
        // Open with the highest position that the caller, this runtime, or the runtime that opened
        // the log last has seen.
        let newest = self.newest.lock().clone();
        let known = [newest.as_ref(), current.as_ref()].into_iter().flatten().map(|session| session.seen());
        let seen = known.fold(seen, |seen, known| match seen {
            Some(seen) if known.epoch != seen.epoch || known.sequence <= seen.sequence => Some(seen),
            _ => Some(known),
        });
        let resumed = match &newest {
            Some(newest) if connection.is_clustered() && !self.evidence.has_ended(newest.opened.epoch) => {
                session::resume(&connection, newest, seen, &self.evidence).await?
            }
            _ => None,
        };
        let session = match resumed {
            Some(session) => session,
            None => session::open(connection, seen, &self.evidence).await?,
        };
        if let Some(old) = current.take() {
            old.end();
        }
        let session = Arc::new(session);
        *current = Some(Arc::clone(&session));
        *self.newest.lock() = Some(Arc::clone(&session));
        Ok(session)
    }

    /// Appends records. If no stream accepts the last records, opens the log again and sends these
    /// records once more.
    pub(super) async fn append(
        &self,
        records: &[NewRecord],
        seen: Option<Seen>,
    ) -> Answer<Vec<Result<LogPosition, BackplaneError>>> {
        let mut session = self.session(seen).await.map_err(BackplaneError::before_request)?;
        let mut positions = Vec::with_capacity(records.len());
        for attempt in 0..2 {
            let known = session.seen();
            let mut outcomes = append::append(&session, &records[positions.len()..]).await;
            // Repeat only the records after the last record with another outcome, so that the order
            // stays the same.
            let accepted =
                outcomes.iter().rposition(|outcome| !matches!(outcome, Outcome::NoStream)).map_or(0, |last| last + 1);
            let is_repeated = attempt == 0 && accepted < outcomes.len();
            if is_repeated {
                outcomes.truncate(accepted);
            }
            let appended =
                |outcome: &Outcome| if let Outcome::Appended(sequence) = outcome { Some(*sequence) } else { None };
            // A new record has a number that was seen before, so the log has lost records.
            let has_lost = outcomes.iter().filter_map(appended).any(|sequence| sequence <= known.sequence);
            let mut epoch = known.epoch;
            if has_lost {
                self.evidence.end(known.epoch);
                let reopened = self.in_time(self.reopen(&session, seen)).await;
                // The records were appended, but their epoch is unknown.
                epoch = reopened.map_err(|error| BackplaneError::unknown(error.text))?.seen().epoch;
            } else {
                for (outcome, record) in outcomes.iter().zip(&records[positions.len()..]) {
                    if let Outcome::Appended(sequence) = *outcome {
                        session.saw(sequence);
                        self.evidence.appended(LogPosition { epoch, sequence }, &record.payload);
                    }
                }
            }
            positions.extend(outcomes.into_iter().map(|outcome| match outcome {
                Outcome::Appended(sequence) | Outcome::Duplicate(sequence) => Ok(LogPosition { epoch, sequence }),
                Outcome::NoStream => Err(BackplaneError::unavailable("no stream accepts the record")),
                Outcome::Failed(error) => Err(error),
            }));
            if !is_repeated {
                break;
            }
            // The stream may only have been without a leader for a moment.
            let found = match session.state(seen, &self.evidence).await {
                Ok(Some(_)) => Ok(session),
                Ok(None) => self.in_time(self.reopen(&session, seen)).await,
                Err(error) => Err(error),
            };
            session = match found {
                Ok(session) => session,
                Err(error) => {
                    let error = error.before_request();
                    positions.extend(records[positions.len()..].iter().map(|_| Err(error.duplicate())));
                    break;
                }
            };
        }
        Ok(positions)
    }
}
