//! The bytes of control messages, as the head of `src/hub/peers/codec.rs` describes them.

/// The kind of an entry with announcements of runs.
pub(crate) const RUNS: u64 = 7;

/// Returns the kinds of the entries of a control message.
pub(crate) fn kinds(message: &[u8]) -> Vec<u64> {
    // A version and the sender come first.
    let mut rest = &message[9..];
    section(&mut rest); // the names
    let mut kinds = Vec::new();
    while !rest.is_empty() {
        kinds.push(number(&mut rest));
        section(&mut rest);
    }
    kinds
}

/// Reads a number of a control message, seven bits in each byte.
pub(crate) fn number(bytes: &mut &[u8]) -> u64 {
    let mut number = 0;
    for shift in (0..).step_by(7) {
        let byte = bytes[0];
        *bytes = &bytes[1..];
        number |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            break;
        }
    }
    number
}

pub(crate) fn section<'a>(bytes: &mut &'a [u8]) -> &'a [u8] {
    let length = usize::try_from(number(bytes)).unwrap();
    let (content, rest) = bytes.split_at(length);
    *bytes = rest;
    content
}

pub(crate) fn write_number(to: &mut Vec<u8>, mut number: u64) {
    while number > 0x7f {
        to.push(number as u8 | 0x80);
        number >>= 7;
    }
    to.push(number as u8);
}

pub(crate) fn write_section(to: &mut Vec<u8>, content: &[u8]) {
    write_number(to, content.len() as u64);
    to.extend_from_slice(content);
}
