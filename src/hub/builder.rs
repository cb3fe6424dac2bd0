//! The builder of a hub, with one method for each setting.

use std::sync::Arc;
use std::time::Duration;

use super::inner::Tasks;
use super::{Hub, Inner};
use crate::backplane::Backplane;
use crate::hub::cluster::{backfill, bus, follow, shared_log::SharedLog};
use crate::hub::config::configuration::Configuration;
use crate::hub::config::limits::OverLimit;
use crate::hub::config::origins::Origins;
use crate::hub::tasks::background::Background;
use crate::hub::upkeep::{recheck, sweep};
use crate::log::Log;
use crate::types::{BuildError, Epoch, Retention, StreamEnd, TopicFilter};

/// Defines builder methods that set one field of the configuration.
macro_rules! setters {
    ($($(#[$doc:meta])* pub fn $name:ident($($argument:ident: $type:ty),*) => $($field:ident).+ = $value:expr;)*) => {
        $(
            $(#[$doc])*
            pub fn $name(mut self, $($argument: $type),*) -> Self {
                self.configuration.$($field).+ = $value;
                self
            }
        )*
    };
}

/// A builder with one method for each setting of a [`Hub`].
///
/// [`Hub::builder`] returns a builder, and [`build`](Self::build) checks the settings. Every
/// duration is between 10 ms and one day, and every number is at least 1, unless its method says
/// otherwise. The error for an invalid setting names the setting.
///
/// ```
/// use std::time::Duration;
/// use tower_sse::{Hub, OverLimit, Retention};
///
/// let hub = Hub::builder()
///     .topic_retention(Retention::replay().age(Duration::from_secs(60)))
///     .max_connections_per_user(10, OverLimit::CloseOldest)
///     .build()?;
/// let error = Hub::builder().max_connections(0, OverLimit::Refuse).build().unwrap_err();
/// assert_eq!(error.setting(), "max_connections");
/// # let _ = hub;
/// # Ok::<(), tower_sse::BuildError>(())
/// ```
#[derive(Clone, Debug, Default)]
#[must_use = "a builder does nothing until `build`"]
pub struct HubBuilder {
    pub(super) configuration: Configuration,
    pub(super) backplane: Option<Shared>,
}

/// The backplane, with a `Debug` that prints its description.
#[derive(Clone)]
pub(super) struct Shared(pub(super) Arc<dyn Backplane>);

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0.describe())
    }
}

impl Hub {
    /// Returns a builder with the default settings. [`HubBuilder`] has an example.
    pub fn builder() -> HubBuilder {
        HubBuilder::default()
    }
}

impl HubBuilder {
    /// Adds a rule that sets the retention of the topics that it matches. The first matching rule
    /// applies, and a topic has the same retention as long as the hub lives. Defaults to no rules.
    pub fn retention_for(mut self, rule: TopicFilter, retention: Retention) -> Self {
        self.configuration.rules.push((rule, retention));
        self
    }

