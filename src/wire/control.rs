//! The hub's own events, named `hub.…`: JSON data to which fields may be added later.

use std::time::Duration;

use bytes::Bytes;

use super::frame::{line, push_retry};
use crate::name::{ConnectionId, Topic};
use crate::position::Position;
use crate::reason::{EndReason, GapReason, RefusalReason};

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
    let mut data = Json::object();
    data.text("connection", &connection.to_string());
    data.text("cursor", cursor.as_str());
    data.list("topics", topics.map(Topic::as_str));
    if let Some(instance) = instance {
        data.text("instance", instance);
    }
    frame("hub.hello", Some(retry), data, None)
}

/// Caught up: the id stands for everything up to it.
pub(crate) fn live(position: Position) -> Bytes {
    frame("hub.live", None, Json::object(), Some(position))
}

/// Records are not to be had.
pub(crate) fn gap<'a>(reason: GapReason, topics: impl Iterator<Item = &'a str>) -> Bytes {
    let mut data = Json::object();
    data.text("reason", reason.as_str());
    data.list("topics", topics);
    frame("hub.gap", None, data, None)
}

/// A refusal that a browser survives.
pub(crate) fn refused(reason: RefusalReason, retry: Duration) -> Bytes {
    let mut data = Json::object();
    data.text("reason", reason.as_str());
    data.number("retry_ms", retry.as_millis());
    frame("hub.refused", Some(retry), data, None)
}

/// The subscription's time is near its end.
pub(crate) fn expiring(remaining: Duration) -> Bytes {
    let mut data = Json::object();
    data.number("in_ms", remaining.as_millis());
    frame("hub.expiring", None, data, None)
}

/// The last frame of a stream that the hub ends.
pub(crate) fn bye(reason: EndReason, retry: Option<Duration>) -> Bytes {
    let mut data = Json::object();
    data.text("reason", reason.as_str());
    // There is no reason yet for which a client should stay away.
    data.text("return", "now");
    frame("hub.bye", retry, data, None)
}

fn frame(name: &str, retry: Option<Duration>, data: Json, id: Option<Position>) -> Bytes {
    let mut out = Vec::with_capacity(96 + data.0.len());
    line(&mut out, b"event", name.as_bytes());
    if let Some(retry) = retry {
        push_retry(&mut out, retry);
    }
    line(&mut out, b"data", data.end().as_bytes());
    if let Some(position) = id {
        line(&mut out, b"id", position.to_string().as_bytes());
    }
    out.push(b'\n');
    out.into()
}

/// An object of strings, numbers and lists of strings: all that the control events need, also without serde.
struct Json(String);

impl Json {
    fn object() -> Self {
        Self("{".into())
    }

    fn field(&mut self, name: &str) {
        if self.0.len() > 1 {
            self.0.push(',');
        }
        self.quote(name);
        self.0.push(':');
    }

    fn text(&mut self, name: &str, value: &str) {
        self.field(name);
        self.quote(value);
    }

    fn number(&mut self, name: &str, value: u128) {
        self.field(name);
        self.0.push_str(itoa::Buffer::new().format(value));
    }

    fn list<'a>(&mut self, name: &str, values: impl Iterator<Item = &'a str>) {
        self.field(name);
        self.0.push('[');
        for (index, value) in values.enumerate() {
            if index > 0 {
                self.0.push(',');
            }
            self.quote(value);
        }
        self.0.push(']');
    }

    fn quote(&mut self, value: &str) {
        self.0.push('"');
        for c in value.chars() {
            match c {
                '"' | '\\' => self.0.extend(['\\', c]),
                c if c.is_control() => self.0.push_str(&format!("\\u{:04x}", u32::from(c))),
                c => self.0.push(c),
            }
        }
        self.0.push('"');
    }

    fn end(mut self) -> String {
        self.0.push('}');
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::position::Epoch;

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
        assert_eq!(text(&live(Position::new(Epoch(1), 9))), "event: hub.live\ndata: {}\nid: 1.1.9\n\n");
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
            text(&bye(EndReason::Draining, None)),
            "event: hub.bye\ndata: {\"reason\":\"draining\",\"return\":\"now\"}\n\n"
        );
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
