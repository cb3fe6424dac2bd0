//! Work on the log that several instances share. [`shared_log`] has its state.
//!
//! 1. One task follows the log, and only it applies records, in their order ([`follow`], [`apply`]).
//! 2. A log that was rolled back is recognised by its contents, also if it has grown again
//!    ([`history`]).
//! 3. A record that is missing in an answer is lost only if the log says so, or if it is still missing
//!    after a while ([`apply`]).
//! 4. Records that memory has dropped are read in blocks, by one task for all streams that need them
//!    ([`backfill`], [`blocks`]).
//! 5. Commands and news of connections reach every instance. After a failure an instance goes on after
//!    the last message that it heard ([`bus`]).
//! 6. A join waits until this instance's log has reached the position at which it was given, or for
//!    the publish timeout ([`bus`]).
//! 7. A record on a broker is JSON that other languages can write. A record that no hub could have
//!    written is skipped ([`record`], [`presence_records`]).
//! 8. Instances with different settings log it once and go on ([`settings_digest`]).

pub(super) mod append;
mod apply;
pub(super) mod backfill;
mod blocks;
pub(super) mod bus;
pub(super) mod follow;
mod history;
mod presence_records;
mod record;
mod settings_digest;
pub(super) mod shared_log;
