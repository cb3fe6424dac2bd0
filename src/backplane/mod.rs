//! The interface to a log that several instances share, and the adapters that implement it.
//!
//! A broker stores the log. Every hub appends records to the log and reads records from the log. An
//! adapter implements [`Backplane`] for one kind of broker: `Redis`, `Nats` and `Postgres`
//! (features `redis`, `nats` and `postgres`) for production. [`Memory`] needs no broker. It is for
//! tests and for several hubs in one process. An adapter stores records as bytes. It has no access
//! to the hub's connections.
//!
//! Other crates can implement [`Backplane`] for further brokers. `docs/adapters.md` describes how,
//! with a complete example. `test_kit::check_backplane` (feature `test-kit`) checks an adapter.
//!
//! # Guarantees of an adapter
//!
//! - **Order.** The log numbers its records 1, 2, 3 and so on, without holes. All writers and
//!   readers see the same order. The records of one [`append`](Backplane::append) keep their order.
//! - **Durability.** A record whose append returned `Ok` is in the log until a limit of the log
//!   removes it. This guarantee is only as strong as the broker's persistence.
//! - **Detection of loss.** A log has an *epoch*, a random number. Every call of
//!   [`append`](Backplane::append) and [`state`](Backplane::state) passes the highest position that
//!   the caller has seen, if any. If the log is in the same epoch and ends below this position, the
//!   log has lost records, for example because the broker was restored from a backup. Then the log
//!   begins a new epoch before it appends the records. So a position, which is an epoch and a
//!   number, identifies one record.
//!
//!   `Nats` has one exception: if the log loses records while the adapter's connection stays open,
//!   the next append may add its records before it begins the new epoch. Until the new epoch
//!   begins, a reader can mistake these records for records of the old epoch. The returned
//!   positions are in the new epoch.
//!
//!   In a cluster of NATS servers, no read proves a loss. So `Nats` first appends a record without
//!   an audience if the log seems to end below the position, and only the number of this record
//!   decides. So the log may have some more records than the hubs have appended.
//!
//!   If a log has lost records and has since grown past the seen position, its end does not reveal
//!   the loss. So the hub compares records that it has read with the records that the log has now.
//!   An adapter may also compare the newest record that it appended. `Redis` compares this record
//!   in every `append` and `state` that passes a position. `Nats` compares it only in a cluster,
//!   and only if the log seems to end below the position.
//! - **Trimming at the old end only.** Records that are no longer retained are below
//!   [`LogState::first`]. A response of [`range`](Backplane::range) may be out of date, so a record
//!   that is missing in the response is not necessarily lost.
//! - **Current values** are stored apart from the records, so that the records of a busy topic
//!   cannot displace them.
//! - **Journals**, which store runs, are stored apart from the records too: [`Journals`].
//! - **Errors** state whether the request may have had an effect: [`BackplaneError::is_unknown`].
//! - **Time limits.** Every call returns within the adapter's own time limits. A
//!   [`tail`](Backplane::tail) ends with an error when its connection breaks.
//! - **Independence.** A stream that is not polled does not delay other calls.
//! - **Concurrency.** All methods may be called from any thread at the same time. A request may
//!   continue at the broker after its future was dropped.

mod control;
mod error;
mod journal;
#[cfg(any(feature = "nats", feature = "postgres", feature = "redis"))]
mod limits;
mod memory;
mod memory_control;
#[cfg(feature = "test-kit")]
mod memory_history;
mod memory_journals;
#[cfg(feature = "nats")]
mod nats;
#[cfg(any(feature = "nats", feature = "postgres", feature = "redis"))]
mod per_runtime;
mod port;
#[cfg(feature = "postgres")]
mod postgres;
mod range;
mod records;
#[cfg(feature = "redis")]
mod redis;
#[cfg(any(feature = "nats", feature = "postgres", feature = "redis"))]
mod secret_key;

use std::time::Duration;

use futures::StreamExt;
use futures::future::{Either, select};
use futures::stream::BoxStream;
use tokio::time::{Instant, sleep_until};

pub use control::{ControlMessage, ControlStream, MAX_SHARED_BYTES};
pub use error::BackplaneError;
pub use journal::{Begun, JournalAppend, JournalId, JournalPage, Journals};
#[cfg(any(feature = "nats", feature = "postgres", feature = "redis"))]
pub use limits::LogLimits;
pub use memory::Memory;
#[cfg(feature = "nats")]
pub use nats::Nats;
pub use port::Backplane;
#[cfg(feature = "postgres")]
pub use postgres::{Migration, Postgres, PublishArguments};
pub use range::{Range, ReadLimit};
pub use records::{CurrentValue, LogPosition, LogState, NewRecord, Seen, Stored, Value};
#[cfg(feature = "redis")]
pub use redis::Redis;

/// The result of a request to a broker.
pub(crate) type Answer<T> = Result<T, BackplaneError>;

/// Waits for the answer of a broker. Returns an [unknown](BackplaneError::is_unknown) error after
/// `limit`.
pub(crate) async fn in_time<T>(limit: Duration, answer: impl Future<Output = Answer<T>>) -> Answer<T> {
    let answer = tokio::time::timeout(limit, answer).await;
    answer.unwrap_or_else(|_| Err(BackplaneError::unknown("no answer in time")))
}

/// Returns the next item of a stream, or `None` when `time` is reached first.
///
/// The function checks the time first. Otherwise a stream that always has an item would keep the
/// caller from its periodic work.
pub(crate) async fn next_until<T>(time: Instant, stream: &mut BoxStream<'static, Answer<T>>) -> Answer<Option<T>> {
    match select(std::pin::pin!(sleep_until(time)), stream.next()).await {
        Either::Left(_) => Ok(None),
        Either::Right((Some(item), _)) => item.map(Some),
        Either::Right((None, _)) => Err(BackplaneError::unknown("the connection ended")),
    }
}
