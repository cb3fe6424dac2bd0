//! What is looked at.

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
    /// What a client makes of bytes.
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

    /// What it does when a stream ends or does not begin.
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

    /// The head of its column.
    pub fn title(self) -> &'static str {
        match self {
            Self::Hello => "hello",
            Self::Names => "names",
            Self::Lines => "lines",
            Self::Spaces => "spaces",
            Self::Empty => "empty",
            Self::Unicode => "Unicode",
            Self::Separators => "separators",
            Self::Bom => "BOM",
            Self::Large => "200 kB",
            Self::Heartbeats => "heartbeats",
            Self::Ids => "ids",
            Self::Resume => "resume",
            Self::Retry => "retry",
            Self::Clean => "clean end",
            Self::Aborted => "aborted end",
            Self::Busy => "refused",
            Self::Unauthorized => "401",
            Self::Never => "204",
        }
    }

    /// What must be so for an `ok`.
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
