//! The builder: one method for each setting.

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

/// Methods of the builder that set one field of the configuration.
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
/// [`Hub::builder`] returns it. [`build`](Self::build) refuses settings that make no sense, and the
/// error names the setting.
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

/// The log that is shared.
#[derive(Clone)]
pub(super) struct Shared(pub(super) Arc<dyn Backplane>);

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0.describe())
    }
}

impl Hub {
    /// Starts to build a hub with the default settings. [`HubBuilder`] has an example.
    pub fn builder() -> HubBuilder {
        HubBuilder::default()
    }
}

impl HubBuilder {
    /// Sets what is kept for the topics that a rule matches. The first matching rule wins; a topic has the same
    /// retention as long as the hub lives. Defaults to no rules.
    pub fn retention_for(mut self, rule: TopicFilter, retention: Retention) -> Self {
        self.configuration.rules.push((rule, retention));
        self
    }

    setters! {
        /// Sets what is kept for topics that no rule matches, and of the events to everyone. Defaults to
        /// [`Retention::replay`].
        pub fn topic_retention(retention: Retention) => topics = retention;

        /// Sets what is kept for each user. Defaults to a [`Retention::replay`] of 256 events and
        /// 256 KiB.
        pub fn user_retention(retention: Retention) => users = retention;

        /// Bounds the memory of all rings together. Defaults to 64 MiB.
        ///
        /// The hub counts an event as its bytes on the wire plus 200, for each topic and user that
        /// it is sent to. A topic or user counts as its name plus 440 while it keeps events, and
        /// while it is remembered without any (forty [heartbeats](Self::heartbeat), 10 minutes by default). Over the
        /// budget the hub first forgets topics and users that keep nothing and have no listener,
        /// then drops the oldest events. The newest event always stays.
        ///
        /// The hub holds up to 7 MiB beside this budget, in which it remembers up to where the
        /// events of forgotten topics and users were dropped. Topics and users that have listeners
        /// and keep nothing do not count.
        pub fn retention_budget(bytes: usize) => ring_bytes = bytes;

        /// Bounds the memory of all current values together; the oldest are dropped first. Defaults
        /// to 64 MiB.
        ///
        /// The hub counts a value as its key and its bytes on the wire plus 290. A topic or user
        /// with values counts as 330 more, and as its name plus 440 unless the
        /// [`retention_budget`](Self::retention_budget) counts it.
        pub fn keyed_budget(bytes: usize) => keyed_bytes = bytes;

        /// Sets the largest payload, in bytes as it stands on the wire without its id. At most 16
        /// MiB. Defaults to 512 KiB.
        pub fn max_payload(bytes: usize) => settings.framing.max_payload = bytes;

        /// Sets how many topics one connection may have; a request for more is refused, not
        /// narrowed. Topics that the user of a new connection was made to join
        /// ([`Target::join`](crate::Target::join)) fill the places that its subscription leaves;
        /// the connection does not get the others, and the hub logs a warning. Defaults to 128.
        pub fn max_topics(topics: usize) => settings.max_topics = topics;

        /// Bounds the connections of this instance, those in this process included, and sets what
        /// happens to one too many. At least 1. Defaults to no bound.
        pub fn max_connections(connections: usize, over: OverLimit) => settings.limits.total = Some((connections, over));

        /// Bounds the connections of each user, and sets what happens to one too many. At least 1.
        /// With several instances it counts those elsewhere as far as they have been told of, a
        /// moment late; only a connection of the same instance makes room. It bounds anonymous
        /// connections only where [`Subscription::counted_as`](crate::Subscription::counted_as)
        /// gives them a key. Defaults to no bound.
        pub fn max_connections_per_user(connections: usize, over: OverLimit) => settings.limits.per_user = Some((connections, over));

        /// Bounds how many requests per second reach the access hook: for a stream, for its head
        /// (`HEAD`), and to [change topics](crate::SseLayer::allow_topic_changes). The hub answers the
        /// others before it asks the hook. A request for a stream gets a retryable refusal, whose
        /// `retry` grows with the number of those that wait, to about 30 s. A change of topics gets
        /// `503` with a `Retry-After` of that time. With a log that instances share, a change of
        /// topics of an unknown connection counts too, because the hub waits up to 500 ms for that
        /// connection. Streams [in this process](Hub::subscribe) and in handlers ([`Hub::respond`])
        /// take part. At least 1. Defaults to no bound.
        pub fn max_connects_per_second(connects: u32) => settings.limits.per_second = Some(connects);

        /// Ends every stream at this age, at random up to a fifth earlier, as a drain does: what
        /// was published before is delivered, and the client comes back and misses nothing. It
        /// spreads connections over new instances, and credentials are looked at anew. At least a
        /// second. Defaults to no bound.
        pub fn max_connection_age(age: Duration) => settings.max_age = Some(age);
    }

