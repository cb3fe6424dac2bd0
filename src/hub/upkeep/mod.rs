//! The background work of one instance: housekeeping and rechecks.
//!
//! Each of the two is one task, which runs in a [slot](super::tasks).
//!
//! 1. The housekeeping drops records past their age, forgets users past their grace period, and
//!    ends streams that have stalled ([`sweep`]).
//! 2. A connection that needs rechecks is in the schedule, is being checked, or has left the
//!    registry ([`schedule`] and [`recheck`]).

pub(super) mod recheck;
pub(super) mod schedule;
pub(super) mod sweep;
