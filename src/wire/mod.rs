//! Bytes of the event stream. Pure: no I/O, no clock.
//!
//! 1. An event is encoded once, and all connections share the bytes ([`frame`]).
//! 2. The id of a frame comes last, so that a frame without its id is a prefix ([`frame`]).
//! 3. A frame is a whole HTTP/1.1 chunk. A body takes the inside of it, and a writer that owns its
//!    socket takes all of it ([`chunk`]).
//! 4. The hub's own events are JSON of one line to which fields may be added ([`hub_events`]).
//!
//! The rules that real clients and proxies force beyond the HTML standard are in `docs/wire.md`.

mod chunk;
mod frame;
pub(crate) mod hub_events;

pub(crate) use chunk::{Chunk, close_chunk, open_chunk};
pub(crate) use frame::{Draft, Frame, Framing, IdPrefix, RETRY_RANGE};

/// One comment line without a blank line after it: two well-used clients make an empty message of a comment that is
/// followed by one.
pub(crate) const HEARTBEAT: &[u8] = b":\n";

/// The last chunk of an HTTP/1.1 body.
pub(crate) const LAST_CHUNK: &[u8] = b"0\r\n\r\n";
