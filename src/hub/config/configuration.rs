//! All settings of a builder before validation, and the defaults of the retention.

use super::settings::{MIB, Settings};
use crate::log::{Budgets, Policies, millis};
use crate::types::{Retention, TopicFilter};

/// The settings of a builder.
#[derive(Clone, Debug)]
pub(in crate::hub) struct Configuration {
    pub(in crate::hub) settings: Settings,
    pub(in crate::hub) rules: Vec<(TopicFilter, Retention)>,
    pub(in crate::hub) topics: Retention,
    pub(in crate::hub) users: Retention,
    pub(in crate::hub) ring_bytes: usize,
    pub(in crate::hub) keyed_bytes: usize,
}

impl Default for Configuration {
    fn default() -> Self {
        Self {
            settings: Settings::default(),
            rules: Vec::new(),
            topics: Retention::replay(),
            users: Retention::replay().count(256).bytes(MIB / 4),
            ring_bytes: 64 * MIB,
            keyed_bytes: 64 * MIB,
        }
    }
}

impl Configuration {
    pub(in crate::hub) fn policies(&self) -> Policies {
        // The window of `Retention::live` is the write deadline, because a reader that is slower
        // than that has stalled.
        let resolve = |retention: &Retention| retention.clone().with_live_window(self.settings.write_deadline);
        Policies::new(
            self.rules.iter().map(|(rule, retention)| (rule.clone(), resolve(retention))).collect(),
            resolve(&self.topics),
            resolve(&self.users),
            resolve(&self.topics),
            resolve(&Retention::live()),
        )
    }

    /// Returns the bounds of the log. `is_shared` is whether several instances share the log.
    pub(in crate::hub) fn budgets(&self, is_shared: bool) -> Budgets {
        Budgets {
            ring_bytes: self.ring_bytes,
            keyed_bytes: self.keyed_bytes,
            grace: millis(self.settings.channel_grace()),
            dormant_after: is_shared.then(|| millis(self.settings.dormant_after())),
        }
    }
}
