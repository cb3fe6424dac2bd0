//! Descriptions of the events for other programs, generated from the types of the messages.
//!
//! 1. A page gets a module in TypeScript (`typescript.rs`), and any other program gets a part of an
//!    OpenAPI document (`stream_schema.rs`).
//! 2. Both list the events of the application and those of the hub. The hub's events are described
//!    in one place ([`hub_events`]), which a test compares with the frames of the hub.
//! 3. Each event belongs to one type ([`event_names`]). A description that would be wrong is an
//!    error that names the type ([`error`]).
//! 4. Types of TypeScript are read as text, because `ts-rs` returns text (`types_text.rs`).

mod error;
mod event_names;
mod hub_events;
#[cfg(feature = "typescript")]
mod module_text;
#[cfg(feature = "openapi")]
mod stream_schema;
#[cfg(feature = "typescript")]
mod types_text;
#[cfg(feature = "typescript")]
mod typescript;

pub use error::DescribeError;
#[cfg(feature = "openapi")]
pub use stream_schema::StreamSchema;
#[cfg(feature = "typescript")]
pub use typescript::TypeScript;
