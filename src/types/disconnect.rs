//! The settings of a forced disconnect.

use std::sync::Arc;
use std::time::Duration;

use super::error::{InvalidName, NameProblem};

/// Settings of [`Target::disconnect`](crate::Target::disconnect): when clients may reconnect, and a
/// note for their pages.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use std::time::Duration;
/// use tower_sse::{Disconnect, Hub, Subscription};
///
/// let hub = Hub::builder().build()?;
/// hub.topic("news").disconnect(Disconnect::now()).await?;
/// hub.user("bob").disconnect(Disconnect::reconnect_after(Duration::from_secs(60))).await?;
///
/// let ban = Disconnect::block_for(Duration::from_secs(3600)).note("signed out everywhere");
/// hub.user("ada").disconnect(ban).await?;
/// assert!(hub.subscribe(Subscription::for_user("ada"), None).unwrap_err().is_banned());
/// # Ok(()) }
/// ```
#[doc(alias = "Kick")]
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Disconnect {
    pub(crate) reconnect: Reconnect,
    pub(crate) note: Option<Arc<str>>,
}

/// Whether and when a client may reconnect.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Reconnect {
    #[default]
    Now,
    /// The client may reconnect after about this time.
    After(Duration),
    /// The client is banned for this time.
    BlockedFor(Duration),
    /// The client should not reconnect, because the run that it read is over. It is not banned.
    Over,
}

impl Reconnect {
    /// Returns whether this setting is of a stricter kind than the other. The end of a run is
    /// stricter than a ban, a ban than a delay, and a delay than none. Durations are not compared.
    pub(crate) fn is_stricter_than(self, other: Self) -> bool {
        let rank = |reconnect| match reconnect {
            Self::Now => 0,
            Self::After(_) => 1,
            Self::BlockedFor(_) => 2,
            Self::Over => 3,
        };
        rank(self) > rank(other)
    }

    /// Returns the word for the setting in `hub.bye`.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Now => "now",
            Self::After(_) => "later",
            Self::BlockedFor(_) | Self::Over => "never",
        }
    }
}

impl Disconnect {
    /// The maximum length of a [`note`](Self::note), in bytes.
    pub const MAX_NOTE_BYTES: usize = 1024;

    /// Allows clients to reconnect after one to two times
    /// [`HubBuilder::retry`](crate::HubBuilder::retry), at random, so that they do not all
    /// reconnect at once. The hub calls the access hook for each new request. This is the default.
    #[must_use]
    pub fn now() -> Self {
        Self::default()
    }

    /// Allows clients to reconnect after this time and up to half of it more, at random. The hub
    /// clamps the time to 0.1 s to 1 h.
    #[doc(alias = "later")]
    #[must_use]
    pub fn reconnect_after(after: Duration) -> Self {
        Self { reconnect: Reconnect::After(after), note: None }
    }

    /// Bans clients for this time. A client that reconnects within this time gets `204`, after
    /// which browsers do not retry.
    ///
    /// The ban applies to the clients of the ended streams: their `hub.bye` has an id, which the
    /// client sends back when it reconnects. The ban also applies to the target: a request for a
    /// stream of this user or this topic gets `204` with any id. If the target is
    /// [`Hub::everyone`], every request for a stream gets `204`.
    ///
    /// If the target is a connection, the hub admits a new page of the same user, because a new
    /// page does not send that id. The hub also admits new pages if the target excludes a
    /// connection ([`Target::except`](crate::Target::except), for "sign out everywhere else").
    ///
    /// [`Hub::everyone`]: crate::Hub::everyone
    #[doc(alias = "never")]
    #[must_use]
    pub fn block_for(within: Duration) -> Self {
        Self { reconnect: Reconnect::BlockedFor(within), note: None }
    }

    /// Sets a note that the page receives in `hub.bye`, for example a text to show or a word for
    /// the script. The note has at most [`MAX_NOTE_BYTES`](Self::MAX_NOTE_BYTES). Defaults to none.
    #[must_use]
    pub fn note(mut self, note: impl Into<Arc<str>>) -> Self {
        self.note = Some(note.into());
        self
    }

    pub(crate) fn check(&self) -> Result<(), InvalidName> {
        match &self.note {
            Some(note) if note.len() > Self::MAX_NOTE_BYTES => {
                Err(InvalidName::new("note", NameProblem::TooLong { limit: Self::MAX_NOTE_BYTES }))
            }
            _ => Ok(()),
        }
    }
}
