//! Retention, current values, backfill and lag, read by subscribers in the process.

use std::task::{Context, Poll};
use std::time::Duration;

use futures::StreamExt;
use tower_sse::{
    Cursor, EndReason, Event, GapReason, Hub, LagPolicy, Retention, Start, Subscriber, SubscriberItem, Subscription,
    TopicFilter,
};

/// Reads every item that is ready, as short texts.
fn read(stream: &mut Subscriber) -> Vec<String> {
    let mut cx = Context::from_waker(futures::task::noop_waker_ref());
    let mut read = Vec::new();
    while let Poll::Ready(Some(item)) = stream.poll_next_unpin(&mut cx) {
        read.push(match item {
            SubscriberItem::Event(event) => event.data,
            SubscriberItem::Gap { reason, .. } => format!("gap {reason}"),
            SubscriberItem::Live(_) => "live".to_owned(),
            SubscriberItem::End(reason) => format!("end {reason}"),
            item => panic!("{item:?}"),
        });
    }
    read
}

fn open(hub: &Hub, cursor: impl Into<Cursor>) -> Subscriber {
    hub.subscribe(Subscription::anonymous().topic("t"), cursor).unwrap()
}

fn publish(hub: &Hub, data: impl std::fmt::Display) {
    hub.topic("t").publish_now(Event::unnamed(data.to_string())).unwrap();
}

fn set(hub: &Hub, key: &'static str, data: impl std::fmt::Display) {
    hub.topic("t").publish_now(Event::unnamed(data.to_string()).key(key)).unwrap();
}

fn with(retention: Retention) -> Hub {
    Hub::builder().retention_for(TopicFilter::exact("t"), retention).build().unwrap()
}

#[test]
fn a_new_page_receives_every_current_value_and_then_the_changes() {
    let hub = with(Retention::latest_per_key());
    set(&hub, "boiler", "boiler 1");
    set(&hub, "pump", "pump 1");
    publish(&hub, "no stream is open");
    set(&hub, "boiler", "boiler 2");
    let mut page = open(&hub, Cursor::Absent);
    assert_eq!(read(&mut page), ["pump 1", "boiler 2", "live"]);
    set(&hub, "pump", "pump 2");
    publish(&hub, "without a key");
    assert_eq!(read(&mut page), ["pump 2", "without a key"]);
}

#[test]
fn a_slow_page_receives_the_newest_value_without_a_gap() {
    let hub = with(Retention::latest_per_key());
    let mut page = open(&hub, Cursor::Absent);
    assert_eq!(read(&mut page), ["live"]);
    for percent in 0..=10_000 {
        set(&hub, "report", percent);
    }
    assert_eq!(read(&mut page), ["10000"]);
    assert!(hub.stats().keyed_bytes < 1_200);
}

#[test]
fn a_removal_is_delivered_and_drops_the_value() {
    let hub = with(Retention::latest_per_key());
    let mut page = open(&hub, Cursor::Absent);
    set(&hub, "boiler", "on");
    assert_eq!(read(&mut page), ["on", "live"]);
    let event = Event::removal("boiler").name("sensor.removed");
    hub.topic("t").publish_now(event).unwrap();
    assert_eq!(read(&mut page), ["boiler"]);
    assert_eq!(read(&mut open(&hub, Cursor::Absent)), ["live"]);
    assert_eq!(hub.stats().keyed_bytes, 0);
    hub.topic("t").publish_now(Event::removal("never set").data("{}")).unwrap();
    assert_eq!(read(&mut page), ["{}"]);
}

#[test]
fn keys_above_the_limit_drop_the_oldest_and_cause_a_gap() {
    let hub = with(Retention::latest_per_key().count(2));
    let start = hub.position();
    for key in ["a", "b", "c"] {
        set(&hub, key, key);
    }
    assert_eq!(read(&mut open(&hub, Cursor::Absent)), ["b", "c", "live"]);
    assert_eq!(read(&mut open(&hub, start)), ["gap trimmed", "b", "c", "live"]);
}

