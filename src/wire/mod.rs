//! Bytes of the event stream. Pure: no I/O, no clock.
//!
//! The rules that real clients and proxies force beyond the HTML standard are in `docs/wire.md`.

pub(crate) mod control;
mod frame;

pub(crate) use frame::{Draft, Frame, Framing, IdPrefix};

/// One comment line without a blank line after it: two well-used clients make an empty message of a comment that is
/// followed by one.
pub(crate) const HEARTBEAT: &[u8] = b":\n";
