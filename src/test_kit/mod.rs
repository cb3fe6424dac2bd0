//! Tools for the tests of applications. This module needs the feature `test-kit`.
//!
//! - A [`TestClient`] reads a stream of any tower service, for example of an axum `Router`, without
//!   a socket.
//! - A [`FaultyLog`] is a shared log for several hubs, whose faults a test scripts.
//! - [`assert_no_leaks`], [`assert_forgets_all`] and [`assert_freed`] check that a hub has released
//!   the state of closed streams, everything that it keeps for a limited time, and itself.
//! - [`check_backplane`] checks that an adapter keeps the contract of
//!   [`Backplane`](crate::backplane::Backplane).
//!
//! Each method that waits for an event or a state has a time limit, and panics with a description
//! of the received events or the remaining state. So a missing event fails the test in time. All of
//! them work with tokio's paused clock, in which a time limit costs no real time.
//!
//! ```
//! # #[cfg(all(feature = "axum", feature = "derive"))]
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use axum::{Router, body::Body};
//! use http::Request;
//! use serde::{Deserialize, Serialize};
//! use tower_sse::test_kit::TestClient;
//! use tower_sse::{Hub, Message, Public, TopicFilter};
//!
//! #[derive(Serialize, Deserialize, Message)]
//! #[message(event = "document.deleted")]
//! struct DocumentDeleted { id: u64 }
//!
//! let hub = Hub::builder().build()?;
//! let app = Router::new().layer(hub.layer("/events", Public::topics(TopicFilter::any())));
//!
//! let request = Request::get("/events?topic=documents").body(Body::empty())?;
//! let mut page = TestClient::open(&app, request).await?;
//! hub.topic("documents").send(&DocumentDeleted { id: 7 }).await?;
//! let deleted: DocumentDeleted = page.expect().await;
//! assert_eq!(deleted.id, 7);
//! # Ok(()) }
//! # #[cfg(not(all(feature = "axum", feature = "derive")))] fn main() {}
//! ```

mod client;
mod contract;
mod faults;
mod faulty_log;
mod leaks;

pub use client::{Refused, TestClient, TestEvent};
pub use contract::{check_backplane, check_clustered_backplane};
pub use faults::{Call, Fault, Faults, Operation};
pub use faulty_log::{FaultyLog, LogConnection};
pub use leaks::{assert_forgets_all, assert_freed, assert_no_leaks};
