//! A connection to a NATS server, and requests to its JetStream API.
//!
//! The adapter replaces a broken connection, and does not use it again even if the NATS client
//! reconnects. Otherwise the adapter could rely on a state of the log from before the interruption.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_nats::connection::State;
use async_nats::jetstream::context::{ContextBuilder, PublishError, PublishErrorKind, RequestErrorKind};
use async_nats::jetstream::message::{PublishMessage, StreamMessage};
use async_nats::jetstream::publish::PublishAck;
use async_nats::jetstream::stream::RawMessage;
use async_nats::jetstream::{Context, Error as ServerRefusal};
use async_nats::{Client, ConnectErrorKind, ConnectOptions, Event, ServerAddr};
use bytes::Bytes;
use futures::future::{Either, select};
use serde_json::{Value as Json, json};
use tokio::sync::{Semaphore, watch};

use super::super::limits::LogLimits;
use super::super::{Answer, BackplaneError, in_time};
use super::access::{Access, Identity};
use super::denials::{Denial, Denials, Denied, Since};
use super::names::Names;

/// The minimum version of a single server.
const MIN_VERSION: Version = Version(2, 9, 0);
/// The minimum version of the servers of a cluster. In older versions, a new leader of a stream
/// answers before it has applied all acknowledged records.
const MIN_VERSION_IN_CLUSTER: Version = Version(2, 12, 2);
/// The number of times for which the adapter asks a cluster for a stream before it concludes that
/// the stream does not exist. A server that has just become the leader of the cluster may not know
/// the stream yet.
const ASKS: u32 = 3;
/// The maximum pause between these requests.
const ASK_PAUSE: Duration = Duration::from_millis(500);
/// The number of times for which the adapter asks for the description of a stream without a leader.
const LEADER_ASKS: u32 = 8;
/// The pause between these requests.
const LEADER_PAUSE: Duration = Duration::from_millis(50);
/// The error code of JetStream for a stream that does not exist.
const NO_STREAM: u64 = 10059;
/// The error code of JetStream for a message that does not exist.
const NO_MESSAGE: u64 = 10037;
/// The error codes of JetStream for a request that may succeed later: the cluster or the stream has
/// no leader, too few servers are available, or too many requests are pending.
const TEMPORARY: [u64; 5] = [10005, 10008, 10009, 10118, 10167];
/// The error code of JetStream for a message that another message of its subject precedes, whose
/// outcome the server does not know yet.
const IN_PROGRESS: u64 = 10164;

/// The addresses of the servers, and how to connect to them.
#[derive(Clone)]
pub(super) struct Servers {
    addresses: Vec<ServerAddr>,
    pub(super) access: Access,
    /// The minimum number of replicas of each stream.
    pub(super) replicas: usize,
}

/// The version of a server: the major, the minor and the patch number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Version(u64, u64, u64);

#[derive(Clone)]
pub(super) struct Connection {
    pub(super) client: Client,
    pub(super) jetstream: Context,
    pub(super) names: Arc<Names>,
    pub(super) limits: LogLimits,
    /// The minimum number of replicas of each stream.
    pub(super) replicas: usize,
    /// Whether the servers form a cluster. In a cluster, no answer to a read proves a loss.
    clustered: Arc<AtomicBool>,
    broken: watch::Receiver<bool>,
    denials: Denials,
}

