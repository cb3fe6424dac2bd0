//! Control messages: a small stream of its own, from which an instance that was cut off for a moment reads on.

use async_nats::jetstream::context::PublishErrorKind;
use async_nats::jetstream::message::PublishMessage;
use bytes::Bytes;

use super::super::{Answer, BackplaneError};
use super::connection::Connection;
use super::reader::Reader;
use super::streams;

pub(super) async fn broadcast(connection: &Connection, message: Bytes) -> Answer<()> {
    let publish = || connection.publish(connection.names.control(), PublishMessage::build().payload(message.clone()));
    let mut published = publish().await?;
    if published.as_ref().is_err_and(|error| error.kind() == PublishErrorKind::StreamNotFound) {
        // Nobody has listened yet.
        streams::control(connection).await?;
        published = publish().await?;
    }
    published.map(drop).map_err(|error| BackplaneError::unknown(error.to_string()))
}

/// When the stream was made, and a reader of it, after a mark or from now on. A mark is a number
/// and when the stream of that number was made; if that is gone, every message is new.
pub(super) async fn listen(connection: &Connection, after: Option<Box<str>>) -> Answer<(String, Reader)> {
    let stream = &connection.names.control;
    streams::control(connection).await?;
    let gone = || BackplaneError::unavailable("the stream of control messages is gone");
    let info = connection.stream(stream).await?.ok_or_else(gone)?;
    let life = info["created"].as_str().unwrap_or_default().to_owned();
    let last = info["state"]["last_seq"].as_u64().unwrap_or(0);
    let after = match after.as_deref().map(|mark| mark.split_once(' ')) {
        None => last,
        Some(Some((number, of))) if of == life => number.parse().ok().filter(|number| *number <= last).unwrap_or(0),
        Some(_) => 0,
    };
    Ok((life, Reader::open(connection, stream, after, None).await?))
}