#[test]
fn current_values_survive_a_burst_of_other_events() {
    let hub = Hub::builder()
        .retention_for(TopicFilter::exact("t"), Retention::latest_per_key())
        .retention_budget(600 << 10)
        .build()
        .unwrap();
    set(&hub, "boiler", "on");
    for n in 0..5_000 {
        hub.topic("busy").publish_now(Event::unnamed(format!("{n:0>1000}"))).unwrap();
    }
    assert!(hub.stats().retained_bytes <= 600 << 10);
    assert_eq!(read(&mut open(&hub, Cursor::Absent)), ["on", "live"]);
}

#[test]
fn the_budget_drops_the_oldest_events_of_all_topics_first() {
    let hub = Hub::builder().max_payload(4_000).retention_budget(10_000).build().unwrap();
    let start = hub.position();
    publish(&hub, "old");
    for _ in 0..3 {
        hub.user("u").publish_now(Event::unnamed("x".repeat(3_500))).unwrap();
    }
    assert_eq!(read(&mut open(&hub, start)), ["gap trimmed", "live"]);
    assert_eq!(hub.stats().evicted, 2, "`old` and one event of the user");
}

#[test]
fn backfilled_events_have_ids_that_can_be_resumed_from() {
    let hub = with(Retention::replay());
    (0..200).for_each(|n| publish(&hub, n));
    let all: Vec<String> = (0..200).map(|n| n.to_string()).collect();
    let start = |start| hub.subscribe(Subscription::anonymous().topic("t").start(start), Cursor::Absent).unwrap();
    assert_eq!(read(&mut start(Start::Oldest)), [&all[..], &["live".to_owned()]].concat());
    assert_eq!(read(&mut start(Start::Last(3))), ["197", "198", "199", "live"]);
    assert_eq!(read(&mut start(Start::Live)), ["live"]);

    let mut page = start(Start::Oldest);
    let mut cx = Context::from_waker(futures::task::noop_waker_ref());
    let Poll::Ready(Some(SubscriberItem::Event(first))) = page.poll_next_unpin(&mut cx) else { panic!("no event") };
    assert_eq!(read(&mut open(&hub, first.position))[..2], ["1", "2"]);
}

fn start(hub: &Hub, start: Start) -> Vec<String> {
    read(&mut hub.subscribe(Subscription::anonymous().topic("t").start(start), Cursor::Absent).unwrap())
}

#[test]
fn a_stream_from_the_oldest_event_begins_with_a_gap_when_events_were_trimmed() {
    let hub = with(Retention::replay().count(3));
    (0..3).for_each(|n| publish(&hub, n));
    assert_eq!(start(&hub, Start::Oldest), ["0", "1", "2", "live"]);
    (3..6).for_each(|n| publish(&hub, n));
    assert_eq!(start(&hub, Start::Oldest), ["gap trimmed", "3", "4", "5", "live"]);
    assert_eq!(hub.stats().gaps(GapReason::Trimmed), 1);
}

#[test]
fn a_stream_of_the_last_events_begins_with_a_gap_when_fewer_are_left_than_asked_for() {
    let hub = with(Retention::replay().count(3));
    publish(&hub, 0);
    assert_eq!(start(&hub, Start::Last(5)), ["0", "live"], "no event was trimmed");
    (1..6).for_each(|n| publish(&hub, n));
    assert_eq!(
        start(&hub, Start::Last(3)),
        ["3", "4", "5", "live"],
        "three events were requested and three are retained"
    );
    assert_eq!(start(&hub, Start::Last(4)), ["gap trimmed", "3", "4", "5", "live"]);
    assert_eq!(start(&hub, Start::Live), ["live"]);
}