    /// Makes the topics that a rule matches tell who comes and goes: `hub.joined` and `hub.left`, as
    /// events of the topic like any other. Defaults to none.
    pub fn presence_for(mut self, rule: TopicFilter) -> Self {
        self.configuration.settings.presence_rules.push(rule);
        self
    }

    setters! {
        /// Sets how long a user is taken for present after the last connection: who is back within
        /// it was never gone. Also how long what a user was made to join is remembered. Longer than
        /// [`retry`](Self::retry) and than the window of a drain, so that neither a reload nor a
        /// deploy looks like leaving. Defaults to 10 s.
        pub fn presence_grace(grace: Duration) => settings.presence_grace = grace;

        /// Sets how often [`Access::recheck`](crate::Access::recheck) is asked about each open
        /// stream; each time up to a tenth earlier, at random. Defaults to the
        /// [`heartbeat`](Self::heartbeat).
        pub fn recheck_every(interval: Duration) => settings.recheck_every = Some(interval);
    }

    /// Lets pages of another origin open streams with their visitors' cookies, for example `https://app.example`: the
    /// scheme, the host, and the port if it is not the scheme's own, as browsers write it. The scheme may
    /// also be that of an application's web view or of a browser extension: `capacitor://localhost`,
    /// `tauri://localhost`, `chrome-extension://…`. `null` is refused, since every sandboxed page of any
    /// site has it. The site's own pages always may, and so may clients that are no browsers. A CORS layer
    /// must allow the origin too. Defaults to none.
    #[doc(alias = "allow_origin")]
    pub fn allow_cross_origin(mut self, origin: impl Into<Box<str>>) -> Self {
        if let Origins::Listed(origins) = &mut self.configuration.settings.origins {
            origins.push(origin.into());
        }
        self
    }

    /// Lets requests in that name this host, for example `app.example` or `localhost:3000`, and refuses all others with
    /// `403` before the access hook is asked. Call it once for each name by which clients reach the hub. A
    /// name without a port allows every port. Both the `Host` header and the `:authority` of HTTP/2 count.
    /// A proxy in front must hand on the client's `Host`, or have its own listed.
    ///
    /// This is against DNS rebinding. A page of another site can point its own name at this machine; to the browser
    /// it then asks its own site, which [`allow_cross_origin`](Self::allow_cross_origin) lets in. Set it where streams are open to
    /// clients that are not authenticated, above all in a private network or on `localhost`. Defaults to any host.
    pub fn allow_host(mut self, host: impl Into<Box<str>>) -> Self {
        self.configuration.settings.hosts.add(host.into());
        self
    }

    /// Lets the pages of every site open streams. Only for streams that need no cookie, since any site
    /// that a user visits could read what the cookie opens. Defaults to not.
    pub fn allow_any_origin(mut self) -> Self {
        self.configuration.settings.origins = Origins::Any;
        self
    }

    /// Shares the log with other instances, through a broker. Without it the log is this process's own.
    /// `build` does not need the broker: an instance starts while it is away, is not [ready](Hub::is_ready),
    /// refuses streams softly, and recovers.
    pub fn backplane(mut self, backplane: impl Backplane) -> Self {
        self.backplane = Some(Shared(Arc::new(backplane)));
        self
    }

