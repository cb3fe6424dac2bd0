//! Taking a stream over from the server, together with its socket.
//!
//! 1. The body offers its stream and waits, and goes on if the offer is declined ([`body_side`]).
//! 2. A stream is taken only after exactly its first frame has gone out, else it stays with its body
//!    ([`offer`]).
//! 3. The socket accepts when exactly the first frame has gone out behind a head that ends the
//!    connection ([`socket`]).
//! 4. One task writes the streams of thousands of sockets ([`writer`]).
//! 5. Each stream has what a server does around a body: chunks, a deadline and a proper end
//!    ([`stream`]).

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
