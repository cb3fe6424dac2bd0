//! The audience of a record on a broker, read without parsing the JSON of the record.

use super::record::FIELDS;
use crate::types::{AddressRef, ScopeName};

/// The maximum number of digits of a time that [`peek`] reads.
const MAX_DIGITS: usize = 19;

/// The audience of a record that was not parsed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Peeked<'a> {
    pub(crate) to: AddressRef<'a>,
    /// As [`Decoded::published_at`](super::record::Decoded::published_at).
    pub(crate) published_at: u64,
    /// The approximate size of the event on the wire, in bytes.
    pub(crate) size: usize,
}

/// Reads the audience of a record that has one topic or user and that begins exactly as [`encode`]
/// writes it. Returns `None` for every other record. The rest of the record may be invalid.
///
/// [`encode`]: super::record::encode
pub(crate) fn peek(record: &[u8]) -> Option<Peeked<'_>> {
    let rest = record.strip_prefix(b"{\"v\":1,\"id\":\"")?;
    let (id, rest) = rest.split_at_checked(16)?;
    let rest = rest.strip_prefix(b"\",\"at\":").filter(|_| id.iter().all(u8::is_ascii_hexdigit))?;
    let digits = rest.iter().take(MAX_DIGITS).take_while(|byte| byte.is_ascii_digit()).count();
    let (at, rest) = rest.split_at_checked(digits).filter(|(at, _)| !at.is_empty())?;
    let published_at = at.iter().fold(0, |at, digit| at * 10 + u64::from(digit - b'0'));
    let rest = rest.strip_prefix(b",\"to\":{\"")?;
    let (is_topic, rest) = match rest.strip_prefix(b"topics\":[\"") {
        Some(rest) => (true, rest),
        None => (false, rest.strip_prefix(b"users\":[\"")?),
    };
    let (name, rest) = rest.split_at(memchr::memchr2(b'"', b'\\', rest)?);
    // The name ends without an escape, the audience has no other address, and the event follows.
    let rest = rest.strip_prefix(b"\"]},\"").filter(|rest| rest.starts_with(b"event") || rest.starts_with(b"data"))?;
    let name = std::str::from_utf8(name).ok()?;
    let scope = ScopeName::root();
    let to = if is_topic { AddressRef::Topic(name, scope) } else { AddressRef::User(name, scope) };
    Some(Peeked { to, published_at, size: FIELDS + rest.len() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::cluster::record::{Stamp, encode, parse};
    use crate::types::{Address, AsAddress, Audience, ConnectionId, Event, Topic, UserId};
    use proptest::prelude::*;

    #[test]
    fn peek_reads_only_records_that_begin_like_those_of_a_hub() {
        let start = r#"{"v":1,"id":"0123456789abcdef","at":1795866000000,"to":{"#;
        let peeked = |to: &str, rest: &str| {
            let record = format!("{start}{to}{rest}");
            peek(record.as_bytes()).map(|peeked| (format!("{:?}", peeked.to), peeked.published_at))
        };
        let data = r#","data":"x"}"#;
        assert_eq!(peeked(r#""topics":["a"]}"#, data), Some((r#"Topic("a", None)"#.to_owned(), 1_795_866_000_000)));
        assert_eq!(peeked(r#""users":["a"]}"#, data), Some((r#"User("a", None)"#.to_owned(), 1_795_866_000_000)));
        for to in [
            r#""topics":["a","b"]}"#,
            r#""topics":["a"],"users":["b"]}"#,
            r#""topics":["\u0061"]}"#,
            r#""topics":["a""#,
            r#""everyone":true}"#,
            r#""scoped":{"scope":"s","topics":["a"]}}"#,
            r#""topics":["a"],"scoped":{"scope":"s"}}"#,
        ] {
            assert_eq!(peeked(to, data), None, "{to}");
        }
        for rest in [r#","except":["1"],"data":"x"}"#, r#","scope":"s","data":"x"}"#, "", "}"] {
            assert_eq!(peeked(r#""topics":["a"]}"#, rest), None, "{rest}");
        }
        for record in [
            r#"{"v":2,"id":"0123456789abcdef","at":1,"to":{"topics":["a"]},"data":"x"}"#,
            r#"{"v":1,"id":"0123456789abcdef","at":,"to":{"topics":["a"]},"data":"x"}"#,
            "{",
            "",
        ] {
            assert_eq!(peek(record.as_bytes()), None, "{record}");
        }
    }

    proptest! {
        /// Otherwise an instance could skip a record of an audience that has listeners.
        #[test]
        fn peeked_audience_is_the_parsed_audience(
            data: String, name in "[a-z\"\\\\é/]{1,8}", is_user: bool, other: bool, excludes: bool,
        ) {
            let mut audience = Audience::from(match is_user {
                true => Address::User(UserId::try_from(&*name).unwrap()),
                false => Address::Topic(Topic::try_from(&*name).unwrap()),
            });
            if other {
                audience.insert(Address::Everyone(ScopeName::ROOT));
            }
            if excludes {
                audience.exclude(ConnectionId::from_bits(7));
            }
            let record = encode(&audience, &Event::unnamed(data), Stamp::now());
            let peeked = peek(&record);
            let is_plain = !other && !excludes && !name.contains(['"', '\\']);
            prop_assert_eq!(peeked.is_some(), is_plain);
            if let Some(Peeked { to, published_at, .. }) = peeked {
                prop_assert_eq!(to, audience.addresses()[0].as_address());
                prop_assert_eq!(Some(published_at), parse(&record).ok().and_then(|parsed| parsed.published_at));
            }
        }

        #[test]
        fn peek_does_not_panic_for_any_bytes(bytes: Vec<u8>) {
            let _ = peek(&bytes);
        }
    }
}
