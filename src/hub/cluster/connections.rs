//! The connections of this instance for the other instances: presence updates with the changes, and
//! the list of all connections for instances that have missed an update.
//!
//! The list is stored at the broker as values, and announced. An instance that needs it reads it
//! there. So a list costs the broker one write, and the other instances receive one short message.
//!
//! Of each list that it reads, an instance has at most one part in memory. It applies a part in
//! steps of [`STEP`] connections, because streams and calls wait for the lock of the table. The
//! updates that have waited for the list are applied at once.

use bytes::Bytes;
use futures::future::{BoxFuture, FutureExt, try_join_all};
use tokio::task::yield_now;

use super::shared_log::SharedLog;
use crate::backplane::{Answer, BackplaneError, ControlStream, MAX_SHARED_BYTES, in_time};
use crate::hub::Hub;
use crate::hub::peers::message::{
    Body, InstanceId, List, ListPart, Message, PeerConnection, PresenceUpdate, cut_topics,
};
use crate::hub::peers::outbox::LIST_AGE;
use crate::hub::peers::table::Reading;
use crate::types::ConnectionId;

/// The maximum number of connections in one presence update.
const BATCH: usize = 256;
/// The approximate size in bytes at which a message is full. The last connection of a message may
/// exceed it. Brokers accept at least 1 MiB by default.
const BATCH_SIZE: usize = 64 * 1024;
/// The approximate maximum size in bytes of a part of a list. A larger connection is a
/// separate part.
const PART_SIZE: usize = 192 * 1024;
const _: () = assert!(PART_SIZE < MAX_SHARED_BYTES);
/// The time for which the broker stores a list.
const STORED_FOR: std::time::Duration = std::time::Duration::from_millis(2 * LIST_AGE);

/// The maximum number of connections that are applied under one lock.
const STEP: usize = 256;

/// A part of a list of another instance, or the error of the broker.
pub(super) struct ReadPart {
    reading: Reading,
    /// The index of the part.
    part: u64,
    open: Answer<Vec<PeerConnection>>,
}

impl Hub {
    /// Broadcasts the connections that have changed. If connections change all the time, the next
    /// turn broadcasts the later changes, so that the task also receives messages.
    pub(super) async fn broadcast_changes(&self, shared: &SharedLog) -> Answer<()> {
        let batches = shared.outbox.lock().changes() / BATCH + 1;
        for _ in 0..batches {
            let sending = shared.outbox.lock().sending();
            let Some((number, update)) = sending.or_else(|| self.next_update(shared)) else { break };
            match self.broadcast_bytes(shared, ControlStream::Presence, update).await {
                // For example because it is too large for the broker. The other instances find that
                // the number is missing, and ask for the list.
                Err(error) if error.is_rejected() => {
                    tracing::warn!(name: "sse.peer.update_rejected", %error, "the broker has rejected a report about connections");
                }
                sent => sent?,
            }
            shared.outbox.lock().sent(number);
        }
        Ok(())
    }

    /// Takes changed connections for the next presence update. Returns the update with its number,
    /// or `None` if no connection has changed.
    fn next_update(&self, shared: &SharedLog) -> Option<(u64, Bytes)> {
        let mut ids = shared.outbox.lock().take_changed(BATCH).into_iter();
        let (mut open, mut closed, mut size) = (Vec::new(), Vec::new(), 0);
        while size < BATCH_SIZE
            && let Some(id) = ids.next()
        {
            match self.report(id) {
                Some(connection) => {
                    size += connection.size();
                    open.push(connection);
                }
                None => closed.push(id.into()),
            }
        }
        let mut outbox = shared.outbox.lock();
        outbox.put_back(ids);
        if open.is_empty() && closed.is_empty() {
            return None;
        }
        let update = PresenceUpdate { number: outbox.number() + 1, open, closed };
        outbox.send(Message::encode(shared.instance_id, &Body::PresenceUpdate(update)).into());
        outbox.sending()
    }

    /// Returns the report about an open connection of this instance, or `None` if it has closed.
    fn report(&self, id: ConnectionId) -> Option<PeerConnection> {
        let handle = self.registry().find(id)?;
        let mut topics = self.log().topics(&handle.subscriber);
        if cut_topics(&mut topics) {
            self.counters().topics_truncated(self.now());
        }
        let (scope, user, data) = (handle.scope().clone(), handle.user().cloned(), handle.data().cloned());
        Some(PeerConnection { id: id.into(), scope, user, data, topics })
    }

