//! Tests of the log: property tests against simple references, and loom models of its threads.

#[cfg(all(test, not(tower_sse_loom)))]
mod backfill;
#[cfg(all(test, not(tower_sse_loom)))]
mod dormancy;
#[cfg(all(test, tower_sse_loom))]
mod interleavings;
#[cfg(all(test, not(tower_sse_loom)))]
mod log;
