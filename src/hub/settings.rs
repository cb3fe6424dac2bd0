//! What can be set, its defaults, and what makes no sense.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use super::Hub;
use super::limits::{Limits, OverLimit};
#[cfg(feature = "json")]
use super::publisher::Publisher;
#[cfg(feature = "json")]
use super::remote::Remote;
#[cfg(feature = "json")]
use crate::backplane::Backplane;
use crate::error::BuildError;
use crate::log::{Budgets, Millis, Policies, millis};
use crate::retention::{Retention, TopicRule};
use crate::subscription::End;
use crate::wire::Framing;

/// A hub in the making: [`Hub::builder`]. One method for each setting; [`build`](Self::build) refuses what makes no
/// sense and names the setting.
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until `build`"]
pub struct HubBuilder {
    settings: Settings,
    rules: Vec<(TopicRule, Retention)>,
    topics: Retention,
    users: Retention,
    everyone: Retention,
    live_window: Option<Duration>,
    ring_bytes: usize,
    keyed_bytes: usize,
    #[cfg(feature = "json")]
    backplane: Option<Shared>,
}

/// The log that is shared.
#[cfg(feature = "json")]
#[derive(Clone)]
struct Shared(Arc<dyn Backplane>);

#[cfg(feature = "json")]
impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0.describe())
    }
}

/// What the running hub looks up.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) framing: Framing,
    pub(crate) max_targets: usize,
    pub(crate) max_topics: usize,
    pub(crate) retry: Duration,
    pub(crate) heartbeat: Duration,
    pub(crate) visible_heartbeat: bool,
    pub(crate) write_deadline: Duration,
    pub(crate) access_timeout: Duration,
    pub(crate) expiry_notice: Duration,
    pub(crate) drain_limit: Duration,
    pub(crate) channel_grace: Duration,
    pub(crate) end: End,
    pub(crate) instance: Option<Arc<str>>,
    pub(crate) limits: Limits,
    pub(crate) max_age: Option<Duration>,
    pub(crate) presence_rules: Vec<TopicRule>,
    pub(crate) presence_grace: Duration,
    pub(crate) recheck_every: Option<Duration>,
    pub(crate) max_rechecks: usize,
    pub(crate) max_tickets: usize,
    pub(crate) lifecycle_capacity: usize,
    pub(crate) origins: Origins,
    pub(crate) publish_timeout: Duration,
    pub(crate) probe_interval: Duration,
    pub(crate) lease: Duration,
}

/// Whose pages may open streams beside the site's own.
#[derive(Clone, Debug)]
pub(crate) enum Origins {
    Any,
    /// As browsers write them: `https://app.example`.
    Listed(Vec<Box<str>>),
}

impl Settings {
    pub(super) fn recheck_interval(&self) -> Duration {
        self.recheck_every.unwrap_or(self.heartbeat)
    }

    /// When a stream that opens now is to be ended, in milliseconds from now: from 80 to 100 % of what is set.
    pub(super) fn old_age(&self) -> Option<Millis> {
        let age = millis(self.max_age?);
        Some(age - fastrand::u64(0..=age / 5))
    }
}

const SECOND: Duration = Duration::from_secs(1);
const MIB: usize = 1 << 20;

impl Default for HubBuilder {
    fn default() -> Self {
        Self {
            settings: Settings {
                framing: Framing { max_event_name: 128, max_payload: MIB / 2, retry: SECOND / 10..=SECOND * 3600 },
                max_targets: 128,
                max_topics: 128,
                retry: SECOND * 2,
                heartbeat: SECOND * 15,
                visible_heartbeat: false,
                write_deadline: SECOND * 30,
                access_timeout: SECOND * 10,
                expiry_notice: SECOND * 30,
                drain_limit: SECOND * 5,
                channel_grace: SECOND * 600,
                end: End::Clean,
                instance: None,
                limits: Limits::default(),
                max_age: None,
                presence_rules: Vec::new(),
                presence_grace: SECOND * 10,
                recheck_every: None,
                max_rechecks: 64,
                max_tickets: 65_536,
                lifecycle_capacity: 1024,
                origins: Origins::Listed(Vec::new()),
                publish_timeout: SECOND * 5,
                probe_interval: SECOND * 2,
                lease: SECOND * 15,
            },
            rules: Vec::new(),
            topics: Retention::replay(),
            users: Retention::replay().count(256).bytes(MIB / 4),
            everyone: Retention::replay(),
            live_window: None,
            ring_bytes: 64 * MIB,
            keyed_bytes: 64 * MIB,
            #[cfg(feature = "json")]
            backplane: None,
        }
    }
}

