//! The work of a hub on a log that several instances share. [`shared_log`] has the state.
//!
//! 1. One task follows the log. Only this task applies records, in the order of the log
//!    ([`follow`], [`apply`]).
//! 2. The hub detects a log that was rolled back, even if the log has grown since: the hub compares
//!    records that it has applied with the records that the log has now ([`history`]).
//! 3. A record that is missing in a response counts as lost only if the state of the log proves the
//!    loss, or if the record is still missing after the publish timeout ([`apply`]).
//! 4. Records that are no longer in memory are read from the broker in blocks, by one task for all
//!    streams that need them ([`backfill`], [`blocks`]).
//! 5. Instances broadcast commands and presence updates ([`broadcast`]). After a failure, an
//!    instance continues after the last control message that it received ([`bus`]). It reads the
//!    connections of an instance whose presence updates it has missed ([`connections`]).
//! 6. A join that another instance has issued waits until this instance's log has reached the
//!    position at which the join was issued, at most for the publish timeout ([`commands`]).
//! 7. A record on a broker is JSON, which programs in other languages can write. The hub skips a
//!    record that it cannot decode, or that breaks the rules for published events ([`record`],
//!    [`presence_records`]).
//! 8. Each run is stored in its own journal ([`runs`]). One task reads them. Another one ends
//!    runs whose callers are gone ([`run_ends`]).
//! 9. Instances with different settings work together. Each of them logs at most one warning
//!    ([`settings_digest`]).

pub(super) mod append;
mod apply;
pub(super) mod backfill;
mod blocks;
mod broadcast;
pub(super) mod bus;
mod commands;
mod connections;
pub(super) mod follow;
mod history;
mod peek;
mod presence_records;
mod record;
pub(super) mod run_ends;
pub(super) mod runs;
mod settings_digest;
pub(super) mod shared_log;
