//! Small things that wait for the first instance that asks: a stream with one message for each,
//! taken by compare-and-set.
//!
//! A message says how many milliseconds it may wait. The server's clock alone measures them, because the clocks of two
//! instances may differ.

use std::time::Duration;

use async_nats::jetstream::message::PublishMessage;
use bytes::Bytes;

use super::super::{Answer, BackplaneError};
use super::connection::Connection;
use super::streams;

pub(super) async fn put(connection: &Connection, key: &str, payload: &Bytes, time: Duration) -> Answer<()> {
    streams::deposits(connection).await?;
    let mut message = time.as_millis().to_string().into_bytes();
    message.push(b' ');
    message.extend_from_slice(payload);
    let message = PublishMessage::build().payload(message.into());
    let put = connection.publish(connection.names.deposit(key), message).await?;
    put.map(drop).map_err(|error| BackplaneError::unavailable(error.to_string()))
}

pub(super) async fn take(connection: &Connection, key: &str) -> Answer<Option<Bytes>> {
    // A server of version 2.9.10 dies of being asked for a message of a stream that it is about to make.
    let names = &connection.names;
    if connection.stream(&names.deposits).await?.is_none_or(|info| info["state"]["messages"] == 0) {
        return Ok(None);
    }
    let subject = names.deposit(key);
    let Some(message) = connection.newest_of(&names.deposits, &subject).await? else { return Ok(None) };
    // What was taken is empty.
    let Some(space) = message.payload.iter().position(|&byte| byte == b' ') else { return Ok(None) };
    if !connection.compare_and_set(subject.clone(), Bytes::new(), message.sequence).await? {
        return Ok(None);
    }
    // The message that took it away says when.
    let Some(taken) = connection.newest_of(&names.deposits, &subject).await? else { return Ok(None) };
    let waited = (taken.time - message.time).whole_milliseconds();
    let time = std::str::from_utf8(&message.payload[..space]).ok().and_then(|time| time.parse::<i128>().ok());
    Ok(time.is_some_and(|time| waited < time).then(|| message.payload.slice(space + 1..)))
}
