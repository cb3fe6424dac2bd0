//! The tail of the log, and the control stream, as they come. Every wait for the server has a limit.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::stream::BoxStream;
use redis::aio::MultiplexedConnection;
use redis::streams::{StreamId, StreamRangeReply, StreamReadReply};
use redis::{Cmd, FromRedisValue};

use super::super::{Answer, Stored, in_time};
use super::server::{Shared, classify};

/// How long a read waits for something new before it looks whether anybody still wants it.
const BLOCK: Duration = Duration::from_secs(2);
const BATCH: usize = 512;

/// Where reading a stream begins.
pub(super) enum From {
    Now,
    /// After a number.
    After(u64),
    /// After the entry with this id. If the newest is older, by a clock that was set back, all there is.
    Mark(Box<str>),
}

/// Entries of a stream as they come. On a connection of its own, without a limit of the client for an
/// answer: a read waits on purpose, so each wait has a limit here.
pub(super) fn read(shared: Arc<Shared>, key: String, from: From) -> BoxStream<'static, Answer<Vec<StreamId>>> {
    Box::pin(async_stream::try_stream! {
        let mut connection = shared.connect(None).await?;
        let timeout = shared.limits.timeout;
        let mut id = match from {
            From::After(number) => format!("{number}-0"),
            From::Now | From::Mark(_) => {
                let newest = Cmd::xrevrange_count(&key, "+", "-", 1);
                let reply: StreamRangeReply = ask(&mut connection, &newest, timeout).await?;
                let newest = reply.ids.first().map_or_else(|| "0-0".to_owned(), |entry| entry.id.clone());
                match from {
                    From::Mark(mark) if id_of(&mark) <= id_of(&newest) => mark.into(),
                    From::Mark(_) => "0-0".to_owned(),
                    _ => newest,
                }
            }
        };
        let mut checked: Option<Instant> = None;
        loop {
            // A primary that was demoted goes on answering reads, and new records may come
            // elsewhere. A server that is not the primary refuses every write, also one that
            // changes nothing.
            if checked.is_none_or(|at| at.elapsed() >= BLOCK) {
                let _: u64 = ask(&mut connection, &Cmd::hdel(&shared.keys.meta, "-"), timeout).await?;
                checked = Some(Instant::now());
            }
            let mut command = redis::cmd("XREAD");
            command.arg("COUNT").arg(BATCH).arg("BLOCK").arg(BLOCK.as_millis() as u64);
            command.arg("STREAMS").arg(&key).arg(&id);
            // A connection on which nothing comes back at all is broken.
            let reply: Option<StreamReadReply> = ask(&mut connection, &command, BLOCK + timeout).await?;
            let entries = reply.and_then(|reply| reply.keys.into_iter().next()).map_or_else(Vec::new, |key| key.ids);
            if let Some(newest) = entries.last() {
                id.clone_from(&newest.id);
                yield entries;
            }
        }
    })
}

/// Waits for an answer up to a limit.
async fn ask<T: FromRedisValue>(connection: &mut MultiplexedConnection, command: &Cmd, limit: Duration) -> Answer<T> {
    in_time(limit, async { command.query_async(connection).await.map_err(|error| classify(&error)) }).await
}

/// What somebody else has put there without a record is one that nobody can read.
pub(super) fn stored(entry: &StreamId) -> Option<Stored> {
    let sequence = entry.id.split('-').next()?.parse().ok()?;
    Some(Stored { sequence, payload: Bytes::from(entry.get::<Vec<u8>>("d").unwrap_or_default()) })
}

/// What an id of a stream says: two numbers.
pub(super) fn id_of(text: &str) -> (u64, u64) {
    let (time, count) = text.split_once('-').unwrap_or((text, "0"));
    (time.parse().unwrap_or(0), count.parse().unwrap_or(0))
}
