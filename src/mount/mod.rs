//! The hub as a tower service: from a request to a response whose body is a stream.
//!
//! 1. All mountings meet in one function, so that they follow the same rules ([`respond`]).
//! 2. A request is refused for its method, its `Accept` header or its origin before the access hook is
//!    asked ([`negotiate`], [`origin`]).
//! 3. The hook has a time limit, and a panic in it is a 500 ([`hook`]).
//! 4. A body is a bounded number of bytes ahead of its socket ([`pace`]).
//! 5. A refusal that is temporary is a stream with one event, which a browser's `EventSource`
//!    survives ([`respond`]).
//! 6. A page changes topics by a request of its own, within what the hook allows ([`topics`]).

mod access;
mod body;
mod endpoint;
mod future;
mod hook;
mod layer;
mod negotiate;
mod origin;
mod pace;
mod public;
mod request;
mod respond;
mod ticket;
mod topics;

pub use access::{Access, AccessFn, IntoAccess};
pub use body::{EventBody, ResponseBody};
pub use endpoint::SseEndpoint;
pub use future::{EndpointFuture, ResponseFuture};
pub use layer::{SseLayer, SseService};
pub use public::Public;
pub use request::StreamRequest;
pub use respond::EventStream;
