//! The current values. The server copies each record with values from the log into a second stream.
//!
//! - The subject of a record contains a hash of *all* ids that the record sets or removes. A header
//!   lists the ids. The stream retains the newest record of each subject, so it has the newest
//!   record of each set of ids, and thereby the newest record of each id. Of all records that list
//!   an id, the record with the highest number sets or removes the value.
//! - Above its limit the stream removes the oldest records first. So it never removes the newest
//!   record of an id while it still has an older record of this id.
//! - The server copies a record shortly after the append. The adapter reads records that are not
//!   copied yet from the log.

use std::collections::hash_map::HashMap;

use async_nats::HeaderMap;
use serde_json::json;

use super::super::{Answer, BackplaneError, CurrentValue, ReadLimit, Stored};
use super::connection::Connection;
use super::names::read_values;
use super::reader::{Message, Reader};

/// The header with the origin of a copied message: the name of the log's stream and the number in
/// the log. Newer servers append more fields.
const SOURCE: &str = "Nats-Stream-Source";
const BATCH: usize = 512;
const ALL: ReadLimit = ReadLimit::records(usize::MAX);

/// Returns the number that a copied message has in the log, or `None` if the message was not
/// copied.
fn source(headers: &HeaderMap) -> Option<u64> {
    headers.get(SOURCE)?.as_str().split(' ').nth(1)?.parse().ok()
}

/// Returns the number of the newest copied record, or 0 if the stream of values has no copied
/// record.
pub(super) async fn end(connection: &Connection) -> Answer<u64> {
    let Some(info) = connection.known_stream(&connection.names.values).await? else { return Ok(0) };
    let last = info["state"]["last_seq"].as_u64().unwrap_or(0);
    if info["state"]["messages"] == 0 {
        return Ok(0);
    }
    let newest = connection.message(&connection.names.values, &json!({ "seq": last })).await?;
    Ok(newest.and_then(|message| source(&message.headers)).unwrap_or(0))
}

/// Returns the current values.
pub(super) async fn read(connection: &Connection) -> Answer<Vec<CurrentValue>> {
    let names = &connection.names;
    let newest_copy = newest(connection, &names.values, ">").await?;
    let copy = Reader::open(connection, &names.values, 0, None).await?.rest(ALL, BATCH).await?;
    check_end(&copy, newest_copy)?;
    let mut current = HashMap::new();
    let mut copied = 0;
    for message in copy {
        let sequence = source(&message.headers).ok_or_else(|| {
            BackplaneError::rejected("the stream of values has a message that was not copied from the log")
        })?;
        copied = copied.max(sequence);
        // The server stored the copy later than the record.
        apply(&mut current, &message.headers, &Stored::new(sequence, message.stored.payload));
    }
    let newest_record = newest(connection, &names.log, &names.keyed()).await?;
    let log = Reader::open(connection, &names.log, copied, Some(&names.keyed())).await?;
    let log = log.rest(ALL, BATCH).await?;
    if newest_record > copied {
        check_end(&log, newest_record)?;
    }
    for message in log {
        apply(&mut current, &message.headers, &message.stored);
    }
    Ok(current.into_iter().filter_map(|(id, record)| Some(CurrentValue { id, record: record? })).collect())
}

/// Returns the number of the newest message of a subject, or 0 if the leader of the stream has no
/// such message. Only a cluster is asked: a single server has no replica that could be behind.
async fn newest(connection: &Connection, stream: &str, subject: &str) -> Answer<u64> {
    if !connection.is_clustered() {
        return Ok(0);
    }
    Ok(connection.newest_of(stream, subject).await?.map_or(0, |message| message.sequence))
}

/// Returns an error if these messages end before the number `newest`, because the replica that
/// sent them is behind.
fn check_end(messages: &[Message], newest: u64) -> Answer<()> {
    if messages.last().map_or(0, |message| message.stored.sequence) < newest {
        return Err(BackplaneError::unavailable("a replica of the current values is behind"));
    }
    Ok(())
}

/// Applies a record to the current values. The caller must apply records in the order of the log.
fn apply(current: &mut HashMap<Box<str>, Option<Stored>>, headers: &HeaderMap, record: &Stored) {
    for value in read_values(headers) {
        current.insert(value.id, (!value.removes).then(|| record.clone()));
    }
}
