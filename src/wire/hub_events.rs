//! The hub's own events, named `hub.…`: JSON data to which fields may be added later.

use std::fmt::{Display, Write};
use std::time::{Duration, SystemTime};

use bytes::Bytes;

use crate::types::{
    BannedUntil, ConnectionId, EndReason, GapReason, Position, Reconnect, RefusalReason, Topic, UserId,
};

/// As long as it can be said where the clock ends before that.
const A_YEAR: Duration = Duration::from_secs(365 * 86_400);

/// What a stream starts as: the `cursor` of `hub.hello`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CursorState {
    Fresh,
    Resuming,
    Refused,
}

impl CursorState {
    fn as_str(self) -> &'static str {
        match self {
            Self::Fresh => "fresh",
            Self::Resuming => "resuming",
            Self::Refused => "refused",
        }
    }
}

/// The first frame of a stream.
pub(crate) fn hello<'a>(
    connection: ConnectionId,
    cursor: CursorState,
    topics: impl Iterator<Item = &'a Topic>,
    instance: Option<&str>,
    retry: Duration,
) -> Bytes {
    let mut data = Json::in_frame("hub.hello", Some(retry));
    data.id("connection", connection);
    data.text("cursor", cursor.as_str());
    data.list("topics", topics.map(Topic::as_str));
    if let Some(instance) = instance {
        data.text("instance", instance);
    }
    data.end_frame(None)
}

/// Caught up: the id stands for everything up to it. With the topics in force, after they have changed.
pub(crate) fn live(position: Position, topics: Option<&[Topic]>) -> Bytes {
    let mut data = Json::in_frame("hub.live", None);
    if let Some(topics) = topics {
        data.list("topics", topics.iter().map(Topic::as_str));
    }
    data.end_frame(Some(&position))
}

/// Records are not to be had.
pub(crate) fn gap<'a>(reason: GapReason, topics: impl Iterator<Item = &'a str>) -> Bytes {
    let mut data = Json::in_frame("hub.gap", None);
    data.text("reason", reason.as_str());
    data.list("topics", topics);
    data.end_frame(None)
}

/// The log cannot be followed now: what is shown may be old. `hub.live` says when that is over.
pub(crate) fn stale() -> Bytes {
    Json::in_frame("hub.stale", None).end_frame(None)
}

/// A refusal that a browser survives.
pub(crate) fn refused(reason: RefusalReason, retry: Duration) -> Bytes {
    let mut data = Json::in_frame("hub.refused", Some(retry));
    data.text("reason", reason.as_str());
    data.number("retry_ms", retry.as_millis());
    data.end_frame(None)
}

/// The subscription's time is near its end.
pub(crate) fn expiring(remaining: Duration) -> Bytes {
    let mut data = Json::in_frame("hub.expiring", None);
    data.number("in_ms", remaining.as_millis());
    data.end_frame(None)
}

/// The last frame of a stream that the hub ends. Who should stay away is left with an id that says until when.
pub(crate) fn bye(
    reason: EndReason,
    reconnect: Reconnect,
    retry: Option<Duration>,
    note: Option<&str>,
    now: SystemTime,
) -> Bytes {
    let mut data = Json::in_frame("hub.bye", retry);
    data.text("reason", reason.as_str());
    data.text("reconnect", reconnect.as_str());
    if let Some(note) = note {
        data.text("note", note);
    }
    let banned_until = match reconnect {
        Reconnect::BlockedFor(within) => Some(BannedUntil(now.checked_add(within).unwrap_or(now + A_YEAR))),
        Reconnect::Now | Reconnect::After(_) => None,
    };
    data.end_frame(banned_until.as_ref().map(|until| until as _))
}

/// Somebody is in a topic who was not: its name and its data. A record like any other.
pub(crate) fn joined(topic: &Topic, user: &UserId, data: Option<&str>) -> (&'static str, String) {
    let mut json = presence(topic, user);
    if let Some(data) = data {
        json.raw("data", data);
    }
    ("hub.joined", json.end())
}

/// Somebody is in a topic no more.
pub(crate) fn left(topic: &Topic, user: &UserId) -> (&'static str, String) {
    ("hub.left", presence(topic, user).end())
}

fn presence(topic: &Topic, user: &UserId) -> Json {
    let mut json = Json::object();
    json.text("topic", topic.as_str());
    json.text("user", user.as_str());
    json
}

/// The answer to a page that has changed its topics: those in force.
pub(crate) fn topics(topics: &[Topic]) -> String {
    let mut json = Json::object();
    json.list("topics", topics.iter().map(Topic::as_str));
    json.end()
}

/// An object of strings, numbers and lists of strings: all that the control events need, also
/// without serde. It is written where it is sent from: alone, or within a frame.
struct Json {
    out: String,
    is_empty: bool,
}

impl Json {
    fn object() -> Self {
        let mut out = String::with_capacity(160);
        out.push('{');
        Self { out, is_empty: true }
    }

    /// The data of a frame, which [`end_frame`](Self::end_frame) completes.
    fn in_frame(name: &str, retry: Option<Duration>) -> Self {
        let mut out = String::with_capacity(224);
        for part in ["event: ", name, "\n"] {
            out.push_str(part);
        }
        if let Some(retry) = retry {
            let millis = u64::try_from(retry.as_millis()).unwrap_or(u64::MAX);
            for part in ["retry: ", itoa::Buffer::new().format(millis), "\n"] {
                out.push_str(part);
            }
        }
        out.push_str("data: {");
        Self { out, is_empty: true }
    }

    fn field(&mut self, name: &str) {
        if !std::mem::take(&mut self.is_empty) {
            self.out.push(',');
        }
        // The names of fields are ours.
        self.out.push('"');
        self.out.push_str(name);
        self.out.push_str("\":");
    }

