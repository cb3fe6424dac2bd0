//! Control messages, and the size of shared values.

use bytes::Bytes;

/// The maximum size of a value of [`Backplane::put_shared`](super::Backplane::put_shared) in bytes: 768 KiB. Every broker accepts
/// a message of this size by default.
pub const MAX_SHARED_BYTES: usize = 768 * 1024;

/// The control stream to which [`Backplane::broadcast`](super::Backplane::broadcast) sends a message. The broker limits each
/// stream separately, so that many presence messages displace no command.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use futures::StreamExt;
/// use tower_sse::backplane::{Backplane, ControlStream, Memory};
///
/// let log = Memory::new();
/// let mut messages = log.listen(None);
/// log.broadcast(ControlStream::Commands, "disconnect ada".into()).await?;
/// for n in 0..20_000 {
///     log.broadcast(ControlStream::Presence, format!("connection {n}").into()).await?;
/// }
/// let Some(received) = messages.next().await else { panic!("the stream ended") };
/// assert_eq!(received?.message, "disconnect ada");
/// # Ok(()) }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ControlStream {
    /// Commands for connections, for example disconnects, and requests to stop a run.
    Commands,
    /// Reports of an instance about itself: its connections, its lease and its runs.
    Presence,
}

impl ControlStream {
    /// All control streams. An adapter listens to each of them.
    pub const ALL: &[Self] = &[Self::Commands, Self::Presence];

    /// Returns the name of the stream, of lower case letters and underscores. An adapter can use it
    /// in a key or a subject of the broker, so that it stores streams of later versions separately
    /// too.
    ///
    /// ```
    /// use tower_sse::backplane::ControlStream;
    ///
    /// let keys = ControlStream::ALL.iter().map(|stream| format!("shop:{}", stream.name()));
    /// assert_eq!(keys.collect::<Vec<_>>(), ["shop:commands", "shop:presence"]);
    /// ```
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Commands => "commands",
            Self::Presence => "presence",
        }
    }
}

/// A control message that [`Backplane::listen`](super::Backplane::listen) returns.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use futures::StreamExt;
/// use tower_sse::backplane::{Backplane, ControlMessage, ControlStream, Memory};
///
/// let log = Memory::new();
/// let mut messages = log.listen(None);
/// log.broadcast(ControlStream::Presence, "goodbye".into()).await?;
/// let Some(received) = messages.next().await else { panic!("the stream ended") };
/// let ControlMessage { message, .. } = received?;
/// assert_eq!(message, "goodbye");
/// # Ok(()) }
/// ```
#[doc(alias = "Told")]
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ControlMessage {
    /// The position of the message in the control streams, in the adapter's own format.
    /// [`Backplane::listen`](super::Backplane::listen) can continue after this position.
    pub mark: Box<str>,
    /// The bytes of the message.
    pub message: Bytes,
}

impl ControlMessage {
    /// Creates a message with its mark.
    pub fn new(mark: impl Into<Box<str>>, message: Bytes) -> Self {
        Self { mark: mark.into(), message }
    }
}
