//! Takeover: the hub takes a stream over from the server, together with its socket.
//!
//! 1. The body offers its stream and waits. If the offer is declined, the body continues the stream
//!    ([`body_side`]).
//! 2. The hub takes a stream over only after exactly its first frame was sent. Otherwise the stream
//!    stays with its body ([`offer`]).
//! 3. The socket accepts the offer if the server has sent exactly the first frame, after a head
//!    with `Connection: close` ([`socket`]).
//! 4. One task writes the streams of thousands of sockets ([`writer`]).
//! 5. The hub replaces the server for each stream: it writes chunks, enforces the write deadline,
//!    and ends the response properly ([`stream`]).

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
