//! What instances of one namespace should have in common. An instance sends its settings when it asks
//! for everything. An instance that has others answers with its own, so each of the two logs the
//! difference once. None is refused, because a rolling deploy runs both for a while.

use std::collections::btree_map::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use crate::hub::Settings;
use crate::log::Policies;
use crate::sync::{AtomicBool, Ordering};
use crate::types::TopicFilter;
use crate::types::retention::{Bounds, Kind, LagPolicy, Retention};
use crate::types::topic_filter::Rule;

/// What is sent: names of settings and their values, or a hash where that is long. Compared, never read.
pub(crate) type Terms = BTreeMap<String, String>;

#[derive(Debug)]
pub(in crate::hub) struct Agreement {
    pub(super) terms: Terms,
    has_warned: AtomicBool,
}

impl Agreement {
    /// `limits` are those of the log, in words of its adapter.
    pub(in crate::hub) fn new(settings: &Settings, policies: &Policies, limits: String) -> Self {
        let terms = [
            ("retention", hash_of(&of_policies(policies))),
            ("presence_for", hash_of(&settings.presence_rules.iter().map(of_rule).collect::<String>())),
            ("presence_grace", of_time(settings.presence_grace)),
            ("peer_timeout", of_time(settings.peer_timeout)),
            ("max_payload", settings.framing.max_payload.to_string()),
            ("log", limits),
        ];
        let terms = terms.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        Self { terms, has_warned: AtomicBool::new(false) }
    }

    /// Compares with those of another instance, and logs the first difference. Returns whether there is
    /// one. What only one of two versions knows is no difference.
    pub(in crate::hub) fn differs(&self, theirs: &Terms) -> bool {
        let differs = |name: &&String| theirs.get(*name).is_some_and(|theirs| *theirs != self.terms[*name]);
        let different: Vec<_> = self.terms.keys().filter(differs).collect();
        if !different.is_empty() && !self.has_warned.swap(true, Ordering::AcqRel) {
            tracing::warn!(
                ?different,
                "another instance of this namespace has other settings: not said again, for as long as this one runs"
            );
        }
        !different.is_empty()
    }
}

// The texts below are compared between versions. They must not change when a type gets another name or another field.

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
        // To a string it never fails.
        let _ = writeln!(text, "{rule}{kind} {} {} {lag}", of_bounds(*ring), of_bounds(*keyed));
    }
    text
}

fn of_bounds(Bounds { count, bytes, age }: Bounds) -> String {
    format!("{count} {bytes} {}", age.map_or_else(|| "-".to_owned(), of_time))
}

/// FNV-1a.
fn hash_of(text: &str) -> String {
    let hash = text
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    format!("{hash:016x}")
}
