//! The hub as a tower service: layer, endpoint and handler mount answer requests with event
//! streams.
//!
//! 1. Layer, endpoint and handler mount share one implementation, and so have the same rules
//!    ([`respond`]).
//! 2. The hub checks the method, the `Accept` header, the host and the origin before it calls the
//!    access hook ([`negotiate`], [`origin`]).
//! 3. The access hook has a time limit, and a panic in the hook becomes a `500` ([`hook`]).
//! 4. A body whose socket the hub knows returns a limited number of bytes before the server has
//!    flushed ([`pace`]).
//! 5. A retryable refusal is a stream with one event, after which a browser's `EventSource`
//!    reconnects ([`respond`]).
//! 6. A client changes the topics of its stream with a separate request, within the grants of the
//!    access hook ([`topics`]).

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
mod run;
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
pub use run::BeginRunFor;
