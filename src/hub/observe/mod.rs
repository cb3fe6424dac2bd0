//! Counters, log lines, statistics and lifecycle events.
//!
//! 1. No log line above the level `debug` names a user, a topic or the query of a request
//!    ([`counters`]).
//! 2. The counter of deliveries is spread over several cache lines, and [`stats`] contains the sum
//!    ([`counters`]).
//! 3. A hub logs one line before it serves its first request: the location of the log, the name of
//!    the instance and the paths of the layers ([`start`]).
//! 4. The hub waits for no consumer of lifecycle events. A slow consumer skips events, and receives
//!    their number ([`lifecycle`]).
//! 5. With the feature `metrics`, a delivery adds its bytes to a counter in the cache lines of its
//!    counter of deliveries, and one delivery in 64 records its duration. All other metrics follow
//!    the statistics, or are recorded at rarer events (`metrics`).

pub(super) mod counters;
pub(super) mod lifecycle;
#[cfg(feature = "metrics")]
pub(super) mod metrics;
pub(super) mod start;
pub(super) mod stats;
