//! Who is in which topic, and every change of that.

pub(super) mod changes;
pub(super) mod roster;
