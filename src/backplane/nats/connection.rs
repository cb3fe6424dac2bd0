//! A connection to a server, and questions to its JetStream.
//!
//! A connection that broke is not mended but replaced: so nothing that waited in it is sent later,
//! behind the back of who was told that it failed, and whatever was known of the log is asked for
//! anew.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_nats::connection::State;
use async_nats::jetstream::Context;
use async_nats::jetstream::context::{ContextBuilder, PublishError, PublishErrorKind, RequestErrorKind};
use async_nats::jetstream::message::{PublishMessage, StreamMessage};
use async_nats::jetstream::publish::PublishAck;
use async_nats::jetstream::stream::RawMessage;
use async_nats::{Client, ConnectErrorKind, ConnectOptions, Event, ServerAddr};
use bytes::Bytes;
use futures::future::{Either, select};
use serde_json::{Value as Json, json};
use tokio::sync::{Semaphore, watch};

use super::super::limits::LogLimits;
use super::super::{Answer, BackplaneError, in_time};
use super::names::Names;

/// The oldest server whose JetStream does what is needed here.
const OLDEST: (u64, u64) = (2, 9);
const NO_STREAM: u64 = 10059;
const NO_MESSAGE: u64 = 10037;

/// Where the servers are and who asks.
#[derive(Clone)]
pub(super) struct Servers {
    addresses: Vec<ServerAddr>,
    user: Option<(String, Option<String>)>,
}

#[derive(Clone)]
pub(super) struct Connection {
    pub(super) client: Client,
    pub(super) jetstream: Context,
    pub(super) names: Arc<Names>,
    pub(super) limits: LogLimits,
    broken: watch::Receiver<bool>,
}

impl Servers {
    /// Credentials leave the URLs here: the client logs those.
    pub(super) fn parse(urls: &str) -> Option<Self> {
        let mut servers = Self { addresses: Vec::new(), user: None };
        for url in urls.split(',') {
            let mut url = url.trim().parse::<ServerAddr>().ok()?.into_inner();
            if !matches!(url.scheme(), "nats" | "tls") {
                return None;
            }
            if !url.username().is_empty() {
                servers.user = Some((unescape(url.username()), url.password().map(unescape)));
            }
            url.set_username("").and_then(|()| url.set_password(None)).ok()?;
            servers.addresses.push(ServerAddr::from_url(url).ok()?);
        }
        Some(servers)
    }

    pub(super) async fn connect(&self, names: &Arc<Names>, limits: LogLimits) -> Answer<Connection> {
        let timeout = limits.timeout;
        let (breaks, broken) = watch::channel(false);
        let breaks = Arc::new(breaks);
        let mut options = ConnectOptions::new()
            .name("tower-sse")
            .connection_timeout(timeout)
            .request_timeout(Some(timeout))
            .ping_interval(Duration::from_secs(5))
            // Each server once; see above.
            .max_reconnects(self.addresses.len())
            .event_callback(move |event| {
                // A slow consumer has lost messages: whoever hears begins anew.
                if matches!(event, Event::Disconnected | Event::Closed | Event::SlowConsumer(_)) {
                    breaks.send_replace(true);
                }
                async {}
            });
        options = match &self.user {
            None => options,
            Some((user, Some(password))) => options.user_and_password(user.clone(), password.clone()),
            Some((token, None)) => options.token(token.clone()),
        };
        let limit = timeout.saturating_mul(u32::try_from(self.addresses.len()).unwrap_or(1));
        let client = tokio::time::timeout(limit, options.connect(self.addresses.as_slice())).await;
        let client = client.map_err(|_| BackplaneError::unavailable("no connection in time"))?;
        let client = client.map_err(|error| match error.kind() {
            ConnectErrorKind::Authentication | ConnectErrorKind::AuthorizationViolation => {
                BackplaneError::rejected(error.to_string())
            }
            _ => BackplaneError::unavailable(error.to_string()),
        })?;
        let version = client.server_info().version;
        if !is_new_enough(&version) {
            let (major, minor) = OLDEST;
            let text = format!("its version is {version}: {major}.{minor} or newer is needed");
            return Err(BackplaneError::rejected(text));
        }
        // Acknowledgements are awaited by their publishers, each with a bound of its own.
        let jetstream = ContextBuilder::new()
            .timeout(timeout)
            .ack_timeout(timeout)
            .max_ack_inflight(Semaphore::MAX_PERMITS)
            .build(client.clone());
        Ok(Connection { client, jetstream, names: Arc::clone(names), limits, broken })
    }
}

/// Where; not who.
impl fmt::Display for Servers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = |address: &ServerAddr| format!("{}:{}", address.host(), address.port());
        f.write_str(&self.addresses.iter().map(place).collect::<Vec<_>>().join(", "))
    }
}

/// What `%` stands for in a URL.
fn unescape(text: &str) -> String {
    let plain = text.replace('+', "%2B");
    form_urlencoded::parse(plain.replace('&', "%26").replace('=', "%3D").as_bytes())
        .next()
        .map(|(text, _)| text.into_owned())
        .unwrap_or_default()
}

fn is_new_enough(version: &str) -> bool {
    let mut numbers = version.split(['.', '-']).map(str::parse);
    matches!((numbers.next(), numbers.next()), (Some(Ok(major)), Some(Ok(minor))) if (major, minor) >= OLDEST)
}

impl Connection {
    pub(super) fn is_whole(&self) -> bool {
        !*self.broken.borrow() && self.client.connection_state() == State::Connected
    }

