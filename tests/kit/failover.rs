//! Waits for brokers of several servers, which may have to elect a leader.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of it")]

use super::processes::FAILOVER_PATIENCE;
use super::{eventually, within};

/// Waits for a future, and panics with the place of the caller after [`FAILOVER_PATIENCE`].
#[track_caller]
pub fn soon<F: Future>(future: F) -> impl Future<Output = F::Output> {
    within(FAILOVER_PATIENCE, future)
}

/// Polls a condition every millisecond until it holds, for at most [`FAILOVER_PATIENCE`].
#[track_caller]
pub fn until(holds: impl FnMut() -> bool) -> impl Future<Output = ()> {
    soon(eventually(holds))
}
