//! An event, as an application publishes it.

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use bytes::Bytes;

use super::error::{InvalidName, NameProblem, PublishError};
use super::name_rules;

/// The maximum length of an event name, in bytes. The name is sent with each event.
pub(crate) const MAX_EVENT_NAME_BYTES: usize = 128;

/// An event: an optional name, data, and settings for its delivery.
///
/// ```
/// use tower_sse::Event;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let headline = Event::new("headline", "Bridge closed");
/// let unnamed = Event::unnamed("several lines\nof text");
/// let saved = Event::json("document.saved", &serde_json::json!({ "id": 7 }))?;
/// let temperature = Event::from_utf8("temperature", &b"21.5"[..])?.key("boiler");
/// let removal = Event::removal("boiler"); // the boiler has no current temperature any more
/// # let _ = (headline, unnamed, saved, temperature, removal);
/// # Ok(()) }
/// ```
///
/// An `Event` may contain an invalid name or key. [`publish`](crate::Target::publish) checks them,
/// and its error names the field and the reason.
#[derive(Clone, Debug)]
pub struct Event {
    pub(crate) name: Cow<'static, str>,
    data: Text,
    pub(crate) key: Option<Cow<'static, str>>,
    pub(crate) removes: bool,
    pub(crate) retry: Option<Duration>,
    pub(crate) idempotency_key: Option<Cow<'static, str>>,
}

/// UTF-8 text in the buffer that the application passed, so that the text is not copied.
#[derive(Clone)]
enum Text {
    Str(Cow<'static, str>),
    /// Bytes that [`Event::from_utf8`] has checked.
    Bytes(Bytes),
}

impl Event {
    /// Creates a named event with text as its data.
    ///
    /// `name` has at most 128 bytes, no control characters, and no characters that change the
    /// direction of text. `open`, `error` and names that start with `hub.` are reserved for the
    /// browser and the hub. An empty name stands for no name. Line breaks in `data` may be LF, CR
    /// or CRLF; the receiver reads each of them as LF.
    #[doc(alias = "text")]
    pub fn new(name: impl Into<Cow<'static, str>>, data: impl Into<Cow<'static, str>>) -> Self {
        Self {
            name: name.into(),
            data: Text::Str(data.into()),
            key: None,
            removes: false,
            retry: None,
            idempotency_key: None,
        }
    }

    /// Creates an event without a name. A browser passes such an event to `onmessage`.
    #[doc(alias = "message")]
    pub fn unnamed(data: impl Into<Cow<'static, str>>) -> Self {
        Self::new("", data)
    }

