//! Background work of one instance. It runs in [task slots](super::tasks).
//!
//! 1. Records past their age, users past their grace and streams that have stalled are found by one
//!    task ([`sweep`]).
//! 2. A connection whose access is to be checked again is in the schedule, is being checked, or is gone
//!    ([`schedule`] and [`recheck`]).

pub(super) mod recheck;
pub(super) mod schedule;
pub(super) mod sweep;
