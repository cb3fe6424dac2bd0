//! The format of a record on a broker: one JSON object, which programs in any language can write
//! and read.
//!
//! ```json
//! {"v":1,"id":"5bd0…","at":1795866000000,
//!  "to":{"topics":["news"]},"event":"headline","data":"Bridge closed"}
//! ```
//!
//! `docs/broker.md` documents the format and has test vectors. `v` is the version. `to` and
//! `except` have the same meaning in every later version, so that an instance that cannot read a
//! record can still report a gap to its audience. Later versions may only add targets in separate
//! fields, as the targets of a scope are.
//!
//! An instance without listeners for a record needs only its audience, so the decoding has three
//! steps. [`peek`](super::peek) reads the audience of most records without parsing the JSON,
//! [`parse`] reads any audience, and [`Parsed::decode`] reads the event.

use std::time::{Duration, SystemTime};

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;

use crate::types::{Address, Audience, Cow, Event, ScopeName, To};

const VERSION: u64 = 1;
/// The maximum number of addresses of a record, and of its excluded connections. The audience of a
/// record over this limit is not decoded.
const MAX_ADDRESSES: usize = 1024;
/// The approximate size of the names of the fields of an event, and of its id, in bytes.
pub(super) const FIELDS: usize = 50;

/// The random id of a record and the time of publishing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    /// A random number. If the log is rolled back and a record of an equal event then gets the same
    /// number in the log, the two records still differ in this id.
    id: u64,
    /// The time of publishing in milliseconds of Unix time, by the publisher's clock.
    at: u64,
}

impl Stamp {
    /// Creates a stamp with a new id and the current time.
    pub(crate) fn now() -> Self {
        Self { id: fastrand::u64(..), at: unix_millis() }
    }
}

/// Returns the current time in milliseconds of Unix time.
pub(crate) fn unix_millis() -> u64 {
    millis_of(SystemTime::now())
}

/// Returns a time in milliseconds of Unix time.
pub(crate) fn millis_of(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// A record whose audience was read, but not its event.
pub(crate) struct Parsed<'a> {
    pub(crate) audience: Audience,
    /// As [`Decoded::published_at`].
    pub(crate) published_at: Option<u64>,
    content: Received<'a>,
}

/// A decoded record.
#[derive(Debug)]
pub(crate) struct Decoded {
    pub(crate) audience: Audience,
    pub(crate) event: Event,
    /// The time of publishing in milliseconds of Unix time, by the publisher's clock. `None` if the
    /// record has no time.
    pub(crate) published_at: Option<u64>,
}

#[derive(Serialize)]
struct Envelope<'a> {
    v: u64,
    /// The id of the stamp in hexadecimal.
    id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    at: Option<u64>,
    to: To<'a>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    except: Vec<Cow<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    event: Option<Cow<'a>>,
    data: Cow<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<Cow<'a>>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    remove: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_ms: Option<u64>,
}

/// The fields that decoding uses. It ignores `id`, because instances compare the bytes of whole
/// records. So a publisher may write any id.
#[derive(Deserialize)]
struct Received<'a> {
    v: u64,
    #[serde(default)]
    at: Option<u64>,
    #[serde(borrow)]
    to: To<'a>,
    #[serde(default, borrow)]
    except: Vec<Cow<'a>>,
    #[serde(default, borrow)]
    event: Option<Cow<'a>>,
    /// The data as JSON, because most records need not be decoded.
    #[serde(default, borrow, deserialize_with = "raw")]
    data: Option<&'a RawValue>,
    #[serde(default, borrow)]
    key: Option<Cow<'a>>,
    #[serde(default)]
    remove: bool,
    #[serde(default)]
    retry_ms: Option<u64>,
}

/// Reads any JSON value, also `null`, which is no valid data.
fn raw<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(deserializer).map(Some)
}

/// The fields that have the same meaning in every version.
#[derive(Deserialize)]
struct Addressed<'a> {
    #[serde(borrow)]
    to: To<'a>,
    #[serde(default, borrow)]
    except: Vec<Cow<'a>>,
}

/// Encodes an event for an audience as a record. Does not validate the event.
pub(crate) fn encode(audience: &Audience, event: &Event, stamp: Stamp) -> Vec<u8> {
    let name = &*event.name;
    let envelope = Envelope {
        v: VERSION,
        id: format!("{:016x}", stamp.id),
        at: Some(stamp.at),
        to: To::of(audience),
        except: audience.excluded().iter().map(|id| id.to_string().into()).collect(),
        event: (!name.is_empty()).then(|| name.into()),
        // `Event` guarantees that its data is UTF-8.
        data: Cow(String::from_utf8_lossy(event.data_bytes())),
        key: event.key.as_deref().map(Into::into),
        remove: event.removes,
        retry_ms: event.retry.map(|retry| u64::try_from(retry.as_millis()).unwrap_or(u64::MAX)),
    };
    // Serializing text and numbers does not fail.
    serde_json::to_vec(&envelope).unwrap_or_default()
}

