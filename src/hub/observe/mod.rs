//! Counters, log lines, statistics and lifecycle events.
//!
//! 1. No log line above debug names a user, a topic or a query ([`counters`]).
//! 2. The counter of deliveries is spread over several cache lines, and [`stats`] contains the sum
//!    ([`counters`]).
//! 3. A hub logs one line at its start: the location of the log, its name and its mounts
//!    ([`start`]).
//! 4. The hub waits for no consumer of lifecycle events. A slow consumer skips events, and receives
//!    their number ([`lifecycle`]).

pub(super) mod counters;
pub(super) mod lifecycle;
pub(super) mod start;
pub(super) mod stats;
