//! The life of one open stream.

pub(super) mod admission;
pub(super) mod driver;
pub(super) mod offer;
pub(super) mod timers;
