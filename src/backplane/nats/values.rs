//! The current values: the newest message of each set of ids, which the server copies into a stream of their own.
//!
//! - A record's subject is a hash of *all* ids that it sets or removes, and a header lists them.
//!   The stream keeps the newest of each subject. The newest record about an id has some set, and
//!   of this set it is the newest; so it is there, and among those that name the id the one with
//!   the highest number wins, be it a removal.
//! - The oldest go first where there are too many, so what overrules another outlives it.
//! - The copy runs a moment behind. What it does not have yet is read from the log itself.

use std::collections::hash_map::HashMap;

use async_nats::HeaderMap;
use serde_json::json;

use super::super::{Answer, BackplaneError, CurrentValue, Stored};
use super::connection::Connection;
use super::names::read_values;
use super::reader::Reader;

/// Where in the log the server copied a message from: `stream sequence`, newer ones with more after it.
const SOURCE: &str = "Nats-Stream-Source";
const BATCH: usize = 512;

fn source(headers: &HeaderMap) -> Option<u64> {
    headers.get(SOURCE)?.as_str().split(' ').nth(1)?.parse().ok()
}

/// How far in the log the copy has come; zero if there is none.
pub(super) async fn end(connection: &Connection) -> Answer<u64> {
    let Some(info) = connection.stream(&connection.names.values).await? else { return Ok(0) };
    let last = info["state"]["last_seq"].as_u64().unwrap_or(0);
    if info["state"]["messages"] == 0 {
        return Ok(0);
    }
    let newest = connection.message(&connection.names.values, &json!({ "seq": last })).await?;
    Ok(newest.and_then(|message| source(&message.headers)).unwrap_or(0))
}

pub(super) async fn read(connection: &Connection) -> Answer<Vec<CurrentValue>> {
    let names = &connection.names;
    let copy = Reader::open(connection, &names.values, 0, None).await?;
    let mut current = HashMap::new();
    let mut copied = 0;
    for message in copy.rest(usize::MAX, BATCH).await? {
        let sequence = source(&message.headers)
            .ok_or_else(|| BackplaneError::rejected("a value without its number: it was not copied from the log"))?;
        copied = copied.max(sequence);
        take(&mut current, &message.headers, &Stored { sequence, ..message.stored });
    }
    let log = Reader::open(connection, &names.log, copied, Some(&names.keyed())).await?;
    for message in log.rest(usize::MAX, BATCH).await? {
        take(&mut current, &message.headers, &message.stored);
    }
    Ok(current.into_iter().filter_map(|(id, record)| Some(CurrentValue { id, record: record? })).collect())
}

/// In the order of the log.
fn take(current: &mut HashMap<Box<str>, Option<Stored>>, headers: &HeaderMap, record: &Stored) {
    for value in read_values(headers) {
        current.insert(value.id, (!value.removes).then(|| record.clone()));
    }
}
