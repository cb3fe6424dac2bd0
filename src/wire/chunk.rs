//! HTTP/1.1 chunks: the size in eight hexadecimal digits, the events, and the end of the chunk.
//!
//! A body uses the content of a chunk, because the HTTP server adds its own framing. A writer that
//! owns its socket uses the whole chunk. Both share the same bytes.

use std::fmt;

use bytes::{Buf, Bytes};

pub(super) const CHUNK_HEAD: &[u8] = b"00000000\r\n";

const CHUNK_TAIL: &[u8] = b"\r\n";

/// Encoded events as one HTTP/1.1 chunk.
#[derive(Clone)]
pub(crate) struct Chunk(Bytes);

impl Chunk {
    /// Joins several chunks into one. `bytes` is the length of their content.
    pub(crate) fn of<'a>(chunks: impl Iterator<Item = &'a Self>, bytes: usize) -> Self {
        let mut out = Vec::with_capacity(CHUNK_HEAD.len() + bytes + CHUNK_TAIL.len());
        open_chunk(&mut out);
        chunks.for_each(|chunk| out.extend_from_slice(chunk.inside()));
        Self::close(out)
    }

    /// Ends the chunk that begins at the first of these bytes.
    pub(super) fn close(mut bytes: Vec<u8>) -> Self {
        close_chunk(&mut bytes, 0);
        Self(bytes.into())
    }

    /// Returns the whole chunk, with its size and its end.
    pub(crate) fn into_whole(self) -> Bytes {
        self.0
    }

    /// Returns the content: the events without the size and the end of the chunk.
    pub(crate) fn into_inside(mut self) -> Bytes {
        self.0.truncate(self.0.len() - CHUNK_TAIL.len());
        self.0.advance(CHUNK_HEAD.len());
        self.0
    }

    pub(super) fn inside(&self) -> &[u8] {
        &self.0[CHUNK_HEAD.len()..self.0.len() - CHUNK_TAIL.len()]
    }
}

/// Begins an HTTP/1.1 chunk, and returns its offset in `out`. [`close_chunk`] writes its size.
pub(crate) fn open_chunk(out: &mut Vec<u8>) -> usize {
    let at = out.len();
    out.extend_from_slice(CHUNK_HEAD);
    at
}

/// Ends the chunk that begins at the offset `at`, and writes its size.
pub(crate) fn close_chunk(out: &mut Vec<u8>, at: usize) {
    let size = out.len() - at - CHUNK_HEAD.len();
    for (place, digit) in out[at..at + 8].iter_mut().rev().enumerate() {
        *digit = b"0123456789abcdef"[(size >> (4 * place)) & 15];
    }
    out.extend_from_slice(CHUNK_TAIL);
}

/// Shows only the size, because the data may be secret.
impl fmt::Debug for Chunk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Chunk({} bytes)", self.0.len())
    }
}