impl Servers {
    /// Parses comma-separated URLs. Returns `None` if a URL is invalid or has another scheme than
    /// `nats` or `tls`. Removes the credentials from the addresses, because the client logs
    /// addresses.
    pub(super) fn parse(urls: &str) -> Option<Self> {
        let mut servers = Self { addresses: Vec::new(), access: Access::default(), replicas: 1 };
        for url in urls.split(',') {
            let mut url = url.trim().parse::<ServerAddr>().ok()?.into_inner();
            if !matches!(url.scheme(), "nats" | "tls") {
                return None;
            }
            if !url.username().is_empty() {
                servers.access.set_identity(Identity::User(unescape(url.username()), url.password().map(unescape)));
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
        let denials = Denials::default();
        let noted = denials.clone();
        let options = ConnectOptions::new()
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
                if let Event::ServerError(error) = event {
                    noted.note(&error.to_string());
                }
                async {}
            });
        let options = self.access.apply(options).await?;
        let limit = timeout.saturating_mul(u32::try_from(self.addresses.len()).unwrap_or(1));
        let client = tokio::time::timeout(limit, options.connect(self.addresses.as_slice())).await;
        let client = client.map_err(|_| BackplaneError::unavailable("cannot connect in time"))?;
        let client = client.map_err(|error| match error.kind() {
            ConnectErrorKind::Authentication | ConnectErrorKind::AuthorizationViolation => {
                BackplaneError::rejected(error.to_string())
            }
            _ => BackplaneError::unavailable(error.to_string()),
        })?;
        let info = client.server_info();
        if Version::parse(&info.version).is_none_or(|version| version < MIN_VERSION) {
            let text = format!("the server has version {}, but {MIN_VERSION} or newer is required", info.version);
            return Err(BackplaneError::rejected(text));
        }
        // Each caller limits its own pending acknowledgements, so the client has no limit.
        let jetstream = ContextBuilder::new()
            .timeout(timeout)
            .ack_timeout(timeout)
            .max_ack_inflight(Semaphore::MAX_PERMITS)
            .build(client.clone());
        let connection = Connection {
            client,
            jetstream,
            names: Arc::clone(names),
            limits,
            replicas: self.replicas,
            clustered: Arc::default(),
            broken,
            denials,
        };
        if self.replicas > 1 || info.cluster.is_some() {
            connection.note_cluster()?;
        }
        Ok(connection)
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

impl Version {
    /// Parses a version such as `2.12.2` or `2.10.0-beta.1`. A missing patch number counts as 0.
    fn parse(text: &str) -> Option<Self> {
        let mut numbers = text.split(['.', '-']).map(str::parse);
        let (major, minor) = (numbers.next()?.ok()?, numbers.next()?.ok()?);
        Some(Self(major, minor, numbers.next().and_then(Result::ok).unwrap_or(0)))
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(major, minor, patch) = self;
        match patch {
            0 => write!(f, "{major}.{minor}"),
            _ => write!(f, "{major}.{minor}.{patch}"),
        }
    }
}

impl Connection {
    /// Returns whether the connection is open, was never interrupted, and never dropped messages.
    /// The client drops messages when this process reads too slowly.
    pub(super) fn is_intact(&self) -> bool {
        !*self.broken.borrow() && self.client.connection_state() == State::Connected
    }

    /// Returns whether the servers form a cluster. Then no answer to a read proves that records
    /// were lost: only the number of a record that was appended after the read proves it.
    pub(super) fn is_clustered(&self) -> bool {
        self.clustered.load(Ordering::Acquire)
    }

    /// Notes that the servers form a cluster. Returns an error if the server is too old for it.
    fn note_cluster(&self) -> Answer<()> {
        self.clustered.store(true, Ordering::Release);
        let version = self.client.server_info().version;
        if Version::parse(&version).is_some_and(|version| version >= MIN_VERSION_IN_CLUSTER) {
            return Ok(());
        }
        Err(BackplaneError::rejected(format!(
            "the server has version {version}, but a cluster or a stream with replicas needs \
             {MIN_VERSION_IN_CLUSTER} or newer: an older server may omit acknowledged records after \
             a new leader was elected"
        )))
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

    /// Returns a future that waits until the server denies a request on a subject that begins with
    /// `subject`. Only requests after this call count.
    pub(super) fn denial(&self, subject: &str) -> Denial {
        self.denials.since().request(subject)
    }

    /// Returns a place in the errors of this connection, from which on denied messages count.
    pub(super) fn denials(&self) -> Since {
        self.denials.since()
    }

    /// Waits for a future like [`within`](Self::within). Also returns an error if the server denies
    /// the request, because it does not answer such a request.
    pub(super) async fn unless<T>(
        &self,
        denial: &Denial,
        limit: Duration,
        future: impl Future<Output = T>,
    ) -> Answer<T> {
        match select(std::pin::pin!(self.within(limit, future)), denial.clone()).await {
            Either::Left((answer, _)) => answer,
            Either::Right((Denied(reason), _)) => Err(BackplaneError::rejected(&*reason)),
        }
    }

    /// Sends a request to the JetStream API. Returns the answer, or `None` if the stream does not
    /// exist.
    pub(super) async fn ask(&self, method: &str, subject: &str, request: &Json) -> Answer<Option<Json>> {
        self.ask_unless(method, subject, request, &[NO_STREAM]).await
    }

    /// Returns the server's description of a stream, or `None` if the stream does not exist. Asks a
    /// cluster several times before it returns `None`.
    pub(super) async fn stream(&self, name: &str) -> Answer<Option<Json>> {
        let mut asks = 0;
        loop {
            let info = self.known_stream(name).await?;
            asks += 1;
            if info.is_some() || !self.is_clustered() || asks >= ASKS {
                return Ok(info);
            }
            // Shorter than the time limit of opening the log, which asks for several streams.
            tokio::time::sleep(ASK_PAUSE.min(self.limits.timeout / 4)).await;
        }
    }

    /// Returns the server's description of a stream. Asks once, so `None` does not prove that the
    /// stream does not exist.
    ///
    /// While a stream has no leader, each of its replicas describes its own copy, which may lack
    /// acknowledged messages. So such a description is an error. A stream that was just created has
    /// no leader for a moment, so the adapter waits for that long.
    ///
    /// A single server of many versions describes itself as the leader of a cluster without a name.
    pub(super) async fn known_stream(&self, name: &str) -> Answer<Option<Json>> {
        for _ in 0..LEADER_ASKS {
            let info = self.ask("STREAM.INFO", name, &json!({})).await?;
            let Some(cluster) = info.as_ref().and_then(|info| info["cluster"].as_object()) else { return Ok(info) };
            if cluster.get("name").and_then(Json::as_str).is_some_and(|name| !name.is_empty()) {
                self.note_cluster()?;
            }
            if cluster.get("leader").and_then(Json::as_str).is_some_and(|leader| !leader.is_empty()) {
                return Ok(info);
            }
            tokio::time::sleep(LEADER_PAUSE).await;
        }
        Err(BackplaneError::unavailable(format!("the stream {name} has no leader at the moment")))
    }

    /// Returns the lowest message number in a stream that is at least `number`, or `None` if the
    /// stream has no such message. The leader of the stream answers this request. A consumer might
    /// read from a replica that is behind. In a cluster, the leader may have been replaced without
    /// knowing it yet, so `None` does not prove that the message does not exist.
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
        let denial = self.denial(&format!("$JS.API.{method}.{subject}"));
        let request = self.jetstream.request::<_, _, Json>(format!("{method}.{subject}"), request);
        let answer = self.unless(&denial, self.limits.timeout, request).await?.map_err(|error| match error.kind() {
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
        let is_unknown_stream = self.is_clustered() && error["err_code"] == NO_STREAM;
        let is_temporary =
            is_unknown_stream || error["code"] == 503 || TEMPORARY.iter().any(|code| error["err_code"] == *code);
        Err(if is_temporary { BackplaneError::unavailable(text) } else { BackplaneError::rejected(text) })
    }

    /// Converts the error of a publish that the stream did not store, or may not have stored.
    pub(super) fn publish_error(error: &PublishError) -> BackplaneError {
        match error.kind() {
            PublishErrorKind::TimedOut | PublishErrorKind::BrokenPipe => BackplaneError::unknown(error.to_string()),
            // The stream has no leader at the moment, or does not exist.
            PublishErrorKind::StreamNotFound => BackplaneError::unavailable(error.to_string()),
            _ if code(error).is_some_and(|code| TEMPORARY.contains(&code)) => {
                BackplaneError::unavailable(error.to_string())
            }
            _ => BackplaneError::rejected(error.to_string()),
        }
    }

    /// Returns whether the server did not store a message because the newest message of its subject
    /// is not the expected one, or may not be the expected one.
    pub(super) fn is_conflict(error: &PublishError) -> bool {
        error.kind() == PublishErrorKind::WrongLastSequence || code(error) == Some(IN_PROGRESS)
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
        let denial = self.denials().message(&subject);
        let publish = async { self.jetstream.send_publish(subject, message).await?.await };
        self.unless(&denial, self.limits.timeout, publish).await
    }

    /// Publishes a message if the newest message of its subject has the number `newest`, which is 0
    /// for a subject without messages. Returns false, without publishing, if the newest message has
    /// another number or if no stream accepts the subject. In a cluster, the latter is an error,
    /// because the stream may have no leader at the moment.
    pub(super) async fn compare_and_set(&self, subject: String, payload: Bytes, newest: u64) -> Answer<bool> {
        let message = PublishMessage::build().payload(payload).expected_last_subject_sequence(newest);
        match self.publish(subject, message).await? {
            Ok(_) => Ok(true),
            Err(error) if Self::is_conflict(&error) => Ok(false),
            // Another instance may be creating the stream.
            Err(error) if error.kind() == PublishErrorKind::StreamNotFound && !self.is_clustered() => {
                tokio::time::sleep(Duration::from_millis(20)).await;
                Ok(false)
            }
            Err(error) => Err(Self::publish_error(&error)),
        }
    }

    /// Returns the newest message of a subject from the leader of the stream, or `None` if the
    /// subject has no message.
    pub(super) async fn newest_of(&self, stream: &str, subject: &str) -> Answer<Option<StreamMessage>> {
        self.message(stream, &json!({ "last_by_subj": subject })).await
    }

    /// Sends a `STREAM.MSG.GET` request to the leader of the stream. Returns the message, or `None`
    /// if the message or the stream does not exist. In a cluster, a stream that is not found is an
    /// error: a server that has just become the leader of the cluster may not know the stream yet.
    pub(super) async fn message(&self, stream: &str, request: &Json) -> Answer<Option<StreamMessage>> {
        let missing: &[u64] = if self.is_clustered() { &[NO_MESSAGE] } else { &[NO_STREAM, NO_MESSAGE] };
        let answer = self.ask_unless("STREAM.MSG.GET", stream, request, missing).await?;
        let Some(mut answer) = answer else { return Ok(None) };
        // `get_mut` returns `None` for an answer that is not an object. `IndexMut` would panic.
        let message = answer.get_mut("message").map(Json::take).unwrap_or_default();
        let message: Result<RawMessage, _> = serde_json::from_value(message);
        let message = message.ok().and_then(|message| message.try_into().ok());
        message.map(Some).ok_or_else(|| BackplaneError::rejected("the server returned a message that cannot be read"))
    }
}

/// Returns the error code of JetStream, if the server has rejected a message with one.
fn code(error: &PublishError) -> Option<u64> {
    let refusal = std::error::Error::source(error)?.downcast_ref::<ServerRefusal>()?;
    Some(refusal.error_code().0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_parsed_from_urls_without_credentials_in_addresses() {
        let servers = Servers::parse("nats://ada:s3%2Bc%40r+et@one:4222, tls://two").unwrap();
        assert_eq!(servers.to_string(), "one:4222, two:4222");
        assert!(matches!(servers.access.identity(), Identity::User(user, Some(password))
            if user == "ada" && password == "s3+c@r+et"));
        assert!(servers.addresses.iter().all(|address| !address.as_url_str().contains('@')));
        assert!(Servers::parse("ws://host").is_none() && Servers::parse("redis://host").is_none());
    }

    #[test]
    fn server_version_is_compared_with_the_minimum_of_a_server_and_of_a_cluster() {
        let enough = |text: &str| {
            let version = Version::parse(text);
            [MIN_VERSION, MIN_VERSION_IN_CLUSTER].map(|minimum| version.is_some_and(|version| version >= minimum))
        };
        for (version, expected) in [
            ("2.8.4", [false, false]),
            ("2.9.10", [true, false]),
            ("2.10.0-beta.1", [true, false]),
            ("2.12.1", [true, false]),
            ("2.12.2", [true, true]),
            ("2.15.1", [true, true]),
            ("3.0", [true, true]),
            ("", [false, false]),
        ] {
            assert_eq!(enough(version), expected, "{version}");
        }
    }
}
