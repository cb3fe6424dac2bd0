//! A record as bytes, encoded once and shared by every connection.
//!
//! ```text
//! 0000004f\r\n                 size of the HTTP/1.1 chunk, eight digits
//! event: document.deleted\n    ┐ lines
//! data: {"id":7}\n             ┘
//! id: 1.9f3c.42\n\n              the id comes last, so that a frame without it is a prefix
//! \r\n                         end of the chunk
//! ```
//!
//! A body writes the content of the chunk. A writer that owns its socket writes the whole chunk:
//! see [`chunk`](super::chunk).

use std::fmt;
use std::ops::RangeInclusive;
use std::time::Duration;

use super::chunk::{CHUNK_HEAD, Chunk, open_chunk};
use crate::types::{Epoch, Event, Ids, Position, PublishError};

const FRAME_END: &[u8] = b"\n";
/// The capacity for `id: `, a position and the line breaks. The value is small, so that a frame
/// allocates little more than its size. A longer position costs one more allocation.
const ID_ROOM: usize = 40;

/// The range of every `retry`. A shorter time would load the server with reconnects, and no user
/// waits longer than an hour.
pub(crate) const RETRY_RANGE: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(3_600);

/// The limits within which events are framed.
#[derive(Clone, Debug)]
pub(crate) struct Framing {
    /// The maximum size of the lines of an event without its id, in bytes.
    pub(crate) max_payload: usize,
}

/// An event that is encoded except for its id. Encoding happens before the log is locked, so that
/// the lock is held for a short time.
pub(crate) struct Draft {
    bytes: Vec<u8>,
}

/// The common prefix of the `id` lines of one epoch.
#[derive(Debug)]
pub(crate) struct IdPrefix(Box<str>);

impl IdPrefix {
    pub(crate) fn new(epoch: Epoch) -> Self {
        let id = Position::new(epoch, 0).to_string();
        Self(format!("id: {}", id.trim_end_matches('0')).into())
    }
}

/// The bytes of one record.
#[derive(Clone, Debug)]
pub(crate) struct Frame {
    chunk: Chunk,
    /// The offset of the `id` line in the content of the chunk.
    id_at: u32,
}

impl Draft {
    /// Checks and encodes an event.
    pub(crate) fn encode(event: &Event, framing: &Framing) -> Result<Self, PublishError> {
        event.check()?;
        Self::encode_checked(event, framing)
    }

    /// Checks and encodes an event of a run.
    pub(crate) fn encode_for_run(event: &Event, framing: &Framing) -> Result<Self, PublishError> {
        event.check_for_run()?;
        Self::encode_checked(event, framing)
    }

    fn encode_checked(event: &Event, framing: &Framing) -> Result<Self, PublishError> {
        let (name, data) = (&*event.name, event.data_bytes());
        let lines = memchr::memchr2_iter(b'\r', b'\n', data).count() + 1;
        let before_data = if name.is_empty() { 0 } else { 8 + name.len() } + event.retry.map_or(0, |_| 28);
        let fields = before_data + data.len() + 6 * lines + 1;
        let mut bytes = Vec::with_capacity(CHUNK_HEAD.len() + fields + ID_ROOM);
        open_chunk(&mut bytes);
        if !name.is_empty() {
            line(&mut bytes, b"event", name.as_bytes());
        }
        if let Some(retry) = event.retry {
            let retry = retry.clamp(*RETRY_RANGE.start(), *RETRY_RANGE.end());
            push_retry(&mut bytes, retry);
        }
        push_data(&mut bytes, data);
        let draft = Self { bytes };
        if draft.len() > framing.max_payload {
            return Err(PublishError::too_large(draft.len(), framing.max_payload));
        }
        Ok(draft)
    }

