//! The state of open connections.

pub(super) mod bans;
pub(super) mod handle;
pub(super) mod info;
pub(super) mod registry;
pub(super) mod socket;
