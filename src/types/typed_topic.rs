//! Typed topics: types that write and read the names of their topics.

use std::fmt::{Display, Write};
use std::str::FromStr;

use super::error::{InvalidName, NameProblem};
use super::message::Message;
use super::name::Topic;

/// A type whose values are topics: it writes the name of the topic, reads it again, and lists the
/// messages that the topic carries ([`Carries`]).
///
/// With the feature `derive`, `#[derive(TypedTopic)]` implements both traits. `name` has the fields
/// of the struct in braces, each as a whole segment between slashes. The type of a field needs
/// `Display` and `FromStr`. `carries` lists [`Message`] types.
///
/// ```
/// # #[cfg(feature = "derive")] #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use serde::{Deserialize, Serialize};
/// use tower_sse::{Hub, Message, Subscription, TypedTopic};
///
/// #[derive(Serialize, Deserialize, Message)]
/// #[message(event = "order.paid")]
/// struct Paid { cents: u32 }
///
/// #[derive(TypedTopic)]
/// #[topic(name = "orders/{id}", carries(Paid))]
/// struct OrderTopic { id: u64 }
///
/// let hub = Hub::builder().build()?;
/// let page = hub.subscribe(Subscription::anonymous().topic(OrderTopic { id: 7 }.to_topic()?), None)?;
/// hub.typed_topic(&OrderTopic { id: 7 }).send(&Paid { cents: 990 }).await?;
///
/// assert_eq!(OrderTopic { id: 7 }.to_topic()?.as_str(), "orders/7");
/// assert_eq!(OrderTopic::from_topic("orders/7").map(|topic| topic.id), Some(7));
/// assert!(OrderTopic::from_topic("orders/x").is_none());
/// # drop(page); Ok(()) }
/// # #[cfg(not(feature = "derive"))] fn main() {}
/// ```
///
/// A message that the topic does not carry does not compile:
///
/// ```compile_fail,E0277
/// # use tower_sse::{Hub, Message, TypedTopic};
/// #[derive(serde::Serialize, Message)]
/// #[message(event = "order.paid")]
/// struct Paid { cents: u32 }
///
/// #[derive(TypedTopic)]
/// #[topic(name = "documents/{id}")]
/// struct DocumentTopic { id: u64 }
///
/// fn publish(hub: &Hub) {
///     let _ = hub.typed_topic(&DocumentTopic { id: 7 }).send(&Paid { cents: 990 });
/// }
/// ```
pub trait TypedTopic: Sized {
    /// The name with its fields in braces, for example `orders/{id}`.
    const NAME: &'static str;

    /// Returns the topic.
    ///
    /// # Errors
    ///
    /// Returns an error if the text of a field is empty or contains a `/`, because the name could
    /// then be that of another topic. Also returns an error if the whole is no valid name of a
    /// [`Topic`].
    fn to_topic(&self) -> Result<Topic, InvalidName>;

    /// Reads the name of a topic, for example in an access hook. Returns `None` if
    /// [`to_topic`](Self::to_topic) of no value has this name.
    fn from_topic(topic: &str) -> Option<Self>;
}

/// A topic that carries messages of the type `M`. `#[derive(TypedTopic)]` implements this trait for
/// the types in `carries`.
#[diagnostic::on_unimplemented(
    message = "the topic `{Self}` does not carry the message `{M}`",
    note = "list the message in `#[topic(carries(…))]`, or publish to the topic by its name"
)]
pub trait Carries<M: Message>: TypedTopic {}

/// Appends the text of a field to the name of a topic.
#[doc(hidden)]
pub fn push_field(name: &mut String, field: &dyn Display) -> Result<(), InvalidName> {
    const FIELD: &str = "topic";
    let start = name.len();
    // The error of a broken `Display` leaves a text that is too short or empty.
    write!(name, "{field}").map_err(|_| InvalidName::new(FIELD, NameProblem::Malformed))?;
    match &name[start..] {
        "" => Err(InvalidName::new(FIELD, NameProblem::Empty)),
        text if text.contains('/') => Err(InvalidName::new(FIELD, NameProblem::Malformed)),
        _ => Ok(()),
    }
}

/// Reads the text of a field from a segment of the name of a topic.
#[doc(hidden)]
#[must_use]
pub fn read_field<T: FromStr>(segment: Option<&str>) -> Option<T> {
    segment?.parse().ok()
}