    /// Encodes one of the hub's own events that is a record. `name` is reserved for the hub, and
    /// `data` is one line of JSON.
    pub(crate) fn control(name: &str, data: &str) -> Self {
        let mut bytes = Vec::with_capacity(CHUNK_HEAD.len() + 20 + name.len() + data.len() + ID_ROOM);
        open_chunk(&mut bytes);
        line(&mut bytes, b"event", name.as_bytes());
        push_data(&mut bytes, data.as_bytes());
        Self { bytes }
    }

    /// Returns the size of the lines, which counts against [`Framing::max_payload`].
    pub(crate) fn len(&self) -> usize {
        self.bytes.len() - CHUNK_HEAD.len()
    }

    /// Adds the id, and ends the chunk.
    pub(crate) fn finish(self, prefix: &IdPrefix, sequence: u64) -> Frame {
        let mut bytes = self.bytes;
        let id_at = (bytes.len() - CHUNK_HEAD.len()) as u32;
        bytes.extend_from_slice(prefix.0.as_bytes());
        bytes.extend_from_slice(itoa::Buffer::new().format(sequence).as_bytes());
        bytes.extend_from_slice(b"\n");
        bytes.extend_from_slice(FRAME_END);
        Frame { chunk: Chunk::close(bytes), id_at }
    }
}

impl Frame {
    /// Returns the chunk with the event and its id.
    pub(crate) fn chunk(&self) -> &Chunk {
        &self.chunk
    }

    /// Appends the event to `out`, with its id at this place.
    pub(crate) fn write(&self, out: &mut Vec<u8>, ids: Ids) {
        let (lines, id) = self.chunk.inside().split_at(self.id_at as usize);
        match ids {
            Ids::Last => out.extend_from_slice(self.chunk.inside()),
            Ids::First => [id.strip_suffix(FRAME_END).unwrap_or(id), lines, FRAME_END]
                .iter()
                .for_each(|part| out.extend_from_slice(part)),
            Ids::None => [lines, FRAME_END].iter().for_each(|part| out.extend_from_slice(part)),
        }
    }

    /// Returns whether the frame is one of the hub's own events. Applications cannot publish events
    /// with such names.
    pub(crate) fn is_of_hub(&self) -> bool {
        self.lines().starts_with(b"event: hub.")
    }

    /// Returns the size of the event with its id.
    pub(crate) fn len(&self) -> usize {
        self.chunk.inside().len()
    }

    /// Returns the name, which is empty for an event without a name, and the data. As in a browser,
    /// every line break of the data is LF.
    pub(crate) fn decode(&self) -> (String, String) {
        let (mut name, mut data, mut first) = (String::new(), String::new(), true);
        for line in String::from_utf8_lossy(self.lines()).lines() {
            if let Some(value) = line.strip_prefix("data: ") {
                if !std::mem::take(&mut first) {
                    data.push('\n');
                }
                data.push_str(value);
            } else if let Some(value) = line.strip_prefix("event: ") {
                name.push_str(value);
            }
        }
        (name, data)
    }

    fn lines(&self) -> &[u8] {
        &self.chunk.inside()[..self.id_at as usize]
    }
}

/// Shows only the size, because the data may be secret.
impl fmt::Debug for Draft {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Draft({} bytes)", self.len())
    }
}

/// Appends the line `field: value`, with one space after the colon even if the value is empty.
pub(super) fn line(out: &mut Vec<u8>, field: &[u8], value: &[u8]) {
    for part in [field, b": ", value, b"\n"] {
        out.extend_from_slice(part);
    }
}

pub(super) fn push_retry(out: &mut Vec<u8>, retry: Duration) {
    let millis = u64::try_from(retry.as_millis()).unwrap_or(u64::MAX);
    line(out, b"retry", itoa::Buffer::new().format(millis).as_bytes());
}