#[test]
fn the_gap_at_the_start_names_the_topics_that_were_trimmed() {
    let hub = Hub::builder().retention_for(TopicFilter::exact("short"), Retention::replay().count(1)).build().unwrap();
    for topic in ["short", "short", "whole", "whole"] {
        hub.topic(topic).publish_now(Event::unnamed(topic)).unwrap();
    }
    let subscription = Subscription::anonymous().with_topics(["whole", "short", "never published"]);
    let mut stream = hub.subscribe(subscription.start(Start::Oldest), Cursor::Absent).unwrap();
    let mut cx = Context::from_waker(futures::task::noop_waker_ref());
    let Poll::Ready(Some(SubscriberItem::Gap { reason, topics })) = stream.poll_next_unpin(&mut cx) else {
        panic!("no gap")
    };
    assert_eq!((reason, topics), (GapReason::Trimmed, vec!["short".try_into().unwrap()]));
    assert_eq!(read(&mut stream), ["short", "whole", "whole", "live"]);
}

#[tokio::test(start_paused = true)]
async fn a_backfill_of_a_topic_whose_events_have_all_expired_is_a_gap() {
    let hub = with(Retention::replay().age(Duration::from_secs(60)));
    publish(&hub, "old");
    tokio::time::sleep(Duration::from_secs(61)).await;
    // A publish drops expired events.
    hub.topic("other").publish_now(Event::unnamed("x")).unwrap();
    assert_eq!(start(&hub, Start::Oldest), ["gap trimmed", "live"]);
    assert_eq!(start(&hub, Start::Last(1)), ["gap trimmed", "live"]);
    assert_eq!(start(&hub, Start::Last(0)), ["live"]);
}

/// Both policies keep no history: `live` keeps events for reconnects, `latest_per_key` keeps
/// current values.
#[test]
fn topics_without_a_history_report_no_gap_at_the_start() {
    for retention in [Retention::live().count(2), Retention::latest_per_key().count(2)] {
        let hub = with(retention);
        for n in 0..5 {
            publish(&hub, n);
            set(&hub, ["a", "b", "c", "d", "e"][n], n);
        }
        assert!(!start(&hub, Start::Oldest)[0].starts_with("gap"));
        assert!(!start(&hub, Start::Last(100))[0].starts_with("gap"));
    }
}

/// The gap of the refused cursor covers all topics, so the trimmed start causes no second gap.
#[test]
fn a_refused_cursor_and_a_trimmed_start_are_one_gap() {
    let hub = with(Retention::replay().count(2));
    (0..4).for_each(|n| publish(&hub, n));
    let subscription = Subscription::anonymous().topic("t").start(Start::Oldest);
    let cursor = Cursor::parse(b"not an id");
    assert_eq!(read(&mut hub.subscribe(subscription, cursor).unwrap()), ["gap invalid", "2", "3", "live"]);
}

#[test]
fn a_lagging_reader_gets_one_gap_or_is_ended_by_the_lag_policy() {
    let gap = with(Retention::replay().count(10));
    let mut page = open(&gap, Cursor::Absent);
    assert_eq!(read(&mut page), ["live"]);
    (0..100).for_each(|n| publish(&gap, n));
    let read_on = read(&mut page);
    assert_eq!((read_on.len(), read_on[0].as_str(), read_on[1].as_str()), (11, "gap lagged", "90"));
    assert_eq!(gap.stats().gaps(GapReason::Lagged), 1);
    publish(&gap, "more");
    assert_eq!(read(&mut page), ["more"]);

    let strict = with(Retention::replay().count(10).on_lag(LagPolicy::Disconnect));
    let mut page = open(&strict, Cursor::Absent);
    assert_eq!(read(&mut page), ["live"]);
    let before = strict.position();
    (0..100).for_each(|n| publish(&strict, n));
    assert_eq!(read(&mut page), ["end lagged"]);
    assert_eq!(strict.stats().ended(EndReason::Lagged), 1);
    // The reconnecting client gets a gap and the retained events. If lag ended this stream too, the
    // client could never catch up.
    assert_eq!(read(&mut open(&strict, before))[..2], ["gap trimmed", "90"]);
}

