//! Checked values: what was accepted once cannot be wrong afterwards.

pub(crate) mod audience;
pub(crate) mod command;
pub(crate) mod disconnect;
pub(crate) mod disconnect_clock;
pub(crate) mod error;
pub(crate) mod event;
pub(crate) mod name;
pub(crate) mod position;
pub(crate) mod reason;
pub(crate) mod refusal;
pub(crate) mod retention;
pub(crate) mod subscription;
