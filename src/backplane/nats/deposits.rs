//! Single-use values, such as tickets. A stream has one message for each value. To take a value, an
//! instance replaces the message with an empty message by compare-and-set.
//!
//! A message begins with the lifetime of its value in milliseconds. Only the server's clock
//! measures the lifetime, because the clocks of two instances may differ.

use std::time::Duration;

use async_nats::jetstream::message::{PublishMessage, StreamMessage};
use bytes::Bytes;
use tokio::time::sleep;

use super::super::{Answer, BackplaneError};
use super::connection::Connection;
use super::session::Session;
use super::streams::Plain;

/// The maximum number of attempts to take a value while other callers take it.
const ATTEMPTS: usize = 8;
/// The pause between two attempts.
const PAUSE: Duration = Duration::from_millis(20);

/// Stores a value.
pub(super) async fn put(connection: &Connection, key: &str, payload: &Bytes, time: Duration) -> Answer<()> {
    Plain::deposits(&connection.names).create_if_missing(connection).await?;
    let mut message = time.as_millis().to_string().into_bytes();
    message.push(b' ');
    message.extend_from_slice(payload);
    let message = PublishMessage::build().payload(message.into());
    let put = connection.publish(connection.names.deposit(key), message).await?;
    put.map(drop).map_err(|error| Connection::publish_error(&error))
}

/// Takes a value. Returns `None` if the value does not exist, has expired, or was taken by another
/// caller.
pub(super) async fn take(session: &Session, key: &str) -> Answer<Option<Bytes>> {
    let connection = &session.connection;
    let names = &connection.names;
    let subject = names.deposit(key);
    let mut is_current = !connection.is_clustered();
    for _ in 0..ATTEMPTS {
        let message = find(connection, &subject).await?;
        // The message of a value that was taken is empty, so it has no space.
        let space = |message: &StreamMessage| message.payload.iter().position(|&byte| byte == b' ');
        let Some((message, space)) = message.and_then(|message| space(&message).map(|space| (message, space))) else {
            if is_current {
                return Ok(None);
            }
            // The server that answered may not have the value yet.
            session.deposits.pass(connection, names.no_deposit(), PublishMessage::build()).await?;
            is_current = true;
            continue;
        };
        if !connection.compare_and_set(subject.clone(), Bytes::new(), message.sequence).await? {
            // Another caller has taken the value, or is about to.
            sleep(PAUSE).await;
            continue;
        }
        // The value was taken, so every later error is an unknown outcome.
        let removal = removal(session, &subject, message.sequence).await;
        let Some(removal) = removal.map_err(|error| BackplaneError::unknown(error.text))? else { return Ok(None) };
        // The time of the empty message is the time at which the value was taken.
        let age = (removal.time - message.time).whole_milliseconds();
        let lifetime = std::str::from_utf8(&message.payload[..space]).ok().and_then(|time| time.parse::<i128>().ok());
        return Ok(lifetime.is_some_and(|lifetime| age < lifetime).then(|| message.payload.slice(space + 1..)));
    }
    Err(BackplaneError::unavailable("the value cannot be taken while other callers take it"))
}

/// Returns the message that has replaced the message with the number `taken`.
async fn removal(session: &Session, subject: &str, taken: u64) -> Answer<Option<StreamMessage>> {
    let connection = &session.connection;
    let read = async || connection.newest_of(&connection.names.deposits, subject).await;
    let removal = read().await?.filter(|message| message.sequence > taken);
    if removal.is_some() || !connection.is_clustered() {
        return Ok(removal);
    }
    // The server that answered may not have the message yet.
    session.deposits.pass(connection, connection.names.no_deposit(), PublishMessage::build()).await?;
    let removal = read().await?.filter(|message| message.sequence > taken);
    removal.map(Some).ok_or_else(|| BackplaneError::unavailable("a replica of the tickets is behind"))
}

/// Returns the message of a value, if the stream has one.
async fn find(connection: &Connection, subject: &str) -> Answer<Option<StreamMessage>> {
    let stream = &connection.names.deposits;
    // Request the description of the stream first: a server of version 2.9.10 crashes on a request
    // for a message of a stream that is being created.
    if connection.stream(stream).await?.is_none_or(|info| info["state"]["messages"] == 0) {
        return Ok(None);
    }
    connection.newest_of(stream, subject).await
}
