//! A connection to a NATS server, and requests to its JetStream API.
//!
//! The adapter replaces a broken connection, and does not use it again even if the NATS client
//! reconnects. Otherwise the adapter could rely on a state of the log from before the interruption.

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

/// The minimum version of the server: the major and the minor number.
const MIN_VERSION: (u64, u64) = (2, 9);
/// The error code of JetStream for a stream that does not exist.
const NO_STREAM: u64 = 10059;
/// The error code of JetStream for a message that does not exist.
const NO_MESSAGE: u64 = 10037;

/// The addresses of the servers and the credentials.
#[derive(Clone)]
pub(super) struct Servers {
    addresses: Vec<ServerAddr>,
    /// A user name with a password, or a token without a password.
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
    /// Parses comma-separated URLs. Returns `None` if a URL is invalid or has another scheme than
    /// `nats` or `tls`. Removes the credentials from the addresses, because the client logs
    /// addresses.
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

    /// Connects to one of the servers. Tries each server at most once, in random order.
    pub(super) async fn connect(&self, names: &Arc<Names>, limits: LogLimits) -> Answer<Connection> {
        let timeout = limits.timeout;
        let (breaks, broken) = watch::channel(false);
        let breaks = Arc::new(breaks);
        let mut options = ConnectOptions::new()
            .name("tower-sse")
            .connection_timeout(timeout)
            .request_timeout(Some(timeout))
            .ping_interval(Duration::from_secs(5))
            // One attempt for each server, so that the client of a broken connection stops
            // reconnecting soon.
            .max_reconnects(self.addresses.len())
            .event_callback(move |event| {
                // After `SlowConsumer` the connection counts as broken, because the client has
                // dropped messages.
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
        let client = client.map_err(|_| BackplaneError::unavailable("cannot connect in time"))?;
        let client = client.map_err(|error| match error.kind() {
            ConnectErrorKind::Authentication | ConnectErrorKind::AuthorizationViolation => {
                BackplaneError::rejected(error.to_string())
            }
            _ => BackplaneError::unavailable(error.to_string()),
        })?;
        let version = client.server_info().version;
        if !is_new_enough(&version) {
            let (major, minor) = MIN_VERSION;
            let text = format!("the server has version {version}, but {major}.{minor} or newer is required");
            return Err(BackplaneError::rejected(text));
        }
        // Each caller limits its own pending acknowledgements, so the client has no limit.
        let jetstream = ContextBuilder::new()
            .timeout(timeout)
            .ack_timeout(timeout)
            .max_ack_inflight(Semaphore::MAX_PERMITS)
            .build(client.clone());
        Ok(Connection { client, jetstream, names: Arc::clone(names), limits, broken })
    }
}

/// Writes the addresses without the credentials.
impl fmt::Display for Servers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = |address: &ServerAddr| format!("{}:{}", address.host(), address.port());
        f.write_str(&self.addresses.iter().map(place).collect::<Vec<_>>().join(", "))
    }
}

/// Decodes percent-encoded text from a URL. A `+` stays as it is.
fn unescape(text: &str) -> String {
    let plain = text.replace('+', "%2B");
    form_urlencoded::parse(plain.replace('&', "%26").replace('=', "%3D").as_bytes())
        .next()
        .map(|(text, _)| text.into_owned())
        .unwrap_or_default()
}

fn is_new_enough(version: &str) -> bool {
    let mut numbers = version.split(['.', '-']).map(str::parse);
    matches!((numbers.next(), numbers.next()), (Some(Ok(major)), Some(Ok(minor))) if (major, minor) >= MIN_VERSION)
}

impl Connection {
    /// Returns whether the connection is open, was never interrupted, and never dropped messages.
    /// The client drops messages when this process reads too slowly.
    pub(super) fn is_intact(&self) -> bool {
        !*self.broken.borrow() && self.client.connection_state() == State::Connected
    }

    /// Waits for a future. Returns an unknown error after `limit`, or when the connection breaks.
    pub(super) async fn within<T>(&self, limit: Duration, future: impl Future<Output = T>) -> Answer<T> {
        in_time(limit, async {
            let mut broken = self.broken.clone();
            let breaks = std::pin::pin!(broken.wait_for(|broken| *broken));
            match select(std::pin::pin!(future), breaks).await {
                Either::Left((output, _)) => Ok(output),
                Either::Right(_) => Err(BackplaneError::unknown("the connection broke")),
            }
        })
        .await
    }

    /// Sends a request to the JetStream API. Returns the answer, or `None` if the stream does not
    /// exist.
    pub(super) async fn ask(&self, method: &str, subject: &str, request: &Json) -> Answer<Option<Json>> {
        self.ask_unless(method, subject, request, &[NO_STREAM]).await
    }

    /// Returns the server's description of a stream, or `None` if the stream does not exist.
    pub(super) async fn stream(&self, name: &str) -> Answer<Option<Json>> {
        self.ask("STREAM.INFO", name, &json!({})).await
    }

