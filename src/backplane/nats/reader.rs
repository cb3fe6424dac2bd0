//! A reader of a stream, from a position on. It creates a consumer on the server and requests one
//! batch of messages after the other.
//!
//! The client drops messages that overflow the buffer of a subscription. So a reader requests a
//! batch only after the previous batch has arrived or its request has ended.

use std::time::{Duration, SystemTime};

use async_nats::{HeaderMap, StatusCode, Subscriber};
use bytes::Bytes;
use futures::{FutureExt, StreamExt};
use serde_json::json;
use tokio::time::sleep;

use super::super::{Answer, BackplaneError, ReadLimit, Stored};
use super::connection::Connection;
use super::denials::Denial;

/// The time without a request after which the server deletes a consumer.
const INACTIVE: Duration = Duration::from_secs(30);

/// The number of requests that a reader may repeat before the first answer. In a cluster, the
/// server of the connection may hear of the new consumer a moment after the consumer was created.
const REPEATS: u32 = 25;
/// The pause before a repeated request.
const PAUSE: Duration = Duration::from_millis(20);

/// A reader of a stream.
pub(super) struct Reader {
    connection: Connection,
    stream: String,
    consumer: String,
    /// The subject to which the server sends the messages.
    inbox: String,
    messages: Subscriber,
    denial: Denial,
    /// The number of requests that may still be repeated.
    repeats: u32,
    /// The number of the newest message that was read. A server may send an older message, because
    /// a replica that is behind begins with a message that it has.
    after: u64,
    /// The number of messages that the reader had to read at the time of opening.
    pub(super) waiting: u64,
    /// The number of messages of the current request that have not arrived.
    requested: usize,
    /// The time after which the server ends the current request.
    expires: Duration,
}

/// A message of a stream.
pub(super) struct Message {
    pub(super) stored: Stored,
    pub(super) headers: HeaderMap,
    /// The number of messages that the reader has to read after this message.
    pub(super) pending: u64,
}

impl Reader {
    /// Opens a reader of the messages with numbers above `after`. With a filter, it reads only
    /// messages with a matching subject.
    pub(super) async fn open(connection: &Connection, stream: &str, after: u64, filter: Option<&str>) -> Answer<Self> {
        let consumer = format!("{:016x}", fastrand::u64(..));
        let mut config = json!({
            "name": consumer,
            "deliver_policy": "by_start_sequence",
            "opt_start_seq": after.saturating_add(1),
            "ack_policy": "none",
            "replay_policy": "instant",
            "inactive_threshold": INACTIVE.as_nanos() as u64,
            "num_replicas": 1,
            "mem_storage": true,
        });
        let mut subject = format!("{stream}.{consumer}");
        if let Some(filter) = filter {
            config["filter_subject"] = json!(filter);
            subject = format!("{subject}.{filter}");
        }
        let request = json!({ "stream_name": stream, "config": config });
        let info = connection.ask("CONSUMER.CREATE", &subject, &request).await?;
        let info = info.ok_or_else(|| BackplaneError::unavailable(format!("the stream {stream} does not exist")))?;
        let waiting = info["num_pending"].as_u64().unwrap_or(0);
        let denial = connection.denial(&format!("$JS.API.CONSUMER.MSG.NEXT.{stream}."));
        let inbox = connection.client.new_inbox();
        let messages = connection.client.subscribe(inbox.clone()).await;
        let messages = messages.map_err(|error| BackplaneError::unavailable(error.to_string()))?;
        Ok(Self {
            connection: connection.clone(),
            stream: stream.to_owned(),
            consumer,
            inbox,
            messages,
            denial,
            repeats: if connection.is_clustered() { REPEATS } else { 0 },
            after,
            waiting,
            requested: 0,
            expires: Duration::ZERO,
        })
    }

    /// Requests `count` messages. The server ends the request after `expires`. The caller must wait
    /// until the previous request is complete or has ended.
    async fn request(&mut self, count: usize, expires: Duration) -> Answer<()> {
        let subject = format!("$JS.API.CONSUMER.MSG.NEXT.{}.{}", self.stream, self.consumer);
        let request = json!({ "batch": count, "expires": expires.as_nanos() as u64 }).to_string();
        let sent = self.connection.client.publish_with_reply(subject, self.inbox.clone(), request.into());
        sent.await.map_err(|error| BackplaneError::unavailable(error.to_string()))?;
        (self.requested, self.expires) = (count, expires);
        Ok(())
    }

    /// Waits for the next message, and returns it with all messages that have arrived, at most
    /// `count`. Returns an empty list if the server ends the request, which it does after
    /// `expires`. While an earlier request is pending, its `count` and `expires` apply.
    pub(super) async fn next(&mut self, count: usize, expires: Duration) -> Answer<Vec<Message>> {
        let mut batch = Vec::new();
        let mut has_ended = false;
        while batch.is_empty() && !has_ended {
            if self.requested == 0 {
                self.request(count, expires).await?;
            }
            // For a deleted consumer the server may send nothing, not even the end of the request.
            let limit = self.expires + self.connection.limits.timeout;
            let mut next = Some(self.connection.unless(&self.denial, limit, self.messages.next()).await?);
            while let Some(message) = next {
                let message = message.ok_or_else(|| BackplaneError::unknown("the connection ended"))?;
                if message.status == Some(StatusCode::NO_RESPONDERS) && self.repeats > 0 {
                    self.repeats -= 1;
                    self.requested = 0;
                    sleep(PAUSE).await;
                    break;
                }
                self.repeats = 0;
                let Some(message) = self.read(message)? else {
                    has_ended = true;
                    break;
                };
                if message.stored.sequence > self.after {
                    self.after = message.stored.sequence;
                    batch.push(message);
                }
                next = if self.requested > 0 { self.messages.next().now_or_never() } else { None };
            }
        }
        Ok(batch)
    }