    /// Waits for something for at most this long, and no longer than the connection holds.
    pub(super) async fn within<T>(&self, limit: Duration, what: impl Future<Output = T>) -> Answer<T> {
        in_time(limit, async {
            let mut broken = self.broken.clone();
            let breaks = std::pin::pin!(broken.wait_for(|broken| *broken));
            match select(std::pin::pin!(what), breaks).await {
                Either::Left((came, _)) => Ok(came),
                Either::Right(_) => Err(BackplaneError::unknown("the connection broke")),
            }
        })
        .await
    }

    /// Asks JetStream's API. Returns `None` if there is no such stream.
    pub(super) async fn ask(&self, what: &str, of: &str, with: &Json) -> Answer<Option<Json>> {
        self.ask_unless(what, of, with, &[NO_STREAM]).await
    }

    /// Returns the server's description of a stream, or `None` if there is no such stream.
    pub(super) async fn stream(&self, name: &str) -> Answer<Option<Json>> {
        self.ask("STREAM.INFO", name, &json!({})).await
    }

    /// Returns the number of the oldest message of a stream from a number on, as the leader of the
    /// stream has it. A consumer may lie on a replica that is behind.
    pub(super) async fn oldest_from(&self, stream: &str, number: u64) -> Answer<Option<u64>> {
        let with = json!({ "seq": number, "next_by_subj": ">" });
        let answer = self.ask_unless("STREAM.MSG.GET", stream, &with, &[NO_MESSAGE]).await?;
        let Some(answer) = answer else { return Ok(None) };
        let found = answer["message"]["seq"].as_u64();
        found.map(Some).ok_or_else(|| BackplaneError::rejected("a message without its number"))
    }

    /// Asks JetStream's API. Returns `None` if it answers with one of these errors.
    async fn ask_unless(&self, what: &str, of: &str, with: &Json, missing: &[u64]) -> Answer<Option<Json>> {
        let request = self.jetstream.request::<_, _, Json>(format!("{what}.{of}"), with);
        let answer = self.within(self.limits.timeout, request).await?.map_err(|error| match error.kind() {
            RequestErrorKind::NoResponders => BackplaneError::unavailable("JetStream is not there"),
            RequestErrorKind::TimedOut => BackplaneError::unknown("no answer in time"),
            _ => BackplaneError::rejected(error.to_string()),
        })?;
        let Some(error) = answer.get("error") else { return Ok(Some(answer)) };
        if missing.iter().any(|code| error["err_code"] == *code) {
            return Ok(None);
        }
        let text = format!("{what}: {}", error["description"].as_str().unwrap_or_default());
        // The system is not ready, or has no leader now.
        Err(if error["code"] == 503 { BackplaneError::unavailable(text) } else { BackplaneError::rejected(text) })
    }

    /// Publishes a message, and waits until a stream has acknowledged it.
    pub(super) async fn publish(
        &self,
        subject: String,
        message: PublishMessage,
    ) -> Answer<Result<PublishAck, PublishError>> {
        let publish = async { self.jetstream.send_publish(subject, message).await?.await };
        self.within(self.limits.timeout, publish).await
    }

    /// Puts a message on a subject whose newest has this number. Returns false if another client was faster.
    pub(super) async fn compare_and_set(&self, subject: String, payload: Bytes, newest: u64) -> Answer<bool> {
        let message = PublishMessage::build().payload(payload).expected_last_subject_sequence(newest);
        match self.publish(subject, message).await? {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == PublishErrorKind::WrongLastSequence => Ok(false),
            // Somebody else is about to make the stream.
            Err(error) if error.kind() == PublishErrorKind::StreamNotFound => {
                tokio::time::sleep(Duration::from_millis(20)).await;
                Ok(false)
            }
            Err(error) => Err(BackplaneError::unavailable(error.to_string())),
        }
    }

    /// Returns the newest message of a subject, as the leader of the stream has it.
    pub(super) async fn newest_of(&self, stream: &str, subject: &str) -> Answer<Option<StreamMessage>> {
        self.message(stream, &json!({ "last_by_subj": subject })).await
    }

    /// Returns the message that JetStream's API finds by `which`, as the leader of the stream has it.
    pub(super) async fn message(&self, stream: &str, which: &Json) -> Answer<Option<StreamMessage>> {
        let answer = self.ask_unless("STREAM.MSG.GET", stream, which, &[NO_STREAM, NO_MESSAGE]).await?;
        let Some(mut answer) = answer else { return Ok(None) };
        // An answer that is no object has no message.
        let message = answer.get_mut("message").map(Json::take).unwrap_or_default();
        let message: Result<RawMessage, _> = serde_json::from_value(message);
        let message = message.ok().and_then(|message| message.try_into().ok());
        message.map(Some).ok_or_else(|| BackplaneError::rejected("a message that cannot be read"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_give_servers_and_keep_their_secrets() {
        let servers = Servers::parse("nats://ada:s3%2Bc%40r+et@one:4222, tls://two").unwrap();
        assert_eq!(servers.to_string(), "one:4222, two:4222");
        assert_eq!(servers.user, Some(("ada".into(), Some("s3+c@r+et".into()))));
        assert!(servers.addresses.iter().all(|address| !address.as_url_str().contains('@')));
        assert!(Servers::parse("ws://host").is_none() && Servers::parse("redis://host").is_none());
    }

    #[test]
    fn old_servers_are_told_from_new_ones() {
        for (version, enough) in
            [("2.9.10", true), ("2.10.0-beta.1", true), ("3.0", true), ("2.8.4", false), ("", false)]
        {
            assert_eq!(is_new_enough(version), enough, "{version}");
        }
    }
}
