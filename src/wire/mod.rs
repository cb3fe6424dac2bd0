//! The bytes of the event stream. The encoding is pure: no I/O, no clock.
//!
//! 1. An event is encoded once, and all connections share the bytes ([`frame`]).
//! 2. The id of a frame comes last, so that a frame without its id is a prefix ([`frame`]).
//! 3. A frame is stored as a whole HTTP/1.1 chunk. A body uses the content of the chunk, and a
//!    writer that owns its socket uses the whole chunk ([`chunk`]).
//! 4. The data of the hub's own events is one line of JSON, to which fields may be added
//!    ([`hub_events`]).
//!
//! `docs/wire.md` has the rules beyond the HTML standard that clients and proxies require.

mod chunk;
mod frame;
pub(crate) mod hub_events;

pub(crate) use chunk::{Chunk, close_chunk, open_chunk};
pub(crate) use frame::{Draft, Frame, Framing, IdPrefix, RETRY_RANGE};

/// A comment line without a blank line after it. Two widely used clients would dispatch an empty
/// message after a comment that is followed by a blank line.
pub(crate) const HEARTBEAT: &[u8] = b":\n";

/// The last chunk of an HTTP/1.1 body.
pub(crate) const LAST_CHUNK: &[u8] = b"0\r\n\r\n";
