//! Sockets below the server.

mod io;
#[cfg(feature = "axum-serve")]
mod listener;
pub(crate) mod takeover;

pub use io::{SseConnectInfo, SseIo};
#[cfg(feature = "axum-serve")]
pub use listener::{SseListener, SseMakeService};