#[tokio::test(start_paused = true)]
async fn expired_events_are_dropped_without_a_publish() {
    let hub = with(Retention::replay().age(Duration::from_secs(60)));
    let start = hub.position();
    publish(&hub, "old");
    tokio::time::sleep(Duration::from_secs(59)).await;
    assert_eq!(read(&mut open(&hub, start)), ["old", "live"]);
    tokio::time::sleep(Duration::from_secs(7)).await;
    // The hub remembers the empty topic for the grace period.
    assert!(hub.stats().retained_bytes < 500);
    assert_eq!(read(&mut open(&hub, start)), ["gap trimmed", "live"]);
}

#[tokio::test(start_paused = true)]
async fn live_retention_keeps_events_for_a_quick_reconnect() {
    let hub = with(Retention::live());
    let start = hub.position();
    publish(&hub, "just now");
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert_eq!(read(&mut open(&hub, start)), ["just now", "live"]);
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert_eq!(read(&mut open(&hub, start)), ["gap trimmed", "live"]);
}

#[test]
fn the_first_matching_rule_wins() {
    let hub = Hub::builder()
        .retention_for(TopicFilter::exact("t"), Retention::latest_per_key())
        .retention_for(TopicFilter::prefix("t"), Retention::replay().count(1))
        .build()
        .unwrap();
    set(&hub, "k", 1);
    set(&hub, "k", 2);
    assert_eq!(read(&mut open(&hub, Cursor::Absent)), ["2", "live"]);
}

#[test]
fn a_uuid_is_a_name_of_a_user_and_of_a_topic() {
    let id = uuid::Uuid::from_u128(7);
    let hub = Hub::builder().build().unwrap();
    let mut page = hub.subscribe(Subscription::for_user(id).topic(id), Cursor::Absent).unwrap();
    hub.user(id).publish_now(Event::unnamed("user")).unwrap();
    hub.topic("00000000-0000-0000-0000-000000000007").publish_now(Event::unnamed("topic")).unwrap();
    assert_eq!(read(&mut page), ["user", "topic", "live"]);
}

#[test]
fn a_stream_that_always_has_more_to_read_catches_up() {
    let hub = with(Retention::replay().count(2).on_lag(LagPolicy::Disconnect));
    let start = hub.position();
    (0..9).for_each(|n| publish(&hub, n));
    let mut page = open(&hub, start);
    let mut cx = Context::from_waker(futures::task::noop_waker_ref());
    let mut next = || match page.poll_next_unpin(&mut cx) {
        Poll::Ready(Some(item)) => {
            // After each item, more events are published than the stream can read.
            (0..9).for_each(|n| publish(&hub, n));
            item
        }
        other => panic!("{other:?}"),
    };
    assert!(matches!(next(), SubscriberItem::Gap { reason: GapReason::Trimmed, .. }));
    assert!(matches!(next(), SubscriberItem::Event(_)));
    assert!(matches!(next(), SubscriberItem::Event(_)));
    assert!(matches!(next(), SubscriberItem::Live(_)));
    assert!(matches!(next(), SubscriberItem::End(EndReason::Lagged)));
}

#[test]
fn the_largest_event_reaches_open_streams_at_the_smallest_budget() {
    let hub = Hub::builder().max_payload(10_000).retention_budget(10_000).build().unwrap();
    let mut page = open(&hub, Cursor::Absent);
    assert_eq!(read(&mut page), ["live"]);
    for _ in 0..3 {
        let large = "x".repeat(9_900);
        publish(&hub, &large);
        assert_eq!(read(&mut page), [large]);
    }
}

#[test]
fn topics_whose_values_were_removed_leave_no_memory_behind() {
    let hub = Hub::builder()
        .topic_retention(Retention::latest_per_key())
        .write_deadline(Duration::from_millis(10))
        .heartbeat(Duration::from_millis(10))
        .build()
        .unwrap();
    let round = || {
        for n in 0..20_000 {
            hub.topic(n).publish_now(Event::unnamed("x").key("k")).unwrap();
            hub.topic(n).publish_now(Event::removal("k")).unwrap();
        }
        let since = std::time::Instant::now();
        while hub.stats().channels > 10 {
            assert!(since.elapsed() < Duration::from_secs(20), "{} channels are left", hub.stats().channels);
            std::thread::yield_now();
            hub.everyone().publish_now(Event::unnamed("x")).unwrap();
        }
    };
    round();
    let left = allocation_counter::measure(round).bytes_current;
    assert!(left < 400_000, "{left} bytes are left of 20,000 topics");
}

