//! How the application parts with clients.

use std::sync::Arc;
use std::time::Duration;

use super::error::{InvalidName, NameProblem};

/// How to part with clients: whether they should come back, and what their pages are told. The argument of
/// [`Target::disconnect`](crate::Target::disconnect).
///
/// ```
/// use std::time::Duration;
/// use tower_sse::Disconnect;
///
/// let renew = Disconnect::now();
/// let calm = Disconnect::reconnect_after(Duration::from_secs(60));
/// let out = Disconnect::block_for(Duration::from_secs(3600)).note("signed out everywhere");
/// # let _ = (renew, calm, out);
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
    /// The longest [`note`](Self::note), in bytes.
    pub const MAX_NOTE_BYTES: usize = 1024;

    /// They come back after one to two times [`HubBuilder::retry`](crate::HubBuilder::retry), so
    /// that many do not come together, and the access hook is asked anew. The default.
    #[must_use]
    pub fn now() -> Self {
        Self::default()
    }

    /// They come back after this time and up to half of it more, at random; within
    /// 0.1 s to 1 h.
    #[doc(alias = "later")]
    #[must_use]
    pub fn reconnect_after(after: Duration) -> Self {
        Self { reconnect: Reconnect::After(after), note: None }
    }

    /// They do not come back: who returns within this time gets `204`, after which browsers stay away for good.
    ///
    /// A stream is recognised by the id that its `hub.bye` leaves with it, and besides by the target: a request
    /// for a stream of this user, or of this topic, gets `204` too, with any id. A connection has no name that would
    /// outlast it, so a new page of the same person is let in; and so it is where the target excludes a connection
    /// ([`Target::except`](crate::Target::except): "sign out everywhere else"). After this time it all is as before.
    #[doc(alias = "never")]
    #[must_use]
    pub fn block_for(within: Duration) -> Self {
        Self { reconnect: Reconnect::BlockedFor(within), note: None }
    }

    /// Tells the page why, in `hub.bye`: text for people or a word for the script. At most
    /// [`MAX_NOTE_BYTES`](Self::MAX_NOTE_BYTES). Defaults to nothing.
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
