//! Reading a stream from a position on: a consumer of its own, asked for one bounded batch after the other. The client
//! drops messages that overflow a subscription; of these there are never more under way than were asked for.

use std::time::Duration;

use async_nats::{HeaderMap, StatusCode, Subscriber};
use bytes::Bytes;
use futures::{FutureExt, StreamExt};
use serde_json::json;

use super::super::{Answer, BackplaneError, Stored};
use super::connection::Connection;

/// The server forgets a consumer that nobody has asked for so long.
const FORGOTTEN: Duration = Duration::from_secs(30);

pub(super) struct Reader {
    connection: Connection,
    stream: String,
    consumer: String,
    inbox: String,
    messages: Subscriber,
    /// How many there were to read when it began.
    pub(super) waiting: u64,
    /// How many were asked for and have not come.
    asked: usize,
    expires: Duration,
}

pub(super) struct Message {
    pub(super) stored: Stored,
    pub(super) headers: HeaderMap,
    /// How many there are after it.
    pub(super) pending: u64,
}

impl Reader {
    pub(super) async fn open(connection: &Connection, stream: &str, after: u64, filter: Option<&str>) -> Answer<Self> {
        let consumer = format!("{:016x}", fastrand::u64(..));
        let mut config = json!({
            "name": consumer,
            "deliver_policy": "by_start_sequence",
            "opt_start_seq": after.saturating_add(1),
            "ack_policy": "none",
            "replay_policy": "instant",
            "inactive_threshold": FORGOTTEN.as_nanos() as u64,
            "num_replicas": 1,
            "mem_storage": true,
        });
        let mut of = format!("{stream}.{consumer}");
        if let Some(filter) = filter {
            config["filter_subject"] = json!(filter);
            of = format!("{of}.{filter}");
        }
        let request = json!({ "stream_name": stream, "config": config });
        let info = connection.ask("CONSUMER.CREATE", &of, &request).await?;
        let info = info.ok_or_else(|| BackplaneError::unavailable(format!("the stream {stream} is gone")))?;
        let waiting = info["num_pending"].as_u64().unwrap_or(0);
        let inbox = connection.client.new_inbox();
        let messages = connection.client.subscribe(inbox.clone()).await;
        let messages = messages.map_err(|error| BackplaneError::unavailable(error.to_string()))?;
        Ok(Self {
            connection: connection.clone(),
            stream: stream.to_owned(),
            consumer,
            inbox,
            messages,
            waiting,
            asked: 0,
            expires: Duration::ZERO,
        })
    }

    /// Asks for so many, as they come within a time. Not before the ones asked for have come or the time was over.
    async fn ask(&mut self, count: usize, expires: Duration) -> Answer<()> {
        let subject = format!("$JS.API.CONSUMER.MSG.NEXT.{}.{}", self.stream, self.consumer);
        let request = json!({ "batch": count, "expires": expires.as_nanos() as u64 }).to_string();
        let asked = self.connection.client.publish_with_reply(subject, self.inbox.clone(), request.into());
        asked.await.map_err(|error| BackplaneError::unavailable(error.to_string()))?;
        (self.asked, self.expires) = (count, expires);
        Ok(())
    }

    /// The next messages: those that are there, at most so many. None if nothing came within the time.
    pub(super) async fn next(&mut self, count: usize, expires: Duration) -> Answer<Vec<Message>> {
        if self.asked == 0 {
            self.ask(count, expires).await?;
        }
        // A consumer that is gone says nothing, not even that the time is over.
        let limit = self.expires + self.connection.limits.timeout;
        let mut next = Some(self.connection.within(limit, self.messages.next()).await?);
        let mut batch = Vec::new();
        while let Some(message) = next {
            let message = message.ok_or_else(|| BackplaneError::unknown("the connection ended"))?;
            let Some(message) = self.read(message)? else { break };
            batch.push(message);
            next = if self.asked > 0 { self.messages.next().now_or_never() } else { None };
        }
        Ok(batch)
    }

    /// `None` says that no more will come of what was asked for.
    fn read(&mut self, message: async_nats::Message) -> Answer<Option<Message>> {
        match message.status {
            None | Some(StatusCode::OK) => {}
            Some(StatusCode::TIMEOUT | StatusCode::NOT_FOUND) => {
                self.asked = 0;
                return Ok(None);
            }
            Some(status) => {
                let why = message.description.unwrap_or_default();
                return Err(BackplaneError::unavailable(format!("reading ended: {status} {why}")));
            }
        }
        self.asked = self.asked.saturating_sub(1);
        let (sequence, pending) = message
            .reply
            .as_deref()
            .and_then(numbers)
            .ok_or_else(|| BackplaneError::rejected("a message without its number"))?;
        let stored = Stored { sequence, payload: message.payload };
        Ok(Some(Message { stored, headers: message.headers.unwrap_or_default(), pending }))
    }

    /// Reads what was there when it began, at most so many, and lets go of the consumer.
    pub(super) async fn rest(mut self, limit: usize, batch: usize) -> Answer<Vec<Message>> {
        let count = usize::try_from(self.waiting).unwrap_or(usize::MAX).min(limit);
        let mut all = Vec::new();
        while all.len() < count {
            let messages = self.next((count - all.len()).min(batch), self.connection.limits.timeout).await?;
            // Or all of them are gone meanwhile; that is for another look to say.
            let newest = messages.last().ok_or_else(|| BackplaneError::unknown("nothing came in time"))?;
            // Fewer than there were: some are gone meanwhile.
            let end = newest.pending == 0;
            all.extend(messages);
            if end {
                break;
            }
        }
        // The server would forget the consumer by itself, later.
        let subject = format!("$JS.API.CONSUMER.DELETE.{}.{}", self.stream, self.consumer);
        drop(self.connection.client.publish(subject, Bytes::new()).await);
        Ok(all)
    }
}

/// The number of a message in its stream, and how many come after it: the server says so in the reply subject, which is
/// `$JS.ACK.stream.consumer.delivered.sequence.consumer_sequence.time.pending`, newer ones with a domain and an account
/// before the stream and more at the end.
fn numbers(reply: &str) -> Option<(u64, u64)> {
    let tokens: Vec<&str> = reply.strip_prefix("$JS.ACK.")?.split('.').collect();
    let skip = if tokens.len() > 7 { 2 } else { 0 };
    Some((tokens.get(skip + 3)?.parse().ok()?, tokens.get(skip + 6)?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::numbers;

    #[test]
    fn numbers_of_old_and_new_servers_are_found() {
        assert_eq!(numbers("$JS.ACK.L.c1.1.42.3.1795555351779268083.7"), Some((42, 7)));
        assert_eq!(numbers("$JS.ACK._.hash.L.c1.1.42.3.1795555351779268083.7.rest"), Some((42, 7)));
        assert_eq!(numbers("$JS.ACK.L"), None);
        assert_eq!(numbers("_INBOX.x"), None);
    }
}
