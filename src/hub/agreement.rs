//! What instances of one namespace should have in common. They tell each other, and who finds another with other settings
//! says so once; nobody is refused, since a rolling deploy runs both for a while.

use std::collections::btree_map::BTreeMap;
use std::fmt::Debug;

use super::Settings;
use crate::log::Policies;
use crate::sync::{AtomicBool, Ordering};

/// What is told: names of settings and their values, or a hash where that is long. Compared, never read.
pub(crate) type Terms = BTreeMap<String, String>;

#[derive(Debug)]
pub(super) struct Agreement {
    terms: Terms,
    has_warned: AtomicBool,
}

impl Agreement {
    /// `limits` are those of the log, in words of its adapter.
    pub(super) fn new(settings: &Settings, policies: &Policies, limits: String) -> Self {
        let terms = [
            ("retention", hash_of(policies)),
            ("presence_for", hash_of(&settings.presence_rules)),
            ("presence_grace", format!("{:?}", settings.presence_grace)),
            ("lease", format!("{:?}", settings.lease)),
            ("max_payload", settings.framing.max_payload.to_string()),
            ("max_targets", settings.max_targets.to_string()),
            ("log", limits),
        ];
        let terms = terms.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        Self { terms, has_warned: AtomicBool::new(false) }
    }

    pub(super) fn terms(&self) -> &Terms {
        &self.terms
    }

    /// Compares with those of another instance. What only one of two versions knows is no difference.
    pub(super) fn compare(&self, theirs: &Terms) {
        let differs = |name: &&String| theirs.get(*name).is_some_and(|theirs| *theirs != self.terms[*name]);
        let different: Vec<_> = self.terms.keys().filter(differs).collect();
        if !different.is_empty() && !self.has_warned.swap(true, Ordering::AcqRel) {
            tracing::warn!(
                ?different,
                "another instance of this namespace has other settings: not said again, for as long as this one runs"
            );
        }
    }
}

/// The same in every process of a version: FNV-1a of its parts.
fn hash_of(value: &impl Debug) -> String {
    let text = format!("{value:?}");
    let hash = text
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    format!("{hash:016x}")
}
