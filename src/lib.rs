//! x
#![allow(missing_docs, dead_code, unused)]
mod audience;
mod error;
mod event;
mod log;
mod name;
mod position;
mod reason;
mod retention;
mod subscription;
mod sync;
mod wire;
pub use {audience::*, error::*, event::*, name::*, position::*, reason::*, retention::*, subscription::*};