    setters! {
        /// Sets the retention of topics that no rule matches, and of events to everyone. Defaults
        /// to [`Retention::replay`].
        #[doc(alias = "everyone_retention")]
        pub fn topic_retention(retention: Retention) => topics = retention;

        /// Sets the retention of the events to each user. Defaults to a [`Retention::replay`] of
        /// 256 events and 256 KiB.
        pub fn user_retention(retention: Retention) => users = retention;

        /// Limits the memory of the retained events of all topics and users together, in bytes. At
        /// least [`max_payload`](Self::max_payload). Defaults to 64 MiB.
        ///
        /// The hub counts an event as its bytes on the wire plus 200, for each topic and user that
        /// it is sent to. A topic or user counts as its name plus 440 while the hub retains events
        /// for it. It still counts while the hub remembers it without events: for forty
        /// [heartbeats](Self::heartbeat), 10 minutes by default.
        ///
        /// Over the budget, the hub first forgets topics and users without retained events and
        /// without listeners. Then it drops the oldest events. It never drops the newest event.
        ///
        /// The hub holds up to 7 MiB beside this budget. For forgotten topics and users, it
        /// remembers the position up to which events were dropped. Topics and users that have
        /// listeners and no retained events do not count.
        pub fn retention_budget(bytes: usize) => ring_bytes = bytes;

        /// Limits the memory of all current values together, in bytes. At least
        /// [`max_payload`](Self::max_payload). Defaults to 64 MiB.
        ///
        /// A current value is the newest event of a key, where [`Retention::latest_per_key`]
        /// applies. Over the budget, the hub drops the oldest values.
        ///
        /// The hub counts a value as its key and its bytes on the wire plus 290. A topic or user
        /// with values counts as 330 more, and as its name plus 440 unless the
        /// [`retention_budget`](Self::retention_budget) counts it.
        pub fn keyed_budget(bytes: usize) => keyed_bytes = bytes;

        /// Limits the size of an event, in bytes on the wire without its id. Between 16 bytes and
        /// 16 MiB. Defaults to 512 KiB.
        ///
        /// Publishing a larger event fails
        /// ([`PublishError::is_too_large`](crate::PublishError::is_too_large)).
        pub fn max_payload(bytes: usize) => settings.framing.max_payload = bytes;

        /// Limits the number of topics of one connection. Defaults to 128.
        ///
        /// The hub rejects a subscription with more topics as a whole. Topics that the user of a
        /// new connection was made to join ([`Target::join`](crate::Target::join)) fill the places
        /// that its subscription leaves. The connection does not get the topics beyond the limit,
        /// and the hub logs a warning.
        pub fn max_topics(topics: usize) => settings.max_topics = topics;

        /// Limits the number of open connections of this instance, and sets the action for one
        /// connection too many. Streams [in this process](Hub::subscribe) count too. Defaults to
        /// no limit.
        pub fn max_connections(connections: usize, over: OverLimit) => settings.limits.total = Some((connections, over));

        /// Limits the number of open connections of each user, and sets the action for one
        /// connection too many. Defaults to no limit.
        ///
        /// With several instances, the hub also counts the user's connections on other instances.
        /// Other instances report connections a moment late, so connections that open at the same
        /// time may exceed the limit. Only a connection of the same instance is closed to make
        /// room.
        ///
        /// The limit applies to anonymous connections only where
        /// [`Subscription::counted_as`](crate::Subscription::counted_as) gives them a key.
        pub fn max_connections_per_user(connections: usize, over: OverLimit) => settings.limits.per_user = Some((connections, over));

        /// Limits the number of requests per second that reach the access hook. Defaults to no
        /// limit.
        ///
        /// Requests for a stream, `HEAD` requests for its head, and requests to
        /// [change topics](crate::SseLayer::allow_topic_changes) count. So do streams
        /// [in this process](Hub::subscribe) and in handlers ([`Hub::respond`]), which have no
        /// hook. The hub answers excess requests itself:
        ///
        /// - A request for a stream gets a retryable refusal. Its `retry` grows with the number of
        ///   waiting requests, to at most 48 s by default.
        /// - A request to change topics gets `503` with a `Retry-After` of that time.
        /// - [`Hub::subscribe`] returns an error.
        ///
        /// With a shared log, a request to change the topics of an unknown connection counts too,
        /// because the hub waits up to 500 ms for another instance to report that connection.
        pub fn max_connects_per_second(connects: u32) => settings.limits.per_second = Some(connects);

        /// Limits the age of a stream. The hub ends each stream at this age or up to a fifth
        /// earlier, at random. At least 1 s. Defaults to no limit.
        ///
        /// The stream delivers the events that were published before its end. The client then
        /// reconnects and misses no event. Thus connections spread over new instances, and the
        /// access hook authorizes every client again.
        pub fn max_connection_age(age: Duration) => settings.max_age = Some(age);
    }

    /// Adds a rule for topics with presence events. In the topics that it matches, the hub
    /// publishes `hub.joined` and `hub.left` when users come and go, like any other event of the
    /// topic. Defaults to no rules.
    pub fn presence_for(mut self, rule: TopicFilter) -> Self {
        self.configuration.settings.presence_rules.push(rule);
        self
    }

