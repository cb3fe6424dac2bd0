//! Bad input gets a clear answer, and no event is lost: ids, queries, subscriptions, events,
//! settings and runtimes, in one process.

use std::mem::ManuallyDrop;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use axum::Router;
use futures::FutureExt;
use http::Request;
use tower_sse::{
    Cursor, Event, GapReason, Hub, HubBuilder, LagPolicy, Public, PublishError, Retention, Start, StreamRequest,
    SubscriberItem, Subscription, Target, TopicFilter,
};

use crate::kit::{Events, Server, Sse, get, parsed, resume, send, soon, subscribe, until};

async fn serve(builder: HubBuilder) -> (Hub, Server) {
    let hub = builder.build().unwrap();
    let app = Router::new().route_service("/events", hub.endpoint(Public::topics(TopicFilter::any())));
    let server = Server::start(&hub, app).await;
    (hub, server)
}

/// Serves this subscription to every request.
async fn serve_all(hub: &Hub, subscription: Subscription) -> Server {
    let access = move |_: StreamRequest| std::future::ready(Ok(subscription.clone()));
    Server::start(hub, Router::new().route_service("/events", hub.endpoint(access))).await
}

/// Returns a path with a query for these topics, percent-encoded.
fn path<'a>(topics: impl IntoIterator<Item = &'a str>) -> String {
    let mut query = form_urlencoded::Serializer::new(String::from("/events?"));
    topics.into_iter().for_each(|topic| {
        query.append_pair("topic", topic);
    });
    query.finish()
}

/// Publishes numbers to a topic, and returns the ids.
async fn publish(hub: &Hub, topic: &str, data: impl IntoIterator<Item = u32>) -> Vec<String> {
    let mut ids = Vec::new();
    for n in data {
        let published = hub.topic(topic).publish(Event::unnamed(n.to_string())).await.unwrap();
        ids.push(published.position.to_string());
    }
    ids
}

/// Returns the hub's position, moved by `by` numbers.
fn position(hub: &Hub, by: i64) -> String {
    let now = hub.position().to_string();
    let (epoch, sequence) = now.rsplit_once('.').unwrap();
    format!("{epoch}.{}", sequence.parse::<i64>().unwrap() + by)
}

/// Asserts that the stream begins with `hub.hello` and `hub.gap`, and returns the gap.
async fn one_gap(events: &mut Events, cursor: &str) -> Sse {
    let hello = events.next().await;
    assert_eq!((hello.event.as_str(), parsed(&hello)["cursor"].as_str()), ("hub.hello", Some(cursor)));
    let gap = events.next().await;
    assert_eq!((gap.event.as_str(), gap.id.as_str(), gap.retry), ("hub.gap", "", None));
    gap
}

// ---------------------------------------------------------------------------------------------------------------------
// Cursors

#[tokio::test]
async fn refused_cursor_gets_one_gap_with_its_reason_and_then_live() {
    let (hub, server) = serve(Hub::builder()).await;
    publish(&hub, "t", 0..3).await;
    let epoch = hub.position().to_string();
    let mut parts = epoch.split('.');
    let (_, epoch) = (parts.next(), parts.next().unwrap().to_owned());
    let other = if epoch == "1" { "2" } else { "1" };
    let cases = [
        ("garbage".into(), "invalid"),
        (position(&hub, -4), "invalid"),
        (format!("1.{epoch}.18446744073709551616"), "invalid"),
        (format!("1.{epoch}.99999999999999999999999999"), "invalid"),
        (format!("1.{epoch}.3 OR 1=1"), "invalid"),
        (format!("2.{epoch}.3"), "invalid"),
        (format!("1.{}.3", epoch.to_uppercase() + "A"), "invalid"),
        ("3".into(), "invalid"),
        ("{\"a\":1}".into(), "invalid"),
        ("x".repeat(8192), "invalid"),
        (format!("1.{other}.3"), "epoch"),
        (format!("1.{other}.18446744073709551615"), "epoch"),
        (position(&hub, 1000), "ahead"),
        (format!("1.{epoch}.18446744073709551615"), "ahead"),
    ];
    for (n, (cursor, reason)) in (100..).zip(&cases) {
        let mut events = resume(server.addr, "/events?topic=t&topic=u", cursor).await;
        let gap = one_gap(&mut events, "refused").await;
        assert_eq!(parsed(&gap), serde_json::json!({ "reason": reason, "topics": ["t", "u"] }), "{cursor}");
        let live = events.next().await;
        assert_eq!((live.event.as_str(), live.id), ("hub.live", hub.position().to_string()), "{cursor}");
        publish(&hub, "t", [n]).await;
        assert_eq!(events.next().await.data, n.to_string(), "{cursor}");
    }
    let stats = hub.stats();
    let count = |reason| cases.iter().filter(|case| case.1 == reason).count() as u64;
    assert_eq!(stats.gaps(GapReason::Invalid), count("invalid"));
    assert_eq!(stats.gaps(GapReason::Epoch), count("epoch"));
    assert_eq!(stats.gaps(GapReason::Ahead), count("ahead"));
    assert_eq!(stats.gaps(GapReason::Trimmed), 0);
}

#[tokio::test]
async fn id_in_the_query_is_validated_like_the_header() {
    let (_hub, server) = serve(Hub::builder()).await;
    for (id, reason) in [("1.0.0", "epoch"), ("%FF%FE", "invalid"), ("%0d%0aid:%209", "invalid"), ("-1", "invalid")] {
        let mut events = get(server.addr, &format!("/events?topic=t&last_event_id={id}")).await.events();
        let gap = one_gap(&mut events, "refused").await;
        assert_eq!(parsed(&gap)["reason"], reason, "{id}");
        assert_eq!(events.next().await.event, "hub.live", "{id}");
    }
}

