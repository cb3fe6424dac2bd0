//! The names and the fields of the hub's own events, as `docs/wire.md` specifies them.

use crate::types::{EndReason, GapReason, RefusalReason};

/// One of the hub's own events.
pub(crate) struct HubEvent {
    pub(crate) name: &'static str,
    /// The name of its type in a description.
    pub(crate) type_name: &'static str,
    pub(crate) doc: &'static str,
    pub(crate) fields: &'static [Field],
}

/// A field of the data.
pub(crate) struct Field {
    pub(crate) name: &'static str,
    pub(crate) doc: &'static str,
    pub(crate) value: Value,
    pub(crate) is_optional: bool,
}

pub(crate) enum Value {
    Text,
    /// A list of names.
    Texts,
    /// A whole number, not negative.
    Number,
    /// One of these words.
    Word(fn() -> Vec<&'static str>),
    /// One of these words. Later versions may have more.
    OpenWord(fn() -> Vec<&'static str>),
    AnyJson,
}

const fn field(name: &'static str, value: Value, doc: &'static str) -> Field {
    Field { name, doc, value, is_optional: false }
}

const fn optional(name: &'static str, value: Value, doc: &'static str) -> Field {
    Field { name, doc, value, is_optional: true }
}

/// The events in the order of `docs/wire.md`.
pub(crate) const HUB_EVENTS: &[HubEvent] = &[
    HubEvent {
        name: "hub.hello",
        type_name: "HubHello",
        doc: "The first event of a stream.",
        fields: &[
            field("connection", Value::Text, "The id of the connection."),
            field(
                "cursor",
                Value::Word(|| vec!["fresh", "resuming", "refused"]),
                "Whether the client sent no id, the stream resumes from the id, or the hub cannot resume from it.",
            ),
            field("topics", Value::Texts, "The topics of the stream."),
            optional("instance", Value::Text, "The name of the instance."),
        ],
    },
    HubEvent {
        name: "hub.live",
        type_name: "HubLive",
        doc: "The stream has caught up.",
        fields: &[optional("topics", Value::Texts, "The topics in force, after a change of topics.")],
    },
    HubEvent {
        name: "hub.gap",
        type_name: "HubGap",
        doc: "The client misses events that are no longer retained: fetch the state again.",
        fields: &[
            field(
                "reason",
                Value::OpenWord(|| GapReason::ALL.iter().map(|reason| reason.as_str()).collect()),
                "The reason.",
            ),
            field("topics", Value::Texts, "The affected topics. Empty if only events without a topic are affected."),
        ],
    },
    HubEvent {
        name: "hub.refused",
        type_name: "HubRefused",
        doc: "The request gets no stream now. The only event of the response.",
        fields: &[
            field(
                "reason",
                Value::OpenWord(|| RefusalReason::ALL.iter().map(|reason| reason.as_str()).collect()),
                "The reason.",
            ),
            field("retry_ms", Value::Number, "The time until the client should reconnect, in milliseconds."),
        ],
    },
    HubEvent {
        name: "hub.stale",
        type_name: "HubStale",
        doc: "The hub cannot follow the shared log, so the page may show old state. `hub.live` follows.",
        fields: &[],
    },
    HubEvent {
        name: "hub.expiring",
        type_name: "HubExpiring",
        doc: "The hub ends the stream soon, because its subscription expires.",
        fields: &[field("in_ms", Value::Number, "The time until the stream ends, in milliseconds.")],
    },
    HubEvent {
        name: "hub.joined",
        type_name: "HubJoined",
        doc: "A user has joined a topic with presence events.",
        fields: &[
            field("topic", Value::Text, "The topic."),
            field("user", Value::Text, "The id of the user."),
            optional("data", Value::AnyJson, "The data that the application attached to the user."),
        ],
    },
    HubEvent {
        name: "hub.left",
        type_name: "HubLeft",
        doc: "A user has left a topic with presence events.",
        fields: &[field("topic", Value::Text, "The topic."), field("user", Value::Text, "The id of the user.")],
    },
    HubEvent {
        name: "hub.bye",
        type_name: "HubBye",
        doc: "The last event of a stream that the hub ends.",
        fields: &[
            field("reason", Value::OpenWord(reasons_of_bye), "The reason."),
            field("reconnect", Value::Word(|| vec!["now", "later", "never"]), "When the client may reconnect."),
            optional("note", Value::Text, "The note that the application set."),
        ],
    },
];

/// The hub sends no `hub.bye` to a client that has left, nor to a bare stream.
fn reasons_of_bye() -> Vec<&'static str> {
    let has_bye = |reason: &&EndReason| !matches!(reason, EndReason::Client | EndReason::Gap);
    EndReason::ALL.iter().filter(has_bye).map(|reason| reason.as_str()).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::{Duration, SystemTime};

    use serde_json::Value as Json;

    use super::*;
    use crate::types::{ConnectionId, Epoch, Position, Reconnect, Topic, UserId};
    use crate::wire::hub_events::{self as wire, CursorState};

    const SECOND: Duration = Duration::from_secs(1);

    /// Returns the name and the data of a frame.
    fn parts(frame: &[u8]) -> (String, String) {
        let text = std::str::from_utf8(frame).unwrap();
        let line = |field: &str| text.lines().find_map(|line| line.strip_prefix(field)).unwrap().to_owned();
        (line("event: "), line("data: "))
    }

    /// Returns each event of the hub, without and with all of its optional fields.
    fn sent() -> BTreeMap<String, [Json; 2]> {
        let (topic, user) = (Topic::try_from("news").unwrap(), UserId::try_from("ada").unwrap());
        let (topics, id) = (std::slice::from_ref(&topic), ConnectionId::from_bits(1));
        let position = Position::new(Epoch(1), 9);
        let hello = |instance| parts(&wire::hello(id, CursorState::Fresh, topics, instance, SECOND));
        let live = |topics| parts(&wire::live(position, topics));
        let bye = |note| parts(&wire::bye(EndReason::Age, Reconnect::Now, None, note, SystemTime::UNIX_EPOCH, None));
        let gap = parts(&wire::gap(GapReason::Lost, topics));
        let refused = parts(&wire::refused(RefusalReason::Busy, SECOND));
        let (stale, expiring) = (parts(&wire::stale()), parts(&wire::expiring(SECOND)));
        let presence = |(name, data): (&str, String)| (name.to_owned(), data);
        let left = presence(wire::left(&topic, &user));
        let joined = |data| presence(wire::joined(&topic, &user, data));
        [
            [hello(None), hello(Some("blue"))],
            [live(None), live(Some(topics))],
            [gap.clone(), gap],
            [refused.clone(), refused],
            [stale.clone(), stale],
            [expiring.clone(), expiring],
            [joined(None), joined(Some("{\"role\":\"editor\"}"))],
            [left.clone(), left],
            [bye(None), bye(Some("signed out"))],
        ]
        .map(|[least, most]| (least.0, [least.1, most.1].map(|data| serde_json::from_str(&data).unwrap())))
        .into()
    }

    fn is_valid(value: &Value, json: &Json) -> bool {
        match value {
            Value::Text => json.is_string(),
            Value::Texts => json.as_array().is_some_and(|list| list.iter().all(Json::is_string)),
            Value::Number => json.is_u64(),
            Value::Word(words) | Value::OpenWord(words) => json.as_str().is_some_and(|word| words().contains(&word)),
            Value::AnyJson => true,
        }
    }

    #[test]
    fn the_description_of_the_events_is_that_of_their_frames() {
        let sent = sent();
        assert_eq!(sent.len(), HUB_EVENTS.len());
        for event in HUB_EVENTS {
            let [least, most] = &sent[event.name];
            let names = |with_optional: bool| {
                let fields = event.fields.iter().filter(move |field| with_optional || !field.is_optional);
                fields.map(|field| field.name).collect::<std::collections::BTreeSet<_>>()
            };
            assert_eq!(
                least.as_object().unwrap().keys().map(String::as_str).collect::<std::collections::BTreeSet<_>>(),
                names(false),
                "{}",
                event.name
            );
            assert_eq!(
                most.as_object().unwrap().keys().map(String::as_str).collect::<std::collections::BTreeSet<_>>(),
                names(true),
                "{}",
                event.name
            );
            for field in event.fields {
                assert!(is_valid(&field.value, &most[field.name]), "{}: {}", event.name, field.name);
            }
        }
    }

    #[test]
    fn the_words_of_the_events_are_those_of_their_frames() {
        let words = |event: &str, name: &str| {
            let event = HUB_EVENTS.iter().find(|known| known.name == event).unwrap();
            match &event.fields.iter().find(|field| field.name == name).unwrap().value {
                Value::Word(words) | Value::OpenWord(words) => words(),
                _ => panic!("{name} is no word"),
            }
        };
        let cursors = [CursorState::Fresh, CursorState::Resuming, CursorState::Refused]
            .map(|cursor| serde_json::to_value(cursor).unwrap().as_str().unwrap().to_owned());
        assert_eq!(words("hub.hello", "cursor"), cursors);
        let reconnect = [Reconnect::Now, Reconnect::After(SECOND), Reconnect::Over].map(Reconnect::as_str);
        assert_eq!(words("hub.bye", "reconnect"), reconnect);
        assert_eq!(words("hub.gap", "reason").len(), GapReason::ALL.len());
        assert_eq!(words("hub.bye", "reason").len(), EndReason::ALL.len() - 2);
    }

    /// The table of `docs/wire.md` has the same events in the same order.
    #[test]
    fn the_described_events_are_those_of_the_document() {
        let table = include_str!("../../docs/wire.md").lines().filter_map(|line| line.strip_prefix("| `hub."));
        let names: Vec<_> = table.filter_map(|line| Some(format!("hub.{}", line.split_once('`')?.0))).collect();
        assert_eq!(names, HUB_EVENTS.iter().map(|event| event.name).collect::<Vec<_>>());
    }
}
