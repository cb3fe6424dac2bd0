//! x
#![allow(missing_docs)]
mod audience;
#[cfg(feature = "axum")]
mod axum;
mod error;
mod event;
mod http;
mod hub;
mod log;
mod name;
mod position;
mod reason;
mod retention;
mod subscription;
mod sync;
mod wire;

#[cfg(feature = "axum")]
pub use crate::axum::MissingHub;
pub use crate::error::{BuildError, InvalidName, PublishError};
pub use crate::event::Event;
#[cfg(feature = "axum-serve")]
pub use crate::http::SseListener;
pub use crate::http::{
    Access, Connect, EndpointFuture, EventBody, EventStream, Public, Refusal, ResponseBody, ResponseFuture,
    SseEndpoint, SseIo, SseLayer, SseService,
};
pub use crate::hub::{Drained, Health, Hub, HubBuilder, HubStream, Published, Received, Stats, StreamItem, Target};
pub use crate::name::{ConnectionId, Topic, UserId};
pub use crate::position::{Cursor, InvalidPosition, Position};
pub use crate::reason::{EndReason, GapReason, RefusalReason, Return};
pub use crate::retention::{LagPolicy, Retention, TopicRule};
pub use crate::subscription::{End, Start, Subscription, SubscriptionError};