/// Appends one `data` line for each line of `data`. CR, LF and CRLF each end a line.
fn push_data(out: &mut Vec<u8>, data: &[u8]) {
    let mut rest = data;
    while let Some(end) = memchr::memchr2(b'\r', b'\n', rest) {
        line(out, b"data", &rest[..end]);
        let crlf = rest[end..].starts_with(b"\r\n");
        rest = &rest[end + 1 + usize::from(crlf)..];
    }
    line(out, b"data", rest);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn framing(max_payload: usize) -> Framing {
        Framing { max_payload }
    }

    fn frame(event: &Event) -> Frame {
        Draft::encode(event, &framing(1 << 20)).unwrap().finish(&IdPrefix::new(Epoch(0xa0)), 7)
    }

    fn text(event: &Event) -> String {
        String::from_utf8(frame(event).chunk().clone().into_inside().to_vec()).unwrap()
    }

    #[test]
    fn a_frame_has_one_space_after_each_field_and_its_id_last() {
        assert_eq!(text(&Event::new("a", "b")), "event: a\ndata: b\nid: 1.a0.7\n\n");
        assert_eq!(text(&Event::unnamed("")), "data: \nid: 1.a0.7\n\n");
    }

    #[test]
    fn data_is_split_at_cr_lf_and_crlf() {
        assert_eq!(
            text(&Event::unnamed("\ra\nb\r\nc\n\rd\r\n")),
            "data: \ndata: a\ndata: b\ndata: c\ndata: \ndata: d\ndata: \nid: 1.a0.7\n\n"
        );
    }

    #[test]
    fn data_that_looks_like_fields_stays_data() {
        assert_eq!(text(&Event::unnamed("id: 9\nevent: x")), "data: id: 9\ndata: event: x\nid: 1.a0.7\n\n");
    }

    #[test]
    fn retry_is_clamped_to_its_range() {
        let retry = |retry| text(&Event::unnamed("").retry(retry));
        assert!(retry(Duration::ZERO).starts_with("retry: 100\n"));
        assert!(retry(Duration::from_millis(1500)).starts_with("retry: 1500\n"));
        assert!(retry(Duration::MAX).starts_with("retry: 3600000\n"));
    }

    #[test]
    fn max_payload_limits_the_encoded_lines() {
        let event = Event::new("n", "a\nb"); // "event: n\n" + "data: a\n" + "data: b\n"
        assert!(Draft::encode(&event, &framing(25)).is_ok());
        let error = Draft::encode(&event, &framing(24)).unwrap_err();
        assert!(error.is_too_large() && error.is_invalid());
    }

    #[test]
    fn a_frame_has_the_same_lines_with_its_id_at_each_place() {
        let frame = frame(&Event::new("a", "b\nc"));
        let written = |ids| {
            let mut out = Vec::new();
            frame.write(&mut out, ids);
            String::from_utf8(out).unwrap()
        };
        assert_eq!(written(Ids::Last), "event: a\ndata: b\ndata: c\nid: 1.a0.7\n\n");
        assert_eq!(written(Ids::First), "id: 1.a0.7\nevent: a\ndata: b\ndata: c\n\n");
        assert_eq!(written(Ids::None), "event: a\ndata: b\ndata: c\n\n");
    }

    #[test]
    fn a_frame_is_one_http_chunk() {
        let frame = frame(&Event::unnamed("x".repeat(300)));
        let whole = frame.chunk().clone().into_whole();
        let (size, rest) = whole.split_at(8);
        let size = usize::from_str_radix(std::str::from_utf8(size).unwrap(), 16).unwrap();
        assert_eq!(rest.len(), 2 + size + 2);
        assert_eq!(&rest[2..2 + size], &frame.chunk().clone().into_inside()[..]);
        assert!(rest.starts_with(b"\r\n") && rest.ends_with(b"\r\n"));
        assert_eq!(frame.len(), size);
    }

    #[test]
    fn decode_returns_the_data_that_a_browser_reads() {
        for (data, read) in [("", ""), ("a\r\nb\r", "a\nb\n"), (" x ", " x "), ("data: y", "data: y")] {
            assert_eq!(frame(&Event::new("n", data)).decode(), ("n".into(), read.into()));
        }
    }
}
