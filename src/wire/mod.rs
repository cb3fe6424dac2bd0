//! Bytes of the event stream. Pure: no I/O, no clock.
//!
//! The rules that real clients and proxies force beyond the HTML standard are in `docs/wire.md`.

mod frame;
pub(crate) mod hub_events;

pub(crate) use frame::{Chunk, Draft, Frame, Framing, IdPrefix, close_chunk, open_chunk};

/// One comment line without a blank line after it: two well-used clients make an empty message of a comment that is
/// followed by one.
pub(crate) const HEARTBEAT: &[u8] = b":\n";

/// The last chunk of an HTTP/1.1 body.
#[cfg_attr(not(unix), allow(dead_code, reason = "sockets are handed over on Unix only"))]
pub(crate) const LAST_CHUNK: &[u8] = b"0\r\n\r\n";
