//! Work that one instance does in the background.

pub(super) mod recheck;
pub(super) mod sweep;
