//! Control messages and shared values. A small stream stores the messages, so that an instance that
//! was disconnected for a moment can read the messages that it missed. Commands and presence
//! messages have their own subjects, each with its own limit.
//!
//! Another stream has the newest message of each shared value. The server removes it by its age,
//! whatever the lifetime that the caller has set.

use async_nats::jetstream::context::PublishErrorKind;
use async_nats::jetstream::message::PublishMessage;
use bytes::Bytes;

use super::super::{Answer, BackplaneError, ControlStream};
use super::connection::Connection;
use super::reader::Reader;
use super::streams::Plain;

/// Sends a control message. Creates the stream of control messages if it does not exist.
pub(super) async fn broadcast(connection: &Connection, stream: ControlStream, message: Bytes) -> Answer<()> {
    let publish =
        || connection.publish(connection.names.control(stream), PublishMessage::build().payload(message.clone()));
    let mut published = publish().await?;
    if published.as_ref().is_err_and(|error| error.kind() == PublishErrorKind::StreamNotFound) {
        // The stream was not created yet, or was deleted.
        Plain::control(&connection.names).create_if_missing(connection).await?;
        published = publish().await?;
    }
    published.map(drop).map_err(|error| BackplaneError::unknown(error.to_string()))
}

/// Stores a shared value. Creates the stream of shared values if it does not exist.
pub(super) async fn put_shared(connection: &Connection, key: &str, payload: Bytes) -> Answer<()> {
    let publish = || connection.publish(connection.names.shared(key), PublishMessage::build().payload(payload.clone()));
    let mut published = publish().await?;
    if published.as_ref().is_err_and(|error| error.kind() == PublishErrorKind::StreamNotFound) {
        Plain::shared(&connection.names).create_if_missing(connection).await?;
        published = publish().await?;
    }
    published.map(drop).map_err(|error| BackplaneError::unknown(error.to_string()))
}

/// Returns a shared value.
pub(super) async fn get_shared(connection: &Connection, key: &str) -> Answer<Option<Bytes>> {
    // Request the description of the stream first: a server of version 2.9.10 crashes on a request
    // for a message of a stream that is being created.
    let names = &connection.names;
    if connection.stream(&names.shared).await?.is_none_or(|info| info["state"]["messages"] == 0) {
        return Ok(None);
    }
    Ok(connection.newest_of(&names.shared, &names.shared(key)).await?.map(|message| message.payload))
}

/// Opens a reader of the control messages after the mark `after`. If `after` is `None`, the reader
/// begins after the newest message. Also returns the creation time of the stream.
///
/// A mark is the number of a message and the creation time of its stream. If the stream was created
/// again or no longer has this number, the reader begins with the oldest message.
pub(super) async fn listen(connection: &Connection, after: Option<Box<str>>) -> Answer<(String, Reader)> {
    let stream = &connection.names.control;
    Plain::control(&connection.names).create_if_missing(connection).await?;
    let deleted = || BackplaneError::unavailable("the stream of control messages was deleted");
    let info = connection.stream(stream).await?.ok_or_else(deleted)?;
    let created = info["created"].as_str().unwrap_or_default().to_owned();
    let last = info["state"]["last_seq"].as_u64().unwrap_or(0);
    let after = match after.as_deref().map(|mark| mark.split_once(' ')) {
        None => last,
        Some(Some((number, of))) if of == created => number.parse().ok().filter(|number| *number <= last).unwrap_or(0),
        Some(_) => 0,
    };
    Ok((created, Reader::open(connection, stream, after, None).await?))
}