#[tokio::test]
async fn cursor_that_is_not_utf_8_is_invalid() {
    let (_hub, server) = serve(Hub::builder()).await;
    let value = http::HeaderValue::from_bytes(b"1.\xff\xfe.3").unwrap();
    let request = Request::get("/events").header("last-event-id", value).body("").unwrap();
    let mut events = send(server.addr, request).await.events();
    assert_eq!(parsed(&one_gap(&mut events, "refused").await)["reason"], "invalid");
}

#[tokio::test]
async fn empty_cursor_counts_as_absent() {
    let (hub, server) = serve(Hub::builder()).await;
    publish(&hub, "t", 0..3).await;
    for path in ["/events?topic=t", "/events?topic=t&last_event_id=", "/events?topic=t&last_event_id"] {
        let mut events = resume(server.addr, path, "").await;
        assert_eq!(parsed(&events.next().await)["cursor"], "fresh", "{path}");
        assert_eq!(events.next().await.event, "hub.live", "{path}");
    }
}

#[tokio::test]
async fn refused_cursor_gets_the_current_values_before_live() {
    let (hub, server) = serve(Hub::builder().topic_retention(Retention::latest_per_key())).await;
    for (key, data) in [("a", "old"), ("b", "2"), ("a", "1")] {
        hub.topic("t").publish(Event::unnamed(data).key(key)).await.unwrap();
    }
    let mut events = resume(server.addr, "/events?topic=t", "1.0.0").await;
    one_gap(&mut events, "refused").await;
    let values = events.caught_up().await;
    let values: Vec<_> = values.iter().map(|event| (event.data.as_str(), event.id.as_str())).collect();
    assert_eq!(
        values,
        [("2", ""), ("1", "")],
        "current values have no ids, because they are not in the order of the log"
    );
}

#[tokio::test]
async fn cursor_of_a_dropped_event_gets_one_gap_and_then_the_retained_events() {
    let (hub, server) = serve(Hub::builder().topic_retention(Retention::replay().count(3))).await;
    let ids = publish(&hub, "t", 0..10).await;
    publish(&hub, "quiet", [100]).await;
    let mut events = resume(server.addr, "/events?topic=t&topic=quiet", &ids[2]).await;
    let gap = one_gap(&mut events, "resuming").await;
    assert_eq!(
        parsed(&gap),
        serde_json::json!({ "reason": "trimmed", "topics": ["t"] }),
        "only the topic that lost events"
    );
    let kept: Vec<_> = events.caught_up().await.into_iter().map(|event| (event.event, event.data)).collect();
    assert_eq!(kept, ["7", "8", "9", "100"].map(|data| (String::from("message"), data.into())));
    publish(&hub, "t", [10]).await;
    assert_eq!(events.next().await.data, "10");
    assert_eq!(hub.stats().gaps(GapReason::Trimmed), 1);
}

#[tokio::test]
async fn cursor_just_before_the_oldest_retained_event_gets_no_gap() {
    let (hub, server) = serve(Hub::builder().topic_retention(Retention::replay().count(3))).await;
    let ids = publish(&hub, "t", 0..10).await;
    let mut events = resume(server.addr, "/events?topic=t", &ids[6]).await;
    let read: Vec<_> = events.caught_up().await.into_iter().skip(1).map(|event| event.data).collect();
    assert_eq!(read, ["7", "8", "9"]);
    assert_eq!(hub.stats().gaps(GapReason::Trimmed), 0);
}

#[tokio::test]
async fn resuming_client_gets_a_gap_when_slow_readers_are_disconnected() {
    // `Disconnect` is for streams that fall behind. A client that reconnects with an old id would
    // otherwise be disconnected on every attempt.
    let retention = Retention::replay().count(1).on_lag(LagPolicy::Disconnect);
    let (hub, server) = serve(Hub::builder().topic_retention(retention)).await;
    let ids = publish(&hub, "t", 0..3).await;
    let mut events = resume(server.addr, "/events?topic=t", &ids[0]).await;
    assert_eq!(parsed(&one_gap(&mut events, "resuming").await)["reason"], "trimmed");
    assert_eq!(events.next().await.data, "2");
    assert_eq!(events.next().await.event, "hub.live");
}