    /// Returns the lowest message number in a stream that is at least `number`, or `None` if the
    /// stream has no such message. The leader of the stream answers this request. A consumer might
    /// read from a replica that is behind.
    pub(super) async fn oldest_from(&self, stream: &str, number: u64) -> Answer<Option<u64>> {
        let request = json!({ "seq": number, "next_by_subj": ">" });
        let answer = self.ask_unless("STREAM.MSG.GET", stream, &request, &[NO_MESSAGE]).await?;
        let Some(answer) = answer else { return Ok(None) };
        let found = answer["message"]["seq"].as_u64();
        found.map(Some).ok_or_else(|| BackplaneError::rejected("the server returned a message without its number"))
    }

    /// Sends a request to the JetStream API. Returns the answer, or `None` for an error with a code
    /// in `missing`.
    async fn ask_unless(&self, method: &str, subject: &str, request: &Json, missing: &[u64]) -> Answer<Option<Json>> {
        let request = self.jetstream.request::<_, _, Json>(format!("{method}.{subject}"), request);
        let answer = self.within(self.limits.timeout, request).await?.map_err(|error| match error.kind() {
            RequestErrorKind::NoResponders => BackplaneError::unavailable("JetStream is not available on the server"),
            RequestErrorKind::TimedOut => BackplaneError::unknown("no answer in time"),
            _ => BackplaneError::rejected(error.to_string()),
        })?;
        let Some(error) = answer.get("error") else { return Ok(Some(answer)) };
        if missing.iter().any(|code| error["err_code"] == *code) {
            return Ok(None);
        }
        let text = format!("{method}: {}", error["description"].as_str().unwrap_or_default());
        // With code 503, JetStream is starting, or has no leader at the moment.
        Err(if error["code"] == 503 { BackplaneError::unavailable(text) } else { BackplaneError::rejected(text) })
    }

    /// Returns the error of a message that is larger than the server accepts.
    pub(super) fn too_large(&self, what: &str) -> BackplaneError {
        let max = self.client.max_payload();
        BackplaneError::rejected(format!("the {what} with its headers exceeds the server's max_payload of {max} bytes"))
    }

    /// Publishes a message and waits for the acknowledgement of a stream.
    pub(super) async fn publish(
        &self,
        subject: String,
        message: PublishMessage,
    ) -> Answer<Result<PublishAck, PublishError>> {
        let publish = async { self.jetstream.send_publish(subject, message).await?.await };
        self.within(self.limits.timeout, publish).await
    }

    /// Publishes a message if the newest message of its subject has the number `newest`, which is 0
    /// for a subject without messages. Returns false, without publishing, if the newest message has
    /// another number or if no stream accepts the subject.
    pub(super) async fn compare_and_set(&self, subject: String, payload: Bytes, newest: u64) -> Answer<bool> {
        let message = PublishMessage::build().payload(payload).expected_last_subject_sequence(newest);
        match self.publish(subject, message).await? {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == PublishErrorKind::WrongLastSequence => Ok(false),
            // Another instance may be creating the stream.
            Err(error) if error.kind() == PublishErrorKind::StreamNotFound => {
                tokio::time::sleep(Duration::from_millis(20)).await;
                Ok(false)
            }
            Err(error) => Err(BackplaneError::unavailable(error.to_string())),
        }
    }

    /// Returns the newest message of a subject from the leader of the stream, or `None` if the
    /// subject has no message.
    pub(super) async fn newest_of(&self, stream: &str, subject: &str) -> Answer<Option<StreamMessage>> {
        self.message(stream, &json!({ "last_by_subj": subject })).await
    }

    /// Sends a `STREAM.MSG.GET` request to the leader of the stream. Returns the message, or `None`
    /// if the message or the stream does not exist.
    pub(super) async fn message(&self, stream: &str, request: &Json) -> Answer<Option<StreamMessage>> {
        let answer = self.ask_unless("STREAM.MSG.GET", stream, request, &[NO_STREAM, NO_MESSAGE]).await?;
        let Some(mut answer) = answer else { return Ok(None) };
        // `get_mut` returns `None` for an answer that is not an object. `IndexMut` would panic.
        let message = answer.get_mut("message").map(Json::take).unwrap_or_default();
        let message: Result<RawMessage, _> = serde_json::from_value(message);
        let message = message.ok().and_then(|message| message.try_into().ok());
        message.map(Some).ok_or_else(|| BackplaneError::rejected("the server returned a message that cannot be read"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_parsed_from_urls_without_credentials_in_addresses() {
        let servers = Servers::parse("nats://ada:s3%2Bc%40r+et@one:4222, tls://two").unwrap();
        assert_eq!(servers.to_string(), "one:4222, two:4222");
        assert_eq!(servers.user, Some(("ada".into(), Some("s3+c@r+et".into()))));
        assert!(servers.addresses.iter().all(|address| !address.as_url_str().contains('@')));
        assert!(Servers::parse("ws://host").is_none() && Servers::parse("redis://host").is_none());
    }

    #[test]
    fn server_version_is_compared_with_the_minimum() {
        for (version, is_enough) in
            [("2.9.10", true), ("2.10.0-beta.1", true), ("3.0", true), ("2.8.4", false), ("", false)]
        {
            assert_eq!(is_new_enough(version), is_enough, "{version}");
        }
    }
}
