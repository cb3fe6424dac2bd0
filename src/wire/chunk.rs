//! Chunks of HTTP/1.1: eight digits of size, the events, and the end of a chunk.
//!
//! A body takes the inside, because the server writes chunks of its own. A writer that has the
//! socket to itself takes the whole. Both share the bytes.

use std::fmt;

use bytes::{Buf, Bytes};

pub(super) const CHUNK_HEAD: &[u8] = b"00000000\r\n";

const CHUNK_TAIL: &[u8] = b"\r\n";

/// Events as one chunk.
#[derive(Clone)]
pub(crate) struct Chunk(Bytes);

impl Chunk {
    /// Several chunks as one, with so many bytes inside.
    pub(crate) fn of<'a>(chunks: impl Iterator<Item = &'a Self>, bytes: usize) -> Self {
        let mut out = Vec::with_capacity(CHUNK_HEAD.len() + bytes + CHUNK_TAIL.len());
        open_chunk(&mut out);
        chunks.for_each(|chunk| out.extend_from_slice(chunk.inside()));
        Self::close(out)
    }

    /// The chunk that begins at the first of these bytes and is not closed yet.
    pub(super) fn close(mut bytes: Vec<u8>) -> Self {
        close_chunk(&mut bytes, 0);
        Self(bytes.into())
    }

    /// The chunk as it goes over HTTP/1.1.
    pub(crate) fn into_whole(self) -> Bytes {
        self.0
    }

    /// What is in it.
    pub(crate) fn into_inside(mut self) -> Bytes {
        self.0.truncate(self.0.len() - CHUNK_TAIL.len());
        self.0.advance(CHUNK_HEAD.len());
        self.0
    }

    pub(super) fn inside(&self) -> &[u8] {
        &self.0[CHUNK_HEAD.len()..self.0.len() - CHUNK_TAIL.len()]
    }
}

/// Begins an HTTP/1.1 chunk. Its size is filled in by [`close_chunk`].
pub(crate) fn open_chunk(out: &mut Vec<u8>) -> usize {
    let at = out.len();
    out.extend_from_slice(CHUNK_HEAD);
    at
}

/// Ends the chunk that begins there.
pub(crate) fn close_chunk(out: &mut Vec<u8>, at: usize) {
    let size = out.len() - at - CHUNK_HEAD.len();
    for (place, digit) in out[at..at + 8].iter_mut().rev().enumerate() {
        *digit = b"0123456789abcdef"[(size >> (4 * place)) & 15];
    }
    out.extend_from_slice(CHUNK_TAIL);
}

/// Only the size is shown: the data may be secret.
impl fmt::Debug for Chunk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Chunk({} bytes)", self.0.len())
    }
}
