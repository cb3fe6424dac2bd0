//! What is kept, for whom, and what becomes of those who fall out of it; read in this process, as a browser would.

use std::task::{Context, Poll};
use std::time::Duration;

use futures::StreamExt;
use tower_sse::{
    Cursor, EndReason, Event, GapReason, Hub, LagPolicy, Retention, Start, Subscriber, SubscriberItem, Subscription,
    TopicFilter,
};

/// What can be read without waiting, in short.
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
fn a_new_page_gets_every_current_value_at_once_and_then_what_changes() {
    let hub = with(Retention::latest_per_key());
    set(&hub, "boiler", "boiler 1");
    set(&hub, "pump", "pump 1");
    publish(&hub, "nobody was there");
    set(&hub, "boiler", "boiler 2");
    let mut page = open(&hub, Cursor::Absent);
    assert_eq!(read(&mut page), ["pump 1", "boiler 2", "live"]);
    set(&hub, "pump", "pump 2");
    publish(&hub, "without a key");
    assert_eq!(read(&mut page), ["pump 2", "without a key"]);
}

#[test]
fn a_slow_page_skips_what_is_outdated_and_gets_the_last_without_a_gap() {
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
fn more_keys_than_fit_push_the_oldest_out_and_who_missed_it_is_told() {
    let hub = with(Retention::latest_per_key().count(2));
    let start = hub.position();
    for key in ["a", "b", "c"] {
        set(&hub, key, key);
    }
    assert_eq!(read(&mut open(&hub, Cursor::Absent)), ["b", "c", "live"]);
    assert_eq!(read(&mut open(&hub, start)), ["gap trimmed", "b", "c", "live"]);
}

#[test]
fn keyed_values_outlive_every_burst_of_others() {
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
fn the_budget_pushes_out_the_oldest_of_all_topics_first() {
    let hub = Hub::builder().max_payload(4_000).retention_budget(10_000).build().unwrap();
    let start = hub.position();
    publish(&hub, "old");
    for _ in 0..3 {
        hub.user("u").publish_now(Event::unnamed("x".repeat(3_500))).unwrap();
    }
    assert_eq!(read(&mut open(&hub, start)), ["gap trimmed", "live"]);
    assert_eq!(hub.stats().evicted, 2, "the old one and one of the user's");
}

#[test]
fn history_comes_with_the_ids_of_its_place_and_can_be_resumed_in_the_middle() {
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
    assert_eq!(start(&hub, Start::Last(5)), ["0", "live"], "no more were ever published");
    (1..6).for_each(|n| publish(&hub, n));
    assert_eq!(start(&hub, Start::Last(3)), ["3", "4", "5", "live"], "all that it asked for");
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
async fn a_topic_whose_events_have_all_aged_is_a_gap_at_the_start() {
    let hub = with(Retention::replay().age(Duration::from_secs(60)));
    publish(&hub, "old");
    tokio::time::sleep(Duration::from_secs(61)).await;
    // Drops what is past its age.
    hub.topic("other").publish_now(Event::unnamed("x")).unwrap();
    assert_eq!(start(&hub, Start::Oldest), ["gap trimmed", "live"]);
    assert_eq!(start(&hub, Start::Last(1)), ["gap trimmed", "live"]);
    assert_eq!(start(&hub, Start::Last(0)), ["live"]);
}

/// Neither promises a history: `live` keeps a window for reconnects, `latest_per_key` the newest value.
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

/// The refused cursor is the gap, and it is about all topics.
#[test]
fn a_refused_cursor_and_a_trimmed_start_are_one_gap() {
    let hub = with(Retention::replay().count(2));
    (0..4).for_each(|n| publish(&hub, n));
    let subscription = Subscription::anonymous().topic("t").start(Start::Oldest);
    let cursor = Cursor::parse(b"not an id");
    assert_eq!(read(&mut hub.subscribe(subscription, cursor).unwrap()), ["gap invalid", "2", "3", "live"]);
}

#[test]
fn a_reader_that_falls_out_of_the_ring_is_told_once_or_ended_as_the_policy_says() {
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
    // It comes back, and learns what it missed then; else it would be sent away for ever.
    assert_eq!(read(&mut open(&strict, before))[..2], ["gap trimmed", "90"]);
}

#[tokio::test(start_paused = true)]
async fn what_is_past_its_age_is_dropped_without_a_publish() {
    let hub = with(Retention::replay().age(Duration::from_secs(60)));
    let start = hub.position();
    publish(&hub, "old");
    tokio::time::sleep(Duration::from_secs(59)).await;
    assert_eq!(read(&mut open(&hub, start)), ["old", "live"]);
    tokio::time::sleep(Duration::from_secs(7)).await;
    // The empty topic is remembered for the grace.
    assert!(hub.stats().retained_bytes < 500);
    assert_eq!(read(&mut open(&hub, start)), ["gap trimmed", "live"]);
}

#[tokio::test(start_paused = true)]
async fn live_keeps_a_moment_for_who_reconnects_at_once() {
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
fn a_uuid_names_a_user_and_a_topic() {
    let id = uuid::Uuid::from_u128(7);
    let hub = Hub::builder().build().unwrap();
    let mut page = hub.subscribe(Subscription::for_user(id).topic(id), Cursor::Absent).unwrap();
    hub.user(id).publish_now(Event::unnamed("user")).unwrap();
    hub.topic("00000000-0000-0000-0000-000000000007").publish_now(Event::unnamed("topic")).unwrap();
    assert_eq!(read(&mut page), ["user", "topic", "live"]);
}

#[test]
fn a_stream_that_never_runs_dry_catches_up_all_the_same() {
    let hub = with(Retention::replay().count(2).on_lag(LagPolicy::Disconnect));
    let start = hub.position();
    (0..9).for_each(|n| publish(&hub, n));
    let mut page = open(&hub, start);
    let mut cx = Context::from_waker(futures::task::noop_waker_ref());
    let mut next = || match page.poll_next_unpin(&mut cx) {
        Poll::Ready(Some(item)) => {
            // There is always more than it has read.
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
fn the_largest_event_reaches_who_is_there_whatever_the_budget() {
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
fn topics_that_only_had_values_leave_nothing_behind() {
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
fn names_that_somebody_asked_for_once_are_not_remembered() {
    let hub = Hub::builder().build().unwrap();
    for n in 0..100 {
        let topics = (0..100).map(|topic| format!("{n}/{topic}"));
        drop(hub.subscribe(Subscription::for_user(n).with_topics(topics), Cursor::Absent).unwrap());
    }
    assert_eq!(hub.stats().channels, 1);
}

/// What one publisher drops of what is past its age is bounded in events, however few the topics are.
#[test]
fn one_publish_drops_a_bounded_number_of_aged_events() {
    const AGE: Duration = Duration::from_secs(2);
    const EVENTS: usize = 8_000;
    // Without a runtime nothing drops them but publishers.
    let hub = Hub::builder().topic_retention(Retention::replay().age(AGE)).build().unwrap();
    for n in 0..EVENTS {
        hub.topic(n % 10).publish_now(Event::unnamed("x")).unwrap();
    }
    let (published, each) = (std::time::Instant::now(), hub.stats().retained_bytes / EVENTS);
    while published.elapsed() <= AGE {
        std::thread::sleep(Duration::from_millis(10));
    }
    let before = hub.stats().retained_bytes;
    hub.topic("t").publish_now(Event::unnamed("x")).unwrap();
    let dropped = before.saturating_sub(hub.stats().retained_bytes) / each;
    assert!((100..300).contains(&dropped), "{dropped} of {EVENTS} events");
    // And it goes on until all are gone.
    for _ in 0..EVENTS / 200 {
        hub.topic("t").publish_now(Event::unnamed("x")).unwrap();
    }
    assert!(hub.stats().retained_bytes / each < 200);
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
        // The fastest of several rounds is without the pauses of a busy machine.
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
async fn forgetting_a_topic_reports_no_gap_of_the_others() {
    let hub = with(Retention::replay().age(Duration::from_secs(60)));
    let before = hub.position();
    publish(&hub, "old");
    tokio::time::sleep(Duration::from_secs(3_600)).await;
    assert_eq!(hub.stats().channels, 1, "it was forgotten");
    let other = || Subscription::anonymous().topic("other");
    assert_eq!(read(&mut hub.subscribe(other(), before).unwrap()), ["live"]);
    assert_eq!(read(&mut hub.subscribe(other().start(Start::Oldest), None).unwrap()), ["live"]);
    assert_eq!(read(&mut open(&hub, before)), ["gap trimmed", "live"]);
    assert_eq!(start(&hub, Start::Oldest), ["gap trimmed", "live"]);
}
