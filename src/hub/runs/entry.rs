//! The format of an entry of a journal: one JSON object with the events of one append.
//!
//! ```json
//! {"v":1,"id":"5bd0…","owner":"9f3c…","will":{"event":"error","data":"…"}}
//! {"v":1,"id":"17aa…","events":[{"event":"delta","data":"Hel"},{"event":"delta","data":"lo"}]}
//! {"v":1,"id":"c04e…","events":[{"event":"done","data":""}],"end":"finished"}
//! ```
//!
//! The first entry has the owner and the last will. `id` is random, so that an append that is
//! repeated after an unknown outcome is not taken for another one.
//!
//! Instances of different versions run at the same time during an upgrade. A reader ignores fields
//! that it does not know, and cannot read an entry of another version. `tests/golden/runs.txt` has
//! entries of every released version. They are never changed.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::content::{Entry, Over};
use crate::hub::peers::message::InstanceId;
use crate::types::{Cow, Event, PublishError, RunEnd};
use crate::wire::{Draft, Framing};

const VERSION: u64 = 1;

/// The content of the first entry.
#[derive(Debug)]
pub(in crate::hub) struct Beginning {
    pub(in crate::hub) owner: InstanceId,
    pub(in crate::hub) will: Option<Event>,
}

#[derive(Serialize, Deserialize)]
struct Envelope<'a> {
    v: u64,
    #[serde(skip_deserializing)]
    id: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    owner: Option<String>,
    #[serde(default, borrow, skip_serializing_if = "Option::is_none")]
    will: Option<WireEvent<'a>>,
    #[serde(default, borrow, skip_serializing_if = "Vec::is_empty")]
    events: Vec<WireEvent<'a>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    end: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    note: Option<String>,
}

#[derive(Serialize, Deserialize)]
struct WireEvent<'a> {
    #[serde(default, borrow, skip_serializing_if = "Option::is_none")]
    event: Option<Cow<'a>>,
    #[serde(default, borrow)]
    data: Cow<'a>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    retry_ms: Option<u64>,
}

impl<'a> WireEvent<'a> {
    fn of(event: &'a Event) -> Self {
        Self {
            event: (!event.name.is_empty()).then(|| (&*event.name).into()),
            // `Event` guarantees that its data is UTF-8.
            data: Cow(String::from_utf8_lossy(event.data_bytes())),
            retry_ms: event.retry.map(|retry| u64::try_from(retry.as_millis()).unwrap_or(u64::MAX)),
        }
    }

    fn into_event(self) -> Event {
        let event = Event::new(self.event.unwrap_or_default().0.into_owned(), self.data.0.into_owned());
        match self.retry_ms {
            Some(retry) => event.retry(Duration::from_millis(retry)),
            None => event,
        }
    }
}

fn envelope<'a>() -> Envelope<'a> {
    Envelope {
        v: VERSION,
        id: format!("{:016x}", fastrand::u64(..)),
        owner: None,
        will: None,
        events: Vec::new(),
        end: None,
        note: None,
    }
}

/// Encodes the first entry of a journal.
pub(in crate::hub) fn encode_beginning(beginning: &Beginning) -> Vec<u8> {
    let owner = Some(format!("{:x}", beginning.owner.0));
    let first = Envelope { owner, will: beginning.will.as_ref().map(WireEvent::of), ..envelope() };
    // Serializing text and numbers does not fail.
    serde_json::to_vec(&first).unwrap_or_default()
}

/// Encodes a later entry.
pub(in crate::hub) fn encode(events: &[Event], over: Option<&Over>) -> Vec<u8> {
    let entry = Envelope {
        events: events.iter().map(WireEvent::of).collect(),
        end: over.map(|over| crate::types::EndReason::from(over.end).as_str().to_owned()),
        note: over.and_then(|over| over.note.as_deref()).map(ToOwned::to_owned),
        ..envelope()
    };
    serde_json::to_vec(&entry).unwrap_or_default()
}

/// Decodes the first entry. Returns `None` if it is invalid or has another version.
pub(in crate::hub) fn decode_beginning(bytes: &[u8]) -> Option<Beginning> {
    let first: Envelope<'_> = serde_json::from_slice(bytes).ok().filter(|first: &Envelope<'_>| first.v == VERSION)?;
    let owner = InstanceId(u64::from_str_radix(&first.owner?, 16).ok()?);
    Some(Beginning { owner, will: first.will.map(WireEvent::into_event) })
}

