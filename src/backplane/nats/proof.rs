//! Proof that a log has lost records, and that a message does not exist. In a cluster, the answer
//! to a read proves neither: the server that answers may lack messages that were acknowledged.
//!
//! - **Loss of records.** The number of a record that is appended *now* is above every number that
//!   was ever acknowledged, unless the log has lost records. So the adapter appends a record
//!   without an audience, and compares its number. The append has no condition, because a busy log
//!   would rarely meet one.
//! - **The verdict** is remembered ([`Evidence`]), because this record makes the log longer. A
//!   later comparison of numbers would not find the loss again.
//! - **A log that has grown again.** Other instances may append records between the loss and this
//!   record, so that its number is high enough. So the adapter also compares the newest record that
//!   it has appended itself with the record that the log has at this number.
//! - **A message that does not exist.** The adapter writes a message to another subject of the
//!   stream and then reads once more. A majority of the replicas has stored this message, so the
//!   connection leads to the current leader of the stream.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use async_nats::jetstream::context::PublishErrorKind;
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::publish::PublishAck;
use bytes::Bytes;
use serde_json::json;
use tokio::sync::Mutex;

use super::super::{Answer, BackplaneError, LogPosition};
use super::connection::Connection;
use crate::sync;

/// The number of compared bytes of a record. The random id of a record is among them.
const COMPARED: usize = 64;

/// Appends a record without an audience to the log in this epoch, and returns its number. Returns
/// `None` if the log does not accept records of this epoch.
pub(super) async fn append(connection: &Connection, epoch: u64) -> Answer<Option<u64>> {
    let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    // `docs/broker.md` documents the format of records. No field of this record needs an escape.
    let record = format!(r#"{{"v":1,"id":"{:016x}","at":{at},"to":{{}}}}"#, fastrand::u64(..));
    let message = PublishMessage::build().payload(record.into());
    let published = connection.publish(connection.names.plain(epoch), message).await;
    match published.map_err(BackplaneError::before_request)? {
        Ok(PublishAck { sequence: 0, .. }) => Err(BackplaneError::unavailable("the server returned no number")),
        Ok(PublishAck { sequence, .. }) => Ok(Some(sequence)),
        Err(error) if error.kind() == PublishErrorKind::StreamNotFound => Ok(None),
        Err(error) => Err(Connection::publish_error(&error).before_request()),
    }
}

/// What an adapter knows about losses of its log, over all its connections.
#[derive(Default)]
pub(super) struct Evidence {
    /// The epoch in which the log has lost records, or 0. Another epoch must begin.
    ended: AtomicU64,
    /// The newest record that the adapter has appended.
    own: sync::Mutex<Option<Own>>,
}

#[derive(Clone)]
struct Own {
    position: LogPosition,
    /// The first bytes of the record.
    start: Bytes,
}

impl Evidence {
    /// Notes that the log has lost records of this epoch.
    pub(super) fn end(&self, epoch: u64) {
        self.ended.store(epoch, Ordering::Release);
    }

    /// Returns whether the log has lost records of this epoch.
    pub(super) fn has_ended(&self, epoch: u64) -> bool {
        self.ended.load(Ordering::Acquire) == epoch
    }

    /// Notes a record that the adapter has appended.
    pub(super) fn appended(&self, position: LogPosition, payload: &[u8]) {
        let mut own = self.own.lock();
        let is_newer = |own: &Own| own.position.epoch != position.epoch || own.position.sequence < position.sequence;
        if own.as_ref().is_none_or(is_newer) {
            let start = Bytes::copy_from_slice(&payload[..payload.len().min(COMPARED)]);
            *own = Some(Own { position, start });
        }
    }

    /// Returns whether the log has another record at the number of the newest record that the
    /// adapter has appended in this epoch.
    pub(super) async fn is_replaced(&self, connection: &Connection, epoch: u64) -> Answer<bool> {
        let own = self.own.lock().clone();
        let Some(Own { position, start }) = own.filter(|own| own.position.epoch == epoch) else { return Ok(false) };
        let found = connection.message(&connection.names.log, &json!({ "seq": position.sequence })).await?;
        Ok(found.is_some_and(|found| !found.payload.starts_with(&start)))
    }
}

/// The writes of a session that make the next read of a stream current.
#[derive(Default)]
pub(super) struct Barrier {
    /// The number of the newest write that has succeeded.
    done: Mutex<u64>,
    /// The number of writes that have begun.
    begun: AtomicU64,
}

impl Barrier {
    /// Writes a message to `subject`, which must belong to the stream of the next read. Callers
    /// that wait at the same time share one write, so that many requests for messages that do not
    /// exist cost few writes.
    pub(super) async fn pass(&self, connection: &Connection, subject: String, message: PublishMessage) -> Answer<()> {
        // A write that has begun before this call does not count.
        let wanted = self.begun.load(Ordering::Acquire) + 1;
        let mut done = self.done.lock().await;
        if *done >= wanted {
            return Ok(());
        }
        let number = self.begun.fetch_add(1, Ordering::AcqRel) + 1;
        let published = connection.publish(subject, message).await;
        match published.map_err(BackplaneError::before_request)? {
            Ok(_) => {
                *done = number;
                Ok(())
            }
            Err(error) => Err(BackplaneError::unavailable(error.to_string())),
        }
    }
}