impl HubBuilder {
    /// Sets what is kept for the topics that a rule matches. The first matching rule wins; a topic has the same
    /// retention for ever. Defaults to no rules.
    pub fn retention_for(mut self, rule: TopicRule, retention: Retention) -> Self {
        self.rules.push((rule, retention));
        self
    }

    /// Sets what is kept for topics that no rule matches. Defaults to [`Retention::replay`].
    pub fn topic_retention(mut self, retention: Retention) -> Self {
        self.topics = retention;
        self
    }

    /// Sets what is kept for each user. Defaults to a [`Retention::replay`] of 256 events and 256 KiB.
    pub fn user_retention(mut self, retention: Retention) -> Self {
        self.users = retention;
        self
    }

    /// Sets what is kept of the events to everyone. Defaults to [`Retention::replay`].
    pub fn everyone_retention(mut self, retention: Retention) -> Self {
        self.everyone = retention;
        self
    }

    /// Bounds the bytes of all rings together; the oldest records of the hub are dropped first. Defaults to 64 MiB.
    pub fn retention_budget(mut self, bytes: usize) -> Self {
        self.ring_bytes = bytes;
        self
    }

    /// Bounds the bytes of all current values together; the oldest are dropped first. Defaults to 64 MiB.
    pub fn keyed_budget(mut self, bytes: usize) -> Self {
        self.keyed_bytes = bytes;
        self
    }

    /// Sets how long [`Retention::live`] keeps an event for readers that are a moment behind. Defaults to the
    /// [`write_deadline`](Self::write_deadline).
    pub fn live_window(mut self, window: Duration) -> Self {
        self.live_window = Some(window);
        self
    }

    /// Sets how long a topic or user that has nothing kept and no listener is remembered, for the sake of those who
    /// come back. At least four times the [`heartbeat`](Self::heartbeat). Defaults to 10 minutes.
    pub fn channel_grace(mut self, grace: Duration) -> Self {
        self.settings.channel_grace = grace;
        self
    }

    /// Sets the largest payload, in bytes as it stands on the wire without its id. At most 16 MiB. Defaults to 512 KiB.
    pub fn max_payload(mut self, bytes: usize) -> Self {
        self.settings.framing.max_payload = bytes;
        self
    }

    /// Sets the longest event name, in bytes. Defaults to 128.
    pub fn max_event_name(mut self, bytes: usize) -> Self {
        self.settings.framing.max_event_name = bytes;
        self
    }

    /// Sets how many targets one event may have, and how many connections it may leave out. Defaults to 128.
    pub fn max_targets(mut self, targets: usize) -> Self {
        self.settings.max_targets = targets;
        self
    }

    /// Sets how many topics one connection may have; a request for more is refused, not narrowed. Defaults to 128.
    pub fn max_topics(mut self, topics: usize) -> Self {
        self.settings.max_topics = topics;
        self
    }

    /// Bounds the connections of this instance, those in this process included, and sets what happens to one too many.
    /// At least 1. Defaults to no bound.
    pub fn max_connections(mut self, connections: usize, over: OverLimit) -> Self {
        self.settings.limits.total = Some((connections, over));
        self
    }

    /// Bounds the connections of each user, and sets what happens to one too many. At least 1. With several instances it
    /// counts those elsewhere as far as they have been told of, a moment late; only a connection of the same instance makes
    /// room. Defaults to no bound.
    pub fn max_connections_per_user(mut self, connections: usize, over: OverLimit) -> Self {
        self.settings.limits.per_user = Some((connections, over));
        self
    }

    /// Bounds how many requests for a stream are looked at in a second; who comes too fast is refused softly, before the
    /// access hook is asked, with a `retry` that grows with how many wait already, to about 30 s. At least 1. Defaults to no
    /// bound.
    pub fn max_connects_per_second(mut self, connects: u32) -> Self {
        self.settings.limits.per_second = Some(connects);
        self
    }

