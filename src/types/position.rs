//! Positions in the log, and their text form.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

use super::as_text::serde_as_text;

/// A position in the log. A position is also a complete cursor: it covers all events up to it, of
/// every topic.
///
/// Its text is `1.epoch.sequence` in `[A-Za-z0-9._-]`, at most 64 bytes. The text is the `id` of an
/// event, which the browser sends back as `Last-Event-ID`. The first digit is the version of this
/// format. Treat the text as opaque: a page may only store it and send it back.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use tower_sse::{Event, Hub, Position};
///
/// let hub = Hub::builder().build()?;
/// let first = hub.topic("news").publish(Event::new("headline", "Bridge closed")).await?.position;
/// let second = hub.topic("news").publish(Event::new("headline", "Bridge open")).await?.position;
/// assert!(first < second);
/// assert_eq!(first.to_string().parse::<Position>()?, first);
/// # Ok(()) }
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Position {
    epoch: Epoch,
    sequence: u64,
}

/// The length of the longest position: `1.`, 16 hexadecimal digits, `.` and 20 digits.
const MAX_LEN: usize = 39;

/// Orders the positions of one epoch of the log. Positions of different epochs cannot be compared.
impl PartialOrd for Position {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        (self.epoch == other.epoch).then(|| self.sequence.cmp(&other.sequence))
    }
}

/// The random id of one epoch of the log. It is random so that a hub recognizes positions of
/// another epoch, for example from before a restart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Epoch(pub(crate) u64);

impl Position {
    pub(crate) fn new(epoch: Epoch, sequence: u64) -> Self {
        Self { epoch, sequence }
    }

    pub(crate) fn epoch(self) -> Epoch {
        self.epoch
    }

    pub(crate) fn sequence(self) -> u64 {
        self.sequence
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Faster than `write!`: a position is formatted for each published and each delivered
        // event. The digits are written from the last to the first.
        let mut text = [0; MAX_LEN];
        let mut at = MAX_LEN;
        let mut push = |byte| {
            at -= 1;
            text[at] = byte;
        };
        let (mut epoch, mut sequence) = (self.epoch.0, self.sequence);
        loop {
            push(b"0123456789"[(sequence % 10) as usize]);
            sequence /= 10;
            if sequence == 0 {
                break;
            }
        }
        push(b'.');
        loop {
            push(b"0123456789abcdef"[(epoch & 15) as usize]);
            epoch >>= 4;
            if epoch == 0 {
                break;
            }
        }
        push(b'.');
        push(b'1');
        f.write_str(std::str::from_utf8(&text[at..]).map_err(|_| fmt::Error)?)
    }
}

impl fmt::Debug for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The error of parsing a text that is not a [`Position`].
///
/// ```
/// use tower_sse::Position;
///
/// let error = "page 2".parse::<Position>().unwrap_err();
/// assert_eq!(error.to_string(), "not a position: expected `1.epoch.sequence`");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidPosition;

impl fmt::Display for InvalidPosition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not a position: expected `1.epoch.sequence`")
    }
}

impl std::error::Error for InvalidPosition {}

impl FromStr for Position {
    type Err = InvalidPosition;

    /// Parses only the text that `Display` prints, so that each position has one spelling.
    fn from_str(text: &str) -> Result<Self, InvalidPosition> {
        let mut parts = text.splitn(3, '.');
        let (Some("1"), Some(epoch), Some(sequence)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(InvalidPosition);
        };
        let canonical = |digits: &str| !digits.starts_with('+') && (digits == "0" || !digits.starts_with('0'));
        if !canonical(epoch) || !canonical(sequence) || epoch.bytes().any(|b| b.is_ascii_uppercase()) {
            return Err(InvalidPosition);
        }
        let epoch = u64::from_str_radix(epoch, 16).map_err(|_| InvalidPosition)?;
        let sequence = sequence.parse().map_err(|_| InvalidPosition)?;
        Ok(Self::new(Epoch(epoch), sequence))
    }
}

serde_as_text!(Position);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_longest_position_has_39_safe_characters() {
        let text = Position::new(Epoch(u64::MAX), u64::MAX).to_string();
        assert_eq!(text, "1.ffffffffffffffff.18446744073709551615");
        assert_eq!(Position::new(Epoch(0), 0).to_string(), "1.0.0");
        assert!(text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b)));
    }

    proptest! {
        #[test]
        fn a_position_parses_from_its_text(epoch: u64, sequence: u64) {
            let position = Position::new(Epoch(epoch), sequence);
            prop_assert_eq!(position.to_string(), format!("1.{epoch:x}.{sequence}"));
            prop_assert_eq!(position.to_string().parse(), Ok(position));
        }
    }
}
