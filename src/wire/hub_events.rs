//! The hub's own events, named `hub.…`. Their data is JSON, to which fields may be added later.

use std::fmt::Display;
use std::io::Write;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use serde::Serialize;
use serde_json::value::RawValue;

use super::frame::push_retry;
use crate::types::{
    BannedUntil, ConnectionId, EndReason, GapReason, Position, Reconnect, RefusalReason, Topic, UserId,
};

/// The duration of a ban, if the system's clock cannot represent its real end.
const FALLBACK_BAN: Duration = Duration::from_secs(365 * 86_400);

/// The state of the client's cursor at the start of a stream: the field `cursor` of `hub.hello`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum CursorState {
    Fresh,
    Resuming,
    Refused,
}

/// Returns `hub.hello`, the first frame of a stream.
pub(crate) fn hello(
    connection: ConnectionId,
    cursor: CursorState,
    topics: &[Topic],
    instance: Option<&str>,
    retry: Duration,
) -> Bytes {
    #[derive(Serialize)]
    struct Hello<'a> {
        connection: ConnectionId,
        cursor: CursorState,
        topics: &'a [Topic],
        #[serde(skip_serializing_if = "Option::is_none")]
        instance: Option<&'a str>,
    }
    frame("hub.hello", Some(retry), &Hello { connection, cursor, topics, instance }, None)
}

/// Returns a `retry` line, which is no frame: it has no blank line after it. Some clients fail at a
/// frame without data.
pub(crate) fn retry_line(retry: Duration) -> Bytes {
    let mut out = Vec::new();
    push_retry(&mut out, retry);
    out.into()
}

/// Returns `hub.live`: the stream has caught up with `position`, which is the id of the event.
/// `topics` has the current topics if they have changed.
pub(crate) fn live(position: Position, topics: Option<&[Topic]>) -> Bytes {
    #[derive(Serialize)]
    struct Live<'a> {
        #[serde(skip_serializing_if = "Option::is_none")]
        topics: Option<&'a [Topic]>,
    }
    frame("hub.live", None, &Live { topics }, Some(&position))
}

/// Returns `hub.gap`: the stream has lost events. `topics` has the topics among the affected
/// addresses.
pub(crate) fn gap<T: Serialize>(reason: GapReason, topics: &[T]) -> Bytes {
    #[derive(Serialize)]
    struct Gap<'a, T> {
        reason: &'static str,
        topics: &'a [T],
    }
    frame("hub.gap", None, &Gap { reason: reason.as_str(), topics }, None)
}

/// Returns `hub.stale`: the hub cannot follow the shared log, so a client may have an old state.
/// `hub.live` follows when the hub can follow the log again.
pub(crate) fn stale() -> Bytes {
    #[derive(Serialize)]
    struct Stale {}
    frame("hub.stale", None, &Stale {}, None)
}

/// Returns `hub.refused`, the only frame of a retryable refusal.
pub(crate) fn refused(reason: RefusalReason, retry: Duration) -> Bytes {
    #[derive(Serialize)]
    struct Refused {
        reason: &'static str,
        retry_ms: u64,
    }
    let data = Refused { reason: reason.as_str(), retry_ms: as_millis(retry) };
    frame("hub.refused", Some(retry), &data, None)
}

/// Returns `hub.expiring`: the subscription expires after `remaining`.
pub(crate) fn expiring(remaining: Duration) -> Bytes {
    #[derive(Serialize)]
    struct Expiring {
        in_ms: u64,
    }
    frame("hub.expiring", None, &Expiring { in_ms: as_millis(remaining) }, None)
}

/// Returns `hub.bye`, the last frame of a stream that the hub ends. For a banned client, the id of
/// the event is the end of the ban, and the mark of its scope: see [`BannedUntil`].
pub(crate) fn bye(
    reason: EndReason,
    reconnect: Reconnect,
    retry: Option<Duration>,
    note: Option<&str>,
    now: SystemTime,
    scope: Option<u64>,
) -> Bytes {
    #[derive(Serialize)]
    struct Bye<'a> {
        reason: &'static str,
        reconnect: &'static str,
        #[serde(skip_serializing_if = "Option::is_none")]
        note: Option<&'a str>,
    }
    let banned_until = match reconnect {
        Reconnect::BlockedFor(within) => {
            Some(BannedUntil { until: now.checked_add(within).unwrap_or(now + FALLBACK_BAN), scope })
        }
        Reconnect::Now | Reconnect::After(_) | Reconnect::Over => None,
    };
    let data = Bye { reason: reason.as_str(), reconnect: reconnect.as_str(), note };
    frame("hub.bye", retry, &data, banned_until.as_ref().map(|until| until as _))
}

/// Returns the name and the data of `hub.joined`: a user has joined a topic. `attached` is JSON.
pub(crate) fn joined(topic: &Topic, user: &UserId, attached: Option<&str>) -> (&'static str, String) {
    ("hub.joined", presence(topic, user, attached))
}

/// Returns the name and the data of `hub.left`: a user has left a topic.
pub(crate) fn left(topic: &Topic, user: &UserId) -> (&'static str, String) {
    ("hub.left", presence(topic, user, None))
}

