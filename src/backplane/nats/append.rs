//! Appends records. Publishes up to [`WINDOW`] records before it waits for an acknowledgement. An
//! acknowledgement contains the sequence number of its record.

use std::collections::vec_deque::VecDeque;
use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::header::NATS_MESSAGE_ID;
use async_nats::jetstream::context::{PublishAckFuture, PublishError, PublishErrorKind};
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::publish::PublishAck;

use super::super::{Answer, BackplaneError, LogPosition, NewRecord};
use super::connection::Connection;
use super::denials::Since;
use super::names::{VALUES, escape, write_values};
use super::session::Session;

/// The maximum number of pending acknowledgements of one call.
const WINDOW: usize = 1024;

/// The outcome of appending one record.
pub(super) enum Outcome {
    /// The record was appended with this number.
    Appended(u64),
    /// The log already had a record with this idempotency key, at this number.
    Duplicate(u64),
    /// No stream accepts the subject, for example because the log was deleted or is in another
    /// epoch.
    NoStream,
    /// The append failed.
    Failed(BackplaneError),
}

/// A record that was sent.
struct Sent {
    subject: String,
    acknowledgement: PublishAckFuture,
}

/// Appends records in order. Returns one outcome for each record.
pub(super) async fn append(session: &Session, records: &[NewRecord]) -> Vec<Outcome> {
    let mut outcomes = Vec::with_capacity(records.len());
    let mut pending = VecDeque::new();
    // The time limit of each wait. The first wait that exceeds this limit sets it to zero, so that
    // one call does not wait this long for each record.
    let mut limit = session.connection.limits.timeout;
    let denials = session.connection.denials();
    for record in records {
        if pending.len() >= WINDOW
            && let Some(sent) = pending.pop_front()
        {
            outcomes.push(acknowledged(session, sent, &denials, &mut limit).await);
        }
        pending.push_back(send(session, record, &mut limit).await);
    }
    for sent in pending {
        outcomes.push(acknowledged(session, sent, &denials, &mut limit).await);
    }
    outcomes
}

/// Sends a record. After an error, the record was not sent.
async fn send(session: &Session, record: &NewRecord, limit: &mut Duration) -> Answer<Sent> {
    let connection = &session.connection;
    let LogPosition { epoch, .. } = session.seen();
    let mut headers = HeaderMap::new();
    if let Some(key) = &record.idempotency_key {
        // The header contains the epoch, because a key of an earlier epoch does not count.
        headers.insert(NATS_MESSAGE_ID, format!("{epoch:x}.{}", escape(key)));
    }
    let subject = if record.values.is_empty() {
        connection.names.plain(epoch)
    } else {
        // Send no `Nats-Expected-Stream` header: the server would copy it into the stream of
        // values, which would then reject the message.
        headers.insert(VALUES, write_values(&record.values));
        connection.names.keyed_by(&record.values)
    };
    let publish = PublishMessage::build().payload(record.payload.clone()).headers(headers);
    let sent = connection.within(*limit, connection.jetstream.send_publish(subject.clone(), publish));
    match sent.await {
        Ok(Ok(acknowledgement)) => Ok(Sent { subject, acknowledgement }),
        Ok(Err(error)) if error.kind() == PublishErrorKind::MaxPayloadExceeded => Err(connection.too_large("record")),
        Ok(Err(error)) => Err(BackplaneError::unavailable(error.to_string())),
        Err(error) => {
            *limit = Duration::ZERO;
            Err(BackplaneError::unavailable(error.text))
        }
    }
}

/// Returns the outcome of a record. Waits for the acknowledgement if the record was sent.
async fn acknowledged(session: &Session, sent: Answer<Sent>, denials: &Since, limit: &mut Duration) -> Outcome {
    let sent = match sent {
        Ok(sent) => sent,
        Err(error) => return Outcome::Failed(error),
    };
    let denial = denials.message(&sent.subject);
    match session.connection.unless(&denial, *limit, sent.acknowledgement.into_future()).await {
        // The server is still storing the first record with this idempotency key, and may yet fail.
        Ok(Ok(PublishAck { sequence: 0, .. })) => {
            Outcome::Failed(BackplaneError::unknown("the number of the record is not known yet"))
        }
        Ok(Ok(PublishAck { sequence, duplicate: true, .. })) => Outcome::Duplicate(sequence),
        Ok(Ok(PublishAck { sequence, .. })) => Outcome::Appended(sequence),
        Ok(Err(error)) => rejected(&error),
        Err(error) => {
            // The server answers the other records if it denies this one.
            if !error.is_rejected() {
                *limit = Duration::ZERO;
            }
            Outcome::Failed(error)
        }
    }
}

/// Converts an error of a publish to an outcome.
fn rejected(error: &PublishError) -> Outcome {
    match error.kind() {
        PublishErrorKind::StreamNotFound => Outcome::NoStream,
        _ => Outcome::Failed(Connection::publish_error(error)),
    }
}
