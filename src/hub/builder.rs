//! The builder of a hub, with one method for each setting.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::inner::Tasks;
use super::{Hub, Inner};
use crate::backplane::Backplane;
use crate::hub::cluster::{backfill, bus, follow, run_ends, runs, shared_log::SharedLog};
use crate::hub::config::configuration::Configuration;
use crate::hub::config::limits::OverLimit;
use crate::hub::config::origins::Origins;
use crate::hub::tasks::background::{Background, Job};
use crate::hub::upkeep::{recheck, sweep};
use crate::log::{Log, Policies};
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
/// duration is from 10 ms to one day, and every number is at least 1, unless its method says
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

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
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
    /// Sets the retention of the topics that the filter matches. If the filters of several calls
    /// match a topic, the first of these calls counts. Without this call,
    /// [`topic_retention`](Self::topic_retention) applies to every topic.
    pub fn retention_for(mut self, rule: TopicFilter, retention: Retention) -> Self {
        self.configuration.rules.push((rule, retention));
        self
    }

    setters! {
        /// Sets the retention of the topics that no [`retention_for`](Self::retention_for) matches,
        /// and of the events to everyone. Defaults to [`Retention::replay`].
        #[doc(alias = "everyone_retention")]
        pub fn topic_retention(retention: Retention) => topics = retention;

        /// Sets the retention of the events to each user. Defaults to [`Retention::replay`] with at
        /// most 256 events and 256 KiB for each user.
        pub fn user_retention(retention: Retention) => users = retention;

        /// Limits the memory of all retained events together, without current values, in bytes. At
        /// least [`max_payload`](Self::max_payload). Defaults to 64 MiB.
        ///
        /// The hub counts an event as its bytes on the wire plus 200, for each topic and user that
        /// it is sent to. With a [`backplane`](Self::backplane), an event of a topic or user that
        /// has had no listener on this instance for a minute or more counts 32 bytes, except with
        /// [`Retention::latest_per_key`]. A topic or user counts as its name plus 440 while the hub
        /// retains events for it. A topic or user without events and without connections may still
        /// count for forty [heartbeats](Self::heartbeat), 10 minutes by default.
        ///
        /// Over the budget, the hub first forgets topics and users without retained events and
        /// without connections. Then it drops the oldest events. It never drops the newest event of
        /// the log.
        ///
        /// Beside this budget, the hub uses up to 7 MiB to remember, for forgotten topics and
        /// users, the position up to which it has dropped events. A topic or user with connections
        /// and without retained events does not count.
        pub fn retention_budget(bytes: usize) => ring_bytes = bytes;

        /// Limits the memory of all current values together, in bytes. At least
        /// [`max_payload`](Self::max_payload). Defaults to 64 MiB.
        ///
        /// A current value is the newest event of a key, where [`Retention::latest_per_key`]
        /// applies. Over the budget, the hub drops the oldest values, but never the newest event of
        /// the log.
        ///
        /// The hub counts a value as its key and its bytes on the wire plus 290. A topic or user
        /// with values counts as 330 more, and as its name plus 440 unless the
        /// [`retention_budget`](Self::retention_budget) counts it.
        pub fn keyed_budget(bytes: usize) => keyed_bytes = bytes;

        /// Limits the size of an event, in bytes on the wire without its id. From 16 bytes to 16
        /// MiB. Defaults to 512 KiB.
        ///
        /// Publishing a larger event fails
        /// ([`PublishError::is_too_large`](crate::PublishError::is_too_large)).
        pub fn max_payload(bytes: usize) => settings.framing.max_payload = bytes;

        /// Limits the number of topics of one connection. Defaults to 128.
        ///
        /// The hub rejects the request for a stream if its subscription has more topics. A new
        /// connection also gets the topics that the application made its user join
        /// ([`Target::join`](crate::Target::join)), as far as the limit allows. If it cannot get
        /// all of them, the hub logs a warning.
        pub fn max_topics(topics: usize) => settings.max_topics = topics;

        /// Limits the number of open connections of this instance, and sets the action when a new
        /// connection would exceed the limit. Streams [in this process](Hub::subscribe) count too.
        /// Defaults to no limit.
        ///
        /// The limit is for all [scopes](crate::Scope) together. With [`OverLimit::CloseOldest`], a
        /// new connection of one scope may end a stream of another. With [`OverLimit::Refuse`], one
        /// scope may take all connections. Set
        /// [`max_connections_per_scope`](Self::max_connections_per_scope) too, so that one tenant
        /// cannot displace the others.
        pub fn max_connections(connections: usize, over: OverLimit) => settings.limits.total = Some((connections, over));

        /// Limits the number of open connections of each user of each [scope](crate::Scope), and
        /// sets the action when a new connection would exceed the limit. Defaults to no limit.
        ///
        /// With several instances, the hub also counts the user's connections on other instances.
        /// Other instances report connections a moment late, so connections that open at the same
        /// time may exceed the limit. [`OverLimit::CloseOldest`] closes only a connection of the
        /// instance on which the new connection opens.
        ///
        /// The limit applies to anonymous connections only where
        /// [`Subscription::counted_as`](crate::Subscription::counted_as) gives them a key.
        pub fn max_connections_per_user(connections: usize, over: OverLimit) => settings.limits.per_user = Some((connections, over));

        /// Limits the number of open connections of each [scope](crate::Scope) on this instance,
        /// and sets the action when a new connection would exceed the limit. The limit does not
        /// apply to connections without a scope. Defaults to no limit.
        ///
        /// ```
        /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
        /// use tower_sse::{Hub, OverLimit, Subscription};
        ///
        /// let plans = Hub::builder().max_connections_per_scope(1, OverLimit::Refuse);
        /// let hub = plans.max_connections_of_scope("acme", 1_000).build()?;
        /// let open = |scope: &str| hub.scope(scope).subscribe(Subscription::anonymous(), None);
        /// let pages = [open("acme")?, open("acme")?, open("globex")?];
        /// assert!(open("globex").unwrap_err().is_over_limit());
        /// # drop(pages);
        /// # Ok(()) }
        /// ```
        pub fn max_connections_per_scope(connections: usize, over: OverLimit) => settings.limits.per_scope = Some((connections, over));

        /// Limits the number of requests per second that reach the access hook. Defaults to no
        /// limit.
        ///
        /// The limit counts requests for a stream, `HEAD` requests for the path of a stream, and
        /// requests to [change topics](crate::SseLayer::allow_topic_changes). It also counts
        /// streams [in this process](Hub::subscribe) and in handlers ([`Hub::respond`]), which have
        /// no hook. The hub answers excess requests itself:
        ///
        /// - A request for a stream gets a retryable refusal. Its `retry` grows with the number of
        ///   requests that are already waiting to retry, to at most 48 s by default.
        /// - A request to change topics gets `503`. Its `Retry-After` grows in the same way, to at
        ///   most 32 s by default.
        /// - [`Hub::subscribe`] returns an error.
        ///
        /// Without a shared log, a request to change the topics of an unknown connection does not
        /// count. With a shared log it counts, because the hub waits up to 500 ms for another
        /// instance to report that connection.
        pub fn max_connects_per_second(connects: u32) => settings.limits.per_second = Some(connects);

        /// Limits the age of a stream. The hub ends each stream at this age or up to a fifth
        /// earlier, at random. At least 1 s, with no maximum. Defaults to no limit.
        ///
        /// The stream first delivers the events that were published before its end. The client then
        /// reconnects and resumes. So connections spread over new instances, and the access hook
        /// authorizes every client again.
        pub fn max_connection_age(age: Duration) => settings.max_age = Some(age);
    }

    /// Limits the number of open connections of one [scope](crate::Scope) on this instance, in
    /// place of [`max_connections_per_scope`](Self::max_connections_per_scope). The action over the
    /// limit is that of the limit for all scopes, or [`OverLimit::Refuse`] without such a limit.
    /// Call this method once for each scope that has a different limit. Defaults to none.
    pub fn max_connections_of_scope(mut self, scope: impl fmt::Display, connections: usize) -> Self {
        let limits = &mut self.configuration.settings.limits;
        limits.of_scope.insert(scope.to_string().into(), connections);
        self
    }

    setters! {
        /// Rejects subscriptions without a [scope](crate::Scope), for an application in which each
        /// stream belongs to a tenant. An access hook that forgets the scope is then an error that
        /// the first request shows: the request gets `400`, and a log event names the cause.
        /// Without this setting, the stream would receive the events without a scope.
        ///
        /// Targets and runs without a scope are errors too: `hub.topic("news")`, `hub.everyone()`.
        /// [`Hub::all_scopes`] stays valid. Defaults to subscriptions with and without a scope.
        ///
        /// Each instance and each [publisher](Self::publisher) needs this setting.
        /// [`Publisher::new`](crate::Publisher::new) does not have it: an event that such a
        /// publisher publishes without a scope reaches no connection. Instances compare the
        /// setting, and log a warning if another instance has another value.
        ///
        /// ```
        /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
        /// use tower_sse::{Event, Hub, Subscription};
        ///
        /// let hub = Hub::builder().require_scope().build()?;
        /// assert!(hub.subscribe(Subscription::for_user("ada"), None).is_err());
        /// assert!(hub.user("ada").publish(Event::unnamed("hello")).await.is_err());
        /// let page = hub.subscribe(Subscription::for_user("ada").in_scope("acme"), None)?;
        /// # drop(page);
        /// # Ok(()) }
        /// ```
        pub fn require_scope() => settings.requires_scope = true;
    }

    /// Turns on presence events for the topics that the filter matches. In such a topic, the hub
    /// publishes `hub.joined` when a user gets a first connection with the topic. It publishes
    /// `hub.left` when the [`presence_grace`](Self::presence_grace) after the user's last such
    /// connection is over. Clients receive these events like any other event of the topic. Several
    /// calls add up. Defaults to no topics.
    pub fn presence_for(mut self, rule: TopicFilter) -> Self {
        self.configuration.settings.presence_rules.push(rule);
        self
    }

    setters! {
        /// Sets how long a user still counts as present after the user's last connection has ended.
        /// A user who reconnects within this time does not leave. Defaults to 10 s.
        ///
        /// Set this time longer than [`retry`](Self::retry) and than the window of a
        /// [drain](Hub::drain). Otherwise users appear to leave during a reload or a deploy.
        ///
        /// For the same time, the hub remembers the topics that an offline user was made to
        /// [join](crate::Target::join).
        pub fn presence_grace(grace: Duration) => settings.presence_grace = grace;

        /// Sets the interval at which the hub calls [`Access::recheck`](crate::Access::recheck) for
        /// each open stream. The hub shortens each interval by up to a tenth, at random. Defaults
        /// to the [`heartbeat`](Self::heartbeat).
        pub fn recheck_every(interval: Duration) => settings.recheck_every = Some(interval);
    }

    /// Allows pages of another origin, for example `https://app.example`, to open streams with the
    /// cookies of their visitors. Call this method once for each origin. Defaults to no other
    /// origin.
    ///
    /// Write the origin as browsers do: the scheme, the host in lower case, and the port unless it
    /// is the default of the scheme. The scheme may also be that of an application's web view or of
    /// a browser extension: `capacitor://localhost`, `tauri://localhost`, `chrome-extension://…`.
    /// `null` is invalid, because the sandboxed pages of every site send it.
    ///
    /// The hub rejects requests from pages of all other origins with `403`. It accepts requests
    /// from pages of its own origin, and requests without an origin, which clients other than
    /// browsers send. The page can read the stream only if a CORS layer of the application allows
    /// the origin too.
    #[doc(alias = "allow_origin")]
    pub fn allow_cross_origin(mut self, origin: impl Into<Box<str>>) -> Self {
        if let Origins::Listed(origins) = &mut self.configuration.settings.origins {
            origins.push(origin.into());
        }
        self
    }

    /// Allows requests that name this host, for example `app.example` or `localhost:3000`. The hub
    /// then rejects requests for hosts that are not on the list with `403`, before it calls the
    /// access hook. Defaults to any host.
    ///
    /// Call this method once for each host name by which clients reach the hub. A name without a
    /// port allows every port. The hub checks both the `Host` header and the authority of the URI
    /// (`:authority` in HTTP/2). Behind a proxy, list the host name that the proxy sends.
    ///
    /// The list protects against DNS rebinding: a page of another site lets its own host name point
    /// to this machine. The browser then treats the hub as the page's own origin, so the check of
    /// the origin does not reject the page. Set the list where clients that are not authenticated
    /// can open streams, above all in a private network or on `localhost`.
    pub fn allow_host(mut self, host: impl Into<Box<str>>) -> Self {
        self.configuration.settings.hosts.add(host.into());
        self
    }

    /// Allows pages of every origin to open streams. Use it only for streams that need no cookie.
    /// Otherwise any site that a user visits can read the user's events. By default, only pages of
    /// the hub's own origin are allowed.
    pub fn allow_any_origin(mut self) -> Self {
        self.configuration.settings.origins = Origins::Any;
        self
    }

    /// Shares the log with other instances, through a broker. Defaults to a log in this process.
    ///
    /// [`build`](Self::build) does not wait for the broker. An instance that starts while the
    /// broker is unavailable is not [ready](Hub::is_ready), and answers requests for a stream with
    /// a retryable refusal. It recovers when the broker is available.
    pub fn backplane(mut self, backplane: impl Backplane) -> Self {
        self.backplane = Some(Shared(Arc::new(backplane)));
        self
    }

    setters! {
        /// Sets how long readers can read a [run](crate::Run) after its end. Afterwards, the hub
        /// forgets the run, and a request with a cursor of it receives `404`. At least 10 ms and at
        /// most one day. Defaults to 10 minutes.
        ///
        /// An application keeps results that users need later in its own database.
        pub fn run_keep_for(time: Duration) => settings.runs.keep_for = time;

        /// Limits the size of the events of one [run](crate::Run), in bytes as a stream writes
        /// them. Beyond the limit, the *writer* receives an error
        /// ([`RunError::is_over_limit`](crate::RunError::is_over_limit)). Readers never lose an
        /// event to this limit. Defaults to 8 MiB.
        ///
        /// An instance has the events of each run that it writes or reads in memory, with about 100
        /// bytes more for each event.
        pub fn run_max_bytes(bytes: usize) => settings.runs.bytes = bytes;

        /// Limits the number of events of one [run](crate::Run), like
        /// [`run_max_bytes`](Self::run_max_bytes). Defaults to 100,000.
        pub fn run_max_events(events: usize) => settings.runs.events = events;
    }

    setters! {
        /// Sets the timeout for publishing to a shared log, and for queries to it. Defaults to 5 s.
        pub fn publish_timeout(timeout: Duration) => settings.publish_timeout = timeout;

        /// Sets the interval at which the hub checks that the shared log is still the log that it
        /// follows, and that new records arrive. The hub detects a broker that stops answering
        /// within two intervals, or within one interval and one second if the interval is shorter
        /// than one second. Defaults to 2 s.
        pub fn probe_interval(interval: Duration) => settings.probe_interval = interval;

        /// Sets the time after which the hub treats another instance as dead if it receives no
        /// control message from that instance. The connections of a dead instance no longer count.
        /// Each instance sends a control message every third of this time. Defaults to 15 s.
        #[doc(alias = "lease")]
        pub fn peer_timeout(timeout: Duration) => settings.peer_timeout = timeout;

        /// Sets how long browsers wait before they reconnect. From 0.1 s to 1 h. Defaults to 2 s.
        ///
        /// When a shared log begins a new epoch, each open stream waits a random time before it
        /// reports the gap: at most this time, and never more than 5 s. Otherwise all pages would
        /// fetch their state at the same moment.
        pub fn retry(retry: Duration) => settings.retry = retry;

        /// Sets how long a stream is silent before the hub sends a heartbeat. Defaults to 15 s.
        ///
        /// A heartbeat is a comment, which page scripts do not receive. Each connection uses a time
        /// that is up to a tenth shorter, so that the heartbeats of many connections do not
        /// coincide. A [bare](crate::Subscription::bare) stream has a heartbeat of at most 30 s.
        ///
        /// Two times follow from the heartbeat. The hub remembers a topic or user without retained
        /// events and without connections for at most forty heartbeats, 10 minutes by default. A
        /// quiet stream gets a fresh id after about ten heartbeats.
        #[doc(alias = "channel_grace")]
        pub fn heartbeat(silence: Duration) => settings.heartbeat = silence;

        /// Sends heartbeats as `hub.live` events instead of comments, for pages that monitor their
        /// stream. A [bare](crate::Subscription::bare) stream still sends comments. Defaults to
        /// comments.
        pub fn visible_heartbeat() => settings.visible_heartbeat = true;

        /// Sets how long a client may take no bytes while bytes wait for it. After this time, the
        /// hub ends the stream and no longer counts the connection. It also closes the socket, if
        /// it knows the socket from its listener or from [`Hub::io`]. Defaults to 30 s. This time
        /// is also the window of [`Retention::live`].
        ///
        /// With the hub's listener or [`Hub::io`], the deadline applies to every response of the
        /// server, for example also to a download that a client has paused. The streams of one
        /// HTTP/2 connection share the deadline.
        #[doc(alias = "live_window")]
        pub fn write_deadline(deadline: Duration) => settings.write_deadline = deadline;

        /// Sets how long the [`Access`](crate::Access) hook may take. After this time, the hub
        /// drops the hook's future, and the client gets a retryable refusal. A recheck that takes
        /// longer fails. Defaults to 10 s.
        pub fn access_timeout(timeout: Duration) => settings.access_timeout = timeout;

        /// Sets how long [`Hub::drain`] waits for streams to end before it cuts their sockets.
        /// Defaults to 5 s.
        pub fn drain_limit(limit: Duration) => settings.drain_limit = limit;

        /// Sets whether the hub ends a stream cleanly or with an error. A subscription can set its
        /// own end ([`Subscription::stream_end`](crate::Subscription::stream_end)). The setting
        /// also applies to retryable refusals
        /// ([`Refusal::retry_later`](crate::Refusal::retry_later)). It does not apply to
        /// [bare](crate::Subscription::bare) streams. Defaults to [`StreamEnd::Clean`].
        #[doc(alias = "end")]
        pub fn stream_end(end: StreamEnd) => settings.end = end;

        /// Sets the name of this instance in `hub.hello`, for debugging. Defaults to no name.
        #[doc(alias = "instance")]
        pub fn instance_name(name: impl Into<Arc<str>>) => settings.instance_name = Some(name.into());
    }

    /// Builds the hub. This method needs no runtime, and does not wait for a broker.
    ///
    /// # Errors
    /// Returns an error if a setting is invalid, alone or together with another setting. The error
    /// names the setting. Also returns an error if the operating system returns no random bytes.
    pub fn build(self) -> Result<Hub, BuildError> {
        let Configuration { settings, .. } = &self.configuration;
        self.configuration.check()?;
        if !settings.presence_rules.is_empty() && settings.presence_grace < settings.retry {
            tracing::warn!(name: "sse.settings.short_grace", "presence_grace is shorter than retry: a user leaves before a browser reconnects");
        }
        let epoch =
            getrandom::u64().map_err(|_| BuildError::new("build", "the operating system returned no random bytes"))?;
        let policies = self.configuration.policies();
        let shared_log = self.backplane.map(|Shared(backplane)| SharedLog::new(backplane, settings, &policies));
        let jobs: &[_] = match &shared_log {
            Some(_) => &[&follow::JOB, &bus::JOB, &backfill::JOB, &runs::JOB, &run_ends::JOB],
            None => &[],
        };
        Ok(assemble(self.configuration, policies, shared_log, Epoch(epoch), jobs))
    }
}

