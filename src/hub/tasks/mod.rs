//! Background tasks, and the worker of each runtime.

pub(super) mod slot;
pub(super) mod workers;
