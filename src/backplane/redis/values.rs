//! Reads the current values, in pages.
//!
//! A cursor of `HSCAN` is valid only at the server that returned it, because each server orders a
//! hash by its own random key. Another server would skip values without an error. So one scan
//! uses one connection, and the cursor never leaves [`scan`]. After a redirection or an error, the
//! caller begins a new scan.

use std::collections::hash_map::HashMap;

use bytes::Bytes;
use redis::{Cmd, RedisError};

use super::super::Stored;
use super::redirect::Connection;

/// The minimum number of fields in a page.
pub(super) const MIN_PAGE: usize = 8;

/// A field that no value has, because ids of values are UTF-8.
const NO_ID: &[u8] = b"\xff";

/// Reads all fields of the hash `key`, with about `page` of them in each answer, and at least about
/// [`MIN_PAGE`].
pub(super) async fn scan(
    mut connection: Connection,
    key: &str,
    page: usize,
) -> Result<HashMap<String, Stored>, RedisError> {
    // A scan may return an id more than once.
    let mut current: HashMap<String, Stored> = HashMap::new();
    let mut cursor = 0_u64;
    loop {
        let scan = redis::cmd("HSCAN").arg(key).arg(cursor).arg("COUNT").arg(page.max(MIN_PAGE)).take();
        let (next, fields): (u64, Vec<(String, Vec<u8>)>) = scan.query_async(&mut connection).await?;
        for (id, value) in fields {
            if let Some(record) = record(value)
                && current.get(&id).is_none_or(|known| known.sequence < record.sequence)
            {
                current.insert(id, record);
            }
        }
        if next == 0 {
            break;
        }
        cursor = next;
    }
    // This write changes nothing. A server that was demoted during the scan rejects it, so that
    // the caller receives no values of an old or half replaced hash. The write is to the scanned
    // key, because another server of a cluster may already have other keys of the log.
    Cmd::hdel(key, NO_ID).query_async::<u64>(&mut connection).await?;
    Ok(current)
}

/// Returns the record of a value: its number, a colon and its bytes.
fn record(value: Vec<u8>) -> Option<Stored> {
    let colon = value.iter().position(|&byte| byte == b':')?;
    let sequence = std::str::from_utf8(&value[..colon]).ok()?.parse().ok()?;
    Some(Stored::new(sequence, Bytes::from(value).slice(colon + 1..)))
}
