//! Single-use values, such as tickets. A stream has one message for each value. To take a value, an
//! instance replaces the message with an empty message by compare-and-set.
//!
//! A message begins with the lifetime of its value in milliseconds. Only the server's clock
//! measures the lifetime, because the clocks of two instances may differ.

use std::time::Duration;

use async_nats::jetstream::message::PublishMessage;
use bytes::Bytes;

use super::super::{Answer, BackplaneError};
use super::connection::Connection;
use super::streams;

/// Stores a value.
pub(super) async fn put(connection: &Connection, key: &str, payload: &Bytes, time: Duration) -> Answer<()> {
    streams::deposits(connection).await?;
    let mut message = time.as_millis().to_string().into_bytes();
    message.push(b' ');
    message.extend_from_slice(payload);
    let message = PublishMessage::build().payload(message.into());
    let put = connection.publish(connection.names.deposit(key), message).await?;
    put.map(drop).map_err(|error| BackplaneError::unavailable(error.to_string()))
}

/// Takes a value. Returns `None` if the value does not exist, has expired, or was taken by another
/// caller.
pub(super) async fn take(connection: &Connection, key: &str) -> Answer<Option<Bytes>> {
    // Request the description of the stream first: a server of version 2.9.10 crashes on a request
    // for a message of a stream that is being created.
    let names = &connection.names;
    if connection.stream(&names.deposits).await?.is_none_or(|info| info["state"]["messages"] == 0) {
        return Ok(None);
    }
    let subject = names.deposit(key);
    let Some(message) = connection.newest_of(&names.deposits, &subject).await? else { return Ok(None) };
    // The message of a value that was taken is empty, so it has no space.
    let Some(space) = message.payload.iter().position(|&byte| byte == b' ') else { return Ok(None) };
    if !connection.compare_and_set(subject.clone(), Bytes::new(), message.sequence).await? {
        return Ok(None);
    }
    // The time of the empty message is the time at which the value was taken.
    let Some(removal) = connection.newest_of(&names.deposits, &subject).await? else { return Ok(None) };
    let age = (removal.time - message.time).whole_milliseconds();
    let lifetime = std::str::from_utf8(&message.payload[..space]).ok().and_then(|time| time.parse::<i128>().ok());
    Ok(lifetime.is_some_and(|lifetime| age < lifetime).then(|| message.payload.slice(space + 1..)))
}
