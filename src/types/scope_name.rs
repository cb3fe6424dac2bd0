//! The scope of a name, of a connection or of everyone.

use std::borrow::Cow;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use super::error::InvalidName;
use super::name_rules::{MAX_NAME_BYTES, check};

/// A scope: the root scope, which has no name, or a scope with a name.
///
/// The text is behind two pointers, so that a name with a scope takes only one word more.
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ScopeName(Option<Arc<Box<str>>>);

impl ScopeName {
    pub(crate) const ROOT: Self = Self(None);

    pub(crate) fn root() -> &'static Self {
        static ROOT: ScopeName = ScopeName::ROOT;
        &ROOT
    }

    /// Returns the scope with this name, by the rules of every name.
    pub(crate) fn named(name: &str) -> Result<Self, InvalidName> {
        check("scope", name, MAX_NAME_BYTES)?;
        Ok(Self(Some(Arc::new(name.into()))))
    }

    /// Returns the scope of a message or a record, which has no name for the root scope.
    pub(crate) fn read(name: Option<&str>) -> Result<Self, InvalidName> {
        name.map_or(Ok(Self::ROOT), Self::named)
    }

    pub(crate) fn is_root(&self) -> bool {
        self.0.is_none()
    }

    /// Returns a key for a broker of a text in this scope. `text` has no control characters. A key
    /// of a scope begins with one, so two pairs of scope and text never have the same key.
    pub(crate) fn broker_key<'a>(&self, text: &'a str) -> Cow<'a, str> {
        match self.as_str() {
            None => text.into(),
            Some(scope) => format!("\u{1}{scope}\u{1}{text}").into(),
        }
    }

    /// Returns a key for a broker of a text that belongs to all scopes. The key differs from every
    /// key of a scope, because no scope has an empty name.
    pub(crate) fn broker_key_of_all(text: &str) -> String {
        format!("\u{1}\u{1}{text}")
    }

    /// Returns the FNV-1a hash of the name, or `None` for the root scope. The hash is the same in
    /// every version of the crate, because clients return it in the id of their ban.
    pub(crate) fn mark(&self) -> Option<u64> {
        let step = |hash: u64, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        self.as_str().map(|name| name.bytes().fold(0xcbf2_9ce4_8422_2325, step))
    }

    /// Returns the name of the scope, or `None` for the root scope.
    pub(crate) fn as_str(&self) -> Option<&str> {
        self.0.as_ref().map(|name| &***name)
    }
}

/// The root scope adds nothing to a hash, so that names without a scope cost as much as their text.
impl Hash for ScopeName {
    fn hash<H: Hasher>(&self, state: &mut H) {
        if let Some(name) = &self.0 {
            name.hash(state);
        }
    }
}

impl fmt::Debug for ScopeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_str().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mark_of_a_scope_is_the_same_in_every_version() {
        assert_eq!(ScopeName::ROOT.mark(), None);
        assert_eq!(ScopeName::named("a").unwrap().mark(), Some(0xaf63_dc4c_8601_ec8c));
        assert_eq!(ScopeName::named("foobar").unwrap().mark(), Some(0x8594_4171_f739_67e8));
    }

    #[test]
    fn broker_keys_of_two_scopes_and_of_all_scopes_differ() {
        let scope = |name: &str| ScopeName::named(name).unwrap();
        let keys = [
            ScopeName::ROOT.broker_key("k").into_owned(),
            scope("a").broker_key("k").into_owned(),
            scope("k").broker_key("a").into_owned(),
            ScopeName::broker_key_of_all("k"),
        ];
        assert_eq!(keys, ["k", "\u{1}a\u{1}k", "\u{1}k\u{1}a", "\u{1}\u{1}k"]);
    }
}
