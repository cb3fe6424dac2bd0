//! The cases of the interop test.

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Case {
    Hello,
    Names,
    Lines,
    Spaces,
    Empty,
    Unicode,
    Separators,
    Bom,
    Large,
    Heartbeats,
    Ids,
    Resume,
    Retry,
    Clean,
    Aborted,
    Busy,
    Unauthorized,
    Never,
}

impl Case {
    /// The cases about the bytes of a stream.
    pub const READING: &[Self] = &[
        Self::Hello,
        Self::Names,
        Self::Lines,
        Self::Spaces,
        Self::Empty,
        Self::Unicode,
        Self::Separators,
        Self::Bom,
        Self::Large,
        Self::Heartbeats,
        Self::Ids,
    ];

    /// The cases about the end of a stream, and about refusals.
    pub const RETURNING: &[Self] =
        &[Self::Resume, Self::Retry, Self::Clean, Self::Aborted, Self::Busy, Self::Unauthorized, Self::Never];

    pub const ALL: [Self; 18] = {
        let mut all = [Self::Hello; 18];
        let mut n = 0;
        while n < Self::READING.len() {
            all[n] = Self::READING[n];
            n += 1;
        }
        while n < all.len() {
            all[n] = Self::RETURNING[n - Self::READING.len()];
            n += 1;
        }
        all
    };

    /// Returns the head of the column of the case.
    pub fn title(self) -> &'static str {
        match self {
            Self::Hello => "Hello",
            Self::Names => "Names",
            Self::Lines => "Lines",
            Self::Spaces => "Spaces",
            Self::Empty => "Empty",
            Self::Unicode => "Unicode",
            Self::Separators => "Separators",
            Self::Bom => "BOM",
            Self::Large => "200 kB",
            Self::Heartbeats => "Heartbeats",
            Self::Ids => "Ids",
            Self::Resume => "Resume",
            Self::Retry => "Retry",
            Self::Clean => "Clean end",
            Self::Aborted => "Aborted end",
            Self::Busy => "Refused",
            Self::Unauthorized => "401",
            Self::Never => "204",
        }
    }

    /// Returns the condition for an `ok`.
    pub fn meaning(self) -> &'static str {
        match self {
            Self::Hello => "`hub.hello` comes first, then `hub.live` with an id",
            Self::Names => "events with and without a name",
            Self::Lines => "data of several lines, also with empty lines at both ends; CR and CRLF arrive as LF",
            Self::Spaces => "spaces and tabs at both ends, and data that looks like a field",
            Self::Empty => "empty data, with and without a name",
            Self::Unicode => "characters beyond the basic plane, combining and right-to-left characters, also in names",
            Self::Separators => "U+2028, U+2029, U+0085, VT, FF and FS, at which some languages split lines",
            Self::Bom => "data that starts with U+FEFF",
            Self::Large => "an event of 200 kB, and one after it",
            Self::Heartbeats => "a comment is no event, and the event after it is complete",
            Self::Ids => "an event without an id has the id of the event before it, as in a browser",
            Self::Resume => {
                "after a break within a frame, the client reconnects with `Last-Event-ID`, receives exactly the rest, and delivers no half frame"
            }
            Self::Retry => "the client waits for the time of `retry`, not less and not nearly twice as long",
            Self::Clean => "after a disconnect with `reconnect: now`, the client reconnects and receives the rest",
            Self::Aborted => "the same when the stream ends with an error (`StreamEnd::Abort`)",
            Self::Busy => "the client delivers `hub.refused`, and reconnects",
            Self::Unauthorized => "after `401` the client sends no further request",
            Self::Never => {
                "after a disconnect with `reconnect: never`, the client reconnects at most once, and not after `204`"
            }
        }
    }
}