    /// Ends every stream at this age, at random up to a fifth earlier, as a drain does: what was published before is
    /// delivered, and the client comes back and misses nothing. It spreads connections over new instances, and credentials
    /// are looked at anew. At least a second. Defaults to no bound.
    pub fn max_connection_age(mut self, age: Duration) -> Self {
        self.settings.max_age = Some(age);
        self
    }

    /// Makes the topics that a rule matches tell who comes and goes: `hub.joined` and `hub.left`, as events of the topic
    /// like any other. Defaults to none.
    pub fn presence_for(mut self, rule: TopicRule) -> Self {
        self.settings.presence_rules.push(rule);
        self
    }

    /// Sets how long a user is taken for present after the last connection: who is back within it was never gone. Also
    /// how long what a user was made to join is remembered. Longer than [`retry`](Self::retry) and than the window of a
    /// drain, so that neither a reload nor a deploy looks like leaving. Defaults to 10 s.
    pub fn presence_grace(mut self, grace: Duration) -> Self {
        self.settings.presence_grace = grace;
        self
    }

    /// Sets how often [`Access::recheck`](crate::Access::recheck) is asked about each open stream; each time up to a tenth
    /// earlier, at random. Defaults to the [`heartbeat`](Self::heartbeat).
    pub fn recheck_every(mut self, interval: Duration) -> Self {
        self.settings.recheck_every = Some(interval);
        self
    }

    /// Sets about how many streams it is asked at the same time. At least 1. Defaults to 64.
    pub fn max_rechecks(mut self, rechecks: usize) -> Self {
        self.settings.max_rechecks = rechecks;
        self
    }

    /// Bounds the tickets that wait to be redeemed: [`Hub::ticket`]. With several instances each counts those that it made, until
    /// they are redeemed at it or their time is over. At least 1. Defaults to 65,536.
    pub fn max_tickets(mut self, tickets: usize) -> Self {
        self.settings.max_tickets = tickets;
        self
    }

    /// Sets how many events [`Hub::lifecycle`] keeps for a slow consumer. At least 1, at most a million; memory for them is
    /// taken when it is first called. Defaults to 1,024.
    pub fn lifecycle_capacity(mut self, events: usize) -> Self {
        self.settings.lifecycle_capacity = events;
        self
    }

    /// Lets pages of another origin open streams with their visitors' cookies, for example `https://app.example`: the
    /// scheme, the host, and the port if it is not the scheme's own, as browsers write it. The site's own pages always may,
    /// and so may clients that are no browsers. A CORS layer must allow it too. Defaults to none.
    pub fn allow_origin(mut self, origin: impl Into<Box<str>>) -> Self {
        if let Origins::Listed(origins) = &mut self.settings.origins {
            origins.push(origin.into());
        }
        self
    }

    /// Lets the pages of every site open streams. Only for streams that need no cookie, since any site that a user visits
    /// could read what the cookie opens. Defaults to not.
    pub fn allow_any_origin(mut self) -> Self {
        self.settings.origins = Origins::Any;
        self
    }

    /// Shares the log with other instances, through a broker. Without it the log is this process's own. `build` does not
    /// need the broker: an instance starts while it is away, is not [ready](Hub::health), refuses streams softly, and
    /// recovers. Needs the feature `json` (on by default).
    #[cfg(feature = "json")]
    pub fn backplane(mut self, backplane: impl Backplane) -> Self {
        self.backplane = Some(Shared(Arc::new(backplane)));
        self
    }

    /// Sets how long publishing to a shared log may take, and any other question to it. Defaults to 5 s.
    pub fn publish_timeout(mut self, timeout: Duration) -> Self {
        self.settings.publish_timeout = timeout;
        self
    }

    /// Sets how often a shared log is asked whether it is still the one that is followed, while nothing comes of it. What
    /// goes wrong in silence is noticed within two of these. Defaults to 2 s.
    pub fn probe_interval(mut self, interval: Duration) -> Self {
        self.settings.probe_interval = interval;
        self
    }

    /// Sets after how much silence another instance, and who is connected there, counts as gone. An instance says three
    /// times in it that it is alive. Defaults to 15 s.
    pub fn lease(mut self, lease: Duration) -> Self {
        self.settings.lease = lease;
        self
    }

