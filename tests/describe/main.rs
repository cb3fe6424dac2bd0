//! Descriptions of the events for other programs: the page's module in TypeScript and JavaScript,
//! and the schema of a stream in an OpenAPI document. The compiler of TypeScript, a validator of
//! OpenAPI documents and real events of a hub judge them.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests and their helpers may panic")]

#[path = "../kit/mod.rs"]
mod kit;

mod messages;
mod module;
mod node;
mod openapi;
mod problems;
mod sent;
mod workspace;
