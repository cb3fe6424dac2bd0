//! The current values: a stream into which the server copies the newest record of each set of ids.
//!
//! - The subject of a record is a hash of *all* ids that it sets or removes. A header lists the
//!   ids. The stream retains the newest record of each subject. So it has the newest record of each
//!   id: this record is the newest of its own set. Of all records that name an id, the one with the
//!   highest number counts, also if it removes the value.
//! - Above its limit the stream removes the oldest records first. So a record is never removed
//!   before an older record that it replaces.
//! - The copies are a moment behind. Records that are not copied yet are read from the log.

use std::collections::hash_map::HashMap;

use async_nats::HeaderMap;
use serde_json::json;

use super::super::{Answer, BackplaneError, CurrentValue, Stored};
use super::connection::Connection;
use super::names::read_values;
use super::reader::Reader;

/// The header with the origin of a copied message: the stream and the number. Newer servers append
/// more fields.
const SOURCE: &str = "Nats-Stream-Source";
const BATCH: usize = 512;

/// Returns the number that a copied message has in the log.
fn source(headers: &HeaderMap) -> Option<u64> {
    headers.get(SOURCE)?.as_str().split(' ').nth(1)?.parse().ok()
}

/// Returns the number of the newest record that was copied, or 0 if there is none.
pub(super) async fn end(connection: &Connection) -> Answer<u64> {
    let Some(info) = connection.stream(&connection.names.values).await? else { return Ok(0) };
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
    let copy = Reader::open(connection, &names.values, 0, None).await?;
    let mut current = HashMap::new();
    let mut copied = 0;
    for message in copy.rest(usize::MAX, BATCH).await? {
        let sequence = source(&message.headers).ok_or_else(|| {
            BackplaneError::rejected("the stream of values has a message that was not copied from the log")
        })?;
        copied = copied.max(sequence);
        apply(&mut current, &message.headers, &Stored { sequence, ..message.stored });
    }
    let log = Reader::open(connection, &names.log, copied, Some(&names.keyed())).await?;
    for message in log.rest(usize::MAX, BATCH).await? {
        apply(&mut current, &message.headers, &message.stored);
    }
    Ok(current.into_iter().filter_map(|(id, record)| Some(CurrentValue { id, record: record? })).collect())
}

/// Applies a record to the current values. Must be called in the order of the log.
fn apply(current: &mut HashMap<Box<str>, Option<Stored>>, headers: &HeaderMap, record: &Stored) {
    for value in read_values(headers) {
        current.insert(value.id, (!value.removes).then(|| record.clone()));
    }
}
