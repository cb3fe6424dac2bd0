//! What instances tell each other: a small stream of its own, from which whoever was cut off for a moment reads on.

use async_nats::jetstream::context::PublishErrorKind;
use async_nats::jetstream::message::PublishMessage;
use bytes::Bytes;

use super::super::{Answer, BackplaneError};
use super::connection::Connection;
use super::reader::Reader;
use super::streams;

pub(super) async fn tell(connection: &Connection, message: Bytes) -> Answer<()> {
    let publish = || connection.publish(connection.names.told(), PublishMessage::build().payload(message.clone()));
    let mut told = publish().await?;
    if told.as_ref().is_err_and(|error| error.kind() == PublishErrorKind::StreamNotFound) {
        // Nobody has listened yet.
        streams::told(connection).await?;
        told = publish().await?;
    }
    told.map(drop).map_err(|error| BackplaneError::unknown(error.to_string()))
}

/// When the stream was made, and a reader of it, after a mark or from now on. A mark is a number
/// and when the stream of that number was made; if that is gone, all that is told is news.
pub(super) async fn hear(connection: &Connection, after: Option<Box<str>>) -> Answer<(String, Reader)> {
    let stream = &connection.names.told;
    streams::told(connection).await?;
    let gone = || BackplaneError::unavailable("the stream of what is told is gone");
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
