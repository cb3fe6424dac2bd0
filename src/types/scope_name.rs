//! The scope of a name, of a connection or of everyone.

use std::borrow::Cow;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use super::error::InvalidName;
use super::name::{MAX_NAME_BYTES, check};

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

    /// Returns a key for a broker of a text in this scope. `text` has no control characters. A key of
    /// a scope begins with one, so two pairs of scope and text never have the same key.
    pub(crate) fn broker_key<'a>(&self, text: &'a str) -> Cow<'a, str> {
        match self.as_str() {
            None => text.into(),
            Some(scope) => format!("\u{1}{scope}\u{1}{text}").into(),
        }
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