impl Hub {
    /// Builds the hub that writes the runs of a publisher. It does not follow the log.
    pub(super) fn for_runs_only(configuration: Configuration, backplane: Arc<dyn Backplane>) -> Self {
        let policies = configuration.policies();
        let shared_log = SharedLog::new(backplane, &configuration.settings, &policies).for_runs_only();
        // The log of this hub stays empty, so no client ever sees its epoch.
        let epoch = Epoch(fastrand::u64(..));
        assemble(configuration, policies, Some(shared_log), epoch, &[&bus::JOB, &runs::JOB, &run_ends::JOB])
    }
}

fn assemble(
    configuration: Configuration,
    policies: Policies,
    shared_log: Option<SharedLog>,
    epoch: Epoch,
    jobs: &[&'static Job<Inner>],
) -> Hub {
    let log = Log::new(epoch, policies, configuration.budgets(shared_log.is_some()));
    let (sweep, recheck) = (Background::new(&sweep::JOB), Background::new(&recheck::JOB));
    let of_shared_log = jobs.iter().map(|job| Background::new(job)).collect();
    let tasks = Tasks { sweep, recheck, of_shared_log };
    let inner = Arc::new(Inner::new(log, configuration.settings, tasks, shared_log));
    // If no runtime is running here, the first later call of the hub in a runtime starts the tasks.
    inner.ensure_shared_log();
    Hub { inner }
}