    /// Sets how long browsers wait before they reconnect. Within [`retry_range`](Self::retry_range). Defaults to 2 s.
    pub fn retry(mut self, retry: Duration) -> Self {
        self.settings.retry = retry;
        self
    }

    /// Sets what every `retry` is clamped to, those of [`Event::retry`](crate::Event::retry) too. Defaults to 0.1 s to
    /// 1 h.
    pub fn retry_range(mut self, range: RangeInclusive<Duration>) -> Self {
        self.settings.framing.retry = range;
        self
    }

    /// Sets after how much silence a stream gets a sign of life: a comment, which page script does not see. Each
    /// connection takes it up to a tenth shorter, so that they do not beat together. Defaults to 15 s.
    pub fn heartbeat(mut self, silence: Duration) -> Self {
        self.settings.heartbeat = silence;
        self
    }

    /// Sends `hub.live` events instead of comments as heartbeats, for pages that watch over their stream. Defaults to
    /// comments.
    pub fn visible_heartbeat(mut self) -> Self {
        self.settings.visible_heartbeat = true;
        self
    }

    /// Sets how long a connection may take nothing while something waits for it. Defaults to 30 s.
    pub fn write_deadline(mut self, deadline: Duration) -> Self {
        self.settings.write_deadline = deadline;
        self
    }

    /// Sets how long the [`Access`](crate::Access) hook may take; after that the client is told to come back. Defaults
    /// to 10 s.
    pub fn access_timeout(mut self, timeout: Duration) -> Self {
        self.settings.access_timeout = timeout;
        self
    }

    /// Sets how long before a subscription's end `hub.expiring` is sent, at most half of its time. Defaults to 30 s.
    pub fn expiry_notice(mut self, notice: Duration) -> Self {
        self.settings.expiry_notice = notice;
        self
    }

    /// Sets how long [`Hub::drain`] waits for streams to end before it cuts them. Defaults to 5 s.
    pub fn drain_limit(mut self, limit: Duration) -> Self {
        self.settings.drain_limit = limit;
        self
    }

    /// Sets how streams end, where their subscription does not say. Defaults to [`End::Clean`].
    pub fn end(mut self, end: End) -> Self {
        self.settings.end = end;
        self
    }

    /// Names this instance in `hub.hello`, for people who debug. Defaults to no name.
    pub fn instance(mut self, name: impl Into<Arc<str>>) -> Self {
        self.settings.instance = Some(name.into());
        self
    }

    /// Builds the hub. Needs no runtime.
    ///
    /// # Errors
    /// When a setting makes no sense, alone or with another one; the error names it. Or when the operating system
    /// gives no random bytes.
    pub fn build(self) -> Result<Hub, BuildError> {
        self.check()?;
        if !self.settings.presence_rules.is_empty() && self.settings.presence_grace < self.settings.retry {
            tracing::warn!("presence_grace is shorter than retry: every reconnect will look like leaving");
        }
        let policies = self.policies();
        let budgets = Budgets {
            ring_bytes: self.ring_bytes,
            keyed_bytes: self.keyed_bytes,
            grace: millis(self.settings.channel_grace),
        };
        #[cfg(feature = "json")]
        let remote = self
            .backplane
            .map(|Shared(backplane)| Remote::new(backplane, self.settings.lease, self.settings.presence_grace));
        #[cfg(not(feature = "json"))]
        let remote = None;
        Hub::start(self.settings, policies, budgets, remote)
    }

    /// Builds what only publishes, for workers, command-line tools and cron jobs: [`Publisher`]. Of the settings count the
    /// [`backplane`](Self::backplane), which it needs, the retention, the limits of events and targets, and
    /// [`publish_timeout`](Self::publish_timeout). Instances and workers that share one function for their settings agree.
    /// Needs no runtime and no broker. Needs the feature `json` (on by default).
    ///
    /// # Errors
    /// As [`build`](Self::build); and without a backplane.
    #[cfg(feature = "json")]
    pub fn publisher(self) -> Result<Publisher, BuildError> {
        self.check()?;
        let policies = self.policies();
        let Some(Shared(backplane)) = self.backplane else {
            return Err(BuildError::new("backplane", "without one a publisher has nobody to publish to"));
        };
        Ok(Publisher::new(backplane, policies, self.settings))
    }

