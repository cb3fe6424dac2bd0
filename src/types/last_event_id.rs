//! The `Last-Event-ID` that a client sends: its position in the log, or the end of its ban.

use std::fmt;
use std::time::{Duration, SystemTime};

use super::position::Position;

/// The id of a banned client: `0.` and the end of the ban in seconds of Unix time. The id of a
/// client of a scope also has the mark of the scope, so that the ban does not apply in another
/// scope. The client sends the id when it reconnects, so that every instance recognizes the ban
/// without a table.
pub(crate) struct BannedUntil {
    pub(crate) until: SystemTime,
    /// The [`ScopeName::mark`](super::ScopeName::mark) of the scope of the client.
    pub(crate) scope: Option<u64>,
}

impl fmt::Display for BannedUntil {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let since = self.until.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        // Rounded up, so that the ban is never too short.
        write!(f, "0.{}", since.as_secs().saturating_add(u64::from(since.subsec_nanos() > 0)))?;
        self.scope.map_or(Ok(()), |mark| write!(f, ".{mark:016x}"))
    }
}

impl BannedUntil {
    fn parse(text: &str) -> Option<Self> {
        let rest = text.strip_prefix("0.")?;
        let (digits, scope) = match rest.split_once('.') {
            None => (rest, None),
            Some((digits, mark)) => (digits, Some(u64::from_str_radix(mark, 16).ok()?)),
        };
        let seconds = digits.parse().ok().filter(|seconds| *seconds > 0)?;
        let until = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds))?;
        let parsed = Self { until, scope };
        // An id has one spelling.
        (parsed.to_string() == text).then_some(parsed)
    }
}

/// The point from which a client resumes, parsed once from the untrusted bytes that the client
/// sends.
///
/// ```
/// use tower_sse::{Cursor, Position};
///
/// let position: Position = "1.5eed.42".parse()?;
/// assert_eq!(Cursor::parse(b"1.5eed.42"), Cursor::At(position));
/// assert_eq!(Cursor::parse(b""), Cursor::Absent);
/// assert_eq!(Cursor::parse(b"page 2"), Cursor::Invalid);
/// # Ok::<(), tower_sse::InvalidPosition>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Cursor {
    /// The client has sent no id, or an empty id.
    #[default]
    Absent,
    /// The client has received all events up to this position.
    At(Position),
    /// The client is banned. The id is from the `hub.bye` that ended its stream.
    #[doc(alias = "Barred")]
    #[non_exhaustive]
    Banned {
        /// The end of the ban, which may have passed.
        until: SystemTime,
        /// A hash of the name of the [scope](crate::Scope) to which the ban applies, or `None` for
        /// a client without a scope.
        scope: Option<u64>,
    },
    /// The client has sent an id that no hub sends.
    Invalid,
}

impl Cursor {
    /// Parses the value of a `Last-Event-ID` header, or of the query field `last_event_id`.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Self {
        if bytes.is_empty() {
            return Self::Absent;
        }
        let Ok(text) = std::str::from_utf8(bytes) else { return Self::Invalid };
        match (text.parse(), BannedUntil::parse(text)) {
            (Ok(position), _) => Self::At(position),
            (Err(_), Some(BannedUntil { until, scope })) => Self::Banned { until, scope },
            (Err(_), None) => Self::Invalid,
        }
    }
}

impl From<Option<Position>> for Cursor {
    /// Converts `None` to [`Cursor::Absent`], the cursor of a new page.
    fn from(position: Option<Position>) -> Self {
        position.map_or(Self::Absent, Self::At)
    }
}

impl From<Position> for Cursor {
    fn from(position: Position) -> Self {
        Self::At(position)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_unknown_id_is_invalid_and_an_empty_id_is_absent() {
        assert_eq!(Cursor::parse(b""), Cursor::Absent);
        let long = [b'1'; 8192];
        for bad in [
            &b"1"[..],
            b"1.",
            b"1..",
            b"1.a",
            b"2.a.1",
            b"1.a.-1",
            b"1.a.+1",
            b"1.+a.1",
            b"1.a.01",
            b"1.0a.1",
            b"1.A.1",
            b"1.a.18446744073709551616",
            b"1.10000000000000000.1",
            b"1.a.1 ",
            b" 1.a.1",
            b"1.a.1.1",
            b"0.",
            b"0.0",
            b"0.01",
            b"0.+1",
            b"0.-1",
            b"0.1.1",
            b"0.1.",
            b"0.1.00000000000000AB",
            b"0.1.+0000000000000ab",
            b"0.1.00000000000000ab.1",
            b"0.18446744073709551615",
            b"0.18446744073709551616",
            b"\xff",
            &long,
        ] {
            assert_eq!(Cursor::parse(bad), Cursor::Invalid, "{}", String::from_utf8_lossy(bad));
        }
    }

    #[test]
    fn the_id_of_a_ban_parses_to_its_end() {
        let until = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        for (scope, id) in [(None, "0.1800000000"), (Some(0xab), "0.1800000000.00000000000000ab")] {
            assert_eq!(BannedUntil { until, scope }.to_string(), id);
            assert_eq!(Cursor::parse(id.as_bytes()), Cursor::Banned { until, scope });
        }
    }

    proptest! {
        #[test]
        fn any_bytes_parse_without_a_panic_and_only_canonical_text_is_a_position(bytes: Vec<u8>) {
            if let Cursor::At(position) = Cursor::parse(&bytes) {
                let text = position.to_string();
                prop_assert_eq!(text.as_bytes(), &bytes[..]);
            }
        }
    }
}