    /// Creates a named event whose data is `value` as JSON.
    ///
    /// # Errors
    ///
    /// Returns an error if `value` cannot be serialized.
    pub fn json<T>(name: impl Into<Cow<'static, str>>, value: &T) -> Result<Self, PublishError>
    where
        T: serde::Serialize + ?Sized,
    {
        let data = serde_json::to_string(value).map_err(PublishError::not_json)?;
        Ok(Self::new(name, data))
    }

    /// Creates a named event with existing bytes as its data, for example the body of a request.
    /// The bytes are not copied.
    ///
    /// # Errors
    ///
    /// Returns an error if `data` is not UTF-8, because an event stream contains only UTF-8.
    #[doc(alias = "utf8")]
    pub fn from_utf8(name: impl Into<Cow<'static, str>>, data: impl Into<Bytes>) -> Result<Self, PublishError> {
        let data = data.into();
        std::str::from_utf8(&data).map_err(PublishError::not_utf8)?;
        let mut event = Self::new(name, "");
        event.data = Text::Bytes(data);
        Ok(event)
    }

    /// Creates an event that removes the current value of `key` for audiences with
    /// [`Retention::latest_per_key`](crate::Retention::latest_per_key).
    ///
    /// The event is also delivered, so that open pages can remove the value too. The data of the
    /// event is the key, unless [`data`](Self::data) sets other data. The event has no name, unless
    /// [`name`](Self::name) sets one.
    #[doc(alias = "remove")]
    pub fn removal(key: impl Into<Cow<'static, str>>) -> Self {
        let key = key.into();
        Self { removes: true, ..Self::unnamed(key.clone()).key(key) }
    }

    /// Sets the name. Defaults to none.
    #[must_use]
    pub fn name(mut self, name: impl Into<Cow<'static, str>>) -> Self {
        self.name = name.into();
        self
    }

    /// Replaces the data.
    #[must_use]
    pub fn data(mut self, data: impl Into<Cow<'static, str>>) -> Self {
        self.data = Text::Str(data.into());
        self
    }

    /// Makes this event the current value of `key` for audiences with
    /// [`Retention::latest_per_key`](crate::Retention::latest_per_key). It replaces the earlier
    /// value of the key. With other retentions a key has no effect. A key has 1 to 255 bytes
    /// without control characters, and is not sent to clients. Defaults to none.
    #[must_use]
    pub fn key(mut self, key: impl Into<Cow<'static, str>>) -> Self {
        self.key = Some(key.into());
        self
    }

    /// Sets the time that browsers which receive this event wait before each later reconnect. The
    /// hub rounds the time down to milliseconds and clamps it to 0.1 s to 1 h. Defaults to none.
    #[must_use]
    pub fn retry(mut self, retry: Duration) -> Self {
        self.retry = Some(retry);
        self
    }

    /// Sets an idempotency key, so that a shared log ([`HubBuilder::backplane`], `Publisher`)
    /// appends the event only once.
    ///
    /// For ten minutes, the shared log appends no second event with the same key. Another publish
    /// with this key, from any instance, returns the position of the first event. Use a key for
    /// jobs that may run again, and for retries after an error with
    /// [`is_unknown`](PublishError::is_unknown). The log compares only the key: it drops an event
    /// with a used key, also if the event has other data. The keys of a [scope](crate::Scope) are
    /// its own, and so are those of [`Hub::all_scopes`](crate::Hub::all_scopes).
    ///
    /// A hub without a shared log rejects an event with an idempotency key. A key has 1 to 255
    /// bytes without control characters, and is not sent to clients. Defaults to none.
    ///
    /// [`HubBuilder::backplane`]: crate::HubBuilder
    #[must_use]
    pub fn idempotency_key(mut self, key: impl Into<Cow<'static, str>>) -> Self {
        self.idempotency_key = Some(key.into());
        self
    }

    pub(crate) fn data_bytes(&self) -> &[u8] {
        self.data.as_bytes()
    }

    /// Checks the name and the keys. The size of the data is checked when the event is encoded.
    pub(crate) fn check(&self) -> Result<(), InvalidName> {
        // An `EventSource` calls the listeners of these names for its own events too.
        if matches!(&*self.name, "open" | "error") {
            return Err(InvalidName::new(FIELD, NameProblem::Reserved));
        }
        self.check_for_run()
    }

    /// Checks like [`check`](Self::check), for an event of a run. Names that only `EventSource`
    /// reserves are valid, because protocols of other clients have them.
    pub(crate) fn check_for_run(&self) -> Result<(), InvalidName> {
        let name = &*self.name;
        if !name.is_empty() {
            name_rules::check(FIELD, name, MAX_EVENT_NAME_BYTES)?;
            // These formatting characters would reorder the text of a log or a console.
            if let Some(c) = name.chars().find(|c| matches!(c, '\u{202A}'..='\u{202E}' | '\u{2066}'..='\u{2069}')) {
                return Err(InvalidName::new(FIELD, NameProblem::Control(c)));
            }
            if name.starts_with("hub.") {
                return Err(InvalidName::new(FIELD, NameProblem::Reserved));
            }
        }
        for (field, key) in [("key", &self.key), ("idempotency key", &self.idempotency_key)] {
            if let Some(key) = key {
                name_rules::check(field, key, name_rules::MAX_NAME_BYTES)?;
            }
        }
        Ok(())
    }
}

/// The field in the errors of an event's name.
const FIELD: &str = "event name";

impl Text {
    fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Str(text) => text.as_bytes(),
            Self::Bytes(bytes) => bytes,
        }
    }
}

/// Prints only the length, because the text may be secret.
impl fmt::Debug for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.as_bytes().len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(event: &Event) -> String {
        event.check().unwrap_err().to_string()
    }

    #[test]
    fn check_rejects_control_characters_reserved_names_and_long_names() {
        for c in ["\n", "\r", "\0", "\t", "\u{7f}", "\u{85}", "\u{202e}", "\u{2066}"] {
            let message = problem(&Event::new(format!("a{c}b"), ""));
            assert!(message.starts_with("event name contains the control character U+"), "{message}");
        }
        for reserved in ["open", "error", "hub.hello", "hub."] {
            assert!(problem(&Event::new(reserved, "")).starts_with("event name is reserved"));
            let is_of_hub = reserved.starts_with("hub.");
            assert_eq!(Event::new(reserved, "").check_for_run().is_err(), is_of_hub, "{reserved}");
        }
        assert_eq!(problem(&Event::new("x".repeat(129), "")), "event name is longer than 128 bytes");
        assert_eq!(problem(&Event::new("x", "").key("")), "key is empty");
        assert_eq!(
            problem(&Event::new("x", "").idempotency_key("a\n")),
            "idempotency key contains the control character U+000A"
        );
    }

    #[test]
    fn check_accepts_other_names() {
        for name in ["", "message", "document.deleted", "hub", "Open", "имя", "a b:c"] {
            assert_eq!(Event::new(name, "").check(), Ok(()), "{name}");
        }
        assert_eq!(Event::new("x".repeat(128), "").check(), Ok(()));
    }

    #[test]
    fn from_utf8_rejects_bytes_that_are_not_utf8() {
        let error = Event::from_utf8("x", &b"\xc3\x28"[..]).unwrap_err();
        assert!(error.is_invalid());
        assert_eq!(error.to_string(), "data is not UTF-8");
    }

    #[test]
    fn json_rejects_a_value_that_cannot_be_serialized() {
        let map = std::collections::HashMap::from([((1, 2), 3)]);
        let error = Event::json("x", &map).unwrap_err();
        assert!(error.is_invalid());
        assert!(std::error::Error::source(&error).is_some());
    }

    #[test]
    fn debug_omits_the_data() {
        assert!(!format!("{:?}", Event::unnamed("s3cret")).contains("s3cret"));
    }
}
