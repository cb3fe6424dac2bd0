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
    /// The position of the event in the log, which is also the `id` that browsers receive with the
    /// event. For a command it is the position at which the command was issued.
    pub position: Position,
    /// The number of affected connections of this instance. It does not include the connections of
    /// other instances, and is zero for a [`Publisher`](crate::Publisher), which has no
    /// connections.
    ///
    /// - After a publish: the connections that listen to the target. The hub adds up one count for
    ///   each address of the target. The number is exact for a single address. It is an upper bound
    ///   for several addresses, because a connection that listens to two of them counts twice, and
    ///   with [`Target::except`](crate::Target::except). Zero is always exact.
    /// - After a join or a leave: the connections whose topics have changed.
    /// - After a disconnect: the connections that end.
    #[doc(alias = "receivers")]
    pub connections: usize,
    /// Whether the [key](crate::Event::key) of the event had no effect, because the retention of
    /// none of its targets keeps the newest event of each key. The hub also logs a warning. Always
    /// false for commands.
    pub key_ignored: bool,
}
