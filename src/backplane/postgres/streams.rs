//! The streams of an adapter. Each has its own connection.
//!
//! A stream waits for a notification, and also asks the server at every poll interval. So it
//! continues without notifications, for example behind a pooler. The answers of these requests also
//! show that the connection and the server work.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::join;
use futures::stream::BoxStream;
use tokio_postgres::types::Type;

use super::super::{Answer, ControlMessage, Stored};
use super::append::Limits;
use super::connection::{Parameter, Session, get, notified};
use super::read::records;
use super::server::Shared;

/// The interval at which a stream that receives notifications asks for new data nevertheless.
const CHECK: Duration = Duration::from_secs(2);
/// The interval at which a tail removes expired rows.
const CLEAN: Duration = Duration::from_secs(60);
/// The maximum number of control messages of one request.
const MESSAGES: i64 = 1000;

/// Streams the records above `after`. Also moves the records of the inbox into the log.
pub(super) fn tail(shared: Arc<Shared>, after: u64) -> BoxStream<'static, Answer<Vec<Stored>>> {
    Box::pin(async_stream::try_stream! {
        let session = shared.open_stream().await?;
        let mut notifications = session.notifications.clone();
        let mut appended = shared.appended.subscribe();
        let listens = shared.settings.listens;
        let mut after = i64::try_from(after).unwrap_or(i64::MAX);
        let mut clean_at = Instant::now() + CLEAN.mul_f64(fastrand::f64());
        let (mut move_at, mut read_at) = (Instant::now(), Instant::now());
        // The state of the notifications at the last requests.
        let (mut inbox, mut newest) = (0, 0);
        loop {
            let received = *notifications.borrow_and_update();
            let appended_here = *appended.borrow_and_update();
            let now = Instant::now();
            let moves = move_at <= now || received.inbox != inbox;
            let reads = read_at <= now || received.newest > after.max(newest);
            inbox = received.inbox;
            // Both requests are sent at once. The second reads what the first has committed.
            let work = async { if moves { move_inbox(&shared, &session).await } else { Ok(false) } };
            let read = async { if reads { records(&session, &shared.settings.namespace, after).await } else { Ok(Vec::new()) } };
            let (has_more, batch) = join(work, read).await;
            let (has_more, batch) = (has_more?, batch?);
            if moves && !has_more {
                // Instances that look at different times find a record earlier.
                move_at = Instant::now() + shared.settings.poll_interval.mul_f64(0.5 + fastrand::f64() / 2.0);
            }
            if clean_at <= Instant::now() {
                clean_at = Instant::now() + CLEAN.mul_f64(0.5 + fastrand::f64());
                // On another connection, so that the stream does not wait for it.
                tokio::spawn(clean(Arc::clone(&shared)));
            }
            if let Some(newest) = batch.last() {
                after = newest.sequence.cast_signed();
                yield batch;
                continue;
            }
            if reads {
                // The stream does not read again because of this record, which the log has lost.
                newest = received.newest;
                read_at = if listens { Instant::now() + CHECK } else { move_at };
            }
            let poll = move_at.min(read_at).saturating_duration_since(Instant::now());
            if listens {
                notified(&mut notifications, poll, |new| new.newest > after.max(newest) || new.inbox != inbox).await?;
            } else if tokio::time::timeout(poll, appended.wait_for(|count| *count != appended_here)).await.is_ok() {
                // This process has appended records.
                read_at = Instant::now();
            }
        }
    })
}

/// Removes expired rows. After an error, the rows stay until the next call.
async fn clean(shared: Arc<Shared>) {
    let parameters: [Parameter<'_>; 1] = [(&shared.settings.namespace, Type::TEXT)];
    if let Err(error) = shared.rows(&shared.bulk, "SELECT tower_sse.clean($1)", &parameters).await {
        tracing::debug!(name: "sse.log.clean_failed", error = %error, "expired rows cannot be removed from Postgres");
    }
}

/// Moves the records of the inbox into the log. Returns whether there may be more of them.
async fn move_inbox(shared: &Shared, session: &Session) -> Answer<bool> {
    let limits = Limits::new(shared);
    let row = session
        .one(
            "SELECT tower_sse.sequence_and_trim($1, $2, $3, $4, $5)",
            &[
                (&shared.settings.namespace, Type::TEXT),
                (&limits.records, Type::INT8),
                (&limits.bytes, Type::INT8),
                (&limits.age_ms, Type::INT8),
                (&limits.values, Type::INT8),
            ],
        )
        .await?;
    get(&row, 0)
}

/// Streams control messages.
pub(super) fn listen(shared: Arc<Shared>, after: Option<i64>) -> BoxStream<'static, Answer<ControlMessage>> {
    Box::pin(async_stream::try_stream! {
        let session = shared.open_stream().await?;
        let mut notifications = session.notifications.clone();
        let namespace = &shared.settings.namespace;
        let mut after: i64 = match after {
            Some(after) => after,
            None => get(&session.one("SELECT tower_sse.control_end($1)", &[(namespace, Type::TEXT)]).await?, 0)?,
        };
        loop {
            let seen = notifications.borrow_and_update().control;
            let sql = "SELECT id, message FROM tower_sse.control_range($1, $2, $3)";
            let parameters = [(namespace as _, Type::TEXT), (&after as _, Type::INT8), (&MESSAGES as _, Type::INT8)];
            let rows = session.rows(sql, &parameters).await.map_err(|failure| failure.error)?;
            let is_empty = rows.is_empty();
            for row in rows {
                after = get(&row, 0)?;
                yield ControlMessage { mark: after.to_string().into(), message: get::<Vec<u8>>(&row, 1)?.into() };
            }
            if is_empty {
                let poll = if shared.settings.listens { CHECK } else { shared.settings.poll_interval };
                notified(&mut notifications, poll, |new| new.control != seen).await?;
            }
        }
    })
}