/// Reads the audience of a record, and validates its addresses.
///
/// The error is the audience of a record that has another version or that cannot be decoded. The
/// error is `None` if the audience itself cannot be decoded, or if it has more than
/// [`MAX_ADDRESSES`] addresses or excluded connections.
pub(crate) fn parse(bytes: &[u8]) -> Result<Parsed<'_>, Option<Box<Audience>>> {
    let audience_of = |to: &To<'_>, except: &[Cow<'_>]| {
        let is_small = to.len().max(except.len()) <= MAX_ADDRESSES;
        is_small.then(|| to.audience(except.iter().map(|id| &*id.0)).ok()).flatten()
    };
    let Ok(content) = serde_json::from_slice::<Received<'_>>(bytes) else {
        let addressed: Addressed<'_> = serde_json::from_slice(bytes).map_err(|_| None)?;
        return Err(audience_of(&addressed.to, &addressed.except).map(Box::new));
    };
    let audience = audience_of(&content.to, &content.except).ok_or(None)?;
    if content.v != VERSION {
        return Err(Some(Box::new(audience)));
    }
    Ok(Parsed { audience, published_at: content.at, content })
}

impl Parsed<'_> {
    /// Returns the approximate size of the event on the wire, in bytes.
    pub(crate) fn size(&self) -> usize {
        let name = self.content.event.as_ref().map_or(0, |name| name.0.len());
        FIELDS + name + self.content.data.map_or(0, |data| data.get().len())
    }

    /// Decodes the event, without validating it. The error is the audience of a record whose data
    /// is no text.
    pub(crate) fn decode(self) -> Result<Decoded, Option<Box<Audience>>> {
        let Self { audience, published_at, content } = self;
        let data = content.data.map_or(Ok(Cow::default()), |data| serde_json::from_str(data.get()));
        let Ok(data) = data else { return Err(Some(Box::new(audience))) };
        let [name, data] = [content.event.unwrap_or_default(), data].map(|text| text.0.into_owned());
        let mut event = match content.key.map(|key| key.0.into_owned()) {
            Some(key) if content.remove => Event::removal(key).name(name).data(data),
            Some(key) => Event::new(name, data).key(key),
            None => Event::new(name, data),
        };
        if let Some(retry) = content.retry_ms {
            event = event.retry(Duration::from_millis(retry));
        }
        Ok(Decoded { audience, event, published_at })
    }
}

