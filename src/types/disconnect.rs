//! How the application parts with clients.

use std::sync::Arc;
use std::time::Duration;

use super::error::{InvalidName, NameProblem};

/// Settings for the end of streams: when clients may reconnect, and a note for their pages. The
/// argument of [`Target::disconnect`](crate::Target::disconnect).
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

/// Whether a client comes back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Reconnect {
    #[default]
    Now,
    /// After about this time.
    After(Duration),
    /// Not within this time.
    BlockedFor(Duration),
}

impl Reconnect {
    pub(crate) fn is_stricter_than(self, other: Self) -> bool {
        let rank = |reconnect| match reconnect {
            Self::Now => 0,
            Self::After(_) => 1,
            Self::BlockedFor(_) => 2,
        };
        rank(self) > rank(other)
    }

    /// The word in `hub.bye`.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Now => "now",
            Self::After(_) => "later",
            Self::BlockedFor(_) => "never",
        }
    }
}

impl Disconnect {
    /// The maximum length of a [`note`](Self::note), in bytes.
    pub const MAX_NOTE_BYTES: usize = 1024;

    /// Lets clients reconnect after one to two times
    /// [`HubBuilder::retry`](crate::HubBuilder::retry), so that they do not all reconnect at once.
    /// The hub calls the access hook for each new request. The default.
    #[must_use]
    pub fn now() -> Self {
        Self::default()
    }

    /// Lets clients reconnect after this time and up to half of it more, at random. The hub keeps
    /// the time within 0.1 s to 1 h.
    #[doc(alias = "later")]
    #[must_use]
    pub fn reconnect_after(after: Duration) -> Self {
        Self { reconnect: Reconnect::After(after), note: None }
    }

    /// Bans clients for this time: a client that returns within it gets `204`, after which browsers
    /// stay away for good.
    ///
    /// The hub recognizes a stream by the id that its `hub.bye` leaves with the client. The hub
    /// also recognizes the target: a request for a stream of this user, or of this topic, gets
    /// `204` with any id. A connection has no name that outlasts it, so the hub admits a new page
    /// of the same user. The hub also does so where the target excludes a connection
    /// ([`Target::except`](crate::Target::except): "sign out everywhere else"). After this time the
    /// ban is over.
    #[doc(alias = "never")]
    #[must_use]
    pub fn block_for(within: Duration) -> Self {
        Self { reconnect: Reconnect::BlockedFor(within), note: None }
    }

    /// Sets a note that the page receives in `hub.bye`: text for people or a word for the script.
    /// The note has at most [`MAX_NOTE_BYTES`](Self::MAX_NOTE_BYTES). Defaults to none.
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
