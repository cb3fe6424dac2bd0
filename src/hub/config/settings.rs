//! The settings that a running hub uses, and their defaults.

use std::sync::Arc;
use std::time::Duration;

use super::limits::Limits;
use super::origins::{Hosts, Origins};
use crate::log::{Millis, millis};
use crate::types::{StreamEnd, TopicFilter};
use crate::wire::Framing;

pub(in crate::hub) const SECOND: Duration = Duration::from_secs(1);
pub(in crate::hub) const MIB: usize = 1 << 20;
/// The minimum of [`Settings::dormant_after`]. A browser reconnects after a few seconds, and a
/// phone that changes its network after less than a minute.
const DORMANT_AFTER: Duration = Duration::from_secs(60);

/// The settings of a running hub. The methods of [`HubBuilder`](crate::HubBuilder) document each
/// setting.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) framing: Framing,
    pub(crate) max_topics: usize,
    pub(crate) requires_scope: bool,
    pub(crate) retry: Duration,
    pub(crate) heartbeat: Duration,
    pub(crate) visible_heartbeat: bool,
    pub(crate) write_deadline: Duration,
    pub(crate) access_timeout: Duration,
    pub(crate) drain_limit: Duration,
    pub(crate) end: StreamEnd,
    pub(crate) instance_name: Option<Arc<str>>,
    pub(crate) limits: Limits,
    pub(crate) runs: RunLimits,
    pub(crate) max_age: Option<Duration>,
    pub(crate) presence_rules: Vec<TopicFilter>,
    pub(crate) presence_grace: Duration,
    pub(crate) recheck_every: Option<Duration>,
    pub(crate) origins: Origins,
    pub(crate) hosts: Hosts,
    pub(crate) publish_timeout: Duration,
    pub(crate) probe_interval: Duration,
    pub(crate) peer_timeout: Duration,
}

/// The limits of each run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RunLimits {
    /// The maximum size of all events of a run, in bytes as a stream writes them.
    pub(crate) bytes: usize,
    /// The maximum number of events of a run.
    pub(crate) events: usize,
    /// The time for which an ended run is kept.
    pub(crate) keep_for: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            framing: Framing { max_payload: MIB / 2 },
            max_topics: 128,
            requires_scope: false,
            retry: SECOND * 2,
            heartbeat: SECOND * 15,
            visible_heartbeat: false,
            write_deadline: SECOND * 30,
            access_timeout: SECOND * 10,
            drain_limit: SECOND * 5,
            end: StreamEnd::Clean,
            instance_name: None,
            limits: Limits::default(),
            runs: RunLimits { bytes: 8 * MIB, events: 100_000, keep_for: SECOND * 600 },
            max_age: None,
            presence_rules: Vec::new(),
            presence_grace: SECOND * 10,
            recheck_every: None,
            origins: Origins::Listed(Vec::new()),
            hosts: Hosts::default(),
            publish_timeout: SECOND * 5,
            probe_interval: SECOND * 2,
            peer_timeout: SECOND * 15,
        }
    }
}

impl Settings {
    /// Returns the interval of rechecks: `recheck_every` if it is set, otherwise the heartbeat.
    pub(in crate::hub) fn recheck_interval(&self) -> Duration {
        self.recheck_every.unwrap_or(self.heartbeat)
    }

    /// Returns the time for which the hub remembers a topic or user without retained events and
    /// without listeners, so that clients can resume. A quiet stream gets a fresh id at the first
    /// heartbeat after a quarter of this time, so this time must be many heartbeats long.
    pub(in crate::hub) fn channel_grace(&self) -> Duration {
        self.heartbeat * 40
    }

    /// Returns the time without listeners after which an instance reads the events of a topic or
    /// user only from the shared log. Within this time, a page that is reloaded or that has lost
    /// its connection resumes from the memory of the instance. A topic or user without retained
    /// events may be forgotten earlier, after [`channel_grace`](Self::channel_grace).
    pub(in crate::hub) fn dormant_after(&self) -> Duration {
        self.presence_grace.max(DORMANT_AFTER)
    }

    /// Returns the age at which a new stream will end, in milliseconds: a random 80 to 100 % of
    /// `max_age`. `None` if the age is not limited.
    pub(in crate::hub) fn old_age(&self) -> Option<Millis> {
        let age = millis(self.max_age?);
        Some(age - fastrand::u64(0..=age / 5))
    }
}