/// Returns the id of the current value of a key at an address. The id is a JSON array, so that two
/// different pairs of address and key never have the same id. The array has a fourth element, the
/// scope, only if the address has a scope.
pub(crate) fn value_id(address: &Address, key: &str) -> String {
    let name = match address {
        Address::Everyone(_) => ("everyone", String::new()),
        Address::EveryScope => ("every_scope", String::new()),
        Address::Topic(topic) => ("topic", topic.to_string()),
        Address::User(user) => ("user", user.to_string()),
        Address::Connection(id, _) => ("connection", id.to_string()),
    };
    // Serializing text does not fail.
    match address.scope().and_then(ScopeName::as_str) {
        None => serde_json::to_string(&(name.0, name.1, key)).unwrap_or_default(),
        Some(scope) => serde_json::to_string(&(name.0, name.1, key, scope)).unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{ConnectionId, Scoped, Topic, UserId};
    use proptest::prelude::*;

    fn decode(bytes: &[u8]) -> Result<Decoded, Option<Box<Audience>>> {
        parse(bytes)?.decode()
    }

    /// Programs in other languages can test their encoders and decoders with these vectors.
    #[test]
    fn test_vectors_of_the_document_decode_and_encode() {
        let document = include_str!("../../../docs/broker.md");
        let is_vector = |line: &&str| line.starts_with("{\"v\":1,");
        let vectors: Vec<&str> = document.lines().filter(is_vector).collect();
        assert!(vectors.len() >= 7, "the vectors were not found");
        let stamp = Stamp { id: 0x0123_4567_89ab_cdef, at: 1_795_866_000_000 };
        for vector in vectors {
            let Decoded { audience, event, published_at } = decode(vector.as_bytes()).unwrap();
            assert_eq!(published_at, Some(stamp.at));
            assert_eq!(String::from_utf8(encode(&audience, &event, stamp)).unwrap(), vector);
        }
        for line in document.lines().filter(|line| line.starts_with("{\"v\":2,")) {
            assert!(matches!(decode(line.as_bytes()), Err(Some(audience)) if !audience.addresses().is_empty()));
        }
    }

    #[test]
    fn decode_ignores_unknown_fields_and_rejects_invalid_records() {
        assert!(decode(br#"{"v":1,"to":{"topics":["a"],"planets":[1]},"data":"x","more":{}}"#).is_ok());
        // A publisher in another language may omit the stamp, and may write any id.
        for id in [r#""#, r#""id":7,"#, r#""id":"","#, r#""id":{"a":[]},"#] {
            let record = format!(r#"{{"v":1,{id}"to":{{"topics":["a"]}},"data":"x"}}"#);
            assert_eq!(decode(record.as_bytes()).unwrap().published_at, None, "{record}");
        }
        for garbage in
            [&b""[..], b"{", b"[]", b"\xff", b"{\"v\":1}", b"{\"v\":1,\"to\":{\"topics\":[\"\"]},\"data\":\"\"}"]
        {
            assert!(matches!(decode(garbage), Err(None)), "{garbage:?}");
        }
        let data = |data: &str| format!(r#"{{"v":1,"to":{{"topics":["a"]}},"data":{data}}}"#);
        for addressed in [data("7"), data("null"), data(r#"{"a":[]}"#), r#"{"to":{"topics":["a"]}}"#.to_owned()] {
            assert!(matches!(decode(addressed.as_bytes()), Err(Some(_))), "{addressed}");
        }
    }

    #[test]
    fn decode_rejects_an_audience_of_two_scopes_or_of_an_invalid_scope() {
        let record = |to: &str| format!(r#"{{"v":1,"to":{{{to}}},"data":""}}"#);
        let scoped = |fields: &str| record(&format!(r#""scoped":{{{fields}}}"#));
        for invalid in [
            scoped(r#""topics":["a"]"#),
            scoped(r#""scope":"","topics":["a"]"#),
            scoped(r#""scope":"a\u0001","topics":["a"]"#),
            scoped(r#""scope":7,"topics":["a"]"#),
            record(r#""topics":["a"],"scoped":{"scope":"acme","topics":["b"]}"#),
            record(r#""everyone":true,"every_scope":true,"scoped":{"scope":"acme","topics":["b"]}"#),
        ] {
            assert!(matches!(decode(invalid.as_bytes()), Err(None)), "{invalid}");
        }
        let gap = decode(br#"{"v":2,"to":{"scoped":{"scope":"acme","topics":["a"]}},"data":""}"#).unwrap_err().unwrap();
        assert_eq!(gap.scope().and_then(ScopeName::as_str), Some("acme"));
        let every_scope = decode(record(r#""every_scope":true"#).as_bytes()).unwrap();
        assert_eq!(every_scope.audience.scope(), None);
    }

    /// Decodes records as versions without scopes do: they ignore unknown fields of `to`.
    #[test]
    fn version_without_scopes_reads_no_address_of_a_scope() {
        #[derive(Debug, PartialEq, Deserialize)]
        struct OldTo {
            #[serde(default)]
            topics: Vec<String>,
            #[serde(default)]
            users: Vec<String>,
            #[serde(default)]
            connections: Vec<String>,
            #[serde(default)]
            everyone: bool,
        }
        #[derive(Deserialize)]
        struct Old {
            v: u64,
            to: OldTo,
        }
        let nothing = OldTo { topics: Vec::new(), users: Vec::new(), connections: Vec::new(), everyone: false };
        let scope = ScopeName::named("acme").unwrap();
        let addresses = [
            Address::Topic(Topic::try_from("a").unwrap().placed_in(&scope).unwrap()),
            Address::User(UserId::try_from("a").unwrap().placed_in(&scope).unwrap()),
            Address::Connection(ConnectionId::from_bits(7), scope.clone()),
            Address::Everyone(scope),
            Address::EveryScope,
        ];
        for address in addresses {
            let record = encode(&Audience::from(address.clone()), &Event::unnamed("x"), Stamp::now());
            let Old { v, to } = serde_json::from_slice(&record).unwrap();
            assert_eq!((v, &to), (1, &nothing), "{address:?}");
            assert_eq!(decode(&record).unwrap().audience.addresses(), [address]);
        }
    }

    #[test]
    fn value_ids_of_different_scopes_addresses_and_keys_differ() {
        let names = ["a", "b", "a/b", "\",\"", "[\"a\"]"];
        let scopes = [ScopeName::ROOT].into_iter().chain(names.map(|name| ScopeName::named(name).unwrap()));
        let mut ids = std::collections::BTreeSet::new();
        let mut count = 0;
        for scope in scopes {
            let topics = names.map(|name| Address::Topic(Topic::try_from(name).unwrap().placed_in(&scope).unwrap()));
            let users = names.map(|name| Address::User(UserId::try_from(name).unwrap().placed_in(&scope).unwrap()));
            for address in topics.into_iter().chain(users).chain([Address::Everyone(scope.clone())]) {
                ids.extend(names.map(|key| value_id(&address, key)));
                count += names.len();
            }
        }
        assert_eq!(ids.len(), count);
    }

    #[test]
    fn value_ids_are_those_of_the_document() {
        let document = include_str!("../../../docs/broker.md");
        let ids: Vec<_> = document.lines().filter(|line| line.starts_with("[\"")).collect();
        let acme = ScopeName::named("acme").unwrap();
        let topic = Topic::try_from("sensors/boiler").unwrap();
        let addresses = [
            Address::Topic(topic.clone()),
            Address::Topic(topic.placed_in(&acme).unwrap()),
            Address::User(UserId::from(7).placed_in(&acme).unwrap()),
            Address::Everyone(acme),
            Address::EveryScope,
        ];
        assert_eq!(ids, addresses.map(|address| value_id(&address, "boiler")));
    }

    #[test]
    fn records_of_equal_events_differ() {
        let topic = || Audience::from(Address::Topic(Topic::try_from("a").unwrap()));
        let record = || encode(&topic(), &Event::unnamed("tick"), Stamp::now());
        assert_ne!(record(), record());
    }

    #[test]
    fn decode_rejects_a_huge_audience_quickly() {
        let topics = |count: usize, v: u8| {
            let topics: Vec<_> = (0..count).map(|n| format!("\"{n}\"")).collect();
            format!("{{\"v\":{v},\"to\":{{\"topics\":[{}]}},\"data\":\"\"}}", topics.join(","))
        };
        let except = |count: u128| {
            let ids: Vec<_> = (0..count).map(|id| format!("\"{}\"", ConnectionId::from_bits(id))).collect();
            format!("{{\"v\":1,\"to\":{{\"everyone\":true}},\"except\":[{}]}}", ids.join(","))
        };
        let started = std::time::Instant::now();
        for garbage in [topics(1025, 1), topics(1025, 2), topics(100_000, 1), topics(100_000, 2), except(100_000)] {
            assert!(matches!(decode(garbage.as_bytes()), Err(None)));
        }
        // An audience over the limit of the publish API can still be read.
        let Decoded { audience, .. } = decode(topics(1024, 1).as_bytes()).unwrap();
        assert_eq!(audience.addresses().len(), 1024);
        assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
        // Repeated addresses are removed, and the order stays.
        let Decoded { audience, .. } =
            decode(br#"{"v":1,"to":{"topics":["b","a","b"],"users":["a","a"]},"data":""}"#).unwrap();
        let topic = |name: &str| Address::Topic(Topic::try_from(name).unwrap());
        assert_eq!(audience.addresses(), [topic("b"), topic("a"), Address::User(UserId::try_from("a").unwrap())]);
    }

    proptest! {
        #[test]
        fn encoded_record_decodes_to_the_same_event(
            name: String, data: String, key in proptest::option::of(any::<String>()), removes: bool,
            topic in "[^\u{0}-\u{1f}\u{7f}-\u{9f}]{1,60}",
            scope in proptest::option::of("[^\u{0}-\u{1f}\u{7f}-\u{9f}]{1,60}"), retry in proptest::option::of(0..1u64 << 40),
        ) {
            let mut event = match &key {
                Some(key) if removes => Event::removal(key.clone()).data(data.clone()),
                Some(key) => Event::unnamed(data.clone()).key(key.clone()),
                None => Event::unnamed(data.clone()),
            }
            .name(name.clone());
            if let Some(retry) = retry {
                event = event.retry(Duration::from_millis(retry));
            }
            let scope = ScopeName::read(scope.as_deref()).unwrap();
            let topic = Topic::try_from(topic).unwrap().placed_in(&scope).unwrap();
            let mut audience = Audience::from(Address::Topic(topic));
            audience.insert(Address::Connection(ConnectionId::from_bits(9), scope.clone()));
            audience.insert(Address::Everyone(scope));
            audience.exclude(ConnectionId::from_bits(7));
            let stamp = Stamp::now();
            let Decoded { audience: read_audience, event: read, published_at } =
                decode(&encode(&audience, &event, stamp)).unwrap();
            prop_assert_eq!(published_at, Some(stamp.at));
            prop_assert_eq!(read_audience.addresses().iter().collect::<std::collections::BTreeSet<_>>(), audience.addresses().iter().collect());
            prop_assert_eq!(read_audience.excluded(), audience.excluded());
            prop_assert_eq!((&read.name, read.data_bytes()), (&event.name, event.data_bytes()));
            prop_assert_eq!((&read.key, read.removes, read.retry), (&event.key, event.removes, event.retry));
        }

        #[test]
        fn decode_does_not_panic_for_any_bytes(bytes: Vec<u8>) {
            drop(decode(&bytes));
        }
    }
}
