//! The JSON format in which a broker stores the subscription of a ticket, so that any instance can
//! redeem the ticket. Values of [`Subscription::extension`] are not part of it.
//!
//! Instances of different versions run at the same time during an upgrade, so these rules apply:
//!
//! 1. A reader ignores fields that it does not know. So a later version adds a field only if a
//!    stream without it is permitted too.
//! 2. Otherwise a ticket with the new field has another version. A reader rejects versions that it
//!    does not know, as if the ticket did not exist.
//! 3. `tests/golden/tickets.txt` has tickets of every released version. They are never changed.

use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::types::topic_filter::Rule;
use crate::types::{Expiry, History, Ids, Position, ScopeName, Start, StreamEnd, Subscription, TopicFilter};

/// The version of a ticket without a scope.
const VERSION: u64 = 1;
/// The version of a ticket with a scope. An instance that does not know scopes rejects the ticket.
/// Otherwise it would open a stream of the same user without a scope.
const SCOPED_VERSION: u64 = 2;

fn version_of(scope: Option<&str>) -> u64 {
    if scope.is_some() { SCOPED_VERSION } else { VERSION }
}

#[derive(Serialize, Deserialize)]
struct Carried {
    v: u64,
    /// The time of creation, in milliseconds of Unix time.
    made_at: u64,
    /// The time of expiry, in milliseconds of Unix time.
    over_at: u64,
    /// The scope of the subscription. Absent for the root scope.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    scope: Option<String>,
    user: Option<String>,
    topics: Vec<String>,
    may_join: Vec<Rule>,
    /// The number of events of [`Start::Last`]. `None` for [`Start::Live`], and `u64::MAX` for
    /// [`Start::Oldest`].
    last: Option<u64>,
    /// Topics, each with a position. The stream may read only the records of the topic after this
    /// position.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    since: Vec<(String, String)>,
    #[serde(default)]
    without_history: bool,
    /// The expiry of the subscription, in milliseconds of Unix time.
    expires_at: Option<u64>,
    /// Whether the stream ends with an abort of the response. `None` for the default of the hub.
    aborts: Option<bool>,
    #[serde(default)]
    bare: bool,
    /// The place of the ids in a bare stream: `first`, `none`, or `None` for the default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ids: Option<String>,
    data: Option<String>,
    counted_as: Option<String>,
}

fn unix(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

fn time(unix: u64) -> Option<SystemTime> {
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(unix))
}

/// The times at which a ticket was created and expires, by the system clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Times {
    pub(crate) made_at: SystemTime,
    pub(crate) over_at: SystemTime,
}

/// Encodes the subscription and the times of a ticket.
pub(crate) fn encode(subscription: &Subscription, times: Times) -> Vec<u8> {
    let carried = Carried {
        v: version_of(subscription.scope()),
        made_at: unix(times.made_at),
        over_at: unix(times.over_at),
        scope: subscription.scope().map(ToOwned::to_owned),
        user: subscription.user.as_ref().map(ToString::to_string),
        topics: subscription.topics.iter().map(ToString::to_string).collect(),
        may_join: subscription.may_join.iter().map(|rule| rule.0.clone()).collect(),
        last: match subscription.start {
            Start::Live => None,
            Start::Last(count) => Some(count as u64),
            Start::Oldest => Some(u64::MAX),
        },
        since: subscription.topics.bounds().map(|(topic, at)| (topic.to_string(), at.to_string())).collect(),
        without_history: subscription.history == History::None,
        expires_at: subscription.expiry.and_then(Expiry::at).map(unix),
        aborts: subscription.end.map(|end| end == StreamEnd::Abort),
        bare: subscription.bare,
        ids: match subscription.ids {
            Ids::Last => None,
            Ids::First => Some("first".into()),
            Ids::None => Some("none".into()),
        },
        data: subscription.data.as_deref().map(ToOwned::to_owned),
        counted_as: subscription.counted_as.as_ref().map(|key| key.as_str().to_owned()),
    };
    // Serializing text and numbers does not fail.
    serde_json::to_vec(&carried).unwrap_or_default()
}

