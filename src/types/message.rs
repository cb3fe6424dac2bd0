//! Typed events: types that know the names and the keys of their events.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::error::{InvalidName, NameProblem, PublishError};
use super::event::{Event, MAX_EVENT_NAME_BYTES};

/// A type whose values are events: it names the event, and its value as JSON is the data.
///
/// With the feature `derive`, `#[derive(Message)]` implements this trait. On a struct, the
/// attribute `message` has the name of the event. On an enum, each variant is one event, and the
/// data is the content of the variant. `key` names the field whose text is the event's key, for
/// current values ([`Event::key`]). In a tuple, the field is a number: `key = "0"`.
///
/// ```
/// # #[cfg(feature = "derive")] #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use serde::{Deserialize, Serialize};
/// use tower_sse::{Hub, Message, SubscriberItem, Subscription};
///
/// #[derive(Serialize, Deserialize, Message)]
/// #[message(event = "document.deleted")]
/// struct DocumentDeleted { id: u64 }
///
/// #[derive(Serialize, Deserialize, Message)]
/// enum Order {
///     #[message(event = "order.paid", key = "id")]
///     Paid { id: u64, cents: u32 },
///     #[message(event = "order.shipped", key = "0")]
///     Shipped(u64),
/// }
///
/// let hub = Hub::builder().build()?;
/// let mut page = hub.subscribe(Subscription::for_user("ada"), None)?;
/// hub.user("ada").send(&DocumentDeleted { id: 7 }).await?;
/// hub.user("ada").send(&Order::Paid { id: 8, cents: 990 }).await?;
///
/// let Some(SubscriberItem::Event(event)) = page.next().await else { panic!("no event") };
/// assert_eq!((&*event.name, &*event.data), ("document.deleted", r#"{"id":7}"#));
/// assert_eq!(event.message::<DocumentDeleted>()?.map(|deleted| deleted.id), Some(7));
/// let Some(SubscriberItem::Event(event)) = page.next().await else { panic!("no event") };
/// match event.message()? {
///     Some(Order::Paid { id, cents }) => assert_eq!((id, cents), (8, 990)),
///     Some(Order::Shipped(id)) => println!("order {id} is on its way"),
///     None => println!("an event that is no `Order`: {}", event.name),
/// }
/// # Ok(()) }
/// # #[cfg(not(feature = "derive"))] fn main() {}
/// ```
///
/// The rules for names are those of [`Event::new`]. The compiler rejects a name that is invalid or
/// reserved:
///
/// ```compile_fail
/// #[derive(serde::Serialize, tower_sse::Message)]
/// #[message(event = "hub.deleted")]
/// struct Deleted { id: u64 }
/// ```
///
/// The data of an enum is the content of the variant, which is found by the variant's name. So the
/// macro rejects attributes of serde that rename variants or that change their tag. Attributes on
/// the fields are fine, and so is `rename_all_fields`. The data of a variant without fields is
/// `null`.
///
/// A generic type is a message if it can be serialized. For `key`, write the bound on the type:
/// `struct Page<T: Display>`.
pub trait Message: Serialize {
    /// The names of the events of this type.
    const EVENTS: &'static [&'static str];

    /// The names of the variants as serde writes them, in the order of [`EVENTS`](Self::EVENTS).
    /// Empty for a struct.
    #[doc(hidden)]
    const VARIANTS: &'static [&'static str] = &[];

    /// Returns the name of the event of this value.
    fn event(&self) -> &'static str;

    /// Returns the key of the event: [`Event::key`]. Defaults to none.
    fn key(&self) -> Option<String> {
        None
    }

    /// Converts this value into an event, for the methods that take one, for example
    /// [`RunWriter::finish_with`](crate::RunWriter::finish_with).
    ///
    /// # Errors
    ///
    /// Returns an error if the value cannot be serialized, or if it is of an enum whose JSON does
    /// not have serde's default form, for example because of a `Serialize` that was written by
    /// hand.
    fn to_event(&self) -> Result<Event, PublishError> {
        let name = self.event();
        let json = serde_json::to_string(self).map_err(PublishError::not_json)?;
        let data = match Self::EVENTS.iter().position(|event| *event == name).and_then(|n| Self::VARIANTS.get(n)) {
            Some(variant) => {
                let content = content(&json, variant);
                let other_form = || serde::ser::Error::custom("the enum does not have serde's default form");
                content.ok_or_else(|| PublishError::not_json(other_form()))?.to_owned()
            }
            None => json,
        };
        let event = Event::new(name, data);
        Ok(match self.key() {
            Some(key) => event.key(key),
            None => event,
        })
    }

    /// Converts this value into an event that removes the current value of its key, for audiences
    /// with [`Retention::latest_per_key`](crate::Retention::latest_per_key). The event is also
    /// delivered, and its data is this value as JSON. The data of [`Event::removal`] is the key.
    ///
    /// ```
    /// # #[cfg(feature = "derive")] #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use tower_sse::{Hub, Message};
    ///
    /// #[derive(serde::Serialize, Message)]
    /// #[message(event = "document.deleted", key = "id")]
    /// struct DocumentDeleted { id: u32 }
    ///
    /// let hub = Hub::builder().build()?;
    /// hub.topic("documents").publish(DocumentDeleted { id: 7 }.to_removal()?).await?;
    /// # Ok(()) }
    /// # #[cfg(not(feature = "derive"))] fn main() {}
    /// ```
    ///
    /// # Errors
    ///
    /// Returns the errors of [`to_event`](Self::to_event), and an error if the value has no key.
    fn to_removal(&self) -> Result<Event, PublishError> {
        let mut event = self.to_event()?;
        if event.key.is_none() {
            return Err(InvalidName::new("key", NameProblem::Empty).into());
        }
        event.removes = true;
        Ok(event)
    }

    /// Converts the name and the data of an event into a value. Returns `None` if the event is none
    /// of this type.
    ///
    /// # Errors
    ///
    /// Returns an error if the name is of this type and the data is not.
    fn from_event(name: &str, data: &str) -> Result<Option<Self>, serde_json::Error>
    where
        Self: Sized + DeserializeOwned,
    {
        let Some(number) = Self::EVENTS.iter().position(|event| *event == name) else { return Ok(None) };
        match Self::VARIANTS.get(number) {
            Some(variant) => serde_json::from_str(&format!("{{\"{variant}\":{data}}}")),
            None => serde_json::from_str(data),
        }
        .map(Some)
    }
}

