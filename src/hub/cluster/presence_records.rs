//! `hub.joined` and `hub.left` as records of a shared log. Only hubs publish these events, because
//! the publish API rejects their names.
//!
//! Any program with access to the broker can write such a record. So a hub accepts a record only if
//! a hub could have written it.

use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::log::{Effect, Entry};
use crate::types::{Address, Audience, Event, Subscription, UserId};
use crate::wire::Draft;

/// The maximum size of the data of a presence record in bytes. Two names and the data of a
/// subscription always fit. The limit of an application for its own events does not apply.
const MAX_BYTES: usize = 2 * Subscription::MAX_DATA_BYTES;

#[derive(Deserialize)]
struct PresenceRecord {
    topic: String,
    user: String,
    #[serde(default, rename = "data")]
    _data: IgnoredAny,
}

/// Returns whether an event is a presence event.
pub(in crate::hub) fn is_presence(event: &Event) -> bool {
    matches!(&*event.name, "hub.joined" | "hub.left")
}

/// Returns the log entry of a presence record. The error is the audience of a record that no hub
/// could have written.
pub(in crate::hub) fn entry(audience: Audience, event: &Event) -> Result<Entry, Box<Audience>> {
    if !is_written_by_hub(&audience, event) {
        return Err(Box::new(audience));
    }
    let draft = Draft::control(&event.name, &String::from_utf8_lossy(event.data_bytes()));
    Ok(Entry { audience, effect: Effect::Nothing, draft, published: None })
}

/// Returns whether a hub could have written this presence record.
fn is_written_by_hub(audience: &Audience, event: &Event) -> bool {
    let [Address::Topic(topic)] = audience.addresses() else { return false };
    let has_more = event.key.is_some() || event.removes || event.retry.is_some();
    if has_more || !audience.excluded().is_empty() || event.data_bytes().len() > MAX_BYTES {
        return false;
    }
    let read = serde_json::from_slice::<PresenceRecord>(event.data_bytes());
    read.is_ok_and(|record| record.topic == topic.as_str() && UserId::try_from(record.user).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{ConnectionId, ScopeName, Topic};
    use crate::wire::hub_events;

    #[test]
    fn presence_record_of_a_hub_is_accepted_with_names_and_data_of_any_length() {
        let topic = Topic::try_from("\"".repeat(255)).unwrap();
        let user = UserId::try_from("\\".repeat(255)).unwrap();
        let data = format!("\"{}\"", "x".repeat(Subscription::MAX_DATA_BYTES - 2));
        for (name, data) in [hub_events::joined(&topic, &user, Some(&data)), hub_events::left(&topic, &user)] {
            let event = Event::new(name, data);
            assert!(is_presence(&event) && entry(Address::Topic(topic.clone()).into(), &event).is_ok());
        }
    }

    #[test]
    fn presence_record_that_no_hub_could_write_is_rejected() {
        let topic = Address::Topic(Topic::from(7));
        let valid = || Event::new("hub.joined", r#"{"topic":"7","user":"ada","data":{"n":1},"more":2}"#);
        assert!(entry(topic.clone().into(), &valid()).is_ok());
        let mut two = Audience::from(topic.clone());
        two.insert(Address::Topic(Topic::from(8)));
        let mut excluding = Audience::from(topic.clone());
        excluding.exclude(ConnectionId::from_bits(1));
        for audience in [
            two,
            excluding,
            Audience::default(),
            Address::Everyone(ScopeName::ROOT).into(),
            Address::Topic(Topic::from(8)).into(),
        ] {
            assert!(entry(audience, &valid()).is_err());
        }
        let too_long = format!(r#"{{"topic":"7","user":"ada","data":"{}"}}"#, "x".repeat(MAX_BYTES));
        let with_data = |data: &str| Event::new("hub.joined", data.to_owned());
        for event in [
            valid().key("k"),
            valid().retry(std::time::Duration::from_secs(1)),
            Event::removal("k").name("hub.left").data(r#"{"topic":"7","user":"ada"}"#),
            with_data(&too_long),
            with_data(""),
            with_data("[]"),
            with_data(r#"{"topic":"7","user":"ada""#),
            with_data(r#"{"topic":"7"}"#),
            with_data(r#"{"topic":"7","user":""}"#),
            with_data(r#"{"topic":"8","user":"ada"}"#),
        ] {
            assert!(entry(topic.clone().into(), &event).is_err(), "{event:?}");
        }
    }
}