    /// Stores and announces the list of this instance's connections, if another instance has asked
    /// for it.
    pub(super) async fn store_list(&self, shared: &SharedLog) -> Answer<()> {
        let due = shared.outbox.lock().take_list_due(self.now());
        if let Some((serial, number)) = due {
            let parts = self.list_parts(shared, serial);
            let list = List { number, serial, parts: parts.len() as u64 };
            let limit = self.settings().publish_timeout;
            let store = |(part, bytes)| {
                let key = list.key(shared.instance_id, part);
                async move { in_time(limit, shared.backplane.put_shared(&key, bytes, STORED_FOR)).await }
            };
            let stored = try_join_all((0..).zip(parts).map(store)).await;
            let mut outbox = shared.outbox.lock();
            match stored {
                Ok(_) => outbox.stored(list, self.now()),
                // The messages do not depend on the list, so the task does not reconnect.
                Err(error) => {
                    outbox.not_stored(self.now());
                    self.counters().list_not_stored(&error, self.now());
                }
            }
        }
        let listed = shared.outbox.lock().take_listed();
        match listed {
            Some(list) => self.broadcast(shared, Body::Listed(list)).await,
            None => Ok(()),
        }
    }

    /// Returns the parts of the list of all connections. The list may be newer than the last
    /// presence update. The next update then repeats changes that the list includes.
    fn list_parts(&self, shared: &SharedLog, serial: u64) -> Vec<Bytes> {
        let (mut parts, mut open, mut size) = (Vec::new(), Vec::new(), 0);
        let mut finish = |open: Vec<PeerConnection>| {
            let part = ListPart { serial, part: parts.len() as u64, open };
            parts.push(Message::encode(shared.instance_id, &Body::Part(part)).into());
        };
        for handle in self.registry().all() {
            let Some(connection) = self.report(handle.id()) else { continue };
            if size + connection.size() > PART_SIZE && !open.is_empty() {
                finish(std::mem::take(&mut open));
                size = 0;
            }
            size += connection.size();
            open.push(connection);
        }
        if !open.is_empty() {
            finish(open);
        }
        parts
    }

    /// Returns the work to read the first part of a list of another instance from the broker.
    pub(super) fn read_list(&self, shared: &SharedLog, reading: Reading) -> BoxFuture<'static, ReadPart> {
        self.read_part(shared, reading, 0)
    }

    /// Returns the work to read a part of a list. A list without connections has no parts, and its
    /// first part then has no connections.
    fn read_part(&self, shared: &SharedLog, reading: Reading, part: u64) -> BoxFuture<'static, ReadPart> {
        let (backplane, limit) = (shared.backplane.clone(), self.settings().publish_timeout);
        async move {
            let Reading { of, list, .. } = reading;
            if list.parts == 0 {
                return ReadPart { reading, part, open: Ok(Vec::new()) };
            }
            let read = in_time(limit, backplane.get_shared(&list.key(of, part))).await;
            let open = read.and_then(|bytes| decode_part(bytes.as_ref(), of, list.serial, part));
            ReadPart { reading, part, open }
        }
        .boxed()
    }

    /// Applies a part of a list of another instance. Returns the work to read the next part, if
    /// there is one.
    pub(super) async fn apply_part(
        &self,
        shared: &SharedLog,
        ReadPart { reading, part, open }: ReadPart,
    ) -> Option<BoxFuture<'static, ReadPart>> {
        let is_read = match open {
            Ok(open) => {
                let mut is_needed = true;
                for step in open.chunks(STEP) {
                    is_needed &= shared.peers.lock().apply_part(&reading, step, self.now());
                    yield_now().await;
                }
                if is_needed && part + 1 < reading.list.parts {
                    return Some(self.read_part(shared, reading, part + 1));
                }
                // After the last part. A list that is no longer needed may have further parts.
                while is_needed && shared.peers.lock().remove_unconfirmed(&reading, STEP, self.now()) {
                    yield_now().await;
                }
                is_needed
            }
            Err(error) => {
                tracing::debug!(name: "sse.peer.list_failed", %error, "the connections of another instance cannot be read yet");
                false
            }
        };
        shared.peers.lock().end_list(&reading, is_read, self.now());
        None
    }
}

/// Decodes a part of a list. Returns an error if the value is no such part, for example because
/// the broker has removed it or another list has replaced it.
fn decode_part(bytes: Option<&Bytes>, of: InstanceId, serial: u64, part: u64) -> Answer<Vec<PeerConnection>> {
    let message = bytes.and_then(|bytes| Message::decode(bytes)).filter(|message| message.from == of);
    let open = message.into_iter().flat_map(|message| message.entries).find_map(|body| match body {
        Body::Part(found) if found.serial == serial && found.part == part => Some(found.open),
        _ => None,
    });
    open.ok_or_else(|| BackplaneError::unavailable("a part of the list is missing"))
}