/// Returns the content of a variant: `{"Variant":content}` is the JSON of its enum, or `"Variant"`
/// without content. Returns `None` if the JSON has another form.
fn content<'a>(json: &'a str, variant: &str) -> Option<&'a str> {
    let is_alone = json.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) == Some(variant);
    if is_alone {
        return Some("null");
    }
    json.strip_prefix("{\"")?.strip_prefix(variant)?.strip_prefix("\":")?.strip_suffix('}')
}

/// Fails to compile if the name of an event is invalid or reserved. The same rules as
/// `Event::check`, for constants.
#[doc(hidden)]
pub const fn check_event_name(name: &str) {
    let bytes = name.as_bytes();
    assert!(!bytes.is_empty(), "the name of the event is empty");
    assert!(bytes.len() <= MAX_EVENT_NAME_BYTES, "the name of the event is longer than 128 bytes");
    assert!(!matches!(bytes, [b'h', b'u', b'b', b'.', ..]), "names that start with `hub.` are reserved for the hub");
    let is_of_browser = matches!(bytes, b"open" | b"error");
    assert!(!is_of_browser, "the names `open` and `error` are reserved for the browser's own events");
    let mut at = 0;
    while at < bytes.len() {
        assert!(!is_control(bytes.split_at(at).1), "the name of the event contains a control character");
        at += 1;
    }
}

/// Returns whether the bytes of a text begin with a control character, or with one that changes the
/// direction of text.
const fn is_control(bytes: &[u8]) -> bool {
    matches!(
        bytes,
        [0..=0x1f | 0x7f, ..]
            // U+0080 to U+009F
            | [0xc2, 0x80..=0x9f, ..]
            // U+202A to U+202E, and U+2066 to U+2069
            | [0xe2, 0x80, 0xaa..=0xae, ..]
            | [0xe2, 0x81, 0xa6..=0xa9, ..]
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_accepted(name: &str) -> bool {
        std::panic::catch_unwind(|| check_event_name(name)).is_ok()
    }

    #[test]
    fn constants_have_the_rules_of_other_names() {
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(|_| ()));
        let long = "x".repeat(129);
        for name in ["open", "error", "hub.", "hub.hello", "hub", "Open", "имя", "a b:c", &long, &long[..128]] {
            assert_eq!(is_accepted(name), Event::new(name.to_owned(), "").check().is_ok(), "{name}");
        }
        for c in ('\0'..='\u{2100}').chain(['\u{FEFF}', '\u{10FFFF}']) {
            let name = format!("a{c}b");
            assert_eq!(is_accepted(&name), Event::new(name.clone(), "").check().is_ok(), "{}", c.escape_unicode());
        }
        assert!(!is_accepted(""));
        std::panic::set_hook(hook);
    }
}