    setters! {
        /// Sets how long publishing to a shared log may take, and any other question to it.
        /// Defaults to 5 s.
        pub fn publish_timeout(timeout: Duration) => settings.publish_timeout = timeout;

        /// Sets how often a shared log is asked whether it is still the one that is followed, while
        /// nothing comes of it. What goes wrong in silence is noticed within two of these. Defaults
        /// to 2 s.
        pub fn probe_interval(interval: Duration) => settings.probe_interval = interval;

        /// Sets after how much silence another instance, and who is connected there, counts as
        /// gone. An instance says three times in it that it is alive. Defaults to 15 s.
        #[doc(alias = "lease")]
        pub fn peer_timeout(timeout: Duration) => settings.peer_timeout = timeout;

        /// Sets how long browsers wait before they reconnect. Between
        /// 0.1 s and 1 h. Defaults to 2 s.
        ///
        /// When a shared log begins a new epoch, each open stream waits a random time before it
        /// reports that as a gap, at most this long and at most 5 s. Otherwise all pages would
        /// fetch their state at the same moment.
        pub fn retry(retry: Duration) => settings.retry = retry;

        /// Sets after how much silence a stream gets a sign of life: a comment, which page script
        /// does not see. Each connection takes it up to a tenth shorter, so that they do not beat
        /// together. Defaults to 15 s.
        pub fn heartbeat(silence: Duration) => settings.heartbeat = silence;

        /// Sends `hub.live` events instead of comments as heartbeats, for pages that watch over
        /// their stream. Defaults to comments.
        pub fn visible_heartbeat() => settings.visible_heartbeat = true;

        /// Sets how long a connection may take nothing while something waits for it. Defaults to 30
        /// s.
        pub fn write_deadline(deadline: Duration) => settings.write_deadline = deadline;

        /// Sets how long the [`Access`](crate::Access) hook may take; after that the client is told
        /// to come back. Defaults to 10 s.
        pub fn access_timeout(timeout: Duration) => settings.access_timeout = timeout;

        /// Sets how long [`Hub::drain`] waits for streams to end before it cuts them. Defaults to 5
        /// s.
        pub fn drain_limit(limit: Duration) => settings.drain_limit = limit;

        /// Sets how streams end, where their subscription does not say; and the one event of a
        /// refusal that asks the client to come back ([`Refusal::retry_later`](crate::Refusal::retry_later)),
        /// which has none. Defaults to [`StreamEnd::Clean`].
        #[doc(alias = "end")]
        pub fn stream_end(end: StreamEnd) => settings.end = end;

        /// Names this instance in `hub.hello`, for people who debug. Defaults to no name.
        #[doc(alias = "instance")]
        pub fn instance_name(name: impl Into<Arc<str>>) => settings.instance_name = Some(name.into());
    }

    /// Builds the hub. Needs no runtime.
    ///
    /// # Errors
    /// When a setting makes no sense, alone or with another one; the error names it. Or when the operating system
    /// gives no random bytes.
    pub fn build(self) -> Result<Hub, BuildError> {
        let Configuration { settings, .. } = &self.configuration;
        self.configuration.check()?;
        if !settings.presence_rules.is_empty() && settings.presence_grace < settings.retry {
            tracing::warn!("presence_grace is shorter than retry: every reconnect will look like leaving");
        }
        let policies = self.configuration.policies();
        let shared_log = self.backplane.map(|Shared(backplane)| SharedLog::new(backplane, settings, &policies));
        let epoch =
            getrandom::u64().map_err(|_| BuildError::new("build", "the operating system gives no random bytes"))?;
        let log = Log::new(Epoch(epoch), policies, self.configuration.budgets());
        let of_shared_log: Vec<Background<Inner>> = match &shared_log {
            Some(_) => [&follow::JOB, &bus::JOB, &backfill::JOB].map(Background::new).into(),
            _ => Vec::new(),
        };
        let (sweep, recheck) = (Background::new(&sweep::JOB), Background::new(&recheck::JOB));
        let tasks = Tasks { sweep, recheck, of_shared_log };
        let inner = Arc::new(Inner::new(log, self.configuration.settings, tasks, shared_log));
        // Without a runtime here, the task is started by the first caller that has one.
        inner.ensure_shared_log();
        Ok(Hub { inner })
    }
}
