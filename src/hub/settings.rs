//! What can be set, its defaults, and what makes no sense.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use super::Hub;
use crate::error::BuildError;
use crate::log::{Budgets, Policies, millis};
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
            },
            rules: Vec::new(),
            topics: Retention::replay(),
            users: Retention::replay().count(256).bytes(MIB / 4),
            everyone: Retention::replay(),
            live_window: None,
            ring_bytes: 64 * MIB,
            keyed_bytes: 64 * MIB,
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
        let window = self.live_window.unwrap_or(self.settings.write_deadline);
        let resolve = |retention: Retention| retention.with_live_window(window);
        let policies = Policies::new(
            self.rules.into_iter().map(|(rule, retention)| (rule, resolve(retention))).collect(),
            resolve(self.topics),
            resolve(self.users),
            resolve(self.everyone),
            resolve(Retention::live()),
        );
        let budgets = Budgets {
            ring_bytes: self.ring_bytes,
            keyed_bytes: self.keyed_bytes,
            grace: millis(self.settings.channel_grace),
        };
        Hub::start(self.settings, policies, budgets)
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
        ] {
            if count == 0 {
                return refuse(setting, "zero allows nothing");
            }
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
    }
}