    fn policies(&self) -> Policies {
        let window = self.live_window.unwrap_or(self.settings.write_deadline);
        let resolve = |retention: &Retention| retention.clone().with_live_window(window);
        Policies::new(
            self.rules.iter().map(|(rule, retention)| (rule.clone(), resolve(retention))).collect(),
            resolve(&self.topics),
            resolve(&self.users),
            resolve(&self.everyone),
            resolve(&Retention::live()),
        )
    }

    fn check(&self) -> Result<(), BuildError> {
        let settings = &self.settings;
        let refuse = |setting, problem| Err(BuildError::new(setting, problem));
        let retentions = [
            ("topic_retention", &self.topics),
            ("user_retention", &self.users),
            ("everyone_retention", &self.everyone),
        ];
        let rules = self.rules.iter().map(|(_, retention)| ("retention_for", retention));
        for (setting, retention) in retentions.into_iter().chain(rules) {
            if let Some(problem) = retention.problem() {
                return refuse(setting, problem);
            }
        }
        for (setting, duration) in [
            ("heartbeat", settings.heartbeat),
            ("write_deadline", settings.write_deadline),
            ("access_timeout", settings.access_timeout),
            ("drain_limit", settings.drain_limit),
            ("live_window", self.live_window.unwrap_or(SECOND)),
            ("presence_grace", settings.presence_grace),
            ("publish_timeout", settings.publish_timeout),
            ("probe_interval", settings.probe_interval),
            ("lease", settings.lease),
            ("recheck_every", settings.recheck_interval()),
        ] {
            if duration < Duration::from_millis(10) {
                return refuse(setting, "less than 10 ms");
            }
            if duration > SECOND * 86_400 {
                return refuse(setting, "more than a day");
            }
        }
        for (setting, count) in [
            ("max_event_name", settings.framing.max_event_name),
            ("max_targets", settings.max_targets),
            ("max_topics", settings.max_topics),
            ("retention_budget", self.ring_bytes),
            ("keyed_budget", self.keyed_bytes),
            ("max_connections", settings.limits.total.map_or(1, |(limit, _)| limit)),
            ("max_connections_per_user", settings.limits.per_user.map_or(1, |(limit, _)| limit)),
            ("max_connects_per_second", settings.limits.per_second.unwrap_or(1) as usize),
            ("max_rechecks", settings.max_rechecks),
            ("max_tickets", settings.max_tickets),
            ("lifecycle_capacity", settings.lifecycle_capacity),
        ] {
            if count == 0 {
                return refuse(setting, "zero allows nothing");
            }
        }
        if settings.lifecycle_capacity > 1_000_000 {
            return refuse("lifecycle_capacity", "more than a million");
        }
        if settings.max_age.is_some_and(|age| age < SECOND) {
            return refuse("max_connection_age", "less than a second");
        }
        if let Origins::Listed(origins) = &settings.origins
            && !origins.iter().all(|origin| is_origin(origin))
        {
            return refuse(
                "allow_origin",
                "not an origin like `https://app.example`, in lower case and without a path",
            );
        }
        let payload = settings.framing.max_payload;
        if payload < 16 {
            return refuse("max_payload", "too small for any event");
        }
        if payload > 16 * MIB {
            return refuse("max_payload", "more than 16 MiB");
        }
        if payload > self.ring_bytes {
            return refuse(
                "retention_budget",
                "smaller than `max_payload`: the largest event could never be delivered",
            );
        }
        if payload > self.keyed_bytes {
            return refuse("keyed_budget", "smaller than `max_payload`: the largest event could never be delivered");
        }
        let range = &settings.framing.retry;
        if range.is_empty() {
            return refuse("retry_range", "empty");
        }
        if !range.contains(&settings.retry) {
            return refuse("retry", "outside `retry_range`");
        }
        if settings.channel_grace < settings.heartbeat * 4 {
            return refuse(
                "channel_grace",
                "less than four times the `heartbeat`: quiet streams could meet false gaps",
            );
        }
        Ok(())
    }
}

