//! Taking a stream over from the server, together with its socket.

pub(crate) mod body_side;
pub(super) mod socket;
#[cfg(unix)]
pub(super) mod stream;
#[cfg(unix)]
pub(super) mod writer;
#[cfg(not(unix))]
#[path = "no_writer.rs"]
pub(super) mod writer;
