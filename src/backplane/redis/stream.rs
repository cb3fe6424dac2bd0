//! Blocking reads of the log's tail and of the control streams. Every wait for the server has a
//! time limit.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use futures::stream::BoxStream;
use redis::streams::{StreamId, StreamRangeReply, StreamReadReply};
use redis::{Cmd, FromRedisValue};

use super::super::{Answer, Stored, in_time};
use super::errors::classify;
use super::redirect::Connection;
use super::routed_connection::RoutedConnection;
use super::server::Shared;
use super::topology::probe;

/// The time for which a blocking read waits for new entries, and the minimum time between two
/// checks that the server is still the primary.
const BLOCK: Duration = Duration::from_secs(2);
/// The maximum number of entries of one read.
const BATCH: usize = 512;

/// The entry after which reading a stream begins.
pub(super) enum From {
    /// The newest entry at the time of connecting.
    Now,
    /// The record with this number.
    After(u64),
    /// The entry with this id. If the newest entry has a lower id, for example because the server
    /// has lost entries, reading begins with the oldest entry.
    Mark(Box<str>),
}

/// New entries of Redis streams.
pub(super) struct Batch {
    /// The ids after which the entries begin, one for each stream.
    pub(super) after: Vec<String>,
    /// The entries. Each has the index of its stream.
    pub(super) entries: Vec<(usize, StreamId)>,
}

/// Streams the entries of one or several Redis streams, in batches that are never empty. In a
/// batch, the entries of an earlier stream come first.
///
/// Opens its own connection, without the client's time limit for answers, because a read blocks on
/// purpose. Instead, this function limits each wait.
pub(super) fn read(shared: Arc<Shared>, streams: Vec<(String, From)>) -> BoxStream<'static, Answer<Batch>> {
    Box::pin(async_stream::try_stream! {
        let connection = shared.open_routed().await?;
        let timeout = shared.limits.timeout;
        let (mut keys, mut ids) = (Vec::new(), Vec::new());
        for (key, from) in streams {
            ids.push(match from {
                From::After(number) => format!("{number}-0"),
                From::Now | From::Mark(_) => {
                    let newest = Cmd::xrevrange_count(&key, "+", "-", 1);
                    let reply: StreamRangeReply = ask(&shared, &connection, &newest, timeout).await?;
                    let newest = reply.ids.first().map_or_else(|| "0-0".to_owned(), |entry| entry.id.clone());
                    match from {
                        From::Mark(mark) if id_of(&mark) <= id_of(&newest) => mark.into(),
                        From::Mark(_) => "0-0".to_owned(),
                        _ => newest,
                    }
                }
            });
            keys.push(key);
        }
        let mut checked: Option<Instant> = None;
        loop {
            // A demoted primary still answers reads, but new records go to its successor. A server
            // that is not the primary rejects every write, even a write that changes nothing. So
            // this write detects a demoted primary.
            if checked.is_none_or(|at| at.elapsed() >= BLOCK) {
                let _: u64 = ask(&shared, &connection, &probe(&shared.keys.meta), timeout).await?;
                checked = Some(Instant::now());
            }
            let mut command = redis::cmd("XREAD");
            command.arg("COUNT").arg(BATCH).arg("BLOCK").arg(BLOCK.as_millis() as u64);
            command.arg("STREAMS").arg(&keys).arg(&ids);
            // The server also answers a read that found no entries. Without an answer, the
            // connection is broken.
            let reply: Option<StreamReadReply> = ask(&shared, &connection, &command, BLOCK + timeout).await?;
            let (after, mut entries) = (ids.clone(), Vec::new());
            for stream in reply.into_iter().flat_map(|reply| reply.keys) {
                let Some(at) = keys.iter().position(|key| *key == stream.key) else { continue };
                if let Some(newest) = stream.ids.last() {
                    ids[at].clone_from(&newest.id);
                }
                entries.extend(stream.ids.into_iter().map(|entry| (at, entry)));
            }
            if !entries.is_empty() {
                yield Batch { after, entries };
            }
        }
    })
}

/// Sends a command and waits for the answer, at most for `limit`.
async fn ask<T: FromRedisValue>(
    shared: &Shared,
    connection: &RoutedConnection,
    command: &Cmd,
    limit: Duration,
) -> Answer<T> {
    let send = |mut connection: Connection| async move { command.query_async(&mut connection).await };
    let answer = connection.run(&shared.topology, &send);
    in_time(limit, async { answer.await?.map_err(|error| classify(&error)) }).await
}

/// Returns the record of a log entry. An entry without the field `d` was not appended by the
/// script. It becomes an empty record, which the hub skips as unreadable.
pub(super) fn stored(entry: &StreamId) -> Option<Stored> {
    let sequence = entry.id.split('-').next()?.parse().ok()?;
    let millis = entry.get("t").map(Duration::from_millis);
    let at = millis.and_then(|millis| SystemTime::UNIX_EPOCH.checked_add(millis));
    Some(Stored::new(sequence, Bytes::from(entry.get::<Vec<u8>>("d").unwrap_or_default())).at(at))
}

/// Splits the id of a stream entry into its two numbers.
pub(super) fn id_of(text: &str) -> (u64, u64) {
    let (time, count) = text.split_once('-').unwrap_or((text, "0"));
    (time.parse().unwrap_or(0), count.parse().unwrap_or(0))
}
