//! Takeover: the hub takes a stream over from the server, together with its socket.
//!
//! 1. The body offers its stream and waits. It continues if the offer is declined ([`body_side`]).
//! 2. The hub takes a stream over only after exactly its first frame was sent. Otherwise the stream
//!    stays with its body ([`offer`]).
//! 3. The socket accepts the offer if the server has sent exactly that frame, behind a head with
//!    `Connection: close` ([`socket`]).
//! 4. One task writes the streams of thousands of sockets ([`writer`]).
//! 5. The hub does for each stream what a server does around a body: chunks, a write deadline and
//!    an orderly end ([`stream`]).

pub(crate) mod body_side;
pub(crate) mod offer;
pub(super) mod socket;
#[cfg(all(unix, feature = "takeover"))]
pub(super) mod stream;
#[cfg(all(unix, feature = "takeover"))]
pub(super) mod writer;
#[cfg(not(all(unix, feature = "takeover")))]
#[path = "no_writer.rs"]
pub(super) mod writer;
