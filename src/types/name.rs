//! The names of topics, users and connections. A name is checked when it is created, so that every
//! value of these types is valid.
//!
//! The scope of a name is a separate field. Two names are equal if both their texts and their
//! scopes are equal, so every table with names as keys keeps scopes apart.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::str::FromStr;
use std::sync::Arc;

use super::as_text::serde_as_text;
use super::error::{InvalidName, NameProblem};
use super::name_rules::{MAX_NAME_BYTES, check};
use super::scope_name::ScopeName;

/// A text with a scope: the content of every type of names, and the key of
/// [`Subscription::counted_as`](crate::Subscription::counted_as).
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct ScopedText {
    text: Arc<str>,
    scope: ScopeName,
}

impl ScopedText {
    /// Creates a text in the root scope, by the rules of every name.
    pub(crate) fn new(field: &'static str, text: &str) -> Result<Self, InvalidName> {
        check(field, text, MAX_NAME_BYTES)?;
        Ok(Self::unchecked(text))
    }

    fn unchecked(text: &str) -> Self {
        Self { text: text.into(), scope: ScopeName::ROOT }
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.text
    }

    /// Returns the text in a scope.
    ///
    /// # Errors
    ///
    /// If the text is in another scope already, and not in the root scope.
    pub(crate) fn placed_in(mut self, scope: &ScopeName, field: &'static str) -> Result<Self, InvalidName> {
        if self.scope != *scope && !self.scope.is_root() {
            return Err(InvalidName::new(field, NameProblem::OtherScope));
        }
        // An equal scope is replaced too, so that many names share the text of one scope.
        self.scope = scope.clone();
        Ok(self)
    }
}

impl fmt::Debug for ScopedText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.scope.as_str() {
            None => self.text.fmt(f),
            Some(scope) => write!(f, "{:?} in {scope:?}", self.text),
        }
    }
}

/// A name that is in a scope.
pub(crate) trait Scoped: Sized {
    fn scope_name(&self) -> &ScopeName;

    /// Returns the name without its scope.
    fn text(&self) -> &str;

    /// Returns the name in a scope, or an error if it is in another scope already, and not in the
    /// root scope.
    fn placed_in(self, scope: &ScopeName) -> Result<Self, InvalidName>;
}

