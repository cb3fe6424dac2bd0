//! What the hub counts, logs and reports.
//!
//! 1. No log line above debug names a user, a topic or a query ([`counters`]).
//! 2. The counter of deliveries is spread over several cache lines, and [`stats`] sums them
//!    ([`counters`]).
//! 3. A hub logs one line at its start: where the log is, its name and its mounts ([`start`]).
//! 4. A consumer of lifecycle events that is too slow is told that it missed some. Nothing waits for it
//!    ([`lifecycle`]).

pub(super) mod counters;
pub(super) mod lifecycle;
pub(super) mod start;
pub(super) mod stats;
