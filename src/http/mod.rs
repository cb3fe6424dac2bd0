//! The hub as HTTP: from a request to a stream, three ways to mount it, and the listener below.

mod access;
mod body;
mod change;
mod connect;
mod endpoint;
mod frames;
mod future;
#[cfg(unix)]
mod handed;
mod hook;
mod io;
mod layer;
#[cfg(feature = "axum-serve")]
mod listener;
mod negotiate;
mod offered;
mod origin;
mod pace;
mod public;
mod respond;
mod service;
mod socket;
mod ticket;
#[cfg(unix)]
mod writer;
#[cfg(not(unix))]
#[path = "no_writer.rs"]
mod writer;

pub use access::Access;
pub use body::{EventBody, ResponseBody};
pub use connect::Connect;
pub use endpoint::SseEndpoint;
pub use future::{EndpointFuture, ResponseFuture};
pub use io::{SseConnectInfo, SseIo};
pub use layer::SseLayer;
#[cfg(feature = "axum-serve")]
pub use listener::{SseListener, SseMakeService};
pub use public::Public;
pub use respond::EventStream;
pub use service::SseService;
