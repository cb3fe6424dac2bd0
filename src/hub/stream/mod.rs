//! The life of one open stream.

pub(super) mod admission;
pub(super) mod driver;
pub(crate) mod encode;
pub(super) mod offer;
pub(super) mod timers;
