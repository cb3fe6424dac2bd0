//! The source of the examples, as modules.

#![allow(dead_code, unreachable_pub, reason = "no test calls their `main`")]
#![allow(clippy::duplicate_mod, reason = "each example includes `examples/shared/shutdown.rs`")]

#[path = "../../examples/hyper/src/main.rs"]
pub mod hyper;
#[path = "../../examples/quickstart.rs"]
pub mod quickstart;
#[path = "../../examples/standalone/src/main.rs"]
pub mod standalone;
#[path = "../../examples/two_instances/main.rs"]
pub mod two_instances;