/// Decodes the subscription and the times of a ticket. Returns `None` for another version of the
/// format or invalid content.
pub(crate) fn decode(bytes: &[u8]) -> Option<(Subscription, Times)> {
    let carried: Carried = serde_json::from_slice(bytes).ok()?;
    if carried.v != version_of(carried.scope.as_deref()) {
        return None;
    }
    let scope = ScopeName::read(carried.scope.as_deref()).ok()?;
    let mut subscription = Subscription::anonymous().placed_in(&scope).with_topics(carried.topics);
    if let Some(user) = carried.user {
        subscription = subscription.with_user(user);
    }
    subscription.may_join = carried.may_join.into_iter().map(TopicFilter).collect();
    subscription.start = match carried.last {
        None => Start::Live,
        Some(u64::MAX) => Start::Oldest,
        Some(count) => Start::Last(usize::try_from(count).unwrap_or(usize::MAX)),
    };
    for (topic, position) in carried.since {
        subscription = subscription.topic_since(topic, position.parse::<Position>().ok()?);
    }
    if carried.without_history {
        subscription = subscription.without_history();
    }
    subscription.end = carried.aborts.map(|aborts| if aborts { StreamEnd::Abort } else { StreamEnd::Clean });
    subscription.bare = carried.bare;
    subscription.ids = match carried.ids.as_deref() {
        Some("first") => Ids::First,
        Some("none") => Ids::None,
        _ => Ids::Last,
    };
    subscription.expiry = carried.expires_at.and_then(time).map(Expiry::At);
    subscription.data = carried.data.map(Into::into);
    if let Some(key) = carried.counted_as {
        subscription = subscription.counted_as(key);
    }
    let times = Times { made_at: time(carried.made_at)?, over_at: time(carried.over_at)? };
    subscription.validity().is_ok().then_some((subscription, times))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Topic;
    use proptest::prelude::*;

    #[test]
    fn encoded_subscription_decodes_to_the_same() {
        let now = time(unix(SystemTime::now())).unwrap();
        let times = Times { made_at: now, over_at: now + Duration::from_secs(9) };
        let subscription = Subscription::for_user("a\"b")
            .in_scope("acme/1")
            .with_topics(["x", "y:z"])
            .may_join(TopicFilter::any())
            .may_join(TopicFilter::exact("e"))
            .may_join(TopicFilter::prefix("p/"))
            .start(Start::Last(7))
            .topic_since("x", Position::new(crate::types::position::Epoch(7), 8))
            .without_history()
            .stream_end(StreamEnd::Abort)
            .bare()
            .ids(Ids::First)
            .data(&["d"])
            .counted_as("k")
            .expires_in(Duration::from_secs(60));
        let (read, read_times) = decode(&encode(&subscription, times)).unwrap();
        assert_eq!(read_times, times);
        let bound = |subscription: &Subscription| subscription.topics.bounds().map(|(_, at)| at).collect::<Vec<_>>();
        assert_eq!((bound(&read), read.history), (bound(&subscription), History::None));
        assert_eq!(read.topics.iter().map(Topic::scope).collect::<Vec<_>>(), [Some("acme/1"); 2]);
        assert_eq!(
            (&read.user, &read.topics[..], &read.may_join),
            (&subscription.user, &subscription.topics[..], &subscription.may_join)
        );
        assert_eq!((read.start, read.end, &read.data), (subscription.start, subscription.end, &subscription.data));
        assert_eq!(read.bare_ids(), Some(Ids::First));
        assert_eq!((&read.counted_as, read.scope()), (&subscription.counted_as, Some("acme/1")));
        let remaining = read.expiry.unwrap().remaining();
        assert!(remaining <= Duration::from_secs(60) && remaining > Duration::from_secs(58));
        for start in [Start::Live, Start::Oldest] {
            assert_eq!(decode(&encode(&Subscription::anonymous().start(start), times)).unwrap().0.start, start);
        }
        for bytes in [&b""[..], b"{}", b"{\"v\":2}"] {
            assert!(decode(bytes).is_none());
        }
    }

    /// The file has three lines for each ticket: what it is, its bytes and the decoded
    /// subscription. The first two are never changed and never removed. A new version adds its
    /// tickets.
    #[test]
    fn tickets_of_every_version_are_decoded() {
        let golden = include_str!("../../../tests/golden/tickets.txt");
        let lines: Vec<_> = golden.lines().filter(|line| !line.starts_with('#') && !line.is_empty()).collect();
        assert_eq!(lines.len() % 3, 0);
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let times = Times { made_at: at(1_795_866_000), over_at: at(1_795_866_030) };
        let text = |subscription: &Subscription| {
            let Subscription { history, ids, data, may_join, counted_as, .. } = subscription;
            let since: Vec<_> = subscription.topics.bounds().collect();
            let text = format!("{subscription:?} {history:?} {ids:?} {data:?} {may_join:?} {counted_as:?} {since:?}");
            // The `Debug` text of a time differs between operating systems.
            match subscription.expiry.and_then(Expiry::at) {
                Some(time) => text.replace(&format!("{time:?}"), &(unix(time) / 1_000).to_string()),
                None => text,
            }
        };
        for ticket in lines.chunks(3) {
            let (read, read_times) = decode(ticket[1].as_bytes()).unwrap();
            assert_eq!((text(&read).as_str(), read_times), (ticket[2], times), "{}", ticket[0]);
        }
        let mut all = Subscription::for_user("ada")
            .with_topics(["news", "documents/7"])
            .may_join(TopicFilter::any())
            .may_join(TopicFilter::exact("chat"))
            .may_join(TopicFilter::prefix("rooms/"))
            .start(Start::Last(20))
            .topic_since("news", Position::new(crate::types::position::Epoch(0x5eed), 42))
            .stream_end(StreamEnd::Abort)
            .data(&"Ada")
            .counted_as("tenant 7");
        all.expiry = Some(Expiry::At(at(1_795_869_600)));
        let anonymous = || Subscription::anonymous().topic("news");
        let mut missing = String::new();
        for (what, subscription) in [
            ("an anonymous connection", anonymous()),
            ("a user with every field", all.clone()),
            ("a user of a scope with every field", all.in_scope("acme")),
            ("the oldest events, and a clean end", anonymous().start(Start::Oldest).stream_end(StreamEnd::Clean)),
            ("a topic without its history", anonymous().without_history()),
            ("a bare stream", anonymous().bare()),
            ("a bare stream with its ids first", anonymous().bare().ids(Ids::First)),
            ("a bare stream without ids", anonymous().bare().ids(Ids::None)),
        ] {
            let bytes = String::from_utf8(encode(&subscription, times)).unwrap();
            if !lines.chunks(3).any(|ticket| ticket[0] == what && ticket[1] == bytes) {
                missing += &format!("\n{what}\n{bytes}\n{}\n", text(&subscription));
            }
        }
        assert!(missing.is_empty(), "add these tickets:\n{missing}");
    }

    proptest! {
        #[test]
        fn names_of_a_ticket_keep_their_scope(
            scope in prop::option::of("[^\\p{Cc}]{1,9}"),
            user in prop::option::of("[^\\p{Cc}]{1,9}"),
            topics in prop::collection::vec("[^\\p{Cc}]{1,9}", 0..4),
            key in prop::option::of("[^\\p{Cc}]{1,9}"),
        ) {
            let named = Subscription::anonymous().with_topics(&topics);
            let named = user.iter().fold(named, Subscription::with_user);
            let named = key.iter().fold(named, Subscription::counted_as);
            let subscription = scope.iter().fold(named, Subscription::in_scope);
            let times = Times { made_at: SystemTime::now(), over_at: SystemTime::now() };
            let (read, _) = decode(&encode(&subscription, times)).unwrap();
            prop_assert_eq!(read.scope(), scope.as_deref());
            prop_assert_eq!((&read.user, &read.topics[..]), (&subscription.user, &subscription.topics[..]));
            prop_assert_eq!(&read.counted_as, &subscription.counted_as);
        }
    }

    #[test]
    fn ticket_of_another_version_or_of_a_version_that_ignores_its_scope_is_invalid() {
        let times = Times { made_at: SystemTime::now(), over_at: SystemTime::now() };
        let encoded = |subscription| String::from_utf8(encode(&subscription, times)).unwrap();
        let scoped = encoded(Subscription::for_user("a").in_scope("acme"));
        let root = encoded(Subscription::for_user("a"));
        assert!(scoped.starts_with(r#"{"v":2,"#) && root.starts_with(r#"{"v":1,"#));
        assert!(decode(scoped.as_bytes()).is_some() && decode(root.as_bytes()).is_some());
        for (ticket, from, to) in [
            (&scoped, r#"{"v":2,"#, r#"{"v":1,"#),
            (&scoped, r#"{"v":2,"#, r#"{"v":3,"#),
            (&root, r#"{"v":1,"#, r#"{"v":2,"#),
            (&scoped, r#""scope":"acme""#, r#""scope":null"#),
            (&scoped, r#""scope":"acme""#, r#""scope":"""#),
        ] {
            let changed = ticket.replace(from, to);
            assert!(changed != *ticket && decode(changed.as_bytes()).is_none(), "{changed}");
        }
    }
}
