//! Sockets below the server.
//!
//! 1. Bytes that wait have a deadline, and the hub can cut a socket ([`io`]).
//! 2. A client that leaves is noticed although no server reads ([`io`]).
//! 3. A socket is taken over together with its stream only where the hub recognises its own bytes
//!    ([`takeover`]).

mod io;
#[cfg(feature = "axum-listener")]
mod listener;
pub(crate) mod takeover;

pub use io::{SseConnectInfo, SseIo};
#[cfg(feature = "axum-listener")]
pub use listener::{SseListener, SseMakeService};