/// What a browser would send as `Origin`. `null` is none: every sandboxed page of any site has it.
fn is_origin(text: &str) -> bool {
    let Some((scheme, authority)) = text.split_once("://") else { return false };
    let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-._:[]".contains(c);
    let is_default =
        (scheme == "http" && authority.ends_with(":80")) || (scheme == "https" && authority.ends_with(":443"));
    ["http", "https"].contains(&scheme) && !authority.is_empty() && authority.chars().all(is_plain) && !is_default
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(builder: HubBuilder) -> &'static str {
        builder.build().unwrap_err().setting()
    }

    #[test]
    fn settings_that_make_no_sense_are_refused_by_name() {
        let new = HubBuilder::default;
        assert!(new().build().is_ok());
        assert_eq!(refused(new().heartbeat(Duration::ZERO)), "heartbeat");
        assert_eq!(refused(new().heartbeat(SECOND * 200)), "channel_grace");
        assert_eq!(refused(new().write_deadline(Duration::ZERO)), "write_deadline");
        assert_eq!(refused(new().write_deadline(Duration::MAX)), "write_deadline");
        assert_eq!(refused(new().live_window(Duration::ZERO)), "live_window");
        assert_eq!(refused(new().access_timeout(Duration::ZERO)), "access_timeout");
        assert_eq!(refused(new().drain_limit(Duration::ZERO)), "drain_limit");
        assert_eq!(refused(new().max_payload(0)), "max_payload");
        assert_eq!(refused(new().max_payload(usize::MAX)), "max_payload");
        assert_eq!(refused(new().max_event_name(0)), "max_event_name");
        assert_eq!(refused(new().max_targets(0)), "max_targets");
        assert_eq!(refused(new().max_topics(0)), "max_topics");
        assert_eq!(refused(new().retry(Duration::ZERO)), "retry");
        assert_eq!(refused(new().retry_range(SECOND..=Duration::ZERO)), "retry_range");
        assert_eq!(refused(new().retention_budget(1000)), "retention_budget");
        assert_eq!(refused(new().keyed_budget(1000)), "keyed_budget");
        assert_eq!(refused(new().topic_retention(Retention::replay().count(0))), "topic_retention");
        assert_eq!(refused(new().user_retention(Retention::replay().bytes(0))), "user_retention");
        assert_eq!(refused(new().everyone_retention(Retention::live().age(SECOND))), "everyone_retention");
        let rule = |retention| new().retention_for(TopicRule::any(), retention);
        assert_eq!(refused(rule(Retention::latest_per_key().count(0))), "retention_for");
        assert_eq!(refused(rule(Retention::replay().age(Duration::ZERO))), "retention_for");
        assert_eq!(refused(new().max_connections(0, OverLimit::Refuse)), "max_connections");
        assert_eq!(refused(new().max_connections_per_user(0, OverLimit::CloseOldest)), "max_connections_per_user");
        assert_eq!(refused(new().max_connects_per_second(0)), "max_connects_per_second");
        assert_eq!(refused(new().max_connection_age(Duration::ZERO)), "max_connection_age");
        assert_eq!(refused(new().presence_grace(Duration::ZERO)), "presence_grace");
        assert_eq!(refused(new().recheck_every(Duration::ZERO)), "recheck_every");
        assert_eq!(refused(new().max_rechecks(0)), "max_rechecks");
        assert_eq!(refused(new().max_tickets(0)), "max_tickets");
        assert_eq!(refused(new().lifecycle_capacity(0)), "lifecycle_capacity");
        assert_eq!(refused(new().lifecycle_capacity(usize::MAX)), "lifecycle_capacity");
    }

    #[test]
    fn an_origin_is_written_as_browsers_write_it() {
        for origin in
            ["https://app.example", "http://localhost:3000", "https://[::1]:8443", "https://xn--e1afmkfd.example"]
        {
            assert!(HubBuilder::default().allow_origin(origin).build().is_ok(), "{origin}");
        }
        for origin in [
            "",
            "null",
            "*",
            "app.example",
            "https://",
            "https://App.example",
            "https://a/",
            "https://a:443",
            "ftp://a",
        ] {
            assert_eq!(refused(HubBuilder::default().allow_origin(origin)), "allow_origin", "{origin}");
        }
    }
}
