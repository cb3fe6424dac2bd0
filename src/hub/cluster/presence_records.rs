//! `hub.joined` and `hub.left` as records of a shared log: what a hub says on another instance, and no application may.
//!
//! Whoever can write to the broker can write anything, so such a record is taken only if a hub could have written it.

use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::log::{Effect, Entry};
use crate::types::{Address, Audience, Event, Subscription, UserId};
use crate::wire::Draft;

/// Two names and what is attached to a subscription are never longer, whatever the limit for applications is.
const MOST_BYTES: usize = 2 * Subscription::MAX_DATA_BYTES;

#[derive(Deserialize)]
struct PresenceRecord {
    topic: String,
    user: String,
    #[serde(default, rename = "data")]
    _data: IgnoredAny,
}

pub(in crate::hub) fn is_presence(event: &Event) -> bool {
    matches!(&*event.name, "hub.joined" | "hub.left")
}

/// The entry of a presence record. Returns the audience if no hub could have written the record.
pub(in crate::hub) fn entry(audience: Audience, event: &Event) -> Result<Entry, Box<Audience>> {
    if !is_a_hubs(&audience, event) {
        return Err(Box::new(audience));
    }
    let draft = Draft::control(&event.name, &String::from_utf8_lossy(event.data_bytes()));
    Ok(Entry { audience, effect: Effect::Nothing, draft, published: None })
}

fn is_a_hubs(audience: &Audience, event: &Event) -> bool {
    let [Address::Topic(topic)] = audience.addresses() else { return false };
    let has_more = event.key.is_some() || event.removes || event.retry.is_some();
    if has_more || !audience.excluded().is_empty() || event.data_bytes().len() > MOST_BYTES {
        return false;
    }
    let read = serde_json::from_slice::<PresenceRecord>(event.data_bytes());
    read.is_ok_and(|record| record.topic == topic.as_str() && UserId::try_from(record.user).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{ConnectionId, Topic};
    use crate::wire::hub_events;

    #[test]
    fn what_a_hub_says_is_taken_however_long_its_names_and_data_are() {
        let topic = Topic::try_from("\"".repeat(255)).unwrap();
        let user = UserId::try_from("\\".repeat(255)).unwrap();
        let data = format!("\"{}\"", "x".repeat(Subscription::MAX_DATA_BYTES - 2));
        for (name, data) in [hub_events::joined(&topic, &user, Some(&data)), hub_events::left(&topic, &user)] {
            let event = Event::new(name, data);
            assert!(is_presence(&event) && entry(Address::Topic(topic.clone()).into(), &event).is_ok());
        }
    }

    #[test]
    fn what_no_hub_says_is_given_back() {
        let topic = Address::Topic(Topic::from(7));
        let good = || Event::new("hub.joined", r#"{"topic":"7","user":"ada","data":{"n":1},"more":2}"#);
        assert!(entry(topic.clone().into(), &good()).is_ok());
        let mut two = Audience::from(topic.clone());
        two.insert(Address::Topic(Topic::from(8)));
        let mut spares = Audience::from(topic.clone());
        spares.exclude(ConnectionId::from_bits(1));
        for audience in
            [two, spares, Audience::default(), Address::Everyone.into(), Address::Topic(Topic::from(8)).into()]
        {
            assert!(entry(audience, &good()).is_err());
        }
        let long = format!(r#"{{"topic":"7","user":"ada","data":"{}"}}"#, "x".repeat(MOST_BYTES));
        let named = |data: &str| Event::new("hub.joined", data.to_owned());
        for event in [
            good().key("k"),
            good().retry(std::time::Duration::from_secs(1)),
            Event::removal("k").name("hub.left").data(r#"{"topic":"7","user":"ada"}"#),
            named(&long),
            named(""),
            named("[]"),
            named(r#"{"topic":"7","user":"ada""#),
            named(r#"{"topic":"7"}"#),
            named(r#"{"topic":"7","user":""}"#),
            named(r#"{"topic":"8","user":"ada"}"#),
        ] {
            assert!(entry(topic.clone().into(), &event).is_err(), "{event:?}");
        }
    }
}