fn presence(topic: &Topic, user: &UserId, attached: Option<&str>) -> String {
    #[derive(Serialize)]
    struct Presence<'a> {
        topic: &'a Topic,
        user: &'a UserId,
        #[serde(skip_serializing_if = "Option::is_none")]
        data: Option<&'a RawValue>,
    }
    let data = attached.and_then(|json| serde_json::from_str(json).ok());
    json(&Presence { topic, user, data })
}

/// Returns the JSON body of the response to a change of topics, with the current topics.
pub(crate) fn topics(topics: &[Topic]) -> String {
    #[derive(Serialize)]
    struct Topics<'a> {
        topics: &'a [Topic],
    }
    json(&Topics { topics })
}

/// Encodes one frame. `serde_json` writes no line breaks, so the data is one line.
fn frame(name: &str, retry: Option<Duration>, data: &impl Serialize, id: Option<&dyn Display>) -> Bytes {
    let mut out = Vec::with_capacity(224);
    for part in ["event: ", name, "\n"] {
        out.extend_from_slice(part.as_bytes());
    }
    if let Some(retry) = retry {
        for part in ["retry: ", itoa::Buffer::new().format(as_millis(retry)), "\n"] {
            out.extend_from_slice(part.as_bytes());
        }
    }
    out.extend_from_slice(b"data: ");
    write_json(&mut out, data);
    out.push(b'\n');
    if let Some(id) = id {
        // Writing to a vector and displaying an id cannot fail.
        let _ = writeln!(out, "id: {id}");
    }
    out.push(b'\n');
    out.into()
}

fn json(data: &impl Serialize) -> String {
    let mut out = Vec::new();
    write_json(&mut out, data);
    String::from_utf8(out).unwrap_or_default()
}

/// Appends JSON. Writing to a vector cannot fail, nor can serializing names, numbers and checked
/// JSON.
fn write_json(out: &mut Vec<u8>, data: &impl Serialize) {
    let _ = serde_json::to_writer(out, data);
}

fn as_millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Epoch;

    fn text(bytes: &Bytes) -> &str {
        std::str::from_utf8(bytes).unwrap()
    }

    #[test]
    fn hello_has_the_retry_and_no_id() {
        let topics = [Topic::try_from("a").unwrap(), Topic::try_from("say \"b\\\"").unwrap()];
        let id = ConnectionId::from_bits(1);
        let hello = hello(id, CursorState::Fresh, &topics, Some("blue"), Duration::from_secs(2));
        assert_eq!(
            text(&hello),
            "event: hub.hello\nretry: 2000\ndata: {\"connection\":\"00000000000000000000000000000001\",\
             \"cursor\":\"fresh\",\"topics\":[\"a\",\"say \\\"b\\\\\\\"\"],\"instance\":\"blue\"}\n\n"
        );
    }

    #[test]
    fn only_live_has_the_id_of_a_position() {
        let position = Position::new(Epoch(1), 9);
        assert_eq!(text(&live(position, None)), "event: hub.live\ndata: {}\nid: 1.1.9\n\n");
        let topics = [Topic::try_from("a").unwrap()];
        assert_eq!(text(&live(position, Some(&topics))), "event: hub.live\ndata: {\"topics\":[\"a\"]}\nid: 1.1.9\n\n");
        assert_eq!(
            text(&gap(GapReason::Trimmed, &["x"])),
            "event: hub.gap\ndata: {\"reason\":\"trimmed\",\"topics\":[\"x\"]}\n\n"
        );
        assert_eq!(
            text(&refused(RefusalReason::Busy, Duration::from_millis(1200))),
            "event: hub.refused\nretry: 1200\ndata: {\"reason\":\"busy\",\"retry_ms\":1200}\n\n"
        );
        assert_eq!(text(&expiring(Duration::from_millis(5))), "event: hub.expiring\ndata: {\"in_ms\":5}\n\n");
        assert_eq!(
            text(&bye(EndReason::Draining, Reconnect::Now, None, None, SystemTime::UNIX_EPOCH, None)),
            "event: hub.bye\ndata: {\"reason\":\"draining\",\"reconnect\":\"now\"}\n\n"
        );
    }

    #[test]
    fn bye_of_a_ban_has_the_id_with_its_end() {
        let bye = |within, scope| {
            let bye = bye(
                EndReason::Disconnected,
                Reconnect::BlockedFor(within),
                None,
                Some("out\n"),
                SystemTime::UNIX_EPOCH,
                scope,
            );
            text(&bye).to_owned()
        };
        assert_eq!(
            bye(Duration::from_secs(60), None),
            "event: hub.bye\ndata: {\"reason\":\"disconnected\",\"reconnect\":\"never\",\"note\":\"out\\n\"}\nid: 0.60\n\n"
        );
        assert!(bye(Duration::MAX, None).contains("\nid: 0.31536000\n"));
        assert!(bye(Duration::MAX, Some(7)).contains("\nid: 0.31536000.0000000000000007\n"));
    }

    #[test]
    fn strings_with_special_characters_are_valid_json() {
        let nasty = "\"\\\u{0}\n\u{1f}\u{7f}\u{2028}🦀</script>";
        let frame = gap(GapReason::Trimmed, &[nasty]);
        let data = text(&frame).strip_prefix("event: hub.gap\ndata: ").and_then(|rest| rest.strip_suffix("\n\n"));
        let value: serde_json::Value = serde_json::from_str(data.unwrap()).unwrap();
        assert_eq!(value["topics"][0], nasty);
    }
}
