//! The reasons of gaps, refusals and ended streams. They are defined in one place, so that the
//! control events, the statistics and the logs use the same words.

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
            /// All reasons, in the order in which the type declares them.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// Returns the word for the reason on the wire.
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

/// The error of parsing a word that is not a reason in this version of the crate. A later version
/// may have more reasons.
///
/// ```
/// use tower_sse::{EndReason, UnknownReason};
///
/// assert_eq!("unplugged".parse::<EndReason>(), Err(UnknownReason));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownReason;

impl fmt::Display for UnknownReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("unknown reason")
    }
}

impl std::error::Error for UnknownReason {}

reasons! {
    /// The reason of a gap: the `reason` of `hub.gap`.
    ///
    /// ```
    /// use tower_sse::GapReason;
    ///
    /// assert_eq!(GapReason::Trimmed.as_str(), "trimmed");
    /// assert_eq!("lagged".parse(), Ok(GapReason::Lagged));
    /// ```
    GapReason {
        /// The events were dropped before the stream was opened, or before it joined their topic.
        Trimmed = "trimmed",
        /// The client's position is from another epoch of the log, or the log has begun a new epoch
        /// while the stream was open. Without a broker, every restart of the process begins a new
        /// epoch.
        Epoch = "epoch",
        /// The client's position is above the newest position of the log.
        Ahead = "ahead",
        /// The client sent an id that is not a position.
        Invalid = "invalid",
        /// The events were dropped while the stream was open, because the client read too slowly.
        Lagged = "lagged",
        /// The broker no longer has the events, or has a record that this instance cannot read.
        Lost = "lost",
    }
}

reasons! {
    /// The reason for which a request received no stream: the `reason` of `hub.refused`. The
    /// response is then a stream with only this event, which sets when the browser retries.
    ///
    /// ```
    /// use tower_sse::{Refusal, RefusalReason};
    ///
    /// let refusal = Refusal::retry_later(RefusalReason::Busy);
    /// assert_eq!(RefusalReason::Busy.as_str(), "busy"); // the word in `hub.refused`
    /// # let _ = refusal;
    /// ```
    RefusalReason {
        /// The application returned [`Refusal::retry_later`](crate::Refusal::retry_later) with this
        /// reason, or the operating system returned no random bytes.
        Busy = "busy",
        /// A limit on connections or on requests per second is reached.
        Limit = "limit",
        /// The hub is draining. The client should retry, and reaches another instance or the next
        /// process.
        Draining = "draining",
        /// The access hook did not answer in time.
        Timeout = "timeout",
        /// The instance has not read the shared log yet, cannot look up a ticket or a run because
        /// the broker is unavailable, or has an older version that cannot read the rest of a run.
        Starting = "starting",
        /// The user, a topic or everyone was disconnected while the hub authorized the request, so
        /// the result may be outdated. The client should retry, and the hub authorizes the new
        /// request.
        #[doc(alias = "Kicked")]
        Disconnected = "disconnected",
    }
}

reasons! {
    /// The reason for which a stream ended: the `reason` of `hub.bye` if the hub ended it, and the
    /// argument of [`Stats::ended`](crate::Stats::ended).
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use tower_sse::{Disconnect, EndReason, Hub, SubscriberItem, Subscription};
    ///
    /// let hub = Hub::builder().build()?;
    /// let mut page = hub.subscribe(Subscription::for_user("ada"), None)?;
    /// hub.user("ada").disconnect(Disconnect::now()).await?;
    /// let mut last = None;
    /// while let Some(item) = page.next().await {
    ///     last = Some(item);
    /// }
    /// assert_eq!(last, Some(SubscriberItem::End(EndReason::Disconnected)));
    /// # Ok(()) }
    /// ```
    EndReason {
        /// The client closed the stream, or its connection broke. Never in a `hub.bye`.
        Client = "client",
        /// The hub is draining. The client should reconnect.
        Draining = "draining",
        /// The subscription expired. The client should reconnect with new credentials.
        Expired = "expired",
        /// The stream fell behind the retention of an audience whose policy is
        /// [`LagPolicy::Disconnect`](crate::LagPolicy::Disconnect). The client should reconnect.
        Lagged = "lagged",
        /// The client took no bytes for the write deadline while bytes were waiting. Such a client
        /// rarely receives the `hub.bye`. The client may reconnect.
        Stalled = "stalled",
        /// The application disconnected the client with
        /// [`Target::disconnect`](crate::Target::disconnect). The [`Disconnect`](crate::Disconnect)
        /// sets whether and when the client should reconnect.
        #[doc(alias = "Kicked")]
        Disconnected = "disconnected",
        /// [`Access::recheck`](crate::Access::recheck) ended the stream, or failed twice in a row.
        /// The client should reconnect, and the access hook authorizes the new request. After
        /// [`Refusal::retry_later`](crate::Refusal::retry_later) the client should reconnect later.
        /// After [`Refusal::gone`](crate::Refusal::gone) the client is banned for a day.
        Revoked = "revoked",
        /// The stream was the oldest when a limit was reached whose policy is
        /// [`OverLimit::CloseOldest`](crate::OverLimit::CloseOldest). The client should reconnect
        /// later.
        Limit = "limit",
        /// The events after the stream's position were lost, and the stream is
        /// [bare](crate::Subscription::bare), so that it could not report the gap. Never in a
        /// `hub.bye`.
        Gap = "gap",
        /// The stream reached
        /// [`HubBuilder::max_connection_age`](crate::HubBuilder::max_connection_age). The client
        /// should reconnect, and then resumes.
        Age = "age",
        /// The run has ended: its writer finished it. The client should not reconnect, as after
        /// each of the following reasons.
        Finished = "finished",
        /// The run has ended: its writer reported a failure.
        Failed = "failed",
        /// The run has ended: its writer finished it after [`Run::stop`](crate::Run::stop).
        Stopped = "stopped",
        /// The run has ended without its writer, for example because the writer was dropped or its
        /// instance has died.
        Aborted = "aborted",
    }
}
