//! Work on the log that several instances share.

#[cfg(feature = "json")]
pub(super) mod append;
#[cfg(feature = "json")]
pub(super) mod backfill;
#[cfg(feature = "json")]
pub(super) mod bus;
#[cfg(feature = "json")]
pub(super) mod follow;
#[cfg(not(feature = "json"))]
#[path = "no_follow.rs"]
pub(super) mod follow;
#[cfg(feature = "json")]
pub(super) mod history;
#[cfg(feature = "json")]
pub(super) mod presence_records;
#[cfg(feature = "json")]
pub(super) mod record;
#[cfg(feature = "json")]
pub(super) mod settings_digest;
