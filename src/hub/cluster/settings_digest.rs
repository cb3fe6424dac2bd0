//! The comparison of settings that all instances of a namespace should share.
//!
//! An instance broadcasts its settings when it requests the connections of all instances. An
//! instance with other settings logs a warning and broadcasts its own settings, so that the first
//! instance logs a warning too. Each instance logs at most one warning. Both instances continue to
//! work, because a rolling deploy runs instances with both settings for a while.

use std::collections::btree_map::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use crate::hub::Settings;
use crate::log::Policies;
use crate::sync::{AtomicBool, Ordering};
use crate::types::TopicFilter;
use crate::types::retention::{Bounds, Kind, LagPolicy, Retention};
use crate::types::topic_filter::Rule;

/// The names and values of settings. The value of a setting with several rules is a hash. Values
/// are only compared, never parsed.
pub(crate) type Digest = BTreeMap<String, String>;

/// The settings of this instance, for comparison with other instances.
#[derive(Debug)]
pub(in crate::hub) struct SettingsDigest {
    pub(super) digest: Digest,
    has_warned: AtomicBool,
}

impl SettingsDigest {
    /// Creates the digest. `limits` is the text of
    /// [`Backplane::describe_limits`](crate::backplane::Backplane::describe_limits).
    pub(in crate::hub) fn new(settings: &Settings, policies: &Policies, limits: String) -> Self {
        let digest = [
            ("retention", hash_of(&of_policies(policies))),
            ("presence_for", hash_of(&settings.presence_rules.iter().map(of_rule).collect::<String>())),
            ("presence_grace", of_time(settings.presence_grace)),
            ("peer_timeout", of_time(settings.peer_timeout)),
            ("max_payload", settings.framing.max_payload.to_string()),
            ("require_scope", settings.requires_scope.to_string()),
            ("log", limits),
        ];
        let digest = digest.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        Self { digest, has_warned: AtomicBool::new(false) }
    }

    /// Returns whether the settings of another instance differ. Logs a warning the first time that
    /// settings differ. Ignores a setting that only one of the two instances has.
    pub(in crate::hub) fn differs(&self, other: &Digest) -> bool {
        let differs = |name: &&String| other.get(*name).is_some_and(|value| *value != self.digest[*name]);
        let different: Vec<_> = self.digest.keys().filter(differs).collect();
        if !different.is_empty() && !self.has_warned.swap(true, Ordering::AcqRel) {
            tracing::warn!(name: "sse.settings.differ",
                ?different,
                "settings of another instance in this namespace differ: use the same settings on all instances (logged once)"
            );
        }
        !different.is_empty()
    }
}

// Instances of different versions compare the texts below. So the texts are written by hand: they
// must not change when a type or a field is renamed.

fn of_time(time: Duration) -> String {
    format!("{} ms", time.as_millis())
}

fn of_rule(rule: &TopicFilter) -> String {
    match &rule.0 {
        Rule::Exact(exact) => format!("={exact}\n"),
        Rule::Prefix(prefix) => format!("^{prefix}\n"),
        Rule::Any {} => "*\n".to_owned(),
    }
}

fn of_policies(policies: &Policies) -> String {
    let mut text = String::new();
    for (rule, Retention { kind, ring, keyed, lag }) in policies.iter() {
        let kind = match kind {
            Kind::Live => "live",
            Kind::Replay => "replay",
            Kind::LatestPerKey => "latest_per_key",
        };
        let lag = match lag {
            LagPolicy::Gap => "gap",
            LagPolicy::Disconnect => "disconnect",
        };
        let rule = rule.map_or_else(|| "default\n".to_owned(), of_rule);
        // Writing to a string does not fail.
        let _ = writeln!(text, "{rule}{kind} {} {} {lag}", of_bounds(*ring), of_bounds(*keyed));
    }
    text
}

fn of_bounds(Bounds { count, bytes, age }: Bounds) -> String {
    format!("{count} {bytes} {}", age.map_or_else(|| "-".to_owned(), of_time))
}

/// Returns the FNV-1a hash of a text. The hash is the same in every version of the crate.
fn hash_of(text: &str) -> String {
    let hash = text
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    format!("{hash:016x}")
}