    setters! {
        /// Sets how long a user still counts as present after the last connection has ended. A user
        /// who reconnects within this time does not leave. Defaults to 10 s.
        ///
        /// Set it longer than [`retry`](Self::retry) and than the window of a
        /// [drain](Hub::drain). Otherwise users appear to leave during a reload or a deploy.
        ///
        /// For the same time, the hub remembers the topics that an offline user was made to
        /// [join](crate::Target::join).
        pub fn presence_grace(grace: Duration) => settings.presence_grace = grace;

        /// Sets the interval at which the hub calls [`Access::recheck`](crate::Access::recheck) for
        /// each open stream. Each call comes up to a tenth of the interval earlier, at random.
        /// Defaults to the [`heartbeat`](Self::heartbeat).
        pub fn recheck_every(interval: Duration) => settings.recheck_every = Some(interval);
    }

    /// Allows pages of another origin, for example `https://app.example`, to open streams with the
    /// cookies of their visitors. Call it once for each origin. Defaults to no other origin.
    ///
    /// Write the origin as browsers do: the scheme, the host in lower case, and the port unless it
    /// is the default of the scheme. The scheme may also be that of an application's web view or of
    /// a browser extension: `capacitor://localhost`, `tauri://localhost`, `chrome-extension://…`.
    /// `null` is invalid, because every sandboxed page of any site sends it.
    ///
    /// The hub rejects pages of all other origins with `403`. It does not reject pages of its own
    /// origin. Clients other than browsers send no origin, and are not rejected either. A CORS
    /// layer must allow the origin too.
    #[doc(alias = "allow_origin")]
    pub fn allow_cross_origin(mut self, origin: impl Into<Box<str>>) -> Self {
        if let Origins::Listed(origins) = &mut self.configuration.settings.origins {
            origins.push(origin.into());
        }
        self
    }

    /// Allows requests that name this host, for example `app.example` or `localhost:3000`, and
    /// rejects requests for other hosts with `403` before the access hook is called. Defaults to
    /// any host.
    ///
    /// Call it once for each name by which clients reach the hub. A name without a port allows
    /// every port. The hub checks both the `Host` header and the `:authority` of HTTP/2. A proxy in
    /// front must forward the client's `Host`, or the list must have the proxy's own.
    ///
    /// The list protects against DNS rebinding. A page of another site can point its own host name
    /// at this machine. The browser then takes the hub for that page's own site, which
    /// [`allow_cross_origin`](Self::allow_cross_origin) does not reject. Set the list where streams
    /// are open to clients that are not authenticated, above all in a private network or on
    /// `localhost`.
    pub fn allow_host(mut self, host: impl Into<Box<str>>) -> Self {
        self.configuration.settings.hosts.add(host.into());
        self
    }

    /// Allows pages of every origin to open streams. Use it only for streams that need no cookie:
    /// otherwise any site that a user visits can read the user's events. Not allowed by default.
    pub fn allow_any_origin(mut self) -> Self {
        self.configuration.settings.origins = Origins::Any;
        self
    }

    /// Shares the log with other instances, through a broker. Defaults to a log in this process.
    ///
    /// [`build`](Self::build) does not connect to the broker. An instance that starts while the
    /// broker is unavailable is not [ready](Hub::is_ready), and answers requests for a stream with
    /// a retryable refusal. It recovers when the broker is available.
    pub fn backplane(mut self, backplane: impl Backplane) -> Self {
        self.backplane = Some(Shared(Arc::new(backplane)));
        self
    }