    /// Reads one message. Returns `None` if the message is the end of the current request.
    fn read(&mut self, message: async_nats::Message) -> Answer<Option<Message>> {
        match message.status {
            None | Some(StatusCode::OK) => {}
            Some(StatusCode::TIMEOUT | StatusCode::NOT_FOUND) => {
                self.requested = 0;
                return Ok(None);
            }
            Some(status) => {
                let reason = message.description.unwrap_or_default();
                return Err(BackplaneError::unavailable(format!("the server ended a read: {status} {reason}")));
            }
        }
        self.requested = self.requested.saturating_sub(1);
        let Numbers { sequence, stored_at, pending } = message
            .reply
            .as_deref()
            .and_then(numbers)
            .ok_or_else(|| BackplaneError::rejected("the server sent a message without its number"))?;
        let stored = Stored::new(sequence, message.payload).at(stored_at);
        Ok(Some(Message { stored, headers: message.headers.unwrap_or_default(), pending }))
    }

    /// Reads as many messages as the reader had to read at the time of opening, and then deletes
    /// the consumer. Stops when the messages reach `limit`, so the last ones may exceed its bytes.
    /// Returns fewer messages if the stream has no more. Each request is for at most `batch`
    /// messages.
    pub(super) async fn rest(mut self, limit: ReadLimit, batch: usize) -> Answer<Vec<Message>> {
        let count = usize::try_from(self.waiting).unwrap_or(usize::MAX).min(limit.records);
        let (mut all, mut bytes) = (Vec::new(), 0);
        while all.len() < count && (all.is_empty() || bytes < limit.bytes) {
            // The server limits the number of messages of a request. So request about as many as
            // fit, by the sizes of the messages so far.
            let request = limit.fitting(all.len(), bytes).min(count - all.len()).min(batch);
            let messages = self.next(request, self.connection.limits.timeout).await?;
            // Either the answer is late, or the messages were removed meanwhile. The hub tries
            // again after this error.
            let newest = messages.last().ok_or_else(|| BackplaneError::unknown("no message arrived in time"))?;
            // The end comes before `count` is reached if messages were removed meanwhile.
            let is_end = newest.pending == 0;
            bytes += messages.iter().map(|message| message.stored.payload.len()).sum::<usize>();
            all.extend(messages);
            if is_end {
                break;
            }
        }
        self.close().await;
        Ok(all)
    }

    /// Deletes the consumer. Errors are ignored: the server deletes an inactive consumer by itself.
    pub(super) async fn close(self) {
        let subject = format!("$JS.API.CONSUMER.DELETE.{}.{}", self.stream, self.consumer);
        drop(self.connection.client.publish(subject, Bytes::new()).await);
    }
}

/// The numbers in the reply subject of a message.
#[derive(Debug, PartialEq, Eq)]
struct Numbers {
    /// The number of the message in its stream.
    sequence: u64,
    /// The time at which the stream stored the message.
    stored_at: Option<SystemTime>,
    /// The number of messages that the consumer has after this message.
    pending: u64,
}

/// Reads the reply subject of a message:
/// `$JS.ACK.stream.consumer.delivered.sequence.consumer_sequence.time.pending`. Newer servers add a
/// domain and an account before the stream, and more tokens at the end. The time is in nanoseconds
/// of Unix time.
fn numbers(reply: &str) -> Option<Numbers> {
    let tokens: Vec<&str> = reply.strip_prefix("$JS.ACK.")?.split('.').collect();
    let skip = if tokens.len() > 7 { 2 } else { 0 };
    let number = |at: usize| tokens.get(skip + at)?.parse().ok();
    let stored_at = number(5).and_then(|nanos| SystemTime::UNIX_EPOCH.checked_add(Duration::from_nanos(nanos)));
    Some(Numbers { sequence: number(3)?, stored_at, pending: number(6)? })
}

#[cfg(test)]
mod tests {
    use super::{Duration, Numbers, SystemTime, numbers};

    #[test]
    fn numbers_are_read_from_reply_subjects_of_old_and_new_servers() {
        let time = Duration::from_nanos(1_795_555_351_779_268_083);
        let stored_at = SystemTime::UNIX_EPOCH.checked_add(time);
        for reply in
            ["$JS.ACK.L.c1.1.42.3.1795555351779268083.7", "$JS.ACK._.hash.L.c1.1.42.3.1795555351779268083.7.rest"]
        {
            assert_eq!(numbers(reply), Some(Numbers { sequence: 42, stored_at, pending: 7 }), "{reply}");
        }
        assert_eq!(numbers("$JS.ACK.L"), None);
        assert_eq!(numbers("_INBOX.x"), None);
    }
}
