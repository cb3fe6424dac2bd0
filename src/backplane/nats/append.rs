//! Appending: publishes that are acknowledged with their number, all under way together.

use std::collections::vec_deque::VecDeque;
use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::header::NATS_MESSAGE_ID;
use async_nats::jetstream::context::{PublishAckFuture, PublishError, PublishErrorKind};
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::publish::PublishAck;

use super::super::{Answer, BackplaneError, LogPosition, NewRecord};
use super::names::{VALUES, escape, write_values};
use super::session::Session;

/// How many records of one call are under way at a time.
const WINDOW: usize = 1024;

/// What became of a record.
pub(super) enum Outcome {
    At(u64),
    /// It was there already.
    Before(u64),
    /// Nobody took it: the log is gone, or in another epoch.
    Nobody,
    Failed(BackplaneError),
}

/// Appends in order. One outcome for each.
pub(super) async fn append(session: &Session, records: &[NewRecord]) -> Vec<Outcome> {
    let mut outcomes = Vec::with_capacity(records.len());
    let mut under_way = VecDeque::new();
    // Once something did not come in time, nothing more is waited for.
    let mut patience = session.connection.limits.timeout;
    for record in records {
        if under_way.len() >= WINDOW
            && let Some(sent) = under_way.pop_front()
        {
            outcomes.push(acknowledged(session, sent, &mut patience).await);
        }
        under_way.push_back(send(session, record, &mut patience).await);
    }
    for sent in under_way {
        outcomes.push(acknowledged(session, sent, &mut patience).await);
    }
    outcomes
}

/// Nothing was sent if it fails.
async fn send(session: &Session, record: &NewRecord, patience: &mut Duration) -> Answer<PublishAckFuture> {
    let connection = &session.connection;
    let LogPosition { epoch, .. } = session.seen();
    let mut headers = HeaderMap::new();
    if let Some(key) = &record.idempotency_key {
        // A record of another epoch is another.
        headers.insert(NATS_MESSAGE_ID, format!("{epoch:x}.{}", escape(key)));
    }
    let subject = if record.values.is_empty() {
        connection.names.plain(epoch)
    } else {
        // No `Nats-Expected-Stream`: it would be copied too, and the copy refused.
        headers.insert(VALUES, write_values(&record.values));
        connection.names.keyed_by(&record.values)
    };
    let publish = PublishMessage::build().payload(record.payload.clone()).headers(headers);
    let sent = connection.within(*patience, connection.jetstream.send_publish(subject, publish));
    match sent.await {
        Ok(Ok(sent)) => Ok(sent),
        Ok(Err(error)) if error.kind() == PublishErrorKind::MaxPayloadExceeded => {
            let limit = connection.client.max_payload();
            Err(BackplaneError::rejected(format!("larger than the server's max_payload of {limit}, with headers")))
        }
        Ok(Err(error)) => Err(BackplaneError::unavailable(error.to_string())),
        Err(error) => {
            *patience = Duration::ZERO;
            Err(BackplaneError::unavailable(error.text))
        }
    }
}

async fn acknowledged(session: &Session, sent: Answer<PublishAckFuture>, patience: &mut Duration) -> Outcome {
    let sent = match sent {
        Ok(sent) => sent,
        Err(error) => return Outcome::Failed(error),
    };
    match session.connection.within(*patience, sent.into_future()).await {
        // The first record with this key is still under way to the replicas.
        Ok(Ok(PublishAck { sequence: 0, .. })) => {
            Outcome::Failed(BackplaneError::unknown("the number is not known yet"))
        }
        Ok(Ok(PublishAck { sequence, duplicate: true, .. })) => Outcome::Before(sequence),
        Ok(Ok(PublishAck { sequence, .. })) => Outcome::At(sequence),
        Ok(Err(error)) => refused(&error),
        Err(error) => {
            *patience = Duration::ZERO;
            Outcome::Failed(error)
        }
    }
}

fn refused(error: &PublishError) -> Outcome {
    match error.kind() {
        PublishErrorKind::StreamNotFound => Outcome::Nobody,
        PublishErrorKind::TimedOut | PublishErrorKind::BrokenPipe => {
            Outcome::Failed(BackplaneError::unknown(error.to_string()))
        }
        _ => Outcome::Failed(BackplaneError::rejected(error.to_string())),
    }
}
