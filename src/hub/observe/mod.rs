//! What is counted, logged and told of the hub.

pub(super) mod counters;
pub(super) mod lifecycle;
pub(super) mod stats;
