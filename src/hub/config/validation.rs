//! Rejects settings that are invalid, alone or together with another setting.

use std::time::Duration;

use super::configuration::Configuration;
use super::settings::{MIB, SECOND};
use crate::types::{BuildError, ScopeName};
use crate::wire::RETRY_RANGE;

impl Configuration {
    /// Returns an error with the name of the first invalid setting.
    pub(in crate::hub) fn check(&self) -> Result<(), BuildError> {
        let settings = &self.settings;
        let invalid = |setting, problem| Err(BuildError::new(setting, problem));
        let retentions = [("topic_retention", &self.topics), ("user_retention", &self.users)];
        let rules = self.rules.iter().map(|(_, retention)| ("retention_for", retention));
        for (setting, retention) in retentions.into_iter().chain(rules) {
            if let Some(problem) = retention.problem() {
                return invalid(setting, problem);
            }
        }
        for (setting, duration) in [
            ("heartbeat", settings.heartbeat),
            ("write_deadline", settings.write_deadline),
            ("access_timeout", settings.access_timeout),
            ("drain_limit", settings.drain_limit),
            ("presence_grace", settings.presence_grace),
            ("publish_timeout", settings.publish_timeout),
            ("probe_interval", settings.probe_interval),
            ("peer_timeout", settings.peer_timeout),
            ("recheck_every", settings.recheck_interval()),
            ("run_keep_for", settings.runs.keep_for),
        ] {
            if duration < Duration::from_millis(10) {
                return invalid(setting, "must be at least 10 ms");
            }
            if duration > SECOND * 86_400 {
                return invalid(setting, "must be at most one day");
            }
        }
        for (setting, count) in [
            ("max_topics", settings.max_topics),
            ("retention_budget", self.ring_bytes),
            ("keyed_budget", self.keyed_bytes),
            ("run_max_bytes", settings.runs.bytes),
            ("run_max_events", settings.runs.events),
            ("max_connections", settings.limits.total.map_or(1, |(limit, _)| limit)),
            ("max_connections_per_user", settings.limits.per_user.map_or(1, |(limit, _)| limit)),
            ("max_connections_per_scope", settings.limits.per_scope.map_or(1, |(limit, _)| limit)),
            ("max_connections_of_scope", settings.limits.of_scope.values().copied().min().unwrap_or(1)),
            ("max_connects_per_second", settings.limits.per_second.unwrap_or(1) as usize),
        ] {
            if count == 0 {
                return invalid(setting, "must be at least 1");
            }
        }
        if settings.limits.of_scope.keys().any(|scope| ScopeName::named(scope).is_err()) {
            return invalid("max_connections_of_scope", "must have the name of a scope");
        }
        if settings.max_age.is_some_and(|age| age < SECOND) {
            return invalid("max_connection_age", "must be at least 1 s");
        }
        if !settings.origins.are_origins() {
            return invalid(
                "allow_cross_origin",
                "must be an origin like `https://app.example`, in lower case and without a path",
            );
        }
        if !settings.hosts.are_hosts() {
            return invalid("allow_host", "must be a host like `app.example` or `localhost:3000`, in lower case");
        }
        let payload = settings.framing.max_payload;
        if payload < 16 {
            return invalid("max_payload", "must be at least 16 bytes");
        }
        if payload > 16 * MIB {
            return invalid("max_payload", "must be at most 16 MiB");
        }
        if payload > self.ring_bytes {
            return invalid(
                "retention_budget",
                "must be at least `max_payload`, or the largest event could not be delivered",
            );
        }
        if payload > self.keyed_bytes {
            return invalid(
                "keyed_budget",
                "must be at least `max_payload`, or the largest event could not be delivered",
            );
        }
        if !RETRY_RANGE.contains(&settings.retry) {
            return invalid("retry", "must be between 0.1 s and 1 h");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::{HubBuilder, OverLimit};
    use crate::types::{Retention, TopicFilter};

    fn invalid_setting(builder: HubBuilder) -> &'static str {
        builder.build().unwrap_err().setting()
    }

    #[test]
    fn build_reports_the_name_of_an_invalid_setting() {
        let new = HubBuilder::default;
        assert!(new().build().is_ok());
        assert_eq!(invalid_setting(new().heartbeat(Duration::ZERO)), "heartbeat");
        assert_eq!(invalid_setting(new().write_deadline(Duration::ZERO)), "write_deadline");
        assert_eq!(invalid_setting(new().write_deadline(Duration::MAX)), "write_deadline");
        assert_eq!(invalid_setting(new().access_timeout(Duration::ZERO)), "access_timeout");
        assert_eq!(invalid_setting(new().drain_limit(Duration::ZERO)), "drain_limit");
        assert_eq!(invalid_setting(new().max_payload(0)), "max_payload");
        assert_eq!(invalid_setting(new().max_payload(usize::MAX)), "max_payload");
        assert_eq!(invalid_setting(new().max_topics(0)), "max_topics");
        assert_eq!(invalid_setting(new().retry(Duration::ZERO)), "retry");
        assert_eq!(invalid_setting(new().retention_budget(1000)), "retention_budget");
        assert_eq!(invalid_setting(new().keyed_budget(1000)), "keyed_budget");
        assert_eq!(invalid_setting(new().topic_retention(Retention::replay().count(0))), "topic_retention");
        assert_eq!(invalid_setting(new().user_retention(Retention::replay().bytes(0))), "user_retention");
        let rule = |retention| new().retention_for(TopicFilter::any(), retention);
        assert_eq!(invalid_setting(rule(Retention::latest_per_key().count(0))), "retention_for");
        assert_eq!(invalid_setting(rule(Retention::replay().age(Duration::ZERO))), "retention_for");
        assert_eq!(invalid_setting(new().max_connections(0, OverLimit::Refuse)), "max_connections");
        assert_eq!(
            invalid_setting(new().max_connections_per_user(0, OverLimit::CloseOldest)),
            "max_connections_per_user"
        );
        assert_eq!(invalid_setting(new().max_connects_per_second(0)), "max_connects_per_second");
        assert_eq!(invalid_setting(new().max_connection_age(Duration::ZERO)), "max_connection_age");
        assert_eq!(invalid_setting(new().presence_grace(Duration::ZERO)), "presence_grace");
        assert_eq!(invalid_setting(new().recheck_every(Duration::ZERO)), "recheck_every");
        assert!(new().allow_cross_origin("https://app.example").build().is_ok());
        assert_eq!(invalid_setting(new().allow_cross_origin("null")), "allow_cross_origin");
        assert_eq!(invalid_setting(new().allow_host("https://app.example")), "allow_host");
    }
}
