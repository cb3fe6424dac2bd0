//! The result of publishing and of commands.

use crate::types::Position;

/// The outcome of a successful publish, join, leave or disconnect.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let hub = tower_sse::Hub::builder().build()?;
/// use tower_sse::{Event, Subscription};
///
/// let page = hub.subscribe(Subscription::anonymous().topic("news"), None)?;
/// let receipt = hub.topic("news").publish(Event::new("headline", "Bridge closed")).await?;
/// assert_eq!((receipt.position, receipt.connections), (hub.position(), 1));
/// assert!(!receipt.key_ignored);
/// # drop(page);
/// # Ok(()) }
/// ```
#[doc(alias = "Published")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Receipt {
    /// The position of the event in the log, which is also its `id` on the wire. For a command, the
    /// newest position of the log when the command was issued.
    pub position: Position,
    /// The number of affected connections of this instance. It does not include the connections of
    /// other instances, and is zero for a [`Publisher`](crate::Publisher), which has no
    /// connections.
    ///
    /// - After a publish: the connections that listen to the target. The number is exact for a
    ///   topic, a user or everyone. For a target of several addresses it is an upper bound, because
    ///   a connection that listens to two of them counts twice.
    ///   [`Target::except`](crate::Target::except) does not reduce the number.
    /// - After a join or a leave: the connections whose topics have changed.
    /// - After a disconnect: the connections that end.
    #[doc(alias = "receivers")]
    pub connections: usize,
    /// Whether the [key](crate::Event::key) of the event had no effect, because the retention of
    /// none of its targets keeps the newest event of each key. The hub or the publisher also logs a
    /// warning. Always false for commands, and for records of
    /// [`Publisher::publish_prepared`](crate::Publisher::publish_prepared).
    pub key_ignored: bool,
}
