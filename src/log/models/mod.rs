//! The log against models: lists that can be read, and every order of threads.

#[cfg(all(test, not(tower_sse_loom)))]
mod backfill;
#[cfg(all(test, tower_sse_loom))]
mod interleavings;
#[cfg(all(test, not(tower_sse_loom)))]
mod log;
