//! Why something happened to a stream: the vocabulary of the control events. One place, so that the wire, the
//! statistics and the logs say the same words.

use std::fmt;
use std::str::FromStr;

use super::as_text::serde_as_text;

macro_rules! reasons {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $text:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum $name {
            $($(#[$variant_doc])* $variant,)*
        }

        impl $name {
            /// All of them, in the order of their documentation.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// The word on the wire.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)*
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl FromStr for $name {
            type Err = UnknownReason;
            fn from_str(word: &str) -> Result<Self, UnknownReason> {
                Self::ALL.iter().copied().find(|reason| reason.as_str() == word).ok_or(UnknownReason)
            }
        }

        serde_as_text!($name by as_str);
    };
}

/// The text is no reason that this version of the crate knows. A later version may have more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownReason;

impl fmt::Display for UnknownReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("unknown reason")
    }
}

impl std::error::Error for UnknownReason {}

reasons! {
    /// Why records are not to be had: the `reason` of `hub.gap`.
    GapReason {
        /// They were dropped, by the bounds of the retention, before the client came back for them.
        Trimmed = "trimmed",
        /// The client's position is from another life of the log: the process was started anew.
        Epoch = "epoch",
        /// The client's position is above everything that the log ever held.
        Ahead = "ahead",
        /// What the client sent is not a position.
        Invalid = "invalid",
        /// They were dropped while the stream was open, since it was read too slowly.
        Lagged = "lagged",
        /// The broker does not have them any more, or holds something there that cannot be read.
        Lost = "lost",
    }
}

reasons! {
    /// Why a request got no stream: the `reason` of `hub.refused`, a stream of one event that tells the browser when
    /// to try again.
    RefusalReason {
        /// The application said [`Refusal::retry_later`](crate::Refusal::retry_later).
        Busy = "busy",
        /// A limit on connections is reached.
        Limit = "limit",
        /// The hub is being drained: the next attempt should meet another instance, or the next process.
        Draining = "draining",
        /// The access hook did not answer in time.
        Timeout = "timeout",
        /// The instance has not read the log yet that it shares with others, or cannot ask it for a
        /// ticket: its broker is not there.
        Starting = "starting",
        /// Its user or topic was disconnected while the request was being decided, perhaps by what was true before. The
        /// next attempt is decided anew.
        #[doc(alias = "Kicked")]
        Disconnected = "disconnected",
    }
}

reasons! {
    /// Why a stream ended: the `reason` of `hub.bye` where the hub ended it, and the key of
    /// [`Stats::ended`](crate::Stats::ended).
    EndReason {
        /// The client went away, or its connection broke. It comes back by itself if it wants to. Never in a `hub.bye`.
        Client = "client",
        /// The hub is being drained. The client should come back.
        Draining = "draining",
        /// The subscription's time was over. The client should come back, with new credentials.
        Expired = "expired",
        /// It fell out of a channel's retention and the channel's policy is
        /// [`LagPolicy::Disconnect`](crate::LagPolicy::Disconnect). The client should come back.
        Lagged = "lagged",
        /// It took nothing for the write deadline while something was owed. Hardly ever seen in a `hub.bye`, for it
        /// reads nothing. The client may come back.
        Stalled = "stalled",
        /// The application disconnected it: [`Target::disconnect`](crate::Target::disconnect).
        /// Whether the client should come back is what the [`Disconnect`](crate::Disconnect) says.
        #[doc(alias = "Kicked")]
        Disconnected = "disconnected",
        /// [`Access::recheck`](crate::Access::recheck) ended it, or failed twice in a row. The client should come back,
        /// and is decided anew, unless the hook refused it for later or for good.
        Revoked = "revoked",
        /// It was the oldest when a limit was reached whose policy is
        /// [`OverLimit::CloseOldest`](crate::OverLimit::CloseOldest). The client should come back later.
        Limit = "limit",
        /// It reached [`HubBuilder::max_connection_age`](crate::HubBuilder::max_connection_age). The client should come
        /// back, and misses nothing.
        Age = "age",
    }
}
