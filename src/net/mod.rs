//! The sockets below the server.
//!
//! 1. Waiting bytes have a write deadline, and the hub can cut a socket ([`io`]).
//! 2. The hub detects the disconnect of a client even while the server does not read ([`io`]).
//! 3. The hub takes a socket over together with its stream only if the hub recognizes its own bytes
//!    ([`takeover`]).

mod io;
#[cfg(feature = "axum-listener")]
mod listener;
pub(crate) mod takeover;

pub use io::{SseConnectInfo, SseIo};
#[cfg(feature = "axum-listener")]
pub use listener::{SseListener, SseMakeService};