#[tokio::test]
async fn forged_cursor_yields_only_permitted_events() {
    let hub = Hub::builder().build().unwrap();
    let app = Router::new().route_service("/events", hub.endpoint(Public::topics(TopicFilter::prefix("mine/"))));
    let server = Server::start(&hub, app).await;
    let begin = hub.position().to_string();
    let mut foreign = Vec::new();
    for n in 0..20 {
        publish(&hub, "mine/a", [n]).await;
        foreign.extend(publish(&hub, "theirs", [1000 + n]).await);
        hub.user("bob").publish(Event::unnamed("2000")).await.unwrap();
    }
    // The start of the log, and ids of records that the client is not permitted to read.
    for (cursor, from) in [(begin, 0), (foreign[4].clone(), 5), (foreign[19].clone(), 20)] {
        let mut events = resume(server.addr, "/events?topic=mine/a", &cursor).await;
        let all = events.caught_up().await;
        assert_eq!(parsed(&all[0])["cursor"], "resuming");
        let read: Vec<_> = all[1..].iter().map(|event| event.data.clone()).collect();
        assert_eq!(read, (from..20).map(|n: u32| n.to_string()).collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn input_of_a_client_is_never_echoed() {
    let (_hub, server) = serve(Hub::builder()).await;
    let marker = "EcHoEd";
    let mut events = resume(server.addr, &format!("/events?topic=t&x={marker}"), marker).await;
    for event in events.caught_up().await {
        assert!(!format!("{event:?}").contains(marker), "{event:?}");
    }
    let reply = get(server.addr, &format!("/events?topic={marker}{}", "x".repeat(300))).await;
    assert_eq!(reply.status, 403);
    assert!(!reply.text().await.contains(marker));
}

#[tokio::test]
async fn malformed_query_requests_no_topic() {
    let (_hub, server) = serve(Hub::builder()).await;
    for query in ["&&&", "=", "topic", "%", "%zz=%", "a=b=c", "&=&topic&"] {
        let reply = get(server.addr, &format!("/events?{query}")).await;
        if query.contains("topic") {
            assert_eq!(reply.status, 403, "{query}: an empty topic is not permitted");
        } else {
            assert_eq!(parsed(&reply.events().next().await)["topics"], serde_json::json!([]), "{query}");
        }
    }
}

#[tokio::test]
async fn request_for_thousands_of_topics_is_a_bad_request() {
    let (_hub, server) = serve(Hub::builder()).await;
    let topics: Vec<String> = (0..6000).map(|n| format!("{n:x}")).collect();
    let reply = get(server.addr, &path(topics.iter().map(String::as_str))).await;
    assert_eq!(reply.status, 400);
}

// ---------------------------------------------------------------------------------------------------------------------
// Invalid subscriptions of the application

async fn status_of(builder: HubBuilder, subscription: Subscription) -> (Hub, u16) {
    let hub = builder.build().unwrap();
    let server = serve_all(&hub, subscription).await;
    let status = get(server.addr, "/events").await.status.as_u16();
    (hub, status)
}

#[tokio::test]
async fn invalid_subscription_is_a_bad_request() {
    let long = "x".repeat(256);
    for bad in [
        Subscription::for_user(""),
        Subscription::for_user("a\nb"),
        Subscription::for_user(&long),
        Subscription::anonymous().topic(""),
        Subscription::anonymous().topic("a\u{0}"),
        Subscription::anonymous().with_topics(["fine", &long]),
        Subscription::anonymous().data(&"x".repeat(Subscription::MAX_DATA_BYTES)),
        Subscription::anonymous().data(&std::collections::HashMap::from([((1, 2), 3)])),
        Subscription::anonymous().with_topics(0..129),
    ] {
        let (hub, status) = status_of(Hub::builder(), bad.clone()).await;
        assert_eq!(status, 400, "{bad:?}");
        assert_eq!(hub.stats().connected, 0, "{bad:?}");
        assert!(hub.subscribe(bad, Cursor::Absent).is_err());
    }
    assert_eq!(status_of(Hub::builder(), Subscription::anonymous().with_topics(0..128)).await.1, 200);
    assert_eq!(status_of(Hub::builder(), Subscription::anonymous().with_topics([7; 500])).await.1, 200, "one topic");
    let (hub, _) = status_of(Hub::builder().max_topics(1), Subscription::anonymous()).await;
    let error = hub.subscribe(Subscription::anonymous().with_topics([1, 2]), Cursor::Absent).unwrap_err();
    assert!(error.is_invalid());
}

#[tokio::test]
async fn stream_ends_at_once_when_its_credentials_have_expired() {
    let hub = Hub::builder().build().unwrap();
    let expired = SystemTime::now() - Duration::from_secs(3600);
    let server = serve_all(&hub, Subscription::for_user("ada").expires_at(expired)).await;
    let events = get(server.addr, "/events").await.events().rest().await;
    let bye = events.last().unwrap();
    assert_eq!((bye.event.as_str(), parsed(bye)["reason"].as_str()), ("hub.bye", Some("expired")));
    assert_eq!(hub.stats().connections, 0);
}

#[tokio::test(start_paused = true)]
async fn expiry_in_the_far_future_never_ends_the_stream() {
    for far in [
        Duration::MAX,
        Duration::from_millis(u64::MAX),
        Duration::from_millis(u64::MAX - 1),
        Duration::from_secs(u64::MAX / 1000),
        Duration::from_secs(u64::MAX / 4000),
    ] {
        let hub = Hub::builder().build().unwrap();
        // The sum of the hub's age and the expiry overflows only when the hub has some age.
        tokio::time::advance(Duration::from_secs(3600)).await;
        let subscription = Subscription::anonymous().topic("t").expires_in(far);
        let mut stream = ManuallyDrop::new(hub.subscribe(subscription, Cursor::Absent).unwrap());
        assert!(matches!(stream.next().await, Some(SubscriberItem::Live(_))));
        assert!(stream.next().now_or_never().is_none(), "{far:?}: the stream stays open");
        publish(&hub, "t", [1]).await;
        let Some(SubscriberItem::Event(event)) = stream.next().await else { panic!("{far:?}") };
        assert_eq!(event.data, "1", "{far:?}");
    }
}

#[tokio::test]
async fn start_beyond_the_history_replays_all_of_it() {
    for start in [Start::Last(usize::MAX), Start::Last(3), Start::Oldest] {
        let hub = Hub::builder().build().unwrap();
        publish(&hub, "t", 0..3).await;
        let server = serve_all(&hub, Subscription::anonymous().topic("t").start(start)).await;
        let mut events = get(server.addr, "/events").await.events();
        let read: Vec<_> = events.caught_up().await.into_iter().skip(1).map(|event| event.data).collect();
        assert_eq!(read, ["0", "1", "2"], "{start:?}");
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Publishing

#[tokio::test]
async fn rejected_event_uses_no_position_and_reaches_no_stream() {
    let (hub, server) = serve(Hub::builder().max_payload(100)).await;
    let mut events = subscribe(server.addr, "/events?topic=t").await;
    let before = hub.position();
    let long = "x".repeat(256);
    let id = |n: u8| format!("{n:032x}");
    let many = (0..129).map(|n| hub.topic(n)).reduce(Target::and).unwrap();
    let many_excluded = (0..129).fold(hub.topic("t"), |target, n| target.except(id(n)));
    let other = Hub::builder().build().unwrap();
    let failures: Vec<(&str, Result<_, PublishError>)> = vec![
        ("event name", hub.topic("t").publish(Event::new("a\nb", "x")).await),
        ("event name", hub.topic("t").publish(Event::new("a\rdata: injected", "x")).await),
        ("event name", hub.topic("t").publish(Event::new("\u{0}", "x")).await),
        ("event name", hub.topic("t").publish(Event::new("a\u{202e}b", "x")).await),
        ("event name", hub.topic("t").publish(Event::new("x".repeat(129), "x")).await),
        ("event name", hub.topic("t").publish(Event::new("hub.live", "x")).await),
        ("event name", hub.topic("t").publish(Event::new("open", "x")).await),
        ("event name", hub.topic("t").publish(Event::new("error", "x")).await),
        ("key", hub.topic("t").publish(Event::new("n", "x").key("a\nb")).await),
        ("key", hub.topic("t").publish(Event::removal("")).await),
        ("topic", hub.topic("").publish(Event::unnamed("x")).await),
        ("topic", hub.topic("a\nb").publish(Event::unnamed("x")).await),
        ("topic", hub.topic(&long).publish(Event::unnamed("x")).await),
        ("user", hub.user("").publish(Event::unnamed("x")).await),
        ("user", hub.user("a\u{7f}").publish(Event::unnamed("x")).await),
        ("user", hub.user(&long).publish(Event::unnamed("x")).await),
        ("connection", hub.connection("nonsense").publish(Event::unnamed("x")).await),
        ("connection", hub.topic("t").except("nonsense").publish(Event::unnamed("x")).await),
        ("topic", hub.topic("t").and(hub.topic("")).publish(Event::unnamed("x")).await),
        ("topic", hub.topic("").and(hub.topic("t")).publish(Event::unnamed("x")).await),
        ("targets", many.publish(Event::unnamed("x")).await),
        ("targets", many_excluded.publish(Event::unnamed("x")).await),
        ("another hub", hub.topic("t").and(other.topic("t")).publish(Event::unnamed("x")).await),
        ("payload", hub.topic("t").publish(Event::unnamed("x".repeat(100))).await),
    ];
    for (field, failure) in failures {
        let error = failure.expect_err(field);
        assert!(error.is_invalid() && !error.is_closed() && !error.is_unknown(), "{error}");
        assert!(error.to_string().contains(field), "{field}: {error}");
        assert!(!error.to_string().contains("injected"), "the error repeats a value: {error}");
    }
    assert_eq!(hub.position(), before);
    assert_eq!(hub.stats().published, 0);
    publish(&hub, "t", [1]).await;
    assert_eq!(events.next().await.data, "1");
    assert_eq!(hub.position().to_string(), position_after(&before.to_string()));
}

fn position_after(position: &str) -> String {
    let (epoch, sequence) = position.rsplit_once('.').unwrap();
    format!("{epoch}.{}", sequence.parse::<u64>().unwrap() + 1)
}

#[tokio::test]
async fn invalid_event_does_not_stop_the_other_events_of_its_batch() {
    let (hub, server) = serve(Hub::builder()).await;
    let mut events = subscribe(server.addr, "/events?topic=t").await;
    let outcomes = hub
        .publish_many([
            (hub.topic("t"), Event::unnamed("first")),
            (hub.topic("t"), Event::new("hub.mine", "never")),
            (hub.topic(""), Event::unnamed("never")),
            (hub.topic("t"), Event::unnamed("last")),
        ])
        .await;
    let fine: Vec<_> = outcomes.iter().map(Result::is_ok).collect();
    assert_eq!(fine, [true, false, false, true]);
    assert_eq!([events.next().await.data, events.next().await.data], ["first", "last"]);
    assert_eq!(hub.publish_many([]).await.len(), 0);
}

#[tokio::test]
async fn payload_at_the_limit_arrives_and_one_more_byte_is_rejected() {
    // Framing adds `data: ` and a line break, 7 bytes, to each line.
    for (limit, largest) in [(64, "x".repeat(64 - 7)), (64, format!("{}\n{}", "x".repeat(20), "y".repeat(64 - 34)))] {
        let (hub, server) = serve(Hub::builder().max_payload(limit)).await;
        let mut events = subscribe(server.addr, "/events?topic=t").await;
        let error = hub.topic("t").publish(Event::unnamed(format!("{largest}z"))).await.unwrap_err();
        assert!(error.is_too_large() && error.is_invalid());
        hub.topic("t").publish(Event::unnamed(largest.clone())).await.unwrap();
        assert_eq!(events.next().await.data, largest);
    }
}

#[tokio::test]
async fn largest_payload_by_default_arrives_whole() {
    let (hub, server) = serve(Hub::builder()).await;
    let mut events = subscribe(server.addr, "/events?topic=t").await;
    let largest = "x".repeat((512 << 10) - 7);
    let error = hub.topic("t").publish(Event::unnamed(largest.clone() + "x")).await.unwrap_err();
    assert!(error.is_too_large());
    for _ in 0..3 {
        hub.topic("t").publish(Event::unnamed(largest.clone())).await.unwrap();
        assert_eq!(events.next().await.data.len(), largest.len());
    }
}

#[tokio::test]
async fn data_is_one_message_whatever_it_contains() {
    let (hub, server) = serve(Hub::builder()).await;
    let mut events = subscribe(server.addr, "/events?topic=t").await;
    for (data, read) in [
        ("", ""),
        ("\n", "\n"),
        ("\r\n", "\n"),
        ("\r\r\n\n", "\n\n\n"),
        ("a\rb\nc\r\nd", "a\nb\nc\nd"),
        ("id: 9\nevent: x\n\ndata: y", "id: 9\nevent: x\n\ndata: y"),
        (": comment", ": comment"),
        ("\u{feff}bom", "\u{feff}bom"),
        (" leading space", " leading space"),
        ("\0", "\0"),
        ("\u{2028}\u{85}\u{b}", "\u{2028}\u{85}\u{b}"),
    ] {
        hub.topic("t").publish(Event::new("n", data)).await.unwrap();
        let event = events.next().await;
        assert_eq!((event.event.as_str(), event.data.as_str()), ("n", read), "{data:?}");
    }
    let published = hub.topic("t").publish(Event::new("", "unnamed")).await.unwrap();
    let event = events.next().await;
    assert_eq!((event.event.as_str(), event.id), ("message", published.position.to_string()));
}

#[tokio::test]
async fn raw_json_with_line_breaks_is_split_like_text() {
    let (hub, server) = serve(Hub::builder()).await;
    let mut events = subscribe(server.addr, "/events?topic=t").await;
    let pretty = "{\r\n  \"a\": [1,\n 2]\r}";
    hub.topic("t").publish(Event::from_utf8("n", pretty.as_bytes()).unwrap()).await.unwrap();
    let event = events.next().await;
    assert_eq!(event.data, "{\n  \"a\": [1,\n 2]\n}");
    assert_eq!(parsed(&event), serde_json::json!({ "a": [1, 2] }));
}

#[tokio::test]
async fn names_are_literal_from_end_to_end() {
    let (hub, server) = serve(Hub::builder()).await;
    let names = [
        "*",
        ">",
        "a.*",
        "a.>",
        "a",
        "a.b",
        "a/b",
        "a/*",
        "#",
        "+",
        "a/+",
        "a/#",
        "{}",
        "{a}",
        "?",
        "[a]",
        "a:b",
        "hub:{a}",
        " ",
        "a b",
        "a%2Fb",
        "A",
        "%",
        "&",
        "=",
        "\"",
        "\\",
        "'",
        "<b>",
        "топик",
        "话题",
        "🦀",
        "a\u{301}",
        "á",
        "\u{2028}",
        "..",
        "-",
        "_",
        "hub.live",
        "everyone",
    ];
    let mut streams = Vec::new();
    for name in names {
        let mut events = get(server.addr, &path([name])).await.events();
        assert_eq!(parsed(&events.next().await)["topics"], serde_json::json!([name]));
        events.caught_up().await;
        streams.push(events);
    }
    for name in names {
        assert_eq!(hub.topic(name).publish(Event::unnamed(name)).await.unwrap().connections, 1, "{name}");
        // A user of the same name has no connection.
        assert_eq!(hub.user(name).publish(Event::unnamed("not for topics")).await.unwrap().connections, 0, "{name}");
    }
    hub.everyone().publish(Event::unnamed("the end")).await.unwrap();
    for (name, events) in names.iter().zip(&mut streams) {
        assert_eq!([events.next().await.data.as_str(), &events.next().await.data], [*name, "the end"]);
    }
}

#[tokio::test]
async fn topic_filter_with_special_characters_is_literal() {
    let hub = Hub::builder().build().unwrap();
    let access = Public::topics(TopicFilter::prefix("a.*/")).or(TopicFilter::exact(".*"));
    let server = Server::start(&hub, Router::new().route_service("/events", hub.endpoint(access))).await;
    for (topic, status) in
        [("a.*/x", 200), (".*", 200), ("a.b/x", 403), ("axx/x", 403), ("anything", 403), (".*x", 403)]
    {
        assert_eq!(get(server.addr, &path([topic])).await.status, status, "{topic}");
    }
}

#[tokio::test]
async fn user_with_the_name_of_a_topic_does_not_receive_its_events() {
    let hub = Hub::builder().build().unwrap();
    let access = |request: StreamRequest| async move {
        Ok(match request.query() {
            Some("user") => Subscription::for_user("same"),
            _ => Subscription::anonymous().topic("same"),
        })
    };
    let server = Server::start(&hub, Router::new().route_service("/events", hub.endpoint(access))).await;
    let (begin, mut user) = (hub.position().to_string(), subscribe(server.addr, "/events?user").await);
    let mut topic = subscribe(server.addr, "/events?topic").await;
    assert_eq!(hub.user("same").publish(Event::unnamed("for the user")).await.unwrap().connections, 1);
    assert_eq!(hub.topic("same").publish(Event::unnamed("for the topic")).await.unwrap().connections, 1);
    hub.everyone().publish(Event::unnamed("for all")).await.unwrap();
    assert_eq!([user.next().await.data, user.next().await.data], ["for the user", "for all"]);
    assert_eq!([topic.next().await.data, topic.next().await.data], ["for the topic", "for all"]);
    // A replay keeps users and topics apart too.
    let mut user = resume(server.addr, "/events?user", &begin).await;
    let read: Vec<_> = user.caught_up().await.into_iter().skip(1).map(|event| event.data).collect();
    assert_eq!(read, ["for the user", "for all"]);
}

#[tokio::test]
async fn every_retry_on_the_wire_is_within_the_range() {
    let seconds = Duration::from_secs;
    let (hub, server) = serve(Hub::builder().retry(seconds(3))).await;
    let mut events = get(server.addr, "/events?topic=t").await.events();
    assert_eq!(events.next().await.retry, Some(seconds(3)));
    events.caught_up().await;
    for (requested, sent) in [
        (Duration::ZERO, Duration::from_millis(100)),
        (Duration::from_millis(2500), Duration::from_millis(2500)),
        (Duration::MAX, seconds(3_600)),
    ] {
        hub.topic("t").publish(Event::unnamed("").retry(requested)).await.unwrap();
        assert_eq!(events.next().await.retry, Some(sent), "{requested:?}");
    }
    // A drain with an absurd window stays within the range too.
    let draining = hub.clone();
    let draining = tokio::spawn(async move { draining.drain(Duration::MAX).await });
    let bye = events.next().await;
    assert_eq!(bye.event, "hub.bye");
    assert!((Duration::from_millis(100)..=seconds(3_600)).contains(&bye.retry.unwrap()), "{:?}", bye.retry);
    soon(draining).await.unwrap();
    let refused = get(server.addr, "/events").await.events().rest().await;
    assert!(
        (Duration::from_millis(100)..=seconds(3_600)).contains(&refused[0].retry.unwrap()),
        "{:?}",
        refused[0].retry
    );
}

#[tokio::test]
async fn retry_of_a_refusal_is_within_the_range() {
    for (requested, from, to) in [(Duration::ZERO, 100, 100), (Duration::MAX, 3_600_000, 3_600_000)] {
        let hub = Hub::builder().build().unwrap();
        let access = move |_: StreamRequest| {
            let refusal = tower_sse::Refusal::retry_later(tower_sse::RefusalReason::Busy).retry(requested);
            std::future::ready(Err::<Subscription, _>(refusal))
        };
        let server = Server::start(&hub, Router::new().route_service("/events", hub.endpoint(access))).await;
        let refused = get(server.addr, "/events").await.events().rest().await.remove(0);
        let retry = refused.retry.unwrap().as_millis();
        assert!((from..=to).contains(&retry), "{requested:?}: {retry}");
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Publishing at odd moments

#[tokio::test]
async fn publishing_from_inside_the_access_hook_does_not_deadlock() {
    let hub = Hub::builder().build().unwrap();
    let in_hook = hub.clone();
    let access = move |request: StreamRequest| {
        let hub = in_hook.clone();
        async move {
            hub.topic("visits").publish_now(Event::unnamed("now")).unwrap();
            hub.topic("visits").publish(Event::unnamed(request.uri().path().to_owned())).await.unwrap();
            assert!(hub.stats().published > 0 && hub.is_ready());
            Ok(Subscription::anonymous().topic("visits"))
        }
    };
    let server = Server::start(&hub, Router::new().route_service("/events", hub.endpoint(access))).await;
    let mut first = subscribe(server.addr, "/events").await;
    let _second = subscribe(server.addr, "/events").await;
    assert_eq!([first.next().await.data, first.next().await.data], ["now", "/events"]);
    // Many requests at once, whose hooks all publish.
    let many = (0..50).map(|_| subscribe(server.addr, "/events"));
    futures::future::join_all(many).await;
    assert_eq!(hub.stats().published, 104);
}

#[tokio::test]
async fn publishing_to_a_stream_while_reading_it_does_not_deadlock() {
    let hub = Hub::builder().build().unwrap();
    let mut stream = hub.subscribe(Subscription::anonymous().topic("t"), Cursor::Absent).unwrap();
    let id = stream.connection();
    hub.topic("t").publish_now(Event::unnamed("0")).unwrap();
    let mut read = Vec::new();
    while read.len() < 5 {
        if let Some(SubscriberItem::Event(event)) = soon(stream.next()).await {
            read.push(event.data.clone());
            let next = event.data.parse::<u32>().unwrap() + 1;
            hub.topic("t").and(hub.connection(id)).publish(Event::unnamed(next.to_string())).await.unwrap();
        }
    }
    assert_eq!(read, ["0", "1", "2", "3", "4"]);
}

#[tokio::test]
async fn every_publish_after_a_drain_returns_closed() {
    let (hub, server) = serve(Hub::builder()).await;
    publish(&hub, "t", [1]).await;
    let position = hub.position();
    soon(hub.drain(Duration::ZERO)).await;
    let error = hub.topic("t").publish(Event::unnamed("x")).await.unwrap_err();
    assert!(error.is_closed() && !error.is_invalid() && !error.is_unknown(), "{error}");
    assert!(hub.topic("t").publish_now(Event::unnamed("x")).unwrap_err().is_closed());
    let outcomes =
        hub.publish_many([(hub.topic("t"), Event::unnamed("x")), (hub.topic(""), Event::unnamed("x"))]).await;
    assert!(outcomes[0].as_ref().unwrap_err().is_closed());
    assert!(outcomes[1].is_err());
    assert_eq!(hub.position(), position);
    assert!(hub.subscribe(Subscription::anonymous(), Cursor::Absent).unwrap_err().is_closed());
    let refused = get(server.addr, "/events").await.events().rest().await;
    assert_eq!(parsed(&refused[0])["reason"], "draining");
    // A second drain has no effect.
    assert_eq!(soon(hub.drain(Duration::ZERO)).await, soon(hub.drain(Duration::ZERO)).await);
}

#[tokio::test]
async fn event_published_before_a_drain_arrives_before_the_bye() {
    let (hub, server) = serve(Hub::builder()).await;
    let events = subscribe(server.addr, "/events?topic=t").await;
    hub.everyone().publish(Event::new("maintenance", "back in a minute")).await.unwrap();
    let drained = soon(hub.drain(Duration::ZERO)).await;
    let names: Vec<_> = events.rest().await.into_iter().map(|event| event.event).collect();
    assert_eq!(names, ["maintenance", "hub.bye"]);
    assert_eq!((drained.ended, drained.cut), (1, 0));
}

#[tokio::test]
async fn publish_that_is_never_polled_publishes_nothing() {
    let (hub, server) = serve(Hub::builder()).await;
    let mut events = subscribe(server.addr, "/events?topic=t").await;
    drop(hub.topic("t").publish(Event::unnamed("never")));
    drop(hub.publish_many([(hub.topic("t"), Event::unnamed("never"))]));
    assert_eq!(hub.stats().published, 0);
    publish(&hub, "t", [1]).await;
    assert_eq!(events.next().await.data, "1");
}

#[tokio::test]
async fn publish_is_complete_after_its_first_poll() {
    let (hub, server) = serve(Hub::builder()).await;
    let mut events = subscribe(server.addr, "/events?topic=t").await;
    {
        let publish = hub.topic("t").publish(Event::unnamed("done"));
        assert!(publish.now_or_never().is_some(), "the publish waits");
    }
    assert_eq!(events.next().await.data, "done");
}

#[tokio::test]
async fn response_that_is_dropped_at_any_moment_leaves_no_connection() {
    use tower::ServiceExt;
    let hub = Hub::builder().build().unwrap();
    let endpoint = hub.endpoint(|_: StreamRequest| async {
        tokio::task::yield_now().await;
        Ok(Subscription::anonymous().topic("t"))
    });
    let request = || Request::get("/").body(()).unwrap();
    // The response is dropped before its first poll, after one poll, with an unpolled body, and
    // with a body that was polled once.
    drop(endpoint.clone().oneshot(request()));
    assert!(endpoint.clone().oneshot(request()).now_or_never().is_none());
    assert_eq!(hub.stats().connected, 0);
    let response = soon(endpoint.clone().oneshot(request())).await.unwrap();
    assert_eq!(hub.stats().connections, 1);
    drop(response);
    assert_eq!(hub.stats().connections, 0);
    let mut body = Box::pin(soon(endpoint.oneshot(request())).await.unwrap().into_body());
    assert!(http_body_util::BodyExt::frame(&mut body).now_or_never().is_some());
    drop(body);
    let stats = hub.stats();
    assert_eq!((stats.connections, stats.connected), (0, 2));
    assert_eq!(hub.topic("t").publish(Event::unnamed("x")).await.unwrap().connections, 0);
}

// ---------------------------------------------------------------------------------------------------------------------
// Runtimes

#[test]
fn subscribe_before_the_broker_was_read_is_unavailable() {
    let hub = Hub::builder().backplane(tower_sse::backplane::Memory::new()).build().unwrap();
    // Outside of a runtime, so that the hub has not read the shared log.
    let error = hub.subscribe(Subscription::anonymous(), None).unwrap_err();
    assert!(error.is_unavailable());
    assert!(!error.to_string().contains("drained"), "{error}");
}

#[test]
fn hub_that_was_built_outside_a_runtime_works_inside_one() {
    let hub = Hub::builder().build().unwrap();
    let before = hub.topic("t").publish_now(Event::unnamed("before the runtime")).unwrap();
    let begin = position_before(&before.position.to_string());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let serving = hub.clone();
    runtime.block_on(async move {
        let app = Router::new().layer(serving.layer("/events", Public::topics(TopicFilter::any())));
        let server = Server::start(&serving, app).await;
        let mut events = resume(server.addr, "/events?topic=t", &begin).await;
        let read = events.caught_up().await;
        assert_eq!(read[1].data, "before the runtime");
        publish(&serving, "t", [1]).await;
        assert_eq!(events.next().await.data, "1");
    });
    drop(runtime);
    // The runtime's streams ended with it, and the hub still works.
    assert_eq!(hub.stats().connections, 0);
    hub.topic("t").publish_now(Event::unnamed("after")).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async move {
        let mut stream =
            hub.subscribe(Subscription::anonymous().topic("t").start(Start::Last(1)), Cursor::Absent).unwrap();
        let Some(SubscriberItem::Event(event)) = soon(stream.next()).await else {
            panic!("the newest event is not retained")
        };
        assert_eq!(event.data, "after");
    });
}

fn position_before(position: &str) -> String {
    let (epoch, sequence) = position.rsplit_once('.').unwrap();
    format!("{epoch}.{}", sequence.parse::<u64>().unwrap() - 1)
}

/// More than the 32 listeners that a publisher wakes itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn publish_from_a_thread_without_a_runtime_reaches_every_listener() {
    const LISTENERS: usize = 100;
    let (hub, server) = serve(Hub::builder()).await;
    let mut streams = Vec::new();
    for _ in 0..LISTENERS {
        streams.push(subscribe(server.addr, "/events?topic=t").await);
    }
    let publisher = hub.clone();
    let thread = std::thread::spawn(move || {
        assert!(tokio::runtime::Handle::try_current().is_err());
        let published = publisher.topic("t").publish_now(Event::unnamed("from a thread")).unwrap();
        // `publish` works on an executor other than tokio's, too.
        futures::executor::block_on(publisher.topic("t").publish(Event::unnamed("and again"))).unwrap();
        published.connections
    });
    for events in &mut streams {
        assert_eq!([events.next().await.data, events.next().await.data], ["from a thread", "and again"]);
    }
    assert_eq!(thread.join().unwrap(), LISTENERS);
}

#[tokio::test]
async fn every_listener_is_woken_when_the_publishers_runtime_is_dropped() {
    let (hub, server) = serve(Hub::builder()).await;
    let mut streams = Vec::new();
    for _ in 0..100 {
        streams.push(subscribe(server.addr, "/events?topic=t").await);
    }
    let publisher = hub.clone();
    let thread = std::thread::spawn(move || {
        // The runtime is dropped before it polls another task. The publisher queues most of the
        // wake-ups, and the queue must not depend on this runtime.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async { publisher.topic("t").publish_now(Event::unnamed("before the end")).unwrap() });
    });
    for events in &mut streams {
        assert_eq!(events.next().await.data, "before the end");
    }
    thread.join().unwrap();
    publish(&hub, "t", [1]).await;
    for events in &mut streams {
        assert_eq!(events.next().await.data, "1");
    }
}

#[tokio::test]
async fn application_serves_streams_after_its_hub_handle_is_dropped() {
    let hub = Hub::builder().build().unwrap();
    let app = Router::new().layer(hub.layer("/events", Public::topics(TopicFilter::any())));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    drop(hub);
    let serving = tokio::spawn(async move { axum::serve(listener, app).await });
    let events = subscribe(addr, "/events?topic=t").await;
    assert_eq!(subscribe(addr, "/events?topic=t").await.last_id, events.last_id);
    serving.abort();
}

#[tokio::test]
async fn access_hook_is_dropped_with_its_server() {
    struct Canary(Arc<AtomicUsize>);
    impl Drop for Canary {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }
    let dropped = Arc::new(AtomicUsize::new(0));
    let canary = Canary(dropped.clone());
    let hub = Hub::builder().build().unwrap();
    let access = move |_: StreamRequest| {
        let _ = &canary;
        std::future::ready(Ok(Subscription::anonymous().topic("t")))
    };
    let server = Server::start(&hub, Router::new().layer(hub.layer("/events", access))).await;
    let events = subscribe(server.addr, "/events").await;
    publish(&hub, "t", 0..10).await;
    drop(events);
    until(|| hub.stats().connections == 0).await;
    assert_eq!(dropped.load(Ordering::SeqCst), 0);
    server.stop().await;
    until(|| dropped.load(Ordering::SeqCst) == 1).await;
}

// ---------------------------------------------------------------------------------------------------------------------
// Configuration

#[test]
fn invalid_setting_is_rejected_by_its_name() {
    let error = Hub::builder().heartbeat(Duration::ZERO).build().unwrap_err();
    assert_eq!(error.setting(), "heartbeat");
    assert!(error.to_string().starts_with("heartbeat: "), "{error}");
}

#[tokio::test(start_paused = true)]
async fn absurdly_large_setting_is_rejected_or_works() {
    let far = [Duration::MAX, Duration::from_millis(u64::MAX), Duration::from_secs(u64::MAX / 1000)];
    for far in far {
        for builder in [
            Hub::builder().topic_retention(Retention::replay().age(far)),
            Hub::builder().topic_retention(Retention::latest_per_key().age(far)),
            Hub::builder().max_topics(usize::MAX),
            Hub::builder().retention_budget(usize::MAX).keyed_budget(usize::MAX),
            Hub::builder().topic_retention(Retention::replay().count(usize::MAX).bytes(usize::MAX)),
        ] {
            let Ok(hub) = builder.build() else { continue };
            tokio::time::advance(Duration::from_secs(1)).await;
            // An idle channel, an old record and a subscription that expires, while time passes.
            let subscription = Subscription::anonymous().topic("t").expires_in(Duration::from_secs(86_400));
            // Not dropped, because a panic in the destructor during a panic here would abort.
            let mut stream = ManuallyDrop::new(hub.subscribe(subscription, Cursor::Absent).unwrap());
            drop(hub.subscribe(Subscription::for_user("idle"), Cursor::Absent).unwrap());
            // Three hours, in which the subscription of a day does not expire.
            for round in 0..3 {
                hub.topic("t").publish(Event::unnamed("x").key("k").retry(far)).await.unwrap();
                while !matches!(soon(stream.next()).await, Some(SubscriberItem::Event(_))) {}
                tokio::time::advance(Duration::from_secs(3600)).await;
                assert_eq!(hub.stats().connections, 1, "{round}");
            }
        }
    }
}

#[tokio::test]
async fn topic_filter_that_matches_nothing_permits_only_streams_without_topics() {
    let hub = Hub::builder().build().unwrap();
    let access = Public::topics(TopicFilter::exact(""));
    let server = Server::start(&hub, Router::new().route_service("/events", hub.endpoint(access))).await;
    let refused = get(server.addr, "/events?topic=a").await;
    assert_eq!(refused.status, 403);
    get(server.addr, "/events").await.events().caught_up().await;
}