#[test]
fn topics_without_events_are_forgotten_when_their_streams_end() {
    let hub = Hub::builder().build().unwrap();
    for n in 0..100 {
        let topics = (0..100).map(|topic| format!("{n}/{topic}"));
        drop(hub.subscribe(Subscription::for_user(n).with_topics(topics), Cursor::Absent).unwrap());
    }
    assert_eq!(hub.stats().channels, 1);
}

/// The number of expired events that one publish drops is bounded, also if few topics have all of
/// them.
#[test]
fn one_publish_drops_a_bounded_number_of_expired_events() {
    const AGE: Duration = Duration::from_secs(60);
    const EVENTS: usize = 8_000;
    // Without a runtime, only publishers drop expired events.
    let hub = Hub::builder().topic_retention(Retention::replay().age(AGE)).build().unwrap();
    for n in 0..EVENTS {
        hub.topic(n % 10).publish_now(Event::unnamed("x")).unwrap();
    }
    let each = hub.stats().retained_bytes / EVENTS;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        tokio::time::advance(AGE + Duration::from_millis(1)).await;
        // No await follows, so the runtime runs no task of the hub.
        let before = hub.stats().retained_bytes;
        hub.topic("t").publish_now(Event::unnamed("x")).unwrap();
        let dropped = before.saturating_sub(hub.stats().retained_bytes) / each;
        assert!((100..300).contains(&dropped), "{dropped} of {EVENTS} events");
        // Later publishes drop the rest.
        for _ in 0..EVENTS / 200 {
            hub.topic("t").publish_now(Event::unnamed("x")).unwrap();
        }
        assert!(hub.stats().retained_bytes / each < 200);
    });
}

#[test]
fn eviction_by_the_budget_takes_as_long_with_many_rules_as_with_few() {
    const RULES: usize = 20_000;
    let took = |rules: usize| {
        let retention = |n: usize| Retention::replay().age(Duration::from_secs(600 + n as u64));
        let rule = |n: usize| TopicFilter::exact(format!("rule/{n}"));
        let builder = Hub::builder().max_payload(2_000).retention_budget(20_000);
        let hub = (0..rules).fold(builder, |hub, n| hub.retention_for(rule(n), retention(n))).build().unwrap();
        (0..100).for_each(|_| publish(&hub, "x".repeat(1_000)));
        let evicted = hub.stats().evicted;
        // The fastest round is the one that a busy machine interrupts least.
        let round = || {
            let start = std::time::Instant::now();
            (0..100).for_each(|_| publish(&hub, "x".repeat(1_000)));
            start.elapsed()
        };
        let fastest = (0..10).map(|_| round()).min().unwrap();
        assert_eq!(hub.stats().evicted - evicted, 1_000);
        fastest
    };
    let (few, many) = (took(1), took(RULES));
    assert!(many < few * 5, "{many:?} with {RULES} rules, {few:?} with one");
}

#[tokio::test(start_paused = true)]
async fn forgetting_a_topic_causes_no_gap_for_other_topics() {
    let hub = with(Retention::replay().age(Duration::from_secs(60)));
    let before = hub.position();
    publish(&hub, "old");
    tokio::time::sleep(Duration::from_secs(3_600)).await;
    assert_eq!(hub.stats().channels, 1, "the topic was forgotten");
    let other = || Subscription::anonymous().topic("other");
    assert_eq!(read(&mut hub.subscribe(other(), before).unwrap()), ["live"]);
    assert_eq!(read(&mut hub.subscribe(other().start(Start::Oldest), None).unwrap()), ["live"]);
    assert_eq!(read(&mut open(&hub, before)), ["gap trimmed", "live"]);
    assert_eq!(start(&hub, Start::Oldest), ["gap trimmed", "live"]);
}
