//! What an application can set, and what the running hub looks up.

pub(super) mod limits;
pub(super) mod origins;
pub(super) mod settings;
pub(super) mod validation;