/// Implements conversions from text types by parsing the text.
macro_rules! try_from_texts {
    ($name:ident: $($text:ty),*) => {$(
        impl TryFrom<$text> for $name {
            type Error = InvalidName;
            fn try_from(value: $text) -> Result<Self, InvalidName> {
                value.parse()
            }
        }
    )*};
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $field:literal) => {
        $(#[$doc])*
        ///
        /// The name has 1 to 255 bytes of UTF-8 without control characters. No character has a
        /// special meaning, also not `*`, `>`, `.`, `/`, `:` or a space. The type converts from
        /// strings, integers and, with the feature `uuid`, from `Uuid`. Cloning increments one
        /// reference count, or two for a name of a [scope](crate::Scope).
        ///
        /// Names of different scopes are not equal, also if their texts are. A new name has no
        /// scope until a [`Scope`](crate::Scope) or a
        /// [subscription](crate::Subscription::in_scope) takes it. Serializing writes the text
        /// without the scope, as `Display` does. A name that is deserialized or parsed has no
        /// scope: use it with the [`Scope`](crate::Scope) to which it belongs.
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(ScopedText);

        impl $name {
            /// Returns the name as text, without its scope.
            #[must_use]
            pub fn as_str(&self) -> &str {
                self.0.as_str()
            }

            /// Returns the name of the [scope](crate::Scope) of this name, or `None` if the name
            /// has no scope.
            ///
            /// ```
            /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
            /// use tower_sse::{Hub, Subscription};
            ///
            /// let hub = Hub::builder().build()?;
            /// let page = hub.scope("acme").subscribe(Subscription::for_user("ada"), None)?;
            /// let presence = hub.scope("acme").everyone().presence();
            /// assert_eq!(presence.members[0].user.scope(), Some("acme"));
            /// assert_eq!(presence.members[0].user.as_str(), "ada");
            /// # drop(page);
            /// # Ok(()) }
            /// ```
            #[must_use]
            pub fn scope(&self) -> Option<&str> {
                self.0.scope.as_str()
            }
        }

        impl Scoped for $name {
            fn scope_name(&self) -> &ScopeName {
                &self.0.scope
            }

            fn text(&self) -> &str {
                self.as_str()
            }

            fn placed_in(self, scope: &ScopeName) -> Result<Self, InvalidName> {
                self.0.placed_in(scope, $field).map(Self)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                self.as_str()
            }
        }

        impl From<$name> for String {
            fn from(value: $name) -> Self {
                value.as_str().to_owned()
            }
        }

        serde_as_text!($name by as_str);

        impl FromStr for $name {
            type Err = InvalidName;
            fn from_str(value: &str) -> Result<Self, InvalidName> {
                ScopedText::new($field, value).map(Self)
            }
        }

        try_from_texts!($name: &str, String, &String, std::borrow::Cow<'_, str>);

        impl From<&$name> for $name {
            fn from(value: &$name) -> Self {
                value.clone()
            }
        }

        name!(@integers $name: u8 u16 u32 u64 u128 usize i8 i16 i32 i64 i128 isize);

        #[cfg(feature = "uuid")]
        impl From<uuid::Uuid> for $name {
            fn from(value: uuid::Uuid) -> Self {
                let mut buffer = uuid::Uuid::encode_buffer();
                Self(ScopedText::unchecked(value.hyphenated().encode_lower(&mut buffer)))
            }
        }

        #[cfg(feature = "uuid")]
        impl From<&uuid::Uuid> for $name {
            fn from(value: &uuid::Uuid) -> Self {
                Self::from(*value)
            }
        }
    };
    (@integers $name:ident: $($integer:ty)*) => {$(
        impl From<$integer> for $name {
            fn from(value: $integer) -> Self {
                Self(ScopedText::unchecked(itoa::Buffer::new().format(value)))
            }
        }
    )*};
}

name! {
    /// A subject to which connections subscribe and to which the application publishes events.
    ///
    /// ```
    /// use tower_sse::Topic;
    ///
    /// let topic = Topic::try_from("documents/7")?;
    /// assert_eq!(topic.as_str(), "documents/7");
    /// assert_eq!(Topic::from(7), Topic::try_from("7")?);
    /// assert!(Topic::try_from("").is_err());
    /// # Ok::<(), tower_sse::InvalidName>(())
    /// ```
    Topic, "topic"
}

name! {
    /// A user as the application identifies it. Every stream that a user has open is a connection
    /// of that user.
    ///
    /// ```
    /// use tower_sse::UserId;
    ///
    /// let ada = UserId::try_from("ada")?;
    /// assert_eq!(ada.as_str(), "ada");
    /// assert_eq!(UserId::from(42_u64).to_string(), "42");
    /// # Ok::<(), tower_sse::InvalidName>(())
    /// ```
    ///
    /// Users and topics are separate namespaces: a user and a topic with the same name are
    /// unrelated.
    UserId, "user"
}

/// The id of one open stream: 128 random bits from the operating system, which cannot be guessed.
///
/// A page receives its own id in `hub.hello`. A page may send its id with a request. The
/// application can then exclude the page from the event that the request causes:
/// [`Target::except`](crate::Target::except).
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use tower_sse::{ConnectionId, Hub, Subscription};
///
/// let hub = Hub::builder().build()?;
/// let page = hub.subscribe(Subscription::for_user("ada"), None)?;
/// let header = page.connection().to_string(); // the value of `ConnectionId::HEADER`
/// assert_eq!(header.parse::<ConnectionId>()?, page.connection());
/// # Ok(()) }
/// ```
// Two words, because an address with a `u128` would take 16 bytes more. The high word is the first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ConnectionId([u64; 2]);

impl ConnectionId {
    /// The name of the header in which a page sends its connection id with a request.
    /// With the feature `axum`, `ConnectionId` is an extractor that reads this header.
    pub const HEADER: &'static str = "sse-connection";

    pub(crate) fn from_bits(bits: u128) -> Self {
        Self([(bits >> 64) as u64, bits as u64])
    }

    pub(crate) fn bits(self) -> u128 {
        u128::from(self.0[0]) << 64 | u128::from(self.0[1])
    }

    /// Returns the first 64 bits.
    pub(crate) fn first_half(self) -> u64 {
        self.0[0]
    }

    /// Returns an index below `parts`. Ids are random, so connections spread evenly.
    pub(crate) fn spread(self, parts: usize) -> usize {
        self.0[1] as usize % parts
    }

    /// Returns the first eight digits, for logs. The full id must not be logged, because it
    /// authorizes topic changes on an anonymous connection.
    pub(crate) fn brief(self) -> impl fmt::Display {
        struct Brief(u32);
        impl fmt::Display for Brief {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:08x}", self.0)
            }
        }
        Brief((self.0[0] >> 32) as u32)
    }
}

