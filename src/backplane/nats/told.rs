//! What instances tell each other: a small stream of its own, from which whoever was cut off for a moment reads on.

use async_nats::jetstream::context::PublishErrorKind;
use bytes::Bytes;
use serde_json::json;

use super::super::BackplaneError;
use super::connection::Connection;
use super::names::Names;
use super::reader::Reader;
use super::streams;

pub(super) async fn tell(connection: &Connection, names: &Names, message: Bytes) -> Result<(), BackplaneError> {
    let publish = async || {
        let publish = async { connection.jetstream.publish(names.told(), message.clone()).await?.await };
        connection.within(connection.timeout, publish).await
    };
    let mut told = publish().await?;
    if told.as_ref().is_err_and(|error| error.kind() == PublishErrorKind::StreamNotFound) {
        // Nobody has listened yet.
        streams::told(connection, names).await?;
        told = publish().await?;
    }
    told.map(drop).map_err(|error| BackplaneError::unknown(error.to_string()))
}

/// When the stream was made, and a reader of it, after a mark or from now on. A mark is a number
/// and when the stream of that number was made; if that is gone, all that is told is news.
pub(super) async fn hear(
    connection: &Connection,
    names: &Names,
    after: Option<Box<str>>,
) -> Result<(String, Reader), BackplaneError> {
    streams::told(connection, names).await?;
    let gone = || BackplaneError::unavailable("the stream of what is told is gone");
    let info = connection.ask("STREAM.INFO", &names.told, &json!({})).await?.ok_or_else(gone)?;
    let life = info["created"].as_str().unwrap_or_default().to_owned();
    let last = info["state"]["last_seq"].as_u64().unwrap_or(0);
    let after = match after.as_deref().map(|mark| mark.split_once(' ')) {
        None => last,
        Some(Some((number, of))) if of == life => number.parse().ok().filter(|number| *number <= last).unwrap_or(0),
        Some(_) => 0,
    };
    let reader = Reader::open(connection, &names.told, after, None).await?.ok_or_else(gone)?;
    Ok((life, reader))
}
