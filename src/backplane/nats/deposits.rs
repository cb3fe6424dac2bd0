//! Small things that wait for the first instance that asks: a stream with one message for each,
//! taken by compare-and-set.
//!
//! A message says how many milliseconds it may wait. The server's clock alone measures them, because the clocks of two
//! instances may differ.

use std::time::Duration;

use bytes::Bytes;
use serde_json::json;

use super::super::BackplaneError;
use super::connection::{By, Connection};
use super::names::Names;
use super::streams;

pub(super) async fn put(
    connection: &Connection,
    names: &Names,
    key: &str,
    payload: &Bytes,
    time: Duration,
) -> Result<(), BackplaneError> {
    streams::deposits(connection, names).await?;
    let mut message = time.as_millis().to_string().into_bytes();
    message.push(b' ');
    message.extend_from_slice(payload);
    let publish = async { connection.jetstream.publish(names.deposit(key), message.into()).await?.await };
    match connection.within(connection.timeout, publish).await? {
        Ok(_) => Ok(()),
        Err(error) => Err(BackplaneError::unavailable(error.to_string())),
    }
}

pub(super) async fn take(connection: &Connection, names: &Names, key: &str) -> Result<Option<Bytes>, BackplaneError> {
    // A server of version 2.9.10 dies of being asked for a message of a stream that it is about to make.
    match connection.ask("STREAM.INFO", &names.deposits, &json!({})).await? {
        Some(info) if info["state"]["messages"] != 0 => {}
        Some(_) | None => return Ok(None),
    }
    let subject = names.deposit(key);
    let Some(message) = connection.message(&names.deposits, By::Subject(&subject)).await? else { return Ok(None) };
    // What was taken is empty.
    let Some(space) = message.payload.iter().position(|&byte| byte == b' ') else { return Ok(None) };
    if !connection.compare_and_set(subject.clone(), Bytes::new(), message.sequence).await? {
        return Ok(None);
    }
    // The message that took it away says when.
    let Some(taken) = connection.message(&names.deposits, By::Subject(&subject)).await? else { return Ok(None) };
    let waited = (taken.time - message.time).whole_milliseconds();
    let time = std::str::from_utf8(&message.payload[..space]).ok().and_then(|time| time.parse::<i128>().ok());
    Ok(time.is_some_and(|time| waited < time).then(|| message.payload.slice(space + 1..)))
}