impl Hash for ConnectionId {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u128(self.bits());
    }
}

impl fmt::Display for ConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bits = self.bits();
        // Faster than `{:032x}`: every new stream formats its id.
        let mut text = [0; 32];
        for (at, digit) in text.iter_mut().enumerate() {
            *digit = b"0123456789abcdef"[(bits >> (4 * (31 - at)) & 15) as usize];
        }
        f.write_str(std::str::from_utf8(&text).map_err(|_| fmt::Error)?)
    }
}

/// Prints only the first eight digits. The whole id authorizes changes of the topics of an
/// anonymous connection, so logs should not contain it.
impl fmt::Debug for ConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}…", self.brief())
    }
}

impl FromStr for ConnectionId {
    type Err = InvalidName;
    fn from_str(value: &str) -> Result<Self, InvalidName> {
        let canonical = value.len() == 32 && value.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        match u128::from_str_radix(value, 16) {
            Ok(bits) if canonical => Ok(Self::from_bits(bits)),
            _ => Err(InvalidName::new("connection", NameProblem::Malformed)),
        }
    }
}

try_from_texts!(ConnectionId: &str, String, &String);
serde_as_text!(ConnectionId);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_no_special_characters() {
        for name in ["*", ">", "a.b", "{}", "a:b/c d", "топик", "话题", "🦀", "\u{2066}x"] {
            assert_eq!(Topic::try_from(name).unwrap().as_str(), name);
            assert_eq!(UserId::try_from(name).unwrap().as_str(), name);
        }
        assert!(Topic::try_from("x".repeat(255)).is_ok());
    }

    #[test]
    fn an_invalid_name_is_reported_with_field_and_problem() {
        let error = |value: &str| Topic::try_from(value).unwrap_err().to_string();
        assert_eq!(error(""), "topic is empty");
        assert_eq!(error(&"x".repeat(256)), "topic is longer than 255 bytes");
        assert_eq!(error("a\nb"), "topic contains the control character U+000A");
        assert_eq!(error("a\u{85}b"), "topic contains the control character U+0085");
        assert_eq!(UserId::try_from("").unwrap_err().to_string(), "user is empty");
    }

    #[test]
    fn integers_convert_to_names() {
        assert_eq!(UserId::from(-7).as_str(), "-7");
        assert_eq!(Topic::from(u128::MAX).as_str(), u128::MAX.to_string());
    }

    #[test]
    fn names_of_different_scopes_differ_and_have_one_scope() {
        let scope = |name: &str| ScopeName::named(name).unwrap();
        let topic = |name: &str, of: &ScopeName| Topic::try_from(name).unwrap().placed_in(of).unwrap();
        let of_a = topic("b/c", &scope("a"));
        for other in [topic("b/c", &ScopeName::ROOT), topic("c", &scope("a/b")), topic("b/c", &scope("b"))] {
            assert!(of_a != other && of_a.cmp(&other).is_ne(), "{other:?}");
        }
        assert_eq!(of_a, topic("b/c", &scope("a")));
        assert_eq!(
            (of_a.scope(), of_a.to_string(), format!("{of_a:?}")),
            (Some("a"), "b/c".into(), r#""b/c" in "a""#.into())
        );
        assert_eq!(of_a.clone().placed_in(&scope("a")), Ok(of_a.clone()));
        for other in [scope("b"), ScopeName::ROOT] {
            assert_eq!(of_a.clone().placed_in(&other).unwrap_err().to_string(), "topic belongs to another scope");
        }
    }

    #[test]
    fn scope_takes_one_word_of_a_name_and_no_memory_of_an_address() {
        let word = size_of::<usize>();
        assert_eq!((size_of::<Topic>(), size_of::<UserId>()), (3 * word, 3 * word));
        assert!(size_of::<crate::types::Address>() <= 32);
    }

    #[test]
    fn a_connection_id_has_one_spelling() {
        let id = ConnectionId::from_bits(0xab);
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!(id.to_string().len(), 32);
        for bad in ["", "ab", "+00000000000000000000000000000ab", "000000000000000000000000000000AB"] {
            assert!(bad.parse::<ConnectionId>().is_err(), "{bad}");
        }
    }

    #[test]
    fn debug_of_a_connection_id_has_only_its_first_digits() {
        let id = ConnectionId::from_bits(0x0123_4567_89ab_cdef << 64);
        assert_eq!(format!("{id:?}"), "01234567…");
    }
}