    setters! {
        /// Sets the timeout for publishing to a shared log, and for queries to it. Defaults to 5 s.
        pub fn publish_timeout(timeout: Duration) => settings.publish_timeout = timeout;

        /// Sets the interval at which the hub checks that a shared log is still the one that it
        /// follows, and that new records arrive. The hub detects a silent failure within two
        /// intervals, or within one interval and a second if the interval is shorter than that.
        /// Defaults to 2 s.
        pub fn probe_interval(interval: Duration) => settings.probe_interval = interval;

        /// Sets how long another instance may send no control message before the hub treats it as
        /// dead. The connections of a dead instance no longer count. Each instance sends a control
        /// message every third of this time. Defaults to 15 s.
        #[doc(alias = "lease")]
        pub fn peer_timeout(timeout: Duration) => settings.peer_timeout = timeout;

        /// Sets how long browsers wait before they reconnect. Between 0.1 s and 1 h.
        /// Defaults to 2 s.
        ///
        /// When a shared log begins a new epoch, each open stream waits a random time before it
        /// reports the gap, at most this long and at most 5 s. Otherwise all pages would fetch
        /// their state at the same moment.
        pub fn retry(retry: Duration) => settings.retry = retry;

        /// Sets how long a stream is silent before the hub sends a heartbeat. Defaults to 15 s.
        ///
        /// A heartbeat is a comment, which page scripts do not receive. Each connection uses a time
        /// that is up to a tenth shorter, so that the heartbeats of many connections do not
        /// coincide.
        ///
        /// Two times follow from the heartbeat. The hub remembers a topic or user without events
        /// and listeners for forty heartbeats, 10 minutes by default. A quiet stream gets a fresh
        /// id after ten heartbeats.
        #[doc(alias = "channel_grace")]
        pub fn heartbeat(silence: Duration) => settings.heartbeat = silence;

        /// Sends heartbeats as `hub.live` events instead of comments, for pages that monitor their
        /// stream. Defaults to comments.
        pub fn visible_heartbeat() => settings.visible_heartbeat = true;

        /// Sets how long bytes may wait for a client without any of them moving. After that the hub
        /// ends the stream, no longer counts the connection, and cuts its socket if the hub's
        /// listener ([`Hub::io`]) carries it. Defaults to 30 s.
        ///
        /// With the hub's listener, the deadline applies to every response of the server, also to a
        /// download that its reader has paused. The streams of one HTTP/2 connection share the
        /// deadline.
        #[doc(alias = "live_window")]
        pub fn write_deadline(deadline: Duration) => settings.write_deadline = deadline;

        /// Sets how long the [`Access`](crate::Access) hook may take. After that the hub drops the
        /// hook's future, and the client gets a retryable refusal. A recheck that takes longer has
        /// failed. Defaults to 10 s.
        pub fn access_timeout(timeout: Duration) => settings.access_timeout = timeout;

        /// Sets how long [`Hub::drain`] waits for streams to end before it cuts them.
        /// Defaults to 5 s.
        pub fn drain_limit(limit: Duration) => settings.drain_limit = limit;

        /// Sets how the hub ends streams whose subscription does not set it
        /// ([`Subscription::stream_end`](crate::Subscription::stream_end)), and retryable refusals
        /// ([`Refusal::retry_later`](crate::Refusal::retry_later)), which have no subscription.
        /// Defaults to [`StreamEnd::Clean`].
        #[doc(alias = "end")]
        pub fn stream_end(end: StreamEnd) => settings.end = end;

        /// Sets the name of this instance in `hub.hello`, for debugging. Defaults to no name.
        #[doc(alias = "instance")]
        pub fn instance_name(name: impl Into<Arc<str>>) => settings.instance_name = Some(name.into());
    }

    /// Builds the hub. It needs no runtime, and does not connect to a broker.
    ///
    /// # Errors
    /// When a setting is invalid, alone or together with another one: the error names the setting.
    /// Also when the operating system returns no random bytes.
    pub fn build(self) -> Result<Hub, BuildError> {
        let Configuration { settings, .. } = &self.configuration;
        self.configuration.check()?;
        if !settings.presence_rules.is_empty() && settings.presence_grace < settings.retry {
            tracing::warn!("presence_grace is shorter than retry: every reconnect publishes hub.left and hub.joined");
        }
        let policies = self.configuration.policies();
        let shared_log = self.backplane.map(|Shared(backplane)| SharedLog::new(backplane, settings, &policies));
        let epoch =
            getrandom::u64().map_err(|_| BuildError::new("build", "the operating system returned no random bytes"))?;
        let log = Log::new(Epoch(epoch), policies, self.configuration.budgets());
        let of_shared_log: Vec<Background<Inner>> = match &shared_log {
            Some(_) => [&follow::JOB, &bus::JOB, &backfill::JOB].map(Background::new).into(),
            _ => Vec::new(),
        };
        let (sweep, recheck) = (Background::new(&sweep::JOB), Background::new(&recheck::JOB));
        let tasks = Tasks { sweep, recheck, of_shared_log };
        let inner = Arc::new(Inner::new(log, self.configuration.settings, tasks, shared_log));
        // Without a runtime here, the first caller in a runtime starts the tasks.
        inner.ensure_shared_log();
        Ok(Hub { inner })
    }
}