    fn text(&mut self, name: &str, value: &str) {
        self.field(name);
        self.quote(value);
    }

    /// A value that needs no escape.
    fn id(&mut self, name: &str, value: ConnectionId) {
        self.field(name);
        self.out.push('"');
        self.display(&value);
        self.out.push('"');
    }

    /// A value that is JSON already.
    fn raw(&mut self, name: &str, value: &str) {
        self.field(name);
        self.out.push_str(value);
    }

    fn number(&mut self, name: &str, value: u128) {
        self.field(name);
        self.out.push_str(itoa::Buffer::new().format(value));
    }

    fn list<'a>(&mut self, name: &str, values: impl Iterator<Item = &'a str>) {
        self.field(name);
        self.out.push('[');
        for (index, value) in values.enumerate() {
            if index > 0 {
                self.out.push(',');
            }
            self.quote(value);
        }
        self.out.push(']');
    }

    fn quote(&mut self, value: &str) {
        self.out.push('"');
        // Names that need no escape, which is nearly all, are looked at byte by byte. Control characters beyond ASCII
        // begin with 0xc2.
        if !value.bytes().any(|byte| matches!(byte, b'"' | b'\\' | 0x7f | 0xc2) || byte < b' ') {
            self.out.push_str(value);
            self.out.push('"');
            return;
        }
        let mut rest = value;
        while let Some((at, c)) = rest.char_indices().find(|(_, c)| matches!(c, '"' | '\\') || c.is_control()) {
            self.out.push_str(&rest[..at]);
            match c {
                '"' | '\\' => self.out.extend(['\\', c]),
                c => self.out.push_str(&format!("\\u{:04x}", u32::from(c))),
            }
            rest = &rest[at + c.len_utf8()..];
        }
        self.out.push_str(rest);
        self.out.push('"');
    }

    fn end(mut self) -> String {
        self.out.push('}');
        self.out
    }

    fn end_frame(mut self, id: Option<&dyn Display>) -> Bytes {
        self.out.push_str("}\n");
        if let Some(id) = id {
            self.out.push_str("id: ");
            self.display(id);
            self.out.push('\n');
        }
        self.out.push('\n');
        self.out.into()
    }

    fn display(&mut self, value: &dyn Display) {
        // Writing to a string cannot fail, and these values do not fail either.
        let _ = write!(self.out, "{value}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Epoch;

    fn text(bytes: &Bytes) -> &str {
        std::str::from_utf8(bytes).unwrap()
    }

    #[test]
    fn hello_carries_the_retry_and_no_id() {
        let topics = [Topic::try_from("a").unwrap(), Topic::try_from("say \"b\\\"").unwrap()];
        let id = ConnectionId::from_bits(1);
        let hello = hello(id, CursorState::Fresh, topics.iter(), Some("blue"), Duration::from_secs(2));
        assert_eq!(
            text(&hello),
            "event: hub.hello\nretry: 2000\ndata: {\"connection\":\"00000000000000000000000000000001\",\
             \"cursor\":\"fresh\",\"topics\":[\"a\",\"say \\\"b\\\\\\\"\"],\"instance\":\"blue\"}\n\n"
        );
    }

    #[test]
    fn only_live_has_an_id() {
        let position = Position::new(Epoch(1), 9);
        assert_eq!(text(&live(position, None)), "event: hub.live\ndata: {}\nid: 1.1.9\n\n");
        let topics = [Topic::try_from("a").unwrap()];
        assert_eq!(text(&live(position, Some(&topics))), "event: hub.live\ndata: {\"topics\":[\"a\"]}\nid: 1.1.9\n\n");
        assert_eq!(
            text(&gap(GapReason::Trimmed, ["x"].into_iter())),
            "event: hub.gap\ndata: {\"reason\":\"trimmed\",\"topics\":[\"x\"]}\n\n"
        );
        assert_eq!(
            text(&refused(RefusalReason::Busy, Duration::from_millis(1200))),
            "event: hub.refused\nretry: 1200\ndata: {\"reason\":\"busy\",\"retry_ms\":1200}\n\n"
        );
        assert_eq!(text(&expiring(Duration::from_millis(5))), "event: hub.expiring\ndata: {\"in_ms\":5}\n\n");
        assert_eq!(
            text(&bye(EndReason::Draining, Reconnect::Now, None, None, SystemTime::UNIX_EPOCH)),
            "event: hub.bye\ndata: {\"reason\":\"draining\",\"reconnect\":\"now\"}\n\n"
        );
    }

    #[test]
    fn who_should_stay_away_is_left_with_an_id_that_says_so() {
        let bye = |within| {
            let bye = bye(
                EndReason::Disconnected,
                Reconnect::BlockedFor(within),
                None,
                Some("out\n"),
                SystemTime::UNIX_EPOCH,
            );
            text(&bye).to_owned()
        };
        assert_eq!(
            bye(Duration::from_secs(60)),
            "event: hub.bye\ndata: {\"reason\":\"disconnected\",\"reconnect\":\"never\",\"note\":\"out\\u000a\"}\nid: 0.60\n\n"
        );
        assert!(bye(Duration::MAX).contains("\nid: 0.31536000\n"));
    }

    #[test]
    #[cfg(feature = "json")]
    fn strings_are_json_whatever_they_contain() {
        let nasty = "\"\\\u{0}\n\u{1f}\u{7f}\u{2028}🦀</script>";
        let mut object = Json::object();
        object.text("a", nasty);
        let value: serde_json::Value = serde_json::from_str(&object.end()).unwrap();
        assert_eq!(value["a"], nasty);
    }
}
