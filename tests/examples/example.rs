//! The examples themselves.

#![allow(dead_code, unreachable_pub, reason = "nobody calls their `main`")]

#[path = "../../examples/hyper/src/main.rs"]
pub mod hyper;
#[path = "../../examples/quickstart.rs"]
pub mod quickstart;
#[path = "../../examples/standalone/src/main.rs"]
pub mod standalone;
#[path = "../../examples/two_instances/main.rs"]
pub mod two_instances;
