//! The hub as HTTP: from a request to a stream, three ways to mount it, and the listener below.

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
mod service;
mod ticket;
mod topics;

pub use access::Access;
pub use body::{EventBody, ResponseBody};
pub use endpoint::SseEndpoint;
pub use future::{EndpointFuture, ResponseFuture};
pub use layer::SseLayer;
pub use public::Public;
pub use request::Connect;
pub use respond::EventStream;
pub use service::SseService;