/// Decodes a later entry. Returns `None` if it is invalid or has another version.
pub(in crate::hub) fn decode(bytes: &[u8], framing: &Framing) -> Option<Entry> {
    let entry: Envelope<'_> = serde_json::from_slice(bytes).ok().filter(|entry: &Envelope<'_>| entry.v == VERSION)?;
    let drafts = entry.events.into_iter().map(|event| Draft::encode_for_run(&event.into_event(), framing));
    let over = match entry.end {
        Some(word) => Some(Over { end: RunEnd::from_word(&word)?, note: entry.note.map(Arc::from) }),
        None => None,
    };
    Some(Entry { drafts: drafts.collect::<Result<_, _>>().ok()?, over })
}

/// Checks and encodes events for the streams.
pub(in crate::hub) fn drafts(events: &[Event], framing: &Framing) -> Result<Vec<Draft>, PublishError> {
    events.iter().map(|event| Draft::encode_for_run(event, framing)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Epoch, Ids};
    use crate::wire::IdPrefix;

    /// The file has three lines for each entry: what it is, its bytes and the decoded entry. The
    /// first two are never changed and never removed. A new version adds its entries.
    #[test]
    fn entries_of_every_version_are_decoded() {
        let framing = Framing { max_payload: 1 << 16 };
        let golden = include_str!("../../../tests/golden/runs.txt");
        let lines: Vec<_> = golden.lines().filter(|line| !line.starts_with('#') && !line.is_empty()).collect();
        assert_eq!(lines.len() % 3, 0);
        let beginning = |Beginning { owner, will }: &Beginning| {
            let will = will.as_ref().map(|will| (&will.name, String::from_utf8_lossy(will.data_bytes()), will.retry));
            format!("{owner:?} {will:?}")
        };
        let text = |drafts: Vec<Draft>, over: Option<&Over>| {
            let mut events = Vec::new();
            let prefix = IdPrefix::new(Epoch(1));
            drafts.into_iter().for_each(|draft| draft.finish(&prefix, 1).write(&mut events, Ids::None));
            format!("{:?} {over:?}", String::from_utf8_lossy(&events))
        };
        for entry in lines.chunks(3) {
            let read = match decode_beginning(entry[1].as_bytes()) {
                Some(first) => beginning(&first),
                None => {
                    let Entry { drafts, over } = decode(entry[1].as_bytes(), &framing).unwrap();
                    text(drafts, over.as_ref())
                }
            };
            assert_eq!(read, entry[2], "{}", entry[0]);
        }
        let mut missing = String::new();
        let mut add = |what: &str, bytes: &[u8], text: String| {
            // The random id has 16 digits.
            let mut bytes = String::from_utf8(bytes.to_vec()).unwrap();
            bytes.replace_range(13..29, "0123456789abcdef");
            if !lines.chunks(3).any(|entry| entry[0] == what && entry[1] == bytes) {
                missing += &format!("\n{what}\n{bytes}\n{text}\n");
            }
        };
        for (what, will) in [
            ("the beginning of a run", None),
            ("the beginning of a run with a last will", Some(Event::new("error", "the server\nwas lost"))),
        ] {
            let first = Beginning { owner: InstanceId(0xabc), will };
            add(what, &encode_beginning(&first), beginning(&first));
        }
        let delta = |text: &'static str| Event::new("delta", text);
        let ended = |end, note: Option<&str>| Some(Over { end, note: note.map(Arc::from) });
        for (what, events, over) in [
            ("two events", vec![delta("Hel"), delta("lo \"you\" ö")], None),
            (
                "an event without a name, with a reconnect time",
                vec![Event::unnamed("x").retry(Duration::from_secs(30))],
                None,
            ),
            ("a last event and the end", vec![Event::new("done", "")], ended(RunEnd::Finished, None)),
            ("a failure with a note", Vec::new(), ended(RunEnd::Failed, Some("out of memory"))),
            ("a stop", Vec::new(), ended(RunEnd::Stopped, None)),
            ("an end by another instance", Vec::new(), ended(RunEnd::Aborted, None)),
        ] {
            add(what, &encode(&events, over.as_ref()), text(drafts(&events, &framing).unwrap(), over.as_ref()));
        }
        assert!(missing.is_empty(), "add these entries:\n{missing}");
    }
}
